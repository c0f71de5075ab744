//! Disks that the running kernel fills, and one kind of damage to each.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use varve_block::dev::{FileDevice, FileOptions};
use varve_block::rt::{self, Config};
use varve_fs::format::chunk::GroupFlags;
use varve_fs::{ChunkMap, Fs, Logical, OpenOptions};
use varve_tests::loop_mount::LoopMount;
use varve_tests::{disk, loop_mount, process, tool};

use super::both::{self, Files, Loops};
use super::table::Line;

pub(crate) fn available() -> bool {
    loop_mount::available() && tool::have(&["losetup"])
}

/// 1200 files of up to 28000 bytes, the shortest in the tree itself; compressible ones; a hole. Everything is
/// in the commit before the last, but for one file.
const FILL: &str = r#"
for d in $(seq 30); do
    mkdir d$d
    for f in $(seq 40); do head -c $((f * 700)) /dev/urandom > d$d/f$f; done
done
mkdir packed; for n in $(seq 20); do seq $((n * 4000)) > packed/$n; done
truncate -s 1T sparse; printf middle | dd of=sparse bs=1 seek=500G conv=notrunc status=none
sync
head -c 9000 /dev/urandom > late
sync
"#;

/// New inode items for old files.
const TOUCH: &str = "find . -type f -exec touch {} +; sync";

/// A third stays as it is, a third is written anew, and a third is gone or called otherwise. What was freed is
/// used again.
const CHANGE: &str = r#"
for d in $(seq 10); do for f in d$d/*; do head -c 9000 /dev/urandom > $f; done; done
rm -r d11 d12 d13 d14 d15; rm d16/* d17/* d18/f1*
for f in d19/*; do mv $f $f-moved; done; mv d20 d20-moved
sync
for n in $(seq 300); do head -c 20000 /dev/urandom > new$n; done
sync
"#;

/// Fsynced, and not committed.
const LOGGED: &str = r#"
mkdir log; for n in $(seq 5); do head -c 9000 /dev/urandom | dd of=log/$n conv=fsync status=none; done
"#;

/// A disk, and what is done to it.
pub(crate) struct Damage {
    name: &'static str,
    mkfs: &'static [&'static str],
    devices: usize,
    /// Done after the fill.
    then: &'static str,
    /// Done after that; the disk is then taken as it is, without an unmount.
    cut_after: Option<&'static str>,
    harm: fn(&Disk),
}

pub(crate) fn every_damage() -> Vec<Damage> {
    let of =
        |name, mkfs, devices, harm| Damage { name, mkfs, devices, then: "", cut_after: None, harm };
    let dup: &[_] = &["-m", "dup", "-n", "4k"];
    let single: &[_] = &["-m", "single", "-n", "4k"];
    let raid1: &[_] = &["-m", "raid1", "-d", "raid1"];
    vec![
        of("dup-metadata-one-copy-lost", dup, 1, |disk| disk.lose_copy(METADATA, 0, 1)),
        of("dup-metadata-each-half-lost", dup, 1, |disk| {
            disk.lose_copy(METADATA, 0, 2);
            disk.lose_other_copy(METADATA, 1, 2);
        }),
        of("raid1-metadata-one-copy-lost", raid1, 2, |disk| disk.lose_copy(METADATA, 0, 1)),
        of("raid1-data-one-copy-rotten", raid1, 2, |disk| disk.lose_copy(GroupFlags::DATA, 0, 1)),
        of("single-data-rotten", dup, 1, |disk| disk.lose_copy(GroupFlags::DATA, 0, 1)),
        of("super-first-lost", dup, 1, |disk| disk.poke(0, 65_536 + 70)),
        of("fs-root-lost", dup, 1, |disk| disk.lose_root("fs")),
        of("root-tree-root-lost", dup, 1, |disk| disk.lose_root("root")),
        of("fs-leaves-lost", single, 1, LEAVES),
        of("fs-nodes-lost", single, 1, |disk| {
            disk.lose_blocks("fs", |n, level| level == 1 && n % 3 == 1);
        }),
        Damage { then: TOUCH, ..of("fs-leaves-lost-after-touch", single, 1, LEAVES) },
        Damage { then: CHANGE, ..of("fs-leaves-lost-after-changes", single, 1, LEAVES) },
        of("csum-root-lost", dup, 1, |disk| disk.lose_root("csum")),
        of("chunk-root-lost", dup, 1, |disk| disk.lose_root("chunk")),
        of("raid1-chunk-root-lost", raid1, 2, |disk| disk.lose_root("chunk")),
        of("extent-root-lost", dup, 1, |disk| disk.lose_root("extent")),
        Damage { cut_after: Some(LOGGED), ..of("log-not-replayed", dup, 1, |_| ()) },
    ]
}

const METADATA: GroupFlags = GroupFlags::METADATA;
const LEAVES: fn(&Disk) = |disk| disk.lose_blocks("fs", |n, level| level == 0 && n % 7 == 3);

impl Damage {
    /// Makes the disk, harms it, and lets both tools look at it.
    pub(crate) fn rescue(self) -> Line {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let names = ["a", "b"].iter().take(self.devices);
        let images: Vec<PathBuf> = names.map(|name| dir.path().join(name)).collect();
        for image in &images {
            disk::sparse(image, 300 << 20);
        }
        let mut mkfs = Command::new("mkfs.btrfs");
        process::run(mkfs.arg("-q").args(self.mkfs).args(&images)).ok();
        let truth = self.fill(&images);
        let disk = Disk { images, _dir: dir };
        (self.harm)(&disk);
        let work = tempfile::tempdir().expect("a temporary folder");
        let line = Line::known(self.name, &truth, &both::rescue(work.path(), &disk.images, true));
        println!("{line}");
        line
    }

    /// What is on it then.
    fn fill(&self, images: &[PathBuf]) -> Files {
        let others = Loops::of(&images[1..]);
        // A block that was freed keeps its bytes; nothing is committed but by `sync`.
        let mut options = "noatime,nodiscard,commit=3000,compress=zstd".to_owned();
        for device in &others.0 {
            options += &format!(",device={}", device.display());
        }
        let mounted = LoopMount::open(&images[0], &options);
        let work = |script: &str| {
            let mut shell = Command::new("bash");
            process::run(shell.current_dir(mounted.path()).args(["-euc", script])).ok();
        };
        work(FILL);
        work(self.then);
        let Some(script) = self.cut_after else {
            let truth = both::files_below(mounted.path());
            mounted.unmount();
            return truth;
        };
        work(script);
        let cut = images[0].with_extension("cut");
        let copy =
            process::run(Command::new("cp").arg("--sparse=always").arg(&images[0]).arg(&cut));
        copy.ok();
        let truth = both::files_below(mounted.path());
        mounted.unmount();
        std::fs::rename(cut, &images[0]).expect("the disk as it was");
        truth
    }
}

/// The images of one file system.
pub(crate) struct Disk {
    images: Vec<PathBuf>,
    _dir: TempDir,
}

impl Disk {
    fn chunks(&self) -> ChunkMap {
        let images = self.images.clone();
        let chunks = rt::run(Config::default(), move |rt| async move {
            let mut devices = Vec::new();
            for image in images {
                let options = FileOptions { read_only: true, ..FileOptions::default() };
                devices.push(FileDevice::open(&rt, &image, options).await.expect("an image"));
            }
            let fs = Fs::open_devices(devices, OpenOptions::default()).await.expect("it opens");
            fs.chunks()
        });
        chunks.expect("a lane")
    }

    /// Spoils some bytes of a sector.
    fn poke(&self, device: usize, at: u64) {
        disk::damage(&self.images[device], at, b"lost");
    }

    /// One in `of` of all 4096 bytes of copy `copy` in these groups.
    fn lose_copy(&self, groups: GroupFlags, copy: usize, of: usize) {
        self.lose(groups, copy, |n| n % of == 0);
    }

    /// The others.
    fn lose_other_copy(&self, groups: GroupFlags, copy: usize, of: usize) {
        self.lose(groups, copy, |n| n % of != 0);
    }

    fn lose(&self, groups: GroupFlags, copy: usize, which: impl Fn(usize) -> bool) {
        for (_, chunk) in self.chunks().iter().filter(|(_, c)| c.flags.intersects(groups)) {
            let stripe = &chunk.stripes[copy];
            let device = usize::try_from(stripe.devid - 1).expect("a device");
            let blocks = (stripe.offset..stripe.offset + chunk.length).step_by(4096);
            for (_, at) in blocks.enumerate().filter(|(n, _)| which(*n)) {
                self.poke(device, at + 209);
            }
        }
    }

    /// Every copy of the blocks of a tree that `which` chooses by their place in it and level.
    fn lose_blocks(&self, tree: &str, which: impl Fn(usize, u8) -> bool) {
        let chunks = self.chunks();
        let blocks = blocks(&self.images[0], tree);
        let lost = blocks.iter().enumerate().filter(|(n, (_, level))| which(*n, *level));
        let mut copies = 0;
        for (_, (at, _)) in lost {
            for copy in chunks.map(Logical(*at), 1).expect("an address").copies {
                let device = usize::try_from(copy.devid - 1).expect("a device");
                self.poke(device, copy.byte + 209);
                copies += 1;
            }
        }
        assert!(copies > 0, "nothing of tree {tree} was lost");
    }

    /// Every copy of the newest root of a tree.
    fn lose_root(&self, tree: &str) {
        let level = blocks(&self.images[0], tree).iter().map(|(_, level)| *level).max();
        self.lose_blocks(tree, |_, here| Some(here) == level);
    }
}

/// Address and level of every block of a tree, as btrfs-progs tell them, nodes before what is below them.
fn blocks(image: &Path, tree: &str) -> Vec<(u64, u8)> {
    let mut dump = Command::new("btrfs");
    dump.args(["inspect-internal", "dump-tree", "--bfs", "-t", tree]).arg(image);
    let dump = process::run(&mut dump).ok();
    let mut blocks = Vec::new();
    for line in dump.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |n: usize| words.get(n).and_then(|word| word.parse::<u64>().ok());
        // Each block has two lines: its items or level, and its flags.
        let level = match (line.split(' ').next(), words.get(2)) {
            (Some("leaf"), Some(&"items")) => Some(0),
            (Some("node"), Some(&"level")) => number(3),
            _ => None,
        };
        let level = level.and_then(|level| u8::try_from(level).ok());
        blocks.extend(number(1).zip(level));
    }
    blocks
}
