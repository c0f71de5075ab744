//! Both sides of the protocol against each other, over connections that cut everything short.

use super::*;
use crate::hall::Look;
use crate::serve::serve_stream;
use varve_block::dev::Mem;
use varve_block::{Dyn, Export, ExportOptions, ExportShared};

/// A device on our own server, on memory.
async fn device(rt: &Rt, mem: &Mem, capacity: usize) -> (NbdDevice, varve_block::Task<()>) {
    let shared = ExportShared::new(ExportOptions::default());
    let export = Export::new(rt.clone(), shared, Dyn::new(mem.clone()));
    let (near, far) = Stream::pair(capacity);
    let exports = vec![(Look::new("disk"), export)];
    let inner = rt.clone();
    let serving = rt.spawn(async move { serve_stream(&inner, far, exports).await });
    (open(rt, near).await.expect("our own server"), serving)
}

/// Tasks that own a stripe each do random things to it, and drop some of their requests on the way.
/// What a stripe holds is known but for what a dropped change may have done.
fn storm(seed: u64) {
    const STRIPE: u64 = 300;
    const TASKS: u64 = 6;
    world(seed).run(move |rt| async move {
        let mem = Mem::new(Sectors(STRIPE * TASKS));
        let capacity = 1 + rt.prng().index(100_000);
        let (device, serving) = device(&rt, &mem, capacity).await;
        let device = Rc::new(device);
        let tasks: Vec<_> = (0..TASKS)
            .map(|task| {
                let (rt, device) = (rt.clone(), Rc::clone(&device));
                let inner = rt.clone();
                rt.spawn(async move { stripe(&inner, &device, task * STRIPE, STRIPE).await })
            })
            .collect();
        for task in tasks {
            task.await;
        }
        device.flush().await.expect("a healthy server");
        drop(Rc::into_inner(device).expect("all tasks have ended"));
        serving.await;
    });
}

async fn stripe(rt: &Rt, device: &NbdDevice, first: u64, len: u64) {
    // What each sector holds; `None`: a change was dropped, it may be this or that.
    let mut model: Vec<Option<u8>> = vec![Some(0); usize::try_from(len).unwrap()];
    for _ in 0..25 {
        let n = 1 + rt.prng().below(len);
        let start = rt.prng().below(len - n + 1);
        let part = usize::try_from(start).unwrap()..usize::try_from(start + n).unwrap();
        let at = Sector(first + start);
        let fill = u8::try_from(1 + rt.prng().below(250)).unwrap();
        let fua = if rt.prng().chance(1, 4) { Durability::Fua } else { Durability::Cached };
        let (change, work): (Option<Option<u8>>, _) = match rt.prng().below(8) {
            0..3 => {
                let mut data = buf(n).await;
                data.fill(fill);
                (Some(Some(fill)), device.write(at, data.into(), fua).await.map(drop))
            }
            3 => {
                let how = Zero { may_unmap: rt.prng().chance(1, 2), ..Zero::default() };
                let range = Extent::new(at, Sectors(n));
                (Some(Some(0)), device.write_zeroes(range, how).await)
            }
            4 => {
                let mut data = buf(n).await;
                data.fill(fill);
                let write = Box::pin(device.write(at, data.into(), fua));
                let some = std::time::Duration::from_nanos(rt.prng().below(3));
                let cut = varve_block::sync::select(write, rt.sleep(some)).await;
                let done = matches!(cut, varve_block::sync::Either::Left(_));
                (Some(done.then_some(fill)), Ok(()))
            }
            5 => (None, device.flush().await),
            6 => {
                let range = Extent::new(at, Sectors(n));
                let runs = device.extents(range, 5).await.expect("block status");
                let zero = runs.iter().filter(|run| run.zero);
                for sector in zero.flat_map(|run| run.range.start.0..run.range.end().0) {
                    let known = model[usize::try_from(sector - first).unwrap()];
                    assert!(known.is_none_or(|fill| fill == 0), "sector {sector} is no zero");
                }
                (None, Ok(()))
            }
            _ => {
                let read = device.read(at, buf(n).await).await.expect("a healthy server");
                for (sector, known) in read.chunks(512).zip(&model[part.clone()]) {
                    assert!(sector.iter().all(|b| *b == sector[0]), "a torn sector");
                    assert!(known.is_none_or(|fill| fill == sector[0]));
                }
                (None, Ok(()))
            }
        };
        work.expect("a healthy server");
        let Some(fill) = change else { continue };
        model[part.clone()].fill(fill);
        if fill.is_none() {
            // The dropped write is still under way, and what comes next may not overlap it: a
            // request behind it on the same sectors is ordered by the server's export.
            device.read(at, buf(n).await).await.expect("a healthy server");
        }
    }
}

#[test]
fn random_requests_over_our_own_server_do_what_the_model_says() {
    (0..60).for_each(storm);
}

#[test]
fn the_servers_facts_are_the_devices() {
    world(1).run(|rt| async move {
        let mem = Mem::new(Sectors(5000));
        let (device, serving) = device(&rt, &mem, 1 << 20).await;
        let (below, here) = (mem.geometry(), device.geometry());
        assert_eq!(here.len, below.len);
        assert_eq!((here.block, here.preferred), (Sectors(1), below.preferred));
        assert!(here.cheap_fua && here.volatile_cache && !here.read_only);
        assert_eq!(here.can_discard, below.can_discard);
        // The longest request there is, and a whole device without data.
        let mut data = buf(2048).await;
        data.fill(9);
        device.write(Sector(1), data.into(), Durability::Cached).await.expect("1 MiB");
        let read = device.read(Sector(1), buf(2048).await).await.expect("1 MiB");
        assert!(read.iter().all(|b| *b == 9));
        device.prefetch(extent(0, 5000)).await.expect("a hint");
        device.write_zeroes(extent(0, 5000), Zero::default()).await.expect("all of it");
        assert!(mem.to_vec().iter().all(|b| *b == 0));
        drop(device);
        serving.await;
    });
}
