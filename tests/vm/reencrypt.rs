//! Re-encryption in turns with cryptsetup over dm-crypt: it works under a mounted file system until the power
//! goes, we go on until we are killed, it goes on under the file system, until the volume is whole. Every file
//! that was durable is compared in each of its turns, the whole device at the end.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use varve_tests::client::{Server, Stack};
use varve_tests::nbd::{FUA, Request};
use varve_tests::varve::{binary, varve};
use varve_tests::vm::{Output, Vm};
use varve_tests::{clock, disk};

use crate::{LIMIT, vm};

const MIB: u64 = 1 << 20;
const PAYLOAD: u64 = 160 * MIB;
/// What a volume's header takes, and by how much a payload moves.
const HEAD: u64 = 16 * MIB;
const COST: &str = "--pbkdf pbkdf2 --pbkdf-force-iterations 1000";

/// One volume on its way, and what is known of it.
struct Volume {
    dir: tempfile::TempDir,
    vm: Vm,
    /// Sums of durable files, as `sha256sum` says them.
    sums: String,
    /// Draws what is left to chance.
    seed: u64,
    turns: u32,
    /// Turns that ended in the middle, and those of them that ended inside of a zone.
    cut: u32,
    hot: u32,
}

impl Volume {
    fn new(vm: Vm, seed: u64, bytes: u64) -> Volume {
        let dir = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(dir.path().join("key"), "a key for a turn").expect("a key");
        disk::sparse(&dir.path().join("disk.img"), bytes);
        let sums = String::new();
        Volume { dir, vm, sums, seed, turns: 0, cut: 0, hot: 0 }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// At least `least`, and less than so much more.
    fn draw(&mut self, least: u64, more: u64) -> u64 {
        self.turns += 1;
        let drawn = disk::noise(self.seed * 1000 + u64::from(self.turns), 8);
        least + u64::from_le_bytes(drawn.try_into().expect("eight bytes")) % more
    }

    fn dump(&self) -> String {
        varve(self.path(), "crypt dump --json disk.img").ok()
    }

    fn is_under_way(&self) -> bool {
        self.dump().contains("online-reencrypt-v")
    }

    /// After a turn: it ended in the middle, and where.
    fn count(&mut self) {
        let dump = self.dump();
        self.cut += u32::from(dump.contains("online-reencrypt-v"));
        self.hot += u32::from(dump.contains("in-reencryption"));
    }

    fn guest(&mut self, calls: &str) -> Output {
        let turn = format!("turn{}", self.draw(0, 1 << 32));
        std::fs::write(self.path().join("sums"), &self.sums).expect("a file");
        let bytes = PAYLOAD.to_string();
        let words = [("CALLS", calls), ("TURN", &turn), ("BYTES", &bytes)];
        let job = self.vm.guest_script("reencrypt.sh", &words);
        let job = ["key", "sums"].iter().fold(job, |job, n| job.file(n, &self.path().join(n)));
        let out = job.disk(&self.path().join("disk.img")).cut_when("cut").run(LIMIT);
        // The last line may have been cut too.
        let sums = out.file("sums");
        let whole = sums.rfind('\n').map_or(0, |end| end + 1);
        assert!(whole >= self.sums.len(), "{out}");
        sums[..whole].clone_into(&mut self.sums);
        out
    }

    /// Their turn, that ends with the power after so many KiB were written.
    fn theirs_cut(&mut self, before: &str, work: &str) {
        let kib = self.draw(9 << 10, 40 << 10);
        let known = self.sums.lines().count();
        let out = self.guest(&format!("{before}\nwrite\ncut_after {kib}\n{work}\nsleep 60"));
        assert_eq!(out.code, None, "no power cut after {kib} KiB: {out}");
        assert!(self.sums.lines().count() > known, "nobody wrote: {out}");
        self.count();
    }

    /// Their turn to the end: what the device holds then.
    fn theirs_to_the_end(&mut self, before: &str, work: &str) -> String {
        let out = self.guest(&format!("{before}\nwrite\n{work}\nclose"));
        assert!(!self.is_under_way(), "{out}");
        let sum = out.ok().lines().find_map(|l| l.strip_prefix("sum ").map(str::to_owned));
        sum.unwrap_or_else(|| panic!("no sum: {out}"))
    }

    /// Our command, in small steps.
    fn reencrypt(&self, how: &str) -> String {
        format!("crypt reencrypt disk.img --key-file key --hotzone-size 64k {how}")
    }

    fn resume(&self) -> String {
        self.reencrypt("--resume-only")
    }

    /// Our turn on a disk that nobody uses, killed after a while.
    fn ours_killed(&mut self, line: &str) {
        let after = Duration::from_millis(self.draw(200, 500));
        let mut work = spawn(self.path(), line);
        clock::pause(after);
        work.kill().expect("a kill");
        work.wait().expect("a child");
        self.count();
    }

    fn stack(&self) -> Stack {
        Stack::backing("disk.img").with("--key-file", "key")
    }

    /// Our turn under a client that writes what it read, killed after a while: what is on the device stays.
    fn ours_online_killed(&mut self, more: &str) {
        let stack = self.stack().with("--control", "unix:c.sock");
        let server = Server::start(self.path(), &stack);
        let before = disk::sum_export(&mut server.connect());
        let line =
            "crypt reencrypt --online --control unix:c.sock --key-file key --hotzone-size 128k";
        let mut work = spawn(self.path(), &format!("{line} {more}"));
        let mut nbd = server.connect();
        let size = nbd.size();
        for _ in 0..self.draw(100, 200) {
            let at = self.draw(0, size / MIB - 1) * MIB;
            let data = nbd.read(at, 256 << 10).expect("the server stays").expect("a read");
            let write = Request::Write { at, data: &data, flags: FUA };
            nbd.ask(write).expect("the server stays").expect("a write");
        }
        server.kill();
        work.wait().expect("a child");
        self.count();
        let server = Server::start(self.path(), &self.stack());
        assert_eq!(disk::sum_export(&mut server.connect()), before, "seed {}", self.seed);
        server.stop();
    }

    /// What our server says the payload is.
    fn sum(&self) -> String {
        let server = Server::start(self.path(), &self.stack().flag("--read-only"));
        let sum = disk::sum_export_to(&mut server.connect(), PAYLOAD);
        server.stop();
        sum
    }
}

fn spawn(dir: &Path, line: &str) -> Child {
    let mut command = Command::new(binary());
    command.current_dir(dir).args(line.split_whitespace());
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("varve starts")
}

/// Two operations on one volume: the one that they begin is finished by them, the one that we begin by us.
fn in_turns(seed: u64, resilience: &str) {
    let Some(vm) = vm() else { return };
    let mut v = Volume::new(vm, seed, HEAD + PAYLOAD);
    varve(v.path(), &format!("crypt format disk.img --key-file key {COST}")).ok();
    let kib = PAYLOAD >> 10;
    let begin = format!("work {COST} --resilience {resilience} /dev/vda");
    let go_on = "work --resume-only /dev/vda";
    v.theirs_cut(&format!("open\nmake /dev/mapper/v {kib}"), &begin);
    v.ours_killed(&v.resume());
    v.theirs_cut("open\nuse", go_on);
    v.ours_online_killed("--resume-only");
    let sum = v.theirs_to_the_end("open\nuse", go_on);
    assert_eq!(v.sum(), sum, "seed {seed}: theirs, finished by them");
    v.ours_online_killed(&format!("{COST} --resilience {resilience} --direction backward"));
    v.theirs_cut("open\nuse", go_on);
    v.ours_killed(&v.resume());
    varve(v.path(), &v.resume()).ok();
    let out = v.guest("open\nuse\nclose");
    let sum = format!("sum {}\n", v.sum());
    assert!(out.ok().ends_with(&sum), "seed {seed}: ours, finished by us: {out}");
    assert!(v.cut >= 5 && v.hot >= 1, "seed {seed}: {} in the middle, {} hot", v.cut, v.hot);
}

#[test]
fn a_mounted_volume_gets_keys_in_turns_by_checksums() {
    in_turns(1, "checksum");
}

#[test]
fn a_mounted_volume_gets_keys_in_turns_by_the_journal() {
    in_turns(2, "journal");
}

/// A plain disk with a file system gets its header: the payload moves under its files.
fn moves_in_turns(seed: u64, they_begin: bool) {
    let Some(vm) = vm() else { return };
    let mut v = Volume::new(vm, seed, PAYLOAD + 2 * HEAD);
    let kib = PAYLOAD >> 10;
    let go_on = "work --resume-only /dev/vda";
    let make = format!("make /dev/vda {kib}\numount /mnt");
    let encrypt = format!("--encrypt --init-only --reduce-device-size {}M {COST}", 2 * HEAD / MIB);
    if they_begin {
        let begin = format!("{make}\nwork --type luks2 {encrypt} /dev/vda\nopen\nuse");
        v.theirs_cut(&begin, go_on);
    } else {
        v.guest(&make).ok();
        varve(v.path(), &v.reencrypt(&encrypt)).ok();
        v.theirs_cut("open\nuse", go_on);
    }
    v.ours_killed(&v.resume());
    v.theirs_cut("open\nuse", go_on);
    v.ours_killed(&v.resume());
    let sum = v.theirs_to_the_end("open\nuse", go_on);
    assert_eq!(v.sum(), sum, "seed {seed}: encrypted");
    assert!(v.cut >= 2, "seed {seed}: {} in the middle, {} hot", v.cut, v.hot);
}

#[test]
fn a_mounted_disk_that_they_began_to_encrypt_is_encrypted_in_turns() {
    moves_in_turns(3, true);
}

#[test]
fn a_mounted_disk_that_we_began_to_encrypt_is_encrypted_in_turns() {
    moves_in_turns(4, false);
}
