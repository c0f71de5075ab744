//! Misses on their way into the cache.

use std::cell::RefCell;

use slab::Slab;

/// Reads from the backing device whose data are to enter the cache, as long as nobody writes the
/// same range meanwhile.
///
/// The kernel keeps this list in the btree, as keys with impossible pointers ("check keys") that a
/// later write overwrites. A list in memory decides the same question, costs no insertion per miss,
/// and leaves nothing behind in a crash; check keys that a kernel left are read as what they are, gaps.
#[derive(Default)]
pub(crate) struct Fills {
    active: RefCell<Slab<Fill>>,
    /// Ranges that are being written on the backing device.
    shut: RefCell<Slab<Range>>,
}

/// Sectors `[start, end)` of a volume.
#[derive(Clone, Copy)]
struct Range {
    inode: u32,
    start: u64,
    end: u64,
}

impl Range {
    fn overlaps(&self, other: &Range) -> bool {
        self.inode == other.inode && self.start < other.end && other.start < self.end
    }
}

#[derive(Clone, Copy)]
struct Fill {
    range: Range,
    valid: bool,
}

/// Reads whose data may enter the cache at a time; beyond it misses are served and forgotten.
const FILLS_MAX: usize = 64;

impl Fills {
    /// Registers a read of `[start, end)` that is about to start. None: too many already, or what it
    /// reads is changing.
    pub(crate) fn begin(&self, inode: u32, start: u64, end: u64) -> Option<usize> {
        let range = Range { inode, start, end };
        if self.shut.borrow().iter().any(|(_, shut)| shut.overlaps(&range)) {
            return None;
        }
        let mut active = self.active.borrow_mut();
        let overlapping = active.iter().any(|(_, f)| f.valid && f.range.overlaps(&range));
        if overlapping || active.len() >= FILLS_MAX {
            return None;
        }
        Some(active.insert(Fill { range, valid: true }))
    }

    /// Somebody wrote there: what is being read is old.
    pub(crate) fn lose(&self, inode: u32, start: u64, end: u64) {
        let range = Range { inode, start, end };
        for (_, fill) in self.active.borrow_mut().iter_mut() {
            fill.valid &= !fill.range.overlaps(&range);
        }
    }

    /// The range is about to change on the backing device: nothing read from there may enter the cache
    /// until [`Fills::reopen`].
    pub(crate) fn shut(&self, inode: u32, start: u64, end: u64) -> usize {
        self.lose(inode, start, end);
        self.shut.borrow_mut().insert(Range { inode, start, end })
    }

    pub(crate) fn reopen(&self, id: usize) {
        self.shut.borrow_mut().try_remove(id);
    }

    /// Whether nobody wrote the range since it was registered.
    pub(crate) fn valid(&self, id: usize) -> bool {
        self.active.borrow().get(id).is_some_and(|f| f.valid)
    }

    pub(crate) fn end(&self, id: usize) {
        self.active.borrow_mut().try_remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_anywhere_in_the_range_spoils_the_fill_and_only_that() {
        let fills = Fills::default();
        let a = fills.begin(0, 8, 16).unwrap();
        let other = fills.begin(1, 8, 16).unwrap();
        assert!(fills.begin(0, 15, 20).is_none(), "one reader per range is enough");
        fills.lose(0, 0, 8);
        fills.lose(0, 16, 99);
        assert!(fills.valid(a));
        fills.lose(0, 15, 16);
        assert!(!fills.valid(a) && fills.valid(other));
        let again = fills.begin(0, 8, 16).unwrap();
        assert!(fills.valid(again) && !fills.valid(a), "the new read sees the write");
        fills.end(a);
        fills.lose(0, 8, 9);
        assert!(!fills.valid(again));
    }

    #[test]
    fn what_is_being_written_is_not_filled() {
        let fills = Fills::default();
        let before = fills.begin(0, 8, 16).unwrap();
        let shut = fills.shut(0, 12, 20);
        assert!(!fills.valid(before));
        assert!(fills.begin(0, 19, 24).is_none());
        assert!(fills.begin(0, 20, 24).is_some() && fills.begin(1, 12, 20).is_some());
        fills.reopen(shut);
        assert!(fills.begin(0, 12, 20).is_some());
    }

    #[test]
    fn their_number_is_bounded() {
        let fills = Fills::default();
        let ids: Vec<_> =
            (0..FILLS_MAX as u64).map(|i| fills.begin(0, i * 8, i * 8 + 8).unwrap()).collect();
        assert!(fills.begin(0, 1 << 20, (1 << 20) + 8).is_none());
        fills.end(ids[5]);
        assert!(fills.begin(0, 1 << 20, (1 << 20) + 8).is_some());
    }
}
