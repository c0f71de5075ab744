//! Profiles over several devices: the kernel wrote them, we read them, also with a device missing,
//! and with one whose bytes are garbage.

use crate::kernel::{Mount, run, shell, workshop};
use crate::walk::{Tree, assert_same, by_kernel, by_us, load};
use std::path::{Path, PathBuf};
use varve_block::Sim;
use varve_block::dev::Mem;
use varve_fs::{ErrorKind, Fs, OpenOptions};

const SUPERS: [u64; 2] = [64 << 10, 64 << 20];

fn devices(dir: &Path, count: usize) -> Vec<PathBuf> {
    let names = (1..=count).map(|n| dir.join(format!("disk{n}")));
    names.inspect(|name| drop(run("truncate", ["-s", "400M", &name.to_string_lossy()]))).collect()
}

/// Makes, fills and reads a file system; its devices in memory, and what the kernel sees.
fn made(dir: &Path, profile: &str, count: usize) -> (Vec<Mem>, Tree) {
    let disks = devices(dir, count);
    let mkfs = format!("mkfs.btrfs -q -f -d {profile} -m {profile} disk[0-9] >/dev/null 2>&1");
    shell(dir, &mkfs);
    let mount = Mount::several(&disks, "");
    // Stripes of 64 KiB: enough bytes that every device has every column, and small files besides.
    let work = "mkdir d; for i in $(seq 150); do seq $i 700 > d/$i; done; \
                head -c 3333333 /dev/urandom > noise; head -c 1500000 /dev/urandom > other; \
                setfattr -n user.a -v b d/1; ln d/1 link; ln -s d sym; \
                cp --reflink=always noise clone; btrfs -q subvolume snapshot . snap; \
                truncate -s 5M noise; touch -d 2001-02-03 d/7; sync";
    shell(mount.path(), work);
    drop(mount);
    let mount = Mount::several(&disks, "ro");
    let theirs = by_kernel(mount.path());
    drop(mount);
    (disks.iter().map(|disk| load(disk)).collect(), theirs)
}

fn ours(devices: Vec<Mem>) -> (Tree, u64, Vec<String>) {
    Sim::new(1).run(|_| async move {
        let fs = Fs::open_devices(devices, OpenOptions::default()).await.expect("it opens");
        let tree = by_us(&fs).await;
        (tree, fs.counters().bad_copies, fs.warnings().to_vec())
    })
}

/// Garbage everywhere but in the superblocks: a disk that came back from somewhere else.
fn ruined(disk: &Mem) -> Mem {
    let mut bytes = disk.to_vec();
    let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
    for at in (0..bytes.len()).step_by(4096) {
        let end = (at + 4096).min(bytes.len());
        // Holes stay holes: they hold nothing that is read.
        if SUPERS.contains(&(at as u64)) || bytes[at..end].iter().all(|byte| *byte == 0) {
            continue;
        }
        for word in bytes[at..end].chunks_mut(8) {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            word.copy_from_slice(&seed.to_le_bytes()[..word.len()]);
        }
    }
    Mem::from_bytes(&bytes)
}

/// With all devices, without up to `losses` of them, and with as many ruined.
fn round(test: &str, profile: &str, count: usize, losses: usize) {
    let Some(dir) = workshop(test) else { return };
    let (disks, theirs) = made(dir.path(), profile, count);
    let (tree, bad, warnings) = ours(disks.iter().rev().cloned().collect());
    assert_same(&theirs, &tree);
    assert_eq!((bad, warnings), (0, vec![]), "nothing is wrong with it");
    // A device that holds second copies only is never asked, so the sum over all devices counts.
    let mut seen = 0;
    for first in 0..count {
        if losses == 0 {
            return;
        }
        let gone = |n: usize| (0..losses).any(|more| (first + more) % count == n);
        let numbered = || disks.iter().cloned().enumerate();
        let left = numbered().filter(|(n, _)| !gone(*n)).map(|(_, disk)| disk).collect();
        let (tree, _, warnings) = ours(left);
        assert_same(&theirs, &tree);
        assert_eq!(warnings.len(), losses, "each missing device is named: {warnings:?}");
        let worn = numbered().map(|(n, disk)| if gone(n) { ruined(&disk) } else { disk });
        let (tree, bad, _) = ours(worn.collect());
        assert_same(&theirs, &tree);
        seen += bad;
    }
    assert!(seen > 0, "the bad copies were seen");
}

#[test]
fn raid0_over_three_devices() {
    round("raid0_over_three_devices", "raid0", 3, 0);
}

#[test]
fn raid1_with_either_device() {
    round("raid1_with_either_device", "raid1", 2, 1);
}

#[test]
fn raid1c3_and_any_two_devices_lost() {
    round("raid1c3_and_any_two_devices_lost", "raid1c3", 3, 2);
}

#[test]
fn raid1c4_and_any_three_devices_lost() {
    round("raid1c4_and_any_three_devices_lost", "raid1c4", 4, 3);
}

#[test]
fn raid10_with_any_device_lost() {
    round("raid10_with_any_device_lost", "raid10", 4, 1);
}

#[test]
fn raid5_rebuilds_any_device() {
    round("raid5_rebuilds_any_device", "raid5", 3, 1);
}

#[test]
fn raid6_rebuilds_any_two_devices() {
    round("raid6_rebuilds_any_two_devices", "raid6", 4, 2);
}

/// S32: a mirror that missed commits is not read as if it were current.
#[test]
fn s32_a_device_that_missed_commits_is_left_out_by_name() {
    let test = "s32_a_device_that_missed_commits_is_left_out_by_name";
    let Some(dir) = workshop(test) else { return };
    let (mut disks, _) = made(dir.path(), "raid1", 2);
    let paths = [dir.path().join("disk1"), dir.path().join("disk2")];
    let mount = Mount::several(&paths, "nodatasum");
    shell(mount.path(), "echo new > d/1; echo fresh > fresh; sync");
    drop(mount);
    let mount = Mount::several(&paths, "ro");
    let theirs = by_kernel(mount.path());
    drop(mount);
    let stale = disks.remove(0);
    for devices in [vec![stale.clone(), load(&paths[1])], vec![load(&paths[1]), stale.clone()]] {
        let (tree, _, warnings) = ours(devices);
        assert_same(&theirs, &tree);
        assert!(warnings.iter().any(|w| w.contains("left out: its generation")), "{warnings:?}");
    }
}

#[test]
fn too_many_lost_devices_are_an_error_that_names_one() {
    let test = "too_many_lost_devices_are_an_error_that_names_one";
    let Some(dir) = workshop(test) else { return };
    let (disks, _) = made(dir.path(), "raid5", 3);
    for one in disks {
        Sim::new(1).run(|_| async move {
            let error = first_error(one).await;
            assert_eq!(error.kind, ErrorKind::Io);
            assert!(error.to_string().contains("is missing"), "{error}");
        });
    }
}

/// Where the kernel puts the few blocks that opening takes is its business: they may be on one device.
async fn first_error(device: Mem) -> varve_fs::Error {
    let noise = async |fs: Fs<Mem>| {
        let id = fs.lookup("/snap/noise").await?;
        fs.read(id, 0, 3_333_333).await
    };
    let read = match Fs::open_devices(vec![device], OpenOptions::default()).await {
        Ok(fs) => noise(fs).await,
        Err(error) => return error,
    };
    read.expect_err("a third of its bytes")
}
