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

/// Blocks by address, as bytes.
pub(crate) type TreeBlocks = std::collections::BTreeMap<Logical, Vec<u8>>;

/// How a tree's items divide into blocks: items per leaf, then children per node, level by level.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Shape(Vec<Vec<usize>>);

impl Shape {
    /// Leaves filled from the left; an empty tree is one empty leaf.
    pub(crate) fn of(nodesize: u32, items: &[NewItem]) -> Shape {
        let space = leaf_space(nodesize) as usize;
        let mut leaves = vec![0];
        let mut used = 0;
        for (_, data) in items {
            let size = ITEM_HEAD_SIZE + data.len();
            if used + size > space {
                leaves.push(0);
                used = 0;
            }
            used += size;
            *leaves.last_mut().expect("at least one leaf") += 1;
        }
        let capacity = node_capacity(nodesize) as usize;
        let mut levels = vec![leaves];
        while let Some(below) = levels.last().map(Vec::len)
            && below > 1
        {
            let full = std::iter::repeat_n(capacity, below / capacity);
            let rest = Some(below % capacity).filter(|rest| *rest > 0);
            levels.push(full.chain(rest).collect());
        }
        Shape(levels)
    }

    pub(crate) fn blocks(&self) -> usize {
        self.0.iter().map(Vec::len).sum()
    }

    /// The root's level.
    pub(crate) fn level(&self) -> u8 {
        u8::try_from(self.0.len() - 1).expect("a tree built at once has few levels")
    }

    /// The level of each block, leaves first, the root last.
    pub(crate) fn levels(&self) -> Vec<u8> {
        let level = |(level, blocks): (u8, &Vec<usize>)| std::iter::repeat_n(level, blocks.len());
        (0..).zip(&self.0).flat_map(level).collect()
    }
}

/// A whole tree of `items`, whose blocks go to `places`: leaves first, the root last. Unsealed.
///
/// # Panics
/// When `places` are not as many as the tree's [`Shape`] has blocks.
pub(crate) fn tree(
    stamp: &Stamp,
    nodesize: u32,
    items: &[NewItem],
    places: &[Logical],
) -> TreeBlocks {
    let shape = Shape::of(nodesize, items);
    assert_eq!(places.len(), shape.blocks(), "one place per block");
    let mut places = places.iter();
    let mut blocks = TreeBlocks::new();
    let mut below: Vec<Pointer> = Vec::new();
    for (level, counts) in (0u8..).zip(&shape.0) {
        let mut above = Vec::new();
        let (mut items, mut children) = (items, &below[..]);
        for count in counts {
            let bytenr = *places.next().expect("counted above");
            let stamp = Stamp { bytenr, ..*stamp };
            let (block, key) = if level == 0 {
                let (here, rest) = items.split_at(*count);
                items = rest;
                (leaf(&stamp, nodesize, here), here.first().map(|(key, _)| *key))
            } else {
                let (here, rest) = children.split_at(*count);
                children = rest;
                (node(&stamp, nodesize, level, here), here.first().map(|child| child.key))
            };
            let key = key.unwrap_or(Key::MIN);
            above.push(Pointer { key, block: bytenr, generation: stamp.generation });
            blocks.insert(bytenr, block);
        }
        below = above;
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::block;
    use crate::format::key::ItemType;

    #[test]
    fn a_tree_of_many_leaves_holds_every_item_once_and_names_first_keys() {
        let items: Vec<NewItem> =
            (1..5000).map(|n| (Key::new(n, ItemType::ORPHAN_ITEM, 0), vec![7; 40])).collect();
        let shape = Shape::of(4096, &items);
        assert_eq!(shape.level(), 1);
        assert!(Shape::of(4096, &items[..3]).level() == 0);
        let places: Vec<_> = (1..=shape.blocks() as u64).map(|n| Logical(n * 4096)).collect();
        let stamp = Stamp {
            fsid: Uuid::nil(),
            chunk_tree_uuid: Uuid::nil(),
            bytenr: Logical(0),
            generation: 1,
            owner: 5,
        };
        let blocks = tree(&stamp, 4096, &items, &places);
        let root = &blocks[places.last().unwrap()];
        let mut seen = 0;
        for slot in 0..Header::parse(root).unwrap().nritems as usize {
            let pointer = block::pointer(root, slot).unwrap();
            let leaf = &blocks[&pointer.block];
            assert_eq!(block::item_head(leaf, 0).unwrap().key, pointer.key);
            seen += Header::parse(leaf).unwrap().nritems;
        }
        assert_eq!(seen as usize, items.len());
        assert_eq!(shape.levels().len(), places.len());
    }
}
