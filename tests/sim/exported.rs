//! A disk that another program exports: both sides of NBD between the stack and the disk.

use std::rc::Rc;
use varve_tests::fault::Plan;
use varve_tests::stack::exported::Exported;
use varve_tests::world::{Ops, Violation, World, must_fail, ops, seeds};

#[test]
fn a_disk_behind_a_connection_keeps_its_promises_through_power_cuts() {
    let stack = Rc::new(Exported);
    let mut cuts = 0;
    for seed in seeds(40) {
        let report = World::new(seed).faults(Plan::power_cuts()).run(&stack, ops(300));
        assert_eq!(report.errors, 0);
        cuts += report.cuts;
    }
    assert!(cuts > 0);
}

#[test]
fn requests_that_fail_over_a_connection_leave_old_or_new_bytes() {
    let stack = Rc::new(Exported);
    let mut errors = 0;
    for seed in seeds(30) {
        errors += World::new(seed).faults(Plan::io_errors()).run(&stack, ops(300)).errors;
    }
    assert!(errors > 0);
}

#[test]
fn after_a_flush_that_failed_on_the_other_side_nothing_is_believed() {
    let stack = Rc::new(Exported);
    let mut errors = 0;
    for seed in seeds(30) {
        errors += World::new(seed).faults(Plan::flush_fails()).run(&stack, ops(300)).errors;
    }
    assert!(errors > 0);
}

#[test]
fn clients_on_several_lanes_share_the_connection() {
    let stack = Rc::new(Exported);
    for seed in seeds(20) {
        let lanes = Ops { lanes: 3, ..ops(300) };
        World::new(seed).faults(Plan::power_cuts()).run(&stack, lanes);
    }
}

#[test]
fn a_server_that_lies_about_flush_is_caught() {
    let stack = Rc::new(Exported);
    let plan = Plan::flushes_are_lies();
    let failure = must_fail("a lie about flush", &plan, &stack, ops(300));
    assert!(matches!(failure.what, Violation::Bytes(w) if w.when == "after the crash"));
}
