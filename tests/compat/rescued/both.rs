//! Both tools on the same devices, and what each wrote.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::SeekFrom;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use varve_tests::{process, tool, varve};

/// What is compared at a time; blocks of zeros are holes, however they are kept.
const BLOCK: usize = 4096;
/// Bytes that are read of one file at most; what is behind them counts by its size.
const READ_MAX: u64 = 256 << 20;

/// Whether the reference is here; prints the reason otherwise.
pub(crate) fn available() -> bool {
    let version = Command::new("btrfs").arg("--version").output();
    let known = version.is_ok_and(|out| String::from_utf8_lossy(&out.stdout).contains("v6.2"));
    if !known {
        tool::skip("no btrfs-progs 6.2, which the table speaks of");
    }
    known && tool::have(&["btrfs-image", "xz", "timeout"])
}

/// A regular file: its size, and a sum of what in it is not zero.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Content {
    pub(crate) size: u64,
    sum: [u8; 32],
}

/// Regular files by their path below a folder.
pub(crate) type Files = BTreeMap<Vec<u8>, Content>;

/// What came of both.
#[derive(Debug)]
pub(crate) struct Rescued {
    pub(crate) theirs: Files,
    /// Under their own names: every byte is as its checksum says.
    pub(crate) ours: Files,
    /// Of theirs, those that we have as `NAME.damaged`, and that differ only where we say that bytes
    /// are lost.
    pub(crate) spoiled: Vec<Vec<u8>>,
    /// Of ours, those that we say are old, or have nothing to be verified by.
    pub(crate) unsure: Vec<Vec<u8>>,
}

/// Runs `btrfs restore` and `varve fs export` on the same devices, of which the first is named.
#[track_caller]
pub(crate) fn rescue(dir: &Path, devices: &[PathBuf], snapshots: bool) -> Rescued {
    let folders = ["theirs", "ours"].map(|name| dir.join(name));
    for folder in &folders {
        let _ = std::fs::remove_dir_all(folder);
        std::fs::create_dir(folder).expect("an empty folder");
    }
    let [theirs, ours] = &folders;
    restore(devices, theirs, snapshots);
    let report = export(devices, ours, snapshots);
    let rescued = Rescued {
        theirs: files_below(theirs),
        ours: files_below(ours),
        spoiled: spoiled(theirs, ours, &report),
        unsure: unsure(&report),
    };
    for folder in &folders {
        std::fs::remove_dir_all(folder).expect("taking a folder away");
    }
    rescued
}

/// Images as block devices: btrfs-progs look for the further devices of a file system among those.
pub(crate) struct Loops(pub(crate) Vec<PathBuf>);

impl Loops {
    pub(crate) fn of(images: &[PathBuf]) -> Loops {
        let attach = |image: &PathBuf| {
            let out = process::run(Command::new("losetup").args(["--find", "--show"]).arg(image));
            let device = PathBuf::from(out.ok().trim());
            process::run(Command::new("btrfs").args(["device", "scan"]).arg(&device)).ok();
            device
        };
        Loops(images.iter().map(attach).collect())
    }
}

impl Drop for Loops {
    fn drop(&mut self) {
        for device in &self.0 {
            let mut forget = Command::new("btrfs");
            let _ = forget.args(["device", "scan", "--forget"]).arg(device).output();
            let _ = Command::new("losetup").arg("--detach").arg(device).output();
        }
    }
}

/// Whatever it says or how it ends: what it wrote counts. Further devices are found through the kernel.
fn restore(devices: &[PathBuf], dest: &Path, snapshots: bool) {
    let _others = Loops::of(&devices[1..]);
    let mut restore = Command::new("timeout");
    restore.args(["120", "btrfs", "restore", "-i", "-x", "-m"]);
    if snapshots {
        restore.arg("-s");
    }
    process::run(restore.arg(&devices[0]).arg(dest));
}

/// The report, or nothing where it does not open.
fn export(devices: &[PathBuf], dest: &Path, snapshots: bool) -> Value {
    let mut export = Command::new(varve::binary());
    export.args(["fs", "export", "--json"]).arg(&devices[0]).arg(dest);
    for device in &devices[1..] {
        export.arg("--device").arg(device);
    }
    if !snapshots {
        export.arg("--no-snapshots");
    }
    let out = process::run(&mut export);
    match out.code {
        Some(0 | 1) => serde_json::from_str(&out.stdout).expect("JSON"),
        Some(3) => Value::Null,
        _ => panic!("{out}"),
    }
}

pub(crate) fn files_below(top: &Path) -> Files {
    let mut files = Files::new();
    walk(top, &mut |path, meta| {
        let name = path.strip_prefix(top).expect("below").as_os_str().as_bytes().to_vec();
        files.insert(name, Content { size: meta.len(), sum: sum(path) });
    });
    files
}

fn walk(folder: &Path, see: &mut impl FnMut(&Path, &Metadata)) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let meta = path.symlink_metadata().expect("a status");
        if meta.is_dir() {
            walk(&path, see);
        } else if meta.is_file() {
            see(&path, &meta);
        }
    }
}

/// Offset and bytes of each block that is not all zero, of the first [`READ_MAX`] bytes that are no hole.
fn each_block(file: &File, see: &mut impl FnMut(u64, &[u8])) {
    let mut buf = vec![0; 16 * BLOCK];
    let (mut at, mut read) = (0, 0);
    while let Ok(data) = rustix::fs::seek(file, SeekFrom::Data(at)) {
        let end = rustix::fs::seek(file, SeekFrom::Hole(data)).expect("a hole behind data");
        at = data - data % BLOCK as u64;
        while at < end && read < READ_MAX {
            let got = file.read_at(&mut buf, at).expect("a read");
            if got == 0 {
                break;
            }
            for (n, block) in (0u64..).zip(buf[..got].chunks(BLOCK)) {
                if block.iter().any(|byte| *byte != 0) {
                    see(at + n * BLOCK as u64, block);
                }
            }
            (at, read) = (at + got as u64, read + got as u64);
        }
        at = at.max(end);
        if read >= READ_MAX {
            return;
        }
    }
}

fn sum(path: &Path) -> [u8; 32] {
    let mut sha = Sha256::new();
    each_block(&File::open(path).expect("a file"), &mut |at, block| {
        sha.update(at.to_le_bytes());
        // The last block of a file may end in zeros, or before them.
        let end = block.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        sha.update(&block[..end]);
    });
    sha.finalize().into()
}

fn problems(report: &Value) -> impl Iterator<Item = &Value> {
    report["problems"].as_array().into_iter().flatten()
}

fn unsure(report: &Value) -> Vec<Vec<u8>> {
    let kinds = ["older", "unverified"].map(Value::from);
    let unsure = problems(report).filter(|problem| kinds.contains(&problem["kind"]));
    unsure.map(|problem| problem["path"].as_str().expect("a path").into()).collect()
}

fn spoiled(theirs: &Path, ours: &Path, report: &Value) -> Vec<Vec<u8>> {
    let mut spoiled = Vec::new();
    for problem in problems(report).filter(|problem| problem["kind"] == "damaged") {
        let name = problem["path"].as_str().expect("a path");
        let ranges = problem["ranges"].as_array().expect("ranges").iter();
        let number = |value: &Value| value.as_u64().expect("a number");
        let lost: Vec<(u64, u64)> =
            ranges.map(|range| (number(&range["offset"]), number(&range["length"]))).collect();
        let (their, our) = (theirs.join(name), ours.join(format!("{name}.damaged")));
        if let (Ok(their), Ok(our)) = (File::open(their), File::open(our))
            && within(&their, &our, &lost)
            && within(&our, &their, &lost)
        {
            spoiled.push(name.as_bytes().to_vec());
        }
    }
    spoiled.sort();
    spoiled
}

/// Whether all of `one` that is not zero is the same in `other`, or in a lost range.
fn within(one: &File, other: &File, lost: &[(u64, u64)]) -> bool {
    let mut same = true;
    each_block(one, &mut |at, block| {
        let mut beside = vec![0; block.len()];
        let got = other.read_at(&mut beside, at).expect("a read");
        beside[got..].fill(0);
        let known =
            |n: u64| !lost.iter().any(|(from, len)| (*from..from + len).contains(&(at + n)));
        let differ = (0u64..).zip(block.iter().zip(&beside)).any(|(n, (a, b))| a != b && known(n));
        same &= !differ;
    });
    same
}
