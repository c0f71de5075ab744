//! S26: the story of the bcache corruption of 2019. Two writes of 4 KiB, one after the other, at
//! every alignment and across every boundary of a bucket and of a key; read through the cache, after
//! writing back, and after a restart. The bug behind it, a wrong place for an insertion into the
//! index, must be noticed before it does harm.

use std::cell::RefCell;
use std::rc::Rc;
use varve_block::dev::SimDisk;
use varve_block::dev::sim::{Image, Plan};
use varve_block::{BlockDevice, BufPool, Durability, Geometry, Rt, Sector, Sectors, Sim, chain};
use varve_cache::format::CacheMode;
use varve_cache::{Cache, OpenOptions};
use varve_tests::model::fill;
use varve_tests::stack::cache::{Cached, cached};
use varve_tests::stack::{Disks, Stack};

const LEN: u64 = 8;
/// Sectors of a bucket, as the stack makes them.
const BUCKET: u64 = 16;

type Both = Cache<SimDisk, SimDisk>;

fn disks(rt: &Rt, stack: &Cached, images: (Image, Image)) -> Disks {
    let disk = |geometry: Geometry, image| SimDisk::new(rt, geometry, image, Plan::default());
    Disks { backing: disk(stack.backing(), images.0), cache: disk(stack.cache(), images.1) }
}

async fn open(rt: &Rt, disks: &Disks) -> Result<Rc<Both>, String> {
    let (ssd, hdd) = (disks.cache.clone(), disks.backing.clone());
    let cache = Cache::open(rt, ssd, hdd, OpenOptions::default()).await;
    cache.map(Rc::new).map_err(|e| chain(&e))
}

fn bytes(change: u64, at: u64) -> Vec<u8> {
    let mut bytes = vec![0; Sectors(LEN).byte_len()];
    fill(change, at * 512, &mut bytes);
    bytes
}

/// Every pair of neighbouring writes whose first begins at `start`, and what is there afterwards.
struct Pairs {
    expected: RefCell<Vec<u8>>,
}

impl Pairs {
    async fn write(&self, cache: &Both, change: u64, at: u64) -> Result<(), String> {
        let content = bytes(change, at);
        let from = Sectors(at).byte_len();
        self.expected.borrow_mut()[from..from + content.len()].copy_from_slice(&content);
        let data = BufPool::new(0).take_copy(&content).await;
        let done = cache.write(Sector(at), data.into(), Durability::Cached).await;
        done.map(drop).map_err(|e| chain(&e))
    }

    async fn compare(&self, cache: &Both, when: &str) -> Result<(), String> {
        let expected = self.expected.borrow().clone();
        let pool = BufPool::new(0);
        // In pieces that have nothing to do with how they were written.
        let step = 24;
        for at in (0..Sectors::of_slice(&expected).0).step_by(24) {
            let from = Sectors(at).byte_len();
            let part = &expected[from..(from + Sectors(step).byte_len()).min(expected.len())];
            let buf = pool.take(Sectors::of_slice(part)).await;
            let got = cache.read(Sector(at), buf).await.map_err(|e| chain(&e))?;
            assert!(*got == *part, "{when}: wrong bytes in sectors {at}+{step}");
        }
        Ok(())
    }
}

/// `Err` is an error that the cache reported. Wrong bytes are a panic: those nobody may ever see.
fn story(seed: u64, mode: CacheMode, one_in: Option<u64>) -> Result<(), String> {
    let stack = cached(mode);
    let pairs = Rc::new(Pairs { expected: RefCell::new(vec![0; 300 * 512]) });
    let again = Rc::clone(&pairs);
    let images = Sim::new(seed).run(move |rt| async move {
        let empty = (Image::new(stack.backing().len), Image::new(stack.cache().len));
        let disks = disks(&rt, &stack, empty);
        stack.format(&rt, &disks).await.map_err(|e| chain(&*e))?;
        let cache = open(&rt, &disks).await?;
        if let Some(one_in) = one_in {
            cache.break_insertions(seed, one_in);
        }
        // Every alignment to a bucket; each pair overlaps the one before in another place.
        let mut change = 0;
        for round in 0..3 {
            for shift in 0..BUCKET {
                let start = (shift * 17 + round * 5) % (300 - 2 * LEN);
                pairs.write(&cache, change + 1, start).await?;
                pairs.write(&cache, change + 2, start + LEN).await?;
                change += 2;
                pairs.compare(&cache, "through the cache").await?;
            }
        }
        cache.write_back_all().await.map_err(|e| chain(&e))?;
        pairs.compare(&cache, "written back").await?;
        cache.stop().await.map_err(|e| chain(&e))?;
        Ok::<_, String>((disks.backing.settled(), disks.cache.settled()))
    })?;
    Sim::new(seed + 1).run(move |rt| async move {
        let disks = disks(&rt, &stack, images);
        let cache = open(&rt, &disks).await?;
        again.compare(&cache, "after a restart").await?;
        cache.stop().await.map_err(|e| chain(&e))
    })
}

#[test]
fn s26_two_consecutive_writes_are_read_as_they_were_written() {
    for mode in [CacheMode::Writeback, CacheMode::Writethrough, CacheMode::Writearound] {
        for seed in varve_tests::world::seeds(8) {
            story(seed, mode, None).unwrap_or_else(|e| panic!("{mode:?}, seed {seed}: {e}"));
        }
    }
}

/// The index notices a wrong place before the insertion changes anything, and says which key it was.
#[test]
fn s26_an_insertion_in_a_wrong_place_is_caught_by_the_index() {
    let caught = (0..20).filter_map(|seed| story(seed, CacheMode::Writeback, Some(10)).err());
    let caught: Vec<String> = caught.collect();
    assert_eq!(caught.len(), 20, "every world with the bug is noticed");
    assert!(caught.iter().all(|e| e.contains("corrupt") && e.contains("key=")), "{}", caught[0]);
    eprintln!("S26: caught: {}", caught[0]);
}
