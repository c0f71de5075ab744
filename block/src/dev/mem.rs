//! A device of RAM: for tests, and to measure what stands above a device.

use crate::buf::{Data, IoBuf};
use crate::device::{BlockDevice, Durability, ExtentStatus, Geometry, Zero};
use crate::error::{DevId, Op, Result};
use crate::units::{Extent, Sector, Sectors};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// Memory is kept in pieces of this many sectors, so that a large device may be mostly holes.
const PIECE: Sectors = Sectors(128);

/// Clones share the memory.
#[derive(Clone)]
pub struct Mem {
    geometry: Geometry,
    pieces: Rc<RefCell<HashMap<u64, Box<[u8]>>>>,
}

impl Mem {
    pub fn new(len: Sectors) -> Mem {
        Mem::with_geometry(Geometry {
            volatile_cache: false,
            can_discard: true,
            fast_zero: true,
            cheap_fua: true,
            ..Geometry::new(DevId::new("mem"), len)
        })
    }

    /// A device with chosen limits: block size, read-only, length.
    pub fn with_geometry(geometry: Geometry) -> Mem {
        Mem { geometry, pieces: Rc::default() }
    }

    /// A device that starts with `bytes`, padded to whole sectors.
    pub fn from_bytes(bytes: &[u8]) -> Mem {
        let len = Sectors((bytes.len() as u64).div_ceil(512));
        let mem = Mem::new(len);
        mem.poke(0, bytes);
        mem
    }

    /// Reads without the trait, from any byte: for tests and image builders.
    pub fn peek(&self, at_byte: u64, out: &mut [u8]) {
        let pieces = self.pieces.borrow();
        for (piece, within, part) in split(at_byte, out.len()) {
            match pieces.get(&piece) {
                Some(bytes) => {
                    out[part.clone()].copy_from_slice(&bytes[within..within + part.len()]);
                }
                None => out[part].fill(0),
            }
        }
    }

    /// Writes without the trait, at any byte.
    pub fn poke(&self, at_byte: u64, bytes: &[u8]) {
        let mut pieces = self.pieces.borrow_mut();
        for (piece, within, part) in split(at_byte, bytes.len()) {
            let target =
                pieces.entry(piece).or_insert_with(|| vec![0; PIECE.byte_len()].into_boxed_slice());
            target[within..within + part.len()].copy_from_slice(&bytes[part]);
        }
    }

    /// The whole contents.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut all = vec![0; self.geometry.len.byte_len()];
        self.peek(0, &mut all);
        all
    }

    fn zero(&self, range: Extent) {
        let mut pieces = self.pieces.borrow_mut();
        let mut at = range.start;
        while at < range.end() {
            let piece = at.0 / PIECE.0;
            let start = Sector(piece * PIECE.0);
            let end = (start + PIECE).min(range.end());
            if at == start && end == start + PIECE {
                pieces.remove(&piece);
            } else if let Some(bytes) = pieces.get_mut(&piece) {
                bytes[(at - start).byte_len()..(end - start).byte_len()].fill(0);
            }
            at = end;
        }
    }
}

/// `(piece, offset in it, part of the caller's slice)` for each piece a run of bytes touches.
fn split(at: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let size = PIECE.byte_len();
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let byte = at + done as u64;
        let within = usize::try_from(byte % size as u64).expect("below a piece");
        let n = (size - within).min(len - done);
        let part = done..done + n;
        done += n;
        Some((byte / size as u64, within, part))
    })
}

impl BlockDevice for Mem {
    fn geometry(&self) -> Geometry {
        self.geometry.clone()
    }

    async fn read(&self, at: Sector, mut buf: IoBuf) -> Result<IoBuf> {
        self.geometry.admit(Op::Read, Extent::new(at, buf.sectors()))?;
        self.peek(at.byte(), &mut buf);
        Ok(buf)
    }

    async fn write(&self, at: Sector, data: Data, _how: Durability) -> Result<Data> {
        self.geometry.admit(Op::Write, Extent::new(at, data.sectors()))?;
        self.poke(at.byte(), &data);
        Ok(data)
    }

    async fn flush(&self) -> Result<()> {
        Ok(())
    }

    async fn discard(&self, range: Extent) -> Result<()> {
        self.geometry.admit(Op::Discard, range)?;
        self.zero(range);
        Ok(())
    }

    async fn write_zeroes(&self, range: Extent, _how: Zero) -> Result<()> {
        self.geometry.admit(Op::WriteZeroes, range)?;
        self.zero(range);
        Ok(())
    }

    async fn extents(&self, range: Extent, limit: usize) -> Result<Vec<ExtentStatus>> {
        self.geometry.admit(Op::Extents, range)?;
        let pieces = self.pieces.borrow();
        let mut runs: Vec<ExtentStatus> = Vec::new();
        let mut at = range.start;
        while at < range.end() {
            let piece = at.0 / PIECE.0;
            let end = Sector((piece + 1) * PIECE.0).min(range.end());
            let hole = !pieces.contains_key(&piece);
            let full = runs.len() == limit.max(1);
            match runs.last_mut() {
                Some(last) if last.hole == hole => last.range.len += end - at,
                _ if full => break,
                _ => runs.push(ExtentStatus { range: Extent::between(at, end), hole, zero: hole }),
            }
            at = end;
        }
        Ok(runs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::BufPool;
    use crate::rt::Sim;

    #[test]
    fn what_was_written_reads_back_and_holes_are_told() {
        Sim::new(1).run(|_| async {
            let (mem, pool) = (Mem::new(Sectors(1000)), BufPool::new(0));
            let mut buf = pool.take(Sectors(200)).await;
            buf.fill(7);
            mem.write(Sector(100), buf.into(), Durability::Cached).await.unwrap();
            let back = mem.read(Sector(99), pool.take(Sectors(2)).await).await.unwrap();
            assert!(back[..512].iter().all(|&b| b == 0));
            assert!(back[512..].iter().all(|&b| b == 7));
            let runs = mem.extents(Extent::new(Sector(0), Sectors(1000)), 8).await.unwrap();
            let runs: Vec<_> =
                runs.iter().map(|r| (r.range.start.0, r.range.len.0, r.hole)).collect();
            assert_eq!(runs, [(0, 384, false), (384, 616, true)]);
            mem.discard(Extent::new(Sector(0), Sectors(1000))).await.unwrap();
            assert!(mem.to_vec().iter().all(|&b| b == 0));
        });
    }
}
