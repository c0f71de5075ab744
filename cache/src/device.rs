//! [`Cache`]: a backing device with an SSD in front of it, as one block device.
//!
//! ```text
//!  read ─── index ──┬─ hit: SSD
//!                   └─ gap: backing device ── fill: SSD, index        (behind the reader's back)
//!  write ── mode ───┬─ back: SSD, index                               (dirty)
//!                   ├─ through: SSD and backing device, index         (clean)
//!                   └─ around: backing device, index                  (invalid)
//!  flush ── journal entry and backing flush, both
//! ```
//!
//! Reads change nothing and run in the caller's task. Everything that changes something runs in a
//! task of its own, so a request that is dropped half way (a client went away) still ends in an
//! orderly state.

use std::cell::RefCell;
use std::rc::Rc;

use varve_block::{
    BlockDevice, Data, Durability, ErrorKind, Extent, Geometry, IoBuf, Op, Result, Rt, Sector,
    Task, Zero,
};

use crate::bypass::{Kind, WriteWay};
use crate::format::CacheMode;
use crate::open::{OpenError, OpenOptions};
use crate::register::{Registered, register};
use crate::status::{BucketCounts, IndexStatus, Status};
use crate::volume::{Volume, Way};

/// One volume behind one cache set: what `/dev/bcache0` would show.
///
/// Dropping it without [`Cache::stop`] leaves both devices as a power cut would: nothing that was
/// flushed is lost.
pub struct Cache<S: BlockDevice, B: BlockDevice> {
    volume: Rc<Volume<S, B>>,
    tasks: RefCell<Vec<Task<()>>>,
}

impl<S: BlockDevice, B: BlockDevice> Cache<S, B> {
    /// Opens the set on `ssd` and the volume on `hdd`, recovering whatever a crash left. A volume that
    /// belongs to the set is attached; a new one of the same set (or with
    /// [`attach`](OpenOptions::attach), any that needs no other set) gets a slot. Background tasks start
    /// on this lane.
    ///
    /// # Errors
    /// See [`OpenError`]. What is refused has not been written to.
    pub async fn open(
        rt: &Rt,
        ssd: S,
        hdd: B,
        options: OpenOptions,
    ) -> Result<Cache<S, B>, OpenError> {
        let Registered { volume, tasks } = register(rt, ssd, hdd, &options).await?;
        Ok(Cache { volume, tasks: RefCell::new(tasks) })
    }

    /// A snapshot for display.
    pub fn status(&self) -> Status {
        let volume = &self.volume;
        let set = &volume.set;
        let counts = set.buckets.borrow().counts();
        let sb = volume.superblock();
        let aside = volume.quarantine.borrow().list();
        let in_volume = |start: u64, end: u64| {
            let offset = volume.offset;
            Extent::between(Sector(start - offset), Sector(end - offset))
        };
        Status {
            set_uuid: set.uuid,
            backing_uuid: sb.uuid,
            mode: sb.mode(),
            state: sb.state(),
            requests: *volume.stats.borrow(),
            dirty_sectors: volume.dirty_sectors(),
            in_use_percent: set.buckets.borrow().in_use_percent(),
            buckets: BucketCounts {
                total: set.layout.nbuckets,
                free: counts.free,
                unused: counts.unused,
                clean: counts.clean,
                dirty: counts.dirty,
                metadata: counts.metadata,
            },
            index: IndexStatus {
                depth: set.nodes.root().level + 1,
                nodes: set.nodes.total.get(),
                nodes_cached: set.nodes.cached(),
                journal_seq: set.journal.durable(),
                open_entries: set.journal.open_entries(),
            },
            quarantine: aside.into_iter().map(|(s, e, why)| (in_volume(s, e), why)).collect(),
            safe_mode: set.health.failed().map(|why| why.to_string()),
            uncached: volume.uncached.get(),
        }
    }

    /// Changes the mode from the next request on and persists it. Dirty data stay.
    pub async fn set_mode(&self, mode: CacheMode) -> Result<()> {
        let volume = Rc::clone(&self.volume);
        self.run(async move { volume.update_super(|sb| sb.set_mode(mode)).await }).await
    }

    /// Writes all dirty data back; `Ok` once the superblock says clean.
    ///
    /// # Errors
    /// When some extents cannot be moved; [`Status::quarantine`] lists them.
    pub async fn write_back_all(&self) -> Result<()> {
        let volume = Rc::clone(&self.volume);
        self.run(async move { volume.write_back_all().await }).await
    }

    /// Writes all dirty data back and takes the volume out of the set. Everything goes straight to
    /// the backing device afterwards.
    pub async fn detach(&self) -> Result<()> {
        let volume = Rc::clone(&self.volume);
        self.run(async move { volume.detach().await }).await
    }

    /// Stops: waits for requests under way and refuses new ones, ends the background, writes nodes
    /// and a last journal entry. Dirty data stay where they are; the next open finds them.
    pub async fn stop(&self) -> Result<()> {
        let volume = Rc::clone(&self.volume);
        let tasks = std::mem::take(&mut *self.tasks.borrow_mut());
        self.run(async move { volume.stop(tasks).await }).await
    }

    /// Runs what must not stop half way.
    async fn run<T: 'static>(&self, task: impl Future<Output = T> + 'static) -> T {
        self.volume.set.rt.spawn(task).await
    }

    /// Breaks the search for the place of an insertion, in one of `one_in` of them, as a compiler
    /// once broke the kernel's: for tests that must see it caught.
    #[cfg(any(test, feature = "mutations"))]
    pub fn break_insertions(&self, seed: u64, one_in: u64) {
        use crate::btree::fault::{PredFault, PredMode};
        let fault = PredFault::new(PredMode::Garbage, seed).one_in(one_in);
        *self.volume.set.pred_fault.borrow_mut() = Some(Rc::new(fault));
    }

    #[cfg(test)]
    pub(crate) fn volume(&self) -> &Rc<Volume<S, B>> {
        &self.volume
    }
}

impl<S: BlockDevice, B: BlockDevice> Drop for Cache<S, B> {
    fn drop(&mut self) {
        if !self.volume.stopped.get() {
            self.volume.set.abandon();
            self.volume.wake.notify_one();
        }
    }
}

impl<S: BlockDevice, B: BlockDevice> BlockDevice for Cache<S, B> {
    fn geometry(&self) -> Geometry {
        self.volume.geometry.clone()
    }

    async fn read(&self, at: Sector, buf: IoBuf) -> Result<IoBuf> {
        let _request = self.volume.enter(Op::Read, Extent::new(at, buf.sectors()))?;
        self.volume.read(at, buf).await
    }

    async fn write(&self, at: Sector, data: Data, how: Durability) -> Result<Data> {
        let range = Extent::new(at, data.sectors());
        let request = self.volume.enter(Op::Write, range)?;
        if range.is_empty() {
            return Ok(data);
        }
        let volume = Rc::clone(&self.volume);
        self.run(async move {
            let _request = request;
            volume.write(range, data, how).await
        })
        .await
    }

    async fn flush(&self) -> Result<()> {
        let request = self.volume.enter_any(Op::Flush, Extent::default())?;
        let volume = Rc::clone(&self.volume);
        self.run(async move {
            let _request = request;
            volume.flush().await
        })
        .await
    }

    async fn discard(&self, range: Extent) -> Result<()> {
        let request = self.volume.enter(Op::Discard, range)?;
        if range.is_empty() {
            return Ok(());
        }
        let volume = Rc::clone(&self.volume);
        self.run(async move {
            let _request = request;
            volume.discard(range).await
        })
        .await
    }

    async fn write_zeroes(&self, range: Extent, how: Zero) -> Result<()> {
        let request = self.volume.enter(Op::WriteZeroes, range)?;
        if how.only_if_fast && !self.volume.geometry.fast_zero {
            return Err(self.volume.error(ErrorKind::Unsupported, Op::WriteZeroes, range));
        }
        if range.is_empty() {
            return Ok(());
        }
        let volume = Rc::clone(&self.volume);
        self.run(async move {
            let _request = request;
            volume.write_zeroes(range, how).await
        })
        .await
    }
}

impl<S: BlockDevice, B: BlockDevice> Volume<S, B> {
    async fn write(self: &Rc<Self>, range: Extent, data: Data, how: Durability) -> Result<Data> {
        let below = self.on_hdd(range);
        match self.way().await? {
            Way::Uncached => return self.hdd.write(below.start, data, how).await,
            Way::Safe => return Err(self.safe_mode_error(Op::Write, range)),
            Way::Cached => {}
        }
        let kind = if how == Durability::Fua { Kind::SyncWrite } else { Kind::Write };
        match self.write_way(kind, range) {
            WriteWay::Back => match self.write_back(below, data, how).await? {
                Ok(data) => Ok(data),
                Err(data) => self.write_around(below, data, how).await,
            },
            WriteWay::Through => self.write_through(below, data, how).await,
            WriteWay::Around => self.write_around(below, data, how).await,
        }
    }

    /// Both halves of durability: what is dirty is durable with the journal, the rest with the
    /// backing device. The journal has to follow in every mode: a key that a finished write has
    /// replaced would bring old data back.
    async fn flush(self: &Rc<Self>) -> Result<()> {
        match self.way().await? {
            Way::Uncached => return self.hdd.flush().await,
            Way::Safe => return Err(self.safe_mode_error(Op::Flush, Extent::default())),
            Way::Cached => {}
        }
        match self.settle().await {
            Ok(()) => Ok(()),
            // Without dirty data the backing device's own flush is all that is needed.
            Err(e) if self.set.health.failed().is_some() => {
                self.survive(e).await?;
                self.hdd.flush().await
            }
            Err(e) => Err(e),
        }
    }

    async fn discard(self: &Rc<Self>, range: Extent) -> Result<()> {
        let below = self.on_hdd(range);
        match self.way().await? {
            Way::Uncached if self.hdd_geometry.can_discard => self.hdd.discard(below).await,
            Way::Uncached => Ok(()),
            Way::Safe => Err(self.safe_mode_error(Op::Discard, range)),
            Way::Cached => self.discard_around(below).await,
        }
    }

    async fn write_zeroes(self: &Rc<Self>, range: Extent, how: Zero) -> Result<()> {
        let below = self.on_hdd(range);
        match self.way().await? {
            Way::Uncached => self.hdd.write_zeroes(below, how).await,
            Way::Safe => Err(self.safe_mode_error(Op::WriteZeroes, range)),
            Way::Cached => self.zero_around(below, how).await,
        }
    }
}
