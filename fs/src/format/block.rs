//! Tree blocks: the header, a node's pointers, a leaf's item heads (format: btrfs 4).
//!
//! ```text
//! leaf  | header 101 | item head | item head | ...  free  ... | data of 1 | data of 0 |
//! node  | header 101 | pointer | pointer | pointer | ...                    (unused)  |
//! ```
//! Item offsets count from the end of the header; data is packed from the end of the block towards
//! the heads, without holes.

use super::key::{Key, RawKey};
use super::{Result, Uuid, head};
use crate::units::Logical;
use std::mem::offset_of;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a block before its pointers or item heads.
pub const HEADER_SIZE: usize = 101;
/// Bytes of one pointer in a node.
pub const POINTER_SIZE: usize = 33;
/// Bytes of one item head in a leaf.
pub const ITEM_HEAD_SIZE: usize = 25;
/// Levels of a tree; a leaf is level 0.
pub const MAX_LEVEL: u8 = 8;
/// Bytes of a block that its own checksum does not cover: the checksum's field.
pub const CSUM_SIZE: usize = 32;

/// The block was written (set just before its checksum is computed).
pub const FLAG_WRITTEN: u64 = 1;
/// The block belongs to a relocation tree.
pub const FLAG_RELOC: u64 = 2;
/// Back reference revision 1 ("mixed") in the top byte: the only one since 2009.
pub const BACKREF_REV_MIXED: u64 = 1 << 56;

/// Head of every tree block, as stored.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Debug)]
#[repr(C)]
pub(crate) struct RawHeader {
    pub(crate) csum: [u8; CSUM_SIZE],
    pub(crate) fsid: [u8; 16],
    pub(crate) bytenr: U64,
    pub(crate) flags: U64,
    pub(crate) chunk_tree_uuid: [u8; 16],
    pub(crate) generation: U64,
    pub(crate) owner: U64,
    pub(crate) nritems: U32,
    pub(crate) level: u8,
}
const _: () = assert!(size_of::<RawHeader>() == HEADER_SIZE && offset_of!(RawHeader, owner) == 88);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct RawPointer {
    pub(crate) key: RawKey,
    pub(crate) block: U64,
    pub(crate) generation: U64,
}
const _: () = assert!(size_of::<RawPointer>() == POINTER_SIZE);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct RawItemHead {
    pub(crate) key: RawKey,
    pub(crate) offset: U32,
    pub(crate) size: U32,
}
const _: () = assert!(size_of::<RawItemHead>() == ITEM_HEAD_SIZE);

/// A block's header. Decoded, not believed: [`crate::verify`] compares it with what was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    pub csum: [u8; CSUM_SIZE],
    pub fsid: Uuid,
    pub bytenr: Logical,
    pub flags: u64,
    pub chunk_tree_uuid: Uuid,
    pub generation: u64,
    pub owner: u64,
    pub nritems: u32,
    pub level: u8,
}

impl Header {
    pub fn parse(block: &[u8]) -> Result<Header> {
        let (raw, _) = head::<RawHeader>(block, "at least 101 bytes")?;
        Ok(Header {
            csum: raw.csum,
            fsid: Uuid::from_bytes(raw.fsid),
            bytenr: Logical(raw.bytenr.get()),
            flags: raw.flags.get(),
            chunk_tree_uuid: Uuid::from_bytes(raw.chunk_tree_uuid),
            generation: raw.generation.get(),
            owner: raw.owner.get(),
            nritems: raw.nritems.get(),
            level: raw.level,
        })
    }

    pub fn encode(&self) -> [u8; HEADER_SIZE] {
        zerocopy::transmute!(RawHeader {
            csum: self.csum,
            fsid: self.fsid.into_bytes(),
            bytenr: self.bytenr.0.into(),
            flags: self.flags.into(),
            chunk_tree_uuid: self.chunk_tree_uuid.into_bytes(),
            generation: self.generation.into(),
            owner: self.owner.into(),
            nritems: self.nritems.into(),
            level: self.level,
        })
    }

    pub fn is_written(&self) -> bool {
        self.flags & FLAG_WRITTEN != 0
    }

    pub fn is_reloc(&self) -> bool {
        self.flags & FLAG_RELOC != 0
    }
}

/// One pointer of a node: the child's first key, address and generation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pointer {
    pub key: Key,
    pub block: Logical,
    pub generation: u64,
}

impl Pointer {
    pub fn encode(&self) -> [u8; POINTER_SIZE] {
        zerocopy::transmute!(RawPointer {
            key: self.key.into(),
            block: self.block.0.into(),
            generation: self.generation.into(),
        })
    }
}

/// Where a leaf keeps one item's data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ItemHead {
    pub key: Key,
    /// From the end of the header.
    pub offset: u32,
    pub size: u32,
}

impl ItemHead {
    pub fn encode(&self) -> [u8; ITEM_HEAD_SIZE] {
        zerocopy::transmute!(RawItemHead {
            key: self.key.into(),
            offset: self.offset.into(),
            size: self.size.into(),
        })
    }
}

/// The part of a block behind its header: what pointers, heads and data share.
pub fn body(block: &[u8]) -> &[u8] {
    block.get(HEADER_SIZE..).unwrap_or(&[])
}

/// Pointer `slot` of a node, if the block is long enough to hold one there.
pub fn pointer(block: &[u8], slot: usize) -> Option<Pointer> {
    let at = slot.checked_mul(POINTER_SIZE)?;
    let (raw, _) = RawPointer::ref_from_prefix(body(block).get(at..)?).ok()?;
    Some(Pointer {
        key: Key::from(&raw.key),
        block: Logical(raw.block.get()),
        generation: raw.generation.get(),
    })
}

/// Item head `slot` of a leaf, if the block is long enough to hold one there.
pub fn item_head(block: &[u8], slot: usize) -> Option<ItemHead> {
    let at = slot.checked_mul(ITEM_HEAD_SIZE)?;
    let (raw, _) = RawItemHead::ref_from_prefix(body(block).get(at..)?).ok()?;
    Some(ItemHead { key: Key::from(&raw.key), offset: raw.offset.get(), size: raw.size.get() })
}

/// The data an item head points at, if it lies inside the block.
pub fn item_data<'a>(block: &'a [u8], item: &ItemHead) -> Option<&'a [u8]> {
    let start = usize::try_from(item.offset).ok()?;
    let end = start.checked_add(usize::try_from(item.size).ok()?)?;
    body(block).get(start..end)
}

/// The items of a leaf, in order, up to the first whose head or data is not inside the block; none of
/// a node.
pub fn items(block: &[u8]) -> impl Iterator<Item = (Key, &[u8])> {
    let header = Header::parse(block).ok().filter(|header| header.level == 0);
    let count = header.map_or(0, |header| header.nritems as usize);
    (0..count).map_while(|slot| {
        let head = item_head(block, slot)?;
        Some((head.key, item_data(block, &head)?))
    })
}

/// Pointers that fit in a node of `nodesize` bytes.
pub fn node_capacity(nodesize: u32) -> u32 {
    nodesize.saturating_sub(101) / 33
}

/// Bytes that item heads and data share in a leaf of `nodesize` bytes.
pub fn leaf_space(nodesize: u32) -> u32 {
    nodesize.saturating_sub(101)
}
