//! What Varve wrote, opened by the kernel: after a `kill -9` with dirty data in the cache, and back again
//! after the kernel has written to it.

use std::path::Path;

use varve_tests::client::{Server, Stack};
use varve_tests::disk;
use varve_tests::ledger::Ledger;
use varve_tests::varve::make_stack;

use crate::golden::read_in_guest;
use crate::{LIMIT, vm};

const HDD: u64 = 96 << 20;
const SSD: u64 = 40 << 20;

/// Writes through `stack` until the server is killed; the first 24 MiB are in the ledger's hands.
fn write_and_die(dir: &Path, stack: &Stack, seed: u64) {
    let server = Server::start(dir, stack);
    let mut connections = [server.connect(), server.connect()];
    let mut ledger = Ledger::fill(&mut connections[0], 6144, seed);
    server.kill_in(std::time::Duration::from_millis(700));
    ledger.write_until_dead(&mut connections);
    server.wait_killed();
}

/// Replayed in memory: what we ourselves say the dead pair holds.
fn sum_read_only(dir: &Path, stack: Stack) -> String {
    let server = Server::start(dir, &stack.flag("--read-only"));
    let sum = disk::sum_export(&mut server.connect());
    server.stop();
    sum
}

#[test]
fn a_dirty_pair_of_ours_reads_the_same_in_the_kernel() {
    let Some(vm) = vm() else { return };
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path();
    let stack = make_stack(dir, HDD, SSD, "writeback", Some("a key of the test"));
    write_and_die(dir, &stack, 11);

    let (hdd, ssd) = (dir.join("hdd"), dir.join("ssd"));
    let kernel = read_in_guest(&vm, &hdd, &ssd, Some(&dir.join("key")), "luks2", "none");
    assert_eq!(kernel.state, "dirty", "write-back left nothing dirty: this test shows nothing");
    let below = Stack::backing("hdd").cache("ssd").flag("--no-crypt");
    assert_eq!(kernel.device, sum_read_only(dir, below), "the cached device");
    let above = Stack::backing("hdd").cache("ssd").with("--key-file", "key");
    assert_eq!(kernel.plain, Some(sum_read_only(dir, above)), "the decrypted device");
}

#[test]
fn the_kernel_writes_to_a_pair_of_ours_and_we_read_that() {
    let Some(vm) = vm() else { return };
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path();
    let stack = make_stack(dir, HDD, SSD, "writeback", None);
    write_and_die(dir, &stack, 12);

    // The kernel replays our journal, writes over some of our blocks, drains a part, and loses power.
    let (hdd, ssd) = (dir.join("hdd"), dir.join("ssd"));
    let out = vm.guest_script("overwrite.sh", &[]).disk(&hdd).disk(&ssd).run(LIMIT);
    assert_eq!(out.code, None, "no power cut: {out}");
    assert!(out.stdout.contains("written"), "{out}");
    let kernel = read_in_guest(&vm, &hdd, &ssd, None, "none", "none");
    let ours = Stack::backing("hdd").cache("ssd").flag("--no-crypt");
    assert_eq!(kernel.device, sum_read_only(dir, ours));

    // And once more in our hands: replayed for good, written to, stopped cleanly.
    let server = Server::start(dir, &stack);
    let mut connections = [server.connect()];
    let mut ledger = Ledger::fill(&mut connections[0], 1024, 13);
    ledger.write(&mut connections, 20).expect("the server stays");
    drop(connections);
    server.stop();
    let kernel = read_in_guest(&vm, &hdd, &ssd, None, "none", "none");
    let ours = Stack::backing("hdd").cache("ssd").flag("--no-crypt");
    assert_eq!(kernel.device, sum_read_only(dir, ours));
}

#[test]
fn the_kernel_unlocks_and_mounts_a_file_system_we_made() {
    let Some(vm) = vm() else { return };
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path();
    let stack = make_stack(dir, 160 << 20, SSD, "writethrough", Some("another key"));
    let key: Vec<_> =
        ["fs", "mkfs", "--backing", "hdd", "--cache", "ssd", "--key-file", "key"].into();
    varve_tests::varve::varve_in(dir, key).ok();
    let out = vm
        .guest_script("use-btrfs.sh", &[])
        .file("key", &dir.join("key"))
        .disk(&dir.join("hdd"))
        .disk(&dir.join("ssd"))
        .run(LIMIT);
    out.ok();
    let server = Server::start(dir, &stack.clone().flag("--read-only"));
    let plain = dir.join("plain.img");
    server.copy_to(&plain);
    server.stop();
    let text = varve_tests::varve::varve(dir, "fs cat plain.img /from-the-kernel").ok();
    assert_eq!(text, "written by the kernel\n");
}
