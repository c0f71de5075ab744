use proptest::prelude::*;

use super::super::fault::PredMode;
use super::super::model::{Bench, NeverStale, Op, SECTORS, frame, layout, op};
use super::*;
use crate::error::Rule;
use crate::format::Ptr;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Memory, what the next reader finds, what lookups answer and what was written last are the
    /// same after every step.
    #[test]
    fn memory_disk_and_shadow_agree_after_every_step(ops in prop::collection::vec(op(), 1..80)) {
        let layout = layout();
        let ctx = InsertCtx::new(&layout);
        let mut bench = Bench::new(Guards::all());
        for (number, op) in ops.iter().enumerate() {
            bench.step(&ctx, op).unwrap();
            let agreed = bench.check();
            prop_assert!(agreed.is_ok(), "step {number} {op:?}: {agreed:?}");
        }
    }

    /// Lower search positions only walk further.
    #[test]
    fn a_search_position_that_is_too_low_changes_nothing(
        ops in prop::collection::vec(op(), 1..60), none in any::<bool>()
    ) {
        let layout = layout();
        let fault = PredFault::new(if none { PredMode::None } else { PredMode::Low }, 1);
        let low = InsertCtx { layout: &layout, fault: Some(&fault) };
        let right = InsertCtx::new(&layout);
        let guards = Guards::all() - Guards::PRED;
        let (mut a, mut b) = (Bench::new(guards), Bench::new(guards));
        for op in &ops {
            a.step(&low, op).unwrap();
            b.step(&right, op).unwrap();
            let (a, b): (Vec<Key>, Vec<Key>) = (a.node.iter().collect(), b.node.iter().collect());
            prop_assert_eq!(a, b);
        }
        prop_assert!(a.check().is_ok());
    }
}

/// The dump posted with the bug: two misses left check keys, then [16,24) was written with a search
/// position beyond everything.
fn dump(guards: Guards, mode: Option<PredMode>) -> (Node, Result<Inserted, Corrupt>) {
    let layout = layout();
    let mut node = Node::fresh(frame(64, 4, 0), 9, guards);
    let right = InsertCtx::new(&layout);
    for (start, end) in [(16, 24), (24, 32)] {
        let check = Key::check(0, start, end, 0x1234_5678 + start);
        let _ = node.insert(&right, check, None, &mut Vec::new()).unwrap();
    }
    let fault = mode.map(|mode| PredFault::new(mode, 3));
    let ctx = InsertCtx { layout: &layout, fault: fault.as_ref() };
    let key = Key::extent(0, 16, 24, true, Ptr::new(6400, 0));
    let done = node.insert(&ctx, key, None, &mut Vec::new());
    (node, done)
}

fn shape(node: &Node) -> Vec<(u64, u64, bool, bool)> {
    let last = node.sets().last().unwrap();
    last.keys().iter().map(|k| (k.start(), k.end(), k.is_check(), k.dirty())).collect()
}

const RIGHT: [(u64, u64, bool, bool); 3] =
    [(16, 16, true, false), (16, 24, false, true), (24, 32, true, false)];

#[test]
fn the_posted_dump_comes_out_of_the_fault_and_the_right_set_without_it() {
    let none = Guards::empty();
    let (node, _) = dump(none, Some(PredMode::Beyond));
    assert_eq!(
        shape(&node),
        [(16, 24, true, false), (24, 32, true, false), (16, 24, false, true)],
        "Key skipped backwards, as in the report"
    );
    for mode in [None, Some(PredMode::None), Some(PredMode::Low)] {
        assert_eq!(shape(&dump(none, mode).0), RIGHT);
    }
    assert_eq!(shape(&dump(Guards::all(), None).0), RIGHT);
}

#[test]
fn each_guard_behind_the_other_catches_the_dump() {
    let beyond = Some(PredMode::Beyond);
    let (_, done) = dump(Guards::all(), beyond);
    assert_eq!(done.unwrap_err().rule, Rule::Online(2));

    let (_, done) = dump(Guards::all() - Guards::PRED, beyond);
    let broken = done.unwrap_err();
    assert_eq!((broken.rule, broken.field), (Rule::Online(4), verify::SKIPPED_BACKWARDS));

    let (_, done) = dump(Guards::SECTORS, beyond);
    assert_eq!(done.unwrap_err().rule, Rule::Online(6));

    let (mut node, done) = dump(Guards::WRITE, beyond);
    assert!(done.is_ok());
    let broken = node.seal(&layout(), &NeverStale).unwrap_err();
    assert_eq!((broken.rule, broken.field), (Rule::Row(37), verify::SKIPPED_BACKWARDS));

    let (mut node, _) = dump(Guards::READ, beyond);
    let write = node.seal(&layout(), &NeverStale).unwrap();
    let mut image = write.bytes;
    image.resize(node.frame().bytes(), 0);
    let broken = Node::parse(*node.frame(), &image, &layout(), Guards::READ).unwrap_err();
    assert_eq!((broken.rule, broken.field), (Rule::Row(37), verify::SKIPPED_BACKWARDS));
    let message = broken.to_string();
    assert!(
        message.contains("node=max") && message.contains("bset=0") && message.contains("index=2")
    );
}

#[test]
fn a_wrong_position_that_reaches_only_other_sets_is_caught_there() {
    let layout = layout();
    let mut node = Node::fresh(frame(64, 4, 0), 9, Guards::DISJOINT);
    let right = InsertCtx::new(&layout);
    let old = Key::extent(0, 16, 48, true, Ptr::new(6400, 0));
    let _ = node.insert(&right, old, None, &mut Vec::new()).unwrap();
    let _ = node.seal(&layout, &NeverStale).unwrap();
    let fault = PredFault::new(PredMode::Beyond, 3);
    let ctx = InsertCtx { layout: &layout, fault: Some(&fault) };
    let key = Key::extent(0, 24, 32, true, Ptr::new(12_800, 0));
    let broken = node.insert(&ctx, key, None, &mut Vec::new()).unwrap_err();
    assert_eq!((broken.rule, broken.field), (Rule::Online(5), verify::OVERLAPPING));
    assert!(node.insert(&right, key, None, &mut Vec::new()).is_err(), "poisoned");
}

/// A long random run; the seed drives both the writes and the fault.
fn long_run(guards: Guards, mode: PredMode, seed: u64) -> (u64, Result<(), String>) {
    let layout = layout();
    let fault = PredFault::new(mode, seed).one_in(500);
    let ctx = InsertCtx { layout: &layout, fault: Some(&fault) };
    let mut bench = Bench::new(guards);
    let mut state = seed;
    let mut random = |n: u64| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    for step in 0..5_000 {
        let (inode, start) = (u32::try_from(random(3)).unwrap(), random(SECTORS));
        let len = (1 + random(16)).min(SECTORS - start);
        let op = match random(20) {
            0 => Op::Seal,
            _ => Op::Write { inode, start, len, dirty: random(2) == 0 },
        };
        if let Err(broken) = bench.step(&ctx, &op) {
            return (fault.hits.get(), Err(broken.to_string()));
        }
        if step % 50 == 0
            && let Err(wrong) = bench.check()
        {
            return (fault.hits.get(), Err(wrong));
        }
    }
    (fault.hits.get(), Ok(()))
}

#[test]
fn every_mode_of_the_fault_is_caught_at_its_first_strike_and_destroys_data_without_guards() {
    for seed in 1..4 {
        for mode in [PredMode::Beyond, PredMode::SameInodeHigh, PredMode::Garbage] {
            let (hits, caught) = long_run(Guards::all(), mode, seed);
            assert!(caught.unwrap_err().contains("search position"));
            assert_eq!(hits, 1, "{mode:?}");
        }
        // A position beyond everything must do damage sooner or later, or the injection is dead.
        let (_, destroyed) = long_run(Guards::empty(), PredMode::Beyond, seed);
        assert!(destroyed.is_err());
        for harmless in [PredMode::Low, PredMode::None] {
            let (hits, fine) = long_run(Guards::all() - Guards::PRED, harmless, seed);
            assert_eq!((hits > 3, fine), (true, Ok(())), "{harmless:?}");
        }
    }
}

#[test]
fn replace_takes_what_is_left_and_collides_with_what_is_gone() {
    let layout = layout();
    let ctx = InsertCtx::new(&layout);
    let put = |node: &mut Node, key, replace: Option<&Key>| {
        node.insert(&ctx, key, replace, &mut Vec::new()).unwrap()
    };
    let check = Key::check(0, 8, 24, 99);
    let fill = Key::extent(0, 8, 24, false, Ptr::new(6400, 0));
    let fresh = || {
        let mut node = Node::fresh(frame(64, 4, 0), 9, Guards::all());
        let _ = put(&mut node, check, None);
        node
    };
    let mut node = fresh();
    assert_eq!(put(&mut node, fill, Some(&check)), Inserted::Done { sectors: 16 });
    assert_eq!(put(&mut node, fill, Some(&check)), Inserted::Collision);

    // A write into the tail: the front of the fill is still good.
    let mut node = fresh();
    let tail = Key::extent(0, 16, 32, true, Ptr::new(12_800, 0));
    let _ = put(&mut node, tail, None);
    assert_eq!(put(&mut node, fill, Some(&check)), Inserted::Done { sectors: 8 });

    // A write into the head: nothing may be filled, the walk stops at the first sector.
    let mut node = fresh();
    let head = Key::extent(0, 8, 12, true, Ptr::new(12_800, 0));
    let _ = put(&mut node, head, None);
    assert_eq!(put(&mut node, fill, Some(&check)), Inserted::Collision);
    assert_eq!(node.live_sectors(), 16);
}

/// Bug 14: a miss longer than 16 bits of sectors made a key of size zero.
#[test]
#[should_panic(expected = "without sectors")]
fn a_key_without_sectors_is_our_bug() {
    let layout = layout();
    let mut node = Node::fresh(frame(64, 4, 0), 9, Guards::all());
    let mut key = Key::extent(0, 8, 16, false, Ptr::new(6400, 0));
    key.empty_in_place();
    let _ = node.insert(&InsertCtx::new(&layout), key, None, &mut Vec::new());
}

#[test]
#[should_panic(expected = "a key of 65536 sectors")]
fn a_key_too_long_for_its_size_field_is_our_bug() {
    let _ = Key::invalidation(0, 0, 65_536);
}

#[test]
fn children_and_freeing_keys_are_inserted_in_order() {
    let layout = layout();
    let ctx = InsertCtx::new(&layout);
    let mut node = Node::fresh(frame(64, 4, 1), 9, Guards::all());
    let child = |offset, bucket: u64| Key::node(Pos::new(1, offset), 64, Ptr::new(bucket * 64, 0));
    let old = child(100, 70);
    for key in [old, child(300, 71)] {
        let _ = node.insert(&ctx, key, None, &mut Vec::new()).unwrap();
    }
    let _ = node.seal(&layout, &NeverStale).unwrap();
    for key in [child(50, 72), child(100, 73), Key::freeing(old, 1)] {
        let _ = node.insert(&ctx, key, None, &mut Vec::new()).unwrap();
    }
    let _ = node.seal(&layout, &NeverStale).unwrap();
    let mut gens = vec![0u8; 100];
    gens[70] = 1;
    node.verify_live(&layout, &gens).unwrap();
    assert_eq!(node.usable_keys(&layout, &gens), [child(50, 72), child(100, 73), child(300, 71)]);
    assert!(node.verify_live(&layout, &NeverStale).is_err(), "without the new generation");

    let fault = PredFault { interior: true, ..PredFault::new(PredMode::Beyond, 1) };
    let bad = InsertCtx { layout: &layout, fault: Some(&fault) };
    let broken = node.insert(&bad, child(20, 74), None, &mut Vec::new()).unwrap_err();
    assert_eq!(broken.rule, Rule::Online(2));
}
