//! Sets of addresses, as sorted runs that touch nowhere: sixteen bytes for each gap in them.

use std::ops::Range;

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Runs {
    runs: Vec<Range<u64>>,
    /// Arrived out of order, to be merged by `settle`.
    loose: Vec<Range<u64>>,
}

impl Runs {
    /// Adds a run; cheap when they come in order.
    pub(crate) fn add(&mut self, start: u64, len: u64) {
        let Some(end) = start.checked_add(len).filter(|end| *end > start) else { return };
        match self.runs.last_mut() {
            Some(last) if start < last.start => self.loose.push(start..end),
            Some(last) if start <= last.end => last.end = last.end.max(end),
            _ => self.runs.push(start..end),
        }
    }

    /// Takes in what came out of order.
    pub(crate) fn settle(&mut self) {
        if self.loose.is_empty() {
            return;
        }
        let mut all = std::mem::take(&mut self.runs);
        all.append(&mut self.loose);
        all.sort_unstable_by_key(|run| (run.start, run.end));
        for run in all {
            match self.runs.last_mut() {
                Some(last) if run.start <= last.end => last.end = last.end.max(run.end),
                _ => self.runs.push(run),
            }
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.runs.iter().cloned()
    }

    /// The runs that overlap `range`, cut to it.
    pub(crate) fn within(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let first = self.runs.partition_point(|run| run.end <= range.start);
        let Range { start, end } = range;
        self.runs[first..]
            .iter()
            .take_while(move |run| run.start < end)
            .map(move |run| run.start.max(start)..run.end.min(end))
    }

    /// Bytes of `range` that are in the set.
    pub(crate) fn bytes_in(&self, range: Range<u64>) -> u64 {
        self.within(range).map(|run| run.end - run.start).sum()
    }

    /// What of `range` is not in the set.
    pub(crate) fn gaps_in(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut at = range.start;
        let mut gaps = Vec::new();
        for run in self.within(range.clone()) {
            if run.start > at {
                gaps.push(at..run.start);
            }
            at = run.end;
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_merge_and_answer_for_any_range() {
        let mut runs = Runs::default();
        for (start, len) in [(10, 5), (15, 5), (30, 10), (0, 2), (2, 0), (35, 10), (u64::MAX, 9)] {
            runs.add(start, len);
        }
        runs.settle();
        assert_eq!(runs.iter().collect::<Vec<_>>(), [0..2, 10..20, 30..45]);
        assert_eq!(runs.bytes_in(1..31), 1 + 10 + 1);
        assert_eq!(runs.gaps_in(0..50), [2..10, 20..30, 45..50]);
        assert_eq!(runs.gaps_in(11..12), []);
        assert_eq!(runs.within(20..30).count(), 0);
    }
}
