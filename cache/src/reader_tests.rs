use varve_block::dev::Mem;

use super::*;
use crate::error::Rule;
use crate::format::{Key, Ptr};
use crate::testset::{HDD_SECTORS, TestSet, at, extent, pattern, run};

/// Where each sector of the volume must come from: `(device, sector)`.
fn expected(cached: &[(u64, u64, u64)]) -> Vec<(u8, u64)> {
    (16..HDD_SECTORS)
        .map(|sector| {
            let hit = cached.iter().find(|(start, end, _)| (*start..*end).contains(&sector));
            hit.map_or((b'H', sector), |(start, _, at)| (b'S', at + sector - start))
        })
        .collect()
}

/// The extents of the test set: (start, end, cache sector), in backing sectors.
const CACHED: [(u64, u64, u64); 8] = [
    (16, 24, 800),
    (32, 34, 808),
    (34, 36, 816),
    (36, 40, 812),
    (40, 48, 848),
    (104, 112, 824),
    (116, 120, 836),
    (200, 200, 0),
];

async fn sectors(view: &CacheView<Mem, Mem>, at: u64, len: u64) -> Vec<(u8, u64)> {
    let pool = BufPool::new(1 << 20);
    let buf = view.read(Sector(at), pool.take(Sectors(len)).await).await.unwrap();
    let sector = |bytes: &[u8]| (bytes[8], u64::from_le_bytes(bytes[..8].try_into().unwrap()));
    buf.chunks(512).map(sector).collect()
}

#[test]
fn every_sector_comes_from_where_its_newest_data_are() {
    let (ssd, hdd) = TestSet::new().build();
    let before = (ssd.to_vec(), hdd.to_vec());
    let devices = (ssd.clone(), hdd.clone());
    run(async move {
        let view = CacheView::open(devices.0, devices.1).await.unwrap();
        assert_eq!(view.geometry().len, Sectors(HDD_SECTORS - 16));
        assert_eq!(view.geometry().block, Sectors(1));
        let want = expected(&CACHED);
        assert_eq!(sectors(&view, 0, HDD_SECTORS - 16).await, want);
        // Any cut of a request gives the same.
        for (start, len) in
            [(0usize, 1usize), (7, 3), (15, 20), (18, 1), (96, 9), (103, 1), (90, 40)]
        {
            let part = &want[start..start + len];
            assert_eq!(sectors(&view, start as u64, len as u64).await, part, "{start}+{len}");
        }
        let seen = view.seen();
        assert_eq!((seen.nodes, seen.journal_entries, seen.journal_keys), (3, 2, 2));
        let runs =
            view.extents(Extent::new(Sector(0), Sectors(HDD_SECTORS - 16)), 100).await.unwrap();
        let mut at = 0;
        for run in runs {
            assert_eq!(run.range.start.0, at);
            at = run.range.end().0;
        }
        assert_eq!(at, HDD_SECTORS - 16);
    });
    assert_eq!((ssd.to_vec(), hdd.to_vec()), before, "reading has written");
}

#[test]
fn writes_are_refused_and_flushes_are_free() {
    let (ssd, hdd) = TestSet::new().build();
    run(async move {
        let view = CacheView::open(ssd, hdd).await.unwrap();
        let pool = BufPool::new(1 << 20);
        let data = pool.take_zeroed(Sectors(1)).await.into();
        let refused = view.write(Sector(0), data, Durability::Cached).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::ReadOnly);
        let range = Extent::new(Sector(0), Sectors(8));
        assert_eq!(view.discard(range).await.unwrap_err().kind, ErrorKind::ReadOnly);
        let zeroes = view.write_zeroes(range, Zero::default()).await.unwrap_err();
        assert_eq!(zeroes.kind, ErrorKind::ReadOnly);
        view.flush().await.unwrap();
        let buf = pool.take(Sectors(8)).await;
        let beyond = view.read(Sector(HDD_SECTORS - 17), buf).await;
        assert_eq!(beyond.err().map(|error| error.kind), Some(ErrorKind::OutOfRange));
    });
}

#[test]
fn a_stale_clean_extent_is_not_served_and_a_stale_dirty_one_fails_its_reads_only() {
    let mut set = TestSet::new();
    for (bucket, generation) in [(101, 2), (103, 2)] {
        set.prios[0].entries[bucket].generation = generation;
    }
    let (ssd, hdd) = set.build();
    run(async move {
        let view = CacheView::open(ssd, hdd).await.unwrap();
        let lost: Vec<_> = view.lost_extents().iter().map(|m| (m.start, m.end)).collect();
        assert_eq!(lost, [(104, 112)]);
        let clean = sectors(&view, 32 - 16, 2).await;
        assert_eq!(clean, [(b'H', 32), (b'H', 33)]);
        let pool = BufPool::new(1 << 20);
        let buf = pool.take(Sectors(4)).await;
        let error = view.read(Sector(101 - 16), buf).await.err().unwrap();
        assert_eq!(error.kind, ErrorKind::Corrupt);
        assert_eq!(sectors(&view, 100 - 16, 4).await[3], (b'H', 103));
    });
}

fn refused(set: &TestSet) -> OpenError {
    let (ssd, hdd) = set.build();
    run(async move { CacheView::open(ssd, hdd).await.err().expect("must not open") })
}

#[test]
fn devices_that_do_not_belong_together_are_told_so() {
    let mut other = TestSet::new();
    other.backing.set_uuid = uuid::Uuid::from_u128(99);
    assert!(matches!(refused(&other), OpenError::OtherSet { .. }));

    let mut slotless = TestSet::new();
    slotless.uuids.slots[0].uuid = uuid::Uuid::from_u128(98);
    assert!(matches!(refused(&slotless), OpenError::DirtyElsewhere { .. }));

    let mut fresh = TestSet::new();
    fresh.sb.set_sync(false);
    assert!(matches!(refused(&fresh), OpenError::DirtyElsewhere { .. }));

    let (ssd, hdd) = TestSet::new().build();
    let (ssd2, hdd2) = (ssd.clone(), hdd.clone());
    let swapped = run(async move { CacheView::open(hdd, ssd).await.err().unwrap() });
    assert!(matches!(swapped, OpenError::Superblock { .. }), "{swapped}");
    ssd2.poke(4096, &[0; 4096]);
    let zeroed = run(async move { CacheView::open(ssd2, hdd2).await.err().unwrap() });
    assert!(zeroed.to_string().contains("not usable"), "{zeroed}");
}

#[test]
fn a_damaged_set_is_not_served() {
    let mut disorder = TestSet::new();
    disorder.nodes[2].sets[0].swap(0, 1);
    let OpenError::Damaged { source, .. } = refused(&disorder) else { panic!("damaged") };
    assert_eq!(source.rule, Rule::Row(37));
    assert_eq!(source.place.set, Some(disorder.sb.set_uuid));
}

#[test]
fn a_volume_without_its_cache_shows_old_data_only_when_asked() {
    let set = TestSet::new();
    let (_, hdd) = set.build();
    let old = hdd.clone();
    run(async move {
        type View = CacheView<Mem, Mem>;
        let refused = View::open_without_cache(hdd, false).await.err().unwrap();
        assert!(matches!(refused, OpenError::CacheMissing { .. }));
        let view = View::open_without_cache(old, true).await.unwrap();
        assert!(!view.cached());
        assert_eq!(sectors(&view, 0, 9).await, expected(&[])[..9]);
    });
}

#[test]
fn a_volume_that_belongs_to_nobody_ignores_the_cache_beside_it() {
    for state in [BackingState::None, BackingState::Stale] {
        let mut set = TestSet::new();
        set.backing.set_state(state);
        let (ssd, hdd) = set.build();
        run(async move {
            let view = CacheView::open(ssd, hdd).await.unwrap();
            assert_eq!(sectors(&view, 0, 40).await, expected(&[])[..40]);
        });
    }
}

/// A device of which some sectors cannot be read.
struct Bad(Mem, std::ops::Range<u64>);

impl BlockDevice for Bad {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }
    async fn read(&self, at: Sector, buf: IoBuf) -> Result<IoBuf> {
        let range = Extent::new(at, buf.sectors());
        if range.start.0 < self.1.end && self.1.start < range.end().0 {
            return Err(Error::new(ErrorKind::Io, Op::Read, range, &self.geometry().dev));
        }
        self.0.read(at, buf).await
    }
    async fn write(&self, at: Sector, data: Data, how: Durability) -> Result<Data> {
        self.0.write(at, data, how).await
    }
    async fn flush(&self) -> Result<()> {
        self.0.flush().await
    }
    async fn discard(&self, range: Extent) -> Result<()> {
        self.0.discard(range).await
    }
    async fn write_zeroes(&self, range: Extent, how: Zero) -> Result<()> {
        self.0.write_zeroes(range, how).await
    }
}

/// Bug 22: falling back to the backing device is right for clean data and wrong for dirty.
#[test]
fn a_failing_cache_is_replaced_by_the_backing_device_where_that_is_as_new() {
    let (ssd, hdd) = TestSet::new().build();
    run(async move {
        let view = CacheView::open(Bad(ssd, 808..824), hdd).await.unwrap();
        let pool = BufPool::new(1 << 20);
        let read = |at: u64, len| {
            let buf = pool.try_take(Sectors(len)).unwrap();
            view.read(Sector(at - 16), buf)
        };
        let clean = read(32, 2).await.unwrap();
        assert_eq!(clean[..512], pattern(b'H', 32));
        assert_eq!(read(34, 1).await.err().unwrap().kind, ErrorKind::Io, "dirty");
        assert_eq!(read(33, 3).await.err().unwrap().kind, ErrorKind::Io, "clean and dirty");
        assert!(read(16, 8).await.is_ok());
    });
}

#[test]
fn an_uncommitted_lap_and_a_torn_entry_change_nothing() {
    let mut set = TestSet::new();
    // Behind the newest entry: one of the lap before, and a torn one in the next ring bucket.
    set.entries.push((1, 2, set.entry(2, 2, vec![extent(300, 308, true, 120)])));
    let (ssd, hdd) = set.build();
    let mut torn =
        set.entry(8, 8, vec![extent(300, 308, true, 120)]).encode(set.magic(), &set.layout());
    torn[300] ^= 1;
    torn[245] ^= 1;
    ssd.poke((set.sb.layout.first_bucket + 2) * 8 * 512, &torn);
    run(async move {
        let view = CacheView::open(ssd, hdd).await.unwrap();
        assert_eq!(sectors(&view, 0, 1000).await, expected(&CACHED)[..1000]);
    });
}

#[test]
fn generations_come_from_the_freeing_key_and_from_newer_pointers() {
    let mut set = TestSet::new();
    // The freed leaf's bucket holds data now, in its second life; the prio chain knows of neither.
    let reused = Key::extent(0, 80, 88, true, Ptr::new(26 * 8, 2));
    set.nodes[1].sets.push(vec![reused]);
    // And of two pointers into one bucket the newer one counts.
    let newer = Key::extent(0, 120, 124, false, Ptr::new(104 * 8 + 4, 2));
    set.nodes[2].sets.push(vec![newer]);
    let (ssd, hdd) = set.build();
    run(async move {
        let view = CacheView::open(ssd, hdd).await.unwrap();
        assert_eq!(sectors(&view, 80 - 16, 1).await, [(b'\0', 0)], "bucket 26 has no pattern");
        assert_eq!(sectors(&view, 116 - 16, 5).await[3..], [(b'H', 119), (b'S', 836)]);
        assert_eq!(at(104).generation(), 1);
    });
}
