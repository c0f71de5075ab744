//! One btree node in memory.
//!
//! Invariants, checked by [`verify`](super::verify):
//!
//! - `sets` are oldest first, at most four; each is in order; all but an open last one are on disk.
//! - In a leaf no two live keys of any sets overlap: insertion trims what it covers. (On disk they do
//!   overlap: a trimmed key of a written set is trimmed in memory only, and again at the next read.)
//! - `live` is the sum of all sizes in a leaf.
//! - There is an open set unless the node's blocks are exhausted.

use super::iter::{Emit, fixup_merge, merge_by_position};
use super::{Generations, Guards, usable_interior, usable_leaf, verify};
use crate::error::{Corrupt, Place};
use crate::format::bkey::words_of;
use crate::format::bset::bset_bytes;
use crate::format::{BsetWriter, Key, Layout, NodeFrame, Pos};

/// Sets in memory; a fifth makes a merge of all.
pub(crate) const SETS_MAX: usize = 4;
/// Words kept free in a leaf: one insertion may add a key that it split off another.
const SPLIT_OFF_WORDS: usize = 8;

/// One sorted set in memory.
#[derive(Clone, Debug)]
pub(crate) struct Set {
    pub(super) keys: Vec<Key>,
    /// Its block in the node, the first one where several were merged.
    block: usize,
    pub(super) written: bool,
}

impl Set {
    pub(crate) fn keys(&self) -> &[Key] {
        &self.keys
    }

    fn words(&self) -> usize {
        words_of(&self.keys)
    }
}

/// What has to be written for a sealed set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct SetWrite {
    /// On the cache device.
    pub sector: u64,
    /// Whole blocks.
    pub bytes: Vec<u8>,
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    frame: NodeFrame,
    /// The tag that all sets of this node carry.
    seq: u64,
    pub(super) sets: Vec<Set>,
    /// Blocks used by sealed sets.
    written_blocks: usize,
    pub(super) live: u64,
    guards: Guards,
    pub(super) poison: Option<Box<Corrupt>>,
}

impl Node {
    /// An empty node that was never written. `seq` is random and not zero.
    ///
    /// # Panics
    /// When `seq` is zero: it would be taken for unwritten space.
    pub(crate) fn fresh(frame: NodeFrame, seq: u64, guards: Guards) -> Node {
        assert!(seq != 0, "a node without a tag");
        assert!(frame.blocks > 0, "a node without blocks");
        let open = Set { keys: Vec::new(), block: 0, written: false };
        Node { frame, seq, sets: vec![open], written_blocks: 0, live: 0, guards, poison: None }
    }

    /// A new node with `keys` in its open set: the output of a split or a compaction (O8).
    ///
    /// # Panics
    /// When the keys do not fit the node.
    pub(crate) fn with_keys(
        frame: NodeFrame,
        seq: u64,
        keys: Vec<Key>,
        guards: Guards,
    ) -> Result<Node, Corrupt> {
        let mut node = Node::fresh(frame, seq, guards);
        assert!(bset_bytes(words_of(&keys)) <= node.frame.bytes(), "too many keys for a node");
        if guards.contains(Guards::MERGE) {
            verify::set_order(&node.frame, node.frame.place(0).bset(0), &keys)
                .next()
                .map_or(Ok(()), Err)?;
        }
        node.live = node.sum(&keys);
        node.sets[0].keys = keys;
        Ok(node)
    }

    /// Reads a node: `bytes` is all of it. Its sets are checked (29 to 32, 35 to 38, 41), merged with
    /// the newest winning, and the result is checked again (39). Row 40 needs generations:
    /// [`Node::verify_live`].
    pub(crate) fn parse(
        frame: NodeFrame,
        bytes: &[u8],
        layout: &Layout,
        guards: Guards,
    ) -> Result<Node, Corrupt> {
        let mut sets = frame.parse(bytes)?;
        for (number, set) in sets.iter_mut().enumerate() {
            if guards.contains(Guards::READ) {
                let place = frame.place(set.block).bset(number);
                verify::keys(&frame, place, layout, &set.keys).next().map_or(Ok(()), Err)?;
                verify::set_order(&frame, place, &set.keys).next().map_or(Ok(()), Err)?;
            } else {
                // Impossible extents would make the merge below turn in circles.
                set.keys.retain(|key| verify::key(&frame, layout, key).is_none());
            }
        }
        let lists: Vec<&[Key]> = sets.iter().map(|set| set.keys.as_slice()).collect();
        let keys =
            if frame.level == 0 { fixup_merge(&lists, layout) } else { merge_by_position(&lists) };
        let seq = sets.first().map_or(0, |first| first.seq);
        let written_blocks = sets.last().map_or(0, |last| last.block + last.blocks);
        let merged = Set { keys, block: 0, written: true };
        let mut node =
            Node { frame, seq, sets: Vec::new(), written_blocks, live: 0, guards, poison: None };
        if guards.contains(Guards::READ) {
            verify::merged_order(&frame, &merged.keys).next().map_or(Ok(()), Err)?;
            if cfg!(debug_assertions) && frame.level == 0 {
                verify::same_sectors(1, &frame, union(&lists), node.sum(&merged.keys))?;
            }
        }
        node.live = node.sum(&merged.keys);
        node.sets.push(merged);
        node.open_next();
        Ok(node)
    }

    pub(crate) fn frame(&self) -> &NodeFrame {
        &self.frame
    }

    pub(crate) fn key(&self) -> Key {
        self.frame.key
    }

    pub(crate) fn level(&self) -> u8 {
        self.frame.level
    }

    #[cfg(test)]
    pub(crate) fn seq(&self) -> u64 {
        self.seq
    }

    pub(crate) fn sets(&self) -> &[Set] {
        &self.sets
    }

    pub(crate) fn guards(&self) -> Guards {
        self.guards
    }

    /// Sectors covered by the keys of a leaf, invalidations included.
    #[cfg(test)]
    pub(crate) fn live_sectors(&self) -> u64 {
        self.live
    }

    /// The check that failed, after which this node may not be changed or written.
    #[cfg(test)]
    pub(crate) fn poison(&self) -> Option<&Corrupt> {
        self.poison.as_deref()
    }

    pub(super) fn sound(&self) -> Result<(), Corrupt> {
        self.poison.as_deref().map_or(Ok(()), |broken| Err(broken.clone()))
    }

    /// The set that takes insertions.
    pub(super) fn open(&self) -> Option<&Set> {
        self.sets.last().filter(|set| !set.written)
    }

    /// Whether there is something to write: keys in the open set, or a node never written at all.
    pub(crate) fn has_unwritten(&self) -> bool {
        self.open().is_some_and(|set| !set.keys.is_empty() || self.written_blocks == 0)
    }

    /// Bytes of the open set if it were written now, header included.
    pub(crate) fn open_bytes(&self) -> usize {
        self.open().map_or(0, |set| bset_bytes(set.words()))
    }

    /// Words that insertions may still add before the node must be split. Each insertion into a leaf
    /// has its own split-off key covered already.
    pub(crate) fn room(&self) -> usize {
        let Some(open) = self.open() else { return 0 };
        let used = self.written_blocks * self.frame.block_bytes + bset_bytes(open.words());
        let reserve = if self.frame.level == 0 { SPLIT_OFF_WORDS } else { 0 };
        (self.frame.bytes().saturating_sub(used) / 8).saturating_sub(reserve)
    }

    /// Row 40, once the generations of this node's own pointers are known.
    pub(crate) fn verify_live(
        &self,
        layout: &Layout,
        gens: &(impl Generations + ?Sized),
    ) -> Result<(), Corrupt> {
        if self.frame.level == 0 || !self.guards.contains(Guards::READ) {
            return Ok(());
        }
        let keys: Vec<Key> = self.iter().collect();
        verify::duplicates(&self.frame, &keys, layout, gens).map_or(Ok(()), Err)
    }

    /// Row 42: nothing in here lies before the bound of the node to the left.
    pub(crate) fn verify_above(&self, lower: Pos) -> Result<(), Corrupt> {
        if !self.guards.contains(Guards::READ) {
            return Ok(());
        }
        let mut sets = self.sets.iter();
        sets.find_map(|set| verify::above(&self.frame, &set.keys, lower).next()).map_or(Ok(()), Err)
    }

    /// What a new node takes over from this one: the usable keys in order, neighbours joined.
    pub(crate) fn usable_keys(
        &self,
        layout: &Layout,
        gens: &(impl Generations + ?Sized),
    ) -> Vec<Key> {
        if self.frame.level > 0 {
            return self.iter().filter(|key| usable_interior(key, layout, gens)).collect();
        }
        let mut out = Emit { keys: Vec::new(), layout };
        self.iter().filter(|key| usable_leaf(key, layout, gens)).for_each(|key| out.push(key));
        out.keys
    }

    /// Makes the bytes of the open set's write and opens the next set. The bytes have been parsed
    /// again and say what the memory says (O7).
    ///
    /// # Panics
    /// When there is nothing to write ([`Node::has_unwritten`]).
    pub(crate) fn seal(
        &mut self,
        layout: &Layout,
        gens: &(impl Generations + ?Sized),
    ) -> Result<SetWrite, Corrupt> {
        assert!(self.has_unwritten(), "sealing a set without keys");
        let sealed = self.sound().and_then(|()| self.sealed_bytes(layout, gens));
        let bytes = sealed.inspect_err(|broken| self.poison = Some(Box::new(broken.clone())))?;
        let write = SetWrite { sector: self.sector_of(self.written_blocks), bytes };
        self.written_blocks += write.bytes.len() / self.frame.block_bytes;
        if let Some(set) = self.sets.last_mut() {
            set.written = true;
        }
        self.merge_lazily(layout)
            .inspect_err(|broken| self.poison = Some(Box::new(broken.clone())))?;
        self.open_next();
        Ok(write)
    }

    fn sealed_bytes(
        &self,
        layout: &Layout,
        gens: &(impl Generations + ?Sized),
    ) -> Result<Vec<u8>, Corrupt> {
        let keys = self.open().map_or(&[][..], |set| &set.keys);
        let bytes = BsetWriter { frame: &self.frame, seq: self.seq }.encode(keys);
        if !self.guards.contains(Guards::WRITE) {
            return Ok(bytes);
        }
        let place = self.frame.place(self.written_blocks).bset(self.sets.len() - 1);
        verify::keys(&self.frame, place, layout, keys).next().map_or(Ok(()), Err)?;
        verify::set_order(&self.frame, place, keys).next().map_or(Ok(()), Err)?;
        let rest = |key: &Key| self.is_rest_of_written(key);
        verify::dirty_pointers(&self.frame, place, keys, layout, gens, rest)?;
        self.read_back(&bytes, keys, place)?;
        Ok(bytes)
    }

    /// Whether a key is what an insertion left of one that stands on disk already. A crash may leave a
    /// stale dirty key there (cleaned by the journal, its bucket reused since); splitting it moves the
    /// rest of it, as stale as it was, into the open set.
    fn is_rest_of_written(&self, key: &Key) -> bool {
        let ptr = key.pointer();
        // Trimming a key at either end keeps where its sector 0 would lie.
        let origin = ptr.offset().wrapping_sub(key.start());
        self.sets.iter().filter(|set| set.written).flat_map(|set| &set.keys).any(|old| {
            old.inode() == key.inode()
                && old.dirty()
                && old.ptr().is_some_and(|old_ptr| {
                    old_ptr.available()
                        && old_ptr.generation() == ptr.generation()
                        && old_ptr.offset().wrapping_sub(old.start()) == origin
                })
        })
    }

    /// The second half of O7: what a reader will make of the bytes.
    fn read_back(&self, bytes: &[u8], keys: &[Key], place: Place) -> Result<(), Corrupt> {
        let wrong = |field, found: &dyn std::fmt::Display, expected: &dyn std::fmt::Display| {
            Err(Corrupt::online(7, self.frame.what(), place, field, found, expected))
        };
        let (room, blocks) = (self.frame.blocks, bytes.len() / self.frame.block_bytes);
        if self.written_blocks + blocks > room {
            return wrong("blocks", &(self.written_blocks + blocks), &room);
        }
        let number = usize::from(self.written_blocks > 0);
        let again = self.frame.parse_set(bytes, self.written_blocks, number)?;
        if again.seq != self.seq {
            return wrong("seq", &again.seq, &self.seq);
        }
        if again.blocks != blocks {
            return wrong("blocks", &again.blocks, &blocks);
        }
        if again.keys != keys {
            return wrong("keys", &again.keys.len(), &"the keys in memory");
        }
        Ok(())
    }

    fn sector_of(&self, block: usize) -> u64 {
        self.frame.place(block).sector.unwrap_or(self.frame.sector)
    }

    fn open_next(&mut self) {
        if self.written_blocks < self.frame.blocks {
            self.sets.push(Set { keys: Vec::new(), block: self.written_blocks, written: false });
        }
    }

    /// Fewer sets to look through: interior nodes keep one; a leaf merges from the first set on that
    /// is small against those before it.
    fn merge_lazily(&mut self, layout: &Layout) -> Result<(), Corrupt> {
        let written = self.sets.len();
        if written < 2 {
            return Ok(());
        }
        if self.frame.level > 0 {
            return self.merge_from(0, layout);
        }
        let factor = (self.frame.bytes() / 4096).isqrt().max(1);
        let mut small = 512usize;
        for number in (0..written - 1).rev() {
            small = small.saturating_mul(factor);
            if self.sets[number].words() < small {
                return self.merge_from(number, layout);
            }
        }
        if written == SETS_MAX { self.merge_from(0, layout) } else { Ok(()) }
    }

    /// Makes one set of all from number `first` on.
    fn merge_from(&mut self, first: usize, layout: &Layout) -> Result<(), Corrupt> {
        let lists: Vec<&[Key]> = self.sets[first..].iter().map(Set::keys).collect();
        let keys = if self.frame.level == 0 {
            fixup_merge(&lists, layout)
        } else {
            merge_by_position(&lists)
        };
        if self.guards.contains(Guards::MERGE) {
            let before = lists.iter().map(|keys| self.sum(keys)).sum();
            verify::same_sectors(8, &self.frame, before, self.sum(&keys))?;
            verify::merged_order(&self.frame, &keys).next().map_or(Ok(()), Err)?;
        }
        let block = self.sets[first].block;
        self.sets.truncate(first);
        self.sets.push(Set { keys, block, written: true });
        Ok(())
    }

    /// Sectors covered by keys of a leaf.
    fn sum(&self, keys: &[Key]) -> u64 {
        if self.frame.level > 0 {
            return 0;
        }
        keys.iter().map(|key| u64::from(key.size())).sum()
    }
}

/// Sectors covered by any key of any set, computed by a sweep that shares nothing with the merge.
fn union(sets: &[&[Key]]) -> u64 {
    let mut keys = sets.concat();
    keys.sort_by_key(Key::start_pos);
    let mut covered = 0;
    let mut end = Pos::ZERO;
    for key in keys {
        let from = key.start_pos().max(end);
        if key.pos() > from {
            covered += key.pos().offset - from.offset;
            end = key.pos();
        }
    }
    covered
}

#[cfg(test)]
#[path = "node_tests.rs"]
mod tests;
