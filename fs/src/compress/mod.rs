//! Compressed extents (format: btrfs 11). A decoder is given the room it may fill and never leaves it:
//! what an extent claims to hold was checked before, and what it really holds does not matter.

mod lzo;
mod zlib;
mod zstd;

use crate::format::file_extent::Compression;

/// Why an extent could not be unpacked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{kind} stream is damaged: {why}")]
pub(crate) struct Damaged {
    kind: &'static str,
    why: &'static str,
}

/// Unpacks `input` into `out`. Output beyond it is cut. A stream may end before: the kernel packs the
/// last extent of a file up to the file's size, and counts whole sectors; the rest is zeroes. A
/// stream that breaks off is an error.
pub(crate) fn unpack(
    how: Compression,
    input: &[u8],
    out: &mut [u8],
    sectorsize: usize,
) -> Result<(), Damaged> {
    let got = match how {
        Compression::None => {
            let len = input.len().min(out.len());
            out[..len].copy_from_slice(&input[..len]);
            len
        }
        Compression::Zlib => zlib::unpack(input, out)?,
        Compression::Lzo => lzo::unpack(input, out, sectorsize)?,
        Compression::Zstd => zstd::unpack(input, out)?,
    };
    out[got..].fill(0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_make_a_decoder_panic_or_leave_its_room(
            mut input in proptest::collection::vec(any::<u8>(), 0..9000),
            room in 0usize..20000,
        ) {
            // A plausible head, so that more than the first test of each decoder runs.
            let total = u32::try_from(input.len()).unwrap().to_le_bytes();
            for how in [Compression::Zlib, Compression::Lzo, Compression::Zstd] {
                let head: &[u8] = match how {
                    Compression::Zlib => &[0x78, 0x5e],
                    Compression::Lzo => &total,
                    _ => &[0x28, 0xb5, 0x2f, 0xfd],
                };
                if let Some(start) = input.get_mut(..head.len()) {
                    start.copy_from_slice(head);
                }
                let mut out = vec![0xAA; room];
                let _ = unpack(how, &input, &mut out, 4096);
            }
        }
    }
}
