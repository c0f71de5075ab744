//! What all lanes of one export share: the order of requests, the flush group, the gate.

use super::flush::FlushGroup;
use super::gate::{Gate, Pass};
use super::sabotage::Sabotage;
use super::stats::{Counters, Stats};
use crate::buf::BufPool;
use crate::error::{DevId, Error, ErrorKind, Op, Result};
use crate::sync::RangeLock;
use crate::units::Extent;
use std::sync::{Arc, Mutex, PoisonError};

/// How an export treats its clients.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExportOptions {
    /// Refuse everything that changes bytes, whatever the device could do.
    pub read_only: bool,
    /// A bug switched on for a demonstration. Does nothing unless the crate's feature of that name
    /// is on.
    pub sabotage: Sabotage,
}

/// Four requests may be bounced at full width.
const POOL_BYTES: usize = 16 << 20;

/// The one state behind every [`super::Export`] handle of one device, on whatever lane.
pub struct ExportShared {
    pub(super) options: ExportOptions,
    pub(super) locks: RangeLock,
    pub(super) flushes: FlushGroup,
    pub(super) gate: Gate,
    /// Buffers for requests that do not fit the device's blocks; for nothing else, so that who
    /// holds one waits only for the device.
    pub(super) pool: BufPool,
    lanes: Mutex<Vec<Arc<Counters>>>,
}

impl ExportShared {
    pub fn new(options: ExportOptions) -> Arc<ExportShared> {
        Arc::new(ExportShared {
            options,
            locks: RangeLock::new(),
            flushes: FlushGroup::default(),
            gate: Gate::default(),
            pool: BufPool::new(POOL_BYTES),
            lanes: Mutex::default(),
        })
    }

    /// Counters for one more handle. Each lane writes its own cache lines.
    pub(super) fn add_lane(&self) -> Arc<Counters> {
        let counters = Arc::new(Counters::default());
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.push(Arc::clone(&counters));
        counters
    }

    /// The sum over all lanes. Any thread may ask.
    pub fn stats(&self) -> Stats {
        let lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sum = Stats::default();
        for lane in lanes.iter() {
            sum.merge(&lane.stats());
        }
        sum
    }

    /// Requests being served now, on all lanes and connections.
    pub fn in_flight(&self) -> u64 {
        self.gate.inside()
    }

    /// A flush failed: writes and flushes are refused for good.
    pub fn is_poisoned(&self) -> bool {
        self.flushes.is_poisoned()
    }

    /// Whether requests are being held.
    pub fn is_quiet(&self) -> bool {
        self.gate.is_closed()
    }

    /// Holds new requests and waits until those in flight have ended. Nothing fails: requests go on
    /// when the [`Quiet`] drops. Others who ask to quiesce meanwhile wait for their turn.
    pub async fn quiesce(self: &Arc<ExportShared>) -> Quiet {
        let mut quiet = Quiet { shared: Arc::clone(self), closed: false };
        self.gate.close(&mut quiet.closed).await;
        quiet
    }
}

/// The export is quiet until this drops or is [`Quiet::resume`]d. `Send`: each lane may swap its
/// device meanwhile ([`super::Export::swap`]).
pub struct Quiet {
    shared: Arc<ExportShared>,
    closed: bool,
}

impl Quiet {
    /// Lets requests go on.
    pub fn resume(self) {
        drop(self);
    }

    pub(super) fn is_of(&self, shared: &Arc<ExportShared>) -> bool {
        self.closed && Arc::ptr_eq(&self.shared, shared)
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        if self.closed {
            self.shared.gate.open();
        }
    }
}

/// A device flush on its way. If nobody sees its end (its lane was torn down), what it promised is
/// unknown, and that is a failure.
pub(super) struct RunningFlush {
    shared: Arc<ExportShared>,
    number: u64,
    dev: DevId,
    ended: bool,
}

impl RunningFlush {
    pub(super) fn new(
        shared: &Arc<ExportShared>,
        pass: &Pass<'_>,
        number: u64,
        dev: DevId,
    ) -> RunningFlush {
        shared.gate.enter_behind(pass);
        RunningFlush { shared: Arc::clone(shared), number, dev, ended: false }
    }

    pub(super) fn end(mut self, result: Result<()>) {
        self.ended = true;
        self.shared.flushes.finish(self.number, result);
    }
}

impl Drop for RunningFlush {
    fn drop(&mut self) {
        if !self.ended {
            let lost = Error::new(ErrorKind::Stopped, Op::Flush, Extent::default(), &self.dev);
            self.shared.flushes.finish(self.number, Err(lost));
        }
        self.shared.gate.leave();
    }
}

const _: () = {
    const fn lanes_share<T: Send + Sync>() {}
    lanes_share::<ExportShared>();
    lanes_share::<Quiet>();
};
