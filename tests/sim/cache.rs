//! The cache in every mode, alone and under encryption.

use std::rc::Rc;
use varve_block::export::Sabotage;
use varve_cache::format::CacheMode;
use varve_tests::fault::Plan;
use varve_tests::stack::cache::{Cached, cached};
use varve_tests::world::{Ops, Violation, World, must_fail, ops, seeds};

fn run(stack: Cached, plan: &Plan, ops: Ops, count: u64) {
    let stack = Rc::new(stack);
    for seed in seeds(count) {
        World::new(seed).faults(plan.clone()).run(&stack, ops);
    }
}

#[test]
fn writeback_keeps_flushed_blocks_through_power_cuts() {
    run(cached(CacheMode::Writeback), &Plan::power_cuts(), ops(300), 40);
}

#[test]
fn writethrough_keeps_flushed_blocks_through_power_cuts() {
    run(cached(CacheMode::Writethrough), &Plan::power_cuts(), ops(300), 30);
}

#[test]
fn writearound_keeps_flushed_blocks_through_power_cuts() {
    run(cached(CacheMode::Writearound), &Plan::power_cuts(), ops(300), 30);
}

/// Requests all over the volume, so that buckets are reused and nodes split.
fn everywhere(count: u64) -> Ops {
    Ops { arena: 64 << 20, longest: 100_000, ..ops(count) }
}

#[test]
fn a_cache_smaller_than_its_data_keeps_its_promises() {
    for mode in [CacheMode::Writeback, CacheMode::Writethrough] {
        let stack = cached(mode).larger_than_the_cache();
        run(stack, &Plan::power_cuts(), everywhere(600), 12);
    }
}

#[test]
fn the_whole_stack_keeps_its_promises_through_power_cuts() {
    for sector in [512, 4096] {
        let stack = cached(CacheMode::Writeback).encrypted(sector);
        run(stack, &Plan::power_cuts(), ops(300), 20);
    }
}

#[test]
fn writeback_requests_that_fail_leave_old_or_new_bytes() {
    run(cached(CacheMode::Writeback), &Plan::io_errors(), ops(300), 20);
}

#[test]
fn writethrough_requests_that_fail_leave_old_or_new_bytes() {
    run(cached(CacheMode::Writethrough), &Plan::io_errors(), ops(300), 20);
}

#[test]
fn writearound_requests_that_fail_leave_old_or_new_bytes() {
    run(cached(CacheMode::Writearound), &Plan::io_errors(), ops(300), 20);
}

#[test]
fn writethrough_survives_a_dead_ssd() {
    run(cached(CacheMode::Writethrough), &Plan::ssd_dies(), ops(500), 25);
}

#[test]
fn writearound_survives_a_dead_ssd() {
    run(cached(CacheMode::Writearound), &Plan::ssd_dies(), ops(500), 25);
}

/// The export's bugs are seen through the whole stack, too.
#[test]
fn a_flush_that_is_answered_early_is_caught_over_the_whole_stack() {
    let plan = Plan::power_cuts().sabotaged(Sabotage::FlushAnswersEarly);
    let stack = Rc::new(cached(CacheMode::Writeback).encrypted(4096));
    let failure = must_fail("answered early", &plan, &stack, ops(300));
    assert!(matches!(failure.what, Violation::Bytes(w) if w.when == "after the crash"));
}

/// S28 for the cache: what an SSD forgets, nobody else has in write-back mode. In write-through mode
/// everybody else has it.
#[test]
fn s28_an_ssd_that_lies_about_flush_is_caught() {
    let stack = Rc::new(cached(CacheMode::Writeback));
    must_fail("an SSD that lies", &Plan::ssd_lies(), &stack, ops(300));
}

#[test]
fn a_seed_is_one_world_of_the_whole_stack() {
    let stack = Rc::new(cached(CacheMode::Writeback).encrypted(4096));
    let run = |seed| World::new(seed).faults(Plan::power_cuts()).run(&stack, ops(200));
    assert_eq!(run(5), run(5));
    assert_ne!(run(5).digest, run(6).digest);
}
