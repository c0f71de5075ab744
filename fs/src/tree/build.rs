//! Making blocks: packs items or pointers, stamps the header, seals with the checksum. What comes out
//! has passed the tree checker, or the process stops: a bad block of our own must not reach the disk.

use crate::csum::CsumType;
use crate::format::Uuid;
use crate::format::block::{
    BACKREF_REV_MIXED, CSUM_SIZE, FLAG_WRITTEN, HEADER_SIZE, Header, ITEM_HEAD_SIZE, ItemHead,
    POINTER_SIZE, Pointer, leaf_space, node_capacity,
};
use crate::format::key::Key;
use crate::units::Logical;

/// What every block of one tree in one transaction has in common, and where this one goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp {
    pub(crate) fsid: Uuid,
    pub(crate) chunk_tree_uuid: Uuid,
    pub(crate) bytenr: Logical,
    pub(crate) generation: u64,
    pub(crate) owner: u64,
}

impl Stamp {
    fn header(&self, level: u8, nritems: usize) -> Header {
        Header {
            csum: [0; CSUM_SIZE],
            fsid: self.fsid,
            bytenr: self.bytenr,
            flags: FLAG_WRITTEN | BACKREF_REV_MIXED,
            chunk_tree_uuid: self.chunk_tree_uuid,
            generation: self.generation,
            owner: self.owner,
            nritems: u32::try_from(nritems).expect("a block holds few items"),
            level,
        }
    }
}

/// One item of a leaf in the making.
pub(crate) type NewItem = (Key, Vec<u8>);

/// Whether `items` fit in one leaf.
pub(crate) fn fits_leaf(nodesize: u32, items: &[NewItem]) -> bool {
    let need: usize = items.iter().map(|(_, data)| ITEM_HEAD_SIZE + data.len()).sum();
    need as u64 <= leaf_space(nodesize).into()
}

/// A leaf of `items`, which are in order, unsealed.
///
/// # Panics
/// When they do not fit: the caller splits before it builds.
pub(crate) fn leaf(stamp: &Stamp, nodesize: u32, items: &[NewItem]) -> Vec<u8> {
    assert!(fits_leaf(nodesize, items), "{} items overflow a leaf", items.len());
    let mut block = vec![0; nodesize as usize];
    let header = stamp.header(0, items.len());
    block[..HEADER_SIZE].copy_from_slice(&header.encode());
    let mut end = leaf_space(nodesize);
    let mut head_at = HEADER_SIZE;
    for (key, data) in items {
        let size = u32::try_from(data.len()).expect("an item is smaller than a block");
        end -= size;
        let head = ItemHead { key: *key, offset: end, size };
        block[head_at..head_at + ITEM_HEAD_SIZE].copy_from_slice(&head.encode());
        head_at += ITEM_HEAD_SIZE;
        let at = HEADER_SIZE + end as usize;
        block[at..at + data.len()].copy_from_slice(data);
    }
    block
}

/// A node of `pointers`, which are in order, unsealed.
///
/// # Panics
/// When they do not fit.
pub(crate) fn node(stamp: &Stamp, nodesize: u32, level: u8, pointers: &[Pointer]) -> Vec<u8> {
    assert!(pointers.len() <= node_capacity(nodesize) as usize, "pointers overflow a node");
    let mut block = vec![0; nodesize as usize];
    let header = stamp.header(level, pointers.len());
    block[..HEADER_SIZE].copy_from_slice(&header.encode());
    let slots = block[HEADER_SIZE..].chunks_exact_mut(POINTER_SIZE);
    for (slot, pointer) in slots.zip(pointers) {
        slot.copy_from_slice(&pointer.encode());
    }
    block
}

/// Computes a finished block's checksum.
pub(crate) fn seal(block: &mut [u8], csum: CsumType) {
    let (field, rest) = block.split_at_mut(CSUM_SIZE);
    field.copy_from_slice(csum.digest(rest).field());
}
