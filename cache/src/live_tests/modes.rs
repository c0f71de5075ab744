//! No crash: every mode, every read right, and again after a restart.

use std::rc::Rc;

use varve_block::dev::sim::Plan;
use varve_block::{BlockDevice, BufPool, Sim};

use super::model::{Load, Model, client};
use super::{Media, Shape, open, read_all};
use crate::format::CacheMode;

/// Clients at work, then a stop, a look at the images, a restart and a look at everything.
fn run(seed: u64, shape: Shape, load: Load, requests: u64) {
    let media = Media::make(shape);
    let volume = shape.volume;
    let (media, model) = Sim::new(seed).run(move |rt| async move {
        let (ssd, hdd) = media.disks(&rt, Plan::default());
        let cache = open(&rt, &ssd, &hdd).await;
        let model = Model::new(volume, cache.geometry().block.0);
        let clients: Vec<_> = (0..4)
            .map(|_| {
                let (rt2, cache, model) = (rt.clone(), Rc::clone(&cache), Rc::clone(&model));
                rt.spawn(client(rt2, cache, model, load, requests))
            })
            .collect();
        for client in clients {
            client.await;
        }
        let all = read_all(&cache, &BufPool::new(0), rt.prng()).await;
        model.expect_all(&all, "before the stop");
        let status = cache.status();
        assert_eq!(status.safe_mode, None);
        cache.stop().await.unwrap();
        (
            Media { ssd: ssd.settled(), hdd: hdd.settled() },
            Rc::into_inner(model).expect("clients are gone"),
        )
    });
    assert_eq!(media.check(true), Vec::<String>::new(), "seed {seed} {shape:?}");
    Sim::new(seed).run(move |rt| async move {
        let (ssd, hdd) = media.disks(&rt, Plan::default());
        let cache = open(&rt, &ssd, &hdd).await;
        let all = read_all(&cache, &BufPool::new(0), rt.prng()).await;
        model.expect_all(&all, "after the restart");
        cache.write_back_all().await.unwrap();
        assert_eq!(cache.status().dirty_sectors, 0);
        let all = read_all(&cache, &BufPool::new(0), rt.prng()).await;
        model.expect_all(&all, "after writing back");
        cache.stop().await.unwrap();
    });
}

const MODES: [CacheMode; 4] =
    [CacheMode::Writethrough, CacheMode::Writeback, CacheMode::Writearound, CacheMode::None];

#[test]
fn every_mode_reads_what_was_written_in_the_smallest_set() {
    for mode in MODES {
        let load = Load { blocks_max: 16, span: u64::MAX, discards: false };
        run(7, Shape::tiny(mode), load, 400);
    }
}

#[test]
fn every_mode_reads_what_was_written_with_blocks_of_4k() {
    for mode in MODES {
        let load = Load { blocks_max: 8, span: u64::MAX, discards: true };
        run(8, Shape::small(mode), load, 400);
    }
}
