//! A cache set in memory: one cache device, its index, its journal, its buckets.
//!
//! # Who does what
//!
//! ```text
//!  device.rs, mode/        requests: look up, read, write, insert
//!        |
//!  btree/tree.rs           "this stretch lies there now"      one synchronous step: journal, then leaf
//!        |        \
//!  btree/split.rs  journal/   room in the tree, room in the log
//!        |          |
//!  alloc/          buckets to write into: chosen, invalidated, handed out
//! ```
//!
//! Everything here belongs to one lane. There are no locks around nodes: whatever looks at or
//! changes a node does it between two awaits. What takes time (writing a node, replacing it by
//! others) marks it, and those who need it otherwise wait and look again.
//!
//! # Order of writes
//!
//! The rules of the format (W1 to W14), and where each is kept:
//!
//! | rule | what is durable before what | where |
//! |---|---|---|
//! | W1 | data before the key that names them is in a journal entry | `mode/`: keys are made after the write; [`Set::harden`] before an entry or a leaf is written |
//! | W2 | flush and FUA wait for the entry with their keys | [`Set::commit_all`](crate::journal) |
//! | W3 | journal buffer before btree; the leaf pins the entry | `Set::apply` |
//! | W4 | `last_seq` passes an entry only when its leaves are written | `Journal::unpin`, called when a node write is done |
//! | W5 | a journal write is preceded by a flush and is FUA | `Set::write_entry` |
//! | W6 | new nodes, then the parent, then the old bucket is free | `Set::replace` |
//! | W7 | new root, then the entry naming it, then the old bucket is free | `Set::replace` |
//! | W8 | bucket reuse: prio chain with the new generation, entry naming it, then writes | `Set::refill` |
//! | W9 | no prio chain with the generation of a freed node before its parent is durable | `Buckets::persisted` |
//! | W10 | uuid table, then the entry naming it, then the first dirty key | `Set::write_uuids` |
//! | W11 | a bucket's last dirty key is gone for good before the bucket is reused | dirty-to-clean keys are journalled (`Set::mark_clean`), and W8 commits the journal |
//! | W12 | backing write and flush before the dirty bit drops | `writeback.rs`; for other writes over dirty data `Volume::settle` |
//! | W13 | state dirty before the first dirty write is acknowledged; clean only after W12 for all | `Volume::ensure_dirty`, `Volume::settle_clean` |
//! | W14 | btree node writes are FUA | [`Set::write_meta`] |
//!
//! # When something breaks
//!
//! A failed metadata write or a failed check of our own structures ends all writing of metadata, for
//! good ([`Set::fail`]). What can still be read is a matter of the volume, see `device.rs`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use uuid::Uuid;
use varve_block::sync::{LocalSemaphore, Notify};
use varve_block::{
    BlockDevice, BufPool, Durability, Error, ErrorKind, Extent, Geometry, Op, Result, Rt, Sector,
    Sectors,
};

use crate::alloc::{Allocator, Buckets};
use crate::btree::cache::NodeCache;
use crate::error::Corrupt;
use crate::fills::Fills;
use crate::format::superblock::SUPERBLOCK_SECTOR;
use crate::format::{Bucket, CacheSuper, Key, Layout, SetMagic, UuidTable};
use crate::journal::Journal;

/// What the journal names besides the root.
#[derive(Clone, Debug)]
pub(crate) struct Roots {
    pub uuid_bucket: Key,
    /// The prio chain on disk, in order.
    pub prio_chain: Vec<Bucket>,
    pub prio_seq: u64,
}

/// See the module.
pub(crate) struct Set<S> {
    pub rt: Rt,
    pub ssd: S,
    pub geometry: Geometry,
    pub layout: Layout,
    pub magic: SetMagic,
    pub uuid: Uuid,
    /// Buffers for metadata only: nothing that holds one waits for anything but the device.
    pub meta: BufPool,
    pub health: Health,
    pub buckets: RefCell<Buckets>,
    pub alloc: Allocator,
    pub journal: Journal,
    pub nodes: NodeCache,
    pub roots: RefCell<Roots>,
    pub uuids: RefCell<UuidTable>,
    pub fills: Fills,
    /// Dirty sectors by volume.
    pub dirty: RefCell<BTreeMap<u32, u64>>,
    /// Some volume's dirty sectors went up or down.
    pub dirty_changed: Notify,
    /// Sectors inserted since the last gc began.
    pub inserted: Cell<u64>,
    /// During recovery: buckets that the tree does not need any more, but an older root may.
    deferred: RefCell<Option<Vec<Bucket>>>,
    barrier: Barrier,
    sb: RefCell<CacheSuper>,
    sb_turn: LocalSemaphore,
    #[cfg(any(test, feature = "mutations"))]
    pub pred_fault: RefCell<Option<Rc<crate::btree::PredFault>>>,
}

impl<S: BlockDevice> Set<S> {
    /// A set whose tables have been read; nothing runs yet.
    pub(crate) fn assemble(rt: &Rt, ssd: S, parts: Parts) -> Rc<Set<S>> {
        let sb = parts.sb;
        Rc::new(Set {
            rt: rt.clone(),
            geometry: ssd.geometry(),
            ssd,
            layout: sb.layout,
            magic: sb.set_magic(),
            uuid: sb.set_uuid,
            meta: BufPool::new(0),
            health: Health::default(),
            alloc: Allocator::new(&sb),
            buckets: RefCell::new(parts.buckets),
            journal: parts.journal,
            nodes: NodeCache::new(&sb.layout, parts.node_cache),
            roots: RefCell::new(parts.roots),
            uuids: RefCell::new(parts.uuids),
            fills: Fills::default(),
            dirty: RefCell::default(),
            dirty_changed: Notify::new(),
            inserted: Cell::new(0),
            deferred: RefCell::new(Some(Vec::new())),
            barrier: Barrier::default(),
            sb: RefCell::new(sb),
            sb_turn: LocalSemaphore::new(1),
            #[cfg(any(test, feature = "mutations"))]
            pred_fault: RefCell::default(),
        })
    }

    /// Writes metadata to the cache device, durable when it returns (W14).
    ///
    /// # Errors
    /// The set has failed then, and stays so.
    pub(crate) async fn write_meta(&self, sector: u64, bytes: &[u8]) -> Result<()> {
        self.writable()?;
        let step = self.geometry.max_request.byte_len();
        let mut at = Sector(sector);
        for chunk in bytes.chunks(step) {
            let buf = self.meta.take_copy(chunk).await;
            let len = buf.sectors();
            if let Err(e) = self.ssd.write(at, buf.into(), Durability::Fua).await {
                self.fail(&e);
                return Err(e);
            }
            at += len;
        }
        Ok(())
    }

    /// Appends a set to a node, durably. A set is there when its first block is, and neither the
    /// kernel nor we take a node with a torn one; so the first block goes last.
    pub(crate) async fn write_set(&self, sector: u64, bytes: &[u8]) -> Result<()> {
        let block = Sectors(self.layout.block_size.into());
        let (head, body) = bytes.split_at(block.byte_len().min(bytes.len()));
        if !body.is_empty() {
            self.write_meta(sector + block.0, body).await?;
        }
        self.write_meta(sector, head).await
    }

    /// As [`Set::write_meta`], but a power cut leaves all of it or nothing that counts.
    ///
    /// A device keeps single blocks whole, not requests. What is sealed by a head that names it (a set
    /// of keys, a superblock) is written tail first: without its first block it is not there. The
    /// kernel writes all at once, and a torn append is the end of the whole set for it.
    pub(crate) async fn write_whole(&self, sector: u64, bytes: &[u8]) -> Result<()> {
        let block = self.geometry.block;
        if bytes.len() > block.byte_len() {
            let (head, tail) = bytes.split_at(block.byte_len());
            self.write_meta(sector + block.0, tail).await?;
            return self.write_meta(sector, head).await;
        }
        self.write_meta(sector, bytes).await
    }

    /// Reads metadata.
    pub(crate) async fn read_meta(&self, sector: u64, sectors: u32) -> Result<Vec<u8>> {
        read_all(&self.ssd, &self.meta, Extent::new(Sector(sector), Sectors(sectors.into()))).await
    }

    /// Changes the superblock of the cache device. Never two writes at a time, and the copy in
    /// memory changes only when the write has succeeded (O13).
    pub(crate) async fn update_super(&self, change: impl FnOnce(&mut CacheSuper)) -> Result<()> {
        let _turn = self.sb_turn.acquire(1).await;
        let mut next = self.sb.borrow().clone();
        change(&mut next);
        // The kernel rewrites the tools' version 0 like that.
        next.version = next.version.max(3);
        next.seq += 1;
        let page = next.encode();
        let facts = crate::format::DeviceFacts {
            sectors: self.geometry.len.0,
            logical_block: u32::try_from(self.geometry.block.bytes()).unwrap_or(u32::MAX),
        };
        let again = CacheSuper::parse(page.as_slice(), facts).map_err(|c| self.broken(c))?;
        assert!(again.seq == self.sb.borrow().seq + 1, "superblock seq goes up by one");
        self.write_whole(SUPERBLOCK_SECTOR, page.as_slice()).await?;
        *self.sb.borrow_mut() = next;
        Ok(())
    }

    /// The superblock as it is on disk.
    pub(crate) fn superblock(&self) -> CacheSuper {
        self.sb.borrow().clone()
    }

    /// What a write that has just finished needs before something may name its data: see
    /// [`Set::harden`].
    pub(crate) fn stamp(&self) -> u64 {
        self.barrier.started.get()
    }

    /// Returns when everything stamped up to `stamp` is durable on the cache device (W1).
    pub(crate) async fn harden(&self, stamp: u64) -> Result<()> {
        while self.barrier.done.get() <= stamp {
            let _turn = self.barrier.turn.acquire(1).await;
            if self.barrier.done.get() > stamp {
                break;
            }
            self.writable()?;
            let number = self.barrier.started.get() + 1;
            self.barrier.started.set(number);
            if let Err(e) = self.ssd.flush().await {
                self.fail(&e);
                return Err(e);
            }
            self.barrier.done.set(number);
        }
        Ok(())
    }

    /// Refuses when metadata may not be written any more.
    pub(crate) fn writable(&self) -> Result<()> {
        if let Some(why) = self.health.failed() {
            let e = self.error(ErrorKind::ReadOnly, Op::Write);
            return Err(e.with(format!("cache set {} is in safe mode: {why}", self.uuid)));
        }
        if self.health.gone.get() {
            return Err(self.error(ErrorKind::Stopped, Op::Write));
        }
        Ok(())
    }

    /// An error of the cache device as a whole.
    pub(crate) fn error(&self, kind: ErrorKind, op: Op) -> Error {
        Error::new(kind, op, Extent::default(), &self.geometry.dev)
    }

    /// Ends all writing of metadata; the first reason is kept.
    pub(crate) fn fail(&self, why: &dyn std::error::Error) {
        if self.health.failed().is_some() || self.health.gone.get() {
            return;
        }
        let mut line = why.to_string();
        let mut next = why.source();
        while let Some(cause) = next {
            line = format!("{line}: {cause}");
            next = cause.source();
        }
        tracing::error!(set = %self.uuid, dev = %self.geometry.dev, error = %line, "cache set failed");
        *self.health.reason.borrow_mut() = Some(line.into());
        self.wake_all();
    }

    /// A check of our own structures failed: the set fails, and the error is for whoever asked.
    pub(crate) fn broken(&self, corrupt: Corrupt) -> Error {
        let corrupt = corrupt.in_set(self.uuid);
        self.fail(&corrupt);
        self.error(ErrorKind::Corrupt, Op::Read).with(corrupt)
    }

    /// The owner dropped the cache without stopping it: everything ends where it stands, as if the
    /// power had gone.
    pub(crate) fn abandon(&self) {
        self.health.gone.set(true);
        self.wake_all();
    }

    fn wake_all(&self) {
        self.health.changed.notify_all();
        self.journal.changed.notify_all();
        self.journal.pending.notify_all();
        self.alloc.changed.notify_all();
        self.alloc.wanted.notify_all();
        self.dirty_changed.notify_all();
        self.nodes.wake_all();
    }

    /// Gives up a metadata bucket that nothing durable names any more.
    pub(crate) fn release(&self, bucket: Bucket) {
        match &mut *self.deferred.borrow_mut() {
            Some(deferred) => deferred.push(bucket),
            None => self.buckets.borrow_mut().release(bucket),
        }
    }

    /// Returns once the journal names the root (W7). Recovery does that at its end: until then the
    /// journal on disk leads to the old root, whose nodes are all kept.
    pub(crate) async fn commit_root(self: &Rc<Self>) -> Result<()> {
        if self.deferred.borrow().is_some() {
            return Ok(());
        }
        self.commit_roots().await
    }

    /// The end of recovery: from now on buckets are released at once, those kept so far first.
    pub(crate) async fn settle(self: &Rc<Self>) -> Result<()> {
        self.commit_roots().await?;
        let deferred = self.deferred.borrow_mut().take().unwrap_or_default();
        deferred.into_iter().for_each(|bucket| self.release(bucket));
        Ok(())
    }

    /// Dirty sectors of a volume.
    pub(crate) fn dirty_sectors(&self, inode: u32) -> u64 {
        self.dirty.borrow().get(&inode).copied().unwrap_or(0)
    }
}

/// What recovery or the first start found out.
pub(crate) struct Parts {
    pub sb: CacheSuper,
    pub buckets: Buckets,
    pub journal: Journal,
    pub roots: Roots,
    pub uuids: UuidTable,
    /// Bytes of nodes to keep in memory.
    pub node_cache: usize,
}

/// Reads any length.
pub(crate) async fn read_all<D: BlockDevice>(
    dev: &D,
    pool: &BufPool,
    range: Extent,
) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(range.len.byte_len());
    for piece in range.pieces(dev.geometry().max_request) {
        let buf = dev.read(piece.start, pool.take(piece.len).await).await?;
        bytes.extend_from_slice(&buf);
    }
    Ok(bytes)
}

/// Whether the set still works.
#[derive(Default)]
pub(crate) struct Health {
    reason: RefCell<Option<Rc<str>>>,
    /// Abandoned: background tasks end at their next step.
    pub gone: Cell<bool>,
    /// A stop was asked for: background tasks end when they have nothing half done.
    pub stopping: Cell<bool>,
    pub changed: Notify,
}

impl Health {
    /// Why metadata are not written any more.
    pub(crate) fn failed(&self) -> Option<Rc<str>> {
        self.reason.borrow().clone()
    }

    /// Whether a background task should go on.
    pub(crate) fn running(&self) -> bool {
        !self.gone.get() && !self.stopping.get() && self.reason.borrow().is_none()
    }
}

/// Flushes of the cache device, numbered. A write that finished while number `n` was the last to
/// have *started* is durable once a later one is *done*.
struct Barrier {
    started: Cell<u64>,
    done: Cell<u64>,
    turn: LocalSemaphore,
}

impl Default for Barrier {
    /// Stamp 0 means "no data": durable from the beginning.
    fn default() -> Barrier {
        Barrier { started: Cell::new(1), done: Cell::new(1), turn: LocalSemaphore::new(1) }
    }
}
