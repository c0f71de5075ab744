//! A set that is never given rest: it must not fill up, choke on its journal, or grow a tree that its
//! keys do not need.

use std::rc::Rc;

use varve_block::dev::sim::Plan;
use varve_block::{BlockDevice, BufPool, Sim};

use super::model::{Load, Model, client};
use super::{Media, Shape, open, read_all};
use crate::format::CacheMode;

fn run(seed: u64, shape: Shape, load: Load, requests: u64) {
    let media = Media::make(shape);
    Sim::new(seed).run(move |rt| async move {
        let (ssd, hdd) = media.disks(&rt, Plan::default());
        let cache = open(&rt, &ssd, &hdd).await;
        let model = Model::new(shape.volume, cache.geometry().block.0);
        let clients: Vec<_> = (0..8)
            .map(|_| {
                let (rt2, cache, model) = (rt.clone(), Rc::clone(&cache), Rc::clone(&model));
                rt.spawn(client(rt2, cache, model, load, requests / 8))
            })
            .collect();
        for client in clients {
            client.await;
        }
        let status = cache.status();
        assert_eq!(status.safe_mode, None);
        assert!(status.index.nodes <= 60, "more nodes than keys could need: {status:?}");
        let all = read_all(&cache, &BufPool::new(0), rt.prng()).await;
        model.expect_all(&all, "in the end");
        cache.stop().await.unwrap();
        let media = Media { ssd: ssd.settled(), hdd: hdd.settled() };
        assert_eq!(media.check(true), Vec::<String>::new(), "seed {seed} {shape:?}");
    });
}

#[test]
fn single_sectors_all_over_the_volume_for_a_long_time() {
    for mode in [CacheMode::Writeback, CacheMode::Writethrough] {
        let shape = Shape { volume: 1 << 15, ..Shape::tiny(mode) };
        run(3, shape, Load { blocks_max: 1, span: u64::MAX, discards: true }, 12_000);
    }
}

#[test]
fn a_busy_corner_of_the_volume_for_a_long_time() {
    let shape = Shape { volume: 1 << 15, ..Shape::tiny(CacheMode::Writeback) };
    run(4, shape, Load { blocks_max: 4, span: 1500, discards: false }, 12_000);
}

#[test]
fn the_smallest_nodes_there_are() {
    let shape = Shape { bucket: 8, block: 4, volume: 1 << 14, ..Shape::tiny(CacheMode::Writeback) };
    run(5, shape, Load { blocks_max: 4, span: u64::MAX, discards: false }, 4000);
}
