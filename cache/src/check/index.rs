//! Checks 14 to 45: journal, prio chain, uuid table, tree.

use std::collections::{BTreeMap, BTreeSet};

use varve_block::{BlockDevice, DevId};

use super::Checker;
use crate::btree::{Node, staleness, usable_interior, verify};
use crate::effective::{ExtentMap, Mapped, Seen, overlay};
use crate::error::{Corrupt, Place};
use crate::format::{Bset, Bucket, CacheSuper, Key, Layout, NodeFrame, PageModel, Pos, UuidTable};
use crate::load::Loader;
use crate::ring::{Selected, gap, live, order_findings};
use crate::show::{self, Content, JournalShow};
use crate::walk::{Gens, Step, Walk, last_child};

/// A pointer further behind its bucket than this could be taken for a newer one.
const STALENESS_MAX: u8 = 96;
/// Findings of one kind per node: a shuffled node has hundreds of the same.
const PER_NODE: usize = 20;

/// What the index says, as far as it can be read.
pub(super) struct Index {
    pub layout: Layout,
    pub uuids: Option<UuidTable>,
    pub extents: ExtentMap,
    pub lost: Vec<(u32, Mapped)>,
    /// Buckets of journal, prio chain, uuid table and nodes.
    pub metadata: BTreeSet<Bucket>,
    /// The whole index was read: only then its sums mean something.
    pub whole: bool,
}

/// Who owns a metadata bucket.
#[derive(Default)]
struct Roles(BTreeMap<Bucket, &'static str>);

impl Checker<'_> {
    /// Everything behind the superblock of a started set.
    pub(super) async fn content<S: BlockDevice, B: BlockDevice>(
        &mut self,
        loader: &Loader<'_, S>,
        sb: CacheSuper,
        hdd: Option<&B>,
    ) {
        let Some(journal) = self.journal(loader, &sb).await else { return };
        let Some(index) = self.index(loader, &sb, &journal).await else { return };
        self.extents(loader, &index, hdd).await;
    }

    /// Checks 14 to 20.
    async fn journal<S: BlockDevice>(
        &mut self,
        loader: &Loader<'_, S>,
        sb: &CacheSuper,
    ) -> Option<Selected> {
        let dev = loader.dev();
        let ring = match loader.ring(sb, true).await {
            Ok(ring) => ring,
            Err(error) => {
                self.add_load(&dev, 14, "journal", Place::default(), error);
                return None;
            }
        };
        let Some(mut entries) = live(&ring) else {
            ring.broken.into_iter().for_each(|torn| self.add(&dev, torn));
            let place = Place::default();
            let none = Corrupt::row(14, "journal", place, "entries", 0, "at least one valid entry");
            self.add(&dev, none);
            return None;
        };
        let oldest = entries.first().map_or(0, |at| at.entry.seq);
        // What a torn write left of an entry that nobody needs any more is no finding.
        let needed = |torn: &Corrupt| torn.place.seq.is_none_or(|seq| seq >= oldest);
        ring.broken.into_iter().filter(needed).for_each(|torn| self.add(&dev, torn));
        let newest = entries.last().map(|at| at.entry.clone())?;
        if let Err(broken) = newest.check_seq() {
            self.add(&dev, broken);
        }
        let last_seq = newest.last_seq.min(newest.seq);
        for broken in order_findings(&entries, &ring.previous_lap, last_seq) {
            self.add(&dev, broken);
        }
        entries.dedup_by_key(|at| at.entry.seq);
        if let Some(missing) = gap(&entries, last_seq, sb.discard()) {
            self.add(&dev, missing);
        }
        for at in &mut entries {
            let entry = &mut at.entry;
            let sound = |(index, key): (usize, &_)| entry.check_key(&sb.layout, index, key).err();
            let broken: Vec<Corrupt> = entry.keys.iter().enumerate().filter_map(sound).collect();
            if !broken.is_empty() {
                broken.into_iter().for_each(|broken| self.add(&dev, broken));
                entry.keys.clear();
            }
        }
        Some(Selected { entries })
    }

    /// Checks 21 to 26, then the tree.
    async fn index<S: BlockDevice>(
        &mut self,
        loader: &Loader<'_, S>,
        sb: &CacheSuper,
        journal: &Selected,
    ) -> Option<Index> {
        let dev = loader.dev();
        let newest = &journal.newest().entry;
        let mut roles = Roles::default();
        for bucket in sb.journal() {
            roles.0.insert(bucket, "journal");
        }
        let (layout, gens) = self.prios(loader, sb, journal, &mut roles).await;
        let uuids = match newest.check_uuid_bucket(&layout) {
            Err(broken) => {
                self.add(&dev, broken);
                None
            }
            Ok(()) => self.uuids(loader, journal, &layout, &mut roles).await,
        };
        if let Some(uuids) = &uuids {
            self.journal_volumes(&dev, journal, uuids);
        }
        if let Err(broken) = newest.check_root(&layout) {
            self.add(&dev, broken);
            return None;
        }
        let root = (newest.btree_root, newest.btree_level);
        let walk = Walk::new(loader, layout, sb.set_magic(), gens, root).unguarded();
        let mut index = Index {
            layout,
            uuids,
            extents: ExtentMap::default(),
            lost: Vec::new(),
            metadata: BTreeSet::new(),
            whole: true,
        };
        let (mut gens, mut seen) = self.tree(&dev, walk, &mut index, &mut roles).await;
        overlay(&mut index.extents, &mut gens, journal, &layout, &mut seen);
        index.lost = index.extents.drop_stale(&layout, &gens);
        index.metadata = roles.0.into_keys().collect();
        let uuids = index.uuids.clone().unwrap_or_else(|| UuidTable::empty(0));
        self.report.content = Some(Content {
            journal: JournalShow {
                buckets: sb.journal_buckets,
                seq: newest.seq,
                last_seq: newest.last_seq,
                entries: seen.journal_entries,
                keys: seen.journal_keys,
            },
            tree: show::tree(&layout, newest, seen),
            buckets: show::buckets(&layout, &index.metadata, &index.extents),
            volumes: show::volumes(&uuids, &index.extents, &index.lost),
        });
        Some(index)
    }

    /// Checks 23 and 24. Without a chain the pointers themselves must tell the generations.
    async fn prios<S: BlockDevice>(
        &mut self,
        loader: &Loader<'_, S>,
        sb: &CacheSuper,
        journal: &Selected,
        roles: &mut Roles,
    ) -> (Layout, Gens) {
        let dev = loader.dev();
        let head = journal.newest().entry.prio_bucket;
        let chain = match loader.prios(&sb.layout, sb.set_magic(), head).await {
            Ok(chain) => chain,
            Err(error) => {
                self.add_load(&dev, 23, "prio set", Place::bucket(head), error);
                return (sb.layout, Gens::default());
            }
        };
        if chain.layout.pages == PageModel::LARGE {
            tracing::info!(dev = %dev, "written by a kernel with 64 KiB pages");
        }
        for (bucket, (seq, version)) in chain.buckets.iter().zip(&chain.seqs) {
            roles.claim(self, &dev, *bucket, "prio set");
            let first = chain.seqs.first().map_or(0, |(seq, _)| *seq);
            let place = Place::bucket(*bucket);
            if *seq != first {
                self.add(&dev, Corrupt::row(24, "prio set", place, "seq", seq, first));
            }
            if *version != 0 {
                self.add(&dev, Corrupt::row(24, "prio set", place, "version", version, 0));
            }
        }
        (chain.layout, Gens::new(&chain.prios))
    }

    /// Checks 26 and 27.
    async fn uuids<S: BlockDevice>(
        &mut self,
        loader: &Loader<'_, S>,
        journal: &Selected,
        layout: &Layout,
        roles: &mut Roles,
    ) -> Option<UuidTable> {
        let dev = loader.dev();
        let entry = &journal.newest().entry;
        let bucket = layout.bucket_of(entry.uuid_bucket.pointer().offset());
        roles.claim(self, &dev, bucket, "uuid table");
        let place = Place::bucket(bucket);
        match loader.uuids(entry).await {
            Ok(uuids) => {
                uuids.findings(place).into_iter().for_each(|found| self.add(&dev, found));
                self.slot_of_backing(&dev, &uuids);
                Some(uuids)
            }
            Err(error) => {
                self.add_load(&dev, 22, "uuid table", place, error);
                None
            }
        }
    }

    /// The other half of check 20, harmless: such keys are replayed and never asked for.
    fn journal_volumes(&mut self, dev: &DevId, journal: &Selected, uuids: &UuidTable) {
        let mut strangers = BTreeMap::new();
        for (at, key) in journal.keys() {
            if !uuids.get(key.inode()).is_some_and(|slot| slot.in_use()) {
                strangers.entry(key.inode()).or_insert((at, *key));
            }
        }
        for (inode, (at, key)) in strangers {
            let place = Place { key: Some(key), ..at.place() };
            let corrupt = Corrupt::row(20, "journal entry", place, "inode", inode, "a slot in use");
            self.note(dev, corrupt);
        }
    }

    /// Checks 25 and 28 to 45.
    async fn tree<S: BlockDevice>(
        &mut self,
        dev: &DevId,
        walk: Walk<'_, '_, S>,
        index: &mut Index,
        roles: &mut Roles,
    ) -> (Gens, Seen) {
        let mut walk = walk;
        let mut seen = Seen::default();
        let layout = index.layout;
        while let Some(step) = walk.next().await {
            let Step { frame, lower, node, bytes } = step;
            let place = frame.place(0);
            let node = match node {
                Ok(node) => node,
                Err(error) => {
                    index.whole = false;
                    self.add_load(dev, 29, frame.what(), place, error);
                    continue;
                }
            };
            roles.claim(self, dev, layout.bucket_of(frame.sector), "btree node");
            seen.nodes += 1;
            if let Ok(sets) = frame.parse(&bytes) {
                self.sets(dev, &frame, lower, &layout, &sets);
            }
            self.merged(dev, &node, &layout, &walk.gens);
            if node.level() == 0 {
                for key in node.iter() {
                    seen.tree_keys += 1;
                    index.extents.put(&key);
                }
            }
        }
        (walk.gens, seen)
    }

    /// Checks 33 to 38, 41 and 42, which look at the sets as they were written.
    fn sets(&mut self, dev: &DevId, frame: &NodeFrame, lower: Pos, layout: &Layout, sets: &[Bset]) {
        for (number, set) in sets.iter().enumerate() {
            let place = frame.place(set.block).bset(number);
            self.key_notes(dev, frame, place, set);
            let keys = &set.keys;
            self.some(dev, verify::keys(frame, place, layout, keys));
            self.some(dev, verify::set_order(frame, place, keys));
            let above = verify::above(frame, keys, lower);
            self.some(
                dev,
                above.map(|mut broken| {
                    broken.place.bset = Some(number);
                    broken
                }),
            );
        }
    }

    fn some(&mut self, dev: &DevId, findings: impl Iterator<Item = Corrupt>) {
        findings.take(PER_NODE).for_each(|broken| self.add(dev, broken));
    }

    /// Checks 33 and 34.
    fn key_notes(&mut self, dev: &DevId, frame: &NodeFrame, place: Place, set: &Bset) {
        let what = frame.what();
        let mut notes = Vec::new();
        for (index, key) in set.keys.iter().enumerate() {
            let place = place.key(index, *key);
            if !key.reserved_bits_clean() {
                let found = crate::error::Hex(key.header_words().0);
                notes.push(Corrupt::row(33, what, place, "high", found, "reserved bits clear"));
            }
            if key.ptr().is_some_and(|ptr| !ptr.available() && !ptr.is_check()) {
                let dev = key.pointer().dev();
                notes.push(Corrupt::row(34, what, place, "dev", dev, "0, or 4095 of a check key"));
            }
            if set.many_pointers.contains(&index) {
                notes.push(Corrupt::row(34, what, place, "ptrs", "several", "0 or 1"));
            }
        }
        notes.into_iter().take(PER_NODE).for_each(|note| self.add(dev, note));
    }

    /// Checks 39, 40, 43 and 45, which look at the node as a whole.
    fn merged(&mut self, dev: &DevId, node: &Node, layout: &Layout, gens: &Gens) {
        let frame = node.frame();
        let mut keys: Vec<_> = node.iter().collect();
        if node.level() == 0 {
            // A set in disorder (37) comes out of the merge in disorder; what remains to be said is
            // where extents of such a node cover each other.
            keys.sort_by_key(Key::start_pos);
        }
        self.some(dev, verify::merged_order(frame, &keys));
        if node.level() > 0 {
            self.some(dev, verify::duplicates(frame, &keys, layout, gens).into_iter());
            self.some(dev, last_child(node, layout, gens).err().into_iter());
        }
        let old = keys.iter().enumerate().filter_map(|(index, key)| {
            let ptr = key.ptr().filter(|ptr| ptr.available())?;
            let behind = staleness(ptr, layout, gens);
            let place = frame.place(0).key(index, *key);
            (behind > STALENESS_MAX)
                .then(|| Corrupt::row(45, frame.what(), place, "gen", behind, "at most 96 behind"))
        });
        self.some(dev, old);
        // A child that is stale, with nothing in its place, is a hole in the index.
        let live = keys.iter().any(|key| usable_interior(key, layout, gens));
        if node.level() > 0 && !live && !keys.is_empty() {
            let place = frame.place(0);
            let found = "only stale children";
            self.add(dev, Corrupt::row(28, frame.what(), place, "gen", found, "a live child"));
        }
    }
}

impl Roles {
    /// Check 25.
    fn claim(
        &mut self,
        checker: &mut Checker<'_>,
        dev: &DevId,
        bucket: Bucket,
        role: &'static str,
    ) {
        if let Some(other) = self.0.insert(bucket, role) {
            let place = Place::bucket(bucket);
            let expected = format!("only the {other}");
            checker.add(dev, Corrupt::row(25, "bucket", place, "role", role, expected));
        }
    }
}
