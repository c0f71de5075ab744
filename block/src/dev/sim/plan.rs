//! What shall go wrong, and when.

use crate::error::{ErrorKind, Op};
use crate::rt::Prng;
use crate::units::Extent;
use std::time::Duration;

/// What happens to an operation that a [`Fault`] picked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// It fails. A change may have been made in part. A flush that fails is the disk's last.
    Fail(ErrorKind),
    /// It is never answered. What it carried stays on its way for ever.
    NoAnswer,
    /// It takes this much longer.
    Delay(Duration),
    /// It fails, and everything after it.
    Die,
}

/// Which of the operations that a [`Fault`] looks at it picks. They are counted from 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    Nth(u64),
    From(u64),
    /// Each, with this chance of 1000.
    Permille(u64),
}

/// One thing that goes wrong.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// `None`: any operation.
    pub op: Option<Op>,
    /// Only operations that touch this range. Flushes touch everything.
    pub range: Option<Extent>,
    pub when: When,
    pub effect: Effect,
}

impl Fault {
    pub fn new(op: Op, when: When, effect: Effect) -> Fault {
        Fault { op: Some(op), range: None, when, effect }
    }

    /// Whatever the operation is.
    pub fn any(when: When, effect: Effect) -> Fault {
        Fault { op: None, range: None, when, effect }
    }

    pub fn within(self, range: Extent) -> Fault {
        Fault { range: Some(range), ..self }
    }

    pub(super) fn looks_at(&self, op: Op, at: Extent) -> bool {
        self.op.is_none_or(|mine| mine == op) && self.range.is_none_or(|mine| mine.overlaps(at))
    }

    /// Whether it picks the `count`-th operation it looks at.
    pub(super) fn picks(&self, count: u64, chance: &Prng) -> bool {
        match self.when {
            When::Nth(n) => count == n,
            When::From(n) => count >= n,
            When::Permille(p) => chance.chance(p, 1000),
        }
    }
}

/// How a disk behaves. The default is a disk that keeps the contract: slow, reordering, forgetful at
/// power cuts, and without errors.
#[derive(Clone, Debug)]
pub struct Plan {
    /// An operation takes up to this long.
    pub latency: Duration,
    /// So many of 1000 operations are answered within the call that submits them.
    pub inline_permille: u64,
    pub faults: Vec<Fault>,
    /// Flushes are answered and do nothing.
    pub lies_about_flush: bool,
    /// A unit that was being written when the power went may be unreadable afterwards.
    pub torn_units_unreadable: bool,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan {
            latency: Duration::from_micros(100),
            inline_permille: 100,
            faults: Vec::new(),
            lies_about_flush: false,
            torn_units_unreadable: false,
        }
    }
}

impl Plan {
    pub fn with(mut self, fault: Fault) -> Plan {
        self.faults.push(fault);
        self
    }

    /// Every operation takes no time and is answered at once.
    pub fn instant() -> Plan {
        Plan { latency: Duration::ZERO, inline_permille: 1000, ..Plan::default() }
    }

    /// Mostly short times and a few long ones, so that some requests overtake many.
    pub(super) fn latency(&self, chance: &Prng) -> u64 {
        let max = u64::try_from(self.latency.as_nanos()).unwrap_or(u64::MAX >> 2);
        match chance.below(8) {
            0 => 0,
            7 => chance.below(max + 1),
            _ => chance.below(max / 8 + 1),
        }
    }
}
