//! `varve fs chunk-recover` against the chunk tree as btrfs-progs prints it; and taking by expression
//! what `btrfs restore` takes by it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use varve_tests::varve::varve;
use varve_tests::{disk, loop_mount, process, tool};

fn theirs(dir: &Path, line: &str) -> String {
    process::run(Command::new("bash").current_dir(dir).args(["-ec", line])).ok()
}

/// Length, type, and the places: by address.
type Chunks = BTreeMap<u64, (u64, String, Vec<(u64, u64)>)>;

fn found(list: &Value) -> Chunks {
    let number = |value: &Value| value.as_u64().expect("a number");
    let chunk = |chunk: &Value| {
        let stripes = chunk["stripes"].as_array().expect("stripes").iter();
        let stripes = stripes.map(|stripe| (number(&stripe["devid"]), number(&stripe["offset"])));
        let kind = chunk["type"].as_str().expect("a type").to_owned();
        (number(&chunk["logical"]), (number(&chunk["length"]), kind, stripes.collect()))
    };
    list["chunks"].as_array().expect("chunks").iter().map(chunk).collect()
}

/// The chunk items of `btrfs inspect-internal dump-tree -t chunk`.
fn said(dump: &str) -> Chunks {
    let mut chunks = Chunks::new();
    let mut at = None;
    for line in dump.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let behind = |word: &str| {
            let n = words.iter().position(|have| *have == word)?;
            words.get(n + 1)?.parse::<u64>().ok()
        };
        if line.contains(" key (") {
            let offset = line.split("CHUNK_ITEM ").nth(1).and_then(|rest| rest.split(')').next());
            at = offset.and_then(|offset| offset.parse().ok());
        }
        let Some(start) = at else { continue };
        if let Some(kind) = words.iter().position(|word| *word == "type") {
            let chunk = chunks.entry(start).or_default();
            (chunk.0, chunk.1) = (behind("length").expect("a length"), words[kind + 1].to_owned());
        }
        if let Some((devid, offset)) = behind("devid").zip(behind("offset")) {
            chunks.entry(start).or_default().2.push((devid, offset));
        }
    }
    chunks
}

/// Copies have no order.
fn without_order(chunks: &Chunks) -> Chunks {
    let mut chunks = chunks.clone();
    chunks.values_mut().for_each(|chunk| chunk.2.sort_unstable());
    chunks
}

const FILL: &str = r#"
mkfs.btrfs -q $MKFS a.img b.img
loop=$(losetup --find --show b.img)
mkdir mnt
trap 'umount mnt 2>/dev/null || true; losetup --detach $loop' EXIT
mount -o loop,device=$loop a.img mnt
for n in $(seq 300); do head -c 5000 /dev/urandom > mnt/$n; done
head -c 200M /dev/urandom > mnt/large; sync; rm mnt/large; sync
btrfs -q balance start -dusage=50 mnt
btrfs -q balance start -f -musage=0 -susage=0 mnt
head -c 30M /dev/urandom > mnt/more
umount mnt
"#;

#[test]
fn chunks_are_found_again_without_the_chunk_tree() {
    if !loop_mount::available() || !tool::have(&["losetup", "btrfs-map-logical"]) {
        return;
    }
    for (mkfs, more) in
        [("-d raid0 -m raid1", "--device b.img"), ("-d raid0 -m raid0", "--device b.img")]
    {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let dir = dir.path();
        for name in ["a.img", "b.img"] {
            disk::sparse(&dir.join(name), 600 << 20);
        }
        process::run(Command::new("bash").current_dir(dir).env("MKFS", mkfs).args(["-euc", FILL]))
            .ok();
        // btrfs-progs find the second device by its loop device alone.
        let both = "loop=$(losetup --find --show b.img); trap 'losetup --detach $loop' EXIT; btrfs device scan $loop >/dev/null; ";
        let tree = theirs(dir, &format!("{both} btrfs inspect-internal dump-tree -t chunk a.img"));
        let wanted = said(&tree);
        assert!(wanted.len() >= 3, "{tree}");
        let line = format!("fs chunk-recover a.img {more} --json");
        let list: Value = serde_json::from_str(&varve(dir, &line).ok()).expect("JSON");
        assert_eq!(found(&list), wanted, "{mkfs}");
        assert!(list["chunks"].as_array().expect("chunks").iter().all(|c| c["now"] == "same"));

        // Every copy of the chunk tree's root goes.
        let root = theirs(dir, "btrfs inspect-internal dump-super a.img");
        let root = root.lines().find(|line| line.starts_with("chunk_root\t")).expect("the root");
        let root: u64 = root.split_whitespace().last().and_then(|n| n.parse().ok()).expect("bytes");
        let map = theirs(dir, &format!("{both} btrfs-map-logical -l {root} -b 4096 a.img"));
        let mut copies = 0;
        for line in map.lines().filter(|line| line.starts_with("mirror")) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let at = words.iter().position(|word| *word == "physical").expect("a place");
            let at: u64 = words[at + 1].parse().expect("a number");
            let image = if line.contains("/dev/loop") { "b.img" } else { "a.img" };
            disk::damage(&dir.join(image), at + 300, &[0x5A; 1000]);
            copies += 1;
        }
        assert!(copies >= 1, "{map}");
        let out = varve(dir, &line);
        assert_eq!(out.code, Some(1), "{out}");
        let list: Value = serde_json::from_str(&out.stdout).expect("JSON");
        assert_eq!(without_order(&found(&list)), without_order(&wanted), "{mkfs}");
        assert!(list["chunk_tree_unreadable"].is_string());
        let text = varve(dir, &format!("fs chunk-recover a.img {more}"));
        assert!(text.stdout.contains("the chunk tree cannot be read"), "{text}");
        assert_eq!(text.code, Some(1));
        // The trees are behind those chunks.
        let tree = varve(dir, &format!("fs dump-tree a.img {more} -t fs"));
        assert!(!tree.stdout.contains("INODE_ITEM"), "{tree}");
        let tree = varve(dir, &format!("fs dump-tree a.img {more} -t fs --chunk-recover"));
        assert!(tree.stdout.contains("INODE_ITEM"), "{mkfs}: {tree}");
    }
}

#[test]
fn an_expression_takes_what_btrfs_restore_takes_by_it() {
    if !loop_mount::available() {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path();
    loop_mount::rich_btrfs(&dir.join("disk.img"), &[]);
    let files = |folder: &str| -> BTreeSet<String> {
        let found = theirs(dir, &format!("cd {folder} && find . -type f"));
        found.lines().map(str::to_owned).collect()
    };
    let regex = "^/(|dir(|/deep(|/er(|/file-1.*))))$";
    std::fs::create_dir(dir.join("theirs")).expect("a folder");
    theirs(dir, &format!("btrfs restore --path-regex '{regex}' disk.img theirs"));
    let out = process::run(Command::new(varve_tests::varve::binary()).current_dir(dir).args([
        "fs",
        "export",
        "disk.img",
        "ours",
        "--path-regex",
        regex,
    ]));
    out.ok();
    let taken = files("theirs");
    assert!(taken.len() > 100, "{taken:?}");
    assert_eq!(files("ours"), taken);
    // Beside globs, and over names only.
    varve(
        dir,
        r"fs export disk.img few --path-regex file-1\d$ --path-regex /SMALL$ --exclude **/*5",
    )
    .ok();
    assert_eq!(files("few").len(), 9, "file-10 to file-19 without file-15");
    varve(dir, r"fs export disk.img any --path-regex (?i)/SMALL$").ok();
    assert_eq!(files("any"), BTreeSet::from(["./small".to_owned()]));
    let wrong = varve(dir, "fs export disk.img none --path-regex (").exits_with(2);
    assert!(wrong.contains("unclosed group"), "{wrong}");
}
