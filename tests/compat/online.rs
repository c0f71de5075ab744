//! Re-encryption of a volume that is being served and written to, by servers that are killed.

use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use varve_tests::client::{Server, Stack};
use varve_tests::nbd::{FUA, Nbd, Request};
use varve_tests::reencryption::further;
use varve_tests::varve::{binary, varve};
use varve_tests::{clock, disk, tool};

use crate::reencrypt::{COST, OFFLINE, copy, cryptsetup, folder, is_under_way, is_whole};

const BLOCK: usize = 4096;
/// How much further the work is when its server is killed: three of them leave half of the payload.
const SHARE: u64 = 1 << 20;

/// What the client knows of the disk: every answered write, and the one without an answer.
struct Known {
    data: Vec<u8>,
    open: Option<(usize, Vec<u8>)>,
}

fn stack() -> Stack {
    Stack::backing("disk.img").with("--key-file", "key").with("--control", "unix:c.sock")
}

fn online(dir: &std::path::Path, more: &str) -> Child {
    let line = format!("crypt reencrypt --online --control unix:c.sock --key-file key {more}");
    let mut command = Command::new(binary());
    command.current_dir(dir).args(line.split_whitespace());
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("varve starts")
}

/// Writes and reads back until the server is gone or `most` requests were made.
fn load(mut nbd: Nbd, mut known: Known, seed: u64, most: u64) -> JoinHandle<Known> {
    #[expect(clippy::disallowed_methods, reason = "a client is no part of the program")]
    std::thread::spawn(move || {
        let blocks = known.data.len() / BLOCK;
        let noise = disk::noise(seed, BLOCK * 5);
        for n in 0..most {
            let draw = (n + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
            let count = 1 + usize::try_from(draw % 4).expect("small");
            let first = usize::try_from(draw >> 8).expect("64 bits") % (blocks - count);
            let (at, len) = (first * BLOCK, count * BLOCK);
            if draw >> 4 & 3 == 0 {
                let Ok(read) = nbd.read(at as u64, u32::try_from(len).expect("small")) else {
                    break;
                };
                assert!(read.expect("a read") == known.data[at..at + len], "block {first}");
                continue;
            }
            let skip = usize::try_from(n).expect("few") % BLOCK;
            let data = noise[skip..skip + len].to_vec();
            let flags = if n.is_multiple_of(3) { FUA } else { 0 };
            known.open = Some((at, data.clone()));
            match nbd.ask(Request::Write { at: at as u64, data: &data, flags }) {
                Ok(answer) => answer.expect("a write"),
                Err(_) => break,
            }
            known.data[at..at + len].copy_from_slice(&data);
            known.open = None;
        }
        known
    })
}

fn read_all(nbd: &mut Nbd) -> Vec<u8> {
    let mut found = Vec::new();
    while (found.len() as u64) < nbd.size() {
        let at = found.len() as u64;
        let len = u32::try_from((nbd.size() - at).min(1 << 20)).expect("a piece");
        found.extend(nbd.read(at, len).expect("the server stays").expect("a read"));
    }
    found
}

fn look(dir: &std::path::Path, known: Known, case: &str) -> Known {
    look_at(dir, &stack(), known, case)
}

/// Reads the disk through a new server. The write without an answer may have come to pass, per sector.
fn look_at(dir: &std::path::Path, stack: &Stack, mut known: Known, case: &str) -> Known {
    let server = Server::start(dir, stack);
    let found = read_all(&mut server.connect());
    server.stop();
    if let Some((at, data)) = known.open.take() {
        for (n, new) in data.chunks(512).enumerate() {
            let at = at + n * 512;
            if found[at..at + 512] == *new {
                known.data[at..at + 512].copy_from_slice(new);
            }
        }
    }
    let differs = known.data.chunks(512).zip(found.chunks(512)).position(|(a, b)| a != b);
    assert_eq!(differs, None, "{case}: first sector that differs");
    known
}

#[test]
fn a_served_volume_gets_another_key_through_kills_and_under_load() {
    if !tool::have(&["cryptsetup"]) {
        return;
    }
    let (dir, data) = folder(4096);
    let dir = dir.path();
    for (finish, options) in [
        ("we", "--resilience checksum"),
        ("cryptsetup", "--resilience journal --direction backward"),
        ("online", "--resilience checksum --direction backward"),
    ] {
        copy(dir, "disk.img");
        let disk = dir.join("disk.img");
        let mut known = Known { data: data.clone(), open: None };
        for round in 0..4u64 {
            let case = format!("{finish}, {options}, round {round}");
            let more = match is_under_way(dir, "disk.img") {
                true => "--resume-only".into(),
                false => format!("{COST} {options}"),
            };
            let server = Server::start(dir, &stack());
            let writer = load(server.connect(), known, round + 1, u64::MAX);
            let mut work = online(dir, &format!("--hotzone-size 128k --rate 4M {more}"));
            if round == 0 {
                // Before the beginning, or in it.
                clock::pause(Duration::from_millis(150));
                server.kill();
            } else {
                server.kill_when(further(&disk, &disk, SHARE, round == 2));
            }
            work.wait().expect("a child");
            known = writer.join().expect("the client saw what it wrote");
            known = look(dir, known, &case);
        }
        match finish {
            "we" => varve(dir, "crypt reencrypt --resume-only disk.img --key-file key").ok(),
            "cryptsetup" => cryptsetup(dir, &format!("{OFFLINE} --resume-only disk.img")).ok(),
            _ => {
                let server = Server::start(dir, &stack());
                let writer = load(server.connect(), known, 99, 400);
                let mut work = online(dir, "--resume-only");
                assert!(work.wait().expect("a child").success(), "{options}");
                known = writer.join().expect("the client saw what it wrote");
                server.stop();
                String::new()
            }
        };
        is_whole(dir, "disk.img", &known.data, &format!("{finish}, {options}"));
    }
}

/// What cryptsetup left half done is served, written to, and done by cryptsetup.
#[test]
fn a_half_done_volume_is_served_as_it_is() {
    if !tool::have(&["cryptsetup", "strace"]) {
        return;
    }
    let (dir, data) = folder(512);
    let dir = dir.path();
    copy(dir, "disk.img");
    let options = "--hotzone-size 1M --resilience checksum";
    assert!(crate::reencrypt::kill_cryptsetup_at(dir, "fdatasync", 3, options));
    let known = Known { data, open: None };
    let server = Server::start(dir, &stack());
    let known = load(server.connect(), known, 5, 600).join().expect("the client saw its writes");
    // A volume between two keys says so, and a stop leaves it there.
    server.stop();
    assert!(is_under_way(dir, "disk.img"));
    let known = look(dir, known, "served half done");
    cryptsetup(dir, &format!("{OFFLINE} --resume-only disk.img")).ok();
    is_whole(dir, "disk.img", &known.data, "finished by cryptsetup");
}

/// A plain disk gets its header, and loses it again, under a client and through kills: in turns online, and at
/// last by cryptsetup.
#[test]
fn a_served_disk_is_encrypted_and_decrypted_through_kills_and_under_load() {
    if !tool::have(&["cryptsetup"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path();
    std::fs::write(dir.join("key"), "a key for a disk").expect("a key");
    // Two and a half times as long as what moves.
    let (plain, shift) = (disk::noise(77, 10 << 20), 4 << 20);
    let mut image = plain.clone();
    image.resize(plain.len() + 2 * shift, 0);
    std::fs::write(dir.join("disk.img"), image).expect("a disk");
    let begin = "crypt reencrypt disk.img --key-file key --init-only";
    varve(dir, &format!("{begin} --encrypt --reduce-device-size 8M {COST}")).ok();
    let mut known = Known { data: plain, open: None };
    known = through_kills(dir, &stack(), "disk.img", known);
    cryptsetup(dir, &format!("{OFFLINE} --resume-only disk.img")).ok();
    // The volume goes to the end of the disk now.
    known.data = whole(dir, &stack(), &known.data);
    is_whole(dir, "disk.img", &known.data, "encrypted");

    let how = "--decrypt --header head.img --resilience datashift-journal";
    varve(dir, &format!("{begin} {how} {COST}")).ok();
    let stack = stack().with("--header", "head.img");
    known = through_kills(dir, &stack, "head.img", known);
    cryptsetup(dir, &format!("{OFFLINE} --resume-only --header head.img disk.img")).ok();
    let disk = std::fs::read(dir.join("disk.img")).expect("the disk");
    assert!(disk[..known.data.len()] == known.data, "decrypted");
}

/// Serves, writes, works and kills, until it was killed in the middle three times.
fn through_kills(dir: &std::path::Path, stack: &Stack, header: &str, mut known: Known) -> Known {
    for round in 0..3u64 {
        let server = Server::start(dir, stack);
        let writer = load(server.connect(), known, round + 11, u64::MAX);
        let mut work = online(dir, "--hotzone-size 128k --rate 4M --resume-only");
        server.kill_when(further(&dir.join(header), &dir.join("disk.img"), SHARE, round == 1));
        work.wait().expect("a child");
        known = writer.join().expect("the client saw what it wrote");
        assert!(is_under_way(dir, header), "{header}, round {round}");
        known = look_at(dir, stack, known, &format!("{header}, round {round}"));
    }
    known
}

/// What a server reads, of which the beginning is known.
fn whole(dir: &std::path::Path, stack: &Stack, begins: &[u8]) -> Vec<u8> {
    let server = Server::start(dir, stack);
    let found = read_all(&mut server.connect());
    server.stop();
    assert!(found.starts_with(begins), "other data");
    found
}
