//! The ownership and liveness stories that a world of random requests does not tell by itself. Each
//! is run as it should be, over fresh seeds, and with its bug, which must be caught.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;
use varve_block::dev::sim::{Image, Plan as DiskPlan};
use varve_block::dev::{Mem, SimDisk};
use varve_block::export::{Deadline, Sabotage};
use varve_block::sync::{LocalSemaphore, join_all, poll_once};
use varve_block::{
    BlockDevice, BufPool, Data, Durability, Export, ExportOptions, ExportShared, Geometry, Rt,
    Sector, Sectors, Sim,
};
use varve_crypt::Mutation;
use varve_tests::fault::Plan;
use varve_tests::stack::mutant::{Copies, Over, Retry, Stepwise};
use varve_tests::stack::{Disks, Opened, Running, Stack, crypt, geometry};
use varve_tests::world::{Violation, World, must_fail, ops, seeds};

/// A stack given by a function of the lane and the backing disk.
struct With<F>(F);

impl<D: BlockDevice, F: Fn(&Rt, SimDisk) -> D + 'static> Stack for With<F> {
    fn backing(&self) -> Geometry {
        geometry("backing", 2048 + 16)
    }

    async fn open(&self, rt: &Rt, disks: &Disks) -> Opened {
        Ok(Running::plain((self.0)(rt, disks.backing.clone())))
    }
}

fn sim_disk(rt: &Rt, sectors: u64, unit: u64, plan: DiskPlan) -> SimDisk {
    let geometry = Geometry { block: Sectors(unit), ..geometry("disk", sectors) };
    SimDisk::new(rt, geometry, Image::with_unit(Sectors(sectors), Sectors(unit)), plan)
}

/// C01: completions are delivered inside the call that submits, and buffers change hands at once
/// (the pool is last in, first out). The table of operations in flight, which the ring and the
/// threads share, has the generations; its own tests have the mutation.
#[test]
fn c01_answers_within_the_submission_hurt_nobody() {
    let stack = Rc::new(crypt::encrypted(4096));
    for seed in seeds(25) {
        World::new(seed).faults(Plan::inline()).run(&stack, ops(300));
    }
}

/// What readers can reach: pages that somebody has published.
type Pages = Rc<RefCell<BTreeMap<u64, Vec<u8>>>>;

const PAGES: u64 = 4;

/// Four readers of a page cache over an encrypted disk: `Err` tells where a published page was not
/// the plaintext. With the bug, a read that nobody needs any more uses the page's memory.
fn page_cache(seed: u64, second_read_uses_the_page: bool) -> Result<(), String> {
    Sim::new(seed).run(move |rt| async move {
        let disk = sim_disk(&rt, PAGES * 8 + 16, 8, DiskPlan::default());
        let pages: Pages = Rc::default();
        let show = {
            let pages = Rc::clone(&pages);
            Mutation::VisibleBeforeDecryption(Rc::new(move |at: Sector, bytes: &[u8]| {
                if let Some(page) = pages.borrow_mut().get_mut(&(at.0 / 8)) {
                    page.copy_from_slice(bytes);
                }
            }))
        };
        let pool = BufPool::new(0);
        let clear = crypt::over(&rt, disk.clone(), 4096, None);
        for page in 0..PAGES {
            let plain = pool.take_copy(&plaintext(page)).await;
            let how = Durability::Cached;
            clear.write(Sector(page * 8), plain.into(), how).await.map_err(|e| e.to_string())?;
        }
        let mutation = second_read_uses_the_page.then_some(show);
        let device = Rc::new(crypt::over(&rt, disk, 4096, mutation));
        let readers = (0..4).map(|_| {
            let (device, pages) = (Rc::clone(&device), Rc::clone(&pages));
            let (pool, rt2) = (pool.clone(), rt.clone());
            rt.spawn(async move {
                for _ in 0..20 {
                    let page = rt2.prng().below(PAGES);
                    let known = pages.borrow().contains_key(&page);
                    if !known {
                        let buf = pool.take(Sectors(8)).await;
                        let bytes = device.read(Sector(page * 8), buf).await.expect("no faults");
                        pages.borrow_mut().insert(page, bytes.to_vec());
                    }
                    for (page, bytes) in pages.borrow().iter() {
                        if *bytes != plaintext(*page) {
                            return Err(format!("page {page} at {} ns", rt2.now().0));
                        }
                    }
                    rt2.yield_now().await;
                }
                Ok(())
            })
        });
        join_all(readers).await.into_iter().collect()
    })
}

fn plaintext(page: u64) -> Vec<u8> {
    let byte = u8::try_from(page % 251).expect("below 251") + 1;
    vec![byte; 4096]
}

/// C02: a second read of a block into the buffer that the first one has published.
#[test]
fn c02_a_published_page_is_never_ciphertext() {
    for seed in seeds(50) {
        page_cache(seed, false).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
    let caught = (0..50).find_map(|seed| page_cache(seed, true).err());
    eprintln!("C02: caught: {}", caught.expect("C02: not noticed"));
}

/// C05: a request that runs out of permits after `k` blocks goes on where it was, for every `k`.
fn back_pressure(seed: u64, k: usize, forgets_position: bool) -> bool {
    const BLOCKS: u64 = 16;
    Sim::new(seed).run(move |rt| async move {
        let pool = BufPool::new(0);
        let mut bytes = vec![0; 4096 * 16];
        rt.prng().fill(&mut bytes);
        let mem = Mem::new(Sectors(BLOCKS * 8 + 16));
        let whole = crypt::over(&rt, mem.clone(), 4096, None);
        let data = pool.take_copy(&bytes).await;
        whole.write(Sector(0), data.into(), Durability::Cached).await.expect("memory");
        let expected = mem.to_vec();

        let permits = LocalSemaphore::new(1);
        let layer = Stepwise { permits: permits.clone(), forgets_position };
        let slow = sim_disk(&rt, BLOCKS * 8 + 16, 8, DiskPlan::default());
        let device = Over { layer, below: crypt::over(&rt, slow.clone(), 4096, None) };
        let done = Rc::new(Cell::new(false));
        let hog = {
            let (rt2, slow, done) = (rt.clone(), slow.clone(), Rc::clone(&done));
            rt.spawn(async move {
                while slow.operations() < k as u64 {
                    rt2.sleep(Duration::from_nanos(50)).await;
                }
                let held = permits.acquire(1).await;
                rt2.sleep(Duration::from_micros(30)).await;
                drop(held);
                done.set(true);
            })
        };
        let data = pool.take_copy(&bytes).await;
        device.write(Sector(0), data.into(), Durability::Cached).await.expect("no faults");
        hog.await;
        assert!(done.get(), "the request had to wait");
        slow.settled().to_vec() == expected
    })
}

#[test]
fn c05_a_request_goes_on_where_back_pressure_stopped_it() {
    for seed in seeds(5) {
        for k in 0..16 {
            assert!(back_pressure(seed, k, false), "seed {seed}, dry after {k}");
        }
    }
    let caught = (0..16).find(|&k| !back_pressure(1, k, true));
    eprintln!("C05: caught: dry after {} blocks", caught.expect("C05: not noticed"));
}

/// C07: a write that failed below encryption is tried again by a layer above it.
#[test]
fn c07_a_retried_write_is_encrypted_once() {
    let right = Rc::new(With(|rt: &Rt, disk| {
        let below = crypt::over(rt, disk, 4096, None);
        Over { layer: Retry::Frozen, below }
    }));
    for seed in seeds(20) {
        let report = World::new(seed).faults(Plan::writes_fail()).run(&right, ops(200));
        assert_eq!(report.errors, 0);
    }
    let wrong = Rc::new(With(|rt: &Rt, disk| {
        let kept = Rc::new(RefCell::new(None));
        let mutation = Mutation::BufferKeptAfterError(Rc::clone(&kept));
        let below = crypt::over(rt, disk, 4096, Some(mutation));
        Over { layer: Retry::Kept(kept, BufPool::new(0)), below }
    }));
    let failure = must_fail("C07", &Plan::writes_fail(), &wrong, ops(200));
    assert!(matches!(failure.what, Violation::Bytes(_)));
}

/// C12: reads beside writes of the same encryption sector, without the export's order. The disk does
/// each request in one step, so a mix can only come from above it.
fn read_beside_write(seed: u64, mutation: Option<Mutation>) -> Result<(), String> {
    Sim::new(seed).run(move |rt| async move {
        let disk = sim_disk(&rt, 8 + 16, 1, DiskPlan::instant());
        let device = Rc::new(crypt::over(&rt, disk, 4096, mutation));
        let pool = BufPool::new(0);
        let first = pool.take_copy(&plaintext(0)).await;
        device.write(Sector(0), first.into(), Durability::Cached).await.expect("no faults");
        let writer = {
            let (device, pool, rt2) = (Rc::clone(&device), pool.clone(), rt.clone());
            rt.spawn(async move {
                for version in 1..20 {
                    rt2.yield_now().await;
                    let data = pool.take_copy(&plaintext(version)).await;
                    let how = Durability::Cached;
                    device.write(Sector(0), data.into(), how).await.expect("no faults");
                }
            })
        };
        let mut oldest = 0;
        while !writer.is_finished() {
            rt.yield_now().await;
            let bytes = device.read(Sector(0), pool.take(Sectors(8)).await).await;
            let bytes = bytes.expect("no faults");
            let Some(seen) = (0..20).find(|&v| plaintext(v) == *bytes) else {
                return Err(format!("neither old nor new at {} ns", rt.now().0));
            };
            if seen < oldest {
                return Err(format!("version {seen} after version {oldest}"));
            }
            oldest = seen;
        }
        Ok(())
    })
}

#[test]
fn c12_a_read_beside_a_write_sees_old_or_new() {
    for seed in seeds(50) {
        read_beside_write(seed, None).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
    let split = || Some(Mutation::SplitSectors);
    let caught = (0..50).find_map(|seed| read_beside_write(seed, split()).err());
    eprintln!("C12: caught: {}", caught.expect("C12: not noticed"));
}

/// C16: a pool with room for one request and a half, and many clients. `Err` is a deadlock.
fn half_requests(seed: u64, in_halves: bool) -> Result<(), String> {
    let run = move |rt: Rt| async move {
        let pool = BufPool::new(8 << 20);
        let mut hog = Vec::new();
        for len in [4 << 20, 2 << 20, 512 << 10] {
            hog.push(pool.take_bytes(len).await);
        }
        let layer = Copies { pool, in_halves };
        let disk = sim_disk(&rt, 12 * 2048 + 16, 1, DiskPlan::default());
        let below = crypt::over(&rt, disk, 512, None);
        let shared = ExportShared::new(ExportOptions::default());
        let export = Export::new(rt.clone(), shared, Over { layer, below });
        let clients = (0..12u64).map(|n| {
            let export = export.clone();
            rt.spawn(async move {
                let pool = BufPool::new(0);
                let data = pool.take_zeroed(Sectors(2048)).await;
                export.write(n << 20, data, false).await.map_err(|e| e.to_string())
            })
        });
        let all: Result<Vec<()>, String> = join_all(clients).await.into_iter().collect();
        drop(hog);
        all.map(drop)
    };
    let world = Sim::new(seed).max_steps(1_000_000);
    world.try_run(run).unwrap_or_else(|deadlock| Err(deadlock.to_string()))
}

#[test]
fn c16_a_dry_pool_delays_and_never_stops() {
    for seed in seeds(5) {
        half_requests(seed, false).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
    let caught = (0..5).find_map(|seed| half_requests(seed, true).err());
    eprintln!("C16: caught: {}", caught.expect("C16: not noticed"));
}

/// The most bytes that reach the device in one turn of a request of 32 MiB.
fn longest_turn(sabotage: Sabotage, aligned: bool) -> u64 {
    Sim::new(1).run(move |rt| async move {
        let probe = varve_block::export::Probe::new(rt.clone(), Mem::new(Sectors(70_000)));
        let counters = probe.counters();
        let written = || counters.stats().of(varve_block::Op::Write).bytes();
        let options = ExportOptions { sabotage, read_only: false };
        let export = Export::new(rt, ExportShared::new(options), probe);
        let pool = BufPool::new(64 << 20);
        let mut list: Vec<Data> = Vec::new();
        for _ in 0..32 {
            list.push(pool.take(Sectors(2048)).await.into());
        }
        let offset = if aligned { 4096 } else { 4097 };
        let mut huge = Box::pin(export.write_list(offset, list, false));
        let (mut longest, mut before) = (0, 0);
        loop {
            let poll = poll_once(huge.as_mut());
            longest = longest.max(written() - before);
            before = written();
            if let Poll::Ready(done) = poll {
                done.expect("memory");
                return longest;
            }
        }
    })
}

/// C18: one huge request beside small ones, which wait for a turn of it and not for all of it.
#[test]
fn c18_a_huge_request_is_served_in_turns() {
    let budget = 2 << 20; // a turn of 1 MiB, and the piece that crosses its end
    assert!(longest_turn(Sabotage::None, true) <= budget);
    assert!(longest_turn(Sabotage::None, false) <= budget);
    let caught = longest_turn(Sabotage::NoTurns, true);
    assert!(caught > budget, "C18: not noticed");
    eprintln!("C18: caught: {caught} bytes in one turn");
}

/// C30: one answer never comes. Every request ends all the same, none of them wrongly.
#[test]
fn c30_a_lost_answer_ends_its_request_and_nobody_hangs() {
    let limit = Duration::from_secs(30);
    let guarded = Rc::new(With(move |rt: &Rt, disk| {
        Deadline::new(rt.clone(), crypt::over(rt, disk, 4096, None), limit)
    }));
    let mut errors = 0;
    for seed in seeds(20) {
        let world = World::new(seed).faults(Plan::an_answer_is_lost());
        errors += world.run(&guarded, ops(200)).errors;
    }
    assert!(errors > 0);
    let bare = Rc::new(With(|rt: &Rt, disk| crypt::over(rt, disk, 4096, None)));
    let failure = must_fail("C30", &Plan::an_answer_is_lost(), &bare, ops(200));
    assert!(matches!(failure.what, Violation::Stuck(_)));
}
