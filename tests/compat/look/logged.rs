//! S05, S06: a disk whose last commit is older than its last fsync, and a log that is damaged.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use super::mounted::{self, Ours};
use varve_tests::loop_mount::{self, LoopMount};
use varve_tests::varve::varve;
use varve_tests::{disk, process};

/// Offsets in a superblock, which is at 64 KiB, and in a tree block's header.
const SUPER: usize = 65536;
const GENERATION: usize = 0x48;
const LOG_ROOT: usize = 0x60;
const OWNER: usize = 88;
const BLOCK_GENERATION: usize = 80;
const ROOT_TREE: u64 = 1;
const TREE_LOG: u64 = u64::MAX - 5;

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// A folder with `disk.img`, as it is right after an fsync: committed is `d/was`, fsynced are `d/new` and that `was`
/// is `is` now. Before that, `more` was done with the file system. Now and then the kernel makes a whole commit
/// of an fsync; then it is asked again. `None`: nothing here can make one.
fn cut(more: &str) -> Option<tempfile::TempDir> {
    if !loop_mount::available() {
        return None;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    assert!((0..30).any(|_| is_cut(dir.path(), more)), "every fsync became a commit");
    Some(dir)
}

/// Whether the last commit is older than the fsyncs.
fn is_cut(dir: &Path, more: &str) -> bool {
    let image = dir.join("mounted.img");
    let _ = std::fs::remove_file(&image);
    disk::sparse(&image, 256 << 20);
    process::run(Command::new("mkfs.btrfs").args(["-q"]).arg(&image)).ok();
    let mounted = LoopMount::open(&image, "commit=300");
    // The first data of a file system makes it commit: that is done before. In one go: the kernel has
    // reasons of its own to commit a little later.
    let fill = format!(
        "cd \"$1\"; seq 70000 > warm; mkdir d; seq 9 > d/was; {more} sync
        od -An -tu8 -j {at} -N 8 \"$2\"
        seq 70000 > d/new; sync d/new; mv d/was d/is; sync d",
        at = SUPER + GENERATION,
    );
    let mut bash = Command::new("bash");
    bash.args(["-euc", &fill, "fill"]).arg(mounted.path()).arg(&image);
    let committed = process::run(&mut bash).ok();
    let copy = dir.join("disk.img");
    process::run(Command::new("cp").arg("--sparse=always").arg(&image).arg(&copy)).ok();
    mounted.unmount();
    committed.trim() == generation(&copy).to_string() && number_at(&copy, LOG_ROOT) != 0
}

/// Spoils every copy of the blocks of one tree, as far as `generation` wrote them.
fn spoil(image: &Path, tree: u64, generation: u64) -> usize {
    let bytes = std::fs::read(image).expect("an image");
    let fsid = &bytes[SUPER + 0x20..SUPER + 0x30];
    let mut spoilt = 0;
    for at in (0..bytes.len() - 4096).step_by(4096).filter(|at| *at != SUPER) {
        let block = &bytes[at..at + 4096];
        let is_block = &block[0x20..0x30] == fsid && number(block, OWNER) == tree;
        if is_block && number(block, BLOCK_GENERATION) == generation {
            disk::damage(image, at as u64 + 200, b"spoilt");
            spoilt += 1;
        }
    }
    spoilt
}

fn generation(image: &Path) -> u64 {
    number_at(image, GENERATION)
}

/// A field of the superblock.
fn number_at(image: &Path, field: usize) -> u64 {
    let file = std::fs::File::open(image).expect("an image");
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, (SUPER + field) as u64).expect("a superblock");
    u64::from_le_bytes(bytes)
}

#[test]
fn s05_a_log_is_shown_without_writing_and_can_be_left_out() {
    let Some(dir) = cut("") else { return };
    let dir = dir.path();
    let image = dir.join("disk.img");
    let before = disk::sum_file(&image);
    let committed = generation(&image);

    assert_eq!(varve(dir, "fs ls -R disk.img").ok(), "warm\nd\nd/new\nd/is\n");
    let seq: String = (1..=70000).map(|n| format!("{n}\n")).collect();
    assert!(varve(dir, "fs cat disk.img /d/new").ok() == seq, "other bytes");
    let found = varve(dir, "fs inode-resolve disk.img 259").ok();
    assert!(found.contains("d/is"), "{found}");
    varve(dir, "fs export disk.img out").ok();
    assert_eq!(std::fs::read_to_string(dir.join("out/d/new")).expect("the copy"), seq);

    let old = varve(dir, "fs ls -R disk.img --nologreplay");
    assert!(old.stderr.contains("fsynced"), "{old}");
    assert_eq!(old.ok(), "warm\nd\nd/was\n");
    varve(dir, "fs export disk.img last --nologreplay").ok();
    assert!(dir.join("last/d/was").exists() && !dir.join("last/d/new").exists());
    assert_eq!(disk::sum_file(&image), before, "the image was written to");

    // The log cannot be read: refused, and what is without it can be had.
    assert!(spoil(&image, TREE_LOG, committed + 1) > 0, "no block of a log");
    let before = disk::sum_file(&image);
    let refused = varve(dir, "fs ls disk.img").exits_with(3);
    assert!(refused.contains("--nologreplay") && refused.contains("log"), "{refused}");
    assert_eq!(varve(dir, "fs ls -R disk.img --nologreplay").ok(), "warm\nd\nd/was\n");
    // A rescue says so and takes what there is.
    let rescued = varve(dir, "fs export disk.img rescued");
    assert!(rescued.stderr.contains("--nologreplay"), "{rescued}");
    assert_eq!(rescued.code, Some(1), "{rescued}");
    assert!(dir.join("rescued/d/was").exists());
    assert_eq!(disk::sum_file(&image), before, "the image was written to");
}

/// A stream is of a read-only snapshot, of which no log tells anything: it is the same either way, and
/// can be had where the log cannot be read.
#[test]
fn s05_a_stream_is_the_same_with_the_log_and_without() {
    let more =
        "btrfs -q subvolume create sub; seq 5000 > sub/f; btrfs -q subvolume snapshot -r sub snap;";
    let Some(dir) = cut(more) else { return };
    let dir = dir.path();
    let image = dir.join("disk.img");
    let committed = generation(&image);
    varve(dir, "fs send disk.img /snap --file with").ok();
    varve(dir, "fs send disk.img /snap --file without --nologreplay").ok();
    let stream = std::fs::read(dir.join("with")).expect("a stream");
    assert!(stream == std::fs::read(dir.join("without")).expect("a stream"), "other streams");
    let told = varve(dir, "fs send-dump with").ok();
    assert!(told.contains("snap") && told.contains("Write"), "{told}");

    assert!(spoil(&image, TREE_LOG, committed + 1) > 0, "no block of a log");
    let before = disk::sum_file(&image);
    let refused = varve(dir, "fs send disk.img /snap --file not").exits_with(3);
    assert!(refused.contains("--nologreplay"), "{refused}");
    assert!(!dir.join("not").exists(), "half a stream");
    varve(dir, "fs send disk.img /snap --file spoilt --nologreplay").ok();
    assert!(stream == std::fs::read(dir.join("spoilt")).expect("a stream"), "other streams");
    assert_eq!(disk::sum_file(&image), before, "the image was written to");
}

#[test]
fn s05_a_mount_shows_the_log_or_leaves_it_out() {
    if !mounted::available() {
        return;
    }
    let Some(dir) = cut("") else { return };
    let dir = dir.path();
    let image = dir.join("disk.img");
    let committed = generation(&image);
    let before = disk::sum_file(&image);
    let names = |ours: &Ours| {
        let find = "find . -mindepth 1 -printf '%P\\n' | LC_ALL=C sort | tr '\\n' ' '";
        process::run(Command::new("bash").current_dir(ours.path()).args(["-ec", find])).ok()
    };
    for (flags, seen) in [(&[][..], "d d/is d/new warm "), (&["--nologreplay"], "d d/was warm ")] {
        let ours = Ours::open(&image, flags);
        assert_eq!(names(&ours), seen, "{flags:?}");
        ours.interrupt();
        assert_eq!(
            ours.ends().contains("fsynced"),
            !flags.is_empty(),
            "it is said what is not shown"
        );
    }
    assert_eq!(disk::sum_file(&image), before, "a mount wrote to the image");

    assert!(spoil(&image, TREE_LOG, committed + 1) > 0, "no block of a log");
    let refused = varve(dir, "fs mount disk.img .").exits_with(3);
    assert!(refused.contains("--nologreplay"), "{refused}");
    let ours = Ours::open(&image, &["--nologreplay"]);
    assert_eq!(names(&ours), "d d/was warm ");
}

#[test]
fn s06_a_log_is_forgotten_while_other_trees_are_broken() {
    let Some(dir) = cut("") else { return };
    let dir = dir.path();
    let image = dir.join("disk.img");
    let committed = generation(&image);
    let told = varve(dir, "fs log list disk.img").ok();
    assert!(told.contains("d/new"), "{told}");
    assert!(spoil(&image, ROOT_TREE, committed) > 0, "no block of the root tree");
    let before = disk::sum_file(&image);
    varve(dir, "fs ls disk.img").exits_with(3);
    varve(dir, "fs rescue zero-log disk.img").exits_with(2); // asks, and nobody is there
    assert_eq!(disk::sum_file(&image), before, "written without leave");
    varve(dir, "fs rescue zero-log disk.img --yes").ok();
    let after = disk::sum_file(&image);
    assert_ne!(after, before);
    assert_eq!(varve(dir, "fs log list disk.img").ok(), "the log is empty\n");
    varve(dir, "fs rescue undo disk.img.undo disk.img").ok();
    assert_eq!(disk::sum_file(&image), before, "an undo gives the old bytes");
}
