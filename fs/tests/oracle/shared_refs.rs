//! Blocks and data that are shared by the address of the block that refers to them, so many times that
//! the references are items of their own: the kernel made them, we tell them, and one that is wrong is found.

use crate::inspect::compare;
use crate::kernel::{Mount, check_clean, run, shell, try_run, workshop};
use crate::walk::load;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use varve_block::Sim;
use varve_fs::check::{CheckOptions, Severity, check};
use varve_fs::csum::CsumType;
use varve_fs::{Fs, Logical, OpenOptions};

const NODE: usize = 4096;

/// Each round changes blocks that a snapshot has come to share, and the old ones go on referring to what is
/// below by their address: a level of nodes over the leaves of `in`, and leaves over the data of the rest.
const WORK: &str = "btrfs -q subvolume create a; for i in $(seq 150); do seq $i 1500 > a/$i; done; \
    mkdir a/in; for i in $(seq 700); do head -c 1500 /dev/zero > a/in/$i; done; sync; \
    for n in $(seq 40); do btrfs -q subvolume snapshot a s$n; touch a/1?? a/in/1; sync; done; \
    for n in 3 7; do cp --reflink=always a/$n s$n/clone; touch s$n/1; done; rm a/14*; sync";

/// An item of the extent tree, and where it is.
struct Item {
    leaf: u64,
    slot: usize,
    key: (u64, u64),
    data: usize,
}

/// Every item of one type, as the tool tells it.
fn items(image: &Path, kind: &str) -> Vec<Item> {
    let args = ["inspect-internal", "dump-tree", "-t", "extent"];
    let said = run("btrfs", args.iter().map(Path::new).chain([image]));
    let mut leaf = 0;
    let mut found = Vec::new();
    for line in said.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            ["leaf", at, ..] => leaf = at.parse().expect("an address"),
            ["item", slot, "key", object, of, offset, "itemoff", data, ..] if of == kind => {
                found.push(Item {
                    leaf,
                    slot: slot.parse().expect("a slot"),
                    key: (
                        object.trim_start_matches('(').parse().expect("a number"),
                        offset.trim_end_matches(')').parse().expect("a number"),
                    ),
                    data: data.parse().expect("a position"),
                });
            }
            _ => (),
        }
    }
    found
}

/// A copy of the image with one leaf edited, and its checksum right.
fn edited(image: &Path, leaf: u64, edit: impl FnOnce(&mut [u8])) -> PathBuf {
    let copy = image.with_extension("edited");
    run("cp", ["--sparse=always".as_ref(), image.as_os_str(), copy.as_os_str()]);
    let device = load(image);
    let place = Sim::new(1).run(|_| async move {
        let fs = Fs::open(device, OpenOptions::default()).await.expect("it opens");
        let piece = fs.chunks().map(Logical(leaf), NODE as u64).expect("a chunk");
        assert_eq!(piece.copies.len(), 1, "metadata is there once");
        piece.copies[0].byte
    });
    let file = File::options().read(true).write(true).open(&copy).expect("the copy");
    let mut block = vec![0; NODE];
    file.read_exact_at(&mut block, place).expect("a block");
    edit(&mut block);
    let digest = CsumType::Crc32c.digest(&block[32..]);
    block[..32].copy_from_slice(digest.field());
    file.write_all_at(&block, place).expect("a write");
    copy
}

fn codes(image: &Path) -> BTreeSet<&'static str> {
    let device = load(image);
    let checked = Sim::new(1).run(|_| async move {
        check(vec![device], &CheckOptions::default()).await.expect("it opens")
    });
    let errors = checked.findings.iter().filter(|f| f.severity == Severity::Error);
    errors.map(|error| error.code.text()).collect()
}

#[test]
fn references_by_parent_are_told_and_wrong_ones_found() {
    let Some(dir) = workshop("references_by_parent_are_told_and_wrong_ones_found") else { return };
    shell(dir.path(), "truncate -s 600M disk; mkfs.btrfs -q -n 4k -m single disk >/dev/null 2>&1");
    let image = dir.path().join("disk");
    let mount = Mount::new(&image, "");
    shell(mount.path(), WORK);
    drop(mount);
    check_clean(&image, &[]);
    assert_eq!(codes(&image), BTreeSet::new());
    let kinds = compare(std::slice::from_ref(&image), 2000);
    let (blocks, data) = (items(&image, "SHARED_BLOCK_REF"), items(&image, "SHARED_DATA_REF"));
    println!("{} shared blocks, {} shared extents", blocks.len(), data.len());
    assert!(blocks.len() + data.len() > 100);
    for (kind, of) in [("SHARED_BLOCK_REF", &blocks), ("SHARED_DATA_REF", &data)] {
        assert_eq!(kinds.contains(kind), !of.is_empty());
        assert!(!of.is_empty(), "none of {kind}");
    }
    // Another parent: one node further, where nothing stands in the way of the order of keys.
    let all = || blocks.iter().chain(&data);
    let taken: BTreeSet<_> = all().map(|item| item.key).collect();
    let free = |item: &&Item| !taken.contains(&(item.key.0, item.key.1 + NODE as u64));
    let head = |item: &Item| 101 + 25 * item.slot;
    for of in [&blocks, &data] {
        let item = of.iter().find(free).expect("one with room behind it");
        let copy = edited(&image, item.leaf, |block| {
            let at = head(item) + 9;
            block[at..at + 8].copy_from_slice(&(item.key.1 + NODE as u64).to_le_bytes());
        });
        found(&copy, "another parent");
    }
    // One reference more than the leaf has.
    let item = &data[data.len() / 2];
    let copy = edited(&image, item.leaf, |block| block[101 + item.data] += 1);
    found(&copy, "another count");
}

/// Both find it, and ours by name.
#[track_caller]
fn found(image: &Path, what: &str) {
    let theirs = try_run("btrfs", ["check", &image.to_string_lossy()]);
    assert!(!theirs.status.success(), "{what}: the tool takes it");
    let codes = codes(image);
    assert!(codes.contains("extent-refs"), "{what}: {codes:?}");
}
