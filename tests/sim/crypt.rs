//! Encryption between the export and the disk: the ordering and ownership stories.

use std::rc::Rc;
use varve_crypt::Mutation;
use varve_tests::fault::Plan;
use varve_tests::stack::crypt::{Encrypted, encrypted};
use varve_tests::world::{Failure, Ops, Violation, World, must_fail, ops, seeds};

fn clean(plan: &Plan, ops: Ops) {
    for sector in [512, 4096] {
        let stack = Rc::new(encrypted(sector));
        for seed in seeds(25) {
            World::new(seed).faults(plan.clone()).run(&stack, ops);
        }
    }
}

fn caught(name: &str, mutation: Mutation, plan: &Plan) -> Failure {
    let stack: Rc<Encrypted> = Rc::new(encrypted(4096).with(mutation));
    must_fail(name, plan, &stack, ops(300))
}

#[test]
fn encryption_keeps_the_disks_promises_through_power_cuts() {
    clean(&Plan::power_cuts(), ops(300));
}

#[test]
fn encrypted_requests_that_fail_leave_old_or_new_bytes() {
    clean(&Plan::io_errors(), ops(300));
}

/// C08: double decryption.
#[test]
fn c08_double_decryption_is_caught() {
    let failure = caught("C08", Mutation::DecryptTwice, &Plan::calm());
    assert!(matches!(failure.what, Violation::Bytes(_)));
}

/// C09: FLUSH overtakes a write that was answered while it waited for encryption. Nobody reads, so
/// only the cut can tell.
#[test]
fn c09_a_flush_that_overtakes_encryption_is_caught() {
    let stack = Rc::new(encrypted(4096).with(Mutation::AnswerWhenQueued));
    let blind = Ops { reads: false, align: 4096, ..ops(300) };
    let failure = must_fail("C09", &Plan::power_cuts(), &stack, blind);
    assert!(matches!(failure.what, Violation::Bytes(w) if w.when == "after the crash"));
    clean(&Plan::power_cuts(), blind);
}

/// C10: FUA overtakes, or gets lost.
#[test]
fn c10_fua_that_does_not_reach_the_medium_is_caught() {
    let failure = caught("C10", Mutation::LoseFua, &Plan::power_cuts());
    assert!(matches!(failure.what, Violation::Bytes(w) if w.when == "after the crash"));
}

/// C11: an old write, answered and still queued, lands over a newer one. No power cut is needed to
/// see it.
#[test]
fn c11_overlapping_writes_out_of_order_are_caught() {
    let failure = caught("C11", Mutation::AnswerWhenQueued, &Plan::calm());
    assert!(matches!(failure.what, Violation::Bytes(w) if w.when == "read"));
}
