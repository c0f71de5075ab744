//! LUKS2 with integrity: the kernel's dm-crypt over dm-integrity on volumes that we made, wrote and were
//! killed on, and we on the kernel's, closed and cut off.

use std::path::{Path, PathBuf};

use varve_tests::client::{Server, Stack};
use varve_tests::nbd::Request;
use varve_tests::varve::varve;
use varve_tests::vm::Output;
use varve_tests::{disk, nbd::Nbd};

use crate::{LIMIT, vm};

/// What both `varve crypt format` and `cryptsetup luksFormat` understand.
const SHAPES: [&str; 4] = [
    "--integrity hmac-sha256 --sector-size 512",
    "--integrity hmac-sha256 --sector-size 4096",
    "--cipher aes-gcm-random --key-size 256 --integrity aead --sector-size 4096",
    "--cipher aes-xts-random --integrity hmac-sha256 --sector-size 512",
];
/// What the README names beside them.
const REST: [&str; 4] = [
    "--cipher chacha20-random --key-size 256 --integrity poly1305 --sector-size 4096",
    "--integrity hmac-sha512 --sector-size 512",
    "--integrity hmac-sha1 --sector-size 4096",
    "--cipher aes-xts-random --integrity hmac-sha512 --sector-size 4096",
];
const LEN: u64 = 24 << 20;
/// Where the guest's script writes, and how much.
const WRITTEN_AT: u64 = 100 * 4096;
const WRITTEN: u32 = 300 * 4096;

struct Disks {
    dir: tempfile::TempDir,
    images: Vec<PathBuf>,
}

fn disks() -> Disks {
    let dir = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(dir.path().join("key"), "a key of integrity").expect("a key file");
    let name = |n: usize| dir.path().join(format!("disk{n}"));
    let images: Vec<_> = (1..=SHAPES.len()).map(name).collect();
    images.iter().for_each(|image| disk::sparse(image, LEN));
    Disks { dir, images }
}

impl Disks {
    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn server(&self, image: &Path, read_only: bool) -> Server {
        let stack = Stack::backing(image).with("--key-file", "key");
        Server::start(self.path(), &if read_only { stack.flag("--read-only") } else { stack })
    }

    /// The sum of a whole volume: every sector is read, so every tag verifies.
    fn sum(&self, image: &Path, read_only: bool) -> String {
        let server = self.server(image, read_only);
        let sum = disk::sum_export(&mut server.connect());
        server.stop();
        sum
    }

    /// Runs the guest's script on all of them.
    fn guest(&self, vm: &varve_tests::vm::Vm, format: &str, end: &str) -> Output {
        let job = vm.guest_script("integrity.sh", &[("FORMAT", format), ("END", end)]);
        let job = job.file("key", &self.path().join("key"));
        self.images.iter().fold(job, |job, image| job.disk(image)).run(LIMIT)
    }
}

fn write(nbd: &mut Nbd, at: u64, data: &[u8]) {
    let answer = nbd.ask(Request::Write { at, data, flags: 0 });
    answer.expect("the server stays").expect("a write");
}

/// Formatted by us, written by us, and left by a kill: the kernel replays our journal, reads every sector
/// and writes; then we read what it left.
fn the_kernel_takes_up_ours(shapes: [&str; 4]) {
    let Some(vm) = vm() else { return };
    let disks = disks();
    let mut sums = Vec::new();
    for (image, shape) in disks.images.iter().zip(shapes) {
        let name = image.file_name().and_then(|n| n.to_str()).expect("a plain name");
        let rest = "--pbkdf pbkdf2 --pbkdf-force-iterations 1000";
        varve(disks.path(), &format!("crypt format {name} --key-file key {shape} {rest}")).ok();
        let server = disks.server(image, false);
        let mut nbd = server.connect();
        for round in 0..6 {
            write(&mut nbd, round * 77_824, &disk::noise(round, 200_704));
            nbd.ask(Request::Flush).expect("the server stays").expect("a flush");
        }
        server.kill();
        sums.push(disks.sum(image, true));
    }
    let out = disks.guest(&vm, "", "close");
    out.ok();
    for (n, (image, sum)) in (1..).zip(disks.images.iter().zip(sums)) {
        assert_eq!(out.file(&format!("before{n}")).trim(), sum, "{}", shapes[n - 1]);
        let after = out.file(&format!("after{n}"));
        assert_eq!(disks.sum(image, true), after.trim(), "{}", shapes[n - 1]);
        assert_eq!(disks.sum(image, false), after.trim(), "{}", shapes[n - 1]);
    }
}

#[test]
fn the_kernel_takes_up_what_we_were_killed_on_and_we_what_it_wrote() {
    the_kernel_takes_up_ours(SHAPES);
}

#[test]
fn the_kernel_takes_up_the_rest_of_the_tags() {
    the_kernel_takes_up_ours(REST);
}

/// Formatted and written by the kernel, which loses its power: what it had flushed is there, every sector
/// verifies, in memory and after a replay on the disk; and then the kernel reads what we replayed.
#[test]
fn we_take_up_what_the_kernel_lost_its_power_on() {
    let Some(vm) = vm() else { return };
    let disks = disks();
    let out = disks.guest(&vm, &SHAPES.join(";"), "cut");
    assert_eq!(out.code, None, "no power cut: {out}");
    assert_eq!(out.file("ready"), "", "cut too early");
    let mut replayed = 0;
    let mut sums = Vec::new();
    for (n, image) in (1..).zip(&disks.images) {
        let before = disk::sum_file(image);
        let seen = disks.sum(image, true);
        assert_eq!(disk::sum_file(image), before, "a look writes nothing");
        let server = disks.server(image, false);
        replayed += usize::from(server.log().contains("of its journal replayed"));
        let mut nbd = server.connect();
        let found = nbd.read(WRITTEN_AT, WRITTEN).expect("the server stays").expect("readable");
        assert!(found == out.bytes(&format!("written{n}")), "{}", SHAPES[n - 1]);
        drop(nbd);
        server.stop();
        assert_eq!(disks.sum(image, false), seen, "{}: in memory and on the disk", SHAPES[n - 1]);
        sums.push(seen);
    }
    assert!(replayed > 0, "no journal had anything: the test looks at nothing");
    let out = disks.guest(&vm, "", "close");
    out.ok();
    for (n, sum) in (1..).zip(sums) {
        assert_eq!(out.file(&format!("before{n}")).trim(), sum, "{}", SHAPES[n - 1]);
    }
}
