//! LZO1X, and the frame that btrfs puts around it.
//!
//! ```text
//! | total u32 | len u32, LZO1X data | len u32, LZO1X data | ... each unpacks to one sector
//! ```
//! A segment's length word never crosses a sector border of the *compressed* stream: where fewer than
//! four bytes remain, they are padding.
//!
//! LZO1X itself is a row of instructions, each a run of literals or a copy from what was unpacked
//! before, with up to three more literals riding on it. The decoder below is written from the
//! description of the stream in the kernel's documentation (staging/lzo): bounded on both sides, no
//! byte is read or written without a look at what is left.

use super::Damaged;

const fn damaged(why: &'static str) -> Damaged {
    Damaged { kind: "lzo", why }
}

/// Unpacks a framed extent; the number of bytes that came out.
pub(super) fn unpack(input: &[u8], out: &mut [u8], sectorsize: usize) -> Result<usize, Damaged> {
    let total = word(input, 0).ok_or(damaged("no header"))?;
    let input = input.get(..total).ok_or(damaged("total length beyond the extent"))?;
    // The most a sector that does not compress can grow to.
    let longest = sectorsize + sectorsize / 16 + 64 + 3;
    let (mut at, mut done) = (4, 0);
    while at < total && done < out.len() {
        let left = sectorsize - at % sectorsize;
        if left < 4 {
            at += left;
        }
        let Some(len) = word(input, at) else { return Err(damaged("a segment has no length")) };
        at += 4;
        if len == 0 || len > longest {
            return Err(damaged("impossible segment length"));
        }
        let segment = input.get(at..at + len).ok_or(damaged("segment beyond the stream"))?;
        at += len;
        let room = out.len().min(done + sectorsize);
        let unpacked = lzo1x(segment, &mut out[done..room])?;
        done += unpacked;
        // Only the last segment may be short.
        if unpacked < sectorsize {
            break;
        }
    }
    Ok(done)
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let word = bytes.get(at..)?.first_chunk::<4>()?;
    usize::try_from(u32::from_le_bytes(*word)).ok()
}

/// How many literals the last instruction left behind decides what a small number means next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    /// A copy without literals: a small number starts a run of literals.
    Copy,
    /// A copy with 1 to 3 literals: a small number is a copy of two bytes from nearby.
    Few,
    /// A run of 4 or more literals: a small number is a copy of three bytes from farther away.
    Run,
}

struct Decoder<'a> {
    input: &'a [u8],
    out: &'a mut [u8],
    done: usize,
}

/// Unpacks one stream; the number of bytes that came out. A stream that would leave `out` is cut.
fn lzo1x(input: &[u8], out: &mut [u8]) -> Result<usize, Damaged> {
    let mut decoder = Decoder { input, out, done: 0 };
    decoder.run()?;
    Ok(decoder.done)
}

impl Decoder<'_> {
    fn run(&mut self) -> Result<(), Damaged> {
        let mut after = After::Copy;
        // The first byte may be a run of its own kind.
        if let Some(&first) = self.input.first()
            && first > 17
        {
            self.byte()?;
            let literals = usize::from(first) - 17;
            self.literals(literals)?;
            after = if literals < 4 { After::Few } else { After::Run };
        }
        while !self.is_full() {
            let op = self.byte()?;
            if op < 16 && after == After::Copy {
                let length = 3 + self.length(op.into(), 15)?;
                self.literals(length)?;
                after = After::Run;
                continue;
            }
            let Some((distance, length, literals)) = self.copy_op(op, after)? else {
                return Ok(());
            };
            self.copy(distance, length)?;
            self.literals(literals)?;
            after = if literals == 0 { After::Copy } else { After::Few };
        }
        Ok(())
    }

    /// A copy's distance, length, and the literals behind it; `None` at the end of the stream.
    fn copy_op(&mut self, op: u8, after: After) -> Result<Option<(usize, usize, usize)>, Damaged> {
        let op = usize::from(op);
        let literals = op & 3;
        match op {
            // 0000DDSS: two or three bytes, by what came before.
            0..16 => {
                let far = usize::from(self.byte()?) << 2 | op >> 2;
                let (base, length) = if after == After::Run { (2049, 3) } else { (1, 2) };
                Ok(Some((base + far, length, literals)))
            }
            // 0001HLLL: 16 to 48 KiB back.
            16..32 => {
                let length = 2 + self.length(op & 7, 7)?;
                let (low, literals) = self.short_distance()?;
                let distance = 16384 + ((op & 8) << 11) + low;
                if distance == 16384 {
                    return Ok(None);
                }
                Ok(Some((distance, length, literals)))
            }
            // 001LLLLL: up to 16 KiB back.
            32..64 => {
                let length = 2 + self.length(op & 31, 31)?;
                let (low, literals) = self.short_distance()?;
                Ok(Some((1 + low, length, literals)))
            }
            // 01LDDDSS and 1LLDDDSS: up to 2 KiB back.
            _ => {
                let length = if op < 128 { 3 + (op >> 5 & 1) } else { 5 + (op >> 5 & 3) };
                let distance = 1 + (usize::from(self.byte()?) << 3 | op >> 2 & 7);
                Ok(Some((distance, length, literals)))
            }
        }
    }

    /// A length whose bits in the instruction are zero goes on in bytes: each zero byte is worth 255,
    /// the first other one ends it.
    fn length(&mut self, bits: usize, all_ones: usize) -> Result<usize, Damaged> {
        if bits > 0 {
            return Ok(bits);
        }
        let zeroes = self.input.iter().take_while(|&&byte| byte == 0).count();
        self.input = self.input.get(zeroes..).unwrap_or(&[]);
        Ok(all_ones + zeroes * 255 + usize::from(self.byte()?))
    }

    /// Two bytes: fourteen bits of distance over two of literals.
    fn short_distance(&mut self) -> Result<(usize, usize), Damaged> {
        let both = usize::from(self.byte()?) | usize::from(self.byte()?) << 8;
        Ok((both >> 2, both & 3))
    }

    fn byte(&mut self) -> Result<u8, Damaged> {
        let (&byte, rest) = self.input.split_first().ok_or(damaged("stream without end mark"))?;
        self.input = rest;
        Ok(byte)
    }

    fn is_full(&self) -> bool {
        self.done == self.out.len()
    }

    fn literals(&mut self, count: usize) -> Result<(), Damaged> {
        let count = count.min(self.out.len() - self.done);
        let (run, rest) =
            self.input.split_at_checked(count).ok_or(damaged("literals beyond the stream"))?;
        self.out[self.done..self.done + count].copy_from_slice(run);
        self.done += count;
        self.input = rest;
        Ok(())
    }

    /// Byte by byte where source and target overlap: that is how runs are written.
    fn copy(&mut self, distance: usize, length: usize) -> Result<(), Damaged> {
        let from = self.done.checked_sub(distance).ok_or(damaged("copy from before the start"))?;
        let length = length.min(self.out.len() - self.done);
        if distance >= length {
            self.out.copy_within(from..from + length, self.done);
        } else {
            for n in 0..length {
                self.out[self.done + n] = self.out[from + n];
            }
        }
        self.done += length;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(stream: &[u8], room: usize) -> Result<Vec<u8>, Damaged> {
        let mut out = vec![0; room];
        let done = lzo1x(stream, &mut out)?;
        out.truncate(done);
        Ok(out)
    }

    const END: [u8; 3] = [17, 0, 0];

    #[test]
    fn instructions_do_what_the_description_says() {
        // A first byte above 17 is a run of that many literals less 17.
        let hello = [&[22], &b"hello"[..], &END].concat();
        assert_eq!(plain(&hello, 100).unwrap(), b"hello");
        // Five literals, then 01LDDDSS: four bytes from five back, two literals behind them.
        let copy = [&[22], &b"hello"[..], &[0b0111_0010, 0], b"!?", &END].concat();
        assert_eq!(plain(&copy, 100).unwrap(), b"hellohell!?");
        // 001LLLLL: a run of zeroes by overlapping copy, distance one, length 2 + 31 + 255 + 5.
        let run = [&[18, b'z'], &[32, 0, 5, 0, 0][..], &END].concat();
        assert_eq!(plain(&run, 1000).unwrap(), [b'z'; 1 + 293]);
        // 0000LLLL in the beginning: 3 + 4 literals.
        let seven = [&[4], &b"seven b"[..], &END].concat();
        assert_eq!(plain(&seven, 100).unwrap(), b"seven b");
        // 0000DDSS after few literals: two bytes from nearby.
        let near = [&[18, b'a'], &[0b0100_0001, 0, b'b'][..], &[0b0000_0000, 0], &END].concat();
        assert_eq!(plain(&near, 100).unwrap(), b"aaaabbb");
    }

    #[test]
    fn what_leaves_the_stream_or_the_room_is_refused_or_cut() {
        let hello = [&[22], &b"hello"[..], &END].concat();
        assert_eq!(plain(&hello, 3).unwrap(), b"hel");
        assert!(plain(&hello[..4], 100).is_err());
        assert!(plain(&[22, b'h', b'e', b'l', b'l', b'o'], 100).is_err());
        // A copy from before the start.
        assert!(plain(&[&[18, b'a'], &[0b0100_1000, 0][..], &END].concat(), 100).is_err());
        assert!(plain(&[], 1).is_err());
    }

    /// Frames segments by the rule for their heads.
    fn frame(segments: &[Vec<u8>], sectorsize: usize) -> Vec<u8> {
        let mut framed = vec![0; 4];
        for segment in segments {
            let left = sectorsize - framed.len() % sectorsize;
            if left < 4 {
                framed.extend(vec![0xEE; left]);
            }
            framed.extend(u32::try_from(segment.len()).unwrap().to_le_bytes());
            framed.extend(segment);
        }
        let total = u32::try_from(framed.len()).unwrap();
        framed[..4].copy_from_slice(&total.to_le_bytes());
        framed
    }

    #[test]
    fn segment_heads_keep_off_sector_borders() {
        // Sectors of 64 bytes: 'z' by two ways that differ by one byte in length, 10 and 9.
        let long = [&[19, b'z', b'z', 32, 29, 0, 0], &END[..]].concat();
        let short = [&[18, b'z', 32, 30, 0, 0], &END[..]].concat();
        let mut segments = vec![long; 4];
        segments.extend(vec![short; 5]); // the stream stands at byte 125 now: three of padding
        segments.push([&[22], &b"hello"[..], &END].concat());
        let framed = frame(&segments, 64);
        assert_eq!(framed[125..128], [0xEE; 3]);
        let plain = [&[b'z'; 9 * 64][..], b"hello"].concat();
        let mut out = vec![0; 1000];
        assert_eq!(unpack(&framed, &mut out, 64), Ok(plain.len()));
        assert_eq!(out[..plain.len()], plain);
        let mut out = vec![0; 100];
        assert_eq!(unpack(&framed, &mut out, 64), Ok(100));
        // Padding behind the total, as in an extent; and a total beyond the extent.
        let padded = [&framed[..], &[0xFF; 50]].concat();
        assert_eq!(unpack(&padded, &mut vec![0; 1000], 64), Ok(plain.len()));
        assert!(unpack(&framed[..framed.len() - 1], &mut vec![0; 1000], 64).is_err());
    }
}
