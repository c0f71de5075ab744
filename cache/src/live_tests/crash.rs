//! Power cuts: whatever the disks kept, everything that was flushed is there, nothing moves by itself
//! afterwards, and the checker is silent.

use std::rc::Rc;
use std::time::Duration;

use varve_block::dev::sim::Plan;
use varve_block::{BufPool, Prng, Rt, Sim};

use super::model::{Load, Model, client};
use super::{Media, Shape, SimCache, open, read_all, seeds};
use crate::format::CacheMode;

/// When the power goes.
#[derive(Clone, Copy, Debug)]
enum Cut {
    AfterUs(u64),
    /// After so many operations on both disks.
    AtOperation(u64),
}

/// One life: open, look at everything, work until the power goes. Returns what is left, or nothing
/// when the set did not get that far.
fn life(seed: u64, media: Media, model: Rc<Model>, load: Load, cut: Cut) -> Media {
    Sim::new(seed).max_steps(20_000_000).run(move |rt| async move {
        let (ssd, hdd) = media.disks(&rt, Plan::default());
        let chance = Prng::new(seed ^ 0xC07);
        let worker = {
            let (rt2, ssd, hdd) = (rt.clone(), ssd.clone(), hdd.clone());
            rt.spawn(async move {
                let cache = open(&rt2, &ssd, &hdd).await;
                after_the_cut(&rt2, &cache, &model).await;
                let clients: Vec<_> = (0..3)
                    .map(|_| {
                        let (rt3, cache, model) =
                            (rt2.clone(), Rc::clone(&cache), Rc::clone(&model));
                        rt2.spawn(client(rt3, cache, model, load, u64::MAX))
                    })
                    .collect();
                for client in clients {
                    client.await;
                }
            })
        };
        match cut {
            Cut::AfterUs(us) => rt.sleep(Duration::from_micros(us)).await,
            Cut::AtOperation(n) => {
                while ssd.operations() + hdd.operations() < n {
                    rt.sleep(Duration::from_micros(1)).await;
                }
            }
        }
        let left = Media { ssd: ssd.cut(&chance), hdd: hdd.cut(&chance) };
        worker.cancel().await;
        left
    })
}

/// What the crash left is legal, and it is the same when it is read again through an index that has
/// forgotten its clean data.
async fn after_the_cut(rt: &Rt, cache: &SimCache, model: &Model) {
    let pool = BufPool::new(0);
    let all = read_all(cache, &pool, rt.prng()).await;
    model.after_crash(&all);
}

/// The end: everything is read, the cache is emptied of clean data, everything is read again.
fn end(seed: u64, media: Media, model: Rc<Model>) {
    Sim::new(seed).run(move |rt| async move {
        let (ssd, hdd) = media.disks(&rt, Plan::default());
        let cache = open(&rt, &ssd, &hdd).await;
        after_the_cut(&rt, &cache, &model).await;
        cache.set_mode(CacheMode::None).await.unwrap();
        cache.write_back_all().await.unwrap();
        let volume = cache.volume();
        let (inode, len) = (volume.inode, volume.geometry.len.0 + volume.offset);
        volume.set.invalidate(inode, (0, len), true).await.unwrap();
        let all = read_all(&cache, &BufPool::new(0), rt.prng()).await;
        model.expect_all(&all, "once nothing is cached");
        cache.stop().await.unwrap();
        let media = Media { ssd: ssd.settled(), hdd: hdd.settled() };
        assert_eq!(media.check(true), Vec::<String>::new());
    });
}

fn lives(seed: u64, shape: Shape, load: Load, cuts: &[Cut]) {
    let mut media = Media::make(shape);
    let block = u64::from(shape.block);
    let model = Model::new(shape.volume, block);
    for (n, cut) in (0u64..).zip(cuts) {
        media = life(seed * 1000 + n, media, Rc::clone(&model), load, *cut);
        let findings = media.check(false);
        assert_eq!(findings, Vec::<String>::new(), "seed {seed} life {n} {cut:?} {shape:?}");
    }
    end(seed, media, model);
}

fn random_lives(mode: CacheMode, tiny: bool, n: u64) {
    for seed in seeds(n) {
        let chance = Prng::new(seed);
        let shape =
            Shape { volume: 6144, ..if tiny { Shape::tiny(mode) } else { Shape::small(mode) } };
        let load = Load { blocks_max: 1 + chance.below(16), span: u64::MAX, discards: false };
        let cuts: Vec<Cut> = (0..4).map(|_| Cut::AfterUs(1 + chance.below(60_000))).collect();
        eprintln!("seed {seed}");
        lives(seed, shape, load, &cuts);
    }
}

#[test]
fn writeback_keeps_flushed_blocks_through_power_cuts() {
    random_lives(CacheMode::Writeback, true, 12);
    random_lives(CacheMode::Writeback, false, 4);
}

#[test]
fn writethrough_keeps_flushed_blocks_through_power_cuts() {
    random_lives(CacheMode::Writethrough, true, 8);
    random_lives(CacheMode::Writethrough, false, 4);
}

#[test]
fn writearound_keeps_flushed_blocks_through_power_cuts() {
    random_lives(CacheMode::Writearound, true, 6);
}

#[test]
fn a_cut_at_any_operation_of_the_first_start_leaves_a_set_that_starts() {
    let shape = Shape { volume: 1024, ..Shape::tiny(CacheMode::Writeback) };
    let load = Load { blocks_max: 4, span: u64::MAX, discards: false };
    for n in (1..120).step_by(3) {
        let cuts = [Cut::AtOperation(n), Cut::AtOperation(n / 2 + 5)];
        lives(n, shape, load, &cuts);
    }
}
