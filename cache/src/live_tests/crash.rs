//! Power cuts: whatever the disks kept, everything that was flushed is there, nothing moves by itself
//! afterwards, and the checker is silent.

use std::rc::Rc;
use std::time::Duration;

use varve_block::dev::sim::Plan;
use varve_block::sync::Notify;
use varve_block::{BufPool, Prng, Rt, Sector, Sim, chain};

use super::model::{Load, Model, client};
use super::{Media, Shape, SimCache, open, read_all, seeds};
use crate::format::CacheMode;
use crate::{CacheView, intent};

/// When the power goes.
#[derive(Clone, Copy, Debug)]
enum Cut {
    AfterUs(u64),
    /// After so many operations on both disks.
    AtOperation(u64),
    /// Not the power: the process dies, so long after it opened the set, and the disks keep what they were
    /// given.
    KillAfterUs(u64),
}

/// One life: open, look at everything, work until the power goes. Returns what is left.
fn life(seed: u64, media: Media, model: Rc<Model>, load: Load, cut: Cut) -> Media {
    let shown = look(&media);
    Sim::new(seed).max_steps(20_000_000).run(move |rt| async move {
        let (ssd, hdd) = media.disks(&rt, Plan::default());
        let chance = Prng::new(seed ^ 0xC07);
        let opened = Rc::new(Notify::new());
        let worker = {
            let (rt2, ssd, hdd) = (rt.clone(), ssd.clone(), hdd.clone());
            let opened = Rc::clone(&opened);
            rt.spawn(async move {
                let cache = open(&rt2, &ssd, &hdd).await;
                opened.notify_one();
                after_the_cut(&rt2, &cache, &model, &shown).await;
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
            Cut::KillAfterUs(us) => {
                opened.notified().await;
                rt.sleep(Duration::from_micros(us)).await;
            }
            Cut::AtOperation(n) => {
                while ssd.operations() + hdd.operations() < n {
                    rt.sleep(Duration::from_micros(1)).await;
                }
            }
        }
        let left = match cut {
            Cut::KillAfterUs(_) => Media { ssd: ssd.settled(), hdd: hdd.settled() },
            _ => Media { ssd: ssd.cut(&chance), hdd: hdd.cut(&chance) },
        };
        worker.cancel().await;
        left
    })
}

/// What a read-only look shows of the media.
fn look(media: &Media) -> Vec<u8> {
    let media = media.clone();
    Sim::new(3).run(move |rt| async move {
        let (ssd, hdd) = media.disks(&rt, Plan::instant());
        let view = CacheView::open(ssd, hdd).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
        read_all(&view, &BufPool::new(0), rt.prng()).await
    })
}

/// What the kernel shows of them: it knows of no marks.
fn kernel_look(media: &Media) -> Vec<u8> {
    let mut unmarked = media.clone();
    unmarked.ssd.poke(Sector(intent::PAGE_SECTOR), &[0; 4096]);
    look(&unmarked)
}

/// What the crash left is legal, and it is what a read-only look has shown.
async fn after_the_cut(rt: &Rt, cache: &SimCache, model: &Model, shown: &[u8]) {
    let pool = BufPool::new(0);
    let all = read_all(cache, &pool, rt.prng()).await;
    model.after_crash(&all);
    assert!(all == shown, "a read-only look has shown something else");
}

/// The end: everything is read, the cache is emptied of clean data, everything is read again.
fn end(seed: u64, media: Media, model: Rc<Model>) {
    let shown = look(&media);
    Sim::new(seed).run(move |rt| async move {
        let (ssd, hdd) = media.disks(&rt, Plan::default());
        let cache = open(&rt, &ssd, &hdd).await;
        after_the_cut(&rt, &cache, &model, &shown).await;
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
        if let Cut::KillAfterUs(_) = cut {
            let same = look(&media) == kernel_look(&media);
            assert!(same, "seed {seed} life {n}: the kernel shows something else");
        }
    }
    end(seed, media, model);
}

fn random_lives(mode: CacheMode, tiny: bool, n: u64) {
    for seed in seeds(n) {
        let chance = Prng::new(seed);
        let shape =
            Shape { volume: 6144, ..if tiny { Shape::tiny(mode) } else { Shape::small(mode) } };
        let load = Load { blocks_max: 1 + chance.below(16), span: u64::MAX, discards: false };
        let cuts = (0..5).map(|n| match n % 3 {
            1 => Cut::KillAfterUs(1 + chance.below(60_000)),
            _ => Cut::AfterUs(1 + chance.below(60_000)),
        });
        let cuts: Vec<Cut> = cuts.collect();
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
