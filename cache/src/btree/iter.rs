//! Reading over several sorted sets as if they were one.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::node::{Node, SETS_MAX};
use super::{Generations, Guards, usable_interior, usable_leaf, verify};
use crate::error::Corrupt;
use crate::format::{Key, Layout, Pos, bkey};

/// First key strictly behind `p`; the beginning of the set for none.
pub(crate) fn seek(keys: &[Key], p: Option<Pos>) -> usize {
    p.map_or(0, |p| keys.partition_point(|key| key.pos() <= p))
}

/// A k-way merge by position: smallest end first, older sets first among equals. It holds indices,
/// not keys, so that an insertion can trim what it walks over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor {
    next: [usize; SETS_MAX],
}

impl Cursor {
    /// Stands before the first key behind `p` of every set.
    pub(crate) fn start(node: &Node, p: Option<Pos>) -> Result<Cursor, Corrupt> {
        let mut next = [0; SETS_MAX];
        for (number, (next, set)) in next.iter_mut().zip(node.sets()).enumerate() {
            *next = seek(set.keys(), p);
            if node.guards().contains(Guards::SEEK) {
                verify::seek(node.frame(), number, set.keys(), p, *next)?;
            }
        }
        Ok(Cursor { next })
    }

    /// Set and index of the next key.
    pub(crate) fn next(&mut self, node: &Node) -> Option<(usize, usize)> {
        let mut best: Option<(usize, &Key)> = None;
        for (number, set) in node.sets().iter().enumerate() {
            if let Some(key) = set.keys().get(self.next[number])
                && best.is_none_or(|(_, smallest)| key.pos() < smallest.pos())
            {
                best = Some((number, key));
            }
        }
        let (number, _) = best?;
        let index = self.next[number];
        self.next[number] += 1;
        Some((number, index))
    }
}

/// Keys of a node in merged order.
pub(crate) struct Merged<'a> {
    node: &'a Node,
    cursor: Cursor,
}

impl Iterator for Merged<'_> {
    type Item = Key;

    fn next(&mut self) -> Option<Key> {
        let (set, index) = self.cursor.next(self.node)?;
        Some(self.node.sets()[set].keys()[index])
    }
}

/// A part of a request, as one leaf answers it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Piece {
    /// `[start, end)` lies at `sector` of the cache device; `key` is the whole key it came from.
    Hit { start: u64, end: u64, sector: u64, key: Key },
    /// Nothing usable is cached there.
    Gap { start: u64, end: u64 },
}

impl Node {
    /// All keys that end behind `p`, in merged order, usable or not.
    pub(crate) fn iter_from(&self, p: Option<Pos>) -> Result<Merged<'_>, Corrupt> {
        Ok(Merged { node: self, cursor: Cursor::start(self, p)? })
    }

    /// All keys in merged order.
    pub(crate) fn iter(&self) -> Merged<'_> {
        Merged { node: self, cursor: Cursor { next: [0; SETS_MAX] } }
    }

    /// The live child that holds the sector at `pos`: the first whose bound lies behind it.
    pub(crate) fn child_for(
        &self,
        pos: Pos,
        layout: &Layout,
        gens: &(impl Generations + ?Sized),
    ) -> Result<Option<Key>, Corrupt> {
        Ok(self.iter_from(Some(pos))?.find(|key| usable_interior(key, layout, gens)))
    }

    /// What this leaf knows of `[start, end)` of a volume: hits and gaps, adjacent and in order. They
    /// end at the leaf's bound when the request goes on in the next leaf.
    pub(crate) fn pieces<'a, G: Generations + ?Sized>(
        &'a self,
        inode: u32,
        start: u64,
        end: u64,
        layout: &'a Layout,
        gens: &'a G,
    ) -> Result<Pieces<'a, G>, Corrupt> {
        let bound = self.frame().bound();
        let end = match bound.inode.cmp(&inode) {
            Ordering::Greater => end,
            Ordering::Equal => end.min(bound.offset),
            Ordering::Less => start,
        };
        let keys = self.iter_from(Some(Pos::new(inode, start)))?;
        Ok(Pieces { keys, held: None, inode, at: start, end, layout, gens })
    }
}

/// See [`Node::pieces`].
pub(crate) struct Pieces<'a, G: ?Sized> {
    keys: Merged<'a>,
    /// A hit that waits for the gap before it.
    held: Option<Key>,
    inode: u32,
    at: u64,
    end: u64,
    layout: &'a Layout,
    gens: &'a G,
}

impl<G: Generations + ?Sized> Iterator for Pieces<'_, G> {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        if self.at >= self.end {
            return None;
        }
        let (inode, at) = (self.inode, self.at);
        let (layout, gens) = (self.layout, self.gens);
        let hit = self.held.take().or_else(|| {
            self.keys
                .by_ref()
                .take_while(|key| key.inode() == inode)
                .find(|key| key.end() > at && usable_leaf(key, layout, gens))
        });
        let start = self.at;
        let Some(key) = hit.filter(|key| key.start() < self.end) else {
            self.at = self.end;
            return Some(Piece::Gap { start, end: self.end });
        };
        if key.start() > start {
            self.held = Some(key);
            self.at = key.start();
            return Some(Piece::Gap { start, end: self.at });
        }
        self.at = key.end().min(self.end);
        let sector = key.pointer().advanced(start - key.start()).offset();
        Some(Piece::Hit { start, end: self.at, sector, key })
    }
}

/// An element of [`fixup_merge`]'s heap: the next key of one set, perhaps trimmed already.
struct Head {
    key: Key,
    /// Number of the set: higher is newer.
    set: usize,
    /// Index of the key that follows in its set.
    next: usize,
}

impl Ord for Head {
    /// The heap's greatest: smallest start, and of equal starts the newest.
    fn cmp(&self, other: &Head) -> Ordering {
        other.key.start_pos().cmp(&self.key.start_pos()).then(self.set.cmp(&other.set))
    }
}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Head) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head {
    fn eq(&self, other: &Head) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Head {}

/// One list of extents from sets that may cover each other: the newer set (the later one in `sets`)
/// wins, sector by sector. Each set by itself is in order. Neighbours are joined where they can be;
/// keys without sectors disappear.
///
/// An extent that a newer, shorter one punches a hole into falls apart into two here: the writer of
/// the newer set is *not* trusted to have stored the upper part again (a real corruption bug).
pub(crate) fn fixup_merge(sets: &[&[Key]], layout: &Layout) -> Vec<Key> {
    let mut out = Emit { keys: Vec::with_capacity(sets.iter().map(|s| s.len()).sum()), layout };
    let mut heap = BinaryHeap::with_capacity(sets.len());
    let push = |heap: &mut BinaryHeap<Head>, set: usize, next: usize| {
        if let Some(key) = sets[set].get(next) {
            heap.push(Head { key: *key, set, next: next + 1 });
        }
    };
    for set in 0..sets.len() {
        push(&mut heap, set, 0);
    }
    while let Some(mut a) = heap.pop() {
        let Some(mut b) = heap.peek_mut() else {
            out.push(a.key);
            push(&mut heap, a.set, a.next);
            continue;
        };
        if a.key.pos() <= b.key.start_pos() {
            drop(b);
            out.push(a.key);
            push(&mut heap, a.set, a.next);
            continue;
        }
        // From here on they overlap, so they are of one inode.
        let swallowed = b.key.size() == 0 || (a.set > b.set && a.key.end() >= b.key.end());
        if swallowed {
            let b = std::collections::binary_heap::PeekMut::pop(b);
            push(&mut heap, b.set, b.next);
        } else if a.set > b.set {
            b.key.trim_front(a.key.end());
            drop(b);
        } else {
            let (hole, end) = (b.key.start(), b.key.end());
            drop(b);
            if end < a.key.end() {
                let mut lower = a.key;
                lower.trim_back(hole);
                out.push(lower);
                a.key.trim_front(end);
            } else {
                a.key.trim_back(hole);
            }
        }
        heap.push(a);
    }
    out.keys
}

/// Collects keys, joining neighbours.
pub(super) struct Emit<'a> {
    pub keys: Vec<Key>,
    pub layout: &'a Layout,
}

impl Emit<'_> {
    pub(super) fn push(&mut self, key: Key) {
        if key.size() == 0 {
            return;
        }
        let Some(last) = self.keys.last_mut() else {
            self.keys.push(key);
            return;
        };
        match last.merge(&key, self.layout) {
            bkey::Merge::No => self.keys.push(key),
            bkey::Merge::Whole(whole) => *last = whole,
            bkey::Merge::Partly(full, rest) => {
                *last = full;
                self.keys.push(rest);
            }
        }
    }
}

/// Interior sets as one list: by position, older first among equals. Nothing is dropped: a replaced
/// child and its successor stand side by side, told apart by staleness.
pub(crate) fn merge_by_position(sets: &[&[Key]]) -> Vec<Key> {
    let mut keys = sets.concat();
    // Stable, and the sets are runs: this is a merge.
    keys.sort_by_key(Key::pos);
    keys
}

#[cfg(test)]
#[path = "iter_tests.rs"]
mod tests;
