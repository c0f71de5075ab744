//! One device, many clients: where "order is yours" becomes "this order".
//!
//! An [`Export`] is a lane's handle over a device; all handles of one device share one
//! [`ExportShared`]. What it adds to the device below:
//!
//! - **Any byte range.** Requests that do not fit the device's blocks are read, modified and written
//!   back, atomically towards every other request.
//! - **Order.** A range lock over the blocks of a request, in the order of asking, across all lanes,
//!   connections and front ends: shared for reads, exclusive for what changes bytes. Overlapping
//!   writes are applied one after the other, never mixed; a retry cannot be overtaken by the copy it
//!   repeats.
//! - **Flush.** A flush covers every write that finished before it was asked for, on whatever
//!   connection. Flushes that come together share one device flush.
//! - **A latch.** After a failed flush nothing is written any more ([`ErrorKind::Poisoned`]); reads
//!   go on, so that what is there can be saved.
//! - **Quiet.** [`ExportShared::quiesce`] holds requests without failing them, while
//!   [`Export::swap`] puts another stack in place.
//! - **Figures**, per lane, merged by [`ExportShared::stats`].
//!
//! An aligned request of one piece goes straight down with the caller's buffer: no copy, and no
//! allocation beyond what the range lock keeps.
//!
//! # Cancellation
//!
//! A dropped write or trim may still act below, while its range is already free for others. Front
//! ends therefore let requests run to their end, also when the client has gone. A dropped flush is
//! safe: it runs in a task of its own.
//!
//! # Durability
//!
//! The devices of all handles must be the same medium: a flush through one covers writes finished
//! through any.

mod bound;
mod cut;
mod deadline;
mod device;
mod flush;
mod gate;
#[cfg(test)]
mod loomed;
mod pieces;
mod probe;
mod rmw;
mod sabotage;
mod shared;
mod stats;
mod status;
#[cfg(test)]
mod tests;
mod zero;

mod atomics {
    pub(super) use std::sync::atomic::{AtomicU64, Ordering};
    pub(super) use std::sync::{Mutex, MutexGuard};
}

pub use deadline::Deadline;
pub use probe::Probe;
pub use sabotage::Sabotage;
pub use shared::{ExportOptions, ExportShared, Quiet};
pub use stats::{COUNTED, Counters, OpReport, OpStats, Stats, StatsReport};
pub use status::ByteStatus;

use crate::buf::{Data, IoBuf};
use crate::device::{BlockDevice, Durability};
use crate::error::{ErrorKind, Op, Result};
use crate::rt::Rt;
use crate::sync::RangeGuard;
use crate::units::{Extent, Sector};
use bound::{Bound, Span};
use cut::{cut, rejoin};
use flush::Turn;
use gate::Pass;
use pieces::{TURN_BYTES, bounded};
use probe::Timed;
use rmw::Source;
use status::clip;
use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;

/// Pieces of one aligned request in flight at a time.
const WIDTH: usize = 8;

/// A lane's handle. Clones are the same handle.
pub struct Export<D>(Rc<Handle<D>>);

impl<D> Clone for Export<D> {
    fn clone(&self) -> Export<D> {
        Export(Rc::clone(&self.0))
    }
}

struct Handle<D> {
    rt: Rt,
    shared: Arc<ExportShared>,
    counters: Arc<Counters>,
    bound: RefCell<Rc<Bound<D>>>,
}

impl<D: BlockDevice> Export<D> {
    pub fn new(rt: Rt, shared: Arc<ExportShared>, device: D) -> Export<D> {
        let counters = shared.add_lane();
        Export(Rc::new(Handle {
            rt,
            shared,
            counters,
            bound: RefCell::new(Rc::new(Bound::new(device))),
        }))
    }

    pub fn shared(&self) -> &Arc<ExportShared> {
        &self.0.shared
    }

    /// Size in bytes: whole blocks of the device.
    pub fn size(&self) -> u64 {
        self.bound().size
    }

    pub fn is_read_only(&self) -> bool {
        self.0.shared.options.read_only || self.bound().read_only
    }

    /// Another device in place of this handle's, returning the old one. Each handle of the export
    /// has its own to swap.
    ///
    /// # Errors
    /// `OutOfRange` when it is smaller: clients know the old size.
    ///
    /// # Panics
    /// When `quiet` is not the quiet of this export.
    pub fn swap(&self, quiet: &Quiet, device: D) -> Result<D> {
        assert!(quiet.is_of(&self.0.shared), "a swap needs a quiet export");
        let new = Bound::new(device);
        let old_size = self.size();
        if new.size < old_size {
            return Err(new.error(ErrorKind::OutOfRange, Op::Open, 0, old_size));
        }
        let old = self.0.bound.replace(Rc::new(new));
        let old = Rc::into_inner(old).expect("a quiet export has no request in flight");
        Ok(old.device)
    }

    fn bound(&self) -> Rc<Bound<D>> {
        Rc::clone(&self.0.bound.borrow())
    }

    fn timed(&self, op: Op, bytes: u64) -> Timed<'_> {
        Timed::begin(&self.0.counters, &self.0.rt, op, bytes)
    }

    fn sabotaged(&self, which: Sabotage) -> bool {
        self.0.shared.options.sabotage.is(which)
    }

    async fn enter(&self) -> Pass<'_> {
        self.0.shared.gate.enter().await
    }

    /// The blocks of a request, or what a deliberately wrong build takes for them.
    fn lock_range(&self, span: Span, blocks: Extent) -> Extent {
        if self.sabotaged(Sabotage::NoRangeLock) {
            return Extent::default();
        }
        if self.sabotaged(Sabotage::LockNotRounded) {
            let end = Sector(span.end.div_ceil(512));
            return Extent::between(Sector::containing(span.start), end);
        }
        blocks
    }

    async fn lock_read(&self, span: Span, blocks: Extent) -> RangeGuard {
        let range = self.lock_range(span, blocks);
        self.0.shared.locks.read(range).await
    }

    async fn lock_write(&self, span: Span, blocks: Extent) -> RangeGuard {
        let range = self.lock_range(span, blocks);
        self.0.shared.locks.write(range).await
    }

    /// Fills `buf` from `offset`. Any offset, any length.
    pub async fn read(&self, offset: u64, buf: IoBuf) -> Result<IoBuf> {
        let timed = self.timed(Op::Read, buf.len() as u64);
        timed.end(self.read_one(offset, buf).await)
    }

    async fn read_one(&self, offset: u64, buf: IoBuf) -> Result<IoBuf> {
        let _pass = self.enter().await;
        let bound = self.bound();
        let span = bound.span(Op::Read, offset, buf.len() as u64)?;
        if span.is_empty() {
            return Ok(buf);
        }
        let range = bound.outward(span);
        let _lock = self.lock_read(span, range).await;
        if bound.is_direct(span, range) {
            return bound.device.read(range.start, buf).await;
        }
        let mut list = self.read_pieces(&bound, span, range, vec![buf]).await?;
        Ok(list.pop().expect("as many buffers as were given"))
    }

    /// Fills the buffers, one after the other, from `offset`: requests above the largest buffer.
    pub async fn read_list(&self, offset: u64, list: Vec<IoBuf>) -> Result<Vec<IoBuf>> {
        let len = list.iter().map(|b| b.len() as u64).sum();
        let timed = self.timed(Op::Read, len);
        let read = async {
            let _pass = self.enter().await;
            let bound = self.bound();
            let span = bound.span(Op::Read, offset, len)?;
            if span.is_empty() {
                return Ok(list);
            }
            let range = bound.outward(span);
            let _lock = self.lock_read(span, range).await;
            self.read_pieces(&bound, span, range, list).await
        };
        timed.end(read.await)
    }

    async fn read_pieces(
        &self,
        bound: &Bound<D>,
        span: Span,
        range: Extent,
        list: Vec<IoBuf>,
    ) -> Result<Vec<IoBuf>> {
        let lens: Vec<usize> = list.iter().map(|b| b.len()).collect();
        if !bound.is_whole(span, lens.iter().copied()) {
            return rmw::read(bound, &self.0.shared.pool, span, range, list).await;
        }
        let pieces = cut(range.start, list, bound.piece, IoBuf::split_at);
        let jobs = pieces.map(|(at, buf)| (buf.len(), bound.device.read(at, buf)));
        let mut read = bounded(jobs, WIDTH, self.turn_bytes()).await?.into_iter();
        Ok(lens.iter().map(|&len| rejoin(&mut read, len)).collect())
    }

    /// Writes `data` at `offset`; with `fua`, durably.
    pub async fn write(&self, offset: u64, data: impl Into<Data>, fua: bool) -> Result<()> {
        let data = data.into();
        let timed = self.timed(Op::Write, data.len() as u64);
        timed.end(self.write_one(offset, data, fua).await.map(drop))
    }

    /// The buffer comes back if it went straight down.
    async fn write_one(&self, offset: u64, data: Data, fua: bool) -> Result<Option<Data>> {
        let _pass = self.enter().await;
        let bound = self.bound();
        let span = bound.span(Op::Write, offset, data.len() as u64)?;
        let range = bound.outward(span);
        self.admit_change(&bound, Op::Write, range)?;
        if span.is_empty() {
            return Ok(Some(data));
        }
        let _lock = self.lock_write(span, range).await;
        self.0.shared.flushes.admit(Op::Write, range)?;
        let how = self.durability(fua);
        if bound.is_direct(span, range) {
            return bound.device.write(range.start, data, how).await.map(Some);
        }
        self.write_pieces(&bound, span, range, vec![data], how).await?;
        Ok(None)
    }

    /// Writes the buffers, one after the other, at `offset`, as one request.
    pub async fn write_list(&self, offset: u64, list: Vec<Data>, fua: bool) -> Result<()> {
        let len = list.iter().map(|b| b.len() as u64).sum();
        let timed = self.timed(Op::Write, len);
        let write = async {
            let _pass = self.enter().await;
            let bound = self.bound();
            let span = bound.span(Op::Write, offset, len)?;
            let range = bound.outward(span);
            self.admit_change(&bound, Op::Write, range)?;
            if span.is_empty() {
                return Ok(());
            }
            let _lock = self.lock_write(span, range).await;
            self.0.shared.flushes.admit(Op::Write, range)?;
            self.write_pieces(&bound, span, range, list, self.durability(fua)).await
        };
        timed.end(write.await)
    }

    async fn write_pieces(
        &self,
        bound: &Bound<D>,
        span: Span,
        range: Extent,
        list: Vec<Data>,
        how: Durability,
    ) -> Result<()> {
        if !bound.is_whole(span, list.iter().map(|d| d.len())) {
            let source = Source::Bytes(&list);
            return rmw::write(bound, &self.0.shared.pool, span, range, source, how).await;
        }
        let pieces = cut(range.start, list, bound.piece, Data::split_at);
        let jobs = pieces.map(|(at, data)| {
            let len = data.len();
            (len, async move {
                // The buffer goes home at once, not when the last piece is through.
                bound.device.write(at, data, how).await.map(drop)
            })
        });
        bounded(jobs, WIDTH, self.turn_bytes()).await.map(drop)
    }

    fn turn_bytes(&self) -> usize {
        if self.sabotaged(Sabotage::NoTurns) { usize::MAX } else { TURN_BYTES }
    }

    fn durability(&self, fua: bool) -> Durability {
        if fua && !self.sabotaged(Sabotage::FuaIgnored) {
            Durability::Fua
        } else {
            Durability::Cached
        }
    }

    /// Whether bytes may be changed at all.
    fn admit_change(&self, bound: &Bound<D>, op: Op, at: Extent) -> Result<()> {
        if self.0.shared.options.read_only || bound.read_only {
            let error = crate::error::Error::new(ErrorKind::ReadOnly, op, at, &bound.dev);
            return Err(error);
        }
        self.0.shared.flushes.admit(op, at)
    }

    /// Makes every write that finished before this call durable, on whatever handle it finished.
    pub async fn flush(&self) -> Result<()> {
        let timed = self.timed(Op::Flush, 0);
        let flush = async {
            let pass = self.enter().await;
            self.group_flush(&pass).await
        };
        timed.end(flush.await)
    }

    async fn group_flush(&self, pass: &Pass<'_>) -> Result<()> {
        if self.0.shared.options.read_only {
            return Ok(()); // nothing was written, and nothing may be
        }
        let flushes = &self.0.shared.flushes;
        let need = if self.sabotaged(Sabotage::FlushJoinsRunning) {
            flushes.need_without_epoch()
        } else {
            flushes.need()
        };
        loop {
            match poll_fn(|cx| flushes.poll(need, cx)).await {
                Turn::Ended(result) => return result,
                Turn::Lead(number) => self.lead_flush(number, pass),
            }
            if self.sabotaged(Sabotage::FlushAnswersEarly) {
                return Ok(());
            }
        }
    }

    fn lead_flush(&self, number: u64, pass: &Pass<'_>) {
        let bound = self.bound();
        let running = shared::RunningFlush::new(&self.0.shared, pass, number, bound.dev.clone());
        let task = self.0.rt.spawn(async move {
            let result = bound.device.flush().await;
            // Before the pass inside `running`: a quiet export has no reference to its device.
            drop(bound);
            running.end(result);
        });
        drop(task);
    }

    /// A hint that these bytes will be read soon.
    pub async fn prefetch(&self, offset: u64, len: u64) -> Result<()> {
        let timed = self.timed(Op::Prefetch, len);
        let prefetch = async {
            let _pass = self.enter().await;
            let bound = self.bound();
            let span = bound.span(Op::Prefetch, offset, len)?;
            if span.is_empty() {
                return Ok(());
            }
            ignore_unsupported(bound.device.prefetch(bound.outward(span)).await)
        };
        timed.end(prefetch.await)
    }

    /// What is known of `[offset, offset + len)` without reading it: runs from `offset` on, at most
    /// `limit` (at least 1), equal neighbours merged; they may end before the range does, never
    /// without progress. Where the device cannot tell, it is data.
    pub async fn block_status(
        &self,
        offset: u64,
        len: u64,
        limit: usize,
    ) -> Result<Vec<ByteStatus>> {
        let timed = self.timed(Op::Extents, 0);
        let status = async {
            let _pass = self.enter().await;
            let bound = self.bound();
            let span = bound.span(Op::Extents, offset, len)?;
            if span.is_empty() {
                return Ok(Vec::new());
            }
            let range = bound.outward(span);
            let runs = bound.device.extents(range, limit.max(1)).await;
            Ok(clip(span, &runs.unwrap_or_default(), limit.max(1)))
        };
        timed.end(status.await)
    }
}

/// A hint that a device does not take has been taken.
fn ignore_unsupported(result: Result<()>) -> Result<()> {
    match result {
        Err(e) if e.kind == ErrorKind::Unsupported => Ok(()),
        other => other,
    }
}
