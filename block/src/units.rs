//! Positions and counts, as types: most storage bugs are a right number in the wrong space.
//!
//! A [`Sector`] is 512 bytes everywhere in Varve, as in the kernel's block layer and in every format
//! it speaks. `.0` is unwrapped only at the ring and inside `format/` modules.

use std::fmt;
use std::ops::{Add, AddAssign, Mul, Sub, SubAssign};

/// log2 of the sector size.
pub const SECTOR_SHIFT: u32 = 9;
/// Bytes per sector.
pub const SECTOR_SIZE: usize = 1 << SECTOR_SHIFT;

/// A position on *this* device, in 512-byte units.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Sector(pub u64);

/// A count of 512-byte units.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Sectors(pub u64);

/// A count of bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Bytes(pub u64);

impl Sector {
    pub const ZERO: Sector = Sector(0);

    /// The byte this sector starts at. Positions above 2^55 never enter: geometry bounds them.
    pub fn byte(self) -> u64 {
        self.0 << SECTOR_SHIFT
    }

    /// The sector that contains `byte`.
    pub fn containing(byte: u64) -> Sector {
        Sector(byte >> SECTOR_SHIFT)
    }

    pub fn is_aligned(self, to: Sectors) -> bool {
        to.0 != 0 && self.0.is_multiple_of(to.0)
    }

    pub fn checked_add(self, n: Sectors) -> Option<Sector> {
        self.0.checked_add(n.0).map(Sector)
    }
}

impl Sectors {
    pub const ZERO: Sectors = Sectors(0);

    /// The same count in bytes.
    pub fn bytes(self) -> u64 {
        self.0 << SECTOR_SHIFT
    }

    /// The same count in bytes, as a length in memory.
    ///
    /// # Panics
    /// When it does not fit the address space: such a count must not be asked of memory.
    pub fn byte_len(self) -> usize {
        usize::try_from(self.bytes()).expect("a request fits the address space")
    }

    /// `bytes` as whole sectors, or `None` when it is no multiple: rounding is a decision.
    pub fn exact(bytes: u64) -> Option<Sectors> {
        bytes.is_multiple_of(SECTOR_SIZE as u64).then_some(Sectors(bytes >> SECTOR_SHIFT))
    }

    /// The length of a slice in memory as whole sectors.
    ///
    /// # Panics
    /// When it is no multiple of a sector: that is a bug of the caller.
    pub fn of_slice(bytes: &[u8]) -> Sectors {
        Sectors::exact(bytes.len() as u64).expect("a buffer of whole sectors")
    }

    pub fn is_multiple_of(self, of: Sectors) -> bool {
        of.0 != 0 && self.0.is_multiple_of(of.0)
    }
}

impl Bytes {
    pub fn sectors_exact(self) -> Option<Sectors> {
        Sectors::exact(self.0)
    }
}

impl Add<Sectors> for Sector {
    type Output = Sector;
    fn add(self, n: Sectors) -> Sector {
        Sector(self.0 + n.0)
    }
}

impl Sub<Sectors> for Sector {
    type Output = Sector;
    fn sub(self, n: Sectors) -> Sector {
        Sector(self.0 - n.0)
    }
}

impl Sub for Sector {
    type Output = Sectors;
    fn sub(self, other: Sector) -> Sectors {
        Sectors(self.0 - other.0)
    }
}

impl Add for Sectors {
    type Output = Sectors;
    fn add(self, n: Sectors) -> Sectors {
        Sectors(self.0 + n.0)
    }
}

impl Sub for Sectors {
    type Output = Sectors;
    fn sub(self, n: Sectors) -> Sectors {
        Sectors(self.0 - n.0)
    }
}

impl Mul<u64> for Sectors {
    type Output = Sectors;
    fn mul(self, n: u64) -> Sectors {
        Sectors(self.0 * n)
    }
}

impl AddAssign<Sectors> for Sector {
    fn add_assign(&mut self, n: Sectors) {
        self.0 += n.0;
    }
}

impl AddAssign for Sectors {
    fn add_assign(&mut self, n: Sectors) {
        self.0 += n.0;
    }
}

impl SubAssign for Sectors {
    fn sub_assign(&mut self, n: Sectors) {
        self.0 -= n.0;
    }
}

impl fmt::Display for Sector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Sectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A run of sectors `[start, start + len)` on one device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Extent {
    pub start: Sector,
    pub len: Sectors,
}

impl Extent {
    pub fn new(start: Sector, len: Sectors) -> Extent {
        Extent { start, len }
    }

    /// `[start, end)`.
    ///
    /// # Panics
    /// When `end < start`.
    pub fn between(start: Sector, end: Sector) -> Extent {
        assert!(start <= end, "an extent ends after it starts: {start}..{end}");
        Extent { start, len: end - start }
    }

    /// First sector behind the run.
    pub fn end(self) -> Sector {
        self.start + self.len
    }

    pub fn is_empty(self) -> bool {
        self.len.0 == 0
    }

    pub fn overlaps(self, other: Extent) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    pub fn contains(self, other: Extent) -> bool {
        self.start <= other.start && other.end() <= self.end()
    }

    /// The common part, if it is not empty.
    pub fn intersect(self, other: Extent) -> Option<Extent> {
        let start = self.start.max(other.start);
        let end = self.end().min(other.end());
        (start < end).then(|| Extent::between(start, end))
    }

    /// Whether the run lies inside a device of `len` sectors, without overflow.
    pub fn fits(self, len: Sectors) -> bool {
        self.start.0.checked_add(self.len.0).is_some_and(|end| end <= len.0)
    }

    /// Cuts the run into pieces of at most `max` sectors.
    pub fn pieces(self, max: Sectors) -> impl Iterator<Item = Extent> {
        assert!(max.0 > 0, "pieces have a size");
        let mut rest = self;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let len = rest.len.min(max);
            let piece = Extent::new(rest.start, len);
            rest = Extent::new(rest.start + len, rest.len - len);
            Some(piece)
        })
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sector {}+{}", self.start, self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_that_wraps_does_not_fit() {
        assert!(!Extent::new(Sector(u64::MAX), Sectors(2)).fits(Sectors(10)));
        assert!(Extent::new(Sector(8), Sectors(2)).fits(Sectors(10)));
        assert!(!Extent::new(Sector(9), Sectors(2)).fits(Sectors(10)));
    }

    #[test]
    fn pieces_cover_the_run_once() {
        let e = Extent::new(Sector(5), Sectors(10));
        let p: Vec<_> = e.pieces(Sectors(4)).map(|p| (p.start.0, p.len.0)).collect();
        assert_eq!(p, [(5, 4), (9, 4), (13, 2)]);
    }

    #[test]
    fn rounding_is_refused() {
        assert_eq!(Bytes(1024).sectors_exact(), Some(Sectors(2)));
        assert_eq!(Bytes(1023).sectors_exact(), None);
    }
}
