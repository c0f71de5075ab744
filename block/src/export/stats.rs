//! Counters that cost a few nanoseconds, and what a display or a JSON report makes of them.
//!
//! Each lane of an export, and each [`super::Probe`] in a stack, writes its own [`Counters`]; whoever
//! looks takes a [`Stats`] of each and merges them. Nothing is locked, so a snapshot may catch an
//! operation between two of its numbers; it never goes backwards.

use crate::error::Op;
use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// What is counted, in the order of the arrays below.
pub const COUNTED: [Op; 7] =
    [Op::Read, Op::Write, Op::Flush, Op::Discard, Op::WriteZeroes, Op::Extents, Op::Prefetch];

fn slot(op: Op) -> usize {
    match op {
        // Opening is nobody's request; it never reaches a counter.
        Op::Read | Op::Open => 0,
        Op::Write => 1,
        Op::Flush => 2,
        Op::Discard => 3,
        Op::WriteZeroes => 4,
        Op::Extents => 5,
        Op::Prefetch => 6,
    }
}

/// Four buckets per power of two, so a quantile is off by at most a quarter; up to 2^40 ns, which is
/// eighteen minutes.
const BUCKETS: usize = 4 * 40;

/// The bucket of a latency.
fn bucket(ns: u64) -> usize {
    if ns < 4 {
        return usize::try_from(ns).expect("below 4");
    }
    let log = ns.ilog2();
    let sub = (ns >> (log - 2)) & 3;
    let index = u64::from(log - 1) * 4 + sub;
    usize::try_from(index).map_or(BUCKETS - 1, |i| i.min(BUCKETS - 1))
}

/// The longest latency that falls into a bucket.
fn bucket_max(index: usize) -> u64 {
    let index = index as u64;
    if index < 4 {
        return index;
    }
    let (log, sub) = (index / 4 + 1, index % 4);
    ((4 + sub + 1) << (log - 2)) - 1
}

struct OpCounters {
    started: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
    total_ns: AtomicU64,
    latency: [AtomicU64; BUCKETS],
}

impl Default for OpCounters {
    fn default() -> OpCounters {
        OpCounters {
            started: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            total_ns: AtomicU64::new(0),
            latency: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

/// Live counters of one place. `Sync`: any thread may take a [`Stats`].
#[derive(Default)]
pub struct Counters {
    ops: [OpCounters; COUNTED.len()],
}

impl Counters {
    pub(super) fn start(&self, op: Op) {
        self.ops[slot(op)].started.fetch_add(1, Relaxed);
    }

    pub(super) fn finish(&self, op: Op, bytes: u64, took: Duration, ok: bool) {
        let counters = &self.ops[slot(op)];
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        if ok {
            counters.bytes.fetch_add(bytes, Relaxed);
        } else {
            counters.errors.fetch_add(1, Relaxed);
        }
        counters.total_ns.fetch_add(ns, Relaxed);
        counters.latency[bucket(ns)].fetch_add(1, Relaxed);
    }

    pub fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        for (op, out) in self.ops.iter().zip(&mut stats.ops) {
            // Finished before started, so that the difference is never negative.
            for (from, to) in op.latency.iter().zip(&mut out.latency) {
                *to = from.load(Relaxed);
            }
            out.bytes = op.bytes.load(Relaxed);
            out.errors = op.errors.load(Relaxed);
            out.total_ns = op.total_ns.load(Relaxed);
            out.started = op.started.load(Relaxed);
        }
        stats
    }
}

/// What one kind of operation did, up to a moment or between two.
#[derive(Clone, PartialEq, Eq)]
pub struct OpStats {
    started: u64,
    bytes: u64,
    errors: u64,
    total_ns: u64,
    latency: [u64; BUCKETS],
}

impl Default for OpStats {
    fn default() -> OpStats {
        OpStats { started: 0, bytes: 0, errors: 0, total_ns: 0, latency: [0; BUCKETS] }
    }
}

impl OpStats {
    /// Operations that ended, well or not.
    pub fn count(&self) -> u64 {
        self.latency.iter().sum()
    }

    /// Bytes of the operations that ended well.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn errors(&self) -> u64 {
        self.errors
    }

    /// Begun and not ended (of a difference: how many more than at its start, at least 0).
    pub fn in_flight(&self) -> u64 {
        self.started.saturating_sub(self.count())
    }

    pub fn mean_ns(&self) -> u64 {
        self.total_ns.checked_div(self.count()).unwrap_or(0)
    }

    /// The latency that `permille` of 1000 operations did not exceed, rounded up to its bucket; 0
    /// when there were none.
    pub fn quantile_ns(&self, permille: u64) -> u64 {
        let rank = (self.count() * permille.min(1000)).div_ceil(1000).max(1);
        let mut seen = 0;
        for (index, n) in self.latency.iter().enumerate() {
            seen += n;
            if seen >= rank {
                return bucket_max(index);
            }
        }
        0
    }

    pub fn report(&self) -> OpReport {
        OpReport {
            count: self.count(),
            bytes: self.bytes,
            errors: self.errors,
            in_flight: self.in_flight(),
            mean_ns: self.mean_ns(),
            p50_ns: self.quantile_ns(500),
            p99_ns: self.quantile_ns(990),
            p999_ns: self.quantile_ns(999),
            max_ns: self.quantile_ns(1000),
        }
    }

    fn combine(&mut self, other: &OpStats, f: impl Fn(u64, u64) -> u64) {
        self.started = f(self.started, other.started);
        self.bytes = f(self.bytes, other.bytes);
        self.errors = f(self.errors, other.errors);
        self.total_ns = f(self.total_ns, other.total_ns);
        for (mine, theirs) in self.latency.iter_mut().zip(&other.latency) {
            *mine = f(*mine, *theirs);
        }
    }
}

/// A snapshot of [`Counters`], or the difference or sum of several.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Stats {
    ops: [OpStats; COUNTED.len()],
}

impl Stats {
    pub fn of(&self, op: Op) -> &OpStats {
        &self.ops[slot(op)]
    }

    /// What happened since `earlier`, a snapshot of the same counters.
    pub fn since(&self, earlier: &Stats) -> Stats {
        let mut delta = self.clone();
        for (mine, theirs) in delta.ops.iter_mut().zip(&earlier.ops) {
            mine.combine(theirs, u64::saturating_sub);
        }
        delta
    }

    /// Adds another lane's or another layer's numbers.
    pub fn merge(&mut self, other: &Stats) {
        for (mine, theirs) in self.ops.iter_mut().zip(&other.ops) {
            mine.combine(theirs, u64::saturating_add);
        }
    }

    pub fn report(&self) -> StatsReport {
        StatsReport {
            read: self.of(Op::Read).report(),
            write: self.of(Op::Write).report(),
            flush: self.of(Op::Flush).report(),
            discard: self.of(Op::Discard).report(),
            write_zeroes: self.of(Op::WriteZeroes).report(),
            extents: self.of(Op::Extents).report(),
            prefetch: self.of(Op::Prefetch).report(),
        }
    }
}

/// One operation's figures, as `--json` prints them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct OpReport {
    pub count: u64,
    pub bytes: u64,
    pub errors: u64,
    pub in_flight: u64,
    pub mean_ns: u64,
    pub p50_ns: u64,
    pub p99_ns: u64,
    pub p999_ns: u64,
    pub max_ns: u64,
}

/// A place's figures, as `--json` prints them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct StatsReport {
    pub read: OpReport,
    pub write: OpReport,
    pub flush: OpReport,
    pub discard: OpReport,
    pub write_zeroes: OpReport,
    pub extents: OpReport,
    pub prefetch: OpReport,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_rise_and_hold_what_falls_into_them() {
        let mut last = 0;
        for ns in (0..100_000).chain([1 << 30, 1 << 39, u64::MAX >> 20]) {
            let b = bucket(ns);
            assert!(b >= last, "{ns}");
            last = b;
            if b < BUCKETS - 1 {
                assert!(bucket_max(b) >= ns, "{ns} in bucket {b}");
                assert!(b == 0 || bucket_max(b - 1) < ns, "{ns} in bucket {b}");
            }
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn a_difference_and_a_sum_are_what_they_say() {
        let counters = Counters::default();
        counters.start(Op::Read);
        counters.finish(Op::Read, 4096, Duration::from_nanos(900), true);
        let first = counters.stats();
        for _ in 0..99 {
            counters.start(Op::Read);
            counters.finish(Op::Read, 512, Duration::from_nanos(100), true);
        }
        counters.start(Op::Read);
        counters.finish(Op::Read, 512, Duration::from_micros(70), false);
        counters.start(Op::Read);
        let read = counters.stats().since(&first).of(Op::Read).report();
        assert_eq!((read.count, read.bytes, read.errors), (100, 99 * 512, 1));
        assert_eq!(read.in_flight, 1);
        assert!((100..125).contains(&read.p50_ns), "{}", read.p50_ns);
        assert!((70_000..88_000).contains(&read.max_ns), "{}", read.max_ns);
        let mut both = first.clone();
        both.merge(&first);
        assert_eq!(both.of(Op::Read).bytes(), 8192);
        assert_eq!(both.of(Op::Write).quantile_ns(999), 0);
    }
}
