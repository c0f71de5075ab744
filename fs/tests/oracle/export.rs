//! Exports beside the kernel's own copies, and beside `btrfs restore` where the disk is damaged.

use crate::kernel::{Mount, run, shell, try_run, workshop};
use crate::walk::{Tree, by_kernel, load};
use std::collections::BTreeMap;
use std::path::Path;
use varve_block::dev::Mem;
use varve_block::{BlockDevice, Prng, Sim};
use varve_fs::export::{Options, Report, RescueOptions, export, open_rescue};
use varve_fs::format::chunk::GroupFlags;
use varve_fs::{Fs, OpenOptions};

/// Exports everything, snapshots too; `None` when the disk does not open in any way.
fn exported(device: Mem, dest: &Path) -> Option<Report> {
    let dest = dest.to_path_buf();
    Sim::new(1).run(|rt| async move {
        let options = RescueOptions::default();
        let rescued = open_rescue(vec![device], &options, &mut |_, _| ()).await.ok()?;
        let options = Options { snapshots: true, ..Options::default() };
        let fs = rescued.fs;
        let report = export(&rt, &fs, fs.top(), &dest, &options, &mut |_| ()).await;
        Some(report.expect("an export"))
    })
}

/// What an export cannot keep: inode numbers, times of change, and what the destination does not take.
fn comparable(mut tree: Tree) -> Tree {
    for seen in tree.values_mut() {
        seen.ino = 0;
        seen.times[1] = (0, 0);
        seen.xattrs.retain(|name, _| !name.starts_with(b"btrfs."));
        if seen.mode & 0o170_000 == 0o040_000 {
            (seen.size, seen.nlink) = (0, 0); // folders count differently elsewhere
        }
    }
    tree
}

#[test]
fn an_export_is_the_same_tree_with_owners_modes_times_and_attributes() {
    let test = "an_export_is_the_same_tree_with_owners_modes_times_and_attributes";
    let Some(dir) = workshop(test) else { return };
    let image = dir.path().join("disk");
    shell(dir.path(), "truncate -s 400M disk; mkfs.btrfs -q disk >/dev/null");
    let mount = Mount::new(&image, "compress=zstd");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oracle/make_tree.py");
    run("python3", [Path::new(script), mount.path()]);
    drop(mount);
    let theirs = {
        let mount = Mount::new(&image, "ro");
        by_kernel(mount.path())
    };
    // Onto a btrfs, which takes every attribute.
    shell(dir.path(), "truncate -s 400M other; mkfs.btrfs -q other >/dev/null");
    let other = Mount::new(&dir.path().join("other"), "");
    let dest = other.path().join("out");
    let report = exported(load(&image), &dest).expect("it opens");
    assert!(report.is_whole(), "{report:#?}");
    let ours = comparable(by_kernel(&dest));
    let mut theirs = comparable(theirs);
    // The status of the placeholder for a nested subvolume is the kernel's invention.
    theirs.retain(|_, seen| seen.mode != 0);
    for (path, seen) in &theirs {
        assert_eq!(ours.get(path), Some(seen), "{}", path.escape_ascii());
    }
    // Holes are holes: the copy takes no more room than the original, but for compression.
    let big = shell(&dest, "stat -c %b holes");
    assert!(big.trim().parse::<u64>().expect("blocks") < 3_000_000 / 512);
}

/// Contents by path, of regular files.
fn contents(tree: &Tree) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let files = tree.iter().filter(|(_, seen)| seen.mode & 0o170_000 == 0o100_000);
    files.map(|(path, seen)| (path.clone(), seen.content.clone())).collect()
}

/// Damages one block in so many of all that hold something, in the given groups.
fn damage(image: &Path, groups: GroupFlags, seed: u64, percent: u64) -> Vec<u8> {
    let device = load(image);
    let prng = Prng::new(seed);
    let chunks = {
        let device = device.clone();
        Sim::new(1).run(|_| async move {
            Fs::open(device, OpenOptions::default()).await.expect("it opens").chunks()
        })
    };
    for (_, chunk) in chunks.iter().filter(|(_, chunk)| chunk.flags.intersects(groups)) {
        for stripe in &chunk.stripes {
            for at in (stripe.offset..stripe.offset + chunk.length).step_by(4096) {
                if prng.chance(percent, 100) {
                    device.poke(at + 209, b"lost");
                }
            }
        }
    }
    let mut bytes = vec![0; usize::try_from(device.geometry().len.bytes()).expect("small")];
    device.peek(0, &mut bytes);
    bytes
}

/// A copy of a damaged file takes a name that nothing else has, and a whole copy takes away no file but the damaged
/// copy of its own.
#[test]
fn files_that_are_called_damaged_are_files_like_others() {
    let Some(dir) = workshop("files_that_are_called_damaged_are_files_like_others") else { return };
    let image = dir.path().join("disk");
    shell(dir.path(), "truncate -s 256M disk; mkfs.btrfs -q disk >/dev/null");
    let mount = Mount::new(&image, "");
    let work = "for name in x.damaged x y.damaged y; do yes $name | head -c 9000 > $name; done";
    shell(mount.path(), work);
    drop(mount);
    let mut bytes = std::fs::read(&image).expect("an image");
    let text = b"y\ny\ny\ny\ny\ny\ny\ny\ny\ny\ny\ny\n";
    let at = bytes.windows(text.len()).position(|part| part == text).expect("the data of y");
    bytes[at] = b'z';
    std::fs::write(&image, bytes).expect("an image");
    let dest = dir.path().join("out");
    for _ in 0..2 {
        let report = exported(load(&image), &dest).expect("it opens");
        assert_eq!(report.damaged(), 1, "{report:#?}");
        let names: Vec<_> = contents(&by_kernel(&dest)).into_keys().collect();
        assert_eq!(names, [&b"/x"[..], b"/x.damaged", b"/y.damaged", b"/y.damaged-2"]);
        let content = |name| std::fs::read(dest.join(name)).expect("a file");
        assert!(content("x.damaged").starts_with(b"x.damaged\nx.damaged\n"));
        assert!(content("y.damaged").starts_with(b"y.damaged\ny.damaged\n"));
    }
}

/// S10 beside the reference: whatever `btrfs restore` brings home right, so do we.
#[test]
fn what_restore_recovers_an_export_recovers_too() {
    let test = "what_restore_recovers_an_export_recovers_too";
    let Some(dir) = workshop(test) else { return };
    let image = dir.path().join("disk");
    let make = "truncate -s 256M disk; mkfs.btrfs -q -m single -n 4k disk >/dev/null";
    shell(dir.path(), make);
    let mount = Mount::new(&image, "");
    let work = "for d in $(seq 30); do mkdir d$d; for f in $(seq 40); do \
                head -c $((f * 700)) /dev/urandom > d$d/f$f; done; done; sync";
    shell(mount.path(), work);
    let truth = contents(&by_kernel(mount.path()));
    drop(mount);
    let (mut ours_more, mut rounds) = (0, 0);
    for (seed, percent) in [(1, 1), (2, 3), (3, 6), (4, 10)] {
        let damaged = dir.path().join("damaged");
        let groups = GroupFlags::METADATA;
        std::fs::write(&damaged, damage(&image, groups, seed, percent)).expect("a copy");
        let (a, b) = (dir.path().join("theirs"), dir.path().join("ours"));
        for folder in [&a, &b] {
            let _ = std::fs::remove_dir_all(folder);
            std::fs::create_dir(folder).expect("a folder");
        }
        try_run("btrfs", ["restore", "-i", &*damaged.to_string_lossy(), &*a.to_string_lossy()]);
        let report = exported(load(&damaged), &b);
        let right = |folder: &Path| {
            let mut found = contents(&by_kernel(folder));
            found.retain(|path, sum| truth.get(path) == Some(sum));
            found
        };
        let theirs = right(&a);
        let mut ours = right(&b);
        // One whose inode is lost is named so, with all its bytes when its data was found elsewhere.
        for (path, sum) in contents(&by_kernel(&b)) {
            if let Some(path) = path.strip_suffix(b".damaged")
                && truth.get(path) == Some(&sum)
            {
                ours.insert(path.to_vec(), sum);
            }
        }
        for path in theirs.keys() {
            assert!(ours.contains_key(path), "{}: {report:#?}", path.escape_ascii());
        }
        println!("{percent} %: restore {}, export {}", theirs.len(), ours.len());
        ours_more += ours.len() - theirs.len();
        rounds += usize::from(report.is_some());
    }
    assert!(rounds > 0);
    assert!(ours_more > 0, "names by hash and by back reference bring home more");
}
