//! S05, S34: a file system with a log, as a power cut leaves it. What we show without writing is what
//! the kernel shows after it has replayed the log of a copy.

mod hostile;
mod ops;

use crate::kernel::{Mount, run, shell, workshop};
use crate::walk::{Tree, assert_same, by_kernel, by_us, load};
use ops::{Dice, Playground};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use varve_block::Sim;
use varve_fs::{Fs, OpenOptions};

/// The file system as it is at this moment: what is in the page cache of files is lost with the power.
fn cut(image: &Path, name: &str) -> PathBuf {
    let copy = image.with_file_name(name);
    run("cp", [Path::new("--sparse=always"), image, &copy]);
    copy
}

/// Whether there is a log, and the tree as we show it.
fn ours(image: &Path) -> (bool, Tree) {
    let device = load(image);
    Sim::new(1).run(|_| async move {
        let last = OpenOptions { ignore_log: true, ..OpenOptions::default() };
        let committed = Fs::open(device.clone(), last).await.expect("the last commit opens");
        let logged = committed.superblock().log_root.0 != 0;
        let fs = match Fs::open(device, OpenOptions::default()).await {
            Ok(fs) => fs,
            Err(error) => panic!("{}", varve_block::chain(&error)),
        };
        let same = fs.superblock().generation == committed.superblock().generation;
        assert_eq!(same, !logged, "a replay is a transaction of its own");
        (logged, by_us(&fs).await)
    })
}

/// Compares one crash image with what the kernel makes of it, which writes to it. Whether it had a log.
#[track_caller]
fn agree(image: &Path) -> bool {
    let (logged, mut ours) = ours(image);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs();
    let mount = Mount::new(image, "");
    let theirs = by_kernel(mount.path());
    drop(mount);
    // A kernel stamps folders and files that lose names in the replay with its own time.
    for (name, seen) in &theirs {
        let Some(mine) = ours.get_mut(name) else { continue };
        for (their, my) in seen.times.iter().zip(&mut mine.times) {
            if u64::try_from(their.0).is_ok_and(|seconds| seconds >= now) {
                *my = *their;
            }
        }
    }
    assert_same(&theirs, &ours);
    logged
}

/// Makes a file system, lets `fill` work on it, and compares it as it is right after.
fn after(dir: &Path, mkfs: &str, options: &str, fill: &str) -> bool {
    let image = dir.join("disk");
    shell(dir, &format!("rm -f disk; truncate -s 200M disk; mkfs.btrfs -q {mkfs} disk >/dev/null"));
    let mount = Mount::new(&image, &format!("commit=300,{options}"));
    shell(mount.path(), fill);
    let copy = cut(&image, "cut");
    drop(mount);
    agree(&copy)
}

/// Each line: what it is about, and what is done. `sync FILE` is an fsync; `sync` alone commits.
const STORIES: &[(&str, &str)] = &[
    ("new file", "echo old > f; sync; echo new > g; sync g"),
    ("large file", "sync; head -c 9000000 /dev/urandom > f; sync f"),
    (
        "overwritten middle",
        "head -c 900000 /dev/urandom > f; sync
        head -c 50000 /dev/urandom | dd of=f bs=1k seek=100 conv=notrunc status=none; sync f",
    ),
    (
        "inline grows and shrinks",
        "echo a > f; seq 300 > g; sync; seq 300 > f; echo b > g; sync f; sync g",
    ),
    (
        "truncated",
        "seq 100000 > f; seq 100000 > g; sync
        truncate -s 5000 f; truncate -s 3M g; sync f; sync g",
    ),
    (
        "truncated and written again",
        "seq 100000 > f; sync
        truncate -s 0 f; seq 77 > f; sync f; truncate -s 100000 f; sync f",
    ),
    ("holes", "seq 100000 > f; sync; fallocate -p -o 8192 -l 100000 f; sync f"),
    (
        "reserved",
        "seq 1000 > f; sync
        fallocate -n -o 1M -l 1M f; sync f; fallocate -o 0 -l 300000 g; sync g",
    ),
    (
        "reserved and partly written",
        "fallocate -l 1M f; sync
        seq 9000 | dd of=f bs=4k seek=7 conv=notrunc status=none; sync f",
    ),
    ("reflink", "seq 100000 > f; sync; cp --reflink=always f g; sync g; seq 8 >> f; sync f"),
    ("renamed", "mkdir d; seq 10 > old; seq 20 > d/keep; sync; mv old d/renamed; sync d/renamed"),
    ("renamed over another", "seq 10 > a; seq 20 > b; sync; mv a b; sync b"),
    ("renamed folder", "mkdir -p d/e; seq 10 > d/e/f; sync; mv d/e e; seq 11 > e/g; sync e/g"),
    ("names swapped", "seq 10 > a; seq 20 > b; sync; mv a t; mv b a; mv t b; sync a"),
    ("new name for an old one", "seq 10 > a; sync; mv a b; seq 5 > a; sync a"),
    ("linked", "mkdir d; seq 10 > f; sync; ln f g; ln f d/h; sync f"),
    (
        "linked often",
        "mkdir d; seq 10 > f; sync; for i in $(seq 900); do
        ln f d/a-rather-long-name-so-that-one-item-does-not-hold-all-of-them-$i; done; sync f",
    ),
    ("unlinked one of two", "seq 10 > f; ln f g; sync; rm g; sync f"),
    (
        "folder after removals",
        "mkdir d; for i in $(seq 200); do echo $i > d/f$i; done; sync
        rm d/f1?; rm d/f5; seq 9 > d/new; sync d",
    ),
    (
        "folder after all",
        "mkdir d; for i in $(seq 40); do echo $i > d/f$i; done; sync; rm d/*; sync d",
    ),
    (
        "new folders",
        "sync; mkdir -p d/e/f; seq 9 > d/e/f/g; ln -s g d/e/f/l; mkfifo d/e/p; sync d; sync d/e/f/g",
    ),
    (
        "attributes",
        "seq 9 > f; setfattr -n user.a -v 1 f; setfattr -n user.b -v 2 f; sync
        setfattr -n user.a -v 11 f; setfattr -x user.b f; setfattr -n user.c -v 3 f; sync f
        mkdir d; setfattr -n user.d -v 4 d; sync d",
    ),
    (
        "owner, mode, times",
        "seq 9 > f; mkdir d; sync; chown 7:8 f; chmod 4711 f; touch -d 2001-02-03 f
        sync f; chmod 1777 d; chown 9:9 d; sync d",
    ),
    (
        "two subvolumes",
        "btrfs -q subvolume create s; btrfs -q subvolume create t; seq 9 > s/f; sync
        seq 19 > s/f; seq 29 > t/g; seq 39 > h; sync s/f; sync t/g; sync h",
    ),
    (
        "written in place",
        "touch f; chattr +C f; seq 100000 > f; sync
        seq 500 | dd of=f conv=notrunc status=none; seq 9 >> f; sync f",
    ),
    (
        "hard link in a folder that is gone",
        "mkdir d; seq 9 > d/f; ln d/f g; sync; rm d/f; rmdir d; sync g",
    ),
    ("nothing logged but the folder", "mkdir d; sync; seq 9 > d/f; sync d"),
];

fn all_stories(test: &str, mkfs: &str, options: &str) {
    let Some(dir) = workshop(test) else { return };
    let mut logs = 0;
    for (about, fill) in STORIES {
        println!("{about}");
        logs += usize::from(after(dir.path(), mkfs, options, fill));
    }
    assert!(logs * 2 > STORIES.len(), "only {logs} of {} left a log", STORIES.len());
}

#[test]
fn s05_a_log_shows_what_the_kernel_shows_after_its_replay() {
    all_stories("s05_a_log_shows_what_the_kernel_shows_after_its_replay", "", "");
}

#[test]
fn s05_a_log_of_compressed_data_with_holes_as_items_and_small_nodes() {
    let test = "s05_a_log_of_compressed_data_with_holes_as_items_and_small_nodes";
    all_stories(test, "-n 4096 -O ^no-holes --csum xxhash", "compress-force=zstd");
}

/// S34: short sequences of everything, cut after any fsync.
#[test]
fn s34_random_sequences_are_shown_as_the_kernel_replays_them() {
    let test = "s34_random_sequences_are_shown_as_the_kernel_replays_them";
    let Some(dir) = workshop(test) else { return };
    let seeds = match std::env::var("VARVE_SEEDS") {
        Ok(list) => list.split(',').map(|n| n.trim().parse().expect("a seed")).collect(),
        Err(_) => (1..=12).collect::<Vec<u64>>(),
    };
    let image = dir.path().join("disk");
    let (mut logs, mut cuts) = (0, 0);
    for seed in seeds {
        let mut dice = Dice::new(seed);
        let mkfs = ["", "-n 4096", "-O ^no-holes"][dice.below(3)];
        let options = ["", "compress-force=lzo", "max_inline=0"][dice.below(3)];
        let fill = "truncate -s 120M disk; mkfs.btrfs -q -m single";
        shell(dir.path(), &format!("rm -f disk cut-?; {fill} {mkfs} disk >/dev/null"));
        let mount = Mount::new(&image, &format!("commit=300,{options}"));
        let start = "mkdir d e; btrfs -q subvolume create s; mkdir s/d
            for d in . d e s s/d; do echo small > $d/a; seq 9999 > $d/b; ln $d/b $d/c; done; sync";
        shell(mount.path(), start);
        let mut ground = Playground::new(mount.path(), dice);
        let mut copies = Vec::new();
        while copies.len() < 4 && ground.done() < 150 {
            if ground.step() && ground.dice.below(3) == 0 {
                copies.push((cut(&image, &format!("cut-{}", copies.len())), ground.told()));
            }
        }
        drop(mount);
        for (copy, told) in copies {
            println!("seed {seed}, {mkfs} {options}:\n{told}");
            logs += usize::from(agree(&copy));
            cuts += 1;
        }
    }
    println!("{logs} of {cuts} cuts had a log");
    assert!(logs * 3 > cuts, "only {logs} of {cuts} cuts had a log");
}
