//! A file system that grew on a seed, through every command that looks.

use std::path::Path;
use std::process::Command;

use super::mounted::{self, Ours};
use varve_tests::loop_mount::{self, LoopMount};
use varve_tests::varve::varve;
use varve_tests::{disk, process, tool};

const FILL: &str = r#"
cd "$1"
seed=$(losetup --find --show seed.img); sprout=$(losetup --find --show sprout.img)
trap 'umount mnt 2>/dev/null || true; losetup --detach $seed; losetup --detach $sprout' EXIT
mkfs.btrfs -q $seed; mkdir mnt; mount $seed mnt
mkdir mnt/old; cp noise mnt/old/noise; for i in $(seq 200); do echo $i > mnt/old/$i; done
btrfs -q subvolume create mnt/sub; cp noise mnt/sub/noise
umount mnt; btrfstune -S 1 $seed
mount $seed mnt; btrfs device add -f $sprout mnt; mount -o remount,rw mnt
echo new > mnt/new; echo more >> mnt/old/7; mv mnt/old/8 mnt/eight
btrfs -q subvolume snapshot -r mnt/sub mnt/snap; btrfs filesystem sync mnt
(cd mnt; find . -type f | LC_ALL=C sort | xargs sha256sum) > sums
btrfs filesystem usage -b mnt > usage; umount mnt
mount -o device=$seed $sprout mnt; btrfs send -q -f theirs mnt/snap; umount mnt; rmdir mnt
"#;

#[test]
fn every_command_reads_a_sprout_with_its_seed() {
    if !loop_mount::available() || !tool::have(&["losetup", "btrfstune", "btrfs-image"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path();
    for name in ["seed.img", "sprout.img"] {
        disk::sparse(&dir.join(name), 300 << 20);
    }
    std::fs::write(dir.join("noise"), disk::noise(5, 2 << 20)).expect("a file");
    process::run(Command::new("bash").args(["-euc", FILL, "fill"]).arg(dir)).ok();
    let before = ["seed.img", "sprout.img"].map(|name| disk::sum_file(&dir.join(name)));

    looked_at(dir);
    copied(dir);
    dumped(dir);
    if mounted::available() {
        let ours = Ours::open(
            &dir.join("sprout.img"),
            &["--device", &dir.join("seed.img").display().to_string()],
        );
        assert_eq!(sums(ours.path()), text(dir, "sums"));
    }
    alone(dir);
    for (name, before) in ["seed.img", "sprout.img"].into_iter().zip(before) {
        assert_eq!(disk::sum_file(&dir.join(name)), before, "{name} was written to");
    }
}

fn text(dir: &Path, name: &str) -> String {
    std::fs::read_to_string(dir.join(name)).expect(name)
}

fn sums(dir: &Path) -> String {
    let line = "find . -type f | LC_ALL=C sort | xargs sha256sum";
    process::run(Command::new("bash").current_dir(dir).args(["-ec", line])).ok()
}

fn looked_at(dir: &Path) {
    let told = |line: &str| varve(dir, line).ok();
    let shown = told("fs show sprout.img --device seed.img");
    assert!(shown.contains("Total devices 2") && shown.contains("path seed.img"), "{shown}");
    let usage = told("fs usage sprout.img --device seed.img --json");
    let usage: serde_json::Value = serde_json::from_str(&usage).expect("JSON");
    let theirs = text(dir, "usage");
    let unallocated = theirs.lines().rev().find(|line| line.contains("/dev/loop"));
    let unallocated =
        unallocated.and_then(|line| line.split_whitespace().last()).expect("a number");
    // The kernel's tool leaves seeds out of its sums; each device by itself is the same.
    let devices = usage["devices"].as_array().expect("devices");
    assert_eq!(devices.len(), 2);
    let free = devices.iter().find(|device| device["devid"] == 2).expect("the sprout's");
    let free = free["size"].as_u64().expect("a size") - free["allocated"].as_u64().expect("a size");
    assert_eq!(free.to_string(), unallocated);
    for line in ["fs ls -R", "fs df", "fs csum-report --scan"] {
        let a = told(&format!("{line} sprout.img --device seed.img"));
        assert!(!a.is_empty());
        assert_eq!(a, told(&format!("{line} seed.img --device sprout.img")), "in either order");
    }
    told("fs check --data sprout.img seed.img");
    told("fs check --data seed.img");
    told("fs map sprout.img --device seed.img --svg map.svg");
    assert!(text(dir, "map.svg").contains("<svg"));
    let tree = told("fs dump-tree sprout.img --device seed.img -t chunk");
    assert!(tree.contains("DEV_ITEM"), "{tree}");
    let cat = told("fs cat sprout.img /old/7 --device seed.img");
    assert_eq!(cat, "7\nmore\n");
}

fn copied(dir: &Path) {
    varve(dir, "fs export sprout.img out --device seed.img").ok();
    assert_eq!(sums(&dir.join("out")), text(dir, "sums"));
    varve(dir, "fs send sprout.img /snap --device seed.img --file ours").ok();
    let told = ["ours", "theirs"].map(|name| varve(dir, &format!("fs send-dump {name}")).ok());
    let [ours, theirs] = told.each_ref().map(|told| made(told));
    assert!(ours.1 >= 2 << 20, "{} bytes", ours.1);
    assert_eq!(ours, theirs);
}

/// A dump has no seeds any more: what is in it belongs together, whoever restores it.
fn dumped(dir: &Path) {
    varve(dir, "fs image dump sprout.img --device seed.img -o dump").ok();
    let names = varve(dir, "fs ls -R sprout.img --device seed.img").ok();
    assert_eq!(varve(dir, "fs ls -R dump").ok(), names);
    varve(dir, "fs image restore dump one.img").ok();
    process::run(Command::new("btrfs-image").args(["-r", "dump", "two.img"]).current_dir(dir)).ok();
    for image in ["one.img", "two.img"] {
        assert_eq!(varve(dir, &format!("fs ls -R {image}")).ok(), names);
    }
    // The tool leaves the device extents of several devices where they were, and finds that itself.
    process::run(Command::new("btrfs").args(["check", "one.img"]).current_dir(dir)).ok();
    varve(dir, "fs check one.img").ok();
}

/// What a stream leaves behind: owners, modes and times of each name, and how many bytes were written.
fn made(told: &str) -> (Vec<&str>, u64) {
    let last = ["Chown", "Chmod", "Utimes"];
    let mut names: Vec<_> =
        told.lines().filter(|line| last.iter().any(|word| line.starts_with(word))).collect();
    names.sort_unstable();
    names.dedup();
    let bytes = |line: &str| {
        let (_, rest) = line.split_once("Data=(")?;
        rest.split(' ').next()?.parse::<u64>().ok()
    };
    let written = told.lines().filter(|line| line.starts_with("Write ")).filter_map(bytes).sum();
    (names, written)
}

/// One without the other.
fn alone(dir: &Path) {
    let cat = varve(dir, "fs cat sprout.img /sub/noise");
    assert_ne!(cat.code, Some(0), "{cat}");
    assert!(cat.stderr.contains("of the seed") && cat.stderr.contains("is missing"), "{cat}");
    let shown = varve(dir, "fs show sprout.img");
    assert!(shown.stdout.contains("missing"), "{shown}");
    let exported = varve(dir, "fs export sprout.img half");
    assert_ne!(exported.code, Some(0), "{exported}");
    assert!(exported.stdout.contains("of the seed"), "{exported}");
    let missing =
        sums(&dir.join("half")).lines().filter(|line| line.contains("noise.damaged")).count();
    assert_eq!(missing, 3, "the rest is there");
    let seed = LoopMount::open(&dir.join("seed.img"), "ro");
    let theirs = sums(seed.path());
    seed.unmount();
    varve(dir, "fs export seed.img seed").ok();
    assert_eq!(sums(&dir.join("seed")), theirs);
}
