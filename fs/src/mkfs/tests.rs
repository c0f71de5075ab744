use super::*;
use crate::format::superblock::SUPER_OFFSETS;
use crate::fs::{Fs, OpenOptions};
use crate::verify;
use varve_block::dev::sim::{Image, Plan as Faults};
use varve_block::dev::{Mem, SimDisk};
use varve_block::{DevId, Geometry, Prng, Sim};

fn identity() -> Identity {
    Identity {
        fsid: Uuid::from_u128(1),
        device: Uuid::from_u128(2),
        chunk_tree: Uuid::from_u128(3),
        top_level: Uuid::from_u128(4),
        now: Time { seconds: 1_700_000_000, nanos: 0 },
    }
}

fn made(options: &MkfsOptions, size: u64) -> Plan {
    plan(options, &identity(), size).unwrap()
}

#[test]
fn what_makes_no_sense_is_refused() {
    let kind = |options: MkfsOptions, size| plan(&options, &identity(), size).unwrap_err().kind;
    let base = MkfsOptions::default;
    assert_eq!(kind(base(), MIN_DUP - 1), ErrorKind::NoSpace);
    assert_eq!(kind(MkfsOptions { nodesize: 2048, ..base() }, 1 << 30), ErrorKind::Invalid);
    assert_eq!(kind(MkfsOptions { nodesize: 131_072, ..base() }, 1 << 30), ErrorKind::Invalid);
    assert_eq!(kind(MkfsOptions { nodesize: 12288, ..base() }, 1 << 30), ErrorKind::Invalid);
    assert_eq!(kind(MkfsOptions { sectorsize: 512, ..base() }, 1 << 30), ErrorKind::Invalid);
    assert_eq!(kind(MkfsOptions { label: "x".repeat(256), ..base() }, 1 << 30), ErrorKind::Invalid);
    assert_eq!(kind(MkfsOptions { label: "a\nb".into(), ..base() }, 1 << 30), ErrorKind::Invalid);
}

/// No write touches another, a superblock copy, the reserved first MiB or the end of the device, for
/// every size at which the second metadata copy could meet the superblock at 64 MiB.
#[test]
fn nothing_is_written_over_anything() {
    let mib = 1 << 20;
    let near = (MIN_SINGLE..3 << 30).step_by(13 << 20);
    for total in near.chain([MIN_DUP, 50 << 30, (50 << 30) + mib, 1 << 40, 16 << 40]) {
        for dup_metadata in [false, true] {
            let nodesize = if total & (1 << 22) == 0 { 65536 } else { 4096 };
            let options = MkfsOptions { dup_metadata, nodesize, ..MkfsOptions::default() };
            let Ok(plan) = plan(&options, &identity(), total) else {
                assert!(dup_metadata && total < MIN_DUP);
                continue;
            };
            let mut ranges: Vec<_> = plan
                .steps
                .iter()
                .filter_map(|step| match step {
                    Step::Write { at, bytes } => Some(*at..*at + bytes.len() as u64),
                    _ => None,
                })
                .collect();
            ranges.sort_by_key(|range| range.start);
            assert!(ranges.windows(2).all(|w| w[0].end <= w[1].start), "{total}: {ranges:?}");
            assert!(ranges.last().unwrap().end <= total);
            let inside = |range: &&std::ops::Range<u64>| range.start < RESERVED;
            assert_eq!(ranges.iter().filter(inside).count(), 1, "only the superblock");
        }
    }
}

#[test]
fn superblocks_come_last_and_the_first_of_them_very_last() {
    let steps = made(&MkfsOptions::default(), 300 << 30).steps;
    let writes: Vec<_> = steps
        .iter()
        .filter_map(|step| match step {
            Step::Write { at, .. } => Some(*at),
            _ => None,
        })
        .collect();
    let [first, second, third] = SUPER_OFFSETS;
    assert_eq!(writes[writes.len() - 3..], [second, third, first]);
    assert!(matches!(steps[steps.len() - 1], Step::Flush));
    assert!(matches!(steps[steps.len() - 3], Step::Flush));
    let zeroed = steps.iter().take_while(|step| matches!(step, Step::Zero { .. })).count();
    assert!(matches!(steps[zeroed], Step::Flush), "old superblocks are gone before anything else");
    assert_eq!(zeroed, 3);
}

#[test]
fn every_superblock_copy_passes_its_rules() {
    let options = MkfsOptions { label: "vault".into(), ..MkfsOptions::default() };
    let plan = made(&options, 300 << 30);
    for at in SUPER_OFFSETS {
        let sb = verify::superblock(&plan.superblock.seal(at), at).unwrap();
        assert_eq!(sb.label.as_bytes(), b"vault");
        assert_eq!(sb.sys_chunks().unwrap().len(), 1);
    }
}

#[test]
fn a_btrfs_is_overwritten_only_by_force() {
    Sim::new(1).run(|rt| async move {
        let device = Mem::new(Sectors((256 << 20) >> 9));
        let options = MkfsOptions::default();
        assert!(detect(&device).await.unwrap().is_none());
        let sb = mkfs(&rt, &device, &options).await.unwrap();
        assert_eq!(detect(&device).await.unwrap().unwrap().fsid, sb.fsid);
        let refused = mkfs(&rt, &device, &options).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Exists);
        // The second copy alone still gives it away.
        device.poke(65536, &[0; 4096]);
        assert_eq!(detect(&device).await.unwrap().unwrap().at, 64 << 20);
        mkfs(&rt, &device, &MkfsOptions { force: true, ..options }).await.unwrap();
    });
}

fn disk(rt: &Rt, image: Image) -> SimDisk {
    let geometry = Geometry::new(DevId::new("disk"), image.len());
    SimDisk::new(rt, geometry, image, Faults::default())
}

/// Opens what a cut left by one of the superblocks, and reads what a fresh file system holds: its
/// uuid, or why not.
fn survey(image: Image, super_copy: usize) -> std::result::Result<Uuid, Error> {
    Sim::new(3).run(move |rt| async move {
        let options = OpenOptions { super_copy, ..OpenOptions::default() };
        let fs = Fs::open(disk(&rt, image), options).await?;
        assert!(fs.read_dir(fs.top(), 0, 10).await?.is_empty());
        assert_eq!(fs.subvolumes().await?.len(), 1);
        assert_eq!(fs.chunks().iter().count(), 3);
        Ok(fs.superblock().fsid)
    })
}

/// Over an older file system, at any moment: the old one whole, the new one whole, or none at all.
#[test]
fn a_power_cut_leaves_no_half_made_file_system() {
    let size = Sectors(MIN_DUP >> 9);
    let (old, new) = (Uuid::from_u128(0xA), Uuid::from_u128(0xB));
    // One copy of metadata: two would hide that one was lost.
    let with = |uuid| MkfsOptions {
        uuid: Some(uuid),
        force: true,
        dup_metadata: false,
        ..MkfsOptions::default()
    };
    let first: Image = Sim::new(1).run(move |rt| async move {
        let disk = disk(&rt, Image::new(size));
        mkfs(&rt, &disk, &with(old)).await.unwrap();
        disk.settled()
    });
    let (mut olds, mut news, mut none) = (0, 0, 0);
    for seed in 0..300 {
        let first = first.clone();
        let left = Sim::new(seed).run(move |rt| async move {
            let disk = disk(&rt, first);
            let chance = Prng::new(seed);
            let (maker, options) = (disk.clone(), with(new));
            let making = {
                let rt = rt.clone();
                rt.clone().spawn(async move { mkfs(&rt, &maker, &options).await.map(drop) })
            };
            let until = chance.below(45);
            while disk.operations() < until && !making.is_finished() {
                rt.sleep(std::time::Duration::from_micros(1 + chance.below(50))).await;
            }
            disk.cut(&chance)
        });
        for super_copy in [0, 1] {
            match survey(left.clone(), super_copy) {
                Ok(found) if found == old => olds += 1,
                Ok(found) if found == new => news += 1,
                Ok(other) => panic!("seed {seed}: {other}"),
                Err(error) => {
                    let words = ["no valid FS found", "checksum mismatch"];
                    let message = error.to_string();
                    assert!(words.iter().any(|w| message.contains(w)), "seed {seed}: {message}");
                    none += 1;
                }
            }
        }
    }
    assert!(olds > 0 && news > 0 && none > 0, "{olds} {news} {none}");
}
