//! Truncated, zeroed and scribbled devices: an error that names the device, never a panic, never a write.

use std::fs::File;
use std::path::Path;

use varve_tests::client::{Server, Stack};
use varve_tests::disk::{damage, noise};
use varve_tests::nbd::{FUA, Request};
use varve_tests::varve::{make_stack, varve};

use crate::{refused, sums};

const HDD: u64 = 96 << 20;
const SSD: u64 = 36 << 20;

/// A killed write-back pair with encryption; its last dirty block is near the disk's end.
fn pair(dir: &Path) {
    let stack = make_stack(dir, HDD, SSD, "writeback", Some("key"));
    let server = Server::start(dir, &stack);
    let mut nbd = server.connect();
    let last = nbd.size() - (1 << 20);
    for (n, at) in [0, 5 << 20, 30 << 20, last].into_iter().enumerate() {
        let data = noise(n as u64, 200_704);
        let write = Request::Write { at, data: &data, flags: FUA };
        nbd.ask(write).expect("the server stays").expect("a write");
    }
    server.kill();
}

fn whole() -> Stack {
    Stack::backing("hdd").cache("ssd").with("--key-file", "key")
}

/// A copy of the pair, to be damaged.
fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().expect("a temporary folder");
    for file in ["hdd", "ssd", "key"] {
        let source = from.join(file);
        varve_tests::process::run(
            std::process::Command::new("cp").arg("--sparse=always").arg(source).arg(to.path()),
        )
        .ok();
    }
    to
}

/// Serving must be refused, writable and read-only, without a write; the error must name `device`.
#[track_caller]
fn refused_untouched(dir: &Path, device: &str) {
    let before = sums(dir, &["hdd", "ssd"]);
    for stack in [whole(), whole().flag("--read-only")] {
        match Server::try_start(dir, &stack) {
            Ok(server) => panic!("served {:?}\n{}", stack.args(), server.log()),
            Err(finished) => {
                let line = refused(finished);
                assert!(line.contains(device), "does not name {device}: {line}");
            }
        }
    }
    assert_eq!(sums(dir, &["hdd", "ssd"]), before, "refusing has written");
}

fn truncate(path: &Path, len: u64) {
    File::options().write(true).open(path).and_then(|file| file.set_len(len)).expect("truncating");
}

#[test]
fn truncated_superblocks_are_refused() {
    let origin = tempfile::tempdir().expect("a temporary folder");
    pair(origin.path());
    for device in ["hdd", "ssd"] {
        for len in [0, 512, 4096, 4096 + 512] {
            let dir = copy(origin.path());
            truncate(&dir.path().join(device), len);
            refused_untouched(dir.path(), device);
        }
    }
}

#[test]
fn zeroed_and_scribbled_superblocks_are_refused() {
    let origin = tempfile::tempdir().expect("a temporary folder");
    pair(origin.path());
    for device in ["hdd", "ssd"] {
        for (at, bytes) in [
            (4096, vec![0; 4096]),
            (4096, noise(1, 4096)),
            (4096 + 24, vec![0; 16]),   // magic
            (4096 + 0x10, vec![77; 8]), // version
            (4096 + 0xc0, vec![3, 0]),  // block size
        ] {
            let dir = copy(origin.path());
            damage(&dir.path().join(device), at, &bytes);
            refused_untouched(dir.path(), device);
        }
    }
}

#[test]
fn a_cache_device_shorter_than_its_superblock_says_is_refused() {
    let origin = tempfile::tempdir().expect("a temporary folder");
    pair(origin.path());
    let dir = copy(origin.path());
    truncate(&dir.path().join("ssd"), SSD - (1 << 20));
    refused_untouched(dir.path(), "ssd");
}

#[test]
fn a_disk_too_short_for_its_dirty_data_loses_none_of_the_rest() {
    let origin = tempfile::tempdir().expect("a temporary folder");
    pair(origin.path());
    let dir = copy(origin.path());
    let dir = dir.path();
    truncate(&dir.join("hdd"), HDD - (8 << 20));
    match Server::try_start(dir, &whole().flag("--read-only")) {
        Err(finished) => {
            refused(finished);
        }
        Ok(mut server) => {
            let mut nbd = server.connect();
            assert!(nbd.size() < HDD - (8 << 20), "a size beyond the disk's own");
            let read = nbd.read(5 << 20, 200_704).expect("the server stays");
            assert_eq!(read, Ok(noise(1, 200_704)), "what lies inside the disk");
            assert!(server.alive(), "{}", server.log());
        }
    }
}

#[test]
fn a_volume_header_is_read_from_its_second_copy() {
    let origin = tempfile::tempdir().expect("a temporary folder");
    let origin = origin.path();
    varve_tests::disk::sparse(&origin.join("disk"), 48 << 20);
    std::fs::write(origin.join("key"), "key").expect("a key");
    varve(origin, "crypt format disk --key-file key --pbkdf pbkdf2").ok();
    let first = std::fs::read(origin.join("disk")).expect("the image")[..16384].to_vec();
    damage(&origin.join("disk"), 0, &noise(1, 4096));
    varve(origin, "crypt test disk --key-file key").ok();
    varve(origin, "crypt dump disk").ok();
    // Both gone: nothing to unlock. The second copy of a default header is at 16 KiB.
    damage(&origin.join("disk"), 16384, &noise(2, 4096));
    refused(varve(origin, "crypt test disk --key-file key"));
    refused(varve(origin, "crypt dump disk"));
    damage(&origin.join("disk"), 0, &first);
    varve(origin, "crypt test disk --key-file key").ok();
}

/// Scribbles anywhere in the metadata's half of the cache device, or at the head of the disk: served or
/// refused, but never a panic, a hang, or a write by a read-only server.
#[test]
fn scribbled_metadata_never_panics() {
    let origin = tempfile::tempdir().expect("a temporary folder");
    pair(origin.path());
    let dir = copy(origin.path());
    let dir = dir.path();
    for seed in 0..40_u64 {
        let device = if seed % 4 == 3 { "hdd" } else { "ssd" };
        let pristine = std::fs::read(origin.path().join(device)).expect("an image");
        let used: Vec<usize> = (8..pristine.len() / 512)
            .filter(|sector| pristine[sector * 512..][..512].iter().any(|&byte| byte != 0))
            .collect();
        let pick = noise(seed, 32);
        let word = u64::from_le_bytes(pick[..8].try_into().expect("eight bytes"));
        let sector = used[usize::try_from(word).expect("64 bits") % used.len()];
        let at = (sector * 512) as u64 + u64::from(pick[8]);
        let len = 1 << (pick[9] % 9);
        damage(&dir.join(device), at, &noise(seed + 100, len));

        let before = sums(dir, &["hdd", "ssd"]);
        match Server::try_start(dir, &whole().flag("--read-only")) {
            Err(finished) => {
                refused(finished);
            }
            Ok(mut server) => {
                let mut nbd = server.connect();
                for at in [0, 5 << 20, 30 << 20, nbd.size() - (1 << 20)] {
                    // Damaged data may come back damaged, or as an error; the server must stay.
                    let _ = nbd.read(at, 200_704).expect("the server stays");
                }
                assert!(server.alive(), "seed {seed}: {}", server.log());
            }
        }
        let check = varve(dir, "cache check --backing hdd --cache ssd");
        assert!(
            matches!(check.code, Some(0 | 1 | 3)) && !check.stderr.contains("panicked"),
            "seed {seed}: {check}"
        );
        assert_eq!(sums(dir, &["hdd", "ssd"]), before, "seed {seed}: looking has written");
        std::fs::write(dir.join(device), &pristine).expect("restoring the image");
    }
}
