//! Varve itself inside the guest, on the guest's disks: the power goes while it writes, and what its
//! client had flushed must be there, for us and for the kernel's bcache.
//!
//! Unlike a `kill -9`, this loses what the guest's page cache and the disks' queues held.

use varve_tests::client::{Server, Stack};
use varve_tests::varve::{self, make_stack};
use varve_tests::{disk, tool};

use crate::golden::read_in_guest;
use crate::{LIMIT, vm};

/// Cuts the power under a file system on Varve, in this cache mode, then compares every synced file.
fn synced_files_survive(mode: &str) {
    let Some(vm) = vm() else { return };
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path();
    let stack = make_stack(dir, 160 << 20, 40 << 20, mode, Some("key of the cut"));
    let (hdd, ssd, key) = (dir.join("hdd"), dir.join("ssd"), dir.join("key"));
    let out = vm
        .guest_script("serve-and-cut.sh", &[("MODE", mode)])
        .file("varve", varve::binary())
        .file("key", &key)
        .disk(&hdd)
        .disk(&ssd)
        .run(LIMIT);
    if out.stdout.contains("cannot run here") {
        return tool::skip("this machine's varve does not run on the guest's C library");
    }
    assert_eq!(out.code, None, "no power cut: {out}");
    let sums = out.file("sums");
    assert!(sums.lines().count() > 50, "cut too early: {out}");

    // The kernel's view first: it replays our journal on a snapshot of the images.
    let kernel = read_in_guest(&vm, &hdd, &ssd, Some(&key), "luks2", "btrfs");
    for line in sums.lines() {
        let (sum, path) = line.split_once("  ").expect("a sum and a name");
        assert_eq!(kernel.files.get(path).map(String::as_str), Some(sum), "{mode}: {path}");
    }
    // Ours must be the same, to the byte.
    let below = Stack::backing("hdd").cache("ssd").flag("--no-crypt").flag("--read-only");
    let server = Server::start(dir, &below);
    assert_eq!(disk::sum_export(&mut server.connect()), kernel.device, "{mode}: the device");
    server.stop();
    // And it goes on from there.
    let server = Server::start(dir, &stack);
    server.stop();
}

#[test]
fn writeback_keeps_synced_files_through_a_power_cut() {
    synced_files_survive("writeback");
}

#[test]
fn writethrough_keeps_synced_files_through_a_power_cut() {
    synced_files_survive("writethrough");
}
