//! zlib streams. The Adler sum at the end is not asked for: the extent's own checksums cover every
//! byte, and padding follows.

use super::Damaged;
use flate2::{Decompress, FlushDecompress, Status};

/// The number of bytes that came out: all the room, or up to the stream's end.
pub(super) fn unpack(input: &[u8], out: &mut [u8]) -> Result<usize, Damaged> {
    let damaged = |why| Err(Damaged { kind: "zlib", why });
    let mut stream = Decompress::new(true);
    loop {
        let (read, written) = (progress(stream.total_in()), progress(stream.total_out()));
        let rest_in = input.get(read..).unwrap_or(&[]);
        let rest_out = out.get_mut(written..).unwrap_or(&mut []);
        if rest_out.is_empty() {
            return Ok(written);
        }
        let status = stream.decompress(rest_in, rest_out, FlushDecompress::Finish);
        let now = progress(stream.total_out());
        match status {
            Ok(Status::StreamEnd) => return Ok(now),
            Ok(_) if (progress(stream.total_in()), now) == (read, written) => {
                return damaged("it breaks off");
            }
            Ok(_) => (),
            Err(_) if now == out.len() => return Ok(now),
            Err(_) => return damaged("not a zlib stream"),
        }
    }
}

fn progress(total: u64) -> usize {
    usize::try_from(total).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::ZlibEncoder};
    use std::io::Write as _;

    #[test]
    fn padding_behind_the_stream_is_ignored_and_output_is_cut() {
        let plain: Vec<u8> = (0..100_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::new(3));
        encoder.write_all(&plain).unwrap();
        let mut packed = encoder.finish().unwrap();
        packed.resize(packed.len().next_multiple_of(4096), 0);
        for room in [0, 1, 5000, plain.len()] {
            let mut out = vec![0; room];
            assert_eq!(unpack(&packed, &mut out), Ok(room));
            assert_eq!(out, plain[..room]);
        }
        let mut out = vec![0; plain.len() + 10];
        assert_eq!(unpack(&packed, &mut out), Ok(plain.len()), "the end of the stream is an end");
        assert!(unpack(&packed[..2000], &mut out).is_err(), "the end of the input is none");
    }
}
