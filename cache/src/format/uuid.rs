//! The uuid table: which volume has which number. Its index *is* the inode of the keys.
//!
//! It has neither magic nor checksum: entries are plausible or they are not (check 26).

use std::mem::{offset_of, size_of};

use ::uuid::Uuid;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::{Corrupt, Place};

/// One slot, as stored.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
pub(crate) struct RawUuidEntry {
    uuid: [u8; 16],
    label: [u8; 32],
    first_reg: U32,
    last_reg: U32,
    invalidated: U32,
    flags: U32,
    sectors: U64,
    pad: [u8; 56],
}
const _: () = assert!(size_of::<RawUuidEntry>() == 128);
const _: () = assert!(offset_of!(RawUuidEntry, sectors) == 64);

/// A slot of a set whose journal has version 0.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
pub(crate) struct RawUuidEntryV0 {
    uuid: [u8; 16],
    label: [u8; 32],
    first_reg: U32,
    last_reg: U32,
    invalidated: U32,
    pad: U32,
}
const _: () = assert!(size_of::<RawUuidEntryV0>() == 64);

const FLASH_ONLY: u32 = 1;

/// One volume of a cache set.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct UuidEntry {
    /// Of the backing device; random for a flash-only volume; nil in a free slot.
    pub uuid: Uuid,
    pub label: [u8; 32],
    /// Unix seconds, as all times here.
    pub first_reg: u32,
    pub last_reg: u32,
    /// 0: not.
    pub invalidated: u32,
    pub flags: u32,
    /// Size of a flash-only volume.
    pub sectors: u64,
}

impl UuidEntry {
    /// What stands in a slot whose volume is gone. Such a slot is not free again.
    pub const INVALID: Uuid = Uuid::from_bytes([
        0xa0, 0x3e, 0xf8, 0xed, 0x3e, 0xe1, 0xb8, 0x78, 0xc8, 0x50, 0xfc, 0x5e, 0xcb, 0x16, 0xcd,
        0x99,
    ]);

    /// Never used.
    pub fn is_free(&self) -> bool {
        self.uuid.is_nil()
    }

    /// Some volume owns it.
    pub fn in_use(&self) -> bool {
        !self.is_free() && self.uuid != Self::INVALID
    }

    pub fn flash_only(&self) -> bool {
        self.flags & FLASH_ONLY != 0
    }

    pub fn set_flash_only(&mut self) {
        self.flags |= FLASH_ONLY;
    }
}

/// The table; slot number = inode.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UuidTable {
    pub slots: Vec<UuidEntry>,
}

impl UuidTable {
    /// A table without volumes.
    pub fn empty(slots: usize) -> UuidTable {
        UuidTable { slots: vec![UuidEntry::default(); slots] }
    }

    /// Any bytes are a table; `journal_version` tells the length of its entries.
    pub fn parse(bytes: &[u8], journal_version: u32) -> UuidTable {
        let slots = if journal_version == 0 {
            entries::<RawUuidEntryV0>(bytes).map(UuidEntry::from).collect()
        } else {
            entries::<RawUuidEntry>(bytes).map(UuidEntry::from).collect()
        };
        UuidTable { slots }
    }

    /// The table in the current form, 128 bytes per slot, filled up with free slots to `len` bytes.
    pub fn encode(&self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len);
        for slot in &self.slots {
            let raw = RawUuidEntry {
                uuid: slot.uuid.into_bytes(),
                label: slot.label,
                first_reg: slot.first_reg.into(),
                last_reg: slot.last_reg.into(),
                invalidated: slot.invalidated.into(),
                flags: slot.flags.into(),
                sectors: slot.sectors.into(),
                pad: [0; 56],
            };
            bytes.extend_from_slice(raw.as_bytes());
        }
        bytes.resize(len, 0);
        bytes
    }

    /// The slot of a volume.
    pub fn find(&self, uuid: Uuid) -> Option<(u32, &UuidEntry)> {
        self.numbered().find(|(_, slot)| slot.in_use() && slot.uuid == uuid)
    }

    pub fn get(&self, inode: u32) -> Option<&UuidEntry> {
        self.slots.get(usize::try_from(inode).ok()?)
    }

    /// The first slot that was never used.
    pub fn first_free(&self) -> Option<u32> {
        self.numbered().find(|(_, slot)| slot.is_free()).map(|(inode, _)| inode)
    }

    /// Slots with their inodes.
    pub fn numbered(&self) -> impl Iterator<Item = (u32, &UuidEntry)> {
        (0u32..).zip(&self.slots)
    }

    /// Check 26: nothing here is summed, so at least it must make sense.
    pub fn findings(&self, place: Place) -> Vec<Corrupt> {
        let wrong = |field, found: &dyn std::fmt::Display, expected: &dyn std::fmt::Display| {
            Corrupt::row(26, "uuid table", place, field, found, expected)
        };
        let mut found = Vec::new();
        let mut seen = std::collections::BTreeMap::new();
        for (inode, slot) in self.numbered().filter(|(_, slot)| slot.in_use()) {
            if let Some(first) = seen.insert(slot.uuid, inode) {
                let both = format!("{} in slots {first} and {inode}", slot.uuid);
                found.push(wrong("uuid", &both, &"one slot per volume"));
            }
            if slot.flash_only() != (slot.sectors > 0) {
                let size =
                    format!("flags {} with {} sectors in slot {inode}", slot.flags, slot.sectors);
                found.push(wrong("sectors", &size, &"a size exactly for flash-only volumes"));
            }
        }
        found
    }
}

/// Whole entries; a shorter rest is left out.
fn entries<T: FromBytes + KnownLayout + Immutable + Unaligned + 'static>(
    bytes: &[u8],
) -> impl Iterator<Item = &T> {
    bytes.chunks_exact(size_of::<T>()).filter_map(|chunk| T::ref_from_bytes(chunk).ok())
}

impl From<&RawUuidEntry> for UuidEntry {
    fn from(raw: &RawUuidEntry) -> UuidEntry {
        UuidEntry {
            uuid: Uuid::from_bytes(raw.uuid),
            label: raw.label,
            first_reg: raw.first_reg.get(),
            last_reg: raw.last_reg.get(),
            invalidated: raw.invalidated.get(),
            flags: raw.flags.get(),
            sectors: raw.sectors.get(),
        }
    }
}

impl From<&RawUuidEntryV0> for UuidEntry {
    fn from(raw: &RawUuidEntryV0) -> UuidEntry {
        UuidEntry {
            uuid: Uuid::from_bytes(raw.uuid),
            label: raw.label,
            first_reg: raw.first_reg.get(),
            last_reg: raw.last_reg.get(),
            invalidated: raw.invalidated.get(),
            flags: 0,
            sectors: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(n: u128) -> UuidEntry {
        UuidEntry {
            uuid: Uuid::from_u128(n),
            label: [b'x'; 32],
            first_reg: 1,
            last_reg: 2,
            ..UuidEntry::default()
        }
    }

    #[test]
    fn a_table_survives_and_knows_its_slots() {
        let mut table = UuidTable::empty(32);
        table.slots[0] = volume(7);
        table.slots[1] = UuidEntry { uuid: UuidEntry::INVALID, invalidated: 9, ..volume(8) };
        table.slots[2] = UuidEntry { sectors: 4096, flags: 1, ..volume(9) };
        let back = UuidTable::parse(&table.encode(4096), 1);
        assert_eq!(back, table);
        assert_eq!(back.find(Uuid::from_u128(7)).unwrap().0, 0);
        assert!(back.find(UuidEntry::INVALID).is_none());
        assert_eq!(back.first_free(), Some(3), "an invalidated slot is not free");
        assert!(back.findings(Place::default()).is_empty());
    }

    #[test]
    fn short_entries_of_an_old_journal_are_converted() {
        let mut bytes = vec![0u8; 4096];
        bytes[..16].copy_from_slice(&[5; 16]);
        bytes[48] = 3;
        bytes[64..80].copy_from_slice(&[6; 16]);
        let table = UuidTable::parse(&bytes, 0);
        assert_eq!(table.slots.len(), 64);
        assert_eq!(table.slots[1].uuid, Uuid::from_bytes([6; 16]));
        assert_eq!((table.slots[0].first_reg, table.slots[0].sectors), (3, 0));
    }

    #[test]
    fn doubles_and_senseless_sizes_are_reported() {
        let mut table = UuidTable::empty(32);
        table.slots[0] = volume(7);
        table.slots[5] = volume(7);
        table.slots[6] = UuidEntry { sectors: 4096, ..volume(9) };
        let fields: Vec<_> = table.findings(Place::default()).iter().map(|f| f.field).collect();
        assert_eq!(fields, ["uuid", "sectors"]);
    }
}
