//! A volume: a backing device that stands behind a cache set, and the states it can be in.
//!
//! ```text
//!            first dirty write              all written back, backing flushed
//!   Clean ─────────────────────> Dirty ────────────────────────────────────> Clean
//!     │  the set failed                        │ the set failed
//!     v                                        v
//!   Uncached (superblock: stale)             Safe: reads where provably right, no writes
//! ```
//!
//! The superblock says dirty, durably, before the first dirty write is acknowledged, and clean only
//! when nothing is dirty any more and the backing device has been flushed (W13).

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use varve_block::sync::{LocalSemaphore, Notify, RangeLock, join};
use varve_block::{
    BlockDevice, BufPool, DevId, Durability, Error, ErrorKind, Extent, Geometry, Instant, Op,
    Result, Sector, Sectors,
};

use crate::format::superblock::{SUPERBLOCK_BYTES, SUPERBLOCK_SECTOR};
use crate::format::{BackingState, BackingSuper, CacheMode};
use crate::intent::{self, Intents, Owner};
use crate::open::{OpenOptions, WritebackOptions};
use crate::set::Set;
use crate::status::Requests;
use crate::writeback::Quarantine;

/// How requests are served now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    Cached,
    /// Straight to the backing device: detached, or the set failed while nothing was dirty.
    Uncached,
    /// The set failed with dirty data in it.
    Safe,
}

/// See the module.
pub(crate) struct Volume<S, B> {
    pub set: Rc<Set<S>>,
    pub hdd: B,
    pub hdd_geometry: Geometry,
    pub geometry: Geometry,
    pub inode: u32,
    /// Sectors of the backing device before the volume. Keys count from the device's start.
    pub offset: u64,
    /// Buffers for fills, retries and writeback.
    pub pool: BufPool,
    pub options: WritebackOptions,
    /// Not while the set works.
    pub uncached: Cell<bool>,
    pub detaching: Cell<bool>,
    /// New requests are refused.
    pub stopped: Cell<bool>,
    pub stats: RefCell<Requests>,
    /// Who writes to the backing device, against the background writer.
    pub backing_lock: RangeLock,
    pub intents: Intents,
    /// Writers that are about to make something dirty.
    pub dirty_writers: Cell<u64>,
    pub quarantine: RefCell<Quarantine>,
    pub last_request: Cell<Instant>,
    /// The background writer has something new to consider.
    pub wake: Notify,
    /// Somebody waits for everything to be written back.
    pub drain: Cell<u32>,
    pub drained: Notify,
    requests: Cell<u64>,
    quiet: Notify,
    sb: RefCell<BackingSuper>,
    sb_turn: LocalSemaphore,
}

impl<S: BlockDevice, B: BlockDevice> Volume<S, B> {
    pub(crate) fn new(
        set: Rc<Set<S>>,
        hdd: B,
        sb: BackingSuper,
        inode: u32,
        options: &OpenOptions,
    ) -> Rc<Volume<S, B>> {
        let hdd_geometry = hdd.geometry();
        let set_sectors = hdd_geometry.len.0;
        Rc::new(Volume {
            geometry: volume_geometry(&hdd_geometry, &set.geometry, &sb),
            hdd_geometry,
            hdd,
            inode,
            offset: sb.data_offset,
            pool: BufPool::new(options.pool),
            options: options.writeback,
            uncached: Cell::new(false),
            detaching: Cell::new(false),
            stopped: Cell::new(false),
            stats: RefCell::default(),
            backing_lock: RangeLock::new(),
            intents: Intents::new(set_sectors),
            dirty_writers: Cell::new(0),
            quarantine: RefCell::default(),
            last_request: Cell::new(set.rt.now()),
            wake: Notify::new(),
            drain: Cell::new(0),
            drained: Notify::new(),
            requests: Cell::new(0),
            quiet: Notify::new(),
            sb: RefCell::new(sb),
            sb_turn: LocalSemaphore::new(1),
            set,
        })
    }

    pub(crate) fn mode(&self) -> CacheMode {
        self.sb.borrow().mode()
    }

    pub(crate) fn state(&self) -> BackingState {
        self.sb.borrow().state()
    }

    pub(crate) fn superblock(&self) -> BackingSuper {
        self.sb.borrow().clone()
    }

    pub(crate) fn dirty_sectors(&self) -> u64 {
        self.set.dirty_sectors(self.inode)
    }

    /// Changes the superblock of the backing device, durably. The copy in memory changes only when
    /// the write has succeeded.
    pub(crate) async fn update_super(&self, change: impl FnOnce(&mut BackingSuper)) -> Result<()> {
        let _turn = self.sb_turn.acquire(1).await;
        self.write_super(change).await
    }

    /// The same, when the caller has the turn.
    async fn write_super(&self, change: impl FnOnce(&mut BackingSuper)) -> Result<()> {
        let mut next = self.sb.borrow().clone();
        change(&mut next);
        let (before, page) = (self.sb.borrow().encode(), next.encode());
        write_backing_super(&self.hdd, &self.set.meta, &before, &page).await?;
        *self.sb.borrow_mut() = next;
        Ok(())
    }

    /// W13, first half: the superblock says dirty when this returns.
    pub(crate) async fn ensure_dirty(&self) -> Result<()> {
        if self.state() == BackingState::Dirty {
            return Ok(());
        }
        let _turn = self.sb_turn.acquire(1).await;
        if self.state() == BackingState::Dirty {
            return Ok(());
        }
        self.write_super(|sb| sb.set_state(BackingState::Dirty)).await?;
        self.wake.notify_one();
        Ok(())
    }

    /// W13, second half: says clean if nothing is dirty and nobody is about to make something so.
    /// What was written back has been flushed by the writer (W12); here the journal is made to know,
    /// or a crash would find dirty keys in a clean volume.
    pub(crate) async fn settle_clean(&self) -> Result<bool> {
        if self.state() != BackingState::Dirty || self.busy_dirty() {
            return Ok(self.state() == BackingState::Clean);
        }
        self.set.commit_all().await?;
        let _turn = self.sb_turn.acquire(1).await;
        if self.state() != BackingState::Dirty || self.busy_dirty() {
            return Ok(self.state() == BackingState::Clean);
        }
        self.write_super(|sb| sb.set_state(BackingState::Clean)).await?;
        Ok(true)
    }

    pub(crate) fn busy_dirty(&self) -> bool {
        self.dirty_sectors() > 0 || self.dirty_writers.get() > 0
    }

    /// How to serve a request now. The step from a failed set to no cache writes the superblock
    /// first: from then on what the set holds of this volume is worth nothing.
    pub(crate) async fn way(&self) -> Result<Way> {
        if self.uncached.get() {
            return Ok(Way::Uncached);
        }
        if self.set.health.failed().is_none() {
            return Ok(Way::Cached);
        }
        if self.busy_dirty() {
            return Ok(Way::Safe);
        }
        let _turn = self.sb_turn.acquire(1).await;
        if self.uncached.get() {
            return Ok(Way::Uncached);
        }
        if self.busy_dirty() {
            return Ok(Way::Safe);
        }
        self.write_super(|sb| sb.set_state(BackingState::Stale)).await?;
        self.uncached.set(true);
        tracing::warn!(dev = %self.geometry.dev, "the cache set failed, going on without it");
        Ok(Way::Uncached)
    }

    /// The same without writing anything: for reads.
    pub(crate) fn way_to_read(&self) -> Way {
        if self.uncached.get() {
            Way::Uncached
        } else if self.set.health.failed().is_none() {
            Way::Cached
        } else if self.busy_dirty() {
            Way::Safe
        } else {
            Way::Uncached
        }
    }

    /// After the backing device took a write, the index could not be told. Without dirty data the
    /// set is given up and the write stands; else the error does.
    pub(crate) async fn survive(&self, e: Error) -> Result<()> {
        if self.set.health.gone.get() {
            return Err(e);
        }
        self.set.fail(&e);
        match self.way().await? {
            Way::Uncached => Ok(()),
            _ => Err(e),
        }
    }

    /// Announces a write to `range` of the backing device. When this returns, its marks are durable and
    /// no clean copy of it is cached, durably; none enters the cache by reading until what is returned
    /// is dropped: the write has ended then.
    pub(crate) async fn intend(self: &Rc<Self>, range: Extent) -> Result<Intent<S, B>> {
        let marked = self.intents.begin(range);
        let shut = self.set.fills.shut(self.inode, range.start.0, range.end().0);
        let intent = Intent { volume: Rc::clone(self), range, shut };
        if let Err(e) = self.announce(range, marked).await {
            self.survive(e).await?;
        }
        Ok(intent)
    }

    async fn announce(self: &Rc<Self>, range: Extent, marked: bool) -> Result<()> {
        if !marked {
            let _turn = self.intents.turn.acquire(1).await;
            if !self.intents.is_durable(range) {
                self.write_intents(false).await?;
            }
        }
        if self.set.invalidate_clean(self.inode, range.start.0, range.end().0).await? {
            self.set.commit_all().await?;
        }
        Ok(())
    }

    /// Writes the marks. The caller has their turn.
    async fn write_intents(&self, all: bool) -> Result<()> {
        if !intent::has_room(&self.set.layout) {
            return Ok(()); // such a set is opened without its clean data
        }
        let volume = self.sb.borrow().uuid;
        let owner = Owner::of(&self.set.superblock());
        let page = self.intents.page(owner, volume, self.set.rt.now(), all);
        self.set.write_meta(intent::PAGE_SECTOR, &page).await?;
        self.intents.written(&page);
        Ok(())
    }

    /// Makes both devices durable: the journal for what the index says, the backing device for the
    /// rest.
    pub(crate) async fn settle(&self) -> Result<()> {
        let number = self.intents.begin_settling();
        let (journal, hdd) = join(self.set.commit_all(), self.hdd.flush()).await;
        hdd?;
        journal?;
        self.intents.end_settling(number);
        Ok(())
    }

    /// Takes back marks that are not needed any more (with `all`: also those of busy regions).
    pub(crate) async fn tidy_intents(&self, all: bool) -> Result<()> {
        if all || self.intents.lingering(self.set.rt.now()) {
            self.settle().await?;
            let _turn = self.intents.turn.acquire(1).await;
            self.write_intents(all).await?;
        }
        Ok(())
    }

    /// Tidies up now and then, until the set stops.
    pub(crate) async fn intent_task(self: Rc<Self>) {
        while self.set.pause(TIDY_UP).await && !self.uncached.get() {
            if let Err(e) = self.tidy_intents(false).await {
                tracing::warn!(dev = %e.dev, error = %e, "marks of written regions stay");
            }
        }
    }

    /// The place of a request on the backing device, and in the key space.
    pub(crate) fn on_hdd(&self, range: Extent) -> Extent {
        Extent::new(Sector(range.start.0 + self.offset), range.len)
    }

    /// Lets a request in.
    pub(crate) fn enter(self: &Rc<Self>, op: Op, at: Extent) -> Result<Entered<S, B>> {
        self.geometry.admit(op, at)?;
        self.enter_any(op, at)
    }

    pub(crate) fn enter_any(self: &Rc<Self>, op: Op, at: Extent) -> Result<Entered<S, B>> {
        if self.stopped.get() {
            return Err(self.error(ErrorKind::Stopped, op, at));
        }
        self.requests.set(self.requests.get() + 1);
        self.last_request.set(self.set.rt.now());
        Ok(Entered(Rc::clone(self)))
    }

    /// Waits until no request is under way.
    pub(crate) async fn quiet(&self) {
        while self.requests.get() > 0 {
            self.quiet.notified().await;
        }
    }

    pub(crate) fn error(&self, kind: ErrorKind, op: Op, at: Extent) -> Error {
        Error::new(kind, op, at, &self.geometry.dev)
    }

    pub(crate) fn safe_mode_error(&self, op: Op, at: Extent) -> Error {
        let why = self.set.health.failed().unwrap_or_else(|| "unknown".into());
        let dirty = self.dirty_sectors();
        self.error(ErrorKind::ReadOnly, op, at).with(format!(
            "cache set {} is in safe mode with {dirty} dirty sectors: {why}",
            self.set.uuid
        ))
    }
}

/// How often marks of regions that nobody writes any more are looked for.
const TIDY_UP: Duration = Duration::from_secs(5);

/// A write to the backing device that was announced.
pub(crate) struct Intent<S: BlockDevice, B: BlockDevice> {
    volume: Rc<Volume<S, B>>,
    range: Extent,
    shut: usize,
}

impl<S: BlockDevice, B: BlockDevice> Drop for Intent<S, B> {
    fn drop(&mut self) {
        self.volume.set.fills.reopen(self.shut);
        self.volume.intents.end(self.range, self.volume.set.rt.now());
    }
}

/// A request under way.
pub(crate) struct Entered<S: BlockDevice, B: BlockDevice>(Rc<Volume<S, B>>);

impl<S: BlockDevice, B: BlockDevice> Drop for Entered<S, B> {
    fn drop(&mut self) {
        let left = self.0.requests.get() - 1;
        self.0.requests.set(left);
        if left == 0 {
            self.0.quiet.notify_all();
        }
    }
}

/// A writer that is about to make something dirty.
pub(crate) struct DirtyWriter<S: BlockDevice, B: BlockDevice>(Rc<Volume<S, B>>);

impl<S: BlockDevice, B: BlockDevice> DirtyWriter<S, B> {
    pub(crate) fn new(volume: &Rc<Volume<S, B>>) -> DirtyWriter<S, B> {
        volume.dirty_writers.set(volume.dirty_writers.get() + 1);
        DirtyWriter(Rc::clone(volume))
    }
}

impl<S: BlockDevice, B: BlockDevice> Drop for DirtyWriter<S, B> {
    fn drop(&mut self) {
        self.0.dirty_writers.set(self.0.dirty_writers.get() - 1);
        // A drain may be waiting to call the volume clean. Otherwise the background writer looks by
        // itself; waking it for every write would cost as much as the write's place in the index.
        if self.0.drain.get() > 0 {
            self.0.wake.notify_one();
        }
    }
}

/// Writes a backing superblock over another one: the tail first and only if it differs, so that a power
/// cut leaves one or the other.
pub(crate) async fn write_backing_super<B: BlockDevice>(
    hdd: &B,
    pool: &BufPool,
    old: &[u8; SUPERBLOCK_BYTES],
    new: &[u8; SUPERBLOCK_BYTES],
) -> Result<()> {
    let block = hdd.geometry().block;
    let at = block.byte_len().min(SUPERBLOCK_BYTES);
    let (head, tail) = new.split_at(at);
    if tail != &old[at..] {
        let buf = pool.take_copy(tail).await;
        hdd.write(Sector(SUPERBLOCK_SECTOR) + block, buf.into(), Durability::Fua).await?;
    }
    let buf = pool.take_copy(head).await;
    hdd.write(Sector(SUPERBLOCK_SECTOR), buf.into(), Durability::Fua).await?;
    Ok(())
}

/// What the volume looks like from above.
fn volume_geometry(hdd: &Geometry, ssd: &Geometry, sb: &BackingSuper) -> Geometry {
    let block = Sectors(u64::from(sb.block_size)).max(hdd.block);
    let max_request = hdd.max_request.min(ssd.max_request).min(Geometry::MAX_REQUEST);
    Geometry {
        dev: DevId::new(format!("cache over {}", hdd.dev)),
        len: Sectors((hdd.len.0 - sb.data_offset) / block.0 * block.0),
        block,
        preferred: hdd.preferred.max(ssd.preferred).max(block),
        max_request: Sectors(max_request.0 / block.0 * block.0),
        read_only: false,
        volatile_cache: true,
        can_discard: true,
        fast_zero: hdd.fast_zero,
        cheap_fua: false,
        // What clients do about seeks is wasted on a device whose hits come from an SSD.
        rotational: false,
    }
}
