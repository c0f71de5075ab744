//! [`Hashed`]: a volume of dm-integrity by itself, as integritysetup makes them: each block's tag is a hash of
//! it, and a block whose hash does not fit is an error that names its sector, and never data.
//!
//! Blocks whose tags say nothing yet (see [`recalculate`](super::recalculate)) are given as they are, as the
//! kernel gives them; a task computes their tags meanwhile.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use varve_block::sync::{Notify, select};
use varve_block::{
    BlockDevice, BufPool, Data, Durability, Error as BlockError, ErrorKind, Extent, Geometry,
    IoBuf, IoView, Op, Rt, Sector, Sectors, Task, Zero,
};

use super::Layout;
use super::base::{Io, geometry, write_zeroes};
use super::bitmap::CLEAN_AFTER;
use super::device::{Found, Integrity, Journaling};
use super::hash::{HashSpec, Tagger};
use super::recalculate::{Progress, TURN_BYTES, tags};
use super::replay::Replayed;
use super::start::{How, Taken, look, take_up};
use crate::error::{Error, Result};
use crate::format::integrity::Superblock;
use crate::key::Key;

/// Sectors whose tags are computed between two notes of how far that is.
const NOTE_AFTER: Sectors = Sectors(if cfg!(test) { 256 } else { 65536 });

/// What is said of a block that has rotted.
const MISFIT: &str = "the integrity tag does not match";

/// How a volume is opened. Nothing on the device says any of it.
#[derive(Clone, Debug)]
pub struct HashedOptions {
    pub hash: HashSpec,
    /// The key of the hash, if it has one.
    pub key: Option<Arc<Key>>,
    pub journaling: Journaling,
    /// To rescue data: neither journal, bitmap nor tags are looked at. The device must be read-only.
    pub recovery: bool,
    /// Compute all tags anew from what is there, which makes whatever it is valid.
    pub recalculate: bool,
    /// Compute tags although the hash has a key: what somebody else wrote becomes valid with it.
    pub legacy_recalculate: bool,
    /// Sectors that a bit of a bitmap stands for; `None`: as the superblock says.
    pub sectors_per_bit: Option<u64>,
}

impl HashedOptions {
    /// With a journal, and nothing computed anew.
    pub fn new(hash: HashSpec) -> HashedOptions {
        HashedOptions {
            hash,
            key: None,
            journaling: Journaling::Journal,
            recovery: false,
            recalculate: false,
            legacy_recalculate: false,
            sectors_per_bit: None,
        }
    }

    /// The hash at work, with its key.
    pub(super) fn check_key(&self, sb: &Superblock, layout: &Layout) -> Result<Tagger> {
        Tagger::new(self.hash, self.key.as_deref(), sb.salt, layout.tag)
    }
}

/// What a range is worth.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Blocks whose tag does not fit, and blocks that cannot be read.
    pub bad_blocks: u64,
    /// The first sectors of the first ones, with the reason: [`Verified::LISTED`] at most.
    pub bad: Vec<(u64, String)>,
    /// Blocks whose tags say nothing yet.
    pub unknown: u64,
}

/// A device of sectors that are checked.
pub struct Hashed<D> {
    inner: Rc<Inner<D>>,
    task: RefCell<Option<Task<()>>>,
    pool: BufPool,
    geometry: Geometry,
    replayed: Replayed,
}

struct Inner<D> {
    rt: Rt,
    integrity: Integrity<D>,
    tagger: Tagger,
    sb: RefCell<Superblock>,
    /// The task in the background ends; nothing is written any more.
    stopped: Cell<bool>,
    stop: Notify,
    /// Tags could not be computed.
    gave_up: Cell<bool>,
}

impl<D> Drop for Hashed<D> {
    fn drop(&mut self) {
        self.inner.stopped.set(true);
        self.inner.stop.notify_all();
    }
}

impl<D: BlockDevice> Hashed<D> {
    /// Stands on a device that begins with dm-integrity's superblock. What a crash left is taken up: on the
    /// device, or in memory when it is read-only. `pool` is this layer's own.
    ///
    /// # Errors
    /// When the superblock or the journal is damaged, or asks for what is not implemented; when a key is
    /// missing; when tags would be computed with a key and the operator did not ask for it.
    pub async fn open(
        rt: &Rt,
        below: D,
        options: &HashedOptions,
        pool: BufPool,
    ) -> Result<Hashed<D>> {
        let (sb, layout) = look(&below, Sector(0)).await?;
        Hashed::stand(rt, below, sb, layout, options, pool).await
    }

    /// The same with a superblock that is not there yet.
    pub(super) async fn stand(
        rt: &Rt,
        below: D,
        sb: Superblock,
        layout: Layout,
        options: &HashedOptions,
        pool: BufPool,
    ) -> Result<Hashed<D>> {
        let tagger = options.check_key(&sb, &layout)?;
        let beneath = below.geometry();
        if options.recovery && !beneath.read_only {
            return Err(Error::Options(format!(
                "{}: recovery mode writes nothing: open it read-only (--read-only)",
                beneath.dev
            )));
        }
        let pending = sb.recalculating.is_some_and(|s| s < layout.provided.0) && !sb.dirty_bitmap;
        // Who uses a bitmap has its regions computed anew after each crash, and wants that.
        let foreign = sb.dirty_bitmap && options.journaling != Journaling::Bitmap;
        let computes = (pending || foreign || options.recalculate) && !options.recovery;
        if options.hash.is_keyed() && computes && !options.legacy_recalculate {
            return Err(Error::refused(
                44,
                "tags would be computed with the key over whatever lies on the device, which makes it \
                 valid whoever wrote it (--dm-integrity-legacy-recalculate does it)",
            ));
        }
        let volatile = options.journaling == Journaling::Journal;
        let geometry = geometry(&beneath, &layout, volatile, "integrity")?;
        let how = How {
            journaling: options.journaling,
            recovery: options.recovery,
            recalculate: options.recalculate,
            sectors_per_bit: options.sectors_per_bit,
        };
        let Taken { integrity, sb, replayed } = take_up(below, sb, layout, how).await?;
        if replayed.blocks > 0 {
            tracing::info!(
                dev = %beneath.dev, sections = replayed.sections, blocks = replayed.blocks,
                "integrity journal replayed"
            );
        }
        let works = !geometry.read_only
            && (options.journaling == Journaling::Bitmap || !integrity.stale.borrow().is_none());
        let inner = Rc::new(Inner {
            rt: rt.clone(),
            integrity,
            tagger,
            sb: RefCell::new(sb),
            stopped: Cell::new(false),
            stop: Notify::new(),
            gave_up: Cell::new(false),
        });
        let task = works.then(|| rt.spawn(Rc::clone(&inner).background()));
        Ok(Hashed { inner, task: RefCell::new(task), pool, geometry, replayed })
    }

    /// What the start found in the journal.
    pub fn replayed(&self) -> Replayed {
        self.replayed
    }

    /// The first sector whose tag says nothing yet.
    pub fn recalculating_from(&self) -> Option<Sector> {
        let provided = self.inner.integrity.base.layout.provided;
        let next = self.inner.integrity.stale.borrow().next(provided, Sectors(1));
        next.map(|run| run.start)
    }

    /// Whether the tags that are missing are being computed: not when nothing may be written, and no longer
    /// once that failed.
    pub fn is_working(&self) -> bool {
        self.recalculating_from().is_some() && !self.geometry.read_only && !self.inner.gave_up.get()
    }

    /// Leaves everything in its place, the journal empty, the bitmap gone unless it says something. Writes
    /// are errors from here on. A volume that is not closed is a crash.
    ///
    /// # Errors
    /// Of the device below; a crash is what is left then.
    pub async fn close(&self) -> Result<()> {
        if self.geometry.read_only || self.inner.stopped.replace(true) {
            return Ok(());
        }
        self.inner.stop.notify_all();
        let task = self.task.borrow_mut().take();
        if let Some(task) = task {
            task.await;
        }
        self.inner.close().await
    }

    fn error(&self, kind: ErrorKind, op: Op, range: Extent) -> BlockError {
        BlockError::new(kind, op, range, &self.geometry.dev)
    }

    /// The blocks of a range whose tags do not fit.
    async fn misfits(&self, at: Sector, found: &Found) -> Vec<Sector> {
        let layout = &self.inner.integrity.base.layout;
        let (unit, tag) = (layout.block.byte_len(), layout.tag);
        let per_turn = TURN_BYTES / unit;
        let blocks = found.data.chunks_exact(unit).zip(found.tags.chunks_exact(tag));
        let mut misfits = Vec::new();
        for (i, (data, tag)) in blocks.enumerate() {
            if i > 0 && i % per_turn == 0 {
                self.inner.rt.yield_now().await;
            }
            let sector = at + layout.block * i as u64;
            let says = !found.stale.get(i).copied().unwrap_or(false);
            if says && !self.inner.tagger.fits(sector.0, data, tag) {
                misfits.push(sector);
            }
        }
        misfits
    }

    async fn write_tagged(&self, range: Extent, view: IoView, how: Durability) -> Io<()> {
        if self.inner.stopped.get() {
            return Err(self.error(ErrorKind::Stopped, Op::Write, range));
        }
        let inner = Rc::clone(&self.inner);
        let write = async move {
            let Inner { rt, integrity, tagger, .. } = &*inner;
            let unit = integrity.base.layout.block.byte_len();
            let tags = tags(rt, tagger, unit, range.start, &view).await;
            integrity.write(range.start, view, &tags, how).await
        };
        match self.inner.integrity.journaling() {
            Journaling::Journal => write.await,
            // Who gives up waiting must not leave data without its tag.
            Journaling::Bitmap | Journaling::Direct => self.inner.rt.spawn(write).await,
        }
    }

    /// Checks every block of a range, and goes on behind those that are bad.
    ///
    /// # Errors
    /// For a range outside of the device.
    pub async fn verify(&self, range: Extent) -> Io<Verified> {
        let mut all = Verified::default();
        let block = self.inner.integrity.base.layout.block;
        for piece in range.pieces(self.geometry.max_request) {
            self.geometry.admit(Op::Read, piece)?;
            if let Ok(found) = self.look_at(piece).await {
                all.add(found);
                continue;
            }
            for one in piece.pieces(block.max(self.geometry.block)) {
                let unreadable = |e| Verified::unreadable(one.start, varve_block::chain(&e));
                all.add(self.look_at(one).await.unwrap_or_else(unreadable));
            }
        }
        Ok(all)
    }

    async fn look_at(&self, range: Extent) -> Io<Verified> {
        let buf = self.pool.take(range.len).await;
        let found = self.inner.integrity.read(range.start, buf).await?;
        let misfits = self.misfits(range.start, &found).await;
        Ok(Verified {
            bad_blocks: misfits.len() as u64,
            bad: misfits.into_iter().map(|s| (s.0, MISFIT.to_owned())).collect(),
            unknown: found.stale.iter().filter(|stale| **stale).count() as u64,
        })
    }
}

impl Verified {
    /// With a wrong key every block of a device is bad.
    pub const LISTED: usize = 10_000;

    /// Takes in what another range is worth.
    pub fn add(&mut self, other: Verified) {
        self.bad_blocks += other.bad_blocks;
        self.unknown += other.unknown;
        let room = Verified::LISTED - self.bad.len();
        self.bad.extend(other.bad.into_iter().take(room));
    }

    fn unreadable(at: Sector, why: String) -> Verified {
        Verified { bad_blocks: 1, bad: vec![(at.0, why)], unknown: 0 }
    }
}

impl<D: BlockDevice> Inner<D> {
    /// Computes the tags that are missing, and clears bits, until it is stopped.
    async fn background(self: Rc<Self>) {
        let pool = BufPool::new(varve_block::MAX_LEN);
        let mut left = NOTE_AFTER;
        let mut cleaned = self.rt.now();
        while !self.stopped.get() {
            if !self.gave_up.get() && !self.integrity.stale.borrow().is_none() {
                let step = self.step(&pool, &mut left).await;
                if let Err(e) = step {
                    let chain = varve_block::chain(&e);
                    tracing::error!(dev = %self.integrity.base.dev, "no more tags are computed: {chain}");
                    self.gave_up.set(true);
                }
                self.rt.yield_now().await;
            } else if self.integrity.bitmap.is_none() {
                return;
            } else {
                select(self.stop.notified(), self.rt.sleep(CLEAN_AFTER)).await;
            }
            let due = self.rt.now() >= cleaned + CLEAN_AFTER;
            let marked = self.integrity.bitmap.as_ref().is_some_and(|map| map.is_marked());
            if due && marked && !self.stopped.get() {
                cleaned = self.rt.now();
                if self.integrity.latch(self.integrity.clean().await).is_err() {
                    return;
                }
            }
        }
    }

    /// A run of tags; now and then what was done is noted.
    async fn step(&self, pool: &BufPool, left: &mut Sectors) -> Result<()> {
        let run = self.integrity.recalculate(&self.rt, &self.tagger, pool).await?;
        *left = Sectors(left.0.saturating_sub(run.map_or(left.0, |run| run.len.0)));
        if left.0 == 0 {
            *left = NOTE_AFTER;
            self.note().await?;
        }
        Ok(())
    }

    /// What was computed is durable, and so is the word that it was.
    async fn note(&self) -> Result<()> {
        let mut sb = self.sb.borrow().clone();
        let before = sb.recalculating;
        match self.integrity.settle_tags().await? {
            Progress::Map => {}
            Progress::Sector(sector) => sb.recalculating = Some(sector.0),
            Progress::Complete => {
                sb.recalculating = before.map(|_| self.integrity.base.layout.provided.0);
            }
        }
        if sb.recalculating != before {
            self.integrity.write_super(&sb).await?;
            *self.sb.borrow_mut() = sb;
        }
        Ok(self.integrity.latch(self.integrity.clean().await)?)
    }

    async fn close(&self) -> Result<()> {
        if self.integrity.bitmap.is_none() {
            self.integrity.close().await?;
            let whole = self.integrity.stale.borrow().is_none();
            return if whole { Ok(()) } else { self.note().await };
        }
        self.note().await?;
        let whole = self.integrity.stale.borrow().is_none();
        if whole {
            self.integrity.flush().await?;
            let mut sb = self.sb.borrow().clone();
            self.integrity.leave_map(&mut sb).await?;
            *self.sb.borrow_mut() = sb;
        }
        Ok(())
    }
}

impl<D: BlockDevice> BlockDevice for Hashed<D> {
    fn geometry(&self) -> Geometry {
        self.geometry.clone()
    }

    async fn read(&self, at: Sector, buf: IoBuf) -> Io<IoBuf> {
        let range = Extent::new(at, buf.sectors());
        self.geometry.admit(Op::Read, range)?;
        let found = self.inner.integrity.read(at, buf).await?;
        if let Some(&sector) = self.misfits(at, &found).await.first() {
            let block = Extent::new(sector, self.inner.integrity.base.layout.block);
            return Err(self.error(ErrorKind::Corrupt, Op::Read, block).with(MISFIT));
        }
        Ok(found.data)
    }

    async fn write(&self, at: Sector, data: Data, how: Durability) -> Io<Data> {
        let range = Extent::new(at, data.sectors());
        self.geometry.admit(Op::Write, range)?;
        let view = data.freeze();
        self.write_tagged(range, view.clone(), how).await?;
        Ok(Data::Shared(view))
    }

    async fn flush(&self) -> Io<()> {
        match self.geometry.read_only {
            true => Ok(()),
            false => self.inner.integrity.flush().await,
        }
    }

    /// A discarded block would have no tag that fits it.
    async fn discard(&self, range: Extent) -> Io<()> {
        self.geometry.admit(Op::Discard, range)?;
        Err(self.error(ErrorKind::Unsupported, Op::Discard, range))
    }

    async fn write_zeroes(&self, range: Extent, how: Zero) -> Io<()> {
        let write = async |piece, zeroes: IoBuf| {
            self.write_tagged(piece, zeroes.freeze(), how.durability).await
        };
        write_zeroes(&self.geometry, &self.pool, range, how, write).await
    }
}
