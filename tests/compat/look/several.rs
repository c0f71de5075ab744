//! `--device`: a file system over two disks, looked at and taken from.

use std::process::Command;

use varve_tests::loop_mount;
use varve_tests::varve::varve;
use varve_tests::{disk, process, tool};

const FILL: &str = r#"
cd "$1"
loop=$(losetup --find --show b.img)
trap 'umount mnt 2>/dev/null || true; losetup --detach $loop' EXIT
mkfs.btrfs -q -d raid0 -m raid1 a.img $loop
mkdir mnt; mount -o loop,device=$loop a.img mnt
cp noise mnt/noise
btrfs -q subvolume snapshot -r mnt mnt/snap
sync; umount mnt; rmdir mnt
"#;

#[test]
fn files_and_streams_come_out_of_two_devices() {
    if !loop_mount::available() || !tool::have(&["losetup"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path();
    for name in ["a.img", "b.img"] {
        disk::sparse(&dir.join(name), 512 << 20);
    }
    let noise = disk::noise(3, 3 << 20);
    std::fs::write(dir.join("noise"), &noise).expect("a file");
    process::run(Command::new("bash").args(["-euc", FILL, "fill"]).arg(dir)).ok();

    varve(dir, "fs export a.img out --device b.img").ok();
    assert!(std::fs::read(dir.join("out/noise")).expect("the copy") == noise, "other bytes");
    assert!(std::fs::read(dir.join("out/snap/noise")).expect("the copy") == noise, "other bytes");
    varve(dir, "fs send a.img /snap --device b.img --file stream").ok();
    let sent = std::fs::metadata(dir.join("stream")).expect("the stream").len();
    assert!(sent > noise.len() as u64, "{sent} bytes");
    let chunks = varve(dir, "fs dump-tree b.img --device a.img -t chunk").ok();
    assert!(chunks.contains("RAID0"), "{chunks}");
    assert_eq!(varve(dir, "fs log list a.img --device b.img").ok(), "the log is empty\n");
    varve(dir, "fs image dump a.img --device b.img -o dump").ok();
    let names = |line: &str| varve(dir, line).ok();
    assert_eq!(names("fs ls -R dump"), names("fs ls -R a.img --device b.img"));
    varve(dir, "fs image restore dump one.img").ok();
    assert_eq!(names("fs ls -R one.img"), names("fs ls -R dump"));
    varve(dir, "fs check one.img").ok();
    let half = varve(dir, "fs image dump b.img -o half.dump");
    assert_eq!(half.code, Some(1), "the trees are on both, but that is not sure: {half}");
    assert!(half.stderr.contains("device 1 is missing"), "{half}");
    let alone = varve(dir, "fs export a.img half");
    assert_eq!(alone.code, Some(1), "half of a stripe set is no whole file: {alone}");
}
