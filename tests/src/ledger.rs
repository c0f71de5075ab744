//! What a client may demand of a disk after a crash, block by block.
//!
//! Every write carries its block's number and a version, so each block read back says which write it
//! holds. The disk must hold, for every block, the last version that a flush (or FUA) made durable, or a
//! later one that was sent: contract points 3 and 4 of the `BlockDevice` trait. Several connections write at the
//! same time and one of them flushes for all.
//!
//! A write in flight when the server died may show only later: write-through sends to both devices at once,
//! and a crash in between leaves the new data on the disk under an old clean copy in the cache. The kernel's
//! bcache has the same window. What is never allowed is going back behind what was read and flushed.

use std::io;

use crate::disk::noise;
use crate::nbd::{FUA, Nbd, Request};

/// Bytes per block: the smallest piece that a crash may tear apart from its neighbours.
pub const BLOCK: usize = 4096;

/// Requests in flight, over all connections.
const DEPTH: u64 = 24;
/// Longest request, in blocks.
const RUN_MAX: u64 = 9;
/// A flush follows this many rounds on average.
const ROUNDS_PER_FLUSH: u64 = 5;

/// Versions of one block, all bounds inclusive.
#[derive(Clone, Copy, Debug)]
struct Block {
    /// The newest version that is durable.
    floor: u32,
    /// The newest version that was answered.
    done: u32,
    /// The newest version that was sent.
    top: u32,
}

/// The record of everything written to the first blocks of a disk.
#[derive(Debug)]
pub struct Ledger {
    blocks: Vec<Block>,
    seed: u64,
    step: u64,
}

/// A block that holds what it may not.
#[derive(Debug)]
pub struct Lost {
    pub block: usize,
    pub found: String,
    pub allowed: std::ops::RangeInclusive<u32>,
}

impl Ledger {
    /// Writes version 1 of `blocks` blocks and flushes: from here on every block has a known content.
    ///
    /// # Panics
    /// When the server refuses any of it.
    #[track_caller]
    #[must_use]
    pub fn fill(nbd: &mut Nbd, blocks: usize, seed: u64) -> Ledger {
        let ledger =
            Ledger { blocks: vec![Block { floor: 1, done: 1, top: 1 }; blocks], seed, step: 0 };
        for block in 0..blocks {
            let data = content(block, 1);
            let write = Request::Write { at: offset(block), data: &data, flags: 0 };
            nbd.ask(write).expect("the server stays").expect("a first write");
        }
        nbd.ask(Request::Flush).expect("the server stays").expect("a first flush");
        ledger
    }

    /// Writes and flushes at random until the server is gone; returns how many flushes it answered.
    pub fn write_until_dead(&mut self, connections: &mut [Nbd]) -> usize {
        let mut flushes = 0;
        while let Ok(flushed) = self.round(connections) {
            flushes += usize::from(flushed);
        }
        flushes
    }

    /// Writes and flushes at random, `rounds` times; a flush ends it.
    ///
    /// # Errors
    /// When the server goes away meanwhile.
    pub fn write(&mut self, connections: &mut [Nbd], rounds: usize) -> io::Result<()> {
        for _ in 0..rounds {
            self.round(connections)?;
        }
        self.flush(&mut connections[0])
    }

    /// One burst of writes in flight together, none overlapping another, and perhaps a flush.
    fn round(&mut self, connections: &mut [Nbd]) -> io::Result<bool> {
        let mut runs: Vec<(usize, usize, bool)> = Vec::new();
        for _ in 0..DEPTH {
            let len = 1 + usize::try_from(self.random(RUN_MAX)).expect("small");
            let room = self.blocks.len() - len;
            let start = usize::try_from(self.random(room as u64)).expect("an index");
            let durable = self.random(16) == 0;
            let overlaps =
                |&(other, n, _): &(usize, usize, bool)| start < other + n && other < start + len;
            if !runs.iter().any(overlaps) {
                runs.push((start, len, durable));
            }
        }
        for (n, &(start, len, durable)) in runs.iter().enumerate() {
            let mut data = Vec::with_capacity(len * BLOCK);
            for block in start..start + len {
                self.blocks[block].top += 1;
                data.extend(content(block, self.blocks[block].top));
            }
            let flags = if durable { FUA } else { 0 };
            let write = Request::Write { at: offset(start), data: &data, flags };
            connections[n % connections.len()].send(n as u64, write)?;
        }
        for n in 0..runs.len() {
            let (cookie, answer) = connections[n % connections.len()].receive()?;
            let (start, len, durable) = runs[usize::try_from(cookie).expect("our own cookie")];
            answer.map_err(|errno| io::Error::other(format!("a write failed: {errno:?}")))?;
            for block in &mut self.blocks[start..start + len] {
                block.done = block.top;
                if durable {
                    block.floor = block.top;
                }
            }
        }
        if self.random(ROUNDS_PER_FLUSH) != 0 {
            return Ok(false);
        }
        self.flush(&mut connections[0])?;
        Ok(true)
    }

    fn flush(&mut self, nbd: &mut Nbd) -> io::Result<()> {
        nbd.ask(Request::Flush)?
            .map_err(|errno| io::Error::other(format!("a flush failed: {errno:?}")))?;
        for block in &mut self.blocks {
            block.floor = block.done;
        }
        Ok(())
    }

    /// Every block, read back; the list of those that hold what they may not.
    #[must_use]
    pub fn check(&self, mut read: impl FnMut(u64) -> Vec<u8>) -> Vec<Lost> {
        let mut lost = Vec::new();
        for (block, state) in self.blocks.iter().enumerate() {
            let data = read(offset(block));
            let (found_block, version) = label(&data);
            let whole = data == content(found_block, version);
            let right = found_block == block && (state.floor..=state.top).contains(&version);
            if !(whole && right) {
                let found = match whole {
                    true => format!("version {version} of block {found_block}"),
                    false => format!("no version: begins {:02x?}", &data[..16]),
                };
                lost.push(Lost { block, found, allowed: state.floor..=state.top });
            }
        }
        lost
    }

    /// [`Ledger::check`] on a server; then flushes: from here on nothing older than what was found will do.
    ///
    /// # Panics
    /// When a block is lost, naming the first few.
    #[track_caller]
    pub fn recover(&mut self, nbd: &mut Nbd) {
        let mut seen = Vec::with_capacity(self.blocks.len());
        let lost = self.check(|at| {
            let data = nbd
                .read(at, u32::try_from(BLOCK).expect("small"))
                .expect("the server stays")
                .unwrap_or_else(|errno| panic!("reading a block at {at}: {errno:?}"));
            seen.push(label(&data).1);
            data
        });
        let few = &lost[..lost.len().min(5)];
        assert!(lost.is_empty(), "seed {}: {} blocks lost, first {few:#?}", self.seed, lost.len());
        nbd.ask(Request::Flush).expect("the server stays").expect("a flush");
        for (block, version) in self.blocks.iter_mut().zip(seen) {
            *block = Block { floor: version, done: version, ..*block };
        }
    }

    /// A number below `bound`, from the seed.
    fn random(&mut self, bound: u64) -> u64 {
        self.step += 1;
        let bytes = noise(self.seed ^ self.step.rotate_left(32), 8);
        u64::from_le_bytes(bytes.try_into().expect("eight bytes")) % bound
    }
}

fn offset(block: usize) -> u64 {
    (block * BLOCK) as u64
}

/// The bytes of one version of one block: its label, then noise that depends on both.
fn content(block: usize, version: u32) -> Vec<u8> {
    let mut data = noise((block as u64) << 32 | u64::from(version), BLOCK);
    data[..8].copy_from_slice(&(block as u64).to_le_bytes());
    data[8..12].copy_from_slice(&version.to_le_bytes());
    data
}

/// The label a block carries, right or wrong.
fn label(data: &[u8]) -> (usize, u32) {
    let block = u64::from_le_bytes(data[..8].try_into().expect("eight bytes"));
    let version = u32::from_le_bytes(data[8..12].try_into().expect("four bytes"));
    (usize::try_from(block).unwrap_or(usize::MAX), version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> Ledger {
        let block = Block { floor: 2, done: 3, top: 4 };
        Ledger { blocks: vec![block; 3], seed: 1, step: 0 }
    }

    fn lost(read: impl Fn(usize) -> Vec<u8>) -> usize {
        ledger().check(|at| read(usize::try_from(at).unwrap() / BLOCK)).len()
    }

    #[test]
    fn any_version_from_the_last_flushed_to_the_last_sent_is_allowed() {
        for version in 2..=4 {
            assert_eq!(lost(|block| content(block, version)), 0);
        }
    }

    #[test]
    fn older_newer_misplaced_and_torn_blocks_are_lost() {
        assert_eq!(lost(|block| content(block, 1)), 3);
        assert_eq!(lost(|block| content(block, 5)), 3);
        assert_eq!(lost(|_| content(1, 3)), 2);
        let torn = |block| [&content(block, 3)[..2048], &content(block, 4)[2048..]].concat();
        assert_eq!(lost(torn), 3);
        assert_eq!(lost(|_| vec![0; BLOCK]), 3);
    }
}
