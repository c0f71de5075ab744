//! Where the secrets of a running server are: in pages that are locked and kept out of core files, and
//! nowhere else.
//!
//! What is expected in memory: the volume key (as a key, and as the first round keys of each schedule
//! that was expanded from it), in pages with the flags `lo` (locked) and `dd` (not dumped). What is not:
//! a copy of it on the heap or a stack, the passphrase anywhere once the volume is open, and either of
//! them in a file, an argument or a log.

use std::fs::File;
use std::os::unix::fs::FileExt;

use varve_tests::client::{Server, Stack};
use varve_tests::nbd::{FUA, Request};
use varve_tests::process;
use varve_tests::varve::varve;
use varve_tests::{disk, tool};

const SECRET: &str = "a passphrase that is found nowhere else: 6d1f0c";
const PIECE: usize = 1 << 20;

/// A part of an address space.
struct Region {
    start: u64,
    end: u64,
    name: String,
    /// `lo` and `dd` are set.
    guarded: bool,
    /// It is the file of a disk or the like, mapped: its content is not ours.
    file: bool,
}

fn regions(pid: u32) -> Vec<Region> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps")).expect("the server's maps");
    let mut found: Vec<Region> = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            let has = |flag| flags.split_whitespace().any(|f| f == flag);
            let last = found.last_mut().expect("flags follow their region");
            last.guarded = has("lo") && has("dd");
            if !has("rd") {
                found.pop();
            }
        } else if let Some((start, end)) = words[0].split_once('-') {
            let number = |text| u64::from_str_radix(text, 16);
            let (Ok(start), Ok(end)) = (number(start), number(end)) else { continue };
            let name = words.get(5).map_or("anonymous", |name| name).to_owned();
            let file = name.starts_with('/');
            found.push(Region { start, end, name, guarded: false, file });
        }
    }
    found
}

/// Every place where `needle` lies.
pub(crate) fn find(pid: u32, needle: &[u8]) -> Vec<(u64, bool, String)> {
    let memory = File::open(format!("/proc/{pid}/mem")).expect("the server's memory");
    let mut places = Vec::new();
    let mut piece = vec![0; PIECE + needle.len()];
    for region in regions(pid).iter().filter(|r| !r.file && !r.name.starts_with("[v")) {
        let mut at = region.start;
        while at < region.end {
            let want = piece.len().min(usize::try_from(region.end - at).expect("a size"));
            let Ok(n) = memory.read_at(&mut piece[..want], at) else { break };
            let starts = 0..n.saturating_sub(needle.len() - 1).min(PIECE);
            places.extend(
                starts
                    .filter(|&i| piece[i..].starts_with(needle))
                    .map(|i| (at + i as u64, region.guarded, region.name.clone())),
            );
            at += PIECE as u64;
        }
    }
    places
}

#[test]
fn a_served_volume_keeps_its_key_in_locked_pages_only() {
    if !tool::have(&["cryptsetup"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path();
    disk::sparse(&dir.join("disk.img"), 24 << 20);
    std::fs::write(dir.join("pass"), format!("{SECRET}\n")).expect("a passphrase");
    let cost = "--pbkdf argon2id --pbkdf-force-iterations 4 --pbkdf-memory 64k";
    varve(dir, &format!("crypt format disk.img --passphrase-file pass {cost}")).ok();
    let dump = "cryptsetup luksDump -q --dump-volume-key --volume-key-file vk disk.img < pass";
    process::sh(&format!("cd {} && {dump}", dir.display())).ok();
    let key = std::fs::read(dir.join("vk")).expect("the volume key");
    assert_eq!(key.len(), 64);

    let stack = Stack::backing("disk.img").with("--passphrase-file", "pass");
    let server = Server::start(dir, &stack);
    let mut nbd = server.connect();
    let data = disk::noise(5, 256 << 10);
    nbd.ask(Request::Write { at: 8192, data: &data, flags: FUA })
        .expect("it stays")
        .expect("a write");
    assert_eq!(nbd.read(8192, 256 << 10).expect("it stays"), Ok(data));

    let pid = server.pid();
    if File::open(format!("/proc/{pid}/mem")).is_err() {
        println!("skipped: the server's memory is closed to us, as it should be to all but root");
        server.stop();
        return;
    }
    // Half of it is enough to find a schedule: AES-256 round keys begin with the key itself.
    let mut found = 0;
    for half in key.chunks(32) {
        for (at, guarded, name) in find(pid, half) {
            assert!(guarded, "a half of the volume key at {at:#x} in {name}, which is not guarded");
            found += 1;
        }
    }
    assert!(found > 0, "the search finds what is there");
    assert_eq!(find(pid, SECRET.as_bytes()), [], "the passphrase is still in memory");
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("its limits");
    let core = limits.lines().find(|l| l.starts_with("Max core file size")).expect("a limit");
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).expect("its arguments");
    assert!(!line.windows(SECRET.len()).any(|w| w == SECRET.as_bytes()));
    assert!(!server.log().contains(SECRET));
    server.stop();
}
