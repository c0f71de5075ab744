//! Directory entries and extended attributes: one layout for both (format: btrfs 10.3, 10.4).

use super::inode::{entries, name_len, name_of};
use super::key::{ItemType, Key, RawKey};
use super::{Result, head};
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub(crate) const DIR_ITEM_SIZE: usize = 30;
/// The type byte of an extended attribute.
pub const XATTR: u8 = 8;
/// Set in the type byte when the name is encrypted.
pub const ENCRYPTED: u8 = 0x80;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Debug)]
#[repr(C)]
pub(crate) struct RawDirItem {
    location: RawKey,
    transid: U64,
    data_len: U16,
    name_len: U16,
    kind: u8,
}
const _: () = assert!(size_of::<RawDirItem>() == DIR_ITEM_SIZE);

/// One entry of DIR_ITEM (which may hold several, on hash collision), DIR_INDEX or XATTR_ITEM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirItem<'a> {
    /// `(inode INODE_ITEM 0)`, or `(tree ROOT_ITEM x)` for a subvolume.
    pub location: Key,
    pub transid: u64,
    pub kind: u8,
    pub name: &'a [u8],
    /// An attribute's value.
    pub data: &'a [u8],
}

impl<'a> DirItem<'a> {
    /// The entries of one item; ends after the first that does not fit.
    pub fn each(bytes: &'a [u8]) -> impl Iterator<Item = Result<DirItem<'a>>> {
        entries(bytes, DirItem::parse_prefix)
    }

    fn parse_prefix(bytes: &'a [u8]) -> Result<(DirItem<'a>, &'a [u8])> {
        let (raw, rest) = head::<RawDirItem>(bytes, "a directory entry of 30 bytes")?;
        let (name, rest) = name_of(rest, raw.name_len.get())?;
        let (data, rest) = name_of(rest, raw.data_len.get())?;
        let entry = DirItem {
            location: Key::from(&raw.location),
            transid: raw.transid.get(),
            kind: raw.kind,
            name,
            data,
        };
        Ok((entry, rest))
    }

    /// # Panics
    /// With a name or value above 65535 bytes.
    pub fn encode(&self) -> Vec<u8> {
        let raw = RawDirItem {
            location: self.location.into(),
            transid: self.transid.into(),
            data_len: name_len(self.data).into(),
            name_len: name_len(self.name).into(),
            kind: self.kind,
        };
        [raw.as_bytes(), self.name, self.data].concat()
    }

    /// Whether the entry leads into another file tree.
    pub fn is_subvolume(&self) -> bool {
        self.location.kind == ItemType::ROOT_ITEM
    }
}

/// The fixed part of an entry, for a checker that must say which of its lengths is wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DirItemHead {
    pub(crate) location: Key,
    pub(crate) data_len: u16,
    pub(crate) name_len: u16,
    pub(crate) kind: u8,
}

impl DirItemHead {
    pub(crate) fn parse(bytes: &[u8]) -> Option<(DirItemHead, &[u8])> {
        let (raw, rest) = RawDirItem::ref_from_prefix(bytes).ok()?;
        let head = DirItemHead {
            location: Key::from(&raw.location),
            data_len: raw.data_len.get(),
            name_len: raw.name_len.get(),
            kind: raw.kind,
        };
        Some((head, rest))
    }
}
