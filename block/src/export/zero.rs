//! What changes bytes without carrying them: trim and zeroes.
//!
//! These may name a whole device. They are cut into steps, each under its own lock, so that they
//! hold up nobody for longer than a step takes.

use super::bound::{Bound, Span};
use super::rmw::{self, Source};
use super::{Export, ignore_unsupported};
use crate::device::{BlockDevice, Durability, Zero};
use crate::error::{ErrorKind, Op, Result};
use crate::units::Extent;

/// A step that costs the device no writing.
const FAST_STEP: u64 = 1 << 30;
/// A step that is written out.
const SLOW_STEP: u64 = 16 << 20;

/// Cuts a span at the multiples of `step`.
fn steps(span: Span, step: u64) -> impl Iterator<Item = Span> {
    let mut start = span.start;
    std::iter::from_fn(move || {
        let end = span.end.min((start / step + 1) * step);
        let part = Span { start, end };
        start = end;
        (!part.is_empty()).then_some(part)
    })
}

fn bytes_of(range: Extent) -> Span {
    Span { start: range.start.byte(), end: range.end().byte() }
}

impl<D: BlockDevice> Export<D> {
    /// These bytes are not needed any more. Only whole blocks are given up; where the device knows
    /// no discard, nothing is. With `fua`, the change is durable when it is done.
    pub async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<()> {
        let timed = self.timed(Op::Discard, len);
        timed.end(self.trim_steps(offset, len, fua).await)
    }

    async fn trim_steps(&self, offset: u64, len: u64, fua: bool) -> Result<()> {
        let pass = self.enter().await;
        let bound = self.bound();
        let span = bound.span(Op::Discard, offset, len)?;
        self.admit_change(&bound, Op::Discard, bound.outward(span))?;
        let Some(blocks) = bound.inward(span).filter(|_| bound.can_discard) else {
            return Ok(());
        };
        for step in steps(bytes_of(blocks), FAST_STEP) {
            let range = bound.outward(step);
            let _lock = self.lock_write(step, range).await;
            self.0.shared.flushes.admit(Op::Discard, range)?;
            ignore_unsupported(bound.device.discard(range).await)?;
            self.0.rt.yield_now().await;
        }
        if fua {
            self.group_flush(&pass).await?;
        }
        Ok(())
    }

    /// These bytes read as zeroes afterwards. `only_if_fast` fails with `Unsupported`, nothing
    /// changed, where it would be no cheaper than writing.
    pub async fn write_zeroes(&self, offset: u64, len: u64, how: Zero) -> Result<()> {
        let timed = self.timed(Op::WriteZeroes, len);
        timed.end(self.zero_steps(offset, len, how).await)
    }

    async fn zero_steps(&self, offset: u64, len: u64, mut how: Zero) -> Result<()> {
        let _pass = self.enter().await;
        let bound = self.bound();
        let span = bound.span(Op::WriteZeroes, offset, len)?;
        self.admit_change(&bound, Op::WriteZeroes, bound.outward(span))?;
        if how.only_if_fast && !bound.fast_zero {
            return Err(bound.error(ErrorKind::Unsupported, Op::WriteZeroes, offset, len));
        }
        how.durability = self.durability(how.durability == Durability::Fua);
        let step = if bound.fast_zero { FAST_STEP } else { SLOW_STEP };
        for part in steps(span, step) {
            self.zero_step(&bound, part, how).await?;
            // The first step was the promise; later ones keep it even where it costs.
            how.only_if_fast = false;
            self.0.rt.yield_now().await;
        }
        Ok(())
    }

    async fn zero_step(&self, bound: &Bound<D>, span: Span, how: Zero) -> Result<()> {
        let range = bound.outward(span);
        let _lock = self.lock_write(span, range).await;
        self.0.shared.flushes.admit(Op::WriteZeroes, range)?;
        let write = async |span: Span| {
            let (pool, range) = (&self.0.shared.pool, bound.outward(span));
            rmw::write(bound, pool, span, range, Source::Zeroes, how.durability).await
        };
        let Some(blocks) = bound.inward(span) else {
            if how.only_if_fast {
                let len = span.end - span.start;
                return Err(bound.error(ErrorKind::Unsupported, Op::WriteZeroes, span.start, len));
            }
            return write(span).await;
        };
        // The blocks before the edges: if the device refuses, nothing has changed yet.
        match bound.device.write_zeroes(blocks, how).await {
            Err(e) if e.kind == ErrorKind::Unsupported && !how.only_if_fast => {
                write(bytes_of(blocks)).await?;
            }
            other => other?,
        }
        let inner = bytes_of(blocks);
        for edge in
            [Span { start: span.start, end: inner.start }, Span { start: inner.end, end: span.end }]
        {
            if !edge.is_empty() {
                write(edge).await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_end_on_multiples_and_cover_the_span() {
        let span = Span { start: 700, end: 2500 };
        let cuts: Vec<_> = steps(span, 1000).map(|s| (s.start, s.end)).collect();
        assert_eq!(cuts, [(700, 1000), (1000, 2000), (2000, 2500)]);
    }
}
