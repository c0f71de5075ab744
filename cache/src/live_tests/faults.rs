//! Devices that fail: what is clean is served, what is dirty is lost by name only, and nothing hangs.

use std::rc::Rc;
use std::time::Duration;

use varve_block::dev::SimDisk;
use varve_block::dev::sim::{Effect, Fault, Plan, When};
use varve_block::{
    BlockDevice, BufPool, Durability, ErrorKind, Extent, Op, Prng, Rt, Sector, Sectors, Sim,
};

use super::model::{Load, Model, client};
use super::{Media, Shape, SimCache, open, options, read_all};
use crate::format::{BackingState, CacheMode};
use crate::{Cache, CacheView};

async fn put(cache: &SimCache, at: u64, len: u64, byte: u8) -> varve_block::Result<()> {
    let mut buf = BufPool::new(0).take(Sectors(len)).await;
    buf.fill(byte);
    cache.write(Sector(at), buf.into(), Durability::Cached).await.map(drop)
}

async fn get(cache: &SimCache, at: u64, len: u64) -> varve_block::Result<u8> {
    let buf = cache.read(Sector(at), BufPool::new(0).take(Sectors(len)).await).await?;
    assert!(buf.iter().all(|&b| b == buf[0]), "one byte everywhere");
    Ok(buf[0])
}

/// Opens a fresh set in a world of its own and runs `test` on it.
fn with_cache<F: Future<Output = ()> + 'static>(
    mode: CacheMode,
    test: impl FnOnce(Rt, Rc<SimCache>, SimDisk, SimDisk) -> F + 'static,
) {
    let media = Media::make(Shape { volume: 4096, ..Shape::tiny(mode) });
    Sim::new(1).run(move |rt| async move {
        let (ssd, hdd) = media.disks(&rt, Plan::default());
        let cache = open(&rt, &ssd, &hdd).await;
        test(rt, cache, ssd, hdd).await;
    });
}

fn fail(op: Op) -> Plan {
    Plan::default().with(Fault::new(op, When::From(1), Effect::Fail(ErrorKind::Io)))
}

#[test]
fn writethrough_survives_a_dead_ssd() {
    with_cache(CacheMode::Writethrough, |rt, cache, ssd, hdd| async move {
        put(&cache, 0, 64, 1).await.unwrap();
        cache.flush().await.unwrap();
        ssd.die();
        assert_eq!(get(&cache, 0, 64).await.unwrap(), 1);
        put(&cache, 0, 32, 2).await.unwrap();
        put(&cache, 100, 8, 3).await.unwrap();
        assert_eq!(get(&cache, 0, 32).await.unwrap(), 2);
        assert_eq!(get(&cache, 32, 32).await.unwrap(), 1);
        cache.flush().await.unwrap();
        let status = cache.status();
        assert!(status.uncached && status.safe_mode.is_some(), "{status:?}");
        assert_eq!(status.state, BackingState::Stale, "what the set holds is worth nothing now");
        cache.stop().await.unwrap();

        // The SSD comes back with what it knew: old data must not be served.
        let ssd = Media { ssd: ssd.settled(), hdd: hdd.settled() };
        let (ssd, hdd) = ssd.disks(&rt, Plan::default());
        let cache = open(&rt, &ssd, &hdd).await;
        assert_eq!(get(&cache, 0, 32).await.unwrap(), 2);
        assert_eq!(get(&cache, 100, 8).await.unwrap(), 3);
        assert_eq!(cache.status().state, BackingState::Clean, "attached again, in a new slot");
        cache.stop().await.unwrap();
    });
}

#[test]
fn clean_data_that_the_ssd_does_not_give_back_come_from_below() {
    with_cache(CacheMode::Writethrough, |_, cache, ssd, _| async move {
        for at in 0..16 {
            put(&cache, at * 8, 8, 7).await.unwrap();
        }
        ssd.set_plan(fail(Op::Read));
        for len in [1, 8, 64, 128] {
            assert_eq!(get(&cache, 0, len).await.unwrap(), 7);
        }
        let status = cache.status();
        assert_eq!(status.safe_mode, None);
        assert!(status.requests.cache_errors_survived >= 4);
        put(&cache, 0, 8, 8).await.unwrap();
        ssd.set_plan(Plan::default());
        assert_eq!(get(&cache, 0, 8).await.unwrap(), 8);
        cache.stop().await.unwrap();
    });
}

#[test]
fn dirty_data_that_the_ssd_does_not_give_back_fail_alone() {
    with_cache(CacheMode::Writeback, |rt, cache, ssd, _| async move {
        put(&cache, 0, 8, 1).await.unwrap();
        put(&cache, 800, 8, 2).await.unwrap();
        cache.flush().await.unwrap();
        let volume = cache.volume();
        let bad = bucket_of(volume, 800);
        let fault = Fault::new(Op::Read, When::From(1), Effect::Fail(ErrorKind::Io)).within(bad);
        ssd.set_plan(Plan::default().with(fault));
        let e = get(&cache, 800, 8).await.unwrap_err();
        assert_eq!((e.kind, e.at), (ErrorKind::Io, Extent::new(Sector(800), Sectors(8))));
        put(&cache, 1600, 8, 3).await.unwrap();
        assert_eq!(get(&cache, 0, 8).await.unwrap(), 1);
        assert_eq!(get(&cache, 1600, 8).await.unwrap(), 3);
        assert_eq!(get(&cache, 3200, 8).await.unwrap(), 0);

        // Writing back goes on without it, and says what is left.
        let e = cache.write_back_all().await.unwrap_err();
        assert!(varve_block::chain(&e).contains("cannot be written back"), "{e}");
        let status = cache.status();
        assert_eq!(status.quarantine.len(), 1);
        assert_eq!(status.quarantine[0].0, Extent::new(Sector(800), Sectors(8)));
        assert_eq!(status.dirty_sectors, 8);
        assert_eq!(status.safe_mode, None);

        // Overwritten, it is no problem any more.
        put(&cache, 800, 8, 4).await.unwrap();
        assert_eq!(get(&cache, 800, 8).await.unwrap(), 4);
        cache.write_back_all().await.unwrap();
        rt.sleep(Duration::from_millis(1)).await;
        assert_eq!(cache.status().state, BackingState::Clean);
        cache.stop().await.unwrap();
    });
}

/// Where the cache holds a sector of the volume.
fn bucket_of<S: BlockDevice, B: BlockDevice>(
    volume: &Rc<crate::volume::Volume<S, B>>,
    at: u64,
) -> Extent {
    let set = &volume.set;
    let pos = crate::format::Pos::new(volume.inode, at + volume.offset);
    let leaf = set.leaf_now(pos).unwrap().expect("a small tree is in memory");
    let buckets = set.buckets.borrow();
    let node = leaf.node.borrow();
    let mut pieces =
        node.pieces(pos.inode, pos.offset, pos.offset + 1, &set.layout, &*buckets).unwrap();
    match pieces.next() {
        Some(crate::btree::Piece::Hit { sector, .. }) => Extent::new(Sector(sector), Sectors(1)),
        other => panic!("{at} is not cached: {other:?}"),
    }
}

#[test]
fn a_dead_ssd_with_dirty_data_stops_writes_and_loses_only_what_it_held() {
    with_cache(CacheMode::Writeback, |_, cache, ssd, _| async move {
        put(&cache, 0, 8, 1).await.unwrap();
        cache.flush().await.unwrap();
        ssd.die();
        assert!(put(&cache, 80, 8, 2).await.is_err());
        assert_eq!(cache.flush().await.unwrap_err().kind, ErrorKind::ReadOnly);
        let e = put(&cache, 80, 8, 2).await.unwrap_err();
        assert_eq!(e.kind, ErrorKind::ReadOnly);
        assert!(varve_block::chain(&e).contains("safe mode with 8 dirty sectors"), "{e:?}");
        assert_eq!(get(&cache, 0, 8).await.unwrap_err().kind, ErrorKind::Io);
        assert_eq!(get(&cache, 2000, 8).await.unwrap(), 0, "never cached: it is below");
        cache.stop().await.unwrap();
        assert_eq!(cache.status().state, BackingState::Dirty);
    });
}

#[test]
fn a_failed_backing_write_leaves_no_cached_copy_of_what_is_not_there() {
    with_cache(CacheMode::Writethrough, |_, cache, _, hdd| async move {
        put(&cache, 0, 8, 1).await.unwrap();
        hdd.set_plan(fail(Op::Write));
        assert!(put(&cache, 0, 8, 2).await.is_err());
        hdd.set_plan(Plan::default());
        let below = {
            let mut bytes = vec![0; 8 * 512];
            hdd.settled().peek(Sector(16), &mut bytes);
            bytes
        };
        let buf = cache.read(Sector(0), BufPool::new(0).take(Sectors(8)).await).await.unwrap();
        assert!(buf[..] == below[..], "the cache says what the backing device says");
        cache.stop().await.unwrap();
    });
}

#[test]
fn a_failed_flush_is_not_forgotten() {
    with_cache(CacheMode::Writeback, |_, cache, ssd, _| async move {
        put(&cache, 0, 8, 1).await.unwrap();
        ssd.set_plan(Plan::default().with(Fault::new(
            Op::Flush,
            When::Nth(1),
            Effect::Fail(ErrorKind::Io),
        )));
        assert!(cache.flush().await.is_err());
        assert!(cache.flush().await.is_err(), "asking again does not make it true");
        assert_eq!(get(&cache, 0, 8).await.unwrap(), 1);
    });
}

/// Fails the n-th operation of one device and lets a client go on as far as it goes. Then the power
/// goes, and everything that was flushed is there.
fn anomaly(mode: CacheMode, seed: u64, on_ssd: bool, n: u64) -> bool {
    let shape = Shape { volume: 2048, ..Shape::tiny(mode) };
    let media = Media::make(shape);
    let model = Model::new(shape.volume, 1);
    model.tolerant.set(true);
    let shared = Rc::clone(&model);
    let (left, reached) = Sim::new(seed).max_steps(5_000_000).run(move |rt| async move {
        let (ssd, hdd) = media.disks(&rt, Plan::default());
        let fault = Fault::any(When::Nth(n), Effect::Fail(ErrorKind::Io));
        let victim = if on_ssd { &ssd } else { &hdd };
        victim.set_plan(Plan::default().with(fault));
        let opened = Cache::open(&rt, ssd.clone(), hdd.clone(), options()).await;
        let load = Load { blocks_max: 16, span: u64::MAX, discards: false };
        if let Ok(cache) = opened {
            let cache = Rc::new(cache);
            client(rt.clone(), Rc::clone(&cache), shared, load, 60).await;
            let _ = cache.stop().await;
        }
        let reached = victim.operations() >= n;
        let chance = Prng::new(seed);
        (Media { ssd: ssd.cut(&chance), hdd: hdd.cut(&chance) }, reached)
    });
    // A failed append may be torn on the medium, as after a power cut; all else must be in order.
    assert_eq!(left.check(false), Vec::<String>::new(), "{mode:?} ssd {on_ssd} n {n}");
    Sim::new(seed).run(move |rt| async move {
        let (ssd, hdd) = left.disks(&rt, Plan::default());
        let cache = open(&rt, &ssd, &hdd).await;
        let all = read_all(&cache, &BufPool::new(0), rt.prng()).await;
        model.after_crash(&all);
        cache.stop().await.unwrap();
    });
    reached
}

#[test]
fn any_single_failure_is_survived_or_reported() {
    for mode in [CacheMode::Writeback, CacheMode::Writethrough] {
        for on_ssd in [true, false] {
            let mut n = 1;
            // A prime step, different offsets: few runs, all kinds of operations.
            while anomaly(mode, n, on_ssd, n) {
                n += 7;
            }
            assert!(n > 20, "the run has some operations");
        }
    }
}

#[test]
fn a_volume_without_its_cache_is_read_as_it_is_only_when_asked_for() {
    with_cache(CacheMode::Writeback, |rt, cache, ssd, hdd| async move {
        put(&cache, 0, 8, 1).await.unwrap();
        cache.stop().await.unwrap();
        let media = Media { ssd: ssd.settled(), hdd: hdd.settled() };
        let (_, hdd) = media.disks(&rt, Plan::default());
        type View = CacheView<SimDisk, SimDisk>;
        assert!(View::open_without_cache(hdd.clone(), false).await.is_err());
        assert!(View::open_without_cache(hdd, true).await.is_ok());
    });
}
