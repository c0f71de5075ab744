//! Re-encryption in turns: `cryptsetup` takes up what we were killed in, and we what it was killed in. All
//! of it on plain files, without a device mapper.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use varve_tests::client::{Server, Stack};
use varve_tests::nbd::{FUA, Request};
use varve_tests::process::{self, Finished};
use varve_tests::reencryption::further;
use varve_tests::varve::{binary, varve};
use varve_tests::{clock, disk, tool};

pub(crate) const COST: &str = "--pbkdf pbkdf2 --pbkdf-force-iterations 1000";
pub(crate) const OFFLINE: &str =
    "reencrypt -q --force-offline-reencrypt --disable-locks --key-file key";
const PAYLOAD: usize = 6 << 20;

pub(crate) fn cryptsetup(dir: &Path, line: &str) -> Finished {
    let mut command = Command::new(tool::find("cryptsetup").expect("asked for before"));
    process::run(command.current_dir(dir).args(line.split_whitespace()))
}

/// A folder with `before.img`, a volume of cryptsetup that holds the noise that is given back.
pub(crate) fn folder(sector_size: u32) -> (tempfile::TempDir, Vec<u8>) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let at = dir.path();
    std::fs::write(at.join("key"), b"one key\nof two lines").expect("a key");
    disk::sparse(&at.join("before.img"), (16 << 20) + PAYLOAD as u64);
    let how = format!("luksFormat -q --type luks2 {COST} --sector-size {sector_size}");
    cryptsetup(at, &format!("{how} --key-file key before.img")).ok();
    let data = disk::noise(u64::from(sector_size), PAYLOAD);
    fill(at, &data);
    (dir, data)
}

/// Writes the data into the volume in `before.img`, through our server.
#[track_caller]
pub(crate) fn fill(dir: &Path, data: &[u8]) {
    let server = Server::start(dir, &Stack::backing("before.img").with("--key-file", "key"));
    let mut nbd = server.connect();
    for (n, piece) in data.chunks(1 << 20).enumerate() {
        let request = Request::Write { at: (n << 20) as u64, data: piece, flags: FUA };
        nbd.ask(request).expect("the server stays").expect("a write");
    }
    drop(nbd);
    server.stop();
}

/// What the volume holds, read through our server; and cryptsetup opens it and sees nothing unfinished.
#[track_caller]
pub(crate) fn is_whole(dir: &Path, image: &str, data: &[u8], case: &str) {
    let server = Server::start(dir, &Stack::backing(image).with("--key-file", "key"));
    let mut nbd = server.connect();
    for (n, piece) in data.chunks(1 << 20).enumerate() {
        let len = u32::try_from(piece.len()).expect("a piece");
        let read = nbd.read((n << 20) as u64, len).expect("the server stays").expect("a read");
        assert!(read == piece, "{case}: piece {n} differs");
    }
    drop(nbd);
    server.stop();
    cryptsetup(dir, &format!("open --test-passphrase --key-file key {image}")).ok();
    let dump = cryptsetup(dir, &format!("luksDump {image}")).ok();
    assert!(!dump.contains("reencrypt"), "{case}: {dump}");
}

/// What a volume that is under way holds, read through a server that writes nothing: a zone that was cut is
/// recovered in its memory.
#[track_caller]
pub(crate) fn is_shown(dir: &Path, files: &[&str], stack: &Stack, data: &[u8], case: &str) {
    let sums = || files.iter().map(|file| disk::sum_file(&dir.join(file))).collect::<Vec<_>>();
    let before = sums();
    let server = Server::start(dir, &stack.clone().with("--key-file", "key").flag("--read-only"));
    let mut nbd = server.connect();
    assert_eq!(nbd.size(), data.len() as u64, "{case}");
    let read = disk::sum_export(&mut nbd);
    assert_eq!(read, disk::sum(data).expect("memory"), "{case}: other data");
    drop(nbd);
    server.stop();
    assert_eq!(sums(), before, "{case}: written to");
}

pub(crate) fn is_under_way(dir: &Path, image: &str) -> bool {
    varve(dir, &format!("crypt dump --json {image}")).ok().contains("online-reencrypt-v")
}

pub(crate) fn copy(dir: &Path, to: &str) {
    std::fs::copy(dir.join("before.img"), dir.join(to)).expect("a copy");
}

/// Kills cryptsetup at its n-th call of that name. Says whether it came so far.
pub(crate) fn kill_cryptsetup_at(dir: &Path, call: &str, n: u32, options: &str) -> bool {
    let inject = format!("inject={call}:signal=KILL:when={n}");
    let line = format!("cryptsetup {OFFLINE} {COST} {options} disk.img");
    let mut command = Command::new(tool::find("strace").expect("asked for before"));
    command.current_dir(dir).args(["-f", "-o", "/dev/null", "-e"]);
    command.arg(format!("trace={call}")).args(["-e", &inject]).args(line.split_whitespace());
    process::run(&mut command).code != Some(0)
}

#[test]
fn what_cryptsetup_was_killed_in_we_finish() {
    if !tool::have(&["cryptsetup", "strace"]) {
        return;
    }
    for (sector_size, options) in [
        (512, "--hotzone-size 1M --resilience checksum --sector-size 4096"),
        (4096, "--hotzone-size 1M --resilience journal"),
        (512, "--hotzone-size 2M --resilience checksum --resilience-hash sha512 --key-size 256"),
    ] {
        let (dir, data) = folder(sector_size);
        let dir = dir.path();
        let (mut finished, mut hot) = (0, 0);
        // Its data are flushed by fdatasync, its headers by fsync.
        for (call, step) in [("fdatasync", 1), ("fsync", 5)] {
            for n in (1..60).step_by(step) {
                let case = format!("{options}, {call} {n}");
                copy(dir, "disk.img");
                if !kill_cryptsetup_at(dir, call, n, options) {
                    break;
                }
                if is_under_way(dir, "disk.img") {
                    let dump = varve(dir, "crypt dump --json disk.img").ok();
                    hot += u32::from(dump.contains("in-reencryption"));
                    if hot > 0 && hot % 4 == 1 {
                        let stack = Stack::backing("disk.img");
                        is_shown(dir, &["disk.img"], &stack, &data, &case);
                    }
                    let refused = varve(dir, "crypt test disk.img --key-file wrong");
                    assert_ne!(refused.code, Some(0), "{case}");
                    varve(dir, "crypt reencrypt --resume-only disk.img --key-file key").ok();
                    finished += 1;
                }
                is_whole(dir, "disk.img", &data, &case);
            }
        }
        assert!(finished >= 5 && hot >= 3, "{options}: {finished} taken up, {hot} of them hot");
    }
}

#[test]
fn what_we_were_killed_in_cryptsetup_finishes() {
    if !tool::have(&["cryptsetup"]) {
        return;
    }
    for (sector_size, options) in [
        (512, "--resilience checksum --sector-size 4096"),
        (4096, "--resilience journal --direction backward"),
        (512, "--resilience checksum --direction backward"),
    ] {
        let (dir, data) = folder(sector_size);
        let dir = dir.path();
        let line = format!("{options} {COST} --hotzone-size 32k");
        let line = format!("crypt reencrypt disk.img --key-file key {line}");
        let disk = dir.join("disk.img");
        kill_each(
            &line,
            (&disk, &disk),
            || copy(dir, "disk.img"),
            |case, _| {
                let case = format!("{options}, {case}");
                if is_under_way(dir, "disk.img") {
                    // A hot zone it wants to have recovered by a command of its own.
                    let dump = varve(dir, "crypt dump --json disk.img").ok();
                    if dump.contains("in-reencryption") {
                        cryptsetup(dir, "repair -q --disable-locks --key-file key disk.img").ok();
                    }
                    // Of the last zone that was all there was to do.
                    if is_under_way(dir, "disk.img") {
                        cryptsetup(dir, &format!("{OFFLINE} --resume-only disk.img")).ok();
                    }
                }
                is_whole(dir, "disk.img", &data, &case);
            },
        );
    }
}

/// Kills our command again and again, each time on a fresh disk: at places of the work, in a zone and between two;
/// and at any time, ever later, until one comes too late. `look` hears whether the command came to its end.
pub(crate) fn kill_each(
    line: &str,
    (header, disk): (&Path, &Path),
    fresh: impl Fn(),
    mut look: impl FnMut(&str, bool),
) {
    let dir = disk.parent().expect("a disk in a folder");
    let spawn = || {
        let mut command = Command::new(binary());
        command.current_dir(dir).args(line.split_whitespace());
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("varve starts")
    };
    for (mib, hot) in [(0, true), (0, false), (1, true), (2, false), (3, true)] {
        let case = format!("killed behind {mib} MiB, {}", if hot { "hot" } else { "not hot" });
        // A machine that is busy with other things may look too late.
        let killed = (0..10).any(|_| {
            fresh();
            let time = further(header, disk, mib << 20, hot);
            process::kill_when(&mut spawn(), process::LIMIT, time).is_ok()
        });
        assert!(killed, "{line}: not {case}");
        look(&case, false);
    }
    let mut after = Duration::from_millis(4);
    loop {
        fresh();
        let mut child = spawn();
        clock::pause(after);
        child.kill().expect("a kill");
        let ended = child.wait().expect("a child").success();
        look(&format!("killed after {after:?}"), ended);
        if ended {
            return;
        }
        after = after.mul_f64(1.3);
    }
}

/// Back and forth in one operation, and what only says how far it is.
#[test]
fn one_begins_and_the_other_goes_on() {
    if !tool::have(&["cryptsetup"]) {
        return;
    }
    let (dir, data) = folder(512);
    let dir = dir.path();
    copy(dir, "disk.img");
    varve(dir, &format!("crypt reencrypt --init-only disk.img --key-file key {COST}")).ok();
    let dump = cryptsetup(dir, "luksDump disk.img").ok();
    assert!(dump.contains("reencrypt") && dump.contains("Hash data:"), "{dump}");
    cryptsetup(dir, &format!("{OFFLINE} --resume-only disk.img")).ok();
    is_whole(dir, "disk.img", &data, "ours, finished by cryptsetup");
    cryptsetup(dir, &format!("{OFFLINE} {COST} --init-only disk.img")).ok();
    let refused = varve(dir, "crypt reencrypt disk.img --key-file key --cipher aes-xts-plain64");
    refused.exits_with(2);
    varve(dir, "crypt reencrypt disk.img --key-file key").ok();
    is_whole(dir, "disk.img", &data, "theirs, finished by us");
}
