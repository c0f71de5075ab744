//! Looking up and inserting: what requests do to the index.
//!
//! A descent is one synchronous walk through nodes that are in memory. Where one is missing it is
//! loaded and the walk begins again; so nothing is held, and nothing can change under a walk. An
//! insertion finds its leaf ready (in memory, not frozen, with room, and room in the journal), and
//! then does everything in one step: journal, leaf, counts of buckets and volumes.
//!
//! Journal order is tree order by that: replaying entries in order gives what memory had.

use std::rc::Rc;

use varve_block::{BlockDevice, Result};

use super::cache::{Cached, NodeCell, NodeRef};
use super::{Guards, InsertCtx, Node, Piece, usable_interior, usable_leaf, verify};
use crate::alloc::Durable;
use crate::error::{Corrupt, Place};
use crate::format::{Key, NodeFrame, Pos};
use crate::journal::KEY_WORDS;
use crate::set::Set;

/// A leaf's open set is written when it is about to outgrow a page, as in the kernel.
const OPEN_BYTES_MAX: usize = 4096 - 48;

/// Whether an insertion goes through the journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Log {
    /// It does, and is durable with the open entry.
    Journal,
    /// It need not survive a crash (a miss that was filled).
    Silent,
    /// Recovery: it is in the journal already, this entry is the oldest needed.
    Replay(u64),
}

/// A node that has to be read first.
pub(crate) struct Absent {
    key: Key,
    level: u8,
    /// Bound of the sibling before it.
    lower: Pos,
}

enum Found {
    Node(NodeRef),
    Absent(Absent),
}

impl<S: BlockDevice> Set<S> {
    /// The leaf that holds the sector at `pos`.
    pub(crate) async fn leaf(self: &Rc<Self>, pos: Pos) -> Result<NodeRef> {
        self.node_at(pos, 0).await
    }

    /// The leaf, if every node on the way is in memory.
    pub(crate) fn leaf_now(&self, pos: Pos) -> Result<Option<NodeRef>> {
        match self.descend(pos, 0).map_err(|c| self.broken(c))? {
            Found::Node(node) => Ok(Some(node)),
            Found::Absent(_) => Ok(None),
        }
    }

    /// The node of `level` on the way to `pos`; the root when the tree is not that high.
    pub(crate) async fn node_at(self: &Rc<Self>, pos: Pos, level: u8) -> Result<NodeRef> {
        loop {
            match self.descend(pos, level).map_err(|c| self.broken(c))? {
                Found::Node(node) => return Ok(node),
                Found::Absent(absent) => self.load(&absent).await?,
            }
        }
    }

    fn descend(&self, pos: Pos, level: u8) -> Result<Found, Corrupt> {
        let mut node = self.nodes.root();
        while node.level > level {
            let child = {
                let buckets = self.buckets.borrow();
                node.node.borrow().child_for(pos, &self.layout, &*buckets)?
            };
            let Some(key) = child else {
                let place = node.node.borrow().frame().place(0);
                let expected = format!("a child up to {}", node.bound());
                return Err(Corrupt::row(43, "interior node", place, "children", pos, expected));
            };
            match self.nodes.get(&key) {
                Cached::Ready(child) => node = child,
                _ => {
                    let lower = self.lower_bound(&node, &key)?;
                    return Ok(Found::Absent(Absent { key, level: node.level - 1, lower }));
                }
            }
        }
        Ok(Found::Node(node))
    }

    /// The bound of the live child before `key`.
    fn lower_bound(&self, parent: &NodeRef, key: &Key) -> Result<Pos, Corrupt> {
        let buckets = self.buckets.borrow();
        let node = parent.node.borrow();
        let before = node
            .iter()
            .take_while(|k| k.pos() < key.pos())
            .filter(|k| usable_interior(k, &self.layout, &*buckets));
        Ok(before.last().map_or(Pos::ZERO, |k| k.pos()))
    }

    /// Brings a node into memory, checked (O1), or waits for whoever does.
    async fn load(self: &Rc<Self>, absent: &Absent) -> Result<()> {
        let claim = match self.nodes.get(&absent.key) {
            Cached::Ready(_) => return Ok(()),
            Cached::Loading(done) => {
                done.notified().await;
                return Ok(());
            }
            Cached::Missing => self.nodes.begin_load(&absent.key),
        };
        let frame = NodeFrame::new(absent.key, absent.level, self.magic, &self.layout);
        if let Some(corrupt) = verify::child(&frame, &self.layout, &absent.key) {
            return Err(self.broken(corrupt));
        }
        let bytes = self.read_meta(frame.sector, absent.key.size()).await?;
        let node = self.check_node(frame, &bytes, absent.lower).map_err(|c| self.broken(c))?;
        self.nodes.insert(&NodeCell::new(node));
        drop(claim);
        Ok(())
    }

    pub(crate) fn check_node(
        &self,
        frame: NodeFrame,
        bytes: &[u8],
        lower: Pos,
    ) -> Result<Node, Corrupt> {
        let node = Node::parse(frame, bytes, &self.layout, Guards::all())?;
        node.verify_above(lower)?;
        node.verify_live(&self.layout, &*self.buckets.borrow())?;
        Ok(node)
    }

    /// A leaf for `pos` that takes one key now: the caller inserts before it awaits anything.
    pub(crate) async fn ready_leaf(self: &Rc<Self>, pos: Pos, log: Log) -> Result<NodeRef> {
        loop {
            self.writable()?;
            if log == Log::Journal && !self.journal.has_room() {
                self.journal_room().await?;
                continue;
            }
            let Some(leaf) = self.leaf_now(pos)? else {
                self.leaf(pos).await?;
                continue;
            };
            if leaf.frozen.get() {
                leaf.changed.notified().await;
                continue;
            }
            if leaf.node.borrow().room() < KEY_WORDS {
                self.make_room(&leaf).await?;
                continue;
            }
            return Ok(leaf);
        }
    }

    /// Inserts a key, cut where leaves end. `stamp`: of the data it names.
    pub(crate) async fn insert(self: &Rc<Self>, key: Key, log: Log, stamp: u64) -> Result<()> {
        let mut rest = Some(key);
        while let Some(key) = rest {
            let leaf = self.ready_leaf(key.start_pos(), log).await?;
            let (here, next) = cut_at(key, leaf.bound());
            self.apply(&leaf, here, log, stamp)?;
            rest = next;
        }
        Ok(())
    }

    /// Puts a key that fits into a ready leaf, in one step.
    pub(crate) fn apply(
        self: &Rc<Self>,
        leaf: &NodeRef,
        key: Key,
        log: Log,
        stamp: u64,
    ) -> Result<()> {
        assert!(!leaf.frozen.get() && !leaf.dead.get(), "a leaf that takes insertions");
        if log != Log::Silent {
            self.fills.lose(key.inode(), key.start(), key.end());
        }
        // W3: the journal's buffer first.
        let pin = match log {
            Log::Journal => Some(self.journal.append(key, stamp)),
            Log::Replay(seq) => Some(seq),
            Log::Silent => None,
        };
        let (inserted, dirty_gone) = {
            let mut node = leaf.node.borrow_mut();
            let gone = self.uncount_covered(&node, &key).map_err(|c| self.broken(c))?;
            let ctx = InsertCtx::new(&self.layout);
            #[cfg(any(test, feature = "mutations"))]
            let fault = self.pred_fault.borrow().clone();
            #[cfg(any(test, feature = "mutations"))]
            let ctx = InsertCtx { fault: fault.as_deref(), ..ctx };
            (node.insert(&ctx, key, None, &mut Vec::new()), gone)
        };
        let done = inserted.map_err(|c| self.broken(c))?;
        debug_assert!(matches!(done, super::Inserted::Done { .. }));
        let dirty_new = if key.dirty() { i64::from(key.size()) } else { 0 };
        self.count_dirty(key.inode(), dirty_new - dirty_gone);
        if let Some(ptr) = key.ptr().filter(|ptr| ptr.available()) {
            self.buckets.borrow_mut().add(ptr, key.size(), key.dirty());
        }
        self.mark_unwritten(leaf, pin, stamp);
        Ok(())
    }

    /// The buckets of what `key` covers lose those sectors. Returns how many of them are dirty. Stale
    /// keys count for nothing, also dirty ones: such are found after a crash, cleaned by the journal
    /// and their bucket reused since.
    fn uncount_covered(&self, node: &Node, key: &Key) -> Result<i64, Corrupt> {
        let mut buckets = self.buckets.borrow_mut();
        let mut dirty = 0;
        for old in node.iter_from(Some(key.start_pos()))? {
            if old.start_pos() >= key.pos() {
                if old.size() == 0 {
                    continue;
                }
                break;
            }
            if old.size() == 0 || !usable_leaf(&old, &self.layout, &*buckets) {
                continue;
            }
            let (start, end) = (old.start().max(key.start()), old.end().min(key.end()));
            let sectors = u32::try_from(end - start).unwrap_or(u32::MAX);
            buckets.sub(old.pointer(), sectors, old.dirty());
            dirty += if old.dirty() { i64::from(sectors) } else { 0 };
        }
        Ok(dirty)
    }

    pub(crate) fn count_dirty(&self, inode: u32, sectors: i64) {
        let mut all = self.dirty.borrow_mut();
        let dirty = all.entry(inode).or_insert(0);
        let next = dirty.checked_add_signed(sectors);
        *dirty = next.expect("a volume never loses more dirty sectors than it has");
        let empty = *dirty == 0;
        drop(all);
        if empty || sectors > 0 {
            self.dirty_changed.notify_all();
        }
    }

    fn mark_unwritten(self: &Rc<Self>, leaf: &NodeRef, pin: Option<u64>, stamp: u64) {
        let old = leaf.dirty_since.get().map(|_| leaf.pin.get());
        if leaf.pin.get().is_none()
            && let Some(seq) = pin
        {
            self.journal.pin(seq);
            leaf.pin.set(Some(seq));
        }
        if old.is_none() || old != Some(leaf.pin.get()) {
            self.nodes.note_unwritten(leaf, old);
        }
        leaf.stamp.set(leaf.stamp.get().max(stamp));
        if leaf.dirty_since.get().is_none() {
            leaf.dirty_since.set(Some(self.rt.now()));
        }
        let full = leaf.node.borrow().open_bytes() > OPEN_BYTES_MAX;
        if full && !leaf.scheduled.replace(true) {
            let (set, leaf) = (Rc::clone(self), Rc::clone(leaf));
            drop(self.rt.spawn(async move {
                // A failure has failed the set; whoever needs the write will see it.
                let _ = set.write_node(&leaf).await;
            }));
        }
    }

    /// Removes coverage of `[start, end)`, durable with the journal. Nothing is inserted where
    /// nothing could come back: not even after a crash, and not from the journal either.
    ///
    /// `settled`: what the backing device holds there is durable. Without that, dirty data are not
    /// dropped and the answer is `false`.
    pub(crate) async fn invalidate(
        self: &Rc<Self>,
        inode: u32,
        (start, end): (u64, u64),
        settled: bool,
    ) -> Result<bool> {
        self.fills.lose(inode, start, end);
        let mut at = start;
        while at < end {
            let pos = Pos::new(inode, at);
            let leaf = self.leaf(pos).await?;
            let here = end_in(&leaf, inode, end);
            let covered = self.covered(&leaf.node.borrow(), inode, at, here);
            let Some((from, to, dirty)) = covered.map_err(|c| self.broken(c))? else {
                at = here;
                continue;
            };
            if dirty && !settled {
                return Ok(false);
            }
            let ready = self.ready_leaf(Pos::new(inode, from), Log::Journal).await?;
            if !Rc::ptr_eq(&ready, &leaf) {
                continue;
            }
            // Nothing was awaited since the leaf was found ready, but before that it may have
            // changed: look again.
            let again = self.covered(&leaf.node.borrow(), inode, at, here);
            if again.map_err(|c| self.broken(c))? != Some((from, to, dirty)) {
                continue;
            }
            self.apply(&leaf, Key::invalidation(inode, from, to), Log::Journal, 0)?;
            at = to;
        }
        Ok(true)
    }

    /// Removes clean coverage of `[start, end)` and leaves dirty data alone. Whether there was any: it is
    /// gone for good with the journal.
    pub(crate) async fn invalidate_clean(
        self: &Rc<Self>,
        inode: u32,
        start: u64,
        end: u64,
    ) -> Result<bool> {
        self.fills.lose(inode, start, end);
        let (mut at, mut any) = (start, false);
        while at < end {
            let mut leaf = self.leaf(Pos::new(inode, at)).await?;
            let mut clean = self.clean_stretch(&leaf, inode, at, end_in(&leaf, inode, end));
            if let Ok(Some(_)) = clean {
                // Only now make room, and look again: it may have taken time.
                leaf = self.ready_leaf(Pos::new(inode, at), Log::Journal).await?;
                clean = self.clean_stretch(&leaf, inode, at, end_in(&leaf, inode, end));
            }
            let Some((from, to)) = clean.map_err(|c| self.broken(c))? else {
                at = end_in(&leaf, inode, end);
                continue;
            };
            self.apply(&leaf, Key::invalidation(inode, from, to), Log::Journal, 0)?;
            (at, any) = (to, true);
        }
        Ok(any)
    }

    /// The first stretch of a leaf's part of `[start, end)` that begins with clean data and has no dirty
    /// ones, at most as long as an invalidation.
    fn clean_stretch(
        &self,
        leaf: &NodeRef,
        inode: u32,
        start: u64,
        end: u64,
    ) -> Result<Option<(u64, u64)>, Corrupt> {
        let buckets = self.buckets.borrow();
        let durable = Durable(&buckets);
        let node = leaf.node.borrow();
        let mut stretch: Option<(u64, u64)> = None;
        for piece in node.pieces(inode, start, end, &self.layout, &durable)? {
            let Piece::Hit { start, end, key, .. } = piece else { continue };
            match stretch {
                Some((from, _)) if key.dirty() || end > from + INVALIDATION_MAX => break,
                Some((from, _)) => stretch = Some((from, end)),
                None if key.dirty() => {}
                None => stretch = Some((start, end.min(start + INVALIDATION_MAX))),
            }
        }
        Ok(stretch)
    }

    /// The hull of what a leaf may still hold of `[start, end)`, at most as long as an invalidation,
    /// and whether any of it is dirty.
    fn covered(
        &self,
        node: &Node,
        inode: u32,
        start: u64,
        end: u64,
    ) -> Result<Option<(u64, u64, bool)>, Corrupt> {
        let buckets = self.buckets.borrow();
        let mut hull: Option<(u64, u64, bool)> = None;
        for key in node.iter_from(Some(Pos::new(inode, start)))? {
            if key.inode() != inode || (key.start() >= end && key.size() > 0) {
                break;
            }
            let Some(ptr) = key.ptr().filter(|ptr| ptr.available()) else { continue };
            // A key that is stale in memory only would be alive again after a crash.
            if key.size() == 0 || buckets.durably_stale(ptr) {
                continue;
            }
            let (from, to) = (key.start().max(start), key.end().min(end));
            let (first, dirty) = hull.map_or((from, false), |(first, _, dirty)| (first, dirty));
            let limit = first + INVALIDATION_MAX;
            if from >= limit {
                break;
            }
            hull = Some((first, to.min(limit), dirty || key.dirty()));
        }
        Ok(hull)
    }

    /// Whether any of `[start, end)` is dirty in the cache.
    pub(crate) async fn any_dirty(
        self: &Rc<Self>,
        inode: u32,
        start: u64,
        end: u64,
    ) -> Result<bool> {
        if self.dirty_sectors(inode) == 0 {
            return Ok(false);
        }
        let mut at = start;
        while at < end {
            let leaf = self.leaf(Pos::new(inode, at)).await?;
            let here = end_in(&leaf, inode, end);
            if self.dirty_in(&leaf, inode, at, here)? {
                return Ok(true);
            }
            at = here;
        }
        Ok(false)
    }

    /// The same within one leaf, now.
    pub(crate) fn dirty_in(
        &self,
        leaf: &NodeRef,
        inode: u32,
        start: u64,
        end: u64,
    ) -> Result<bool> {
        let node = leaf.node.borrow();
        let keys = node.iter_from(Some(Pos::new(inode, start))).map_err(|c| self.broken(c))?;
        let mut under =
            keys.take_while(|key| key.inode() == inode && (key.start() < end || key.size() == 0));
        Ok(under.any(|key| key.dirty() && key.size() > 0))
    }

    /// Inserts clean extents that a write left on both devices. As [`Set::invalidate`] does, it
    /// refuses (`false`) to cover dirty data before the backing device is known to be durable.
    pub(crate) async fn insert_clean(
        self: &Rc<Self>,
        key: Key,
        stamp: u64,
        settled: bool,
    ) -> Result<bool> {
        let mut rest = Some(key);
        while let Some(key) = rest {
            let leaf = self.ready_leaf(key.start_pos(), Log::Journal).await?;
            let (here, next) = cut_at(key, leaf.bound());
            if !settled && self.dirty_in(&leaf, here.inode(), here.start(), here.end())? {
                return Ok(false);
            }
            self.apply(&leaf, here, Log::Journal, stamp)?;
            rest = next;
        }
        Ok(true)
    }

    /// Inserts what a miss read, unless somebody wrote there meanwhile (then `false`).
    pub(crate) async fn insert_fill(
        self: &Rc<Self>,
        fill: usize,
        key: Key,
        stamp: u64,
    ) -> Result<bool> {
        let mut rest = Some(key);
        while let Some(key) = rest {
            let leaf = self.ready_leaf(key.start_pos(), Log::Silent).await?;
            if !self.fills.valid(fill) {
                return Ok(false);
            }
            let (here, next) = cut_at(key, leaf.bound());
            self.apply(&leaf, here, Log::Silent, stamp)?;
            rest = next;
        }
        Ok(true)
    }

    /// The dirty bit goes wherever `old`, a dirty key, still stands pointer for pointer. Returns how
    /// many sectors that were.
    ///
    /// Journalled, although the kernel does not: so a bucket whose last dirty key went away here can
    /// be reused as soon as the journal says so, without waiting for the leaf (W11), and replaying the
    /// entry of the dirty write cannot make the extent dirty again behind its bucket's back.
    pub(crate) async fn mark_clean(self: &Rc<Self>, old: Key) -> Result<u64> {
        let (inode, mut at, mut cleaned) = (old.inode(), old.start(), 0);
        while at < old.end() {
            let leaf = self.ready_leaf(Pos::new(inode, at), Log::Journal).await?;
            let here = end_in(&leaf, inode, old.end());
            let Some((start, end)) = self.still_dirty(&leaf, &old, at, here)? else {
                at = here;
                continue;
            };
            let ptr = old.pointer().advanced(start - old.start());
            self.apply(&leaf, Key::extent(inode, start, end, false, ptr), Log::Journal, 0)?;
            cleaned += end - start;
            at = end;
        }
        Ok(cleaned)
    }

    /// Whether `old`, a dirty key, stands unchanged in all of `[from, to)`.
    pub(crate) fn stands(&self, leaf: &NodeRef, old: &Key, from: u64, to: u64) -> Result<bool> {
        let mut at = from;
        while let Some((start, end)) = self.still_dirty(leaf, old, at, to)? {
            if start != at {
                return Ok(false);
            }
            at = end;
        }
        Ok(at == to)
    }

    /// The first part of `[from, to)` where `old` still stands.
    fn still_dirty(
        &self,
        leaf: &NodeRef,
        old: &Key,
        from: u64,
        to: u64,
    ) -> Result<Option<(u64, u64)>> {
        let buckets = self.buckets.borrow();
        let node = leaf.node.borrow();
        let pieces = node.pieces(old.inode(), from, to, &self.layout, &*buckets);
        let pieces = pieces.map_err(|c| self.broken(c))?;
        for piece in pieces {
            let Piece::Hit { start, end, key, .. } = piece else { continue };
            let now = key.pointer().advanced(start - key.start());
            if key.dirty() && now == old.pointer().advanced(start - old.start()) {
                return Ok(Some((start, end)));
            }
        }
        Ok(None)
    }
}

/// Longest invalidation, as in the kernel.
const INVALIDATION_MAX: u64 = 32_768;

/// Where the part of `[.., end)` of a volume that lies in this leaf ends.
pub(crate) fn end_in(leaf: &NodeRef, inode: u32, end: u64) -> u64 {
    let bound = leaf.bound();
    if bound.inode > inode { end } else { end.min(bound.offset) }
}

/// The part of a key that lies in a leaf with this bound, and the rest.
fn cut_at(key: Key, bound: Pos) -> (Key, Option<Key>) {
    if key.pos() <= bound {
        return (key, None);
    }
    let (mut here, mut rest) = (key, key);
    here.trim_back(bound.offset);
    rest.trim_front(bound.offset);
    (here, Some(rest))
}

impl<S: BlockDevice> Set<S> {
    /// Writes what is unwritten of a node, after whatever write of it is under way. Durable when it
    /// returns.
    pub(crate) async fn write_node(self: &Rc<Self>, node: &NodeRef) -> Result<()> {
        while node.writing.get() {
            self.writable()?;
            node.changed.notified().await;
        }
        node.scheduled.set(false);
        if node.dead.get() || !node.node.borrow().has_unwritten() {
            return Ok(());
        }
        self.writable()?;
        let sealed = {
            let buckets = self.buckets.borrow();
            node.node.borrow_mut().seal(&self.layout, &*buckets)
        };
        let write = sealed.map_err(|c| self.broken(c))?;
        let (pin, stamp) = (node.pin.take(), node.stamp.take());
        if node.dirty_since.take().is_some() {
            self.nodes.note_written(node, pin);
        }
        node.writing.set(true);
        if let Some(seq) = pin {
            self.nodes.fly(seq);
        }
        // W1 for keys that reach the disk before their journal entry does, or without one.
        let hardened = self.harden(stamp).await;
        let done = match hardened {
            Ok(()) => self.write_set(write.sector, &write.bytes).await,
            failed => failed,
        };
        node.writing.set(false);
        node.changed.notify_all();
        // A failed write keeps its pin: the journal still has the keys.
        done?;
        if let Some(seq) = pin {
            self.nodes.land(seq);
            self.journal.unpin(seq);
        }
        Ok(())
    }

    /// Writes every leaf that has been waiting since before `before`.
    pub(crate) async fn write_old_leaves(
        self: &Rc<Self>,
        before: varve_block::Instant,
    ) -> Result<()> {
        for leaf in self.nodes.all_unwritten() {
            if leaf.dirty_since.get().is_some_and(|since| since <= before) {
                self.write_node(&leaf).await?;
            }
        }
        Ok(())
    }

    /// A complaint about a node, for checks that are not the node's own.
    pub(crate) fn place_of(node: &NodeRef) -> Place {
        node.node.borrow().frame().place(0)
    }
}
