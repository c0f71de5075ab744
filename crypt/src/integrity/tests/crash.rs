//! Power cuts at every write. With a journal each sector is old or new and its tag verifies; what was
//! flushed is there.

use super::life::Life;
use super::model::*;
use super::*;
use crate::integrity::device::{Barrier, LEFT_OUT};
use crate::testing::recorder::{Event, Recorder, each_cut};
use varve_block::Prng;
use varve_block::dev::SimDisk;
use varve_block::dev::sim::{Image, Plan};

/// The recovery itself is cut, or what it leaves.
async fn cut_recovery(rt: &Rt, shape: Shape, disk: SimDisk, chance: &Prng) -> Image {
    let cut = rt.sleep(moment(chance));
    let opened = open(rt, disk.clone(), shape, Journaling::Journal);
    if let varve_block::sync::Either::Left(s) = varve_block::sync::select(opened, cut).await {
        drop(s.unwrap());
    }
    disk.cut(chance)
}

/// One life of a volume: starts on what the last one left, works, and loses its power in the middle.
async fn life(
    rt: &Rt,
    shape: Shape,
    image: Image,
    unit: u64,
    model: &mut Model,
    version: &mut u64,
    chance: &Prng,
) -> Image {
    let disk = SimDisk::new(rt, disk_geometry(unit), image, Plan::default());
    let what = format!("{shape:?} before version {version}");
    if chance.chance(1, 3) {
        return cut_recovery(rt, shape, disk, chance).await;
    }
    let s = open(rt, disk.clone(), shape, Journaling::Journal).await.unwrap();
    let len = usize::try_from(shape.2).unwrap();
    check(&s, model, len, &what).await;
    let mut life = Life { rt, s: Rc::new(s), unit: len, model, version, chance };
    for _ in 0..chance.below(30) {
        let block = chance.index(life.model.0.len() - 4);
        match chance.below(12) {
            0 => life.flush().await,
            1 => life.write_through(block).await,
            2 => {
                life.s.close().await.unwrap();
                life.model.flush();
            }
            3 => life.read_beside_a_flush(block).await,
            _ => {
                if !life.write_some(block, 8).await {
                    return disk.cut(chance);
                }
            }
        }
    }
    if chance.chance(1, 2) {
        drop(rt.spawn(async move { drop(life.s.flush().await) }));
        rt.sleep(moment(chance)).await;
    }
    disk.cut(chance)
}

/// A dozen lives of one volume, each ended by a power cut.
fn world(seed: u64, shape: Shape, unit: u64, sections: u32) {
    Sim::new(seed).max_steps(10_000_000).run(move |rt| async move {
        let disk = made(&rt, shape, DEVICE, sections).await;
        let mut image = image_of(&disk, unit);
        let chance = rt.prng().fork();
        let (mut model, mut version) = (Model::new(24), 0);
        for _ in 0..12 {
            image = life(&rt, shape, image, unit, &mut model, &mut version, &chance).await;
        }
        let disk = SimDisk::new(&rt, disk_geometry(unit), image, Plan::instant());
        let s = open(&rt, disk, shape, Journaling::Journal).await.unwrap();
        let len = usize::try_from(shape.2).unwrap();
        check(&s, &mut model, len, &format!("seed {seed} at the end")).await;
    });
}

/// Shape, device block in sectors, sections of the journal.
const WORLDS: [(Shape, u64, u32); 4] =
    [(SHAPES[0], 8, 2), (SHAPES[1], 1, 1), (SHAPES[4], 1, 4), (SHAPES[1], 1, 3)];

#[test]
fn power_cuts_leave_each_sector_old_or_new_and_what_was_flushed() {
    for seed in 0..8 {
        for (shape, unit, sections) in WORLDS {
            world(seed, shape, unit, sections);
        }
    }
}

/// The same worlds notice when a flush is left out, so they would notice if one were forgotten.
#[test]
fn a_barrier_that_is_left_out_is_noticed() {
    for barrier in [Barrier::Commit, Barrier::Copy] {
        let caught = (0..120u64).any(|seed| {
            let (shape, unit, sections) = WORLDS[usize::try_from(seed % 4).unwrap()];
            LEFT_OUT.set(Some(barrier));
            let ended = std::panic::catch_unwind(|| world(seed, shape, unit, sections));
            LEFT_OUT.set(None);
            ended.is_err()
        });
        assert!(caught, "nobody missed {barrier:?}");
    }
}

/// What each cut of a run leaves is opened, read, and cut again while it is recovered.
#[test]
fn every_cut_of_a_run_and_of_its_recovery_is_recovered() {
    for (shape, sections) in [(SHAPES[1], 3), (SHAPES[0], 1)] {
        let unit = usize::try_from(shape.2).unwrap();
        let before = Sim::new(1)
            .run(move |rt| async move { made(&rt, shape, DEVICE, sections).await.to_vec() });
        let disk = Recorder::new(&before);
        let held = disk.clone();
        // Which versions a cut may show follows from the number of flushes before it.
        let marks = Sim::new(2).run(move |rt| async move {
            let s = open(&rt, held.clone(), shape, Journaling::Journal).await.unwrap();
            let sectors = shape.2 / 512;
            let (mut version, mut marks) = (0u64, Vec::new());
            for round in 0..9usize {
                for block in [round % 5, 6, 7] {
                    version += 1;
                    marks.push((block, version));
                    write(&s, block as u64 * sectors, &bytes(block, version, unit)).await;
                }
                s.flush().await.unwrap();
                if round == 6 {
                    s.close().await.unwrap();
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
            let (seen, image, events) = recovered(cut.image, shape);
            check_prefix(&seen, &marks);
            // The recovery is cut as well, and ends in the same bytes.
            if cuts % 11 == 0 {
                each_cut(cut.image, &events, |again| {
                    if again.of > 16 && again.sectors % 43 != 0 && again.sectors != again.of {
                        return;
                    }
                    let (once_more, ..) = recovered(again.image, shape);
                    assert_eq!(seen, once_more, "a recovery that was cut");
                    twice += 1;
                });
            }
            assert_eq!(recovered(&image, shape).0, seen);
        });
        assert!(cuts > 100 && twice > 100, "{cuts} {twice}");
    }
}

/// The versions of the blocks after a recovery; a tag that does not match is a panic.
fn recovered(image: &[u8], shape: Shape) -> (Vec<u64>, Vec<u8>, Vec<Event>) {
    let disk = Recorder::new(image);
    let held = disk.clone();
    let unit = usize::try_from(shape.2).unwrap();
    let seen = Sim::new(3).run(move |rt| async move {
        let s = open(&rt, held, shape, Journaling::Journal).await.unwrap();
        let mut seen = Vec::new();
        for block in 0..8usize {
            let found = read(&s, block as u64 * shape.2 / 512, shape.2 / 512).await;
            let word = u64::from_le_bytes(found[..8].try_into().unwrap());
            let version = word >> 16;
            assert_eq!(found, bytes(block, version, unit), "block {block}");
            seen.push(version);
        }
        seen
    });
    (seen, disk.image(), disk.take())
}

/// Without a journal a cut may separate data and tag: an error, and never wrong bytes. What was flushed and
/// not written since is there.
#[test]
fn without_a_journal_a_cut_may_be_an_error_and_never_wrong_bytes() {
    let mut errors = 0;
    for seed in 0..60 {
        errors += Sim::new(seed).run(move |rt| async move {
            let shape = SHAPES[1];
            let disk = made(&rt, shape, DEVICE, 1).await;
            let disk = SimDisk::new(&rt, disk_geometry(1), image_of(&disk, 1), Plan::default());
            let s = open(&rt, disk.clone(), shape, Journaling::Direct).await.unwrap();
            for block in 0..12usize {
                write(&s, block as u64, &bytes(block, 1, 512)).await;
            }
            s.flush().await.unwrap();
            for block in 0..6usize {
                write(&s, block as u64, &bytes(block, 2, 512)).await;
            }
            let chance = rt.prng().fork();
            let image = disk.cut(&chance);
            let disk = SimDisk::new(&rt, disk_geometry(1), image, Plan::instant());
            let s = open(&rt, disk, shape, Journaling::Direct).await.unwrap();
            let mut errors = 0;
            for block in 0..12usize {
                match try_read(&s, block as u64, 1).await {
                    Ok(found) => {
                        let new = block < 6 && found == bytes(block, 2, 512);
                        assert!(new || found == bytes(block, 1, 512), "block {block}");
                    }
                    Err(e) => {
                        assert_eq!(e.kind, ErrorKind::Corrupt);
                        assert!(block < 6, "block {block} was flushed and left alone");
                        errors += 1;
                    }
                }
            }
            errors
        });
    }
    assert!(errors > 0, "no cut separated data and tag: the test looks at nothing");
}
