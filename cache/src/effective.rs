//! What a set holds, seen through its journal: the tree's extents overlaid with the keys that a
//! recovery would replay, without writing a byte.
//!
//! ```text
//! superblock -> journal (newest entry) -> prio chain -> generations
//!                                      -> root -> tree, generations raised on the way
//!                                      -> uuid table
//! tree extents, then journal keys oldest first on top (an invalidation removes coverage),
//! then what the generations say is gone: clean, it was evicted; dirty, it is lost
//! ```

use std::collections::{BTreeMap, BTreeSet};

use varve_block::BlockDevice;

use crate::btree::staleness;
use crate::error::LoadError;
use crate::format::{Bucket, CacheSuper, JournalEntry, Key, Layout, Pos, Ptr, UuidTable};
use crate::load::{Loader, PrioChain};
use crate::ring::Selected;
use crate::walk::{Gens, Walk, verify_node};

/// One stretch of a volume in the cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapped {
    /// In key space, as all positions here: sectors of the backing *device*.
    pub start: u64,
    pub end: u64,
    pub ptr: Ptr,
    pub dirty: bool,
}

impl Mapped {
    /// Sector of the cache device that holds `at`.
    pub fn sector(&self, at: u64) -> u64 {
        self.ptr.advanced(at - self.start).offset()
    }

    pub fn sectors(&self) -> u64 {
        self.end - self.start
    }
}

/// Extents of all volumes, none covering another.
#[derive(Clone, Default, Debug)]
pub struct ExtentMap {
    by_start: BTreeMap<Pos, Mapped>,
}

impl ExtentMap {
    /// Lays `key` over what is there. A key without a pointer removes coverage.
    pub(crate) fn put(&mut self, key: &Key) {
        // The checker lays out damaged keys too; what has no place in the key space covers nothing.
        if key.size() == 0 || u64::from(key.size()) > key.end() || key.end() > Key::OFFSET_MAX {
            return;
        }
        self.cut(key.inode(), key.start(), key.end());
        if let Some(ptr) = key.ptr().filter(|ptr| ptr.available()) {
            let mapped = Mapped { start: key.start(), end: key.end(), ptr, dirty: key.dirty() };
            self.by_start.insert(key.start_pos(), mapped);
        }
    }

    /// Removes coverage of `[start, end)`.
    pub(crate) fn cut(&mut self, inode: u32, start: u64, end: u64) {
        let from = self.first_at(inode, start).map_or(start, |mapped| mapped.start);
        let range = Pos::new(inode, from)..Pos::new(inode, end);
        let hit: Vec<Mapped> = self.by_start.range(range).map(|(_, mapped)| *mapped).collect();
        for old in hit.into_iter().filter(|old| old.end > start) {
            self.by_start.remove(&Pos::new(inode, old.start));
            if old.start < start {
                self.by_start.insert(Pos::new(inode, old.start), Mapped { end: start, ..old });
            }
            if end < old.end {
                let rest = Mapped { start: end, ptr: old.ptr.advanced(end - old.start), ..old };
                self.by_start.insert(Pos::new(inode, end), rest);
            }
        }
    }

    /// Removes what is clean of `[start, end)`: the backing device has it too.
    pub(crate) fn cut_clean(&mut self, inode: u32, start: u64, end: u64) {
        let clean: Vec<(u64, u64)> = self
            .range(inode, start, end)
            .filter(|mapped| !mapped.dirty)
            .map(|mapped| (mapped.start.max(start), mapped.end.min(end)))
            .collect();
        for (start, end) in clean {
            self.cut(inode, start, end);
        }
    }

    /// The extent that covers `at`.
    fn first_at(&self, inode: u32, at: u64) -> Option<&Mapped> {
        let upto = Pos::ZERO.max(Pos::new(inode, 0))..=Pos::new(inode, at);
        self.by_start.range(upto).next_back().map(|(_, mapped)| mapped).filter(|m| m.end > at)
    }

    /// Extents of a volume that touch `[start, end)`, whole, in order.
    pub fn range(&self, inode: u32, start: u64, end: u64) -> impl Iterator<Item = &Mapped> {
        let from = self.first_at(inode, start).map_or(start, |mapped| mapped.start);
        let end = end.max(from);
        self.by_start.range(Pos::new(inode, from)..Pos::new(inode, end)).map(|(_, mapped)| mapped)
    }

    /// All extents with their volume, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Mapped)> {
        self.by_start.iter().map(|(pos, mapped)| (pos.inode, mapped))
    }

    pub fn len(&self) -> usize {
        self.by_start.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_start.is_empty()
    }

    /// Takes out what its bucket no longer holds; the dirty part of it is returned.
    pub(crate) fn drop_stale(&mut self, layout: &Layout, gens: &Gens) -> Vec<(u32, Mapped)> {
        let mut lost = Vec::new();
        self.by_start.retain(|pos, mapped| {
            let gone = staleness(mapped.ptr, layout, gens) > 0;
            if gone && mapped.dirty {
                lost.push((pos.inode, *mapped));
            }
            !gone
        });
        lost
    }
}

/// What a set holds.
#[derive(Clone, Debug)]
pub(crate) struct Effective {
    pub superblock: CacheSuper,
    /// The newest journal entry: roots of everything.
    pub entry: JournalEntry,
    pub uuids: UuidTable,
    pub extents: ExtentMap,
    /// Dirty extents whose bucket was reused: this data is gone (46).
    pub lost: Vec<(u32, Mapped)>,
    /// Buckets of the journal, the prio chain, the uuid table and the tree.
    pub metadata: BTreeSet<Bucket>,
}

/// Sizes and counters of the way there.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Seen {
    pub nodes: u64,
    pub tree_keys: u64,
    pub journal_entries: u64,
    pub journal_keys: u64,
}

impl Effective {
    /// Reads a set that has content. The first broken rule ends it: what cannot be proven is not
    /// served.
    pub(crate) async fn load<D: BlockDevice>(
        loader: &Loader<'_, D>,
        superblock: CacheSuper,
    ) -> Result<(Effective, Seen), LoadError> {
        let set = superblock.set_uuid;
        Self::load_set(loader, superblock).await.map_err(|error| match error {
            LoadError::Corrupt(corrupt) => corrupt.in_set(set).into(),
            device => device,
        })
    }

    async fn load_set<D: BlockDevice>(
        loader: &Loader<'_, D>,
        superblock: CacheSuper,
    ) -> Result<(Effective, Seen), LoadError> {
        let journal = loader.journal(&superblock).await?;
        let entry = journal.newest().entry.clone();
        let magic = superblock.set_magic();
        let chain = loader.prios(&superblock.layout, magic, entry.prio_bucket).await?;
        let PrioChain { prios, layout, buckets, .. } = chain;
        let mut superblock = superblock;
        superblock.layout = layout;
        let uuids = loader.uuids(&entry).await?;

        let root = (entry.btree_root, entry.btree_level);
        let mut walk = Walk::new(loader, layout, magic, Gens::new(&prios), root);
        let mut extents = ExtentMap::default();
        let mut seen = Seen::default();
        while let Some(step) = walk.next().await {
            let node = step.node?;
            verify_node(&node, step.lower, &layout, &walk.gens)?;
            seen.nodes += 1;
            if node.level() == 0 {
                for key in node.iter() {
                    seen.tree_keys += 1;
                    extents.put(&key);
                }
            }
        }
        let mut metadata: BTreeSet<Bucket> = superblock.journal().chain(buckets).collect();
        metadata.insert(layout.bucket_of(entry.uuid_bucket.pointer().offset()));
        metadata.extend(walk.node_buckets());
        let mut gens = walk.gens;
        overlay(&mut extents, &mut gens, &journal, &layout, &mut seen);
        let lost = extents.drop_stale(&layout, &gens);
        Ok((Effective { superblock, entry, uuids, extents, lost, metadata }, seen))
    }
}

/// Replays the journal onto the map.
pub(crate) fn overlay(
    extents: &mut ExtentMap,
    gens: &mut Gens,
    journal: &Selected,
    layout: &Layout,
    seen: &mut Seen,
) {
    seen.journal_entries = journal.entries.len() as u64;
    for (_, key) in journal.keys() {
        seen.journal_keys += 1;
        gens.apply(key, layout);
        extents.put(key);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_map_is_what_an_array_of_sectors_says(
            keys in prop::collection::vec((0u32..2, 0u64..60, 1u64..20, any::<bool>()), 1..40)
        ) {
            let mut map = ExtentMap::default();
            let mut array = BTreeMap::new();
            for (n, (inode, start, len, hole)) in (1u64..).zip(keys) {
                let key = if hole {
                    Key::invalidation(inode, start, start + len)
                } else {
                    Key::extent(inode, start, start + len, n % 2 == 0, Ptr::new(n * 1000, 0))
                };
                map.put(&key);
                for sector in start..start + len {
                    match hole {
                        true => array.remove(&(inode, sector)),
                        false => array.insert((inode, sector), n * 1000 + sector - start),
                    };
                }
            }
            let mut seen = BTreeMap::new();
            for (inode, mapped) in map.iter() {
                for at in mapped.start..mapped.end {
                    prop_assert!(seen.insert((inode, at), mapped.sector(at)).is_none());
                }
            }
            prop_assert_eq!(&seen, &array);
            for from in 0..80 {
                let touched: Vec<_> = map.range(0, from, from + 7).collect();
                let want = array.range((0, from)..(0, from + 7)).count() as u64;
                let have: u64 = touched
                    .iter()
                    .map(|m| m.end.min(from + 7) - m.start.max(from))
                    .sum();
                prop_assert_eq!(have, want);
            }
        }
    }
}
