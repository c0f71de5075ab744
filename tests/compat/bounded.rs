//! A check needs no more memory where there is more to check: metadata several times as large as what it
//! may take, and a million references.

use std::process::Command;

use varve_tests::loop_mount::{self, LoopMount};
use varve_tests::{disk, process, tool, varve};

/// One file of many extents, and clones of it: each adds as many items and references as the first.
const FILL: &str = r#"
import os
with open("many", "wb") as file:
    for n in range(16000):
        os.pwrite(file.fileno(), n.to_bytes(4, "little") * 1024, n * 8192)
os.sync()
"#;
const CLONES: u32 = 60;

/// Writable memory of its own that the check may take, stacks and all.
const LIMIT_MIB: u64 = 24;

/// Bytes of metadata, as btrfs-progs count them.
fn metadata_bytes(mount: &std::path::Path) -> u64 {
    let mut df = Command::new("btrfs");
    let df = process::run(df.args(["filesystem", "df", "-b"]).arg(mount)).ok();
    let line = df.lines().find(|line| line.starts_with("Metadata")).expect("metadata");
    line.rsplit_once("used=").and_then(|(_, used)| used.parse().ok()).expect("a number")
}

#[test]
fn a_check_of_much_metadata_stays_below_its_bound() {
    if !loop_mount::available() || !tool::have(&["python3", "prlimit"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let image = dir.path().join("disk.img");
    disk::sparse(&image, 2 << 30);
    let mut mkfs = Command::new("mkfs.btrfs");
    process::run(mkfs.args(["-q", "-m", "single"]).arg(&image)).ok();
    let mounted = LoopMount::open(&image, "noatime,nodiscard");
    process::run(Command::new("python3").current_dir(mounted.path()).args(["-c", FILL])).ok();
    let clone = format!("for n in $(seq {CLONES}); do cp --reflink=always many $n; done; sync");
    process::run(Command::new("bash").current_dir(mounted.path()).args(["-ec", &clone])).ok();
    let metadata = metadata_bytes(mounted.path());
    mounted.unmount();
    assert!(metadata > 4 * (LIMIT_MIB << 20), "{metadata} bytes of metadata are too few");

    let check = |mib: u64, data: &[&str]| {
        let mut check = Command::new("prlimit");
        check.arg(format!("--data={}", mib << 20)).arg(varve::binary()).args(["fs", "check"]);
        process::run(check.args(data).arg(&image))
    };
    // Data is read to four buffers, and hashed by a thread for each core, with a stack of 2 MiB.
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    for (limit, data) in [(LIMIT_MIB, &[][..]), (LIMIT_MIB + 8 + 2 * cores, &["--data"])] {
        let out = check(limit, data).ok();
        assert!(out.contains("0 errors"), "{out}");
    }
    let starved = check(6, &[]);
    assert_ne!(starved.code, Some(0), "the limit is one: {starved}");
}
