//! Keys: what every item and pointer is found by (format: btrfs 3, 6).

use std::fmt;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct RawKey {
    pub(crate) objectid: U64,
    pub(crate) kind: u8,
    pub(crate) offset: U64,
}
const _: () = assert!(size_of::<RawKey>() == 17);

/// `(objectid kind offset)`, ordered as three unsigned numbers: the derived order is the disk's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Key {
    pub objectid: u64,
    pub kind: ItemType,
    pub offset: u64,
}

impl Key {
    pub const MIN: Key = Key { objectid: 0, kind: ItemType(0), offset: 0 };
    pub const MAX: Key = Key { objectid: u64::MAX, kind: ItemType(u8::MAX), offset: u64::MAX };

    pub const fn new(objectid: u64, kind: ItemType, offset: u64) -> Key {
        Key { objectid, kind, offset }
    }

    /// The key at the head of `bytes`.
    pub(crate) fn read(bytes: &[u8]) -> Option<Key> {
        let (raw, _) = RawKey::ref_from_prefix(bytes).ok()?;
        Some(Key::from(raw))
    }

    /// Over the key at the head of `bytes`, if there is room for one.
    pub(crate) fn write(self, bytes: &mut [u8]) {
        if let Ok((raw, _)) = RawKey::mut_from_prefix(bytes) {
            *raw = self.into();
        }
    }

    /// The smallest key greater than this one; the last key is its own successor.
    #[must_use]
    pub fn next(self) -> Key {
        let Key { objectid, kind, offset } = self;
        if let Some(offset) = offset.checked_add(1) {
            return Key { objectid, kind, offset };
        }
        if let Some(kind) = kind.0.checked_add(1) {
            return Key { objectid, kind: ItemType(kind), offset: 0 };
        }
        match objectid.checked_add(1) {
            Some(objectid) => Key { objectid, ..Key::MIN },
            None => Key::MAX,
        }
    }
}

impl From<&RawKey> for Key {
    fn from(raw: &RawKey) -> Key {
        Key::new(raw.objectid.get(), ItemType(raw.kind), raw.offset.get())
    }
}

impl From<Key> for RawKey {
    fn from(key: Key) -> RawKey {
        RawKey { objectid: key.objectid.into(), kind: key.kind.0, offset: key.offset.into() }
    }
}

/// As the kernel's messages write it: three numbers.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({} {} {})", self.objectid, self.kind.0, self.offset)
    }
}

/// The middle part of a key: what an item holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ItemType(pub u8);

macro_rules! item_types {
    ($($name:ident = $number:literal,)*) => {
        impl ItemType {
            $(pub const $name: ItemType = ItemType($number);)*

            /// The kernel's name, without its prefix.
            pub fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

item_types! {
    UNTYPED = 0,
    INODE_ITEM = 1,
    INODE_REF = 12,
    INODE_EXTREF = 13,
    XATTR_ITEM = 24,
    VERITY_DESC_ITEM = 36,
    VERITY_MERKLE_ITEM = 37,
    ORPHAN_ITEM = 48,
    DIR_LOG_ITEM = 60,
    DIR_LOG_INDEX = 72,
    DIR_ITEM = 84,
    DIR_INDEX = 96,
    EXTENT_DATA = 108,
    EXTENT_CSUM = 128,
    ROOT_ITEM = 132,
    ROOT_BACKREF = 144,
    ROOT_REF = 156,
    EXTENT_ITEM = 168,
    METADATA_ITEM = 169,
    EXTENT_OWNER_REF = 172,
    TREE_BLOCK_REF = 176,
    EXTENT_DATA_REF = 178,
    EXTENT_REF_V0 = 180,
    SHARED_BLOCK_REF = 182,
    SHARED_DATA_REF = 184,
    BLOCK_GROUP_ITEM = 192,
    FREE_SPACE_INFO = 198,
    FREE_SPACE_EXTENT = 199,
    FREE_SPACE_BITMAP = 200,
    DEV_EXTENT = 204,
    DEV_ITEM = 216,
    CHUNK_ITEM = 228,
    RAID_STRIPE = 230,
    QGROUP_STATUS = 240,
    QGROUP_INFO = 242,
    QGROUP_LIMIT = 244,
    QGROUP_RELATION = 246,
    TEMPORARY_ITEM = 248,
    PERSISTENT_ITEM = 249,
    DEV_REPLACE = 250,
    UUID_KEY_SUBVOL = 251,
    UUID_KEY_RECEIVED_SUBVOL = 252,
    STRING_ITEM = 253,
}

impl fmt::Display for ItemType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "UNKNOWN.{}", self.0),
        }
    }
}

/// Well-known object ids: trees, and objects inside them. Those written as negative numbers in
/// the documentation are counted down from 2^64.
pub mod objectid {
    pub const ROOT_TREE: u64 = 1;
    /// Objectid of every DEV_ITEM (the same number as the root tree).
    pub const DEV_ITEMS: u64 = 1;
    pub const EXTENT_TREE: u64 = 2;
    pub const CHUNK_TREE: u64 = 3;
    pub const DEV_TREE: u64 = 4;
    pub const FS_TREE: u64 = 5;
    pub const ROOT_TREE_DIR: u64 = 6;
    pub const CSUM_TREE: u64 = 7;
    pub const QUOTA_TREE: u64 = 8;
    pub const UUID_TREE: u64 = 9;
    pub const FREE_SPACE_TREE: u64 = 10;
    pub const BLOCK_GROUP_TREE: u64 = 11;
    pub const RAID_STRIPE_TREE: u64 = 12;
    pub const REMAP_TREE: u64 = 13;
    /// Objectid of every CHUNK_ITEM, and owner of every block group.
    pub const FIRST_CHUNK_TREE: u64 = 256;
    /// First inode number and first subvolume id. Also the root directory of every file tree.
    pub const FIRST_FREE: u64 = 256;
    /// Last inode number and subvolume id (-256).
    pub const LAST_FREE: u64 = u64::MAX - 255;
    pub const BALANCE: u64 = u64::MAX - 3;
    pub const ORPHAN: u64 = u64::MAX - 4;
    pub const TREE_LOG: u64 = u64::MAX - 5;
    pub const TREE_LOG_FIXUP: u64 = u64::MAX - 6;
    pub const TREE_RELOC: u64 = u64::MAX - 7;
    pub const DATA_RELOC_TREE: u64 = u64::MAX - 8;
    pub const EXTENT_CSUM: u64 = u64::MAX - 9;
    pub const FREE_SPACE: u64 = u64::MAX - 10;
    pub const FREE_INO: u64 = u64::MAX - 11;
    pub const CSUM_CHANGE: u64 = u64::MAX - 12;

    /// Whether `id` names a tree that holds files: the top level, a subvolume or a snapshot. The
    /// upper 16 bits are the quota level, which no subvolume has.
    pub fn is_file_tree(id: u64) -> bool {
        id == FS_TREE || (id >= FIRST_FREE && id >> 48 == 0)
    }

    /// A tree's name where it has one, else its number.
    pub fn tree_name(id: u64) -> std::borrow::Cow<'static, str> {
        match id {
            ROOT_TREE => "ROOT_TREE".into(),
            EXTENT_TREE => "EXTENT_TREE".into(),
            CHUNK_TREE => "CHUNK_TREE".into(),
            DEV_TREE => "DEV_TREE".into(),
            FS_TREE => "FS_TREE".into(),
            CSUM_TREE => "CSUM_TREE".into(),
            QUOTA_TREE => "QUOTA_TREE".into(),
            UUID_TREE => "UUID_TREE".into(),
            FREE_SPACE_TREE => "FREE_SPACE_TREE".into(),
            BLOCK_GROUP_TREE => "BLOCK_GROUP_TREE".into(),
            RAID_STRIPE_TREE => "RAID_STRIPE_TREE".into(),
            TREE_LOG => "TREE_LOG".into(),
            TREE_RELOC => "TREE_RELOC".into(),
            DATA_RELOC_TREE => "DATA_RELOC_TREE".into(),
            other => other.to_string().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_order_by_objectid_then_kind_then_offset() {
        let key = |o, k, f| Key::new(o, ItemType(k), f);
        let sorted =
            [key(1, 200, 9), key(2, 1, 5), key(2, 1, 6), key(2, 2, 0), key(u64::MAX, 0, 0)];
        assert!(sorted.is_sorted());
        assert_eq!(key(1, 2, u64::MAX).next(), key(1, 3, 0));
        assert_eq!(key(1, 255, u64::MAX).next(), key(2, 0, 0));
        assert_eq!(Key::MAX.next(), Key::MAX);
    }

    #[test]
    fn only_file_trees_hold_files() {
        assert!(objectid::is_file_tree(5));
        assert!(objectid::is_file_tree(256));
        assert!(!objectid::is_file_tree(7));
        assert!(!objectid::is_file_tree(1 << 48));
        assert!(!objectid::is_file_tree(objectid::DATA_RELOC_TREE));
    }
}
