//! `varve fs show|df|usage|subvol list|inode-resolve|logical-resolve` against btrfs-progs.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use varve_tests::loop_mount::{self, LoopMount};
use varve_tests::{process, tool, varve};

fn ours(dir: &Path, line: &str) -> Value {
    serde_json::from_str(&varve::varve(dir, line).ok()).expect("JSON")
}

fn theirs(dir: &Path, line: &str) -> String {
    process::run(Command::new("bash").current_dir(dir).args(["-ec", line])).ok()
}

fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
}

/// The number of bytes behind a word of the reference tool's raw output.
#[track_caller]
fn behind(text: &str, word: &str) -> u64 {
    let at = text.find(word).unwrap_or_else(|| panic!("no {word:?} in {text}"));
    let digits: String = text[at + word.len()..]
        .chars()
        .skip_while(|c| !c.is_ascii_digit())
        .take_while(char::is_ascii_digit)
        .collect();
    digits.parse().expect("a number")
}

/// `(address, generation, level)` of every candidate.
type Roots = BTreeSet<(u64, u64, u64)>;

#[test]
fn older_roots_are_those_that_btrfs_find_root_finds() {
    if !loop_mount::available() || !tool::have(&["btrfs-find-root"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path();
    loop_mount::rich_btrfs(&dir.join("disk.img"), &[]);
    for tree in [1, 3] {
        let found = ours(dir, &format!("fs find-root disk.img -t {tree} --json"));
        let mine: Roots = found["found"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|one| ["logical", "generation", "level"].map(|key| one[key].as_u64().expect(key)))
            .map(|[at, generation, level]| (at, generation, level))
            .collect();
        let said = theirs(dir, &format!("btrfs-find-root -a -o {tree} disk.img"));
        let said: Roots = said
            .lines()
            .filter(|line| line.starts_with("Found tree root") || line.starts_with("Well block"))
            .map(|line| {
                let at = if line.starts_with("Found") { "at" } else { "block" };
                (behind(line, at), behind(line, "gen"), behind(line, "level"))
            })
            .collect();
        assert!(mine.len() >= 2 && mine == said, "tree {tree}: {mine:?} {said:?}");
    }
}

#[test]
fn numbers_and_paths_are_those_of_btrfs_progs() {
    if !loop_mount::available() {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path();
    loop_mount::rich_btrfs(&dir.join("kernel.img"), &["-L", "some label"]);
    theirs(dir, "cp --sparse=always kernel.img disk.img");
    let mounted = LoopMount::open(&dir.join("kernel.img"), "ro");
    let at = mounted.path().display().to_string();
    space_is_the_same(dir, &at);
    subvolumes_and_paths_are_the_same(dir, &at);
    every_extent_has_the_same_users(dir, &at);
}

fn space_is_the_same(dir: &Path, at: &str) {
    let show = ours(dir, "fs show disk.img --json");
    let said = theirs(dir, &format!("btrfs filesystem show --raw {at}"));
    assert!(said.contains(show["uuid"].as_str().expect("a uuid")), "{said}");
    assert_eq!(show["label"], "some label");
    assert_eq!(show["bytes_used"], behind(&said, "FS bytes used"), "{said}");
    let device = said.lines().find(|line| line.contains("devid")).expect("a device");
    assert_eq!(show["devices"][0]["size"], behind(device, " size "), "{said}");
    assert_eq!(show["devices"][0]["allocated"], behind(device, " used "), "{said}");
    let text = varve::varve(dir, "fs show disk.img").ok();
    let shown = theirs(dir, &format!("btrfs filesystem show {at}"));
    let head =
        |text: &str| lines(text).into_iter().filter(|l| !l.contains("path")).collect::<Vec<_>>();
    assert_eq!(head(&text), head(&shown));

    let df = lines(&varve::varve(dir, "fs df disk.img").ok());
    let mut said = lines(&theirs(dir, &format!("btrfs filesystem df {at}")));
    said.retain(|line| !line.starts_with("GlobalReserve"));
    assert_eq!(df, said);

    let usage = ours(dir, "fs usage disk.img --json");
    let said = theirs(dir, &format!("btrfs filesystem usage --raw {at}"));
    for (key, word) in [
        ("device_size", "Device size:"),
        ("device_allocated", "Device allocated:"),
        ("device_unallocated", "Device unallocated:"),
        ("used", "Used:"),
    ] {
        assert_eq!(usage[key], behind(&said, word), "{word} {said}");
    }
}

fn subvolumes_and_paths_are_the_same(dir: &Path, at: &str) {
    let list = lines(&varve::varve(dir, "fs subvol list disk.img").ok());
    assert_eq!(list, lines(&theirs(dir, &format!("btrfs subvolume list {at}"))));
    assert_eq!(list.len(), 2);

    for path in ["dir/random", "small", "dir/deep/er/file-7", "sub/inside"] {
        let ino = theirs(dir, &format!("stat -c %i {at}/{path}"));
        let root = theirs(dir, &format!("btrfs inspect-internal rootid $(dirname {at}/{path})"));
        let (ino, root) = (ino.trim(), root.trim());
        let mine =
            varve::varve(dir, &format!("fs inode-resolve disk.img {ino} --root {root}")).ok();
        let mine: BTreeSet<_> = lines(&mine);
        let base = if path.starts_with("sub/") { format!("{at}/sub") } else { at.to_owned() };
        let said = theirs(dir, &format!("btrfs inspect-internal inode-resolve {ino} {base}"));
        let said: BTreeSet<_> =
            lines(&said).into_iter().map(|line| line.replacen(at, "", 1)).collect();
        assert_eq!(mine, said, "{path}");
    }
}

/// Every extent of the file tree, by the reference tool's own list of them.
fn every_extent_has_the_same_users(dir: &Path, at: &str) {
    let dump = theirs(dir, "btrfs inspect-internal dump-tree -t 5 disk.img");
    let extents: BTreeSet<u64> = dump
        .lines()
        .filter(|line| {
            line.contains("extent data disk byte") || line.contains("prealloc data disk byte")
        })
        .map(|line| behind(line, "disk byte"))
        .filter(|at| *at != 0)
        .collect();
    assert!(extents.len() >= 4, "{extents:?}");
    let mut compared = 0;
    for logical in extents {
        let said = process::run(Command::new("btrfs").args([
            "inspect-internal",
            "logical-resolve",
            &logical.to_string(),
            at,
        ]));
        let mine = varve::varve(dir, &format!("fs logical-resolve disk.img {logical}"));
        if said.code != Some(0) || said.stdout.trim().is_empty() {
            continue; // nobody uses the first sector of it
        }
        let said: BTreeSet<_> =
            lines(&said.stdout).into_iter().map(|line| line.replacen(at, "", 1)).collect();
        assert_eq!(lines(&mine.ok()), said, "logical {logical}");
        compared += 1;
    }
    assert!(compared >= 4, "only {compared} extents were compared");
}
