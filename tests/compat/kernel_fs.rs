//! The running kernel's own file systems on an export: `nbdfuse` and a loop device carry it there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use varve_tests::client::{Server, Stack};
use varve_tests::mount::{self, LoopDisk};
use varve_tests::varve::{make_stack, varve_in};
use varve_tests::{disk, process, tool};

const HDD: u64 = 640 << 20;
const SSD: u64 = 64 << 20;

/// Bounds of the tree that is copied: what every Debian machine has below these folders.
const FILES_MAX: usize = 3000;
const BYTES_MAX: u64 = 64 << 20;
const SOURCES: &[&str] = &["/usr/share", "/usr/include", "/usr/lib"];

/// Some thousand real files, smallest folders first in a fixed order, copied into a folder of our own so that
/// nothing changes them meanwhile.
fn real_tree(to: &Path) -> BTreeMap<String, String> {
    let (mut files, mut bytes) = (0, 0);
    let mut folders: Vec<PathBuf> = SOURCES.iter().rev().map(PathBuf::from).collect();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        let mut entries: Vec<_> = entries.filter_map(Result::ok).collect();
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                folders.push(entry.path());
            } else if meta.is_file() && bytes + meta.len() <= BYTES_MAX && files < FILES_MAX {
                let inside = entry.path().strip_prefix("/").expect("an absolute path").to_owned();
                let copy = to.join(inside);
                std::fs::create_dir_all(copy.parent().expect("a folder")).expect("a folder");
                std::fs::copy(entry.path(), copy).expect("copying a file");
                (files, bytes) = (files + 1, bytes + meta.len());
            }
        }
    }
    assert!(files > 1000, "only {files} files below {SOURCES:?}");
    disk::sum_tree(to)
}

/// Copies a real tree onto the file system of this type that is on the export; unmounts it, restarts the
/// server, mounts it again, compares every sum; and again after a copy, a delete and a rename.
fn holds_a_real_tree(dir: &Path, stack: &Stack, fs: &str, check: &[&str]) {
    let source = dir.join("source");
    std::fs::create_dir(&source).expect("a folder");
    let sums = real_tree(&source);

    let server = Server::start(dir, stack);
    let loop_disk = LoopDisk::open(&server.uri());
    let mounted = loop_disk.mount(fs);
    copy(&source, &mounted.path().join("tree"));
    mounted.unmount();
    drop(loop_disk);
    server.stop();

    let server = Server::start(dir, stack);
    let loop_disk = LoopDisk::open(&server.uri());
    checks_clean(check, loop_disk.device());
    let mounted = loop_disk.mount(fs);
    assert_same(&disk::sum_tree(&mounted.path().join("tree")), &sums);
    // Free what was written, and write over it: old blocks come back with new owners.
    copy(&source, &mounted.path().join("again"));
    std::fs::remove_dir_all(mounted.path().join("tree")).expect("deleting a tree");
    copy(&source, &mounted.path().join("third"));
    mounted.unmount();
    let mounted = loop_disk.mount(fs);
    assert_same(&disk::sum_tree(&mounted.path().join("again")), &sums);
    assert_same(&disk::sum_tree(&mounted.path().join("third")), &sums);
    mounted.unmount();
    checks_clean(check, loop_disk.device());
    drop(loop_disk);
    server.stop();
}

fn copy(from: &Path, to: &Path) {
    process::run(Command::new("cp").arg("-r").arg(from).arg(to)).ok();
}

#[track_caller]
fn assert_same(found: &BTreeMap<String, String>, expected: &BTreeMap<String, String>) {
    let differ: Vec<_> =
        expected.iter().filter(|(name, sum)| found.get(*name) != Some(sum)).collect();
    assert!(differ.is_empty(), "{} files differ, first {:?}", differ.len(), differ[0]);
    assert_eq!(found.len(), expected.len(), "files that nobody copied");
}

#[track_caller]
fn checks_clean(check: &[&str], device: &Path) {
    process::run(Command::new(check[0]).args(&check[1..]).arg(device)).ok();
}

const EXT4_CHECK: &[&str] = &["e2fsck", "-fn"];
const BTRFS_CHECK: &[&str] = &["btrfs", "check", "--readonly", "--check-data-csum"];

fn ready(fs: &str, tools: &[&str]) -> bool {
    mount::available() && mount::kernel_knows(fs) && tool::have(tools)
}

/// Runs the tool that makes a file system on the export.
fn make_fs(dir: &Path, stack: &Stack, command: &[&str]) {
    let server = Server::start(dir, stack);
    let loop_disk = LoopDisk::open(&server.uri());
    process::run(Command::new(command[0]).args(&command[1..]).arg(loop_disk.device())).ok();
    drop(loop_disk);
    server.stop();
}

#[test]
fn ext4_holds_a_real_tree() {
    if !ready("ext4", &["mkfs.ext4", "e2fsck"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let stack = make_stack(dir.path(), HDD, SSD, "writeback", Some("key"));
    make_fs(dir.path(), &stack, &["mkfs.ext4", "-q", "-F"]);
    holds_a_real_tree(dir.path(), &stack, "ext4", EXT4_CHECK);
}

#[test]
fn btrfs_of_btrfs_progs_holds_a_real_tree() {
    if !ready("btrfs", &["mkfs.btrfs", "btrfs"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let stack = make_stack(dir.path(), HDD, SSD, "writeback", Some("key"));
    make_fs(dir.path(), &stack, &["mkfs.btrfs", "-q", "-f"]);
    holds_a_real_tree(dir.path(), &stack, "btrfs", BTRFS_CHECK);
}

#[test]
fn btrfs_of_our_own_mkfs_holds_a_real_tree() {
    if !ready("btrfs", &["btrfs"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let stack = make_stack(dir.path(), HDD, SSD, "writethrough", Some("key"));
    let command = ["fs", "mkfs", "--backing", "hdd", "--cache", "ssd", "--key-file", "key"];
    varve_in(dir.path(), command).ok();
    holds_a_real_tree(dir.path(), &stack, "btrfs", BTRFS_CHECK);
}

#[test]
fn a_label_of_our_own_mkfs_is_what_the_tools_show() {
    if !tool::have(&["btrfs"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    disk::sparse(&dir.path().join("disk.img"), 256 << 20);
    varve_in(dir.path(), ["fs", "mkfs", "disk.img", "--label", "x"]).ok();
    let image = dir.path().join("disk.img");
    let label = process::run(Command::new("btrfs").args(["filesystem", "label"]).arg(&image)).ok();
    assert_eq!(label.trim(), "x");
    checks_clean(BTRFS_CHECK, &image);
}
