//! What every stack promises, as worlds that see whether it is kept.

use std::rc::Rc;
use varve_tests::fault::Plan;
use varve_tests::stack::Stack;
use varve_tests::world::{Violation, World, must_fail, ops, seeds};

/// What was flushed survives power cuts, and nothing else fails.
pub(crate) fn survives_power_cuts<S: Stack>(stack: &Rc<S>, worlds: u64) {
    let mut cuts = 0;
    for seed in seeds(worlds) {
        let report = World::new(seed).faults(Plan::power_cuts()).run(stack, ops(300));
        assert_eq!(report.errors, 0);
        cuts += report.cuts;
    }
    assert!(cuts > 0);
}

/// Faults of the `plan` happen, and clients see errors and never wrong bytes.
pub(crate) fn answers_with_errors<S: Stack>(stack: &Rc<S>, plan: fn() -> Plan, worlds: u64) {
    let mut errors = 0;
    for seed in seeds(worlds) {
        errors += World::new(seed).faults(plan()).run(stack, ops(300)).errors;
    }
    assert!(errors > 0);
}

/// A disk below that says it has flushed, and has not: nobody can save its data, but the world sees it.
pub(crate) fn shows_a_lie_about_flush<S: Stack>(stack: &Rc<S>) {
    let failure = must_fail("a lie about flush", &Plan::flushes_are_lies(), stack, ops(300));
    assert!(matches!(failure.what, Violation::Bytes(w) if w.when == "after the crash"));
}
