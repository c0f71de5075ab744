//! One zstd frame per extent, its window at most 128 KiB: a larger one would make the decoder allocate
//! what a hostile header asks for.

use super::Damaged;
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation as _, OutBuffer};

const WINDOW_LOG_MAX: u32 = 17;

/// The number of bytes that came out: all the room, or up to the frame's end.
pub(super) fn unpack(input: &[u8], out: &mut [u8]) -> Result<usize, Damaged> {
    let damaged = |why| Damaged { kind: "zstd", why };
    let mut decoder = Decoder::new().map_err(|_| damaged("no decoder"))?;
    decoder
        .set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))
        .map_err(|_| damaged("no decoder"))?;
    let mut input = InBuffer::around(input);
    let room = out.len();
    let mut output = OutBuffer::around(out);
    loop {
        let before = (input.pos(), output.pos());
        let hint = decoder.run(&mut input, &mut output).map_err(|_| damaged("not a zstd frame"))?;
        let after = (input.pos(), output.pos());
        if hint == 0 || output.pos() == room {
            return Ok(output.pos());
        }
        if before == after {
            return Err(damaged("it breaks off"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_behind_the_frame_is_ignored_and_output_is_cut() {
        let plain: Vec<u8> = (0..30_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let mut packed = zstd::bulk::compress(&plain, 3).unwrap();
        packed.resize(packed.len().next_multiple_of(4096), 0);
        for room in [0, 1, 5000, plain.len()] {
            let mut out = vec![0; room];
            assert_eq!(unpack(&packed, &mut out), Ok(room));
            assert_eq!(out, plain[..room]);
        }
        let mut out = vec![0; plain.len() + 10];
        assert_eq!(unpack(&packed, &mut out), Ok(plain.len()), "the end of the frame is an end");
        assert!(unpack(&packed[..2000], &mut out).is_err(), "the end of the input is none");
    }

    #[test]
    fn a_frame_with_a_huge_window_is_refused() {
        // Magic, no single segment, window descriptor of 2^41 bytes.
        let hostile = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xf8, 1, 0, 0];
        assert!(unpack(&hostile, &mut [0; 100]).is_err());
    }
}
