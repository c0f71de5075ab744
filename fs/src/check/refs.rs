//! References to extents: those that the extent tree records, and those that a walk over all trees
//! finds. Both are multisets of the same records, and a healthy file system's are equal.

use super::sums::{Buckets, Unbalanced, mix};
use crate::units::Logical;

/// One reference to an extent. `Ord` keeps an extent's references together.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Ref {
    pub(crate) extent: u64,
    /// A data extent's bytes; a tree block's level.
    pub(crate) size: u64,
    pub(crate) by: By,
}

/// Who refers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum By {
    Tree { root: u64 },
    Node { parent: Logical },
    File { root: u64, inode: u64, offset: u64 },
    Leaf { parent: Logical },
}

impl By {
    pub(crate) fn is_data(self) -> bool {
        matches!(self, By::File { .. } | By::Leaf { .. })
    }
}

impl Ref {
    fn hash(&self) -> u128 {
        let Ref { extent, size, by } = *self;
        match by {
            By::Tree { root } => mix(&[extent, size, 1, root]),
            By::Node { parent } => mix(&[extent, size, 2, parent.0]),
            By::File { root, inode, offset } => mix(&[extent, size, 3, root, inode, offset]),
            By::Leaf { parent } => mix(&[extent, size, 4, parent.0]),
        }
    }
}

/// A reference, and how often each side has it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Counted {
    pub(crate) what: Ref,
    pub(crate) recorded: u64,
    pub(crate) found: u64,
}

/// Records of one listing pass: 128 MiB of them.
const LISTED_MAX: usize = 2 << 20;

#[derive(Debug)]
pub(crate) enum Refs {
    /// The first pass: only sums.
    Sum(Box<Buckets>),
    /// A later pass: the records of the buckets that did not balance.
    List(Listing),
}

#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) bad: Unbalanced,
    records: Vec<Counted>,
    /// Extents from here on wait for another pass.
    pub(crate) until: u64,
    /// Extents below here were listed by an earlier one.
    pub(crate) from: u64,
}

impl Refs {
    pub(crate) fn summing() -> Refs {
        Refs::Sum(Box::new(Buckets::new()))
    }

    pub(crate) fn listing(bad: Unbalanced, from: u64) -> Refs {
        Refs::List(Listing { bad, records: Vec::new(), until: u64::MAX, from })
    }

    pub(crate) fn record(&mut self, what: Ref, times: u64) {
        match self {
            Refs::Sum(sums) => sums.claim(what.extent, what.hash(), times),
            Refs::List(list) => list.add(Counted { what, recorded: times, found: 0 }),
        }
    }

    pub(crate) fn find(&mut self, what: Ref) {
        match self {
            Refs::Sum(sums) => sums.find(what.extent, what.hash(), 1),
            Refs::List(list) => list.add(Counted { what, recorded: 0, found: 1 }),
        }
    }
}

impl Listing {
    fn add(&mut self, record: Counted) {
        let at = record.what.extent;
        if at < self.from || at >= self.until || !self.bad.has(at) {
            return;
        }
        self.records.push(record);
        if self.records.len() >= LISTED_MAX {
            self.halve();
        }
    }

    /// Too many: the upper half waits for another pass.
    fn halve(&mut self) {
        self.records = merged(std::mem::take(&mut self.records));
        if self.records.len() < LISTED_MAX / 2 {
            return;
        }
        let middle = self.records[self.records.len() / 2].what.extent;
        self.until = middle;
        self.records.retain(|record| record.what.extent < middle);
    }

    /// All references of the extents that were listed, merged and in order, and which buckets they
    /// are of.
    pub(crate) fn into_parts(self) -> (Vec<Counted>, Unbalanced) {
        (merged(self.records), self.bad)
    }
}

fn merged(mut records: Vec<Counted>) -> Vec<Counted> {
    records.sort_unstable();
    records.dedup_by(|next, kept| {
        let same = next.what == kept.what;
        if same {
            kept.recorded = kept.recorded.saturating_add(next.recorded);
            kept.found = kept.found.saturating_add(next.found);
        }
        same
    });
    records
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(extent: u64, offset: u64) -> Ref {
        Ref { extent, size: 4096, by: By::File { root: 5, inode: 257, offset } }
    }

    #[test]
    fn what_differs_is_listed_with_both_counts_and_nothing_else_is() {
        let run = |refs: &mut Refs| {
            for n in 1..2000 {
                refs.record(file(n * 4096, 0), 2);
                refs.find(file(n * 4096, 0));
                if n != 77 {
                    refs.find(file(n * 4096, 0));
                }
            }
        };
        let mut first = Refs::summing();
        run(&mut first);
        let Refs::Sum(mut sums) = first else { panic!("it sums") };
        let mut second = Refs::listing(sums.settle().unwrap(), 0);
        run(&mut second);
        let Refs::List(list) = second else { panic!("it lists") };
        let (mut records, _) = list.into_parts();
        records.retain(|record| record.recorded != record.found);
        assert_eq!(records, [Counted { what: file(77 * 4096, 0), recorded: 2, found: 1 }]);
    }
}
