//! One leaf of the index, for benchmarks: what a lookup and an insertion cost with every check on,
//! and without a device.

use crate::btree::{Guards, InsertCtx, Node, Piece};
use crate::error::Corrupt;
use crate::format::{Key, Layout, NodeFrame, PageModel, Pos, Ptr, SetMagic};

/// What a leaf holds in the default layout, in 4 KiB extents.
const BLOCK_SECTORS: u64 = 8;
/// A prime that is larger than any leaf: steps of it visit every block once, in no order.
const STRIDE: u64 = 4099;
/// The open set is sealed when it is about to outgrow a page, as while serving.
const OPEN_BYTES_MAX: usize = 4096 - 48;

/// A leaf full of extents of 4 KiB that were written in no order.
#[derive(Clone, Debug)]
pub struct Leaf {
    node: Node,
    layout: Layout,
}

/// No bucket is ever reused here.
const GENERATIONS: &[u8] = &[];

impl Leaf {
    /// A leaf whose first `extents` blocks are cached, every second of them dirty.
    ///
    /// # Errors
    /// When a check of the insertion path fails, which would be a bug.
    ///
    /// # Panics
    /// When they do not fit: 4000 do.
    pub fn with_extents(extents: u64) -> Result<Leaf, Corrupt> {
        let pages = PageModel::default();
        let layout =
            Layout { block_size: 8, bucket_size: 1024, nbuckets: 1 << 20, first_bucket: 1, pages };
        let key = Key::node(Pos::MAX, 512, Ptr::new(1024, 0));
        let frame = NodeFrame::new(key, 0, SetMagic::of(uuid::Uuid::from_u128(7)), &layout);
        let mut leaf = Leaf { node: Node::fresh(frame, 1, Guards::all()), layout };
        let mut at = 0;
        for n in 0..extents {
            at = (at + STRIDE) % extents;
            leaf.insert(at, n)?;
        }
        Ok(leaf)
    }

    /// Where block `block` of the volume lies on the cache device, in sectors; `None`: not cached.
    ///
    /// # Errors
    /// When a check of the lookup fails, which would be a bug.
    pub fn lookup(&self, block: u64) -> Result<Option<u64>, Corrupt> {
        let (start, end) = (block * BLOCK_SECTORS, (block + 1) * BLOCK_SECTORS);
        let first = self.node.pieces(0, start, end, &self.layout, GENERATIONS)?.next();
        Ok(match first {
            Some(Piece::Hit { sector, .. }) => Some(sector),
            _ => None,
        })
    }

    /// Block `block` of the volume lies in block `place` of the cache device now.
    ///
    /// # Errors
    /// As [`Leaf::with_extents`].
    pub fn insert(&mut self, block: u64, place: u64) -> Result<(), Corrupt> {
        let start = block * BLOCK_SECTORS;
        let ptr = Ptr::new(2048 + place * BLOCK_SECTORS, 0);
        let key = Key::extent(0, start, start + BLOCK_SECTORS, place.is_multiple_of(2), ptr);
        let ctx = InsertCtx::new(&self.layout);
        let _done = self.node.insert(&ctx, key, None, &mut Vec::new())?;
        if self.node.open_bytes() > OPEN_BYTES_MAX {
            self.node.seal(&self.layout, GENERATIONS)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_knows_the_newest_place_of_every_block() {
        let mut leaf = Leaf::with_extents(1000).unwrap();
        leaf.insert(17, 5000).unwrap();
        assert_eq!(leaf.lookup(17).unwrap(), Some(2048 + 5000 * 8));
        assert!((0..1000).all(|block| leaf.lookup(block).unwrap().is_some()));
        assert_eq!(leaf.lookup(1000).unwrap(), None);
    }
}
