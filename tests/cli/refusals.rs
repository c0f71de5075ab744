//! Destruction must be spelled out: what holds something is not formatted, what is in use is not opened.

use std::process::Command;

use varve_tests::client::{Server, Stack};
use varve_tests::varve::{make_stack, varve};
use varve_tests::{disk, process, tool};

use crate::{refused, sums};

/// Formatting `disk` by each of our commands must be refused, naming what it holds; `--force` goes on.
#[track_caller]
fn asks_first(dir: &std::path::Path, holds: &str) {
    std::fs::write(dir.join("key"), "key").expect("a key");
    disk::sparse(&dir.join("fresh"), 64 << 20);
    let before = sums(dir, &["disk"]);
    let commands = [
        "cache make --backing disk --cache fresh --bucket 64k",
        "cache make --backing fresh --cache disk --bucket 64k",
        "crypt format disk --key-file key --pbkdf pbkdf2",
        "fs mkfs disk",
    ];
    for command in commands {
        let line = refused(varve(dir, command));
        assert!(line.contains("disk"), "names no device: {line}");
        assert!(line.to_lowercase().contains(holds), "does not say {holds}: {line}");
        assert_eq!(sums(dir, &["disk"]), before, "`{command}` has written before refusing");
        let fresh = std::fs::read(dir.join("fresh")).expect("the other disk");
        assert!(fresh.iter().all(|&byte| byte == 0), "`{command}` has written to the other disk");
    }
    varve(dir, &format!("{} --force", commands[2])).ok();
    assert_ne!(sums(dir, &["disk"]), before);
}

#[test]
fn a_disk_with_ext4_is_not_formatted() {
    if !tool::have(&["mkfs.ext4"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    disk::sparse(&dir.path().join("disk"), 128 << 20);
    let mkfs = tool::find("mkfs.ext4").expect("asked for above");
    process::run(Command::new(mkfs).args(["-q", "-F"]).arg(dir.path().join("disk"))).ok();
    asks_first(dir.path(), "ext");
}

#[test]
fn a_disk_with_our_own_btrfs_is_not_formatted() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    disk::sparse(&dir.path().join("disk"), 256 << 20);
    varve(dir.path(), "fs mkfs disk").ok();
    asks_first(dir.path(), "btrfs");
}

#[test]
fn a_volume_of_our_own_is_not_formatted() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    disk::sparse(&dir.path().join("disk"), 128 << 20);
    std::fs::write(dir.path().join("key"), "key").expect("a key");
    varve(dir.path(), "crypt format disk --key-file key --pbkdf pbkdf2").ok();
    asks_first(dir.path(), "luks");
}

#[test]
fn a_cache_set_of_our_own_is_not_formatted() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    disk::sparse(&dir.path().join("disk"), 128 << 20);
    disk::sparse(&dir.path().join("ssd"), 64 << 20);
    varve(dir.path(), "cache make --backing disk --cache ssd --bucket 64k").ok();
    asks_first(dir.path(), "bcache");
}

#[test]
fn a_cache_too_small_for_the_kernel_is_not_made() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path();
    disk::sparse(&dir.join("hdd"), 64 << 20);
    disk::sparse(&dir.join("ssd"), 512 * (64 << 10)); // 512 buckets; the kernel wants 513
    refused(varve(dir, "cache make --backing hdd --cache ssd --bucket 64k"));
    refused(varve(dir, "cache make --backing hdd --cache ssd"));
    for image in ["hdd", "ssd"] {
        let bytes = std::fs::read(dir.join(image)).expect("an image");
        assert!(bytes.iter().all(|&byte| byte == 0), "{image} was written to");
    }
    disk::sparse(&dir.join("ssd"), 513 * (64 << 10));
    varve(dir, "cache make --backing hdd --cache ssd --bucket 64k").ok();
}

#[test]
fn images_in_use_are_not_opened_twice() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path();
    let stack = make_stack(dir, 96 << 20, 36 << 20, "writeback", None);
    let server = Server::start(dir, &stack);
    let listen = format!("unix:{}", dir.join("second.sock").display());
    for second in
        [stack.clone(), Stack::backing("hdd").cache("ssd").flag("--no-crypt").flag("--read-only")]
    {
        let mut command = Command::new(varve_tests::varve::binary());
        command.current_dir(dir).arg("serve").args(second.args()).args(["--listen", &listen]);
        refused(process::run(&mut command));
    }
    refused(varve(dir, "cache make --backing hdd --cache ssd --bucket 64k --force"));
    assert!(server.connect().read(0, 4096).expect("the server stays").is_ok());
    server.stop();
    // Two readers do not disturb each other.
    let look = Stack::backing("hdd").cache("ssd").flag("--no-crypt").flag("--read-only");
    let first = Server::start(dir, &look);
    let socket = dir.join("second.sock");
    let mut command = Command::new(varve_tests::varve::binary());
    command.arg("serve").args(look.args()).args(["--listen", &listen]);
    let second = Server::listening(dir, command, &socket).expect("a second reader");
    second.connect().read(0, 4096).expect("the server stays").expect("a read");
    second.stop();
    first.stop();
}
