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
}

#[derive(Clone, Copy)]
struct Fill {
    inode: u32,
    start: u64,
    end: u64,
    valid: bool,
}

/// Reads whose data may enter the cache at a time; beyond it misses are served and forgotten.
const FILLS_MAX: usize = 64;

impl Fills {
    /// Registers a read of `[start, end)` that is about to start. None: too many already.
    pub(crate) fn begin(&self, inode: u32, start: u64, end: u64) -> Option<usize> {
        let mut active = self.active.borrow_mut();
        let overlapping = active
            .iter()
            .any(|(_, f)| f.valid && f.inode == inode && f.start < end && start < f.end);
        if overlapping || active.len() >= FILLS_MAX {
            return None;
        }
        Some(active.insert(Fill { inode, start, end, valid: true }))
    }

    /// Somebody wrote there: what is being read is old.
    pub(crate) fn lose(&self, inode: u32, start: u64, end: u64) {
        for (_, fill) in self.active.borrow_mut().iter_mut() {
            if fill.inode == inode && fill.start < end && start < fill.end {
                fill.valid = false;
            }
        }
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
    fn their_number_is_bounded() {
        let fills = Fills::default();
        let ids: Vec<_> =
            (0..FILLS_MAX as u64).map(|i| fills.begin(0, i * 8, i * 8 + 8).unwrap()).collect();
        assert!(fills.begin(0, 1 << 20, (1 << 20) + 8).is_none());
        fills.end(ids[5]);
        assert!(fills.begin(0, 1 << 20, (1 << 20) + 8).is_some());
    }
}
