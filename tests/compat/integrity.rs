//! Volumes with integrity through the command line: what cryptsetup says of ours, and what a client gets
//! where a disk rots.

use std::path::Path;
use std::process::Command;

use varve_tests::client::{Server, Stack};
use varve_tests::nbd::{Errno, Request};
use varve_tests::varve::varve;
use varve_tests::{disk, process, tool};

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    disk::sparse(&dir.path().join("disk.img"), 24 << 20);
    std::fs::write(dir.path().join("key"), "a key").expect("a key");
    dir
}

fn format(dir: &Path, options: &str) -> process::Finished {
    let rest = "--key-file key --pbkdf pbkdf2 --pbkdf-force-iterations 1000";
    varve(dir, &format!("crypt format disk.img {rest} {options}"))
}

#[test]
fn cryptsetup_says_of_our_volumes_what_we_say() {
    if !tool::have(&["cryptsetup"]) {
        return;
    }
    for (options, cipher, integrity, bits) in [
        ("--integrity hmac-sha256", "aes-xts-plain64", "hmac(sha256)", 768),
        ("--cipher aes-gcm-random --integrity aead", "aes-gcm-random", "aead", 256),
        ("--cipher chacha20-random --integrity poly1305", "chacha20-random", "poly1305", 256),
    ] {
        let dir = folder();
        let dir = dir.path();
        format(dir, options).ok();
        let theirs = process::run(
            Command::new(tool::find("cryptsetup").expect("asked for before"))
                .current_dir(dir)
                .args(["luksDump", "disk.img"]),
        )
        .ok();
        let ours = varve(dir, "crypt dump disk.img").ok();
        for line in [
            format!("cipher: {cipher}"),
            format!("integrity: {integrity}"),
            format!("Key:        {bits} bits"),
        ] {
            assert!(theirs.contains(&line), "{options}: no {line:?} in\n{theirs}");
            assert!(ours.contains(&line), "{options}: no {line:?} in\n{ours}");
        }
        assert!(ours.contains("Integrity superblock"), "{ours}");
        let json = varve(dir, "crypt dump disk.img --json").ok();
        assert!(json.contains("\"provided_sectors\""), "{json}");
        varve(dir, "crypt test disk.img --key-file key").ok();
    }
}

#[test]
fn a_rotten_sector_is_an_error_for_the_client_and_its_neighbours_are_not() {
    let dir = folder();
    let dir = dir.path();
    format(dir, "--integrity hmac-sha256 --sector-size 4096").ok();
    let stack = Stack::backing("disk.img").with("--key-file", "key");
    let server = Server::start(dir, &stack);
    let mut nbd = server.connect();
    let data = disk::noise(1, 65536);
    nbd.ask(Request::Write { at: 0, data: &data, flags: 0 }).expect("served").expect("a write");
    drop(nbd);
    server.stop();
    // Sector 0 lies behind superblock, journal (one section of 264 sectors) and 256 sectors of tags.
    let at = (16 << 20) + (8 + 264 + 256) * 512 + 2 * 4096 + 100;
    let image = std::fs::read(dir.join("disk.img")).expect("an image");
    let byte = image[usize::try_from(at).expect("small")];
    disk::damage(&dir.join("disk.img"), at, &[byte ^ 4]);
    let server = Server::start(dir, &stack);
    let mut nbd = server.connect();
    let good = nbd.read(0, 8192).expect("served").expect("before it");
    assert!(good == data[..8192]);
    let good = nbd.read(12288, 4096).expect("served").expect("behind it");
    assert!(good == data[12288..16384]);
    assert_eq!(nbd.read(0, 65536).expect("served").err(), Some(Errno::EIO));
    let log = server.log();
    let told = log.lines().find(|line| line.contains("a request failed"));
    let told = told.unwrap_or_else(|| panic!("the operator is not told: {log}"));
    assert!(told.contains("disk.img") && told.contains("sector"), "{told}");
    // Written anew, it is whole.
    nbd.ask(Request::Write { at: 8192, data: &data[8192..12288], flags: 0 })
        .expect("served")
        .expect("a write");
    assert!(nbd.read(0, 65536).expect("served").expect("all of it") == data);
    drop(nbd);
    server.stop();
}

#[test]
fn what_cannot_be_made_is_refused_and_the_disk_stays_as_it_is() {
    let dir = folder();
    let dir = dir.path();
    let before = disk::sum_file(&dir.join("disk.img"));
    for (options, words) in [
        ("--integrity cmac-aes", "only aes-xts with hmac"),
        ("--integrity hmac-sha256 --type luks1", "LUKS1 has no integrity"),
        ("--integrity aead", "only aes-xts with hmac"),
        ("--cipher aes-gcm-random --integrity aead --key-size 512", "aes-gcm 128 or 256"),
        ("--cipher aes-gcm-random", "not implemented"),
    ] {
        let said = format(dir, options).exits_with(3);
        assert!(said.contains(words), "{options}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    format(dir, "--integrity-no-wipe").exits_with(2);
    assert_eq!(disk::sum_file(&dir.join("disk.img")), before);
}
