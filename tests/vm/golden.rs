//! Fresh pairs: bcache + LUKS + btrfs as Debian's kernel 6.12 writes them, cut off in the middle, in
//! the shapes that the archived pairs do not have.

use std::path::Path;

use varve_tests::disk::{self, Expect, Pair};
use varve_tests::golden;
use varve_tests::vm::Vm;

use crate::{LIMIT, vm};

/// One shape of pair; the fields are those of `guest/make-pair.sh`.
struct Shape {
    name: &'static str,
    /// MiB
    hdd: u64,
    /// MiB
    ssd: u64,
    bucket: &'static str,
    block: &'static str,
    mode: &'static str,
    luks: &'static str,
    sector: &'static str,
    mkfs: &'static str,
}

impl Shape {
    /// Makes the pair in one guest, which loses its power, and reads it in another.
    fn make(&self, vm: &Vm) -> Pair {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (hdd, ssd) = (dir.path().join("hdd.img"), dir.path().join("ssd.img"));
        let key = dir.path().join("key");
        disk::sparse(&hdd, self.hdd << 20);
        disk::sparse(&ssd, self.ssd << 20);
        std::fs::write(&key, "varve-image").expect("a key file");
        let made = vm
            .guest_script(
                "make-pair.sh",
                &[
                    ("BUCKET", self.bucket),
                    ("BLOCK", self.block),
                    ("MODE", self.mode),
                    ("LUKS", self.luks),
                    ("SECTOR", self.sector),
                    ("MKFS", self.mkfs),
                    ("SCALE", "2"),
                    ("SMALL", "no"),
                ],
            )
            .file("key", &key)
            .disk(&hdd)
            .disk(&ssd)
            .run(LIMIT);
        assert_eq!(made.code, None, "{}: no power cut: {made}", self.name);
        assert!(!made.file("made").is_empty(), "{}: cut too early: {made}", self.name);
        let expect = read_in_guest(vm, &hdd, &ssd, Some(&key), self.luks, "btrfs");
        assert!(expect.files.len() > 100, "{}: the kernel sees too few files", self.name);
        Pair::made(self.name, expect, dir)
    }
}

/// What a kernel sees on a pair; the images stay as they are.
pub(crate) fn read_in_guest(
    vm: &Vm,
    hdd: &Path,
    ssd: &Path,
    key: Option<&Path>,
    luks: &str,
    fs: &str,
) -> Expect {
    let job = vm.guest_script("read-pair.sh", &[("LUKS", luks), ("FS", fs)]);
    let job = match key {
        Some(key) => job.file("key", key),
        None => job,
    };
    let out = job.disk(hdd).disk(ssd).snapshot().run(LIMIT);
    out.ok();
    Expect::parse(&out.file("expect.txt"))
}

#[test]
fn writeback_with_luks2_and_4k_blocks() {
    let Some(vm) = vm() else { return };
    let pair = Shape {
        name: "writeback, luks2",
        hdd: 144,
        ssd: 40,
        bucket: "64k",
        block: "4k",
        mode: "writeback",
        luks: "luks2",
        sector: "4096",
        mkfs: "",
    }
    .make(&vm);
    assert_eq!(pair.expect.state, "dirty");
    golden::reads_as_the_kernel_says(&pair);
}

#[test]
fn writethrough_with_luks1_and_512_byte_blocks() {
    let Some(vm) = vm() else { return };
    let pair = Shape {
        name: "writethrough, luks1",
        hdd: 144,
        ssd: 40,
        bucket: "64k",
        block: "512",
        mode: "writethrough",
        luks: "luks1",
        sector: "512",
        mkfs: "-n 8k",
    }
    .make(&vm);
    assert_eq!(pair.expect.state, "clean");
    golden::reads_as_the_kernel_says(&pair);
}

#[test]
fn writeback_without_encryption_in_the_tools_default_buckets() {
    let Some(vm) = vm() else { return };
    let pair = Shape {
        name: "writeback, no encryption, 512k buckets",
        hdd: 144,
        ssd: 260,
        bucket: "512k",
        block: "512",
        mode: "writeback",
        luks: "none",
        sector: "512",
        mkfs: "-m single",
    }
    .make(&vm);
    assert_eq!(pair.expect.state, "dirty");
    golden::reads_as_the_kernel_says(&pair);
}
