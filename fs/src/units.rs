//! Positions in btrfs's two address spaces. Both count bytes: the format does.

use std::fmt;

/// A position in the file system's virtual address space: what every pointer on disk holds.
/// Chunks map it to [`Physical`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Logical(pub u64);

impl Logical {
    pub fn checked_add(self, bytes: u64) -> Option<Logical> {
        self.0.checked_add(bytes).map(Logical)
    }
}

impl fmt::Display for Logical {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A byte offset on one member device, by its device id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Physical {
    pub devid: u64,
    pub byte: u64,
}

impl fmt::Display for Physical {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "devid {} byte {}", self.devid, self.byte)
    }
}

/// A length read from disk as a length in memory. What does not fit becomes `usize::MAX`, which no
/// bounds check lets through.
pub(crate) fn to_usize(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// `n` rounded up to a multiple of `to`, or `None` on overflow or for a zero unit.
pub(crate) fn round_up(n: u64, to: u64) -> Option<u64> {
    n.checked_next_multiple_of(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_up_never_wraps() {
        assert_eq!(round_up(4097, 4096), Some(8192));
        assert_eq!(round_up(u64::MAX - 1, 4096), None);
        assert_eq!(round_up(1, 0), None);
    }
}
