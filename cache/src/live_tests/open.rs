//! Who may be opened with whom, and what that leaves on the devices.

use varve_block::dev::SimDisk;
use varve_block::dev::sim::Plan;
use varve_block::{BlockDevice, BufPool, Durability, Rt, Sector, Sectors, Sim};

use super::{Media, Shape, SimCache, open, options};
use crate::format::superblock::{SUPERBLOCK_BYTES, SUPERBLOCK_SECTOR};
use crate::format::{BackingState, CacheMode, DeviceFacts, Superblock};
use crate::{Alone, Cache, MakeOptions, OpenError, OpenOptions, make};

const SHAPE: Shape =
    Shape { bucket: 8, block: 1, nbuckets: 513, volume: 4096, mode: CacheMode::Writeback };

async fn put(dev: &impl BlockDevice, at: u64, byte: u8) {
    let mut buf = BufPool::new(0).take(Sectors(8)).await;
    buf.fill(byte);
    dev.write(Sector(at), buf.into(), Durability::Cached).await.unwrap();
}

async fn get(dev: &impl BlockDevice, at: u64) -> u8 {
    let buf = dev.read(Sector(at), BufPool::new(0).take(Sectors(8)).await).await.unwrap();
    buf[0]
}

fn world<F: Future<Output = ()> + 'static>(test: impl FnOnce(Rt, Media) -> F + 'static) {
    let media = Media::make(SHAPE);
    Sim::new(1).run(move |rt| test(rt, media));
}

fn settled(ssd: &SimDisk, hdd: &SimDisk) -> Media {
    Media { ssd: ssd.settled(), hdd: hdd.settled() }
}

/// The refusal, with neither device written to.
async fn refused(rt: &Rt, ssd: &SimDisk, hdd: &SimDisk, options: OpenOptions) -> OpenError {
    let before = (ssd.settled().digest(), hdd.settled().digest());
    let opened = Cache::open(rt, ssd.clone(), hdd.clone(), options).await;
    let e = opened.err().expect("refused");
    assert_eq!((ssd.settled().digest(), hdd.settled().digest()), before, "{e}");
    e
}

/// A set with dirty data in it, stopped.
async fn dirty_set(rt: &Rt, media: &Media) -> Media {
    let (ssd, hdd) = media.disks(rt, Plan::instant());
    let cache = open(rt, &ssd, &hdd).await;
    put(&*cache, 0, 1).await;
    cache.stop().await.unwrap();
    settled(&ssd, &hdd)
}

fn state(hdd: &SimDisk) -> BackingState {
    let image = hdd.settled();
    let mut page = vec![0; SUPERBLOCK_BYTES];
    image.peek(Sector(SUPERBLOCK_SECTOR), &mut page);
    match Superblock::parse(&page, DeviceFacts { sectors: image.len().0, logical_block: 512 }) {
        Ok(Superblock::Backing(sb)) => sb.state(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn devices_in_the_wrong_place_or_of_another_set_are_refused() {
    world(|rt, media| async move {
        let (ssd, hdd) = media.disks(&rt, Plan::instant());
        let e = refused(&rt, &hdd, &ssd, options()).await;
        assert!(matches!(e, OpenError::WrongRole { .. }), "{e}");
        let dirty = dirty_set(&rt, &media).await;
        let (other_ssd, other_hdd) = dirty.disks(&rt, Plan::instant());
        let fresh = Media::make_again(&rt).await;
        let (ssd, hdd) = fresh.disks(&rt, Plan::instant());
        for options in [options(), OpenOptions { attach: true, ..options() }] {
            let e = refused(&rt, &ssd, &other_hdd, options).await;
            assert!(matches!(e, OpenError::OtherSet { .. }), "{e}");
        }
        let e = refused(&rt, &other_ssd, &hdd, options()).await;
        assert!(matches!(e, OpenError::OtherSet { .. }), "{e}");
    });
}

#[test]
fn dirty_data_in_a_set_that_was_formatted_since_are_not_forgotten_silently() {
    world(|rt, media| async move {
        let dirty = dirty_set(&rt, &media).await;
        let (_, hdd) = dirty.disks(&rt, Plan::instant());
        let (ssd, _) = media.disks(&rt, Plan::instant());
        let e = refused(&rt, &ssd, &hdd, options()).await;
        assert!(matches!(e, OpenError::DirtyElsewhere { .. }), "{e}");
        assert!(e.to_string().contains("formatted since"), "{e}");
    });
}

#[test]
fn a_damaged_superblock_names_its_device() {
    world(|rt, media| async move {
        for damage_ssd in [true, false] {
            let mut media = media.clone();
            let image = if damage_ssd { &mut media.ssd } else { &mut media.hdd };
            image.poke(Sector(SUPERBLOCK_SECTOR), &[0; 512]);
            let (ssd, hdd) = media.disks(&rt, Plan::instant());
            let e = refused(&rt, &ssd, &hdd, options()).await;
            let name = if damage_ssd { "ssd" } else { "hdd" };
            assert!(e.to_string().starts_with(name), "{e}");
            assert!(matches!(e, OpenError::Superblock { .. }), "{e}");
        }
    });
}

#[test]
fn a_damaged_index_is_refused_and_left_alone() {
    world(|rt, media| async move {
        let media = dirty_set(&rt, &media).await;
        // Every bucket once: whatever was metadata refuses, whatever was data is not looked at.
        let mut refusals = 0;
        for bucket in 3..60u64 {
            let mut media = media.clone();
            let mut bytes = vec![0; 8 * 512];
            media.ssd.peek(Sector(bucket * 8), &mut bytes);
            bytes[40] ^= 1;
            media.ssd.poke(Sector(bucket * 8), &bytes);
            let (ssd, hdd) = media.disks(&rt, Plan::instant());
            let before = (ssd.settled().digest(), hdd.settled().digest());
            if let Err(e) = Cache::open(&rt, ssd.clone(), hdd.clone(), options()).await {
                assert!(matches!(e, OpenError::Damaged { .. }), "{e}");
                assert_eq!((ssd.settled().digest(), hdd.settled().digest()), before, "{e}");
                refusals += 1;
            }
        }
        assert!(refusals >= 2, "root and priorities at least, {refusals}");
    });
}

#[test]
fn the_mode_is_kept_and_can_be_changed() {
    world(|rt, media| async move {
        let (ssd, hdd) = media.disks(&rt, Plan::instant());
        let with = OpenOptions { mode: Some(CacheMode::Writearound), ..options() };
        let cache = Cache::open(&rt, ssd.clone(), hdd.clone(), with).await.unwrap();
        assert_eq!(cache.status().mode, CacheMode::Writearound);
        cache.set_mode(CacheMode::Writethrough).await.unwrap();
        cache.stop().await.unwrap();
        let (ssd, hdd) = settled(&ssd, &hdd).disks(&rt, Plan::instant());
        let cache = open(&rt, &ssd, &hdd).await;
        assert_eq!(cache.status().mode, CacheMode::Writethrough);
    });
}

#[test]
fn a_detached_volume_has_everything_and_can_come_back() {
    world(|rt, media| async move {
        let (ssd, hdd) = media.disks(&rt, Plan::instant());
        let cache: std::rc::Rc<SimCache> = open(&rt, &ssd, &hdd).await;
        put(&*cache, 0, 1).await;
        put(&*cache, 800, 2).await;
        assert!(cache.status().dirty_sectors > 0);
        cache.detach().await.unwrap();
        put(&*cache, 800, 3).await;
        assert_eq!((get(&*cache, 0).await, get(&*cache, 800).await), (1, 3));
        cache.stop().await.unwrap();
        assert_eq!(state(&hdd), BackingState::None);
        let media = settled(&ssd, &hdd);
        let (ssd, hdd) = media.disks(&rt, Plan::instant());
        let alone = Alone::open(hdd.clone(), false).await.unwrap();
        assert_eq!((get(&alone, 0).await, get(&alone, 800).await), (1, 3));
        let e = refused(&rt, &ssd, &hdd, options()).await;
        assert!(matches!(e, OpenError::OtherSet { .. }), "it has to be asked for: {e}");
        let attach = OpenOptions { attach: true, ..options() };
        let cache = Cache::open(&rt, ssd.clone(), hdd.clone(), attach).await.unwrap();
        assert_eq!((get(&cache, 0).await, get(&cache, 800).await), (1, 3));
        cache.stop().await.unwrap();
        assert_eq!(settled(&ssd, &hdd).check(true), Vec::<String>::new());
    });
}

#[test]
fn a_clean_volume_runs_alone_only_by_force_and_its_set_is_not_believed_afterwards() {
    world(|rt, media| async move {
        let (ssd, hdd) = media.disks(&rt, Plan::instant());
        let cache = open(&rt, &ssd, &hdd).await;
        put(&*cache, 0, 1).await;
        cache.write_back_all().await.unwrap();
        assert_eq!(get(&*cache, 0).await, 1);
        cache.stop().await.unwrap();
        assert_eq!(state(&hdd), BackingState::Clean);
        let media = settled(&ssd, &hdd);
        let (_, hdd) = media.disks(&rt, Plan::instant());
        let e = Alone::open(hdd.clone(), false).await.err().unwrap();
        assert!(matches!(e, OpenError::CacheMissing { state: BackingState::Clean, .. }), "{e}");
        let alone = Alone::open(hdd.clone(), true).await.unwrap();
        assert_eq!(get(&alone, 0).await, 1);
        assert_eq!(state(&hdd), BackingState::Clean, "reading changes nothing");
        put(&alone, 0, 2).await;
        assert_eq!(state(&hdd), BackingState::Stale);
        let media = Media { hdd: hdd.settled(), ..media };
        let (ssd, hdd) = media.disks(&rt, Plan::instant());
        let cache = open(&rt, &ssd, &hdd).await;
        assert_eq!(get(&*cache, 0).await, 2, "not the copy of before");
        cache.stop().await.unwrap();
        assert_eq!(settled(&ssd, &hdd).check(true), Vec::<String>::new());
    });
}

#[test]
fn a_dirty_volume_does_not_run_alone() {
    world(|rt, media| async move {
        let media = dirty_set(&rt, &media).await;
        let (_, hdd) = media.disks(&rt, Plan::instant());
        let e = Alone::open(hdd.clone(), true).await.err().unwrap();
        assert!(matches!(e, OpenError::CacheMissing { state: BackingState::Dirty, .. }), "{e}");
    });
}

impl Media {
    /// Another pair.
    async fn make_again(rt: &Rt) -> Media {
        let media = Media {
            ssd: varve_block::dev::sim::Image::new(Sectors(513 * 8)),
            hdd: varve_block::dev::sim::Image::new(Sectors(SHAPE.volume + 16)),
        };
        let (ssd, hdd) = media.disks(rt, Plan::instant());
        let options = MakeOptions { bucket_size: 8, block_size: Some(1), ..MakeOptions::default() };
        make(Some(&ssd), Some(&hdd), &options).await.unwrap();
        settled(&ssd, &hdd)
    }
}
