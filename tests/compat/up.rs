//! `varve up`: the whole stack from nothing, and again where it was.

use std::process::Command;

use varve_tests::client::Server;
use varve_tests::mount::{self, LoopDisk};
use varve_tests::nbd::{FUA, Request};
use varve_tests::{disk, process, tool};

#[test]
fn up_makes_a_disk_once_and_resumes_where_it_was() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let server = Server::up(dir.path());
    for file in ["hdd.img", "ssd.img", "key"] {
        assert!(dir.path().join(file).is_file(), "no {file}");
    }
    assert!(server.connect().size() > 3 << 30, "the disk is too small");
    // Far from the file system's own blocks: a free place in the middle.
    let (at, data) = (2_u64 << 30, disk::noise(1, 1 << 16));
    let write = Request::Write { at, data: &data, flags: FUA };
    server.connect().ask(write).expect("the server stays").expect("a write");
    server.stop();
    let key = disk::sum_file(&dir.path().join("key"));

    let server = Server::up(dir.path());
    assert_eq!(server.connect().read(at, 1 << 16).expect("the server stays"), Ok(data.clone()));
    server.kill();

    let server = Server::up(dir.path());
    assert_eq!(server.connect().read(at, 1 << 16).expect("the server stays"), Ok(data));
    server.stop();
    assert_eq!(disk::sum_file(&dir.path().join("key")), key, "a second start made another key");
}

#[test]
fn up_holds_a_btrfs_that_the_kernel_uses_across_a_kill() {
    if !(mount::available() && mount::kernel_knows("btrfs") && tool::have(&["btrfs"])) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let server = Server::up(dir.path());
    let loop_disk = LoopDisk::open(&server.uri());
    let mounted = loop_disk.mount("btrfs");
    process::run(Command::new("cp").args(["-r", "/etc"]).arg(mounted.path().join("etc"))).ok();
    process::run(Command::new("sync").arg("--file-system").arg(mounted.path())).ok();
    let sums = disk::sum_tree(mounted.path());
    server.kill(); // under a mounted file system
    drop(mounted);
    drop(loop_disk);

    let server = Server::up(dir.path());
    let loop_disk = LoopDisk::open(&server.uri());
    let mounted = loop_disk.mount("btrfs");
    assert_eq!(disk::sum_tree(mounted.path()), sums);
    mounted.unmount();
    let check = ["check", "--readonly", "--check-data-csum"];
    process::run(Command::new("btrfs").args(check).arg(loop_disk.device())).ok();
    drop(loop_disk);
    server.stop();
}
