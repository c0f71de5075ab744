//! Re-encryption in turns with cryptsetup over dm-crypt: it works under a mounted file system until the power
//! goes, we go on until we are killed, it goes on under the file system, until the volume is whole. Every file
//! that was durable is compared in each of its turns, the whole device at the end.
//!
//! A turn ends at a place of the work that the header shows, never after a time: machines differ.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use varve_tests::client::{Server, Stack};
use varve_tests::nbd::{FUA, Nbd, Request};
use varve_tests::reencryption::{self, Standing};
use varve_tests::varve::{binary, varve};
use varve_tests::vm::{Job, Output, Vm};
use varve_tests::{disk, process};

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
    /// File with the header.
    header: &'static str,
    /// Sums of durable files, as `sha256sum` says them.
    sums: String,
    /// Draws what is left to chance.
    seed: u64,
    draws: u32,
    /// Turns that ended in the middle.
    cuts: u32,
}

impl Volume {
    fn new(vm: Vm, seed: u64, bytes: u64) -> Volume {
        let dir = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(dir.path().join("key"), "a key for a turn").expect("a key");
        disk::sparse(&dir.path().join("disk.img"), bytes);
        Volume { dir, vm, header: "disk.img", sums: String::new(), seed, draws: 0, cuts: 0 }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn disk(&self) -> PathBuf {
        self.path().join("disk.img")
    }

    fn header(&self) -> PathBuf {
        self.path().join(self.header)
    }

    /// The header is not on the disk.
    fn is_detached(&self) -> bool {
        self.header != "disk.img"
    }

    /// At least `least`, and less than so much more.
    fn draw(&mut self, least: u64, more: u64) -> u64 {
        self.draws += 1;
        let drawn = disk::noise(self.seed * 1000 + u64::from(self.draws), 8);
        least + u64::from_le_bytes(drawn.try_into().expect("eight bytes")) % more
    }

    fn is_under_way(&self) -> bool {
        Standing::of(&self.header(), &self.disk()).is_some()
    }

    /// When the turn that begins now is cut: after a drawn share of the payload, of which four leave enough for a
    /// last turn; inside of a zone, and between two, by turns.
    fn time(&mut self) -> impl Fn() -> bool + use<> {
        let share = self.draw(PAYLOAD / 20, PAYLOAD / 10);
        self.cuts += 1;
        reencryption::further(&self.header(), &self.disk(), share, self.cuts % 2 == 1)
    }

    fn job(&mut self, calls: &str) -> Job {
        let turn = format!("turn{}", self.draw(0, 1 << 32));
        std::fs::write(self.path().join("sums"), &self.sums).expect("a file");
        let bytes = PAYLOAD.to_string();
        let words = [("CALLS", calls), ("TURN", &turn), ("BYTES", &bytes)];
        let job = self.vm.guest_script("reencrypt.sh", &words);
        let job = ["key", "sums"].iter().fold(job, |job, n| job.file(n, &self.path().join(n)));
        let job = job.disk(&self.disk());
        if self.is_detached() { job.disk(&self.header()) } else { job }
    }

    /// What it left: the files that are durable now.
    fn keep(&mut self, out: &Output) {
        // The last line may have been cut too.
        let sums = out.file("sums");
        let whole = sums.rfind('\n').map_or(0, |end| end + 1);
        assert!(whole >= self.sums.len(), "{out}");
        sums[..whole].clone_into(&mut self.sums);
    }

    fn guest(&mut self, calls: &str) -> Output {
        let out = self.job(calls).run(LIMIT);
        self.keep(&out);
        out
    }

    /// Their turn, that ends with the power.
    fn theirs_cut(&mut self, before: &str, work: &str) {
        let known = self.sums.lines().count();
        let time = self.time();
        let out = self.job(&format!("{before}\nwrite\n{work}")).cut_when(LIMIT, time);
        self.keep(&out);
        assert!(self.sums.lines().count() > known, "nobody wrote: {out}");
    }

    /// Their turn to the end: what the device holds then.
    fn theirs_to_the_end(&mut self, before: &str, work: &str) -> String {
        assert!(self.is_under_way(), "seed {}: nothing was left to do", self.seed);
        let close = if self.is_detached() { "close /dev/vda" } else { "close" };
        let out = self.guest(&format!("{before}\nwrite\n{work}\n{close}"));
        assert!(!self.is_under_way(), "{out}");
        let sum = out.ok().lines().find_map(|l| l.strip_prefix("sum ").map(str::to_owned));
        sum.unwrap_or_else(|| panic!("no sum: {out}"))
    }

    /// Our command, in small steps.
    fn reencrypt(&self, how: &str) -> String {
        let header = if self.is_detached() { "--header head.img" } else { "" };
        format!("crypt reencrypt disk.img {header} --key-file key --hotzone-size 64k {how}")
    }

    fn resume(&self) -> String {
        self.reencrypt("--resume-only")
    }

    /// Our turn on a disk that nobody uses, killed in the middle.
    fn ours_killed(&mut self, line: &str) {
        let time = self.time();
        let killed = process::kill_when(&mut spawn(self.path(), line), process::LIMIT, time);
        killed.unwrap_or_else(|why| panic!("seed {}: `{line}` {why}", self.seed));
    }

    fn stack(&self) -> Stack {
        let stack = Stack::backing("disk.img").with("--key-file", "key");
        if self.is_detached() { stack.with("--header", self.header) } else { stack }
    }

    /// Our turn under a client that writes what it read, killed in the middle: what is on the device stays.
    fn ours_online_killed(&mut self, more: &str) {
        let stack = self.stack().with("--control", "unix:c.sock");
        let server = Server::start(self.path(), &stack);
        let before = disk::sum_export(&mut server.connect());
        let client = rewrite(server.connect(), self.draw(0, 1 << 32));
        let line = "crypt reencrypt --online --control unix:c.sock --key-file key --rate 20M";
        let time = self.time();
        let mut work = spawn(self.path(), &format!("{line} --hotzone-size 128k {more}"));
        server.kill_when(|| {
            let ended = work.try_wait().expect("asking for a child's state");
            assert_eq!(ended, None, "seed {}: `{line} {more}` ended before its time", self.seed);
            time()
        });
        work.wait().expect("a child");
        client.join().expect("a client that is served");
        let server = Server::start(self.path(), &self.stack());
        assert_eq!(disk::sum_export(&mut server.connect()), before, "seed {}", self.seed);
        server.stop();
    }

    /// The payload as it lies on the disk.
    fn plain_sum(&self) -> String {
        let disk = File::open(self.disk()).expect("the disk");
        disk::sum(disk.take(PAYLOAD)).expect("the disk")
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

/// Writes what it reads, in drawn places, until the server is gone.
fn rewrite(mut nbd: Nbd, seed: u64) -> JoinHandle<()> {
    #[expect(clippy::disallowed_methods, reason = "a client is no part of the program")]
    std::thread::spawn(move || {
        for n in 0u64.. {
            let draw = (n + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
            let at = draw % (nbd.size() / MIB) * MIB;
            let Ok(data) = nbd.read(at, 256 << 10) else { break };
            let data = data.expect("a read");
            match nbd.ask(Request::Write { at, data: &data, flags: FUA }) {
                Ok(answer) => answer.expect("a write"),
                Err(_) => break,
            }
        }
    })
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
}

#[test]
fn a_mounted_disk_that_they_began_to_encrypt_is_encrypted_in_turns() {
    moves_in_turns(3, true);
}

#[test]
fn a_mounted_disk_that_we_began_to_encrypt_is_encrypted_in_turns() {
    moves_in_turns(4, false);
}

/// A volume loses its header, and its payload moves to where that was, under its files.
fn is_decrypted_in_turns(seed: u64, they_begin: bool) {
    let Some(vm) = vm() else { return };
    let mut v = Volume::new(vm, seed, HEAD + PAYLOAD);
    varve(v.path(), &format!("crypt format disk.img --key-file key {COST}")).ok();
    v.guest(&format!("open\nmake /dev/mapper/v {}\numount /mnt", PAYLOAD >> 10)).ok();
    v.header = "head.img";
    let (open, go_on) =
        ("open --header /dev/vdb\nuse", "work --resume-only --header /dev/vdb /dev/vda");
    if they_begin {
        disk::sparse(&v.header(), HEAD);
        v.theirs_cut(&format!("begin_decryption --resilience datashift-checksum\n{open}"), go_on);
        v.ours_killed(&v.resume());
        v.theirs_cut(open, go_on);
        v.ours_online_killed("--resume-only");
        let sum = v.theirs_to_the_end(open, go_on);
        assert_eq!(v.plain_sum(), sum, "seed {seed}: finished by them");
    } else {
        let begin = "--decrypt --init-only --resilience datashift-journal";
        varve(v.path(), &v.reencrypt(begin)).ok();
        v.theirs_cut(open, go_on);
        v.ours_online_killed("--resume-only");
        v.theirs_cut(open, go_on);
        v.ours_killed(&v.resume());
        varve(v.path(), &v.resume()).ok();
    }
    assert!(!v.is_under_way(), "seed {seed}");
    v.guest("use /dev/vda\numount /mnt").ok();
}

#[test]
fn a_mounted_volume_that_they_began_to_decrypt_is_decrypted_in_turns() {
    is_decrypted_in_turns(5, true);
}

#[test]
fn a_mounted_volume_that_we_began_to_decrypt_is_decrypted_in_turns() {
    is_decrypted_in_turns(6, false);
}
