//! The bytes of a bcache set, as Linux 6.12 reads and writes them.
//!
//! Each file has the *raw* little-endian structure (zerocopy, never leaves this folder) and the
//! *parsed* value; `parse` is the only way to own a parsed value that came from a disk, and it has
//! looked at every field. `encode` is its inverse.
//!
//! | file | structure | lives at |
//! |---|---|---|
//! | `superblock` | [`CacheSuper`], [`BackingSuper`] | byte 4096 of either device |
//! | `layout` | [`Layout`]: buckets, blocks and every size derived from them | |
//! | `bkey` | [`Key`], [`Ptr`], [`Pos`] | in bsets, journal entries |
//! | `bset` | [`Bset`]: one sorted set of a btree node | node buckets, block granularity |
//! | `journal` | [`JournalEntry`] | journal ring, block granularity |
//! | `prio` | [`PrioSet`] | linked buckets, head named by the journal |
//! | `uuid` | [`UuidEntry`] | one bucket named by the journal |
// Tests index what they built themselves.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

pub(crate) mod bkey;
pub(crate) mod bset;

pub(crate) mod journal;
pub(crate) mod layout;
pub(crate) mod prio;
pub(crate) mod superblock;
pub(crate) mod uuid;

pub use bkey::{Key, Pos, Ptr};
pub(crate) use bset::{Bset, BsetWriter, NodeFrame};
pub use journal::JournalEntry;
pub use layout::{Bucket, Layout, PageModel};
pub use prio::{Prio, PrioSet};
pub use superblock::{
    BackingState, BackingSuper, CacheMode, CacheSuper, DeviceFacts, Features, FormatBacking,
    FormatCache, Replacement, Superblock,
};
pub use uuid::{UuidEntry, UuidTable};

/// Bytes in a sector. Everything in the format counts sectors of this size.
pub const SECTOR_BYTES: usize = 512;

/// What the four magic numbers of a set are xored with: the head of its uuid.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SetMagic(u64);

impl SetMagic {
    pub fn of(set_uuid: ::uuid::Uuid) -> SetMagic {
        let bytes = set_uuid.into_bytes();
        let [a, b, c, d, e, f, g, h, ..] = bytes;
        SetMagic(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
    }

    pub fn jset(self) -> u64 {
        0x2452_35C1_A362_5032 ^ self.0
    }

    pub fn pset(self) -> u64 {
        0x6750_E15F_8733_7F91 ^ self.0
    }

    pub fn bset(self) -> u64 {
        0x9013_5C78_B99E_07F5 ^ self.0
    }
}

/// `after(a, b)`: by how much generation `a` is newer than `b`, 0 when it is not. Generations wrap.
pub fn generation_after(a: u8, b: u8) -> u8 {
    let ahead = a.wrapping_sub(b);
    if ahead <= 128 { ahead } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn magics_of_the_golden_set() {
        let uuid = ::uuid::Uuid::parse_str("14a6efd5-c5c2-422c-9a1f-fa464c344d33").unwrap();
        let magic = SetMagic::of(uuid);
        assert_eq!(magic.0, 0x2C42_C2C5_D5EF_A614);
        assert_eq!(magic.jset(), 0x0810_F704_768D_F626);
        assert_eq!(magic.pset(), 0x4B12_239A_52DC_D985);
        assert_eq!(magic.bset(), 0xBC51_9EBD_6C71_A1E1);
    }

    #[test]
    fn generations_compare_around_the_wrap() {
        assert_eq!(generation_after(1, 0), 1);
        assert_eq!(generation_after(0, 1), 0);
        assert_eq!(generation_after(2, 250), 8);
        assert_eq!(generation_after(250, 2), 0);
        assert_eq!(generation_after(128, 0), 128);
        assert_eq!(generation_after(129, 0), 0);
    }
}
