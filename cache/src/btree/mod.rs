//! The index: a B+tree over (inode, end of extent), its nodes logs of sorted sets.
//!
//! ```text
//!                    root (bound = max)                    interior keys: bound -> child bucket
//!               /            |           \
//!        node ..0:400   node ..1:77   node ..max           leaf keys: extents -> cache sectors
//!
//!  a node on disk: | set | set | set | free .. |           newer sets override older ones
//!  in memory:      [ merged, written ] [ written ] [ open: takes insertions, not on disk yet ]
//! ```
//!
//! This folder's pure half knows bytes and keys, no device and no task:
//!
//! - [`node`]: [`Node`], one node in memory. `Node::parse` from the bucket's bytes (every check of the
//!   read path done), `insert`, `seal` (the bytes of the next write), `usable_keys` (for a new node).
//! - [`iter`]: merging reads over the sets of a node: `Node::iter_from`, `Node::pieces` (hits and
//!   gaps of a request), `Node::child_for`; and `fixup_merge`, which makes one list of overlapping
//!   sets.
//! - [`insert`]: what an insertion does to the keys that are already there.
//! - [`verify`]: the order checks, one function each.
//!
//! # How a node is used
//!
//! ```text
//! let mut node = Node::parse(frame, &bytes, &layout, guards)?;        // read whole, checked, merged
//! assert!(node.room() >= words);                                      // else split first
//! match node.insert(&ctx, key, None, &mut deltas)? {..}               // deltas: dirty accounting
//! let write = node.seal(&layout, &generations)?;                      // then write.bytes at write.sector, FUA
//! ```
//!
//! # What a caller must know
//!
//! - One write of a node in flight at a time; after `seal` the next set is open already and takes
//!   insertions while the write is under way.
//! - A node whose blocks are exhausted has `room() == 0`: split or compact it into a new one.
//! - An `Err` of `insert` or `seal` is a failed online check: the node is *poisoned*, every later
//!   `insert` and `seal` fails the same way, and nothing of it must reach the disk any more. Its keys
//!   can still be read.
//! - Deltas are to be applied to the volume's dirty counters whatever the answer is: also a replace
//!   that ends in a collision may have trimmed nothing, but never half.
//! - Staleness is asked through [`Generations`]; nothing here remembers a generation.

pub(crate) mod cache;
#[cfg(any(test, feature = "mutations"))]
pub(crate) mod fault;
pub(crate) mod gc;
pub(crate) mod insert;
pub(crate) mod iter;
#[cfg(test)]
pub(crate) mod model;
pub(crate) mod node;
pub(crate) mod split;
pub(crate) mod tree;
pub(crate) mod verify;

#[cfg(any(test, feature = "mutations"))]
pub(crate) use fault::PredFault;
#[cfg(test)]
pub(crate) use insert::DirtyDelta;
pub(crate) use insert::{InsertCtx, Inserted};
pub(crate) use iter::{Piece, fixup_merge};
pub(crate) use node::Node;
#[cfg(test)]
pub(crate) use node::SetWrite;

use crate::format::{Bucket, Key, Layout, Ptr, generation_after};

/// Current generations of the buckets.
pub(crate) trait Generations {
    fn generation(&self, bucket: Bucket) -> u8;
}

impl Generations for [u8] {
    /// Buckets beyond the list have never been used.
    fn generation(&self, bucket: Bucket) -> u8 {
        usize::try_from(bucket.0).ok().and_then(|b| self.get(b)).copied().unwrap_or(0)
    }
}

impl Generations for Vec<u8> {
    fn generation(&self, bucket: Bucket) -> u8 {
        self.as_slice().generation(bucket)
    }
}

/// By how many generations the bucket has moved on since `ptr` was made; 0 = what it points to is there.
pub(crate) fn staleness(ptr: Ptr, layout: &Layout, gens: &(impl Generations + ?Sized)) -> u8 {
    generation_after(gens.generation(layout.bucket_of(ptr.offset())), ptr.generation())
}

/// Whether a leaf key yields data: invalidations, check keys, zeroed and stale keys do not.
pub(crate) fn usable_leaf(key: &Key, layout: &Layout, gens: &(impl Generations + ?Sized)) -> bool {
    let Some(ptr) = key.ptr() else { return false };
    key.size() > 0
        && u64::from(key.size()) <= key.end()
        && ptr.available()
        && layout.in_bounds(ptr.offset(), key.size())
        && staleness(ptr, layout, gens) == 0
}

/// Whether an interior key leads to a child: freeing keys and replaced children do not.
pub(crate) fn usable_interior(
    key: &Key,
    layout: &Layout,
    gens: &(impl Generations + ?Sized),
) -> bool {
    let Some(ptr) = key.ptr() else { return false };
    !key.is_freeing()
        && key.size() > 0
        && !key.dirty()
        && ptr.available()
        && layout.in_bounds(ptr.offset(), key.size())
        && staleness(ptr, layout, gens) == 0
}

bitflags::bitflags! {
    /// The online checks that are on. All of them, always; tests switch single ones off to show
    /// which one stands behind it.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(crate) struct Guards: u8 {
        /// Everything about a node that was just read.
        const READ = 1 << 0;
        /// The search position of an insertion.
        const PRED = 1 << 1;
        /// Where an iteration starts.
        const SEEK = 1 << 2;
        /// The neighbours of an inserted key.
        const NEIGHBOURS = 1 << 3;
        /// No other key covers what an inserted key covers.
        const DISJOINT = 1 << 4;
        /// Sectors before and after an insertion.
        const SECTORS = 1 << 5;
        /// A set on its way to the disk.
        const WRITE = 1 << 6;
        /// The result of a merge.
        const MERGE = 1 << 7;
    }
}
