//! A disk that another program exports: both sides of NBD between the stack and the disk.

use crate::promises::{answers_with_errors, shows_a_lie_about_flush, survives_power_cuts};
use std::rc::Rc;
use varve_tests::fault::Plan;
use varve_tests::stack::exported::Exported;
use varve_tests::world::{Ops, World, ops, seeds};

#[test]
fn a_disk_behind_a_connection_keeps_its_promises_through_power_cuts() {
    let stack = Rc::new(Exported);
    survives_power_cuts(&stack, 40);
}

#[test]
fn requests_that_fail_over_a_connection_leave_old_or_new_bytes() {
    let stack = Rc::new(Exported);
    answers_with_errors(&stack, Plan::io_errors, 30);
}

#[test]
fn after_a_flush_that_failed_on_the_other_side_nothing_is_believed() {
    let stack = Rc::new(Exported);
    answers_with_errors(&stack, Plan::flush_fails, 30);
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
    shows_a_lie_about_flush(&stack);
}
