//! Opening a cache set: its first start, or what a crash (or a stop; there is no difference) left.
//!
//! ```text
//! journal ring -> newest entry -> prio chain -> generations
//!                              -> root -> the whole tree: true generations, what every bucket holds
//!                              -> uuid table
//! keys of the open entries, overlaid in order, go into the tree where it says something else
//! leaves written, entry written: the set runs
//! what is in doubt dropped ([`intent`](crate::intent)), superblock written
//! ```
//!
//! Nothing is written before everything has been read and checked: a set that is refused is left as
//! it was. Until the journal names what replay made of the tree, nothing that the old root leads to
//! is reused; a crash in here starts over from the same place.

use std::collections::BTreeSet;
use std::rc::Rc;

use varve_block::{BlockDevice, BufPool, Extent, Rt, Sector, Sectors, Zero};

use crate::alloc::{Buckets, Role};
use crate::btree::cache::NodeCell;
use crate::btree::tree::{Log, end_in};
use crate::btree::{Node, Piece, fixup_merge, staleness};
use crate::error::{Corrupt, LoadError, Place};
use crate::format::{Bucket, CacheSuper, Key, Layout, Pos, Prio, UuidTable};
use crate::intent::{self, Marked, Owner};
use crate::journal::Journal;
use crate::journal::ring::Ring;
use crate::load::Loader;
use crate::open::{OpenError, OpenOptions};
use crate::ring::{Located, Selected, select};
use crate::set::{Parts, Roots, Set};
use crate::walk::{Gens, Walk, verify_node};

/// Opens the set on `ssd`, whose superblock is `sb`. `accept` looks at the uuid table before anything
/// is written, and may refuse.
pub(crate) async fn open_set<S: BlockDevice>(
    rt: &Rt,
    ssd: S,
    sb: CacheSuper,
    options: &OpenOptions,
    accept: impl FnOnce(&UuidTable) -> Result<(), OpenError>,
) -> Result<Rc<Set<S>>, OpenError> {
    let dev = ssd.geometry().dev;
    if let Some(why) = sb.read_only_because() {
        return Err(OpenError::ReadOnly { dev, why });
    }
    if sb.layout.bucket_size / sb.layout.block_size < 2 {
        return Err(OpenError::ReadOnly { dev, why: "its buckets are one block long" });
    }
    if sb.sync() {
        recover(rt, ssd, sb, options, accept).await
    } else {
        first_start(rt, ssd, sb, options).await
    }
}

/// Gives a formatted device its first content. A crash before the superblock is written leaves SYNC
/// clear, and the next start begins again.
async fn first_start<S: BlockDevice>(
    rt: &Rt,
    ssd: S,
    mut sb: CacheSuper,
    options: &OpenOptions,
) -> Result<Rc<Set<S>>, OpenError> {
    let layout = sb.layout;
    sb.journal_buckets = layout.njournal();
    let ring = Ring::fresh(&layout, sb.journal_buckets, crate::journal::entry_blocks_max(&layout));
    let mut buckets = Buckets::new(&layout, &[]);
    journal_buckets(&sb).for_each(|bucket| buckets.set_meta(bucket));
    // Entries of an older set with the same uuid would count as newer than ours.
    let start = Sector(layout.bucket_start(Bucket(layout.first_bucket)));
    let journal =
        Extent::new(start, Sectors(u64::from(sb.journal_buckets) * u64::from(layout.bucket_size)));
    ssd.write_zeroes(journal, Zero { may_unmap: true, ..Zero::default() }).await?;
    if intent::has_room(&layout) {
        let page = Extent::new(Sector(intent::PAGE_SECTOR), Sectors(intent::PAGE_SECTORS.into()));
        ssd.write_zeroes(page, Zero::default()).await?;
    }
    let parts = Parts {
        sb,
        buckets,
        journal: Journal::new(&layout, ring, 0, 1),
        roots: Roots { uuid_bucket: Key::ZERO, prio_chain: Vec::new(), prio_seq: 0 },
        uuids: UuidTable::empty(layout.nr_uuids()),
        node_cache: options.node_cache,
    };
    let set = Set::assemble(rt, ssd, parts);
    set.fill_from_unused(&BTreeSet::new());
    let root = set.take_bucket()?;
    set.plant(root).await?;
    set.write_uuid_table().await?;
    set.write_prios().await?;
    set.settle().await?;
    let (journal, now) = (set.superblock().journal_buckets, set.unix_time());
    set.update_super(|sb| {
        sb.journal_buckets = journal;
        sb.last_mount = now;
        sb.set_sync(true);
    })
    .await?;
    tracing::info!(set = %set.uuid, dev = %set.geometry.dev, "cache set started for the first time");
    Ok(set)
}

/// What the devices say, read and checked, nothing written.
struct Found {
    buckets: Buckets,
    nodes: Vec<Node>,
    dirty: Vec<(u32, u64)>,
    node_count: u64,
    /// What replay has to make of the tree: the keys of the open entries, the later over the earlier.
    replay: Vec<Key>,
    in_journal: BTreeSet<Bucket>,
}

async fn recover<S: BlockDevice>(
    rt: &Rt,
    ssd: S,
    sb: CacheSuper,
    options: &OpenOptions,
    accept: impl FnOnce(&UuidTable) -> Result<(), OpenError>,
) -> Result<Rc<Set<S>>, OpenError> {
    let dev = ssd.geometry().dev;
    let uuid = sb.set_uuid;
    let (parts, found, entries) = read_set(&ssd, sb, options).await.map_err(|e| match e {
        LoadError::Device(e) => OpenError::Device(e),
        LoadError::Corrupt(source) => OpenError::Damaged { dev, source: source.in_set(uuid) },
    })?;
    let Some((root_key, root_level)) =
        entries.last().map(|at| (at.entry.btree_root, at.entry.btree_level))
    else {
        unreachable!("a selection of entries is never empty");
    };
    accept(&parts.uuids)?;
    let range = entries[0].entry.seq..entries[entries.len() - 1].entry.seq + 1;
    let set = Set::assemble(rt, ssd, parts);
    set.nodes.total.set(found.node_count);
    for (inode, sectors) in &found.dirty {
        set.dirty.borrow_mut().insert(*inode, *sectors);
    }
    set.adopt_nodes(found.nodes, root_key, root_level).await?;
    set.fill_from_unused(&found.in_journal);
    let replayed = found.replay.len();
    for key in &found.replay {
        set.replay(*key, range.start).await?;
    }
    set.journal.replayed(range);
    for leaf in set.nodes.all_unwritten() {
        set.write_node(&leaf).await?;
    }
    set.settle().await?;
    let nodes = set.nodes.total.get();
    tracing::info!(set = %set.uuid, dev = %set.geometry.dev, nodes, replayed, "cache set recovered");
    Ok(set)
}

/// The reading half of recovery.
async fn read_set<S: BlockDevice>(
    ssd: &S,
    sb: CacheSuper,
    options: &OpenOptions,
) -> Result<(Parts, Found, Vec<Located>), LoadError> {
    let pool = BufPool::new(0);
    let loader = Loader::new(ssd, &pool);
    let ring = loader.ring(&sb, false).await?;
    let Selected { entries } = select(&ring, sb.discard())?;
    let newest = entries.last().ok_or_else(no_entry)?;
    newest.entry.check(&sb.layout)?;
    // D14: all of them, before the first is used.
    entries.iter().try_for_each(|at| at.entry.check_keys(&sb.layout))?;
    let magic = sb.set_magic();
    let chain = loader.prios(&sb.layout, magic, newest.entry.prio_bucket).await?;
    let mut sb = sb;
    sb.layout = chain.layout;
    let layout = sb.layout;
    let uuids = loader.uuids(&newest.entry).await?;
    let mut found = walk_tree(&loader, &sb, &entries, &chain.prios, options.node_cache).await?;
    for bucket in journal_buckets(&sb).chain(chain.buckets.iter().copied()) {
        claim(&mut found.buckets, bucket)?;
    }
    claim(&mut found.buckets, layout.bucket_of(newest.entry.uuid_bucket.pointer().offset()))?;
    if let Some(bucket) = found.buckets.overfull() {
        let (live, _) = found.buckets.sectors(bucket);
        let place = Place::bucket(bucket);
        let expected = format!("at most {}", layout.bucket_size);
        return Err(Corrupt::row(50, "bucket", place, "live sectors", live, expected).into());
    }
    let parts = Parts {
        journal: found_journal(&ring.entries, newest, &sb),
        roots: Roots {
            uuid_bucket: newest.entry.uuid_bucket,
            prio_chain: chain.buckets,
            prio_seq: chain.seqs.iter().map(|(seq, _)| *seq).max().unwrap_or(0),
        },
        buckets: found.buckets.clone(),
        uuids,
        node_cache: options.node_cache,
        sb,
    };
    Ok((parts, found, entries))
}

fn journal_buckets(sb: &CacheSuper) -> impl Iterator<Item = Bucket> + use<> {
    let first = sb.layout.first_bucket;
    (first..first + u64::from(sb.journal_buckets)).map(Bucket)
}

fn no_entry() -> Corrupt {
    Corrupt::row(14, "journal", Place::default(), "entries", 0, "at least one valid entry")
}

/// Metadata live alone (51).
fn claim(buckets: &mut Buckets, bucket: Bucket) -> Result<(), Corrupt> {
    let (live, _) = buckets.sectors(bucket);
    if live > 0 || buckets.role(bucket) == Role::Meta {
        let found = format!("{live} sectors of data, or other metadata");
        return Err(Corrupt::row(51, "bucket", Place::bucket(bucket), "role", found, "one role"));
    }
    buckets.set_meta(bucket);
    Ok(())
}

/// Passes over the tree before its generations are called contradictory.
const PASSES_MAX: u32 = 4;

/// Reads the tree as often as it takes to know every generation before anything is counted: once,
/// unless a pointer seen late was newer than one that had been counted.
async fn walk_tree<S: BlockDevice>(
    loader: &Loader<'_, S>,
    sb: &CacheSuper,
    entries: &[Located],
    prios: &[Prio],
    keep_bytes: usize,
) -> Result<Found, LoadError> {
    let layout = sb.layout;
    let newest = &entries[entries.len() - 1].entry;
    let root = (newest.btree_root, newest.btree_level);
    let mut prios = prios.to_vec();
    for _ in 0..PASSES_MAX {
        let mut found = Found::new(Buckets::new(&layout, &prios));
        let mut walk = Walk::new(loader, layout, sb.set_magic(), Gens::new(&prios), root);
        found.buckets.recover_pointer(root.0.pointer());
        let mut kept = 0;
        while let Some(step) = walk.next().await {
            let node = step.node?;
            verify_node(&node, step.lower, &layout, &walk.gens)?;
            found.count(&node);
            kept += node.frame().bytes();
            if kept <= keep_bytes {
                found.nodes.push(node);
            }
        }
        for key in entries.iter().flat_map(|at| &at.entry.keys) {
            if let Some(ptr) = key.ptr() {
                found.buckets.recover_pointer(ptr);
                found.in_journal.insert(layout.bucket_of(ptr.offset()));
            }
        }
        if !found.buckets.voided() {
            walk.node_buckets().iter().try_for_each(|b| claim(&mut found.buckets, *b))?;
            found.replay = overlay(entries, &layout, &found.buckets);
            return Ok(found);
        }
        for (prio, known) in prios.iter_mut().zip(found.buckets.prios()) {
            prio.generation = known.generation;
        }
    }
    let expected = "an order among the generations of each bucket";
    let place = Place::default();
    Err(Corrupt::row(45, "tree", place, "generations", "pointers newer than each other", expected)
        .into())
}

impl Found {
    fn new(buckets: Buckets) -> Found {
        Found {
            buckets,
            nodes: Vec::new(),
            dirty: Vec::new(),
            node_count: 0,
            replay: Vec::new(),
            in_journal: BTreeSet::new(),
        }
    }

    fn count(&mut self, node: &Node) {
        self.node_count += 1;
        for key in node.iter() {
            if let Some(ptr) = key.ptr().filter(|ptr| ptr.available()) {
                self.buckets.recover_pointer(ptr);
            }
        }
        if node.level() > 0 {
            return;
        }
        for key in node.iter().filter(|key| key.size() > 0) {
            self.buckets.recover_key(&key);
            let Some(ptr) = key.ptr().filter(|ptr| ptr.available() && key.dirty()) else {
                continue;
            };
            if self.buckets.is_current(ptr) {
                let sectors = u64::from(key.size());
                match self.dirty.iter_mut().find(|(inode, _)| *inode == key.inode()) {
                    Some((_, dirty)) => *dirty += sectors,
                    None => self.dirty.push((key.inode(), sectors)),
                }
            } else {
                tracing::warn!(%key, "dirty data lost: their bucket was reused");
            }
        }
    }
}

/// What the open entries come to, newest over oldest. A key whose bucket was reused since is evicted
/// (or was written back before): it only takes coverage away.
fn overlay(entries: &[Located], layout: &Layout, buckets: &Buckets) -> Vec<Key> {
    let keys: Vec<Key> = entries.iter().flat_map(|at| at.entry.keys.iter().copied()).collect();
    let lists: Vec<&[Key]> = keys.iter().map(std::slice::from_ref).collect();
    let evicted = |key: Key| match key.ptr() {
        Some(ptr) if staleness(ptr, layout, buckets) > 0 => {
            Key::invalidation(key.inode(), key.start(), key.end())
        }
        _ => key,
    };
    fixup_merge(&lists, layout).into_iter().map(evicted).collect()
}

/// The ring as it was found.
fn found_journal(all: &[Located], newest: &Located, sb: &CacheSuper) -> Journal {
    let layout = &sb.layout;
    let mut seqs = vec![0u64; usize::from(sb.journal_buckets)];
    for at in all {
        seqs[at.ring] = seqs[at.ring].max(at.entry.seq);
    }
    let (seq, last_seq) = (newest.entry.seq, newest.entry.last_seq);
    let fresh = Ring::fresh(layout, sb.journal_buckets, crate::journal::entry_blocks_max(layout));
    let start = layout.bucket_start(Bucket(layout.first_bucket + newest.ring as u64));
    let block = (newest.sector - start) / u64::from(layout.block_size);
    let blocks = newest.entry.bytes().div_ceil(layout.block_bytes());
    let behind = usize::try_from(block).unwrap_or(usize::MAX).saturating_add(blocks);
    let ring = fresh.found(seqs, newest.ring, behind, last_seq);
    Journal::new(layout, ring, seq, last_seq.max(all_first(all, last_seq)))
}

/// The oldest entry from `last_seq` on that is there: with discard on, the first may be gone.
fn all_first(all: &[Located], last_seq: u64) -> u64 {
    let seqs = all.iter().map(|at| at.entry.seq).filter(|seq| *seq >= last_seq);
    seqs.min().unwrap_or(last_seq)
}

impl<S: BlockDevice> Set<S> {
    /// Nodes that the walk has read and checked.
    async fn adopt_nodes(
        self: &Rc<Self>,
        nodes: Vec<Node>,
        root_key: Key,
        root_level: u8,
    ) -> varve_block::Result<()> {
        for node in nodes {
            let cell = NodeCell::new(node);
            if cell.key == root_key {
                self.nodes.set_root(&cell);
            }
            self.nodes.insert(&cell);
        }
        if self.nodes.has_root() {
            return Ok(());
        }
        let frame = crate::format::NodeFrame::new(root_key, root_level, self.magic, &self.layout);
        let bytes = self.read_meta(frame.sector, root_key.size()).await?;
        let node = self.check_node(frame, &bytes, Pos::ZERO).map_err(|c| self.broken(c))?;
        let cell = NodeCell::new(node);
        self.nodes.set_root(&cell);
        self.nodes.insert(&cell);
        Ok(())
    }

    /// Buckets that nothing on disk names are free without further ado, enough to begin with.
    fn fill_from_unused(&self, in_journal: &BTreeSet<Bucket>) {
        let mut buckets = self.buckets.borrow_mut();
        let unused = buckets.unused().into_iter().filter(|bucket| !in_journal.contains(bucket));
        for bucket in unused.take(self.alloc.enough()) {
            buckets.push_untouched(bucket);
        }
    }

    /// Inserts a key of the journal where the tree says something else.
    async fn replay(self: &Rc<Self>, key: Key, pin: u64) -> varve_block::Result<()> {
        let inode = key.inode();
        let mut at = key.start();
        while at < key.end() {
            let leaf = self.leaf(Pos::new(inode, at)).await?;
            let here = end_in(&leaf, inode, key.end());
            let mut part = key;
            part.trim_front(at);
            part.trim_back(here);
            at = here;
            if !self.says(&leaf.node.borrow(), &part).map_err(|c| self.broken(c))? {
                self.insert(part, Log::Replay(pin), 0).await?;
            }
        }
        Ok(())
    }

    /// Whether a leaf says already what `part` says.
    fn says(&self, node: &Node, part: &Key) -> Result<bool, Corrupt> {
        let buckets = self.buckets.borrow();
        let (inode, start, end) = (part.inode(), part.start(), part.end());
        let Some(ptr) = part.ptr() else {
            // An invalidation: also what is stale for now must be covered.
            let keys = node.iter_from(Some(Pos::new(inode, start)))?;
            let mut under = keys.take_while(|key| key.start_pos() < part.pos() || key.size() == 0);
            return Ok(!under.any(|key| {
                key.size() > 0
                    && key.start_pos() < part.pos()
                    && key.ptr().is_some_and(|ptr| ptr.available() && !buckets.durably_stale(ptr))
            }));
        };
        for piece in node.pieces(inode, start, end, &self.layout, &*buckets)? {
            let Piece::Hit { start: at, key, .. } = piece else { return Ok(false) };
            let same = key.pointer().advanced(at - key.start()) == ptr.advanced(at - start);
            if !same || key.dirty() != part.dirty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Drops what is clean in regions where a power cut may have left the devices in disagreement.
    /// Durable when it returns, and the marks are gone. `owner`: as the superblock was found.
    pub(crate) async fn distrust(self: &Rc<Self>, owner: Owner) -> varve_block::Result<()> {
        let has_room = intent::has_room(&self.layout);
        let marked = match has_room {
            true => {
                let page = self.read_meta(intent::PAGE_SECTOR, intent::PAGE_SECTORS).await?;
                intent::parse(&page, owner)
            }
            false => Marked::Everything,
        };
        if marked == Marked::Nothing {
            return Ok(());
        }
        let uuids = self.uuids.borrow().clone();
        for (inode, slot) in uuids.numbered().filter(|(_, s)| s.in_use() && !s.flash_only()) {
            for &(start, end) in marked.of(slot.uuid) {
                self.invalidate_clean(inode, start, end).await?;
            }
        }
        self.commit_all().await?;
        if has_room {
            let len = Sectors(intent::PAGE_SECTORS.into()).byte_len();
            self.write_meta(intent::PAGE_SECTOR, &vec![0; len]).await?;
        }
        Ok(())
    }

    pub(crate) fn unix_time(&self) -> u32 {
        u32::try_from(self.rt.unix_time()).unwrap_or(u32::MAX)
    }
}
