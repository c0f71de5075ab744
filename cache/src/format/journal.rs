//! Journal entries ("jset"): the keys of recent insertions and the roots of everything else.
//!
//! ```text
//! | csum magic seq version keys last_seq | uuid_bucket | btree_root | level | prio_bucket[8] | keys.. |
//! 0                                      0x28          0x68         0xA8    0xB0             0xF0
//! ```
//!
//! Entries start on block boundaries, never cross a bucket and are at most 32 KiB long. Behind the
//! newest entry of a bucket, entries of the previous lap may follow with perfect checksums: only
//! `seq` tells what counts.

use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::bkey::{read_keys, words_of, write_keys};
use super::bset::read_words;
use super::{Bucket, Key, Layout, Pos, SetMagic};
use crate::error::{Corrupt, Hex, Place};
use varve_block::sum;

/// A key in a fixed slot of 8 words.
type Slot = [U64; 8];

/// Head of an entry, as stored.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
pub(crate) struct RawJset {
    csum: U64,
    magic: U64,
    seq: U64,
    version: U32,
    keys: U32,
    last_seq: U64,
    uuid_bucket: Slot,
    btree_root: Slot,
    btree_level: U16,
    pad: [u8; 6],
    prio_bucket: [U64; 8],
}
const _: () = assert!(size_of::<RawJset>() == JSET_HEADER);
const _: () = assert!(offset_of!(RawJset, uuid_bucket) == 0x28);
const _: () = assert!(offset_of!(RawJset, btree_root) == 0x68);
const _: () = assert!(offset_of!(RawJset, btree_level) == 0xA8);
const _: () = assert!(offset_of!(RawJset, prio_bucket) == 0xB0);

/// Bytes of the header.
pub(crate) const JSET_HEADER: usize = 240;
/// No entry is longer.
pub(crate) const JSET_BYTES_MAX: usize = 32 * 1024;
/// The version written. 0 means that the uuid table has entries of 64 bytes.
pub(crate) const JSET_VERSION: u32 = 1;
/// A tree of this many levels could index more than any pointer can reach.
pub(crate) const LEVEL_MAX: u16 = 8;

/// One entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JournalEntry {
    pub seq: u64,
    /// The oldest entry whose keys may be missing from the btree on disk.
    pub last_seq: u64,
    pub version: u32,
    pub uuid_bucket: Key,
    pub btree_root: Key,
    pub btree_level: u8,
    /// Head of the prio chain.
    pub prio_bucket: Bucket,
    /// Leaf keys in the order of their insertion.
    pub keys: Vec<Key>,
}

/// What stands at a block of a journal bucket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum AtBlock {
    /// An entry with its length in blocks.
    Entry(Box<JournalEntry>, usize),
    /// No entry of this set: the rest of the bucket was not written in any lap that matters.
    Nothing,
    /// The beginning of an entry that does not check (15): torn, or half overwritten.
    Broken(Corrupt),
}

impl JournalEntry {
    /// Reads the entry at the beginning of `rest`, the part of journal bucket `bucket` from some
    /// block on.
    ///
    /// What is checked here is what the *bytes* must be (15, 19, and the keys parsing exactly);
    /// whether root, uuid table and pointers make sense is [`JournalEntry::check`].
    pub(crate) fn parse(rest: &[u8], magic: SetMagic, layout: &Layout, place: Place) -> AtBlock {
        let Ok((raw, body)) = RawJset::ref_from_prefix(rest) else {
            return AtBlock::Nothing;
        };
        if raw.magic != magic.jset() {
            return AtBlock::Nothing;
        }
        let place = Place { seq: Some(raw.seq.get()), ..place };
        match Self::from_raw(raw, rest, body, place) {
            Ok((entry, bytes)) => {
                AtBlock::Entry(Box::new(entry), bytes.div_ceil(layout.block_bytes().max(1)))
            }
            Err(corrupt) => AtBlock::Broken(corrupt),
        }
    }

    fn from_raw(
        raw: &RawJset,
        rest: &[u8],
        body: &[u8],
        place: Place,
    ) -> Result<(JournalEntry, usize), Corrupt> {
        let words = usize::try_from(raw.keys.get()).unwrap_or(usize::MAX);
        let bytes = jset_bytes(words);
        let list = body.get(..words.saturating_mul(8)).filter(|_| bytes <= JSET_BYTES_MAX);
        let Some(list) = list else {
            let room = rest.len().min(JSET_BYTES_MAX);
            return Err(wrong(
                15,
                place,
                "keys",
                raw.keys,
                format!("an entry of at most {room} bytes"),
            ));
        };
        let sum = sum::bcache_crc64(rest.get(size_of::<U64>()..bytes).unwrap_or(&[]));
        if raw.csum != sum {
            return Err(wrong(15, place, "csum", Hex(raw.csum.get()), Hex(sum)));
        }
        if raw.version.get() > JSET_VERSION {
            return Err(wrong(15, place, "version", raw.version, "0 or 1"));
        }
        let keys = read_keys(&read_words(list)).map_err(|cut| {
            let place = Place { index: Some(cut.index), ..place };
            wrong(19, place, "keys", "the last key is cut short", "whole keys")
        })?;
        let level = u8::try_from(raw.btree_level.get()).ok().filter(|l| u16::from(*l) <= LEVEL_MAX);
        let Some(btree_level) = level else {
            return Err(wrong(21, place, "btree_level", raw.btree_level, "at most 8"));
        };
        let [head, ..] = raw.prio_bucket;
        let entry = JournalEntry {
            seq: raw.seq.get(),
            last_seq: raw.last_seq.get(),
            version: raw.version.get(),
            uuid_bucket: slot(&raw.uuid_bucket),
            btree_root: slot(&raw.btree_root),
            btree_level,
            prio_bucket: Bucket(head.get()),
            keys,
        };
        Ok((entry, bytes))
    }

    /// Checks 17 and 19 to 23 on one entry: everything that needs no other block.
    /// Nothing of an entry that fails may be used.
    pub fn check(&self, layout: &Layout) -> Result<(), Corrupt> {
        self.check_seq()?;
        self.check_root(layout)?;
        self.check_uuid_bucket(layout)?;
        if !layout.holds(self.prio_bucket) {
            return Err(wrong(
                23,
                self.place(),
                "prio_bucket",
                self.prio_bucket,
                "inside the device",
            ));
        }
        self.check_keys(layout)
    }

    pub(crate) fn place(&self) -> Place {
        Place { seq: Some(self.seq), ..Place::default() }
    }

    pub(crate) fn check_seq(&self) -> Result<(), Corrupt> {
        if self.last_seq > self.seq {
            let expected = format!("at most seq {}", self.seq);
            return Err(wrong(17, self.place(), "last_seq", self.last_seq, expected));
        }
        Ok(())
    }

    /// Check 21: the root can be read.
    pub(crate) fn check_root(&self, layout: &Layout) -> Result<(), Corrupt> {
        let root = &self.btree_root;
        let wrong = |found: &dyn std::fmt::Display, expected| {
            let place = Place { key: Some(*root), ..self.place() };
            Err(wrong(21, place, "btree_root", found, expected))
        };
        check_meta_pointer(root, layout).or_else(|expected| wrong(root, expected))?;
        if root.pos() != Pos::MAX {
            return wrong(&root.pos(), "the position max");
        }
        if root.size().checked_rem(layout.block_size) != Some(0) {
            return wrong(&root.size(), "a whole number of blocks");
        }
        Ok(())
    }

    /// Check 22: so can the uuid table.
    pub(crate) fn check_uuid_bucket(&self, layout: &Layout) -> Result<(), Corrupt> {
        let key = &self.uuid_bucket;
        let place = Place { key: Some(*key), ..self.place() };
        check_meta_pointer(key, layout)
            .map_err(|expected| wrong(22, place, "uuid_bucket", key, expected))?;
        let sizes = [layout.meta_sectors(), layout.meta_sectors_large_pages()];
        if !sizes.contains(&key.size()) {
            let expected = format!("{} sectors", layout.meta_sectors());
            return Err(wrong(22, place, "uuid_bucket", key.size(), expected));
        }
        Ok(())
    }

    /// Checks 19 and 20: a key that is not sound must not reach the btree.
    pub(crate) fn check_keys(&self, layout: &Layout) -> Result<(), Corrupt> {
        self.keys.iter().enumerate().try_for_each(|(index, key)| self.check_key(layout, index, key))
    }

    pub(crate) fn check_key(
        &self,
        layout: &Layout,
        index: usize,
        key: &Key,
    ) -> Result<(), Corrupt> {
        let place = self.place().key(index, *key);
        if key.size() == 0 {
            return Err(wrong(19, place, "size", 0, "at least one sector"));
        }
        if u64::from(key.size()) > key.end() || key.end() > Key::OFFSET_MAX {
            return Err(wrong(19, place, "offset", key.end(), "an extent inside the key space"));
        }
        match key.ptr() {
            Some(ptr) if !ptr.available() => {
                Err(wrong(20, place, "ptr", ptr, "a pointer to device 0"))
            }
            Some(ptr) if !layout.in_bounds(ptr.offset(), key.size()) => {
                Err(wrong(20, place, "ptr", ptr, "an extent inside one bucket of the device"))
            }
            None if key.dirty() => Err(wrong(20, place, "ptrs", 0, "dirty data lie somewhere")),
            _ => Ok(()),
        }
    }

    /// Bytes of the entry without padding.
    pub fn bytes(&self) -> usize {
        jset_bytes(words_of(&self.keys))
    }

    /// The entry's blocks, sealed.
    ///
    /// # Panics
    /// When it is longer than 32 KiB: the caller fills entries up to a limit, not beyond.
    pub fn encode(&self, magic: SetMagic, layout: &Layout) -> Vec<u8> {
        let words = words_of(&self.keys);
        assert!(jset_bytes(words) <= JSET_BYTES_MAX, "a journal entry of {words} words");
        let mut prio_bucket = [U64::ZERO; 8];
        if let Some(head) = prio_bucket.first_mut() {
            *head = self.prio_bucket.0.into();
        }
        let head = RawJset {
            csum: 0.into(),
            magic: magic.jset().into(),
            seq: self.seq.into(),
            version: self.version.into(),
            keys: u32::try_from(words).unwrap_or(u32::MAX).into(),
            last_seq: self.last_seq.into(),
            uuid_bucket: to_slot(&self.uuid_bucket),
            btree_root: to_slot(&self.btree_root),
            btree_level: u16::from(self.btree_level).into(),
            pad: [0; 6],
            prio_bucket,
        };
        let block = layout.block_bytes();
        let len = jset_bytes(words).div_ceil(block.max(1)).saturating_mul(block);
        let mut bytes = Vec::with_capacity(len);
        bytes.extend_from_slice(head.as_bytes());
        for word in write_keys(&self.keys) {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        let sum = sum::bcache_crc64(bytes.get(size_of::<U64>()..).unwrap_or(&[]));
        if let Some(field) = bytes.get_mut(..size_of::<U64>()) {
            field.copy_from_slice(&sum.to_le_bytes());
        }
        bytes.resize(len, 0);
        bytes
    }
}

/// Bytes of an entry with `words` words of keys.
pub(crate) fn jset_bytes(words: usize) -> usize {
    words.saturating_mul(8).saturating_add(JSET_HEADER)
}

/// A key that names a piece of metadata: one pointer to the start of a bucket, not dirty.
/// The error says what was expected.
fn check_meta_pointer(key: &Key, layout: &Layout) -> Result<(), &'static str> {
    let Some(ptr) = key.ptr() else {
        return Err("one pointer");
    };
    if !ptr.available() {
        return Err("a pointer to device 0");
    }
    if key.dirty() || key.size() == 0 {
        return Err("a clean key of some size");
    }
    if !layout.in_bounds(ptr.offset(), key.size()) {
        return Err("a place inside one bucket of the device");
    }
    if layout.remainder(ptr.offset()) != 0 {
        return Err("the start of a bucket");
    }
    Ok(())
}

fn wrong(
    row: u8,
    place: Place,
    field: &'static str,
    found: impl std::fmt::Display,
    expected: impl std::fmt::Display,
) -> Corrupt {
    Corrupt::row(row, "journal entry", place, field, found, expected)
}

fn slot(words: &Slot) -> Key {
    let words: Vec<u64> = words.iter().map(|word| word.get()).collect();
    // A slot has room for 6 pointers; a count of 7 is no key, and a zero key fails every check.
    Key::read(&words).map_or(Key::ZERO, |(key, _)| key)
}

fn to_slot(key: &Key) -> Slot {
    let mut slot = [U64::ZERO; 8];
    for (to, word) in slot.iter_mut().zip(write_keys(&[*key])) {
        *to = word.into();
    }
    slot
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
