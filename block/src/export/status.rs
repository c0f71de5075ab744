//! What is known of bytes without reading them, for front ends.

use super::bound::Span;
use crate::device::ExtentStatus;

/// A run of bytes of which the same is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ByteStatus {
    pub len: u64,
    /// Nothing is allocated there.
    pub hole: bool,
    /// It reads as zeroes.
    pub zero: bool,
}

/// Device runs as byte runs of the request. A device that breaks its promise of adjacent runs is
/// believed only as far as it keeps it.
pub(super) fn clip(span: Span, runs: &[ExtentStatus], limit: usize) -> Vec<ByteStatus> {
    let mut out: Vec<ByteStatus> = Vec::new();
    let mut at = span.start;
    for run in runs {
        let (start, end) = (run.range.start.byte(), run.range.end().byte().min(span.end));
        if start > at || end <= at {
            continue;
        }
        let full = out.len() == limit;
        match out.last_mut() {
            Some(last) if (last.hole, last.zero) == (run.hole, run.zero) => last.len += end - at,
            _ if full => break,
            _ => out.push(ByteStatus { len: end - at, hole: run.hole, zero: run.zero }),
        }
        at = end;
    }
    if out.is_empty() {
        out.push(ByteStatus { len: span.end - span.start, hole: false, zero: false });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Extent, Sector, Sectors};

    fn run(start: u64, len: u64, hole: bool) -> ExtentStatus {
        ExtentStatus { range: Extent::new(Sector(start), Sectors(len)), hole, zero: hole }
    }

    fn lens(runs: &[ByteStatus]) -> Vec<(u64, bool)> {
        runs.iter().map(|r| (r.len, r.hole)).collect()
    }

    #[test]
    fn runs_are_clipped_to_the_bytes_asked_for_and_merged() {
        let span = Span { start: 100, end: 3000 };
        let runs = [run(0, 1, true), run(1, 2, true), run(3, 50, false)];
        assert_eq!(lens(&clip(span, &runs, 9)), [(1436, true), (1464, false)]);
        assert_eq!(lens(&clip(span, &runs, 1)), [(1436, true)]);
    }

    #[test]
    fn a_device_that_knows_nothing_or_lies_means_data() {
        let span = Span { start: 512, end: 1024 };
        assert_eq!(lens(&clip(span, &[], 4)), [(512, false)]);
        assert_eq!(lens(&clip(span, &[run(9, 9, true)], 4)), [(512, false)]);
        assert_eq!(lens(&clip(span, &[run(0, 1, true)], 4)), [(512, false)]);
    }
}
