//! Sprouts: file systems that grew on read-only seeds, which the kernel made.

use crate::inspect::compare;
use crate::kernel::{Attached, Mount, run, shell, try_run, workshop};
use crate::walk::{Tree, assert_same, by_kernel, by_us, load};
use std::path::{Path, PathBuf};
use varve_block::dev::Mem;
use varve_block::{Sim, chain};
use varve_fs::check::{CheckOptions, Checked, Severity, check};
use varve_fs::{Error, Fs, OpenOptions};

const FIRST: &str = "mkdir d; for i in $(seq 150); do seq $i 400 > d/$i; done; \
    head -c 2000000 /dev/urandom > noise; btrfs -q subvolume create sub; cp d/7 sub/; \
    setfattr -n user.a -v b d/1; ln d/1 link; sync";

/// Changes old files in part, shares their data, and leaves most of them where they are.
fn later(round: usize) -> String {
    format!(
        "echo {round} > new{round}; printf x | dd of=noise bs=1 seek={round}00000 conv=notrunc \
         status=none; rm d/3{round}; cp --reflink=always noise clone{round}; \
         btrfs -q subvolume snapshot sub snap{round}; for i in $(seq 40 60); do echo {round} >> d/$i; \
         done; sync"
    )
}

/// The devices of a chain of seeds, oldest first.
struct Lineage {
    dir: PathBuf,
    /// One list for each file system of the chain.
    rounds: Vec<Vec<PathBuf>>,
}

impl Lineage {
    /// A file system on `count` devices, of which a seed is made.
    fn new(dir: &Path, mkfs: &str, count: usize, size: &str) -> Lineage {
        let mut lineage = Lineage { dir: dir.to_path_buf(), rounds: Vec::new() };
        let disks = lineage.disks(count, size);
        let names: Vec<_> = disks.iter().map(|disk| disk.to_string_lossy()).collect();
        shell(dir, &format!("mkfs.btrfs -q -f {mkfs} {} >/dev/null 2>&1", names.join(" ")));
        lineage.rounds.push(disks);
        lineage.work("", FIRST);
        lineage
    }

    fn disks(&self, count: usize, size: &str) -> Vec<PathBuf> {
        let round = self.rounds.len();
        let disk = |n| self.dir.join(format!("disk{round}{n}"));
        let disks: Vec<_> = (0..count).map(disk).collect();
        for disk in &disks {
            run("truncate", ["-s", size, &disk.to_string_lossy()]);
        }
        disks
    }

    /// Every device; those of the newest file system come first, as `mount` wants it.
    fn all(&self) -> Vec<PathBuf> {
        self.rounds.iter().rev().flatten().cloned().collect()
    }

    fn work(&self, options: &str, work: &str) {
        let mount = Mount::several(&self.all(), options);
        shell(mount.path(), work);
        drop(mount);
    }

    /// Sets the seeding flag, or takes it away.
    fn seeding(&self, on: bool) {
        let devices = Attached::writable(&self.all());
        run("btrfstune", ["-f", "-S", if on { "1" } else { "0" }, &devices.0[0]]);
    }

    /// Makes a seed of what there is, and lets a file system grow on it over `count` further devices.
    fn grow(&mut self, count: usize, size: &str, work: &str) {
        self.seeding(true);
        let disks = self.disks(count, size);
        let devices = Attached::writable(&disks);
        // The first makes it writable, which is what the others need.
        let (first, more) = devices.0.split_first().expect("a device");
        let more: String = more.iter().map(|d| format!("btrfs device add -f {d} .; ")).collect();
        let add = format!("btrfs device add -f {first} .; mount -o remount,rw .; {more}{work}");
        self.work("", &add);
        drop(devices);
        self.rounds.push(disks);
    }

    fn theirs(&self) -> Tree {
        let mount = Mount::several(&self.all(), "ro");
        by_kernel(mount.path())
    }

    fn loaded(&self) -> Vec<Mem> {
        self.all().iter().map(|disk| load(disk)).collect()
    }
}

type Seen = (Tree, Vec<String>);

fn ours(devices: Vec<Mem>) -> Result<Seen, Error> {
    Sim::new(1).run(|_| async move {
        let fs = Fs::open_devices(devices, OpenOptions::default()).await?;
        Ok((by_us(&fs).await, fs.warnings().to_vec()))
    })
}

/// How many; what mkfs left in the free space tree harms nobody, and is a warning.
fn errors(devices: Vec<Mem>) -> usize {
    let findings = checked(devices).expect("it opens").findings;
    let errors: Vec<_> = findings.iter().filter(|f| f.severity == Severity::Error).collect();
    errors.iter().for_each(|error| println!("{}", error.message));
    errors.len()
}

fn checked(devices: Vec<Mem>) -> Result<Checked, Error> {
    Sim::new(1).run(|_| async move {
        let options = CheckOptions { data: true, all_copies: true, ..CheckOptions::default() };
        check(devices, &options).await
    })
}

/// Everything is equal, whatever the order of the devices; and nobody has anything to say.
fn round(lineage: &Lineage, least: usize) {
    let theirs = lineage.theirs();
    let mut devices = lineage.loaded();
    for _ in 0..devices.len() {
        devices.rotate_left(1);
        let (tree, warnings) = ours(devices.clone()).expect("it opens");
        assert_same(&theirs, &tree);
        assert_eq!(warnings, [""; 0]);
    }
    assert_eq!(errors(devices), 0);
    let all = lineage.all();
    let _attached = Attached::new(&all);
    run("btrfs", ["check", "--check-data-csum", &all[0].to_string_lossy()]);
    compare(&all, least);
}

#[test]
fn a_sprout_is_read_as_the_kernel_reads_it() {
    let Some(dir) = workshop("a_sprout_is_read_as_the_kernel_reads_it") else { return };
    for (name, mkfs) in [("plain", "-n 4k"), ("old", "-n 16k -m single --csum xxhash -O ^no-holes")]
    {
        let dir = dir.path().join(name);
        std::fs::create_dir(&dir).expect("a folder");
        let mut lineage = Lineage::new(&dir, mkfs, 1, "300M");
        lineage.grow(1, "320M", &later(1));
        round(&lineage, 300);
        // The seed by itself is what it was.
        let seed = Lineage { dir, rounds: vec![lineage.rounds[0].clone()] };
        round(&seed, 300);
    }
}

#[test]
fn a_seed_of_a_seed_is_read_with_all_of_them() {
    let Some(dir) = workshop("a_seed_of_a_seed_is_read_with_all_of_them") else { return };
    let mut lineage = Lineage::new(dir.path(), "-n 4k", 1, "300M");
    lineage.grow(1, "320M", &later(1));
    lineage.grow(2, "310M", &later(2));
    round(&lineage, 300);
    // The middle one, which is a seed and a sprout.
    let middle = Lineage { dir: lineage.dir.clone(), rounds: lineage.rounds[..2].to_vec() };
    round(&middle, 300);
}

#[test]
fn a_mirrored_seed_is_read_without_either_half() {
    let Some(dir) = workshop("a_mirrored_seed_is_read_without_either_half") else { return };
    let mut lineage = Lineage::new(dir.path(), "-n 4k -m raid1 -d raid1", 2, "300M");
    lineage.grow(2, "320M", &later(1));
    round(&lineage, 300);
    let theirs = lineage.theirs();
    for gone in 0..2 {
        let devices = lineage.all().into_iter().filter(|disk| *disk != lineage.rounds[0][gone]);
        let (tree, warnings) = ours(devices.map(|disk| load(&disk)).collect()).expect("it opens");
        assert_same(&theirs, &tree);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        let said = format!("device {}, of the seed ", gone + 1);
        let named = warnings[0].starts_with(&said) && warnings[0].ends_with("is missing");
        assert!(named, "{warnings:?}");
    }
}

#[test]
fn seeds_that_are_missing_changed_or_strange_are_named() {
    let Some(dir) = workshop("seeds_that_are_missing_changed_or_strange_are_named") else { return };
    let place = |name: &str| {
        let dir = dir.path().join(name);
        std::fs::create_dir(&dir).expect("a folder");
        dir
    };
    let mut lineage = Lineage::new(&place("a"), "-n 4k", 1, "300M");
    lineage.grow(1, "320M", &later(1));
    let other = Lineage::new(&place("b"), "-n 4k", 1, "300M");
    let [sprout, seed] = &lineage.loaded()[..] else { panic!("two devices") };
    let fsid = |mem: &Mem| {
        let mut fsid = [0; 16];
        mem.peek(65536 + 32, &mut fsid);
        varve_fs::format::Uuid::from_bytes(fsid).to_string()
    };

    // Without the seed what is only there cannot be read, and it is said which seed is wanted.
    let wanted = format!("device 1, of the seed {}, is missing", fsid(seed));
    let alone = noise(vec![sprout.clone()]);
    assert!(alone.contains(&wanted), "{alone}");
    assert_eq!(noise(vec![sprout.clone(), seed.clone()]), "");

    // A seed that this file system knows nothing of, and one that is no seed.
    for flag in [true, false] {
        other.seeding(flag);
        let all = vec![sprout.clone(), seed.clone(), load(&other.all()[0])];
        let error = ours(all.clone()).expect_err("a strange device").to_string();
        assert!(error.contains("belongs to another file system"), "{error}");
        let error = checked(all).expect_err("a strange device").to_string();
        assert!(error.contains("belongs to another file system"), "{error}");
    }

    // A seed that was written to after all: the kernel does not want it either.
    let seed = lineage.rounds[0][0].clone();
    let was = Lineage { dir: lineage.dir.clone(), rounds: vec![vec![seed.clone()]] };
    was.seeding(false);
    was.work("", "echo changed > d/1; sync");
    was.seeding(true);
    let mounted = {
        let all = Attached::writable(&lineage.all());
        let dir = dir.path().join("c");
        std::fs::create_dir(&dir).expect("a folder");
        let dir = dir.to_string_lossy().into_owned();
        let device = format!("device={}", all.0[1]);
        let out = try_run("mount", ["-t", "btrfs", "-o", &device, &all.0[0], &dir]);
        let _ = try_run("umount", [&dir]);
        out.status.success()
    };
    assert!(!mounted, "the kernel takes a changed seed");
    let changed = noise(vec![sprout.clone(), load(&seed)]);
    assert!(changed.contains("is left out: its generation is"), "{changed}");
    assert!(changed.contains(&wanted), "{changed}");
}

/// Why a file that is mostly the seed's cannot be read, with every warning; nothing if it can be.
fn noise(devices: Vec<Mem>) -> String {
    Sim::new(1).run(|_| async move {
        let read = async {
            let fs = Fs::open_devices(devices, OpenOptions::default()).await?;
            let id = fs.lookup(b"/noise").await?;
            let read = fs.read(id, 0, 2_000_000).await.map(|_| String::new());
            let warnings = fs.warnings().join("; ");
            Ok(read.unwrap_or_else(|error| format!("{warnings}; {}", chain(&error))))
        };
        read.await.unwrap_or_else(|error: Error| chain(&error))
    })
}

/// Damage on the seed's device is found by both, and in the same blocks.
#[test]
fn damage_on_a_seed_is_found() {
    let Some(dir) = workshop("damage_on_a_seed_is_found") else { return };
    let mut lineage = Lineage::new(dir.path(), "-n 4k -m single", 1, "300M");
    lineage.grow(1, "320M", &later(1));
    let seed = load(&lineage.rounds[0][0]);
    let (fsid, tree) = (&mut [0; 16], 5u64.to_le_bytes());
    seed.peek(65536 + 32, fsid);
    // Which of them the sprout still uses is not known here: all are spoilt.
    for at in (1 << 20..300 << 20).step_by(4096) {
        let mut block = [0; 128];
        seed.peek(at, &mut block);
        if block[32..48] == *fsid && block[88..96] == tree && block[100] == 0 {
            seed.poke(at + 300, b"damage");
        }
    }
    let mut damaged = vec![0; 300 << 20];
    seed.peek(0, &mut damaged);
    std::fs::write(&lineage.rounds[0][0], damaged).expect("a file");
    let all = lineage.all();
    let _attached = Attached::new(&all);
    let theirs = try_run("btrfs", ["check", &all[0].to_string_lossy()]);
    assert!(!theirs.status.success());
    assert!(errors(lineage.loaded()) > 0);
}
