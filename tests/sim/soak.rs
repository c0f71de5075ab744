//! The long run: whatever stack and plan the seed picks, for as many seeds as there are, all
//! failures listed. `VARVE_SEEDS=1..10000 cargo test -p varve-tests --test sim soak -- --ignored
//! --nocapture`

use std::rc::Rc;
use varve_block::Prng;
use varve_cache::format::CacheMode;
use varve_tests::fault::Plan;
use varve_tests::stack::cache::cached;
use varve_tests::stack::{self, crypt};
use varve_tests::world::{Failure, Ops, Report, World, ops, seeds};

/// One world, chosen by its seed: its name and its end.
fn one(seed: u64) -> (String, Result<Report, Failure>) {
    let chance = Prng::new(seed ^ 0x50AC);
    let plans = [
        ("power cuts", Plan::power_cuts()),
        ("power cuts", Plan::power_cuts()),
        ("i/o errors", Plan::io_errors()),
        ("failing flush", Plan::flush_fails()),
        ("inline", Plan::inline()),
    ];
    let (name, plan) = plans[chance.index(plans.len())].clone();
    let ops = Ops {
        arena: [128 << 10, 512 << 10, 64 << 20][chance.index(3)],
        longest: [5000, 40_000, 200_000][chance.index(3)],
        align: [1, 1, 512, 4096][chance.index(4)],
        writes: [20, 50, 70][chance.index(3)],
        lanes: 1 + chance.index(3),
        operator: chance.chance(1, 6),
        ..ops(100 + chance.below(500))
    };
    let world = World::new(seed).faults(plan);
    let modes = [CacheMode::Writeback, CacheMode::Writethrough, CacheMode::Writearound];
    let mode = modes[chance.index(3)];
    let mut cache = cached(mode);
    if chance.chance(1, 2) {
        cache = cache.larger_than_the_cache();
    }
    let (stack, end) = match chance.below(8) {
        0 => ("disk".to_owned(), world.try_run(&Rc::new(stack::blocks_of_4096()), ops)),
        1 => ("crypt".to_owned(), world.try_run(&Rc::new(crypt::encrypted(4096)), ops)),
        2 | 3 => (format!("crypt, {mode:?}"), world.try_run(&Rc::new(cache.encrypted(4096)), ops)),
        _ => (format!("{mode:?}"), world.try_run(&Rc::new(cache), ops)),
    };
    (format!("{stack}, {name}"), end)
}

#[test]
#[ignore = "as long as its list of seeds"]
fn soak() {
    let (mut failures, mut requests, mut cuts) = (0u64, 0, 0);
    for seed in seeds(1000) {
        match one(seed) {
            (_, Ok(report)) => {
                requests += report.requests;
                cuts += report.cuts;
            }
            (name, Err(failure)) => {
                failures += 1;
                println!("{name}: {failure}");
            }
        }
    }
    println!("{requests} requests, {cuts} power cuts, {failures} failures");
    assert_eq!(failures, 0);
}
