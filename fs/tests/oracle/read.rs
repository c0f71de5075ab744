//! What the kernel wrote, read by us: every name, status, attribute and byte.

use crate::kernel::{Mount, run, shell, workshop};
use crate::walk::{Tree, assert_same, by_kernel, by_us, kind, load};
use std::path::Path;
use varve_block::Sim;
use varve_block::dev::Mem;
use varve_fs::{ErrorKind, Fs, InodeId, OpenOptions};

fn fill(image: &Path, options: &str) {
    let mount = Mount::new(image, options);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oracle/make_tree.py");
    run("python3", [Path::new(script), mount.path()]);
}

fn their_tree(image: &Path) -> Tree {
    let mount = Mount::new(image, "ro");
    by_kernel(mount.path())
}

fn our_tree(device: Mem) -> Tree {
    Sim::new(1).run(|_| async move {
        let fs = Fs::open(device, OpenOptions::default()).await.expect("it opens");
        by_us(&fs).await
    })
}

/// Makes an image with `mkfs.btrfs ARGS`, fills it under `-o mount`, and compares.
fn round(test: &str, mkfs: &str, mount: &str) {
    let Some(dir) = workshop(test) else { return };
    let image = dir.path().join("disk");
    shell(dir.path(), &format!("truncate -s 400M disk; mkfs.btrfs -q {mkfs} disk >/dev/null"));
    fill(&image, mount);
    let theirs = their_tree(&image);
    assert!(theirs.len() > 600, "the tree was made");
    assert_same(&theirs, &our_tree(load(&image)));
}

#[test]
fn plain_files_in_the_usual_layout() {
    round("plain_files_in_the_usual_layout", "-n 16k", "");
}

#[test]
fn zlib_in_small_nodes_under_xxhash() {
    let test = "zlib_in_small_nodes_under_xxhash";
    round(test, "-n 4k --csum xxhash", "compress-force=zlib");
}

#[test]
fn lzo_under_sha256_with_metadata_once() {
    let test = "lzo_under_sha256_with_metadata_once";
    round(test, "-m single --csum sha256", "compress-force=lzo");
}

#[test]
fn zstd_in_large_nodes_under_blake2b() {
    let test = "zstd_in_large_nodes_under_blake2b";
    round(test, "-n 64k --csum blake2", "compress-force=zstd:9");
}

#[test]
fn mixed_groups_and_the_features_of_old() {
    let test = "mixed_groups_and_the_features_of_old";
    let old = "-M -n 4k -O ^no-holes,^skinny-metadata,^extref -R ^free-space-tree";
    let Some(dir) = workshop(test) else { return };
    let image = dir.path().join("disk");
    shell(dir.path(), &format!("truncate -s 300M disk; mkfs.btrfs -q {old} disk >/dev/null"));
    let mount = Mount::new(&image, "compress=zlib");
    let work = "mkdir d; for i in $(seq 500); do echo $i > d/$i; done; truncate -s 1M hole; \
                seq 100000 > text; head -c 700000 /dev/urandom > noise; echo x >> hole";
    shell(mount.path(), work);
    drop(mount);
    assert_same(&their_tree(&image), &our_tree(load(&image)));
}

/// The third copy stands at 256 GiB.
#[test]
fn each_superblock_copy_opens_what_the_first_would() {
    let test = "each_superblock_copy_opens_what_the_first_would";
    let Some(dir) = workshop(test) else { return };
    let image = dir.path().join("disk");
    shell(dir.path(), "truncate -s 300G disk; mkfs.btrfs -q disk >/dev/null 2>&1");
    let mount = Mount::new(&image, "");
    shell(mount.path(), "mkdir d; for i in $(seq 50); do seq $i 900 > d/$i; done");
    drop(mount);
    let theirs = their_tree(&image);
    let device = load(&image);
    for copy in 0..3 {
        let options = OpenOptions { super_copy: copy, ..OpenOptions::default() };
        let other = device.clone();
        let ours = Sim::new(1).run(|_| async move {
            by_us(&Fs::open(other, options).await.expect("it opens")).await
        });
        assert_same(&theirs, &ours);
        // Gone one after the other: one that is left is named, and none is taken by itself.
        device.poke([64 << 10, 64 << 20, 256 << 30][copy] + 77, b"damage");
        let other = device.clone();
        let error = Sim::new(1).run(|_| async move {
            Fs::open(other, OpenOptions::default()).await.err().expect("it is damaged").to_string()
        });
        assert_eq!(error.contains("--super "), copy < 2, "{error}");
    }
}

#[test]
fn paths_lead_where_the_kernel_leads() {
    let Some(dir) = workshop("paths_lead_where_the_kernel_leads") else { return };
    let image = dir.path().join("disk");
    shell(dir.path(), "truncate -s 400M disk; mkfs.btrfs -q disk >/dev/null");
    fill(&image, "");
    let device = load(&image);
    Sim::new(1).run(|_| async move {
        let fs = Fs::open(device, OpenOptions::default()).await.unwrap();
        let at = async |path: &str| fs.resolve(path).await;
        let same = async |a: &str, b: &str| {
            assert_eq!(at(a).await.unwrap(), at(b).await.unwrap(), "{a} and {b}");
        };
        same("/symlink", "/sizes/text-4096").await;
        same("/absolute/4mcqpb1w9r", "names/4mcqpb1w9r").await;
        same("//names/./../sub/nested/../nested/inside/", "/sub/nested/inside").await;
        same("/sub/nested/../..", "/").await;
        same("/../..", "").await;
        same("/snap2/nested/..", "/").await;
        assert_ne!(fs.lookup("/symlink").await.unwrap(), at("/symlink").await.unwrap());
        assert_eq!(kind(at("/loop").await), Some(ErrorKind::Loop));
        assert_eq!(kind(at("/nothing").await), Some(ErrorKind::NotFound));
        assert_eq!(kind(at("/zeroes/x").await), Some(ErrorKind::NotADirectory));
        let file = at("/zeroes").await.unwrap();
        assert_eq!(kind(fs.read_dir(file, 0, 1).await), Some(ErrorKind::NotADirectory));
        assert_eq!(kind(fs.read(fs.top(), 0, 1).await), Some(ErrorKind::IsADirectory));
        let gone = InodeId { root: 5, ino: 1 << 40 };
        assert_eq!(kind(fs.inode(gone).await), Some(ErrorKind::NotFound));
        let linked = at("/linked").await.unwrap();
        let names = fs.names(linked).await.unwrap();
        assert_eq!(names.len() as u64, u64::from(fs.inode(linked).await.unwrap().nlink));
    });
}

#[test]
fn subvolumes_are_listed_and_the_default_one_is_the_top() {
    let test = "subvolumes_are_listed_and_the_default_one_is_the_top";
    let Some(dir) = workshop(test) else { return };
    let image = dir.path().join("disk");
    shell(dir.path(), "truncate -s 200M disk; mkfs.btrfs -q disk >/dev/null");
    let mount = Mount::new(&image, "");
    let work = "btrfs -q subvolume create a; echo in a > a/f; btrfs -q subvolume create a/b; \
                btrfs -q subvolume snapshot -r a c; btrfs subvolume set-default c; echo top > f";
    shell(mount.path(), work);
    let theirs = shell(mount.path(), "btrfs subvolume list -uq .");
    drop(mount);
    let device = load(&image);
    Sim::new(1).run(|_| async move {
        let fs = Fs::open(device.clone(), OpenOptions::default()).await.unwrap();
        let list = fs.subvolumes().await.unwrap();
        for line in theirs.lines() {
            let ours = list.iter().find(|s| line.starts_with(&format!("ID {} ", s.id)));
            let ours = ours.unwrap_or_else(|| panic!("{line} is missing"));
            assert!(line.contains(&format!(" uuid {}", ours.uuid)), "{line}");
        }
        assert_eq!(list.len(), 4, "three and the top level");
        let c = list.iter().find(|s| s.parent.as_ref().is_some_and(|p| p.2 == b"c")).unwrap();
        assert!(c.read_only);
        assert_eq!(fs.top_subvolume(), c.id);
        let f = fs.lookup("/f").await.unwrap();
        assert_eq!(fs.read(f, 0, 100).await.unwrap(), b"in a\n");
        assert!(fs.read_dir(fs.lookup("/b").await.unwrap(), 0, 9).await.unwrap().is_empty());
        let options = OpenOptions { subvolume: Some(5), ..OpenOptions::default() };
        let fs = Fs::open(device, options).await.unwrap();
        let f = fs.lookup("/f").await.unwrap();
        assert_eq!(fs.read(f, 0, 100).await.unwrap(), b"top\n");
    });
}

/// Data in two copies, each with a bad sector of its own: every byte is still there. Then both copies
/// of one sector are bad, and only that sector is lost.
#[test]
fn of_two_copies_of_data_the_good_one_is_returned() {
    let Some(dir) = workshop("of_two_copies_of_data_the_good_one_is_returned") else { return };
    let image = dir.path().join("disk");
    shell(dir.path(), "truncate -s 300M disk; mkfs.btrfs -q -d dup -m dup disk >/dev/null");
    let mount = Mount::new(&image, "");
    shell(mount.path(), "seq 1000000 1100000 > f; sync");
    let plain = std::fs::read(mount.path().join("f")).unwrap();
    drop(mount);
    let whole = std::fs::read(&image).unwrap();
    let places = |needle: &[u8]| -> Vec<u64> {
        let sectors = (0u64..).step_by(4096).zip(whole.chunks(4096));
        let text = sectors.filter(|(_, sector)| sector[0].is_ascii_digit() || sector[0] == b'\n');
        text.filter_map(|(at, sector)| {
            let within = sector.windows(needle.len()).position(|window| window == needle)?;
            Some(at + within as u64)
        })
        .collect()
    };
    // Three lines in different sectors; each is on the device twice.
    let [a, b, c] = ["1000100\n", "1050000\n", "1099000\n"].map(|line| places(line.as_bytes()));
    assert_eq!([a.len(), b.len(), c.len()], [2, 2, 2]);
    let device = load(&image);
    device.poke(a[0], b"X");
    device.poke(b[1], b"X");
    let second = device.clone();
    Sim::new(1).run(|_| async move {
        let fs = Fs::open(second, OpenOptions::default()).await.unwrap();
        let f = fs.lookup("/f").await.unwrap();
        assert!(fs.read(f, 0, plain.len()).await.unwrap() == plain);
        assert_eq!(fs.counters().bad_copies, 1, "the copy read first was bad once");
        c.iter().for_each(|at| device.poke(*at, b"X"));
        let error = fs.read(f, 0, plain.len()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corrupt);
        let at = error.place.offset.unwrap();
        let lost = usize::try_from(at).unwrap();
        assert!(plain[lost..lost + 4096].windows(8).any(|line| line == b"1099000\n"));
        assert_eq!(fs.read(f, 0, lost).await.unwrap(), plain[..lost]);
        assert_eq!(fs.read(f, at + 4096, 99999).await.unwrap(), plain[lost + 4096..]);
    });
}
