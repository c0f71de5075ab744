//! A kernel file system loses its disk in the middle of its work: what it had synced must be there, and its
//! own checker must find nothing wrong after its own recovery.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use varve_tests::client::Server;
use varve_tests::mount::{self, LoopDisk};
use varve_tests::varve::make_stack;
use varve_tests::{clock, disk, process, tool};

fn synced_files_survive(fs: &str, mkfs: &[&str], check: &[&str]) {
    let tools = [mkfs[0], check[0], "sync"];
    if !(mount::available() && mount::kernel_knows(fs) && tool::have(&tools)) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let stack = make_stack(dir.path(), 320 << 20, 48 << 20, "writeback", Some("key"));
    let server = Server::start(dir.path(), &stack);
    let loop_disk = LoopDisk::open(&server.uri());
    process::run(Command::new(mkfs[0]).args(&mkfs[1..]).arg(loop_disk.device())).ok();
    let mounted = loop_disk.mount(fs);
    let synced = mounted.path().join("synced");
    process::run(Command::new("cp").args(["-r", "/etc"]).arg(&synced)).ok();
    std::fs::write(synced.join("noise"), disk::noise(9, 5 << 20)).expect("a file");
    process::run(Command::new("sync").arg("--file-system").arg(mounted.path())).ok();
    let sums = disk::sum_tree(&synced);

    let mut writer = write_for_ever(mounted.path());
    clock::pause(Duration::from_millis(1500));
    server.kill();
    process::end(&mut writer);
    drop(mounted);
    drop(loop_disk);

    let server = Server::start(dir.path(), &stack);
    let loop_disk = LoopDisk::open(&server.uri());
    let mounted = loop_disk.mount(fs);
    assert_eq!(disk::sum_tree(&mounted.path().join("synced")), sums);
    mounted.unmount();
    process::run(Command::new(check[0]).args(&check[1..]).arg(loop_disk.device())).ok();
    drop(loop_disk);
    server.stop();
}

/// Makes, fills, syncs and deletes files until it is killed.
fn write_for_ever(dir: &Path) -> std::process::Child {
    let line = "n=0; while :; do n=$((n + 1)); \
                head -c $((n % 7 * 30000 + 100)) /dev/urandom >f$n || exit; \
                [ $((n % 5)) != 0 ] || sync -d f$n; rm -f f$((n - 40)); done";
    let command = ["-c", line];
    Command::new("sh")
        .args(command)
        .current_dir(dir)
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("a shell")
}

#[test]
fn ext4_keeps_synced_files_when_its_disk_is_killed() {
    synced_files_survive("ext4", &["mkfs.ext4", "-q", "-F"], &["e2fsck", "-fn"]);
}

#[test]
fn btrfs_keeps_synced_files_when_its_disk_is_killed() {
    let check = ["btrfs", "check", "--readonly", "--check-data-csum"];
    synced_files_survive("btrfs", &["mkfs.btrfs", "-q", "-f"], &check);
}
