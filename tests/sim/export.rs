//! The export over a simulated disk, and proof that the harness sees what it is for.

use crate::promises::{answers_with_errors, shows_a_lie_about_flush, survives_power_cuts};
use std::rc::Rc;
use varve_block::export::Sabotage;
use varve_tests::fault::Plan;
use varve_tests::stack;
use varve_tests::world::{Ops, Violation, World, must_fail, ops, seeds};

#[test]
fn a_disk_keeps_its_promises_through_power_cuts() {
    let stack = Rc::new(stack::bare());
    survives_power_cuts(&stack, 40);
}

#[test]
fn blocks_larger_than_what_tears_keep_their_promises() {
    let stack = Rc::new(stack::blocks_of_4096());
    for seed in seeds(40) {
        World::new(seed).faults(Plan::power_cuts()).run(&stack, ops(300));
    }
}

#[test]
fn sectors_that_a_cut_made_unreadable_are_only_those_that_were_not_durable() {
    let stack = Rc::new(stack::bare());
    for seed in seeds(30) {
        World::new(seed).faults(Plan::torn_units()).run(&stack, ops(200));
    }
}

#[test]
fn requests_that_fail_leave_old_or_new_bytes() {
    let stack = Rc::new(stack::blocks_of_4096());
    answers_with_errors(&stack, Plan::io_errors, 30);
}

#[test]
fn after_a_failed_flush_nothing_is_promised_and_nothing_is_believed() {
    let stack = Rc::new(stack::bare());
    answers_with_errors(&stack, Plan::flush_fails, 30);
}

#[test]
fn clients_on_several_lanes_have_one_order() {
    let stack = Rc::new(stack::blocks_of_4096());
    for seed in seeds(30) {
        let lanes = Ops { lanes: 3, ..ops(300) };
        World::new(seed).faults(Plan::power_cuts()).run(&stack, lanes);
    }
}

#[test]
fn quiesce_and_swap_hold_requests_and_lose_none() {
    let stack = Rc::new(stack::blocks_of_4096());
    for seed in seeds(30) {
        let operated = Ops { operator: true, lanes: 2, ..ops(300) };
        World::new(seed).faults(Plan::power_cuts()).run(&stack, operated);
    }
}

#[test]
fn a_seed_is_one_world() {
    let stack = Rc::new(stack::blocks_of_4096());
    let run = |seed| World::new(seed).faults(Plan::power_cuts()).run(&stack, ops(200));
    assert_eq!(run(5), run(5));
    assert_ne!(run(5).digest, run(6).digest);
}

fn caught(sabotage: Sabotage) -> Violation {
    let plan = Plan::power_cuts().sabotaged(sabotage);
    let stack = Rc::new(stack::blocks_of_4096());
    must_fail(&format!("{sabotage:?}"), &plan, &stack, ops(300)).what
}

#[test]
fn a_flush_that_joins_a_running_one_is_caught() {
    let Violation::Bytes(wrong) = caught(Sabotage::FlushJoinsRunning) else {
        panic!("another bug")
    };
    assert_eq!(wrong.when, "after the crash");
}

#[test]
fn a_flush_that_is_answered_early_is_caught() {
    assert!(matches!(caught(Sabotage::FlushAnswersEarly), Violation::Bytes(_)));
}

#[test]
fn requests_without_order_are_caught() {
    assert!(matches!(caught(Sabotage::NoRangeLock), Violation::Bytes(_)));
}

#[test]
fn a_lock_that_is_not_rounded_to_blocks_is_caught() {
    assert!(matches!(caught(Sabotage::LockNotRounded), Violation::Bytes(_)));
}

#[test]
fn forgotten_fua_is_caught() {
    assert!(matches!(caught(Sabotage::FuaIgnored), Violation::Bytes(_)));
}

/// S28: the layer acknowledges a flush without doing it; then the power goes.
#[test]
fn s28_a_disk_that_lies_about_flush_is_caught() {
    let stack = Rc::new(stack::bare());
    shows_a_lie_about_flush(&stack);
}
