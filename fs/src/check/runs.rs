//! Sets of addresses, in sectors: four bytes for each gap in them, and never more than a bit for each sector of
//! the 128 MiB pages in which anything is.

use std::collections::BTreeMap;
use std::ops::Range;

/// Sectors of a page: its runs are pairs of sixteen bits, or it is a bitmap of four kilobytes.
const PAGE: u64 = 1 << 15;
/// As many runs take as much memory as the bitmap.
const RUNS_MAX: usize = 1024;
/// Pages of one run at most; no kernel writes an item that covers more.
const LONG: u64 = 1024;

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Runs {
    unit: u64,
    pages: BTreeMap<u64, Page>,
    /// Runs of items that say what cannot be: in order, apart from each other.
    long: Vec<Range<u64>>,
}

/// Sectors of a page that are in the set.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Page {
    /// In order, touching nowhere.
    Runs(Vec<(u16, u16)>),
    Bits(Box<[u64]>),
}

impl Runs {
    /// Bytes that share a sector of `unit` bytes are in the set together.
    pub(crate) fn new(unit: u32) -> Runs {
        Runs { unit: u64::from(unit).max(1), pages: BTreeMap::new(), long: Vec::new() }
    }

    /// Adds a run, in any order; cheapest from the left.
    pub(crate) fn add(&mut self, start: u64, len: u64) {
        let Some(end) = start.checked_add(len).filter(|end| *end > start) else { return };
        let (mut at, end) = (start / self.unit, end.div_ceil(self.unit));
        if (end - at) / PAGE > LONG {
            return self.add_long(at..end);
        }
        while at < end {
            let first = at - at % PAGE;
            let stop = end.min(first + PAGE);
            self.pages
                .entry(at / PAGE)
                .or_insert(Page::Runs(Vec::new()))
                .add(at - first, stop - first);
            at = stop;
        }
    }

    fn add_long(&mut self, run: Range<u64>) {
        self.long.push(run);
        self.long.sort_unstable_by_key(|run| (run.start, run.end));
        self.long.dedup_by(|next, kept| {
            let touch = next.start <= kept.end;
            if touch {
                kept.end = kept.end.max(next.end);
            }
            touch
        });
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.within(0..u64::MAX)
    }

    /// The runs that overlap `range`, cut to it.
    pub(crate) fn within(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let unit = self.unit;
        let Range { start, end } = range;
        merged(self.pieces(start / unit..end.div_ceil(unit)))
            .map(move |run| {
                let to = run.end.saturating_mul(unit);
                (run.start * unit).max(start)..to.min(end)
            })
            .filter(|run| run.start < run.end)
    }

    /// The sectors in `range`, in order; runs may touch.
    fn pieces(&self, range: Range<u64>) -> Box<dyn Iterator<Item = Range<u64>> + '_> {
        let Range { start, end } = range;
        let in_pages =
            self.pages.range(start / PAGE..end.div_ceil(PAGE)).flat_map(move |(n, page)| {
                let first = n * PAGE;
                let from = start.saturating_sub(first).min(PAGE);
                let to = end.saturating_sub(first).min(PAGE);
                page.within(from..to).map(move |run| first + run.start..first + run.end)
            });
        if self.long.is_empty() {
            return Box::new(in_pages);
        }
        let long = self.long.iter().map(|run| run.start.max(start)..run.end.min(end));
        let mut all: Vec<_> = in_pages.chain(long.filter(|run| run.start < run.end)).collect();
        all.sort_unstable_by_key(|run| (run.start, run.end));
        Box::new(all.into_iter())
    }

    /// Bytes of `range` that are in the set.
    pub(crate) fn bytes_in(&self, range: Range<u64>) -> u64 {
        let whole = |at: u64| at.is_multiple_of(self.unit);
        if !self.long.is_empty() || !whole(range.start) || !whole(range.end) {
            return self.within(range).map(|run| run.end - run.start).sum();
        }
        // Asked for every extent of every file.
        let (start, end) = (range.start / self.unit, range.end / self.unit);
        let pages = self.pages.range(start / PAGE..end.div_ceil(PAGE));
        let sectors = pages.map(|(n, page)| {
            let place = |at: u64| at.saturating_sub(n * PAGE).min(PAGE);
            page.count(place(start), place(end))
        });
        sectors.sum::<u64>() * self.unit
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

/// Joins runs that touch or overlap.
fn merged(runs: impl Iterator<Item = Range<u64>>) -> impl Iterator<Item = Range<u64>> {
    let mut runs = runs.peekable();
    std::iter::from_fn(move || {
        let mut run = runs.next()?;
        while let Some(next) = runs.next_if(|next| next.start <= run.end) {
            run.end = run.end.max(next.end);
        }
        Some(run)
    })
}

/// A place in a page, in sixteen bits.
fn short(n: u64) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}

impl Page {
    /// Sectors `from..to` of the page.
    fn add(&mut self, from: u64, to: u64) {
        match self {
            Page::Bits(bits) => set(bits, from, to),
            Page::Runs(runs) => {
                let (from, to) = (short(from), short(to));
                // All runs that touch the new one become part of it.
                let first = runs.partition_point(|run| run.1 < from);
                let last = first + runs[first..].partition_point(|run| run.0 <= to);
                let low =
                    runs.get(first).filter(|_| first < last).map_or(from, |run| run.0.min(from));
                let high = runs[first..last].last().map_or(to, |run| run.1.max(to));
                runs.splice(first..last, [(low, high)]);
                if runs.len() > RUNS_MAX {
                    let mut bits = vec![0; crate::units::to_usize(PAGE / 64)].into_boxed_slice();
                    for &(from, to) in runs.iter() {
                        set(&mut bits, from.into(), to.into());
                    }
                    *self = Page::Bits(bits);
                }
            }
        }
    }

    /// How many sectors from `start` to before `end` there are.
    fn count(&self, start: u64, end: u64) -> u64 {
        match self {
            Page::Runs(runs) => {
                let first = runs.partition_point(|run| u64::from(run.1) <= start);
                let some = runs[first..].iter().map(|run| u64::from(run.0)..u64::from(run.1));
                some.take_while(|run| run.start < end)
                    .map(|run| run.end.min(end) - run.start.max(start))
                    .sum()
            }
            Page::Bits(_) => self.within(start..end).map(|run| run.end - run.start).sum(),
        }
    }

    /// The runs in `range`, cut to it.
    fn within(&self, range: Range<u64>) -> Box<dyn Iterator<Item = Range<u64>> + '_> {
        let Range { start, end } = range;
        match self {
            Page::Runs(runs) => {
                let first = runs.partition_point(|run| u64::from(run.1) <= start);
                let some = runs[first..].iter().map(|run| u64::from(run.0)..u64::from(run.1));
                let some = some.take_while(move |run| run.start < end);
                Box::new(some.map(move |run| run.start.max(start)..run.end.min(end)))
            }
            Page::Bits(bits) => {
                let mut at = start;
                Box::new(std::iter::from_fn(move || {
                    let from = next(bits, at, end, true)?;
                    let to = next(bits, from, end, false).unwrap_or(end);
                    at = to;
                    Some(from..to)
                }))
            }
        }
    }
}

fn place(n: u64) -> (usize, u64) {
    (crate::units::to_usize(n / 64), n % 64)
}

fn set(bits: &mut [u64], from: u64, to: u64) {
    let mut at = from;
    while at < to {
        let (word, bit) = place(at);
        let many = (64 - bit).min(to - at);
        bits[word] |= (u64::MAX >> (64 - many)) << bit;
        at += many;
    }
}

/// The first sector from `at` on and before `end` whose bit is `set`.
fn next(bits: &[u64], at: u64, end: u64, set: bool) -> Option<u64> {
    let mut at = at;
    while at < end {
        let (word, bit) = place(at);
        let here = if set { bits[word] } else { !bits[word] } >> bit;
        if here != 0 {
            at += u64::from(here.trailing_zeros());
            return (at < end).then_some(at);
        }
        at += 64 - bit;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_merge_and_answer_for_any_range() {
        let mut runs = Runs::new(1);
        for (start, len) in [(10, 5), (15, 5), (30, 10), (0, 2), (2, 0), (35, 10), (u64::MAX, 9)] {
            runs.add(start, len);
        }
        assert_eq!(runs.iter().collect::<Vec<_>>(), [0..2, 10..20, 30..45]);
        assert_eq!(runs.bytes_in(1..31), 1 + 10 + 1);
        assert_eq!(runs.gaps_in(0..50), [2..10, 20..30, 45..50]);
        assert_eq!(runs.gaps_in(11..12), []);
        assert_eq!(runs.within(20..30).count(), 0);
    }

    #[test]
    fn whole_sectors_are_in_it_and_answers_are_cut_to_what_was_asked() {
        let mut runs = Runs::new(4096);
        runs.add(4096 + 100, 4096);
        assert!(runs.iter().eq(std::iter::once(4096..3 * 4096)));
        assert_eq!(runs.bytes_in(5000..6000), 1000);
        assert_eq!(runs.within(0..4096).count(), 0);
    }

    #[test]
    fn an_item_that_claims_all_there_is_costs_nothing() {
        let mut runs = Runs::new(4096);
        runs.add(1 << 20, 1 << 62);
        runs.add(4096, 4096);
        runs.add(1 << 62, 1 << 61);
        let end = (1 << 62) + (1 << 61);
        assert_eq!(runs.iter().collect::<Vec<_>>(), [4096..8192, 1 << 20..end]);
        assert_eq!(runs.gaps_in(0..1 << 21), [0..4096, 8192..1 << 20]);
        assert_eq!((runs.pages.len(), runs.long.len()), (1, 1));
        runs.add(0, u64::MAX);
        assert!(runs.iter().eq(std::iter::once(0..u64::MAX)));
    }

    /// Beside a plain set, through both kinds of page and across their borders.
    #[test]
    fn any_order_of_any_runs_gives_the_set_of_their_sectors() {
        let prng = varve_block::Prng::new(7);
        for round in 0..40 {
            let (mut runs, mut plain) = (Runs::new(4096), std::collections::BTreeSet::new());
            let span = if round % 2 == 0 { PAGE * 3 } else { 6000 };
            for _ in 0..(if round % 4 < 2 { 50 } else { 3000 }) {
                let (start, len) = (prng.below(span), 1 + prng.below(3));
                runs.add(start * 4096, len * 4096);
                plain.extend(start..start + len);
            }
            let have: Vec<u64> =
                runs.iter().flat_map(|run| run.start / 4096..run.end / 4096).collect();
            assert_eq!(have, plain.iter().copied().collect::<Vec<_>>(), "round {round}");
            let all: Vec<_> = runs.iter().collect();
            assert!(all.windows(2).all(|pair| pair[0].end < pair[1].start), "they touch nowhere");
            for _ in 0..50 {
                let (from, len) = (prng.below(span), prng.below(PAGE));
                let count = plain.range(from..from + len).count() as u64;
                assert_eq!(runs.bytes_in(from * 4096..(from + len) * 4096), count * 4096);
            }
        }
    }

    #[test]
    fn a_page_never_takes_more_than_a_bit_for_each_sector() {
        let mut runs = Runs::new(4096);
        for n in 0..PAGE / 2 {
            runs.add(n * 8192, 4096);
        }
        assert!(matches!(runs.pages.get(&0), Some(Page::Bits(bits)) if bits.len() == 512));
        assert_eq!(runs.iter().count(), 1 << 14);
    }
}
