//! dm-integrity by itself: the kernel, through integritysetup, on volumes that we made, wrote and were killed
//! on, and we on the kernel's, closed, cut off and half computed; with a journal and with a bitmap.

use std::path::{Path, PathBuf};

use varve_tests::client::{Server, Stack};
use varve_tests::disk;
use varve_tests::nbd::{Nbd, Request};
use varve_tests::varve::{varve, varve_in};
use varve_tests::vm::{Output, Vm};

use crate::{LIMIT, vm};

/// A volume: its hash, what is asked for when it is made, and its mode.
#[derive(Clone, Copy)]
struct Shape {
    hash: &'static str,
    made: &'static str,
    mode: &'static str,
}

const fn shape(hash: &'static str, made: &'static str, mode: &'static str) -> Shape {
    Shape { hash, made, mode }
}

/// The first two are what the others widen: crc32c, with a journal and with a bitmap.
const SHAPES: [Shape; 4] = [
    shape("crc32c", "", "journal"),
    shape("crc32c", "", "bitmap"),
    shape("hmac-sha256", "--sector-size 4096", "bitmap"),
    shape("sha256", "--tag-size 16 --interleave-sectors 1024", "journal"),
];
/// Other hashes, and no protection.
const MORE: [Shape; 4] = [
    shape("xxhash64", "--sector-size 4096", "journal"),
    shape("sha1", "--journal-size 262144", "bitmap"),
    shape("crc32c", "--tag-size 8", "direct"),
    shape("hmac-sha256", "", "journal"),
];
/// What the README names beside them.
const REST: [Shape; 4] = [
    shape("crc32", "", "journal"),
    shape("sha512", "--sector-size 4096", "bitmap"),
    shape("hmac-sha1", "", "bitmap"),
    shape("hmac-sha512", "--sector-size 4096", "journal"),
];

const LEN: u64 = 24 << 20;
const KEY: &[u8; 32] = b"varve hmac key varve hmac key 32";
/// Where the guest's script writes, and how much.
const WRITTEN_AT: u64 = 100 * 4096;
const WRITTEN: u32 = 300 * 4096;

impl Shape {
    /// For integritysetup, beside what both understand.
    fn theirs(&self) -> String {
        let mut options = format!("--integrity {}", self.hash);
        if self.hash.starts_with("hmac") {
            options += " --integrity-key-file /host/key --integrity-key-size 32";
        }
        options
    }

    fn their_open(&self) -> String {
        let mode = match self.mode {
            "bitmap" => "--integrity-bitmap-mode",
            "direct" => "--integrity-no-journal",
            _ => "",
        };
        format!("{} {mode}", self.theirs())
    }

    fn ours(&self) -> Vec<String> {
        let mut words = vec!["--dm-integrity".to_owned(), self.hash.to_owned()];
        words.extend(["--dm-integrity-mode".to_owned(), self.mode.to_owned()]);
        if self.hash.starts_with("hmac") {
            words.extend(["--dm-integrity-key-file".to_owned(), "key".to_owned()]);
        }
        words
    }
}

struct Disks {
    dir: tempfile::TempDir,
    shapes: [Shape; 4],
    images: Vec<PathBuf>,
}

fn disks(shapes: [Shape; 4]) -> Disks {
    let dir = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(dir.path().join("key"), KEY).expect("a key file");
    let name = |n: usize| dir.path().join(format!("disk{n}"));
    let images: Vec<_> = (1..=shapes.len()).map(name).collect();
    images.iter().for_each(|image| disk::sparse(image, LEN));
    Disks { dir, shapes, images }
}

impl Disks {
    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn each(&self) -> impl Iterator<Item = (usize, Shape, &PathBuf)> {
        (1..).zip(self.shapes).zip(&self.images).map(|((n, shape), image)| (n, shape, image))
    }

    fn ours(&self, verb: &[&str], shape: Shape, image: &Path) -> Vec<std::ffi::OsString> {
        let mut words: Vec<_> = verb.iter().map(Into::into).collect();
        words.push(image.into());
        words.extend(shape.ours().into_iter().map(Into::into));
        words
    }

    fn format(&self) {
        for (_, shape, image) in self.each() {
            let mut words = self.ours(&["integrity", "format"], shape, image);
            words.extend(shape.made.split_whitespace().map(Into::into));
            varve_in(self.path(), words).ok();
        }
    }

    /// Every tag fits.
    fn check(&self, shape: Shape, image: &Path) {
        let said = varve_in(self.path(), self.ours(&["integrity", "check"], shape, image)).ok();
        assert!(said.contains("clean") && !said.contains("no tags yet"), "{}: {said}", shape.hash);
    }

    fn server(&self, shape: Shape, image: &Path, read_only: bool) -> Server {
        let words = shape.ours();
        let stack = words
            .chunks(2)
            .fold(Stack::backing(image), |stack, pair| stack.with(&pair[0], pair[1].clone()));
        Server::start(self.path(), &if read_only { stack.flag("--read-only") } else { stack })
    }

    /// The sum of a whole volume: every sector is read, so every tag that says something verifies.
    fn sum(&self, shape: Shape, image: &Path, read_only: bool) -> String {
        let server = self.server(shape, image, read_only);
        let sum = disk::sum_export(&mut server.connect());
        server.stop();
        sum
    }

    /// Runs the guest's script on all of them.
    fn guest(&self, vm: &Vm, made: bool, end: &str) -> Output {
        let list = |of: &dyn Fn(&Shape) -> String| {
            self.shapes.iter().map(of).collect::<Vec<_>>().join(";")
        };
        let open = list(&Shape::their_open);
        let format = list(&|shape| format!("{} {}", shape.theirs(), shape.made));
        let format = if made { format } else { String::new() };
        let job = vm
            .guest_script("dm-integrity.sh", &[("FORMAT", &format), ("OPEN", &open), ("END", end)]);
        let job = job.file("key", &self.path().join("key"));
        self.images.iter().fold(job, |job, image| job.disk(image)).run(LIMIT)
    }
}

fn write(nbd: &mut Nbd, at: u64, data: &[u8]) {
    let answer = nbd.ask(Request::Write { at, data, flags: 0 });
    answer.expect("the server stays").expect("a write");
}

/// Formatted by us, written by us, and left by a kill: the kernel takes up our journal or our bitmap, reads
/// every sector and writes; then we read what it left.
fn the_kernel_takes_up_ours(shapes: [Shape; 4]) {
    let Some(vm) = vm() else { return };
    let disks = disks(shapes);
    disks.format();
    let mut sums = Vec::new();
    for (_, shape, image) in disks.each() {
        let server = disks.server(shape, image, false);
        let mut nbd = server.connect();
        for round in 0..6 {
            write(&mut nbd, round * 77_824, &disk::noise(round, 200_704));
            nbd.ask(Request::Flush).expect("the server stays").expect("a flush");
        }
        server.kill();
        sums.push(disks.sum(shape, image, true));
    }
    let out = disks.guest(&vm, false, "close");
    out.ok();
    for ((n, shape, image), sum) in disks.each().zip(sums) {
        assert_eq!(out.file(&format!("before{n}")).trim(), sum, "{}", shape.hash);
        let after = out.file(&format!("after{n}"));
        disks.check(shape, image);
        assert_eq!(disks.sum(shape, image, true), after.trim(), "{}", shape.hash);
        assert_eq!(disks.sum(shape, image, false), after.trim(), "{}", shape.hash);
        let dump = out.file(&format!("dump{n}"));
        assert!(!dump.contains("dirty_bitmap"), "{dump}");
    }
}

#[test]
fn the_kernel_takes_up_what_we_were_killed_on() {
    the_kernel_takes_up_ours(SHAPES);
}

#[test]
fn the_kernel_takes_up_other_hashes_and_modes() {
    the_kernel_takes_up_ours(MORE);
}

#[test]
fn the_kernel_takes_up_the_rest_of_the_hashes() {
    the_kernel_takes_up_ours(REST);
}

/// Formatted and written by the kernel, which loses its power: what it had flushed is there, and every sector
/// verifies, now and after we wrote; and then the kernel reads what we left.
#[test]
fn we_take_up_what_the_kernel_lost_its_power_on() {
    let Some(vm) = vm() else { return };
    let disks = disks(SHAPES);
    let out = disks.guest(&vm, true, "cut");
    assert_eq!(out.code, None, "no power cut: {out}");
    assert_eq!(out.file("ready"), "", "cut too early");
    let (mut replayed, mut computed) = (0, 0);
    let mut sums = Vec::new();
    for (n, shape, image) in disks.each() {
        let before = disk::sum_file(image);
        let seen = disks.sum(shape, image, true);
        assert_eq!(disk::sum_file(image), before, "a look writes nothing");
        let server = disks.server(shape, image, false);
        replayed += usize::from(server.log().contains("of its journal replayed"));
        computed += usize::from(server.log().contains("computing tags from sector"));
        let mut nbd = server.connect();
        let found = nbd.read(WRITTEN_AT, WRITTEN).expect("the server stays").expect("readable");
        assert!(found == out.bytes(&format!("written{n}")), "{}", shape.hash);
        drop(nbd);
        server.stop();
        let mut words = disks.ours(&["integrity", "recalculate"], shape, image);
        words.push("--dm-integrity-legacy-recalculate".into());
        varve_in(disks.path(), words).ok();
        disks.check(shape, image);
        assert_eq!(disks.sum(shape, image, false), seen, "{}: then and now", shape.hash);
        sums.push(seen);
    }
    assert!(replayed > 0, "no journal had anything: the test looks at nothing");
    assert_eq!(computed, 2, "both bitmaps had something to compute");
    let out = disks.guest(&vm, false, "close");
    out.ok();
    for ((n, shape, _), sum) in disks.each().zip(sums) {
        assert_eq!(out.file(&format!("before{n}")).trim(), sum, "{}", shape.hash);
    }
}

/// A bitmap that a power cut left is taken up in the other mode, by each of us.
#[test]
fn a_bitmap_that_was_left_is_taken_up_with_a_journal() {
    let Some(vm) = vm() else { return };
    let left = shape("crc32c", "", "bitmap");
    let taken = shape("crc32c", "", "journal");
    let mut disks = disks([left; 4]);
    let out = disks.guest(&vm, true, "cut");
    assert_eq!(out.code, None, "no power cut: {out}");
    let mut sums = Vec::new();
    for (n, _, image) in disks.each() {
        if n > 2 {
            // These we leave as a bitmap of our own.
            let server = disks.server(left, image, false);
            write(&mut server.connect(), 0, &disk::noise(n as u64, 200_704));
            server.kill();
            sums.push(disks.sum(left, image, true));
            continue;
        }
        varve_in(disks.path(), disks.ours(&["integrity", "recalculate"], taken, image)).ok();
        disks.check(taken, image);
        sums.push(disks.sum(taken, image, false));
    }
    disks.shapes = [taken; 4];
    let out = disks.guest(&vm, false, "close");
    out.ok();
    for ((n, shape, image), sum) in disks.each().zip(sums) {
        assert_eq!(out.file(&format!("before{n}")).trim(), sum, "{n}");
        disks.check(shape, image);
    }
}

/// Where a superblock says that the tags are computed up to.
fn computed_to(image: &Path) -> u64 {
    use std::os::unix::fs::FileExt;
    let mut bytes = [0; 8];
    let file = std::fs::File::open(image).expect("an image");
    file.read_exact_at(&mut bytes, 32).expect("a superblock");
    u64::from_le_bytes(bytes)
}

/// Tags that are half computed are finished by the other one, both ways.
#[test]
fn a_recalculation_that_was_cut_is_finished_by_the_other() {
    const LONG: u64 = 160 << 20;
    let Some(vm) = vm() else { return };
    // A hash that takes its time.
    let shapes = [shape("sha256", "", "journal"), shape("sha256", "", "bitmap")];
    let mut disks = disks([shapes[0], shapes[1], shapes[0], shapes[1]]);
    for image in &disks.images {
        disk::sparse(image, LONG);
        // Content that no tag fits.
        disk::damage(image, 5 << 20, &disk::noise(5, 1 << 20));
        disk::damage(image, LONG - (9 << 20), &disk::noise(9, 1 << 20));
    }
    // Ours, killed in the middle.
    let mut sums = Vec::new();
    for (n, shape, image) in disks.each().take(2) {
        // A machine that is busy with other things may look too late.
        let cut = (0..10).any(|_| {
            let mut words = disks.ours(&["integrity", "format"], shape, image);
            words.extend(["--recalculate", "--force"].map(Into::into));
            varve_in(disks.path(), words).ok();
            let server = disks.server(shape, image, false);
            match n {
                1 => server.kill_when(|| computed_to(image) > 0),
                _ => server.kill(),
            }
            computed_to(image) < LONG / 512 - (16 << 20) / 512
        });
        assert!(cut, "killed too late to see anything");
        sums.push(disks.sum(shape, image, true));
    }
    // The kernel's, closed in the middle.
    let (ours, theirs) = (disks.images[..2].to_vec(), disks.images[2..].to_vec());
    let plain = Disks { images: theirs.clone(), shapes: disks.shapes, dir: disks.dir };
    let open = shapes.map(|shape| format!("{} --integrity-recalculate", shape.their_open()));
    let format = shapes.map(|shape| format!("{} --no-wipe", shape.theirs()));
    let job = vm.guest_script(
        "dm-integrity.sh",
        &[("FORMAT", &format.join(";")), ("OPEN", &open.join(";")), ("END", "now")],
    );
    let out = theirs.iter().fold(job, |job, image| job.disk(image)).run(LIMIT);
    out.ok();
    for (n, image) in (1..).zip(&theirs) {
        let to = computed_to(image);
        assert!(to > 0 && to < LONG / 512 - 65536, "{to}: {}", out.file(&format!("dump{n}")));
        let shape = shapes[n - 1];
        let seen = plain.sum(shape, image, true);
        let said = varve_in(plain.path(), plain.ours(&["integrity", "recalculate"], shape, image));
        assert!(said.ok().contains("every sector has its tag"));
        plain.check(shape, image);
        sums.push(plain.sum(shape, image, false));
        assert_eq!(sums.last(), Some(&seen));
    }
    // The kernel finishes ours, and finds ours of its own complete.
    disks = Disks { images: [ours, theirs].concat(), ..plain };
    let out = disks.guest(&vm, false, "close");
    out.ok();
    for ((n, shape, image), sum) in disks.each().zip(sums) {
        assert_eq!(out.file(&format!("before{n}")).trim(), sum, "{n}");
        disks.check(shape, image);
    }
}

/// LUKS over dm-integrity, as a stack has it.
#[test]
fn encryption_stands_on_integrity() {
    let Some(vm) = vm() else { return };
    let dir = tempfile::tempdir().expect("a temporary folder");
    let image = dir.path().join("disk");
    disk::sparse(&image, 48 << 20);
    std::fs::write(dir.path().join("key"), "a passphrase").expect("a key file");
    varve(dir.path(), "integrity format disk --sector-size 4096").ok();
    let layer = "--dm-integrity crc32c --dm-integrity-mode bitmap";
    let cheap = "--pbkdf pbkdf2 --pbkdf-force-iterations 1000";
    varve(dir.path(), &format!("crypt format disk {layer} --key-file key {cheap}")).ok();
    let stack = Stack::backing("disk")
        .with("--dm-integrity", "crc32c")
        .with("--dm-integrity-mode", "bitmap")
        .with("--key-file", "key");
    let server = Server::start(dir.path(), &stack);
    let mut nbd = server.connect();
    write(&mut nbd, 8192, &disk::noise(3, 200_704));
    let sum = disk::sum_export(&mut nbd);
    drop(nbd);
    server.stop();
    let script = "set -eu
        modprobe dm-integrity; modprobe dm-crypt
        integritysetup open --integrity crc32c --integrity-bitmap-mode /dev/vda i
        cryptsetup open --key-file /host/key /dev/mapper/i c
        sha256sum </dev/mapper/c | cut -d' ' -f1 >/host/sum
        cryptsetup close c; integritysetup close i";
    let out = vm.job(script).file("key", &dir.path().join("key")).disk(&image).run(LIMIT);
    out.ok();
    assert_eq!(out.file("sum").trim(), sum);
    varve(dir.path(), "integrity check disk").ok();
}
