//! Fault point `cache.btree.pred`: a wrong search position for insertions.
//!
//! It reproduces the best known corruption of bcache (Fedora 1708315, kernel 203573). The position
//! was handed over as the address of a temporary; compilers that reused the dead stack slot made it
//! garbage, insertions landed anywhere, sets lost their order under perfect checksums. Our guards
//! (O2, behind it O4, behind it O7, behind it the offline checker) must each catch it alone, and
//! tests switch this on to show that they do.

use std::cell::Cell;

use crate::format::{Key, Pos};

/// What is returned in place of the true position.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(not(test), allow(dead_code, reason = "tests outside the crate switch one of them on"))]
pub(crate) enum PredMode {
    /// Behind everything: every insertion becomes an append.
    Beyond,
    /// The right volume, a position somewhere behind the key.
    SameInodeHigh,
    /// Two random words taken for a key.
    Garbage,
    /// The first position. Harmless: the scan walks from further left.
    Low,
    /// No position. As harmless.
    None,
}

/// A fault that strikes some insertions.
#[derive(Debug)]
pub(crate) struct PredFault {
    pub mode: PredMode,
    /// One insertion in so many is struck.
    pub one_in: u64,
    pub leaves: bool,
    pub interior: bool,
    /// Only this many insertions are struck.
    pub first: Cell<u64>,
    /// How often it struck.
    pub hits: Cell<u64>,
    pub state: Cell<u64>,
}

impl PredFault {
    /// Strikes every insertion into a leaf.
    pub(crate) fn new(mode: PredMode, seed: u64) -> PredFault {
        PredFault {
            mode,
            one_in: 1,
            leaves: true,
            interior: false,
            first: Cell::new(u64::MAX),
            hits: Cell::new(0),
            state: Cell::new(seed | 1),
        }
    }

    pub(crate) fn one_in(self, n: u64) -> PredFault {
        PredFault { one_in: n.max(1), ..self }
    }

    /// The position to use for `key` where `right` is the true one.
    pub(super) fn apply(&self, level: u8, key: &Key, right: Option<Pos>) -> Option<Pos> {
        let meant = if level == 0 { self.leaves } else { self.interior };
        if !meant || self.first.get() == 0 || !self.random().is_multiple_of(self.one_in) {
            return right;
        }
        self.first.set(self.first.get() - 1);
        self.hits.set(self.hits.get() + 1);
        match self.mode {
            PredMode::Beyond => Some(Pos::new(Key::INODE_MAX, 1 << 62)),
            PredMode::SameInodeHigh => {
                let ahead = 1 + self.random() % (1 << 20);
                Some(Pos::new(key.inode(), key.end().saturating_add(ahead)))
            }
            PredMode::Garbage => {
                let words = [self.random() & !(7 << 60), self.random()];
                Key::read(&words).map(|(key, _)| key.pos())
            }
            PredMode::Low => Some(Pos::ZERO),
            PredMode::None => None,
        }
    }

    /// splitmix64: the same seed strikes the same insertions.
    fn random(&self) -> u64 {
        let state = self.state.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
        self.state.set(state);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}
