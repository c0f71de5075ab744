//! Sector sizes that this machine's kernel does not mount: filled by mkfs itself, judged by `btrfs check`.

use crate::inspect::compare;
use crate::kernel::{run, shell, workshop};
use crate::walk::{Seen, Tree, by_kernel, by_us, load};
use std::path::Path;
use varve_block::Sim;
use varve_fs::check::{CheckOptions, Severity, check};
use varve_fs::{Fs, OpenOptions};

/// Sizes around every sector size, so that tails are cut at all of them.
const FILL: &str = "mkdir src; cd src; mkdir -p d/e; for s in 4096 8192 16384 32768 65536; do \
    for n in -1 0 1; do head -c $((s + n)) /dev/urandom > d/$s$n; done; done; \
    for i in $(seq 300); do seq $i 500 > d/e/$i; done; echo small > small; : > empty; \
    head -c 3000000 /dev/urandom > big; ln -s d/e link; mkfifo pipe; \
    setfattr -n user.a -v value small; chown 12:34 small; chmod 4751 big";

/// What mkfs takes over: not the numbers, and one time for three.
fn kept(tree: Tree) -> Tree {
    let keep = |seen: Seen| {
        let directory = seen.mode & 0o170_000 == 0o040_000;
        Seen {
            mode: seen.mode,
            owner: seen.owner,
            size: if directory { 0 } else { seen.size },
            rdev: seen.rdev,
            xattrs: seen.xattrs,
            content: seen.content,
            ..Seen::default()
        }
    };
    tree.into_iter().map(|(name, seen)| (name, keep(seen))).collect()
}

fn one(dir: &Path, sector: u32, node: u32, sum: &str) {
    let image = dir.join("disk");
    let _ = std::fs::remove_file(&image);
    shell(
        dir,
        &format!(
            "truncate -s 300M disk; mkfs.btrfs -q -s {sector} -n {node} --csum {sum} -r src disk \
             >/dev/null 2>&1"
        ),
    );
    run("btrfs", ["check", "--check-data-csum", &image.to_string_lossy()]);
    let device = load(&image);
    let (checked, ours, size) = Sim::new(1).run(|_| async move {
        let options = CheckOptions { data: true, all_copies: true, ..CheckOptions::default() };
        let checked = check(vec![device.clone()], &options).await.expect("it opens");
        let fs = Fs::open(device, OpenOptions::default()).await.expect("it opens");
        (checked, by_us(&fs).await, fs.superblock().sectorsize)
    });
    assert_eq!(size, sector);
    let errors = checked.findings.iter().filter(|f| f.severity == Severity::Error);
    let errors: Vec<_> = errors.map(|error| &error.message).collect();
    assert!(errors.is_empty(), "{sector} {node}: {errors:#?}");
    let (theirs, ours) = (kept(by_kernel(&dir.join("src"))), kept(ours));
    for (name, seen) in &theirs {
        assert_eq!(ours.get(name), Some(seen), "{sector} {node}: {}", name.escape_ascii());
    }
    assert_eq!(theirs.len(), ours.len());
    compare(&[image], 600);
}

#[test]
fn every_sector_size_is_read() {
    let Some(dir) = workshop("every_sector_size_is_read") else { return };
    shell(dir.path(), FILL);
    let sums = ["crc32c", "xxhash", "sha256", "blake2"];
    let mut turn = 0;
    for sector in [4096, 8192, 16384, 32768, 65536] {
        for node in [sector, 65536] {
            one(dir.path(), sector, node, sums[turn % 4]);
            turn += 1;
        }
    }
}

/// Nodes of every size, between the ends that other tests have.
#[test]
fn every_node_size_is_read() {
    let Some(dir) = workshop("every_node_size_is_read") else { return };
    shell(dir.path(), FILL);
    for node in [4096, 8192, 16384, 32768, 65536] {
        one(dir.path(), 4096, node, "crc32c");
    }
}
