//! One sorted set of keys inside a btree node, and the frame of a node: sets one after another.
//!
//! ```text
//! block 0          1                 2        ..          blocks of the node
//!       | bset      | bset (2 blocks)          | bset | free: no block carries the node's seq |
//!       ^ may be empty; every other set has keys
//! ```
//!
//! A node is a log: a set is never changed once written, the next one starts at the next block. The
//! checksum starts from the node's own pointer word, so a bucket's content is only valid there.

use std::mem::size_of;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::bkey::{keys_with_many_pointers, read_keys, words_of, write_keys};
use super::{Key, Layout, Pos, SetMagic};
use crate::error::{Corrupt, Hex, Place};
use varve_block::sum;

/// Head of a bset, as stored.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
pub(crate) struct RawBset {
    pub(crate) csum: U64,
    pub(crate) magic: U64,
    pub(crate) seq: U64,
    pub(crate) version: U32,
    pub(crate) keys: U32,
}
const _: () = assert!(size_of::<RawBset>() == BSET_HEADER);

/// Bytes of the header.
pub(crate) const BSET_HEADER: usize = 32;
/// The only version written; 0 is read.
const VERSION: u32 = 1;

/// What surrounds the sets of one node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NodeFrame {
    /// The key under which the parent or the journal knows the node.
    pub key: Key,
    /// 0 = leaf.
    pub level: u8,
    pub magic: u64,
    /// First sector of the node.
    pub sector: u64,
    pub block_bytes: usize,
    /// Blocks of the node.
    pub blocks: usize,
}

/// One set that passed its checks (29 to 32).
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Bset {
    pub seq: u64,
    pub keys: Vec<Key>,
    /// First block inside the node.
    pub block: usize,
    /// Blocks taken.
    pub blocks: usize,
    /// Indices of keys that have several pointers on disk: read as invalidations.
    pub many_pointers: Vec<usize>,
}

impl NodeFrame {
    /// The frame of the node that `key` points to; its pointer has been checked by the caller.
    pub(crate) fn new(key: Key, level: u8, magic: SetMagic, layout: &Layout) -> NodeFrame {
        NodeFrame {
            key,
            level,
            magic: magic.bset(),
            sector: key.pointer().offset(),
            block_bytes: layout.block_bytes(),
            blocks: usize::try_from(key.size().checked_div(layout.block_size).unwrap_or(0))
                .unwrap_or(0),
        }
    }

    /// Bytes of the node.
    pub(crate) fn bytes(&self) -> usize {
        self.blocks.saturating_mul(self.block_bytes)
    }

    /// Blocks that a set of `words` words takes.
    pub(crate) fn blocks_for(&self, words: usize) -> usize {
        bset_bytes(words).div_ceil(self.block_bytes.max(1))
    }

    /// The inclusive upper bound of the node's keys.
    pub(crate) fn bound(&self) -> Pos {
        self.key.pos()
    }

    pub(crate) fn what(&self) -> &'static str {
        if self.level == 0 { "leaf" } else { "interior node" }
    }

    pub(crate) fn place(&self, block: usize) -> Place {
        let per_block = self.block_bytes.checked_div(super::SECTOR_BYTES).unwrap_or(0);
        let offset = u64::try_from(block.saturating_mul(per_block)).unwrap_or(0);
        Place {
            sector: Some(self.sector.saturating_add(offset)),
            level: Some(self.level),
            node: Some(self.bound()),
            ..Place::default()
        }
    }

    /// All sets of a node, oldest first, and nothing behind them that was lost (checks 29 to 32).
    /// `bytes` is the whole node.
    pub(crate) fn parse(&self, bytes: &[u8]) -> Result<Vec<Bset>, Corrupt> {
        let mut sets: Vec<Bset> = Vec::new();
        let mut block = 0usize;
        while block < self.blocks {
            let seq = sets.first().map(|first| first.seq);
            if let Some(seq) = seq
                && self.seq_at(bytes, block) != Some(seq)
            {
                break;
            }
            let at = block.saturating_mul(self.block_bytes);
            let rest = bytes.get(at..self.bytes()).unwrap_or(&[]);
            let set = self.parse_set(rest, block, sets.len())?;
            block = block.saturating_add(set.blocks);
            sets.push(set);
        }
        let Some(first) = sets.first() else {
            return Err(self.wrong(29, block, 0, "size", self.blocks, "at least one block"));
        };
        for lost in block..self.blocks {
            if self.seq_at(bytes, lost) == Some(first.seq) {
                let found = format!(
                    "a set of this node behind a gap of {} blocks",
                    lost.saturating_sub(block)
                );
                return Err(self.wrong(31, lost, sets.len(), "seq", found, "another seq"));
            }
        }
        Ok(sets)
    }

    /// The set at the beginning of `rest`, which is block `block` and what follows; `number` counts
    /// the sets before it.
    pub(crate) fn parse_set(
        &self,
        rest: &[u8],
        block: usize,
        number: usize,
    ) -> Result<Bset, Corrupt> {
        let row = if number == 0 { 29 } else { 30 };
        let wrong = |field, found: &dyn std::fmt::Display, expected: &dyn std::fmt::Display| {
            Err(self.wrong(row, block, number, field, found, expected))
        };
        let Ok((raw, body)) = RawBset::ref_from_prefix(rest) else {
            return wrong("length", &rest.len(), &"room for the header of a set");
        };
        if raw.magic != self.magic {
            return wrong("magic", &Hex(raw.magic.get()), &Hex(self.magic));
        }
        if raw.version.get() > VERSION {
            return wrong("version", &raw.version, &"0 or 1");
        }
        if raw.seq == 0 {
            return wrong("seq", &0, &"not zero");
        }
        let words = usize::try_from(raw.keys.get()).unwrap_or(usize::MAX);
        let Some(list) = body.get(..words.saturating_mul(8)) else {
            return wrong("keys", &raw.keys, &format!("at most {} words", body.len() >> 3));
        };
        let covered = rest.get(size_of::<U64>()..bset_bytes(words)).unwrap_or(&[]);
        let sum = match raw.version.get() {
            0 => sum::bcache_crc64(covered),
            _ => sum::bcache_crc64_seeded(self.key.pointer().word(), covered),
        };
        if raw.csum != sum {
            return wrong("csum", &Hex(raw.csum.get()), &Hex(sum));
        }
        if words == 0 && number != 0 {
            return wrong("keys", &0, &"a later set has keys");
        }
        let list = read_words(list);
        let keys = read_keys(&list).map_err(|cut| {
            let place = Place { index: Some(cut.index), ..self.place(block).bset(number) };
            Corrupt::row(32, self.what(), place, "keys", "the last key is cut short", "whole keys")
        })?;
        let many_pointers =
            if words_of(&keys) == words { Vec::new() } else { keys_with_many_pointers(&list) };
        let blocks = self.blocks_for(words);
        Ok(Bset { seq: raw.seq.get(), keys, block, blocks, many_pointers })
    }

    fn seq_at(&self, bytes: &[u8], block: usize) -> Option<u64> {
        let rest = bytes.get(block.saturating_mul(self.block_bytes)..)?;
        RawBset::ref_from_prefix(rest).ok().map(|(raw, _)| raw.seq.get())
    }

    fn wrong(
        &self,
        row: u8,
        block: usize,
        number: usize,
        field: &'static str,
        found: impl std::fmt::Display,
        expected: impl std::fmt::Display,
    ) -> Corrupt {
        Corrupt::row(row, self.what(), self.place(block).bset(number), field, found, expected)
    }
}

/// Makes the bytes of a set.
pub(crate) struct BsetWriter<'a> {
    pub frame: &'a NodeFrame,
    pub seq: u64,
}

impl BsetWriter<'_> {
    /// A version-1 set of `keys`, padded with zeroes to whole blocks.
    pub(crate) fn encode(&self, keys: &[Key]) -> Vec<u8> {
        let words = words_of(keys);
        let len = self.frame.blocks_for(words).saturating_mul(self.frame.block_bytes);
        let mut bytes = Vec::with_capacity(len);
        let head = RawBset {
            csum: 0.into(),
            magic: self.frame.magic.into(),
            seq: self.seq.into(),
            version: VERSION.into(),
            keys: u32::try_from(words).unwrap_or(u32::MAX).into(),
        };
        bytes.extend_from_slice(head.as_bytes());
        for word in write_keys(keys) {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        let covered = bytes.get(size_of::<U64>()..).unwrap_or(&[]);
        let sum = sum::bcache_crc64_seeded(self.frame.key.pointer().word(), covered);
        if let Some(field) = bytes.get_mut(..size_of::<U64>()) {
            field.copy_from_slice(&sum.to_le_bytes());
        }
        bytes.resize(len, 0);
        bytes
    }
}

/// Bytes of a set with `words` words of keys.
pub(crate) fn bset_bytes(words: usize) -> usize {
    words.saturating_mul(8).saturating_add(BSET_HEADER)
}

/// Little-endian words; a remainder of less than a word is left out.
pub(crate) fn read_words(bytes: &[u8]) -> Vec<u64> {
    let (chunks, _) = bytes.as_chunks::<8>();
    chunks.iter().map(|chunk| u64::from_le_bytes(*chunk)).collect()
}

/// Changes a set in place and seals it again, for tests that damage single fields.
#[cfg(test)]
pub(crate) fn edit(
    frame: &NodeFrame,
    bytes: &mut [u8],
    block: usize,
    change: impl FnOnce(&mut RawBset, &mut [u8]),
) {
    let at = block * frame.block_bytes;
    let (raw, body) = RawBset::mut_from_prefix(&mut bytes[at..]).unwrap();
    change(raw, body);
    let end = bset_bytes(raw.keys.get() as usize);
    let sum = sum::bcache_crc64_seeded(frame.key.pointer().word(), &bytes[at + 8..at + end]);
    bytes[at..at + 8].copy_from_slice(&sum.to_le_bytes());
}

#[cfg(test)]
#[path = "bset_tests.rs"]
pub(crate) mod tests;
