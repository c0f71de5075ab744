//! Every kind of file system that mkfs.btrfs makes, small: what we tell of it item by item is what the
//! tools tell, the checker has nothing to say, and every file reads as the kernel reads it.

use crate::inspect::compare;
use crate::kernel::{Attached, Mount, run, shell, try_run, workshop};
use crate::walk::{assert_same, by_kernel, by_us, load};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use varve_block::Sim;
use varve_fs::check::{CheckOptions, Severity, check};
use varve_fs::{Fs, OpenOptions};

/// Profile of data and metadata, and on how many devices.
const PROFILES: [(&str, usize); 9] = [
    ("single", 1),
    ("dup", 1),
    ("raid0", 2),
    ("raid1", 2),
    ("raid1c3", 3),
    ("raid1c4", 4),
    ("raid10", 4),
    ("raid5", 3),
    ("raid6", 4),
];

/// What mkfs.btrfs is asked for beside; of what it does not know, nothing is made.
const FEATURES: [(&str, &str); 7] = [
    ("", ""),
    ("no-holes", "-O ^no-holes"),
    ("block-group-tree", "-O block-group-tree"),
    ("free-space-tree", "-R ^free-space-tree"),
    ("mixed-bg", "-M -n 4096"),
    ("quota", "-R quota"),
    ("squota", "-O squota"),
];

const SUMS: [&str; 4] = ["crc32c", "xxhash", "sha256", "blake2"];
const NODES: [u32; 4] = [4096, 16384, 32768, 65536];

const WORK: &str = "mkdir d; for i in $(seq 60); do seq $i 400 > d/$i; done; \
    head -c 500000 /dev/urandom > noise; cp --reflink=always noise clone; ln noise link; ln -s d sym; \
    truncate -s 3M holes; echo end >> holes; btrfs -q subvolume create sub; cp d/1 sub/; \
    btrfs -q subvolume snapshot -r sub snap; rm d/2*; sync";

fn devices(dir: &Path, count: usize) -> Vec<PathBuf> {
    let disks: Vec<_> = (1..=count).map(|n| dir.join(format!("disk{n}"))).collect();
    for disk in &disks {
        let _ = std::fs::remove_file(disk);
        run("truncate", ["-s", "280M", &disk.to_string_lossy()]);
    }
    disks
}

/// Which features this mkfs.btrfs lists.
fn known() -> String {
    let list = |flag| {
        String::from_utf8_lossy(&try_run("mkfs.btrfs", [flag, "list-all"]).stderr).into_owned()
    };
    format!("{}{}", list("-O"), list("-R"))
}

fn one(dir: &Path, (profile, count): (&str, usize), mkfs: &str) {
    let disks = devices(dir, count);
    shell(
        dir,
        &format!(
            "mkfs.btrfs -q -f -d {profile} -m {profile} {mkfs} disk[1-{count}] >/dev/null 2>&1"
        ),
    );
    let mount = Mount::several(&disks, "");
    shell(mount.path(), WORK);
    drop(mount);
    let theirs = {
        let mount = Mount::several(&disks, "ro");
        by_kernel(mount.path())
    };
    let attached = Attached::new(&disks);
    compare(&disks, 150);
    drop(attached);
    let loaded: Vec<_> = disks.iter().map(|disk| load(disk)).collect();
    let (checked, seen) = Sim::new(1).run(|_| async move {
        let options = CheckOptions { data: true, ..CheckOptions::default() };
        let checked = check(loaded.clone(), &options).await.expect("it opens");
        let fs = Fs::open_devices(loaded, OpenOptions::default()).await.expect("it opens");
        (checked, by_us(&fs).await)
    });
    let errors = checked.findings.iter().filter(|f| f.severity == Severity::Error);
    let errors: Vec<_> = errors.collect();
    assert!(errors.is_empty(), "{profile} {mkfs}: {errors:#?}");
    assert_same(&theirs, &seen);
}

/// All profiles with all features; checksums and node sizes take turns, so that each meets each.
#[test]
fn every_profile_and_feature_is_told_as_the_tools_tell_it() {
    let test = "every_profile_and_feature_is_told_as_the_tools_tell_it";
    let Some(dir) = workshop(test) else { return };
    let known = known();
    let mut met = BTreeSet::new();
    let mut turn = 0;
    for (feature, flags) in FEATURES {
        if !known.contains(feature) {
            println!("{test}: this mkfs.btrfs knows no {feature}");
            continue;
        }
        for profile in PROFILES {
            let (sum, node) = (SUMS[turn % 4], NODES[(turn + turn / 4) % 4]);
            turn += 1;
            let nodes = if feature == "mixed-bg" { String::new() } else { format!("-n {node}") };
            one(dir.path(), profile, &format!("--csum {sum} {nodes} {flags}"));
            met.insert((sum, if feature == "mixed-bg" { 4096 } else { node }));
        }
    }
    println!("{test}: {turn} file systems");
    assert!(turn >= 4 * PROFILES.len());
    assert_eq!(met.len(), SUMS.len() * NODES.len(), "{met:?}");
}
