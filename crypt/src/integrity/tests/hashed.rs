//! Volumes with an internal hash: what is written reads back in every mode and across modes, and what rots
//! is an error.

use super::*;
use crate::format::integrity::{self as format, Superblock};
use crate::integrity::{FirstTags, HashSpec, Hashed, HashedFormat, HashedOptions, format_hashed};
use crate::key::Key;
use std::time::Duration;
use varve_block::{Geometry, Op};

pub(super) const MODES: [Journaling; 3] =
    [Journaling::Journal, Journaling::Bitmap, Journaling::Direct];

pub(super) fn options(hash: &str, journaling: Journaling) -> HashedOptions {
    let hash = HashSpec::named(hash).unwrap();
    let key =
        hash.is_keyed().then(|| Arc::new(Key::copy_from(b"a key of thirty-two bytes, nearly")));
    HashedOptions { key, journaling, legacy_recalculate: true, ..HashedOptions::new(hash) }
}

/// A small journal, short areas, and a bit to every eighth KiB or so.
pub(super) fn shape(hash: &str, sector: u64, tags: FirstTags) -> HashedFormat {
    let open = options(hash, Journaling::Direct);
    HashedFormat {
        key: open.key,
        sector_size: SectorSize::new(sector).unwrap(),
        journal: Some(200),
        interleave: Some(128),
        sectors_per_bit: Some(16),
        tags,
        ..HashedFormat::new(open.hash)
    }
}

pub(super) async fn format<D: BlockDevice + Clone>(rt: &Rt, disk: &D, format: &HashedFormat) {
    let go_on = &mut |_| std::ops::ControlFlow::Continue(());
    format_hashed(rt, disk, format, go_on).await.unwrap();
}

pub(super) async fn open_hashed<D: BlockDevice>(
    rt: &Rt,
    below: D,
    options: &HashedOptions,
) -> Result<Hashed<D>> {
    Hashed::open(rt, below, options, BufPool::new(8 << 20)).await
}

/// A device of noise with a volume on it.
pub(super) async fn volume_on(rt: &Rt, device: Sectors, what: &HashedFormat) -> Mem {
    let disk = Mem::new(device);
    let mut noise = vec![0; device.byte_len()];
    rt.prng().fill(&mut noise);
    disk.poke(0, &noise);
    format(rt, &disk, what).await;
    disk
}

/// Every tag says something and fits.
pub(super) async fn all_fits<D: BlockDevice>(s: &Hashed<D>, what: &str) {
    let all = Extent::new(Sector(0), s.geometry().len);
    let found = s.verify(all).await.unwrap();
    assert_eq!((found.bad.len(), found.unknown), (0, 0), "{what}: {:?}", found.bad.first());
}

fn superblock_of(disk: &Mem) -> Superblock {
    let mut bytes = vec![0; format::LEN];
    disk.peek(0, &mut bytes);
    Superblock::parse(&bytes).unwrap()
}

#[test]
fn what_is_written_reads_back_in_each_mode_and_in_the_next_one() {
    for (hash, sector) in [("crc32c", 512), ("sha256", 4096), ("hmac-sha256", 512)] {
        for first in MODES {
            for second in MODES {
                Sim::new(5).run(move |rt| async move {
                    let disk =
                        volume_on(&rt, Sectors(8192), &shape(hash, sector, FirstTags::Wipe)).await;
                    let s = open_hashed(&rt, disk.clone(), &options(hash, first)).await.unwrap();
                    assert_eq!(read(&s, 0, 64).await, vec![0; 64 * 512]);
                    let clear = pattern(7, 300 << 10);
                    write(&s, 8, &clear).await;
                    assert_eq!(read(&s, 8, 600).await, clear);
                    s.flush().await.unwrap();
                    // Left by a kill, then closed.
                    drop(s);
                    let s = open_hashed(&rt, disk.clone(), &options(hash, second)).await.unwrap();
                    assert_eq!(read(&s, 8, 600).await, clear);
                    write(&s, 16, &clear[..8192]).await;
                    s.close().await.unwrap();
                    let e =
                        s.write_zeroes(Extent::new(Sector(0), Sectors(8)), Zero::default()).await;
                    assert_eq!(e.unwrap_err().kind, ErrorKind::Stopped);
                    let s = open_hashed(&rt, disk, &options(hash, first)).await.unwrap();
                    assert_eq!(read(&s, 16, 16).await, clear[..8192]);
                    rt.sleep(Duration::from_secs(60)).await;
                    all_fits(&s, &format!("{hash} {first:?} {second:?}")).await;
                    s.close().await.unwrap();
                });
            }
        }
    }
}

#[test]
fn a_tampered_sector_is_an_error_with_its_number_and_its_neighbours_are_not() {
    for (hash, sector) in [("crc32c", 512u64), ("sha1", 4096), ("hmac-sha512", 1024)] {
        for mode in MODES {
            Sim::new(14).run(move |rt| async move {
                let what = shape(hash, sector, FirstTags::Wipe);
                let disk = volume_on(&rt, Sectors(8192), &what).await;
                let s = open_hashed(&rt, disk.clone(), &options(hash, mode)).await.unwrap();
                write(&s, 0, &pattern(11, 64 * 512)).await;
                s.close().await.unwrap();
                let layout = Layout::new(&superblock_of(&disk), Sector(0), Sectors(8192)).unwrap();
                let s = open_hashed(&rt, disk.clone(), &options(hash, mode)).await.unwrap();
                let (data, tag) = (layout.data(Sector(16)).byte(), layout.tag_byte(Sector(16)));
                for at in [data, data + sector - 1, tag, tag + layout.tag as u64 - 1] {
                    let mut byte = [0];
                    disk.peek(at, &mut byte);
                    disk.poke(at, &[byte[0] ^ 0x20]);
                    let e = try_read(&s, 0, 64).await.unwrap_err();
                    let step = sector / 512;
                    assert_eq!((e.kind, e.at), (ErrorKind::Corrupt, Extent::new(Sector(16), Sectors(step))));
                    assert_eq!(
                        varve_block::chain(&e),
                        format!("read sector 16+{step} on integrity on mem: corrupt data: the integrity tag does not match")
                    );
                    assert_eq!(read(&s, 0, 16).await, pattern(11, 16 * 512));
                    let found = s.verify(Extent::new(Sector(0), Sectors(64))).await.unwrap();
                    assert_eq!(found.bad.iter().map(|b| b.0).collect::<Vec<_>>(), [16]);
                    disk.poke(at, &byte);
                }
                assert_eq!(read(&s, 0, 64).await, pattern(11, 64 * 512));
            });
        }
    }
}

/// What lay there before stays, is given as it is, and is checked once its tags are computed.
#[test]
fn a_volume_that_was_not_wiped_serves_at_once_and_ends_with_all_its_tags() {
    for mode in MODES {
        Sim::new(21).run(move |rt| async move {
            let disk =
                volume_on(&rt, Sectors(8192), &shape("crc32c", 512, FirstTags::Recalculate)).await;
            let s = open_hashed(&rt, disk.clone(), &options("crc32c", mode)).await.unwrap();
            let before = read(&s, 0, 2048).await;
            let found = s.verify(Extent::new(Sector(0), s.geometry().len)).await.unwrap();
            assert!(found.bad.is_empty() && found.unknown > 0);
            write(&s, 4000, &pattern(3, 8192)).await;
            rt.sleep(Duration::from_secs(60)).await;
            assert_eq!(s.recalculating_from(), None);
            all_fits(&s, "computed").await;
            assert_eq!(read(&s, 0, 2048).await, before);
            assert_eq!(read(&s, 4000, 16).await, pattern(3, 8192));
            s.close().await.unwrap();
            let sb = superblock_of(&disk);
            assert_eq!((sb.recalculating, sb.dirty_bitmap), (Some(sb.provided.0), false));
            let s = open_hashed(&rt, disk, &options("crc32c", mode)).await.unwrap();
            all_fits(&s, "opened again").await;
        });
    }
}

/// Closed in the middle, a recalculation goes on where it was, in whatever mode.
#[test]
fn a_recalculation_that_was_interrupted_goes_on() {
    for (first, second) in MODES.iter().flat_map(|a| MODES.map(|b| (*a, b))) {
        Sim::new(22).run(move |rt| async move {
            let what = shape("crc32c", 512, FirstTags::Recalculate);
            let image = volume_on(&rt, Sectors(8192), &what).await.to_vec();
            let geometry = Geometry::new(varve_block::DevId::new("sim"), Sectors(8192));
            let mut medium = varve_block::dev::sim::Image::with_unit(Sectors(8192), Sectors(1));
            medium.poke(Sector(0), &image);
            let plan = varve_block::dev::sim::Plan::default();
            let disk = varve_block::dev::SimDisk::new(&rt, geometry, medium, plan);
            let s = open_hashed(&rt, disk.clone(), &options("crc32c", first)).await.unwrap();
            let from = s.recalculating_from().unwrap();
            rt.sleep(Duration::from_millis(1)).await;
            s.close().await.unwrap();
            let left = s.recalculating_from().expect("not at its end after a millisecond");
            assert!(from < left, "{first:?}");
            let s = open_hashed(&rt, disk, &options("crc32c", second)).await.unwrap();
            // A bitmap knows whole bits only.
            let again = s.recalculating_from().unwrap();
            assert!(from < again && again <= left && left.0 - again.0 < 16, "{again} {left}");
            rt.sleep(Duration::from_secs(60)).await;
            all_fits(&s, &format!("{first:?} {second:?}")).await;
        });
    }
}

#[test]
fn a_read_only_start_takes_up_whatever_was_left_and_writes_nothing() {
    for left in MODES {
        for taken in MODES {
            Sim::new(23).run(move |rt| async move {
                let disk =
                    volume_on(&rt, Sectors(4096), &shape("crc32c", 512, FirstTags::Wipe)).await;
                let s = open_hashed(&rt, disk.clone(), &options("crc32c", left)).await.unwrap();
                write(&s, 24, &pattern(1, 8192)).await;
                s.flush().await.unwrap();
                let before = disk.to_vec();
                let frozen = Mem::with_geometry(Geometry { read_only: true, ..disk.geometry() });
                frozen.poke(0, &before);
                let r = open_hashed(&rt, frozen.clone(), &options("crc32c", taken)).await.unwrap();
                assert_eq!(read(&r, 24, 16).await, pattern(1, 8192));
                let found = r.verify(Extent::new(Sector(0), r.geometry().len)).await.unwrap();
                assert_eq!((found.bad.len(), found.unknown > 0), (0, left == Journaling::Bitmap));
                rt.sleep(Duration::from_secs(60)).await;
                r.close().await.unwrap();
                assert_eq!(frozen.to_vec(), before);
            });
        }
    }
}

/// Where nothing was written, nothing is computed after a crash: what rots there is still noticed.
#[test]
fn a_crash_in_bitmap_mode_costs_the_tags_of_its_regions_only() {
    Sim::new(24).run(|rt| async move {
        let disk = volume_on(&rt, Sectors(8192), &shape("crc32c", 512, FirstTags::Wipe)).await;
        let s =
            open_hashed(&rt, disk.clone(), &options("crc32c", Journaling::Bitmap)).await.unwrap();
        write(&s, 40, &pattern(1, 512)).await;
        drop(s);
        let layout = Layout::new(&superblock_of(&disk), Sector(0), Sectors(8192)).unwrap();
        // In the region, and out of it: nobody can know of the first.
        for at in [36, 3000] {
            disk.poke(layout.data(Sector(at)).byte(), &[9; 16]);
        }
        for mode in [Journaling::Bitmap, Journaling::Journal] {
            let copy = Mem::from_bytes(&disk.to_vec());
            let s = open_hashed(&rt, copy, &options("crc32c", mode)).await.unwrap();
            let found = s.verify(Extent::new(Sector(0), s.geometry().len)).await.unwrap();
            let unknown = match mode {
                Journaling::Bitmap => 16,
                _ => layout.provided.0 - 32,
            };
            assert_eq!(found.unknown, unknown, "{mode:?}");
            if mode == Journaling::Bitmap {
                assert_eq!(found.bad.len(), 1);
                rt.sleep(Duration::from_secs(60)).await;
                let found = s.verify(Extent::new(Sector(0), s.geometry().len)).await.unwrap();
                assert_eq!((found.bad[0].0, found.bad.len(), found.unknown), (3000, 1, 0));
            }
        }
    });
}

/// Ten seconds after a write its bit is gone, and after a close the journal is back.
#[test]
fn bits_are_cleared_after_a_while() {
    Sim::new(25).run(|rt| async move {
        let disk = volume_on(&rt, Sectors(8192), &shape("crc32c", 512, FirstTags::Wipe)).await;
        let s =
            open_hashed(&rt, disk.clone(), &options("crc32c", Journaling::Bitmap)).await.unwrap();
        let map = || {
            let mut bytes = vec![0; 4096];
            disk.peek(4096, &mut bytes);
            bytes
        };
        assert_eq!(map(), vec![0; 4096]);
        write(&s, 40, &pattern(1, 17 * 512)).await;
        assert_eq!(map()[..2], [0b1100, 0]);
        rt.sleep(Duration::from_secs(21)).await;
        assert_eq!(map(), vec![0; 4096]);
        assert!(superblock_of(&disk).dirty_bitmap);
        s.close().await.unwrap();
        assert!(!superblock_of(&disk).dirty_bitmap);
    });
}

#[test]
fn a_key_never_blesses_what_lies_there_unless_it_is_asked_to() {
    Sim::new(26).run(|rt| async move {
        let what = shape("hmac-sha256", 512, FirstTags::Recalculate);
        let disk = volume_on(&rt, Sectors(4096), &what).await;
        let before = disk.to_vec();
        let mut how = options("hmac-sha256", Journaling::Journal);
        how.legacy_recalculate = false;
        let e = open_hashed(&rt, disk.clone(), &how).await.map(drop).unwrap_err();
        assert!(matches!(e, Error::Refused { .. }), "{e}");
        assert_eq!(disk.to_vec(), before);
        how.legacy_recalculate = true;
        let s = open_hashed(&rt, disk.clone(), &how).await.unwrap();
        rt.sleep(Duration::from_secs(60)).await;
        all_fits(&s, "asked for").await;
        s.close().await.unwrap();
        // A bitmap that somebody put there is no excuse, unless the volume is used with one.
        let mut byte = [0];
        disk.peek(24, &mut byte);
        disk.poke(24, &[byte[0] | 4]);
        how.legacy_recalculate = false;
        let e = open_hashed(&rt, disk.clone(), &how).await.map(drop).unwrap_err();
        assert!(matches!(e, Error::Refused { .. }), "{e}");
        how.journaling = Journaling::Bitmap;
        let s = open_hashed(&rt, disk.clone(), &how).await.unwrap();
        rt.sleep(Duration::from_secs(60)).await;
        s.close().await.unwrap();
        how.journaling = Journaling::Journal;
        let wrong = HashedOptions { key: Some(Arc::new(Key::copy_from(b"another"))), ..how };
        let s = open_hashed(&rt, disk, &wrong).await.unwrap();
        assert_eq!(try_read(&s, 0, 1).await.unwrap_err().kind, ErrorKind::Corrupt);
    });
}

/// A journal that rots keeps a volume from being opened, but not its data from being rescued.
#[test]
fn recovery_reads_what_lies_there_and_writes_nothing() {
    Sim::new(28).run(|rt| async move {
        let disk = volume_on(&rt, Sectors(4096), &shape("crc32c", 512, FirstTags::Wipe)).await;
        let s =
            open_hashed(&rt, disk.clone(), &options("crc32c", Journaling::Direct)).await.unwrap();
        write(&s, 24, &pattern(1, 8192)).await;
        drop(s);
        let layout = Layout::new(&superblock_of(&disk), Sector(0), Sectors(4096)).unwrap();
        disk.poke(4096 + 504, &[0xff; 8]);
        disk.poke(layout.tag_byte(Sector(25)), &[0xff; 4]);
        let mut how = options("crc32c", Journaling::Journal);
        assert!(open_hashed(&rt, disk.clone(), &how).await.is_err());
        how.recovery = true;
        let e = open_hashed(&rt, disk.clone(), &how).await.map(drop).unwrap_err();
        assert!(e.to_string().contains("read-only"), "{e}");
        let frozen = Mem::with_geometry(Geometry { read_only: true, ..disk.geometry() });
        frozen.poke(0, &disk.to_vec());
        let s = open_hashed(&rt, frozen.clone(), &how).await.unwrap();
        assert_eq!(read(&s, 24, 16).await, pattern(1, 8192));
        let all = Extent::new(Sector(0), s.geometry().len);
        let found = s.verify(all).await.unwrap();
        assert_eq!((found.bad_blocks, found.unknown), (0, all.len.0));
        s.close().await.unwrap();
        assert_eq!(frozen.to_vec(), disk.to_vec());
    });
}

/// A discard is looked at like any other request before it is refused for what it is.
#[test]
fn what_the_device_cannot_do_is_refused_and_named() {
    Sim::new(29).run(|rt| async move {
        let disk = volume_on(&rt, Sectors(4096), &shape("crc32c", 4096, FirstTags::Wipe)).await;
        let s =
            open_hashed(&rt, disk.clone(), &options("crc32c", Journaling::Journal)).await.unwrap();
        let end = Sector(s.geometry().len.0);
        let discard =
            async |at, len| s.discard(Extent::new(at, Sectors(len))).await.unwrap_err().kind;
        assert_eq!(discard(Sector(0), 8).await, ErrorKind::Unsupported);
        assert_eq!(discard(Sector(1), 8).await, ErrorKind::Misaligned);
        assert_eq!(discard(end, 8).await, ErrorKind::OutOfRange);
        let fast = Zero { only_if_fast: true, ..Zero::default() };
        let e = s.write_zeroes(Extent::new(Sector(0), Sectors(8)), fast).await.unwrap_err();
        assert_eq!((e.kind, e.op), (ErrorKind::Unsupported, Op::WriteZeroes));
        let e = s.write_zeroes(Extent::new(end, Sectors(8)), Zero::default()).await.unwrap_err();
        assert_eq!((e.kind, e.op), (ErrorKind::OutOfRange, Op::WriteZeroes));
    });
}

/// A sector that the disk cannot read ends no recalculation, and stays an error.
#[test]
fn a_recalculation_goes_round_what_cannot_be_read() {
    use varve_block::dev::sim::{Effect, Fault, Image, Plan, When};
    Sim::new(27).run(|rt| async move {
        let disk =
            volume_on(&rt, Sectors(8192), &shape("crc32c", 512, FirstTags::Recalculate)).await;
        let layout = Layout::new(&superblock_of(&disk), Sector(0), Sectors(8192)).unwrap();
        let mut image = Image::with_unit(Sectors(8192), Sectors(1));
        image.poke(Sector(0), &disk.to_vec());
        let bad = Extent::new(layout.data(Sector(100)), Sectors(2));
        let plan = Plan::default()
            .with(Fault::new(Op::Read, When::From(1), Effect::Fail(ErrorKind::Io)).within(bad));
        let sim = varve_block::dev::SimDisk::new(&rt, disk.geometry(), image, plan);
        let s = open_hashed(&rt, sim, &options("crc32c", Journaling::Journal)).await.unwrap();
        rt.sleep(Duration::from_secs(60)).await;
        let found = s.verify(Extent::new(Sector(0), s.geometry().len)).await.unwrap();
        assert_eq!(found.bad.iter().map(|b| b.0).collect::<Vec<_>>(), [100, 101]);
        assert_eq!(found.unknown, 0);
    });
}
