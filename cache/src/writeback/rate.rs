//! How fast dirty data go home while clients use the devices (format: bcache 3.20).
//!
//! A controller aims at a share of the cache being dirty. What is above it leaves over some forty
//! seconds rather than at once: data that are written again meanwhile need not be moved twice, the
//! backing device gets longer runs, and clients keep most of both devices.
//!
//! ```text
//! error = dirty - target
//! rate  = error / 40 (or what frees fragmented buckets) + sum(error * seconds) / 10000,  at least 8
//! ```
//!
//! The limiter turns a rate into pauses: each batch moves the time of the next one on.

use std::time::Duration;

use varve_block::Instant;

/// The error is to be gone in about so many seconds.
const P_TERM_INVERSE: i64 = 40;
/// How slowly a lasting error adds up.
const I_TERM_INVERSE: i64 = 10_000;
/// Sectors per second that are moved at least.
const RATE_MIN: i64 = 8;
const RATE_MAX: i64 = 1_000_000_000;
/// Sectors per second before the first look at the error.
const RATE_INITIAL: u64 = 1024;
/// How often the rate is computed anew.
const UPDATE: Duration = Duration::from_secs(5);
/// How far the next batch may fall behind now (what was missed is not made up for) ...
const BEHIND_MAX: Duration = Duration::from_secs(2);
/// ... and be ahead of it.
const AHEAD_MAX: Duration = Duration::from_millis(2500);
/// A batch is what the rate moves in such a part of a second, so that it pulses gently.
const BATCHES_PER_SECOND: u64 = 4;

/// What the controller looks at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) dirty_sectors: u64,
    pub(crate) target_sectors: u64,
    /// Percent of buckets that cannot be reused now, and their number.
    pub(crate) in_use_percent: u8,
    pub(crate) buckets_in_use: u64,
    pub(crate) bucket_sectors: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Rate {
    sectors_per_s: u64,
    /// Sum of error times seconds, in sectors.
    integral: i64,
    updated: Option<Instant>,
    /// When the next batch may begin.
    next: Instant,
}

impl Rate {
    pub(crate) fn new(now: Instant) -> Rate {
        Rate { sectors_per_s: RATE_INITIAL, integral: 0, updated: None, next: now }
    }

    /// Sectors that the next batch should move.
    pub(crate) fn batch_sectors(&self) -> u64 {
        (self.sectors_per_s / BATCHES_PER_SECOND).max(1)
    }

    /// Computes the rate anew when it is time for that.
    pub(crate) fn update(&mut self, now: Instant, load: &Load) {
        if self.updated.is_some_and(|at| now - at < UPDATE) {
            return;
        }
        let first = self.updated.replace(now).is_none();
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let error = signed(load.dirty_sectors) - signed(load.target_sectors);
        let proportional = (error / P_TERM_INVERSE).max(fragmentation(load).unwrap_or(i64::MIN));
        // A rate that the devices cannot follow must not grow without bound.
        let keeps_up = now < self.next + Duration::from_millis(1);
        if !first && ((error < 0 && self.integral > 0) || (error > 0 && keeps_up)) {
            let seconds = i64::try_from(UPDATE.as_secs()).unwrap_or(1);
            self.integral = self.integral.saturating_add(error.saturating_mul(seconds));
        }
        let rate = proportional.saturating_add(self.integral / I_TERM_INVERSE);
        self.sectors_per_s = rate.clamp(RATE_MIN, RATE_MAX).unsigned_abs();
    }

    /// Notes that a batch was moved.
    pub(crate) fn moved(&mut self, now: Instant, sectors: u64) {
        let nanos = u128::from(sectors) * 1_000_000_000 / u128::from(self.sectors_per_s.max(1));
        let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let earliest = Instant(now.0.saturating_sub(nanos_of(BEHIND_MAX)));
        self.next = (self.next.max(earliest) + takes).min(now + AHEAD_MAX);
    }

    /// How long the next batch has to wait.
    pub(crate) fn delay(&self, now: Instant) -> Duration {
        self.next - now
    }
}

/// Few dirty sectors that hold many buckets stop the cache as surely as many do: the fuller it is,
/// the faster they have to go, by three slopes.
fn fragmentation(load: &Load) -> Option<i64> {
    let Load { dirty_sectors: dirty, buckets_in_use: buckets, in_use_percent, .. } = *load;
    if in_use_percent <= 50 || dirty == 0 || buckets == 0 {
        return None;
    }
    let held_per_dirty = buckets.saturating_mul(load.bucket_sectors) / dirty;
    if held_per_dirty <= 3 {
        return None;
    }
    let above = |percent: u8| u64::from(in_use_percent - percent);
    let slope = match in_use_percent {
        51..=57 => above(50),
        58..=64 => 10 * above(57),
        _ => 1000 * above(64),
    };
    i64::try_from((dirty / buckets).saturating_mul(slope)).ok()
}

fn nanos_of(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 21; // sectors

    fn load(dirty_sectors: u64) -> Load {
        Load {
            dirty_sectors,
            target_sectors: GIB / 10,
            in_use_percent: 20,
            buckets_in_use: 400,
            bucket_sectors: 1024,
        }
    }

    fn at(seconds: u64) -> Instant {
        Instant(0) + Duration::from_secs(seconds)
    }

    #[test]
    fn what_is_above_the_target_leaves_over_some_forty_seconds() {
        let mut dirty = GIB / 4;
        let above = dirty - GIB / 10;
        let mut rate = Rate::new(at(0));
        let mut now = at(0);
        while now < at(40) {
            rate.update(now, &load(dirty));
            let batch = rate.batch_sectors().min(dirty);
            dirty -= batch;
            rate.moved(now, batch);
            now = now + rate.delay(now);
        }
        let left = dirty.saturating_sub(GIB / 10);
        assert!(left < above / 2, "{left} of {above} sectors are left");
        assert!(left > above / 10, "all but {left} of {above} sectors went at once");
    }

    #[test]
    fn below_the_target_almost_nothing_moves_but_something_does() {
        let mut rate = Rate::new(at(0));
        rate.update(at(0), &load(1000));
        assert_eq!(rate.sectors_per_s, 8);
        assert_eq!(rate.batch_sectors(), 2);
        rate.moved(at(0), 1 << 20);
        assert_eq!(rate.delay(at(0)), AHEAD_MAX, "a large extent blocks for a bounded time");
    }

    #[test]
    fn an_error_that_lasts_makes_it_faster_only_while_the_devices_keep_up() {
        let (mut able, mut unable) = (Rate::new(at(0)), Rate::new(at(0)));
        for n in 0..20 {
            able.next = at(5 * n + 1);
            able.update(at(5 * n), &load(GIB / 2));
            unable.next = at(0);
            unable.update(at(5 * n + 1), &load(GIB / 2));
        }
        assert!(able.sectors_per_s > unable.sectors_per_s);
        let error = GIB / 2 - GIB / 10;
        assert_eq!(unable.sectors_per_s, error / 40);
    }

    #[test]
    fn dirty_data_spread_thinly_over_a_full_cache_leave_faster() {
        let thin = |in_use_percent| {
            let mut rate = Rate::new(at(0));
            let thin = Load { in_use_percent, buckets_in_use: 1900, ..load(1900 * 8) };
            rate.update(at(0), &thin);
            rate.sectors_per_s
        };
        assert_eq!((thin(50), thin(55), thin(60)), (8, 40, 240));
        assert_eq!(thin(66), 16_000);
    }
}
