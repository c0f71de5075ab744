//! What must not leave the house: file data never does, names and values only when asked to stay.
//!
//! A replaced name has the length and the hash of the old one, so that every key keeps its place and
//! the dump passes every check that the original does. Four bytes decide a CRC-32C, so all but the
//! last four are drawn at random and those solved for, until they make a legal name. Equal names
//! become equal names within one dump, and different ones in another.
//!
//! A name of up to four bytes is *determined* by its hash, which the keys show in any case: such
//! names stay.

use crate::format::block::{self, HEADER_SIZE, Header, ITEM_HEAD_SIZE, POINTER_SIZE};
use crate::format::inode::NAME_MAX;
use crate::format::key::ItemType as T;
use crate::units::to_usize;
use sha2::{Digest as _, Sha256};

/// Sizes of what stands before a name: INODE_REF, INODE_EXTREF, a root's name, a directory entry.
const REF: usize = 10;
const EXTREF: usize = 18;
const ROOT_REF: usize = 18;
const ENTRY: usize = 30;
/// Before an inline extent's data.
const INLINE: usize = 21;

const TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut n: u32 = 0;
    while n < 256 {
        let mut crc = n;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 };
            bit += 1;
        }
        table[n as usize] = crc;
        n += 1;
    }
    table
}

fn update(state: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(state, |s, b| s >> 8 ^ TABLE[usize::from(s.to_le_bytes()[0] ^ b)])
}

/// The state that four zero bytes lead from to `state`.
fn before_four_zeroes(state: u32) -> u32 {
    (0..4).fold(state, |s, _| {
        let top = s >> 24;
        let index = TABLE.iter().position(|entry| entry >> 24 == top).unwrap_or(0);
        (s ^ TABLE[index]) << 8 | u32::try_from(index).unwrap_or(0)
    })
}

/// Replaces names, with a key of its own.
pub(crate) struct Names {
    key: [u8; 32],
}

impl Names {
    pub(crate) fn new(key: [u8; 32]) -> Names {
        Names { key }
    }

    /// A name of the same length and hash.
    fn replace(&self, name: &mut [u8]) {
        let Some(free) = name.len().checked_sub(4).filter(|free| *free > 0) else { return };
        if name.len() > NAME_MAX || name == b"default" {
            return;
        }
        let target = before_four_zeroes(update(0, name));
        let seed = Sha256::new().chain_update(self.key).chain_update(&*name).finalize();
        let mut state = seed.iter().take(8).fold(1, |s: u64, b| s << 8 | u64::from(*b)) | 1;
        let mut fallback = None;
        for _ in 0..2000 {
            let mut new: Vec<u8> = Vec::with_capacity(name.len());
            for _ in 0..free {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let letters = b"abcdefghijklmnopqrstuvwxyz0123456789_-";
                new.push(letters[to_usize(state >> 33) % letters.len()]);
            }
            let suffix = (target ^ update(0, &new)).to_le_bytes();
            new.extend_from_slice(&suffix);
            if new == name {
                continue;
            }
            if suffix.iter().all(|b| b.is_ascii_graphic() && *b != b'/') {
                name.copy_from_slice(&new);
                return;
            }
            if suffix.iter().all(|b| ![0, b'/', b'\n'].contains(b)) {
                fallback.get_or_insert(new);
            }
        }
        if let Some(new) = fallback {
            name.copy_from_slice(&new);
        }
    }
}

/// Clears what no dump holds: the data of inline extents, and the unused part of the block, where
/// names and data of the past may be. With `names`, replaces names and clears values.
pub(crate) fn clean(bytes: &mut [u8], names: Option<&Names>) {
    let Ok(header) = Header::parse(bytes) else { return };
    let count = header.nritems as usize;
    if header.level > 0 {
        let used = count.saturating_mul(POINTER_SIZE).saturating_add(HEADER_SIZE);
        if let Some(rest) = bytes.get_mut(used..) {
            rest.fill(0);
        }
        return;
    }
    let heads: Vec<_> = (0..count).map_while(|slot| block::item_head(bytes, slot)).collect();
    let used = HEADER_SIZE + heads.len() * ITEM_HEAD_SIZE;
    let end = heads.iter().map(|head| HEADER_SIZE + head.offset as usize).min();
    if let Some(gap) = bytes.get_mut(used..end.unwrap_or(bytes.len())) {
        gap.fill(0);
    }
    for head in heads {
        let start = HEADER_SIZE.saturating_add(head.offset as usize);
        let Some(data) = bytes.get_mut(start..start.saturating_add(head.size as usize)) else {
            continue;
        };
        match (head.key.kind, names) {
            (T::EXTENT_DATA, _) if data.get(20) == Some(&0) => {
                data.get_mut(INLINE..).unwrap_or(&mut []).fill(0);
            }
            (T::INODE_REF, Some(names)) => each_name(data, REF, 8, names),
            (T::INODE_EXTREF, Some(names)) => each_name(data, EXTREF, 16, names),
            (T::ROOT_REF | T::ROOT_BACKREF, Some(names)) => each_name(data, ROOT_REF, 16, names),
            (T::DIR_ITEM | T::DIR_INDEX, Some(names)) => each_entry(data, names, false),
            (T::XATTR_ITEM, Some(names)) => each_entry(data, names, true),
            _ => (),
        }
    }
}

/// Names behind heads of `head` bytes, with their length at byte `len_at` of it.
fn each_name(data: &mut [u8], head: usize, len_at: usize, names: &Names) {
    let mut rest = data;
    while let Some((entry, after)) = rest.split_at_mut_checked(head) {
        let len = usize::from(u16::from_le_bytes([entry[len_at], entry[len_at + 1]]));
        // The name ".." of a tree's top directory has nothing to hide, and is too short anyway.
        let Some((name, after)) = after.split_at_mut_checked(len) else { return };
        names.replace(name);
        rest = after;
    }
}

/// Directory entries, or attributes: of those the prefix stays (it says which kind they are) and the
/// value goes.
fn each_entry(data: &mut [u8], names: &Names, xattr: bool) {
    let mut rest = data;
    while let Some((entry, after)) = rest.split_at_mut_checked(ENTRY) {
        let data_len = usize::from(u16::from_le_bytes([entry[25], entry[26]]));
        let len = usize::from(u16::from_le_bytes([entry[27], entry[28]]));
        let Some((name, after)) = after.split_at_mut_checked(len) else { return };
        let Some((value, after)) = after.split_at_mut_checked(data_len) else { return };
        if !xattr {
            names.replace(name);
        } else {
            value.fill(0);
            // Only people make names here; those of the system are the same everywhere.
            if let Some(own) = name.strip_prefix(b"user.").map(<[u8]>::len) {
                let keep = name.len() - own;
                names.replace_behind(name, keep);
            }
        }
        rest = after;
    }
}

impl Names {
    /// As [`Names::replace`], with the first `keep` bytes left. CRCs are linear: the rest of a name
    /// decides the hash alike, whatever stands before it.
    fn replace_behind(&self, name: &mut [u8], keep: usize) {
        if let Some(own) = name.get_mut(keep..) {
            self.replace(own);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::csum::name_hash;

    #[test]
    fn replaced_names_keep_length_and_hash_and_are_legal() {
        let names = Names::new([7; 32]);
        for name in ["hello", "a secret file name.txt", "user.comment", &"x".repeat(255)] {
            let mut new = name.as_bytes().to_vec();
            names.replace(&mut new);
            assert_ne!(new, name.as_bytes(), "{name}");
            assert_eq!(name_hash(&new), name_hash(name.as_bytes()), "{name}");
            assert!(new.iter().all(|b| ![0, b'/', b'\n'].contains(b)));
            let mut again = name.as_bytes().to_vec();
            names.replace(&mut again);
            assert_eq!(again, new, "equal names stay equal");
            let seeded = |seed: u32| update(update(seed, &[]), &new);
            assert_eq!(seeded(257), update(257, name.as_bytes()), "under any seed");
        }
        let mut short = *b"abcd";
        names.replace(&mut short);
        assert_eq!(&short, b"abcd", "its hash is its name");
    }
}
