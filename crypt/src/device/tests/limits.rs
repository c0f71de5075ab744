//! Where the numbers end: sector numbers past 32 and 64 bits, and discards that are not whole sectors.

use super::*;

/// Past every disk, and sparse.
const HUGE: Sectors = Sectors(1 << 34);
const WRAP: u64 = 1 << 32;

fn huge(rt: &Rt) -> SimDisk {
    SimDisk::new(rt, Geometry::new(DevId::new("huge"), HUGE), Image::new(HUGE), Plan::instant())
}

fn over(rt: &Rt, below: &SimDisk, spec: &str) -> (Crypt<SimDisk>, Vec<String>) {
    let volume = volume_of(spec, HUGE);
    let notes = volume.notes.clone();
    let (handle, pool) = (VolumeHandle::new(volume), BufPool::new(8 << 20));
    (Crypt::new(rt, below.clone(), handle, pool, &CryptOptions::default()).unwrap(), notes)
}

/// C29: `plain` counts in 32 bits, so sectors 2 TiB apart share an IV, and that is said; `plain64` does not.
#[test]
fn c29_sector_numbers_past_two_tebibytes() {
    for (mode, repeats) in [("plain", true), ("plain64", false), ("plain64be", false)] {
        Sim::new(1).run(|rt| async move {
            let below = huge(&rt);
            let (c, notes) = over(&rt, &below, &format!("aes-xts-{mode}"));
            assert_eq!(notes.iter().any(|n| n.contains("share an IV")), repeats, "{notes:?}");
            let clear = pattern(7, 512);
            for at in [3, WRAP + 3] {
                write(&c, at, &clear).await;
            }
            let (low, high) = (read(&below, 3, 1).await, read(&below, WRAP + 3, 1).await);
            assert_eq!(low == high, repeats, "{mode}");
            assert_eq!(read(&c, WRAP + 3, 1).await, clear);
            // The last sector before the wrap and the first behind it, in one request.
            let two = pattern(1, 1024);
            write(&c, WRAP - 1, &two).await;
            assert_eq!(read(&c, WRAP - 1, 2).await, two);
            assert_eq!(read(&c, WRAP, 1).await, two[512..]);
        });
    }
}

/// C29: IV offsets at the end of 64 bits: `plain` wraps as the kernel's does, the others are refused.
#[test]
fn c29_an_offset_at_the_end_of_the_numbers() {
    let spec = |mode: &str, skip: u64| format!("aes-xts-{mode},size=16,skip={skip}");
    let open = |mode: &str, skip| {
        let options = MapOptions {
            data_len: HUGE,
            detached: true,
            allow_weak_key: false,
            engine: Engine::Auto,
        };
        PlainSpec::parse(&spec(mode, skip)).unwrap().open(Key::copy_from(&vk1()), &options)
    };
    assert!(open("plain64", u64::MAX - 16).is_ok());
    assert!(matches!(open("plain64", u64::MAX - 14), Err(Error::Corrupt(c)) if c.check == 38));
    Sim::new(1).run(|rt| async move {
        let below = huge(&rt);
        let (c, _) = over(&rt, &below, &spec("plain", u64::MAX - 7));
        let clear = pattern(0, 16 * 512);
        write(&c, 0, &clear).await;
        assert_eq!(read(&c, 0, 16).await, clear);
        let wrapped = read(&below, 8, 8).await;
        let (fresh, _) = over(&rt, &below, "aes-xts-plain,size=8");
        write(&fresh, 0, &clear[8 * 512..]).await;
        assert_eq!(read(&below, 0, 8).await, wrapped, "sector 8 has the number 0");
    });
}

/// C28: only whole encryption sectors are let go, and only where that is allowed; what comes back afterwards
/// is noise, never said to be zeroes.
#[test]
fn c28_discards_are_whole_sectors_of_a_volume_that_allows_them() {
    Sim::new(1).run(|rt| async move {
        let disk = Mem::new(DISK);
        let c = crypt(&rt, disk.clone(), 4096);
        let clear = pattern(0, 64 * 512);
        write(&c, 0, &clear).await;
        let before = disk.to_vec();
        for (at, len) in [(1, 8), (8, 7), (4, 8)] {
            let range = Extent::new(Sector(at), Sectors(len));
            let e = c.discard(range).await.unwrap_err();
            assert_eq!(e.kind, ErrorKind::Misaligned);
        }
        assert_eq!(disk.to_vec(), before, "nothing was let go");
        let range = Extent::new(Sector(8), Sectors(8));
        c.discard(range).await.unwrap();
        assert_eq!(read(&c, 0, 8).await, clear[..8 * 512]);
        assert_eq!(read(&c, 16, 48).await, clear[16 * 512..]);
        assert_ne!(read(&c, 8, 8).await, vec![0; 8 * 512]);
        assert!(c.extents(range, 4).await.unwrap().iter().all(|e| !e.zero));
    });
}
