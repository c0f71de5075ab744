//! The counters of an export for any other layer of a stack.

use super::stats::{Counters, Stats};
use crate::buf::{Data, IoBuf};
use crate::device::{BlockDevice, Durability, ExtentStatus, Geometry, Zero};
use crate::error::{Op, Result};
use crate::rt::{Instant, Rt};
use crate::units::{Extent, Sector};
use std::sync::Arc;

/// One operation being counted. Dropped without [`Timed::end`], it was abandoned, and counts as an
/// error: nobody knows how it went.
pub(super) struct Timed<'a> {
    counters: &'a Counters,
    rt: &'a Rt,
    op: Op,
    bytes: u64,
    begun: Instant,
    ok: bool,
}

impl<'a> Timed<'a> {
    pub(super) fn begin(counters: &'a Counters, rt: &'a Rt, op: Op, bytes: u64) -> Timed<'a> {
        counters.start(op);
        Timed { counters, rt, op, bytes, begun: rt.now(), ok: false }
    }

    pub(super) fn end<T>(mut self, result: Result<T>) -> Result<T> {
        self.ok = result.is_ok();
        result
    }
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        let took = self.rt.now() - self.begun;
        self.counters.finish(self.op, self.bytes, took, self.ok);
    }
}

/// A layer that changes nothing and counts everything: put one over each layer whose figures are of
/// interest.
#[derive(Clone)]
pub struct Probe<D> {
    rt: Rt,
    below: D,
    counters: Arc<Counters>,
}

impl<D: BlockDevice> Probe<D> {
    pub fn new(rt: Rt, below: D) -> Probe<D> {
        Probe { rt, below, counters: Arc::default() }
    }

    /// The live counters, for a thread that reports.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    pub fn stats(&self) -> Stats {
        self.counters.stats()
    }

    fn timed(&self, op: Op, bytes: u64) -> Timed<'_> {
        Timed::begin(&self.counters, &self.rt, op, bytes)
    }
}

impl<D: BlockDevice> BlockDevice for Probe<D> {
    fn geometry(&self) -> Geometry {
        self.below.geometry()
    }

    async fn read(&self, at: Sector, buf: IoBuf) -> Result<IoBuf> {
        let timed = self.timed(Op::Read, buf.len() as u64);
        timed.end(self.below.read(at, buf).await)
    }

    async fn write(&self, at: Sector, data: Data, how: Durability) -> Result<Data> {
        let timed = self.timed(Op::Write, data.len() as u64);
        timed.end(self.below.write(at, data, how).await)
    }

    async fn flush(&self) -> Result<()> {
        let timed = self.timed(Op::Flush, 0);
        timed.end(self.below.flush().await)
    }

    async fn discard(&self, range: Extent) -> Result<()> {
        let timed = self.timed(Op::Discard, range.len.bytes());
        timed.end(self.below.discard(range).await)
    }

    async fn write_zeroes(&self, range: Extent, how: Zero) -> Result<()> {
        let timed = self.timed(Op::WriteZeroes, range.len.bytes());
        timed.end(self.below.write_zeroes(range, how).await)
    }

    async fn extents(&self, range: Extent, limit: usize) -> Result<Vec<ExtentStatus>> {
        let timed = self.timed(Op::Extents, 0);
        timed.end(self.below.extents(range, limit).await)
    }

    async fn prefetch(&self, range: Extent) -> Result<()> {
        let timed = self.timed(Op::Prefetch, range.len.bytes());
        timed.end(self.below.prefetch(range).await)
    }
}
