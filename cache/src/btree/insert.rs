//! What an insertion does to a node.
//!
//! A new extent wins over whatever it covers. Keys of the open set are changed for good; keys of
//! sets that are on disk are trimmed in memory only, and the same trimming happens again when the
//! node is read (the newer set wins). An extent that is hit in its middle falls into two, and when
//! it stands in a written set the upper part goes into the open one.
//!
//! With `replace` an insertion is a compare-and-swap: it happens only where `replace` still stands,
//! pointer for pointer. Miss fills (replace the check key), writeback (replace the dirty key by the
//! same without dirty) and moving gc live from that. A partial match shortens the new key.

#[cfg(any(test, feature = "mutations"))]
use super::fault::PredFault;
use super::iter::{Cursor, seek};
use super::node::Node;
use super::{Guards, verify};
use crate::error::Corrupt;
use crate::format::bkey::Merge;
use crate::format::{Key, Layout, Pos};

/// What an insertion needs to know beside the node.
#[derive(Clone, Copy)]
pub(crate) struct InsertCtx<'a> {
    pub layout: &'a Layout,
    /// The search position goes wrong.
    #[cfg(any(test, feature = "mutations"))]
    pub fault: Option<&'a PredFault>,
}

impl<'a> InsertCtx<'a> {
    pub(crate) fn new(layout: &'a Layout) -> InsertCtx<'a> {
        InsertCtx {
            layout,
            #[cfg(any(test, feature = "mutations"))]
            fault: None,
        }
    }
}

/// `sectors` more (or fewer) dirty sectors of a volume at `start`, in key space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DirtyDelta {
    pub inode: u32,
    pub start: u64,
    pub sectors: i64,
}

/// How an insertion ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub(crate) enum Inserted {
    /// The key is in, this many sectors of it: fewer than it had when `replace` matched in part.
    Done { sectors: u32 },
    /// Nothing of `replace` was there any more: nothing happened.
    Collision,
}

/// The position just below where an insertion takes effect: the search starts with the first key
/// behind it, so a key that ends exactly where the new one starts is still seen, as a candidate for
/// joining. Owned by the caller, on purpose: see `fault.rs`.
pub(crate) fn pred(key: &Key, level: u8) -> Option<Pos> {
    if level == 0 { key.start_pos().before() } else { key.pos().before() }
}

/// Sectors of a leaf that an insertion is about to cover, found without a search position.
struct Covered {
    live: u64,
    /// (start, end, dirty), pairwise disjoint.
    parts: Vec<(u64, u64, bool)>,
}

impl Node {
    /// Inserts `key`, of at least one sector, within the node's bound and room.
    ///
    /// # Errors
    /// An online check (O2 to O6) failed. The node is poisoned.
    ///
    /// # Panics
    /// When the key is empty, lies behind the bound, or there is no room for it.
    pub(crate) fn insert(
        &mut self,
        ctx: &InsertCtx<'_>,
        key: Key,
        replace: Option<&Key>,
        deltas: &mut Vec<DirtyDelta>,
    ) -> Result<Inserted, Corrupt> {
        assert!(key.size() > 0, "inserting a key without sectors: {key}");
        assert!(key.pos() <= self.frame().bound(), "{key} lies behind {}", self.frame().bound());
        assert!(self.room() >= key.words(), "no room for {key}");
        let done = self.sound().and_then(|()| {
            if self.level() == 0 {
                self.insert_extent(ctx, key, replace, deltas)
            } else {
                self.insert_child(ctx, key)
            }
        });
        done.inspect_err(|broken| self.poison = Some(Box::new(broken.clone())))
    }

    fn search_position(&self, ctx: &InsertCtx<'_>, key: &Key) -> Result<Option<Pos>, Corrupt> {
        let p = pred(key, self.level());
        #[cfg(any(test, feature = "mutations"))]
        let p = ctx.fault.map_or(p, |fault| fault.apply(self.level(), key, p));
        #[cfg(not(any(test, feature = "mutations")))]
        let _ = ctx;
        if self.guards().contains(Guards::PRED) {
            verify::search_position(self.frame(), key, p)?;
        }
        Ok(p)
    }

    /// Interior nodes do no overlap work: a child and its replacement have the same bound, and
    /// generations tell them apart.
    fn insert_child(&mut self, ctx: &InsertCtx<'_>, key: Key) -> Result<Inserted, Corrupt> {
        let p = self.search_position(ctx, &key)?;
        let number = self.sets.len() - 1;
        let keys = &mut self.sets[number].keys;
        let mut at = seek(keys, p);
        while keys.get(at).is_some_and(|m| key.pos() > m.pos()) {
            at += 1;
        }
        keys.insert(at, key);
        if self.guards().contains(Guards::NEIGHBOURS) {
            verify::neighbours(self.frame(), number, self.sets[number].keys(), at)?;
        }
        Ok(Inserted::Done { sectors: key.size() })
    }

    fn insert_extent(
        &mut self,
        ctx: &InsertCtx<'_>,
        key: Key,
        replace: Option<&Key>,
        deltas: &mut Vec<DirtyDelta>,
    ) -> Result<Inserted, Corrupt> {
        let p = self.search_position(ctx, &key)?;
        let at = seek(self.sets[self.sets.len() - 1].keys(), p);
        let covered = self.guards().contains(Guards::SECTORS).then(|| self.covered_by(&key));
        let first_delta = deltas.len();
        let found = self.fix_overlaps(p, &key, replace, deltas)?;
        let mut key = key;
        if replace.is_some() {
            if found == 0 {
                return Ok(Inserted::Collision);
            }
            key.trim_back(key.end().min(key.start() + found));
        }
        if key.dirty() {
            deltas.push(delta(&key, key.start(), i64::from(key.size())));
        }
        self.live += u64::from(key.size());
        let at = self.place_extent(ctx.layout, key, at);
        self.verify_insert(&key, at)?;
        if let Some(covered) = covered {
            let moved = deltas[first_delta..].iter().map(|delta| delta.sectors).sum();
            self.verify_sectors(&key, &covered, moved)?;
        }
        Ok(Inserted::Done { sectors: key.size() })
    }

    /// Trims everything that `key` covers. Returns how many sectors from the start of `key` on are
    /// matched by `replace`.
    fn fix_overlaps(
        &mut self,
        p: Option<Pos>,
        key: &Key,
        replace: Option<&Key>,
        deltas: &mut Vec<DirtyDelta>,
    ) -> Result<u64, Corrupt> {
        let mut found = 0;
        let mut cursor = Cursor::start(self, p)?;
        while let Some((set, index)) = cursor.next(self) {
            let x = self.sets[set].keys[index];
            if x.start_pos() >= key.pos() {
                if x.size() == 0 {
                    continue;
                }
                break;
            }
            if x.pos() <= key.start_pos() {
                continue;
            }
            if let Some(old) = replace.filter(|_| x.size() > 0) {
                if !still_there(&x, key, old, found) {
                    break;
                }
                found = x.end() - key.start();
            }
            if x.start() < key.start() && key.end() < x.end() {
                self.split_around(set, index, key);
                if x.dirty() {
                    deltas.push(delta(&x, key.start(), -i64::from(key.size())));
                }
                break;
            }
            self.trim_covered(set, index, key)?;
            let after = self.sets[set].keys[index];
            if x.dirty() {
                let from = x.start().max(key.start());
                deltas.push(delta(&x, from, i64::from(after.size()) - i64::from(x.size())));
            }
        }
        Ok(found)
    }

    /// `key` covers the head, the tail, or all of the key at `index`.
    fn trim_covered(&mut self, set: usize, index: usize, key: &Key) -> Result<(), Corrupt> {
        let written = self.sets[set].written;
        let x = &mut self.sets[set].keys[index];
        let before = *x;
        if key.end() < x.end() {
            x.trim_front(key.end());
        } else if written && key.start() <= x.start() {
            x.empty_in_place();
        } else {
            x.trim_back(key.start());
        }
        let after = *x;
        self.live -= u64::from(before.size() - after.size());
        if self.guards().contains(Guards::DISJOINT) {
            verify::trimmed(self.frame(), &before, &after)?;
        }
        Ok(())
    }

    /// `key` lands strictly inside the key at `index`, which falls into two.
    fn split_around(&mut self, set: usize, index: usize, key: &Key) {
        let mut upper = self.sets[set].keys[index];
        upper.trim_front(key.end());
        self.sets[set].keys[index].trim_back(key.start());
        if self.sets[set].written {
            let open = self.sets.len() - 1;
            let keys = &mut self.sets[open].keys;
            let at = seek(keys, Some(key.pos()));
            keys.insert(at, upper);
        } else {
            self.sets[set].keys.insert(index + 1, upper);
        }
        self.live -= u64::from(key.size());
    }

    /// Puts `key` into the open set, at or behind `at`, joined with a neighbour where possible.
    /// Returns where it stands.
    fn place_extent(&mut self, layout: &Layout, key: Key, at: usize) -> usize {
        let mut key = key;
        let mut at = at;
        let open = self.sets.len() - 1;
        let keys = &mut self.sets[open].keys;
        let mut prev = None;
        while keys.get(at).is_some_and(|m| key.pos() > m.start_pos()) {
            prev = Some(at);
            at += 1;
        }
        if let Some(prev) = prev {
            match keys[prev].merge(&key, layout) {
                Merge::No => {}
                Merge::Whole(whole) => {
                    keys[prev] = whole;
                    return prev;
                }
                Merge::Partly(full, rest) => {
                    keys[prev] = full;
                    key = rest;
                }
            }
        }
        match keys.get(at).map_or(Merge::No, |m| key.merge(m, layout)) {
            Merge::No => {}
            Merge::Whole(whole) => {
                keys[at] = whole;
                return at;
            }
            Merge::Partly(full, rest) => {
                keys[at] = rest;
                key = full;
            }
        }
        keys.insert(at, key);
        at
    }

    /// O4 and O5.
    fn verify_insert(&self, key: &Key, at: usize) -> Result<(), Corrupt> {
        let open = self.sets.len() - 1;
        if self.guards().contains(Guards::NEIGHBOURS) {
            verify::neighbours(self.frame(), open, self.sets[open].keys(), at)?;
        }
        if self.guards().contains(Guards::DISJOINT) {
            for (number, set) in self.sets[..open].iter().enumerate() {
                verify::disjoint(self.frame(), number, set.keys(), key)?;
            }
        }
        Ok(())
    }

    fn covered_by(&self, key: &Key) -> Covered {
        let mut parts = Vec::new();
        for set in &self.sets {
            let first = set.keys.partition_point(|x| x.pos() <= key.start_pos());
            let under = set.keys[first..].iter().take_while(|x| x.start_pos() < key.pos());
            for x in under.filter(|x| x.size() > 0) {
                parts.push((x.start().max(key.start()), x.end().min(key.end()), x.dirty()));
            }
        }
        Covered { live: self.live, parts }
    }

    /// O6: sums over what was there before against the counters that the insertion moved.
    fn verify_sectors(&self, key: &Key, before: &Covered, moved: i64) -> Result<(), Corrupt> {
        let lost = |only_dirty: bool| -> u64 {
            let parts = before.parts.iter().filter(|(.., dirty)| *dirty || !only_dirty);
            parts.map(|(start, end, _)| end.min(&key.end()).saturating_sub(*start)).sum()
        };
        let size = u64::from(key.size());
        let live = (before.live, self.live);
        verify::sectors(self.frame(), key, "live sectors", live, (size, lost(false)))?;
        // Dirty sectors are counted elsewhere; an arbitrary base makes the difference comparable.
        let base = 1_u64 << 32;
        let added = if key.dirty() { size } else { 0 };
        let dirty = (base, base.saturating_add_signed(moved));
        verify::sectors(self.frame(), key, "dirty sectors", dirty, (added, lost(true)))
    }
}

fn delta(key: &Key, start: u64, sectors: i64) -> DirtyDelta {
    DirtyDelta { inode: key.inode(), start, sectors }
}

/// Whether `x` is the next unbroken piece of `old`, the key that is to be replaced.
fn still_there(x: &Key, key: &Key, old: &Key, found: u64) -> bool {
    let piece = old.start_pos() <= x.start_pos() && x.pos() <= old.pos();
    let unbroken = x.start() <= key.start() + found;
    if !piece || !unbroken || !x.same_kind(old) {
        return false;
    }
    match (x.ptr(), old.ptr()) {
        (Some(x_ptr), Some(old_ptr)) => {
            let ahead = (x.start() - old.start()) << 8;
            x_ptr.word() == old_ptr.word().wrapping_add(ahead)
        }
        (None, None) => true,
        _ => false,
    }
}

#[cfg(test)]
#[path = "insert_tests.rs"]
mod tests;
