//! dm-integrity's superblock: 64 bytes at the start of its part of a device, little-endian.
//!
//! Format: luks.md 5.2. Everything in it may have been chosen by somebody else: what leaves
//! [`Superblock::parse`] is inside of bounds from which the layout can be computed without overflow.

use varve_block::Sectors;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::{Corrupt, Error, Result};

const WHAT: &str = "dm-integrity superblock";
/// First eight bytes.
pub(crate) const MAGIC: [u8; 8] = *b"integrt\0";
/// Sectors that the superblock owns.
pub(crate) const SECTORS: u64 = 8;
/// Bytes that are looked at.
pub(crate) const LEN: usize = 64;
/// What the 6.12 kernel knows.
const VERSION_MAX: u8 = 7;
/// Longest tag that the kernel takes: an entry of a block of eight sectors must fit a journal sector.
pub(crate) const TAG_MAX: u16 = 424;
/// log2 of the sectors of an area's data.
pub(crate) const INTERLEAVE: std::ops::RangeInclusive<u8> = 3..=31;
const SECTORS_PER_BLOCK_MAX: u8 = 3;

const JOURNAL_MAC: u32 = 0x1;
/// Tags from `recalc_sector` on are not valid yet.
const RECALCULATING: u32 = 0x2;
/// The journal's place holds a bitmap, and the device was not closed.
const DIRTY_BITMAP: u32 = 0x4;
const FIXED_PADDING: u32 = 0x8;
const FIXED_HMAC: u32 = 0x10;
const INLINE: u32 = 0x20;
const KEYED_DISCARD: u32 = 0x40;

/// As stored.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
struct RawSuper {
    magic: [u8; 8],
    version: u8,
    log2_interleave: u8,
    tag_size: U16,
    journal_sections: U32,
    provided: U64,
    flags: U32,
    log2_block: u8,
    log2_blocks_per_bit: u8,
    pad: [u8; 2],
    recalc_sector: U64,
    pad2: [u8; 8],
    salt: [u8; 16],
}
const _: () = assert!(
    size_of::<RawSuper>() == LEN
        && std::mem::offset_of!(RawSuper, flags) == 24
        && std::mem::offset_of!(RawSuper, recalc_sector) == 32
        && std::mem::offset_of!(RawSuper, salt) == 48
);

/// What a superblock says, each field looked at by itself. Whether it fits its device says
/// [`Layout`](crate::integrity::Layout).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub(crate) tag_size: u16,
    pub(crate) log2_interleave: u8,
    pub(crate) journal_sections: u32,
    /// Sectors of the device above.
    pub(crate) provided: Sectors,
    /// log2 of the sectors of a block: one tag each.
    pub(crate) log2_block: u8,
    pub(crate) log2_blocks_per_bit: u8,
    /// Tags before this sector are valid; `None`: all are.
    pub(crate) recalculating: Option<u64>,
    pub(crate) dirty_bitmap: bool,
    /// Metadata runs are padded to 4 KiB, and not to 128 KiB as at first.
    pub(crate) fixed_padding: bool,
    /// Goes into every internal hash.
    pub(crate) salt: Option<[u8; 16]>,
}

impl Superblock {
    /// Looks at the first bytes of dm-integrity's part of a device (check 44).
    pub(crate) fn parse(bytes: &[u8]) -> Result<Superblock> {
        let wrong = |field: &str, found: String, expected: &str| {
            let (field, expected) = (field.into(), expected.into());
            Err(Error::Corrupt(Corrupt { what: WHAT, check: 44, field, found, expected }))
        };
        let Ok((raw, _)) = RawSuper::ref_from_prefix(bytes) else {
            return wrong("length", bytes.len().to_string(), "at least 64 bytes");
        };
        if raw.magic != MAGIC {
            return wrong("magic", format!("{:02x?}", raw.magic), "\"integrt\"");
        }
        if raw.version == 0 || raw.version > VERSION_MAX {
            return Err(Error::unsupported(format!("dm-integrity version {}", raw.version)));
        }
        let flags = raw.flags.get();
        let known = RECALCULATING | DIRTY_BITMAP | FIXED_PADDING | FIXED_HMAC;
        let foreign = [
            (JOURNAL_MAC, "a journal with a MAC"),
            (INLINE, "tags in the drive's own metadata"),
            (KEYED_DISCARD, "keyed discard markers"),
        ];
        for (flag, name) in foreign {
            if flags & flag != 0 {
                return Err(Error::unsupported(format!("dm-integrity with {name}")));
            }
        }
        if flags & !known != 0 {
            let flags = flags & !known;
            return Err(Error::unsupported(format!("dm-integrity with unknown flags {flags:#x}")));
        }
        let tag_size = raw.tag_size.get();
        if tag_size == 0 || tag_size > TAG_MAX {
            return wrong("tag size", tag_size.to_string(), "1 to 424 bytes");
        }
        if raw.log2_interleave == 0 {
            return Err(Error::unsupported("dm-integrity with a metadata device of its own"));
        }
        if !INTERLEAVE.contains(&raw.log2_interleave) {
            return wrong("log2 of interleave sectors", raw.log2_interleave.to_string(), "3 to 31");
        }
        if raw.log2_block > SECTORS_PER_BLOCK_MAX {
            return wrong("log2 of sectors per block", raw.log2_block.to_string(), "0 to 3");
        }
        if raw.log2_blocks_per_bit > 63 {
            let found = raw.log2_blocks_per_bit.to_string();
            return wrong("log2 of blocks per bitmap bit", found, "0 to 63");
        }
        if raw.journal_sections.get() == 0 {
            return wrong("journal sections", "0".into(), "at least one");
        }
        let provided = raw.provided.get();
        if provided == 0 || !provided.is_multiple_of(1 << raw.log2_block) {
            return wrong("provided sectors", provided.to_string(), "whole blocks, at least one");
        }
        Ok(Superblock {
            tag_size,
            log2_interleave: raw.log2_interleave,
            journal_sections: raw.journal_sections.get(),
            provided: Sectors(provided),
            log2_block: raw.log2_block,
            log2_blocks_per_bit: raw.log2_blocks_per_bit,
            recalculating: (flags & RECALCULATING != 0).then(|| raw.recalc_sector.get()),
            dirty_bitmap: flags & DIRTY_BITMAP != 0,
            fixed_padding: flags & FIXED_PADDING != 0,
            salt: (flags & FIXED_HMAC != 0).then_some(raw.salt),
        })
    }

    fn flags(&self) -> u32 {
        let flag = |on: bool, flag: u32| if on { flag } else { 0 };
        flag(self.recalculating.is_some(), RECALCULATING)
            | flag(self.dirty_bitmap, DIRTY_BITMAP)
            | flag(self.fixed_padding, FIXED_PADDING)
            | flag(self.salt.is_some(), FIXED_HMAC)
    }

    /// The lowest version that knows the flags.
    pub(crate) fn version(&self) -> u8 {
        match self.flags() {
            f if f & FIXED_HMAC != 0 => 5,
            f if f & FIXED_PADDING != 0 => 4,
            f if f & DIRTY_BITMAP != 0 => 3,
            f if f & RECALCULATING != 0 => 2,
            _ => 1,
        }
    }

    /// The bytes, with the lowest version that knows the flags.
    pub(crate) fn encode(&self) -> [u8; LEN] {
        let flags = self.flags();
        let raw = RawSuper {
            magic: MAGIC,
            version: self.version(),
            log2_interleave: self.log2_interleave,
            tag_size: U16::new(self.tag_size),
            journal_sections: U32::new(self.journal_sections),
            provided: U64::new(self.provided.0),
            flags: U32::new(flags),
            log2_block: self.log2_block,
            log2_blocks_per_bit: self.log2_blocks_per_bit,
            pad: [0; 2],
            recalc_sector: U64::new(self.recalculating.unwrap_or(0)),
            pad2: [0; 8],
            salt: self.salt.unwrap_or_default(),
        };
        let mut bytes = [0; LEN];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests;
