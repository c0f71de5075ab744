//! Power cuts of volumes with an internal hash: in whatever mode a volume is used and taken up again, each
//! sector is old or new, what was flushed is there, and no tag is wrong.

use super::hashed::{all_fits, format, open_hashed, options, shape};
use super::life::Life;
use super::model::*;
use super::*;
use crate::integrity::device::{Barrier, LEFT_OUT};
use crate::integrity::{FirstTags, Hashed};
use crate::testing::recorder::{Event, Recorder, each_cut};
use std::time::Duration;
use varve_block::Prng;
use varve_block::dev::SimDisk;
use varve_block::dev::sim::{Image, Plan};

/// A volume and the modes that its lives choose from.
#[derive(Clone, Copy)]
struct World {
    hash: &'static str,
    sector: u64,
    modes: &'static [Journaling],
    tags: FirstTags,
}

const WORLDS: [World; 5] = [
    World { hash: "crc32c", sector: 512, modes: &[Journaling::Bitmap], tags: FirstTags::Wipe },
    World {
        hash: "crc32c",
        sector: 512,
        modes: &[Journaling::Journal],
        tags: FirstTags::Recalculate,
    },
    World {
        hash: "crc32c",
        sector: 512,
        modes: &[Journaling::Bitmap, Journaling::Journal],
        tags: FirstTags::Wipe,
    },
    World {
        hash: "sha256",
        sector: 4096,
        modes: &[Journaling::Bitmap],
        tags: FirstTags::Recalculate,
    },
    World {
        hash: "hmac-sha1",
        sector: 512,
        modes: &[Journaling::Journal, Journaling::Bitmap],
        tags: FirstTags::Wipe,
    },
];

const BLOCKS: usize = 24;

/// A time until a cut: as likely within an operation of the disk as within the minute that bits stay set.
fn any_moment(chance: &Prng) -> Duration {
    Duration::from_nanos(chance.below(1 << (8 + chance.below(29))))
}

/// Zeroes, with tags or with none.
async fn made_for(rt: &Rt, world: World) -> Mem {
    let wiped = shape(world.hash, world.sector, FirstTags::Wipe);
    let disk = super::hashed::volume_on(rt, DEVICE, &wiped).await;
    if world.tags == FirstTags::Recalculate {
        // Another salt: no tag fits.
        format(rt, &disk, &shape(world.hash, world.sector, FirstTags::Recalculate)).await;
    }
    disk
}

async fn take_up(rt: &Rt, world: World, mode: Journaling, disk: SimDisk) -> Hashed<SimDisk> {
    open_hashed(rt, disk, &options(world.hash, mode)).await.unwrap()
}

async fn no_tag_is_wrong<D: BlockDevice>(s: &Hashed<D>, what: &str) {
    let found = s.verify(Extent::new(Sector(0), s.geometry().len)).await.unwrap();
    assert!(found.bad.is_empty(), "{what}: {:?}", found.bad);
}

/// The last thing in a life before its cut: closed, being closed, left alone for a while, or nothing.
async fn end(rt: &Rt, s: Rc<Hashed<SimDisk>>, model: &mut Model, chance: &Prng) {
    match chance.below(4) {
        0 => {
            s.close().await.unwrap();
            model.flush();
        }
        1 => {
            let other = Rc::clone(&s);
            drop(rt.spawn(async move { drop(other.close().await) }));
            rt.sleep(moment(chance)).await;
        }
        2 => rt.sleep(any_moment(chance)).await,
        _ => {}
    }
}

/// One life of a volume: starts on what the last one left, works, and loses its power in the middle.
async fn life(
    rt: &Rt,
    world: World,
    image: Image,
    model: &mut Model,
    version: &mut u64,
    chance: &Prng,
) -> Image {
    let geometry = disk_geometry(world.sector / 512);
    let disk = SimDisk::new(rt, geometry, image, Plan::default());
    let mode = world.modes[chance.index(world.modes.len())];
    let what = format!("{} {mode:?} before version {version}", world.hash);
    let len = usize::try_from(world.sector).unwrap();
    if chance.chance(1, 3) {
        // The taking up itself is cut.
        let cut = rt.sleep(moment(chance));
        let opened = take_up(rt, world, mode, disk.clone());
        if let varve_block::sync::Either::Left(s) = varve_block::sync::select(opened, cut).await {
            rt.sleep(any_moment(chance)).await;
            drop(s);
        }
        return disk.cut(chance);
    }
    let s = Rc::new(take_up(rt, world, mode, disk.clone()).await);
    check(&*s, model, len, &what).await;
    no_tag_is_wrong(&s, &what).await;
    let mut life = Life { rt, s, unit: len, model, version, chance };
    for _ in 0..chance.below(30) {
        let block = chance.index(BLOCKS - 4);
        match chance.below(14) {
            0 => life.flush().await,
            1 => life.write_through(block).await,
            2 => life.read_beside_a_flush(block).await,
            // Long enough for bits to be cleared and tags to be computed, or not.
            3 | 4 => rt.sleep(any_moment(chance)).await,
            _ => {
                if !life.write_some(block, 6).await {
                    return disk.cut(chance);
                }
            }
        }
    }
    end(rt, life.s, life.model, chance).await;
    disk.cut(chance)
}

/// A dozen lives of one volume, each ended by a power cut; and one that is left alone until all is computed.
fn run(seed: u64, world: World) {
    Sim::new(seed).max_steps(10_000_000).run(move |rt| async move {
        let disk = made_for(&rt, world).await;
        let unit = world.sector / 512;
        let mut image = image_of(&disk, unit);
        let chance = rt.prng().fork();
        let (mut model, mut version) = (Model::new(BLOCKS), 0);
        for _ in 0..12 {
            image = life(&rt, world, image, &mut model, &mut version, &chance).await;
        }
        let disk = SimDisk::new(&rt, disk_geometry(unit), image, Plan::instant());
        let s = take_up(&rt, world, world.modes[chance.index(world.modes.len())], disk).await;
        let len = usize::try_from(world.sector).unwrap();
        let what = format!("seed {seed} at the end");
        check(&s, &mut model, len, &what).await;
        rt.sleep(Duration::from_secs(60)).await;
        all_fits(&s, &what).await;
        check(&s, &mut model, len, &what).await;
    });
}

#[test]
fn power_cuts_leave_each_sector_old_or_new_and_no_tag_wrong() {
    for seed in 0..8 {
        for world in WORLDS {
            run(seed, world);
        }
    }
}

/// The same worlds notice when a flush is left out, so they would notice if one were forgotten.
#[test]
fn a_barrier_of_the_bitmap_or_of_a_recalculation_that_is_left_out_is_noticed() {
    for barrier in [Barrier::Mark, Barrier::Clean, Barrier::Super] {
        let caught = (0..400u64).any(|seed| {
            let world = WORLDS[usize::try_from(seed % 5).unwrap()];
            LEFT_OUT.set(Some(barrier));
            let ended = std::panic::catch_unwind(|| run(seed, world));
            LEFT_OUT.set(None);
            ended.is_err()
        });
        assert!(caught, "nobody missed {barrier:?}");
    }
}

/// What each cut of a run leaves is taken up in both modes, read, computed, and cut again meanwhile.
#[test]
fn every_cut_of_a_run_and_of_what_follows_it_is_recovered() {
    // With a bitmap, then a journal, then a bitmap.
    let world = WORLDS[2];
    let before = Sim::new(1).run(move |rt| async move { made_for(&rt, world).await.to_vec() });
    let disk = Recorder::new(&before);
    let held = disk.clone();
    let marks = Sim::new(2).run(move |rt| async move {
        let (mut version, mut marks) = (0u64, Vec::new());
        let mut s = None;
        for round in 0..9usize {
            let mode = world.modes[round / 3 % world.modes.len()];
            if round % 3 == 0 {
                s = Some(open_hashed(&rt, held.clone(), &options(world.hash, mode)).await.unwrap());
            }
            let s = s.as_ref().unwrap();
            for block in [round % 5, 6, 7] {
                version += 1;
                marks.push((block, version));
                write(s, block as u64, &bytes(block, version, 512)).await;
            }
            s.flush().await.unwrap();
            match round {
                1 | 4 => rt.sleep(Duration::from_secs(25)).await,
                2 | 5 | 8 => s.close().await.unwrap(),
                _ => {}
            }
        }
        marks
    });
    let events = disk.take();
    let (mut cuts, mut twice) = (0, 0);
    each_cut(&before, &events, |cut| {
        if cut.of > 64 && cut.sectors % 29 != 0 && cut.sectors != cut.of {
            return;
        }
        cuts += 1;
        let mode = world.modes[cuts % world.modes.len()];
        let (seen, image, events) = recovered(cut.image, world, mode);
        check_prefix(&seen, &marks);
        if cuts % 13 == 0 {
            each_cut(cut.image, &events, |again| {
                if again.of > 16 && again.sectors % 43 != 0 && again.sectors != again.of {
                    return;
                }
                let mode = world.modes[twice % world.modes.len()];
                assert_eq!(seen, recovered(again.image, world, mode).0, "cut again");
                twice += 1;
            });
        }
        assert_eq!(recovered(&image, world, mode).0, seen);
    });
    assert!(cuts > 100 && twice > 100, "{cuts} {twice}");
}

/// A volume that was not wiped, with its tags computed and closed; each cut of that.
fn cut_a_recalculation(mode: Journaling, left_out: Option<Barrier>) {
    let world = World { tags: FirstTags::Recalculate, ..WORLDS[0] };
    let before = Sim::new(1).run(move |rt| async move { made_for(&rt, world).await.to_vec() });
    let disk = Recorder::new(&before);
    let held = disk.clone();
    LEFT_OUT.set(left_out);
    Sim::new(2).run(move |rt| async move {
        let s = open_hashed(&rt, held, &options(world.hash, mode)).await.unwrap();
        rt.sleep(Duration::from_secs(60)).await;
        s.close().await.unwrap();
    });
    LEFT_OUT.set(None);
    let events = disk.take();
    let mut cuts = 0;
    each_cut(&before, &events, |cut| {
        if cut.of > 64 && cut.sectors % 29 != 0 && cut.sectors != cut.of {
            return;
        }
        cuts += 1;
        for next in [Journaling::Journal, Journaling::Bitmap] {
            assert_eq!(recovered(cut.image, world, next).0, [0; 8]);
        }
    });
    assert!(cuts > 30, "{cuts}");
}

#[test]
fn every_cut_of_a_recalculation_leaves_no_tag_wrong() {
    for mode in [Journaling::Journal, Journaling::Bitmap] {
        cut_a_recalculation(mode, None);
    }
}

/// A test that cannot fail shows nothing: this is how it fails.
#[test]
fn tags_that_are_noted_before_they_are_durable_are_noticed() {
    let ended = std::panic::catch_unwind(|| {
        cut_a_recalculation(Journaling::Journal, Some(Barrier::Tags));
    });
    LEFT_OUT.set(None);
    assert!(ended.is_err(), "nobody missed them");
}

/// The versions of the blocks once all tags are computed; one that does not fit is a panic.
fn recovered(image: &[u8], world: World, mode: Journaling) -> (Vec<u64>, Vec<u8>, Vec<Event>) {
    let disk = Recorder::new(image);
    let held = disk.clone();
    let seen = Sim::new(3).run(move |rt| async move {
        let s = open_hashed(&rt, held, &options(world.hash, mode)).await.unwrap();
        no_tag_is_wrong(&s, "just taken up").await;
        rt.sleep(Duration::from_secs(60)).await;
        all_fits(&s, "computed").await;
        let mut seen = Vec::new();
        for block in 0..8usize {
            let found = read(&s, block as u64, 1).await;
            let version = u64::from_le_bytes(found[..8].try_into().unwrap()) >> 16;
            assert_eq!(found, bytes(block, version, 512), "block {block}");
            seen.push(version);
        }
        seen
    });
    (seen, disk.image(), disk.take())
}
