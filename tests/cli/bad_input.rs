//! Wrong keys and wrong pairs: one clear line, exit code 3, and not a byte written.

use std::path::Path;

use varve_tests::client::{Server, Stack};
use varve_tests::disk;
use varve_tests::nbd::{FUA, Request};
use varve_tests::process::Finished;
use varve_tests::varve::{make_stack, varve, varve_in};

use crate::{refused, sums};

const HDD: u64 = 96 << 20;
const SSD: u64 = 36 << 20;

/// A pair with dirty data in its cache, its server killed.
fn dirty_pair(dir: &Path, key: Option<&str>) -> Stack {
    let stack = make_stack(dir, HDD, SSD, "writeback", key);
    let server = Server::start(dir, &stack);
    let mut nbd = server.connect();
    for n in 0..20 {
        let data = disk::noise(n, 40_960);
        let write = Request::Write { at: n * (4 << 20), data: &data, flags: FUA };
        nbd.ask(write).expect("the server stays").expect("a write");
    }
    server.kill();
    stack
}

/// Serving must be refused.
#[track_caller]
fn does_not_start(dir: &Path, stack: &Stack) -> Finished {
    match Server::try_start(dir, stack) {
        Ok(server) => panic!("served {:?}\n{}", stack.args(), server.log()),
        Err(finished) => finished,
    }
}

#[test]
fn a_wrong_key_writes_nothing() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path();
    dirty_pair(dir, Some("the right key"));
    std::fs::write(dir.join("wrong"), "the wrong key").expect("a key");
    let before = sums(dir, &["hdd", "ssd"]);

    let wrong = Stack::backing("hdd").cache("ssd").with("--key-file", "wrong");
    let line = refused(does_not_start(dir, &wrong));
    assert!(line.contains("key") || line.contains("passphrase"), "{line}");
    assert!(!line.contains("the wrong key"), "the key itself is shown: {line}");
    for command in [
        "crypt test --backing hdd --cache ssd --key-file wrong",
        "fs ls --backing hdd --cache ssd --key-file wrong /",
        "fs mkfs --backing hdd --cache ssd --key-file wrong --force",
    ] {
        refused(varve(dir, command));
    }
    std::fs::write(dir.join("empty"), "").expect("a key");
    let empty = Stack::backing("hdd").cache("ssd").with("--key-file", "empty");
    refused(does_not_start(dir, &empty));
    let absent = Stack::backing("hdd").cache("ssd").with("--key-file", "absent");
    refused(does_not_start(dir, &absent));
    assert_eq!(sums(dir, &["hdd", "ssd"]), before, "a refused key has written");
    assert!(
        !dir.join("s.sock").exists()
            || std::os::unix::net::UnixStream::connect(dir.join("s.sock")).is_err()
    );
}

#[test]
fn halves_of_two_pairs_are_not_joined() {
    let (one, other) =
        (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let (one, other) = (one.path(), other.path());
    dirty_pair(one, None);
    dirty_pair(other, None);
    std::fs::rename(other.join("ssd"), one.join("other")).expect("moving an image");
    let before = sums(one, &["hdd", "other"]);
    for extra in [&[][..], &["--read-only"]] {
        let stack = Stack::backing("hdd").cache("other").flag("--no-crypt");
        let stack = extra.iter().fold(stack, |stack, flag| stack.flag(flag));
        let line = refused(does_not_start(one, &stack));
        assert!(line.contains("other") || line.contains("hdd"), "names no device: {line}");
    }
    assert_eq!(sums(one, &["hdd", "other"]), before);
}

#[test]
fn exchanged_devices_are_refused() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path();
    dirty_pair(dir, None);
    let before = sums(dir, &["hdd", "ssd"]);
    refused(does_not_start(dir, &Stack::backing("ssd").cache("hdd").flag("--no-crypt")));
    refused(does_not_start(dir, &Stack::backing("hdd").cache("hdd").flag("--no-crypt")));
    refused(does_not_start(dir, &Stack::backing("ssd").cache("ssd").flag("--no-crypt")));
    assert_eq!(sums(dir, &["hdd", "ssd"]), before);
}

#[test]
fn a_dirty_disk_is_not_served_without_its_cache() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path();
    dirty_pair(dir, None);
    let before = sums(dir, &["hdd"]);
    let alone = Stack::backing("hdd").flag("--no-crypt");
    let line = refused(does_not_start(dir, &alone));
    assert!(line.contains("dirty") || line.contains("cache"), "does not say why: {line}");
    refused(does_not_start(dir, &alone.clone().flag("--read-only")));
    refused(does_not_start(dir, &alone.clone().cache("gone")));
    // Old data may be looked at when that is asked for by name, and only looked at.
    let server = Server::start(dir, &alone.flag("--read-only").flag("--allow-stale"));
    let mut nbd = server.connect();
    assert!(nbd.read_only());
    assert_eq!(nbd.size(), HDD - 8192);
    nbd.read(0, 4096).expect("the server stays").expect("a read");
    drop(nbd);
    server.stop();
    assert_eq!(sums(dir, &["hdd"]), before);
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for line in [
        "",
        "frobnicate",
        "serve",
        "serve --listen unix:s.sock",
        "serve --backing x --listen nowhere",
        "serve --backing x --cache-mode writesideways --listen unix:s.sock",
        "cache make --backing x --cache y --bucket many",
        "cache make",
        "crypt format",
        "fs cat",
    ] {
        let finished = varve(dir.path(), line);
        assert!(!finished.stderr.is_empty(), "{finished}");
        finished.exits_with(2);
    }
}

#[test]
fn what_is_not_there_is_exit_code_3() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path();
    disk::sparse(&dir.join("empty"), 1 << 20);
    std::fs::create_dir(dir.join("folder")).expect("a folder");
    for line in [
        "serve --backing absent --listen unix:s.sock",
        "serve --backing folder --listen unix:s.sock",
        "cache make --backing absent --cache empty",
        "cache show --backing empty",
        "crypt dump empty",
        "crypt test empty --key-file absent",
        "fs ls absent /",
        "fs ls empty /",
        "fs cat empty /x",
    ] {
        let error = refused(varve(dir, line));
        let named = ["absent", "folder", "empty"].iter().any(|name| error.contains(name));
        assert!(named, "`{line}` names no device: {error}");
    }
}

#[test]
fn help_and_version_are_exit_code_0() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for noun in
        [&["--help"][..], &["--version"], &["serve", "--help"], &["cache", "make", "--help"]]
    {
        assert!(!varve_in(dir.path(), noun).ok().is_empty());
    }
}
