//! What goes wrong in a world, and who is to blame.

use std::time::Duration;
use varve_block::dev::sim::{self, Effect, Fault, When};
use varve_block::export::Sabotage;
use varve_block::{ErrorKind, Op};

/// Everything a [`crate::world::World`] does to its stack. The default is a world in which nothing
/// goes wrong but time.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The disk under everything.
    pub backing: sim::Plan,
    /// The disk that caches, for stacks that have one.
    pub cache: sim::Plan,
    /// Lives of the stack that may end in a power cut; the last life ends in order.
    pub power_cuts: u32,
    /// Clients may be told of errors. Wrong bytes are never allowed.
    pub errors: bool,
    /// A bug switched on in the export.
    pub sabotage: Sabotage,
}

impl Plan {
    pub fn calm() -> Plan {
        Plan::default()
    }

    /// Both disks lose power at the same instant, several times.
    pub fn power_cuts() -> Plan {
        Plan { power_cuts: 4, ..Plan::default() }
    }

    /// As [`Plan::power_cuts`], and a unit that was being written may be unreadable afterwards.
    pub fn torn_units() -> Plan {
        let mut plan = Plan { errors: true, ..Plan::power_cuts() };
        plan.backing.torn_units_unreadable = true;
        plan
    }

    /// Requests fail now and then, on both disks, and the power goes as well.
    pub fn io_errors() -> Plan {
        let mut plan = Plan { errors: true, ..Plan::power_cuts() };
        for disk in [&mut plan.backing, &mut plan.cache] {
            for op in [Op::Read, Op::Write] {
                let fault = Fault::new(op, When::Permille(20), Effect::Fail(ErrorKind::Io));
                disk.faults.push(fault);
            }
        }
        plan
    }

    /// Writes to the backing disk fail now and then; whoever tries again gets through.
    pub fn writes_fail() -> Plan {
        let mut plan = Plan::power_cuts();
        let fault = Fault::new(Op::Write, When::Permille(50), Effect::Fail(ErrorKind::Io));
        plan.backing.faults.push(fault);
        plan
    }

    /// One request of the backing disk is never answered (C30).
    pub fn an_answer_is_lost() -> Plan {
        let mut plan = Plan { errors: true, ..Plan::power_cuts() };
        plan.backing.faults.push(Fault::any(When::Nth(60), Effect::NoAnswer));
        plan
    }

    /// Every request is answered within the call that submits it (C01).
    pub fn inline() -> Plan {
        let mut plan = Plan::power_cuts();
        plan.backing.inline_permille = 1000;
        plan.cache.inline_permille = 1000;
        plan
    }

    /// Some flush fails.
    pub fn flush_fails() -> Plan {
        let mut plan = Plan { errors: true, ..Plan::power_cuts() };
        let fault = Fault::new(Op::Flush, When::Nth(3), Effect::Fail(ErrorKind::Io));
        plan.backing.faults.push(fault);
        plan
    }

    /// The caching disk dies in the middle of the work.
    pub fn ssd_dies() -> Plan {
        let mut plan = Plan::default();
        plan.cache.faults.push(Fault::any(When::Nth(150), Effect::Die));
        plan
    }

    /// The disks answer flushes without doing them: no stack can keep a promise over that.
    pub fn flushes_are_lies() -> Plan {
        let mut plan = Plan::power_cuts();
        plan.backing.lies_about_flush = true;
        plan.cache.lies_about_flush = true;
        plan
    }

    /// The caching disk alone answers flushes without doing them.
    pub fn ssd_lies() -> Plan {
        let mut plan = Plan::power_cuts();
        plan.cache.lies_about_flush = true;
        plan
    }

    /// The export has this bug.
    pub fn sabotaged(self, sabotage: Sabotage) -> Plan {
        Plan { sabotage, ..self }
    }

    /// One bad day in a thousand takes this long.
    pub fn slow(mut self, more: Duration) -> Plan {
        for disk in [&mut self.backing, &mut self.cache] {
            disk.faults.push(Fault::any(When::Permille(20), Effect::Delay(more)));
        }
        self
    }
}
