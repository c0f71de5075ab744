//! Features that Debian 12's btrfs-progs do not know: made by newer ones, which also told what is in them
//! (`tests/images/080-newer-features`); mounted by the kernel here, if it is new enough.

use crate::inspect::{compare, compare_told};
use crate::kernel::{Mount, run, shell, try_run, workshop};
use crate::walk::{assert_same, by_kernel, by_us, load};
use std::path::{Path, PathBuf};
use varve_block::Sim;
use varve_fs::check::{CheckOptions, Checked, Severity, check};
use varve_fs::format::superblock::{CompatRo, Incompat};
use varve_fs::{Fs, OpenOptions};

const IMAGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/images");
const NEWER: &str = "080-newer-features";
const SIZE: usize = 120 << 20;

fn unpacked(name: &str) -> Vec<u8> {
    let packed = std::fs::File::open(Path::new(IMAGES).join(name)).expect("an image");
    zstd::stream::decode_all(packed).expect("a zstd stream")
}

/// Writes an image without its holes.
fn image(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join("disk");
    let bytes = unpacked(name);
    assert_eq!(bytes.len(), SIZE);
    let file = std::fs::File::create(&path).expect("a file");
    file.set_len(bytes.len() as u64).expect("a sparse file");
    for (n, part) in bytes.chunks(65536).enumerate() {
        if part.iter().any(|byte| *byte != 0) {
            std::os::unix::fs::FileExt::write_all_at(&file, part, n as u64 * 65536)
                .expect("a write");
        }
    }
    path
}

/// What mkfs left in the free space tree harms nobody, and is a warning.
fn errors(checked: &Checked) -> Vec<&str> {
    let errors = checked.findings.iter().filter(|f| f.severity == Severity::Error);
    errors.map(|error| &*error.message).collect()
}

#[test]
fn what_newer_tools_made_is_told_checked_and_read() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for name in ["block-group-tree", "squota", "both"] {
        let path = image(dir.path(), &format!("{NEWER}/{name}.img.zst"));
        let theirs =
            String::from_utf8(unpacked(&format!("{NEWER}/{name}.items.zst"))).expect("text");
        let kinds = compare_told(&theirs, std::slice::from_ref(&path), 800);
        let device = load(&path);
        let (checked, sb) = Sim::new(1).run(|_| async move {
            let options = CheckOptions { data: true, all_copies: true, ..CheckOptions::default() };
            let checked = check(vec![device.clone()], &options).await.expect("it opens");
            let fs = Fs::open(device, OpenOptions::default()).await.expect("it opens");
            (checked, fs.superblock().clone())
        });
        assert_eq!(errors(&checked), [""; 0], "{name}");
        let has = |kind: &str| kinds.contains(kind);
        assert_eq!(sb.compat_ro.contains(CompatRo::BLOCK_GROUP_TREE), name != "squota");
        assert_eq!(sb.incompat.contains(Incompat::SIMPLE_QUOTA), name != "block-group-tree");
        assert_eq!(has("QGROUP_INFO"), name != "block-group-tree", "{kinds:?}");
    }
}

#[test]
fn the_kernel_sees_in_them_what_we_see() {
    let Some(dir) = workshop("the_kernel_sees_in_them_what_we_see") else { return };
    for name in ["block-group-tree", "squota", "both"] {
        let path = image(dir.path(), &format!("{NEWER}/{name}.img.zst"));
        let mounted = dir.path().join("probe");
        std::fs::create_dir_all(&mounted).expect("a folder");
        let probe = try_run("mount", [Path::new("-oloop,ro"), &path, &mounted]);
        if !probe.status.success() {
            println!("the_kernel_sees_in_them_what_we_see: this kernel mounts no {name}");
            continue;
        }
        let _ = try_run("umount", [&mounted]);
        let theirs = {
            let mount = Mount::new(&path, "ro");
            by_kernel(mount.path())
        };
        let device = load(&path);
        let ours = Sim::new(1).run(|_| async move {
            let fs = Fs::open(device, OpenOptions::default()).await.expect("it opens");
            by_us(&fs).await
        });
        assert!(theirs.len() > 500, "{}", theirs.len());
        assert_same(&theirs, &ours);
    }
}

/// Simple quotas on a file system that was made without, by the kernel itself: owners stand in the records
/// of what was written since, and of nothing before.
#[test]
fn simple_quotas_that_the_kernel_turned_on() {
    let Some(dir) = workshop("simple_quotas_that_the_kernel_turned_on") else { return };
    let path = dir.path().join("disk");
    shell(dir.path(), "truncate -s 300M disk; mkfs.btrfs -q -n 4k disk >/dev/null 2>&1");
    let mount = Mount::new(&path, "compress=zstd");
    shell(
        mount.path(),
        "btrfs -q subvolume create a; seq 50000 > a/before; cp a/before plain; sync",
    );
    // BTRFS_IOC_QUOTA_CTL with command 4, which tools before 6.7 do not have a word for.
    let turn_on = "import fcntl, os, struct\n\
        fcntl.ioctl(os.open('.', os.O_RDONLY), 0xC0109428, struct.pack('QQ', 4, 0))";
    let out = try_run(
        "python3",
        ["-c", &format!("import os; os.chdir('{}')\n{turn_on}", mount.path().display())],
    );
    if !out.status.success() {
        println!("simple_quotas_that_the_kernel_turned_on: skipped, this kernel has none");
        return;
    }
    shell(
        mount.path(),
        "seq 60000 > a/after; cp --reflink=always a/before a/clone; \
         for i in $(seq 9); do btrfs -q subvolume snapshot a s$i; touch s$i/after; sync; done; \
         echo more >> a/after; btrfs -q subvolume delete s3; btrfs -q subvolume sync .; sync",
    );
    drop(mount);
    let theirs = {
        let mount = Mount::new(&path, "ro");
        by_kernel(mount.path())
    };
    let device = load(&path);
    let (checked, ours) = Sim::new(1).run(|_| async move {
        let options = CheckOptions { data: true, ..CheckOptions::default() };
        let checked = check(vec![device.clone()], &options).await.expect("it opens");
        let fs = Fs::open(device, OpenOptions::default()).await.expect("it opens");
        assert!(fs.superblock().incompat.contains(Incompat::SIMPLE_QUOTA));
        (checked, by_us(&fs).await)
    });
    assert_eq!(errors(&checked), [""; 0]);
    assert_same(&theirs, &ours);
}

/// Verity is the kernel's to enforce: the bytes of a sealed file are those of any other.
#[test]
fn sealed_files_are_read_and_their_trees_told() {
    let Some(dir) = workshop("sealed_files_are_read_and_their_trees_told") else { return };
    let path = image(dir.path(), "081-kernel-verity/image.zst");
    let kinds = compare(std::slice::from_ref(&path), 100);
    assert!(
        kinds.contains("VERITY_DESC_ITEM") && kinds.contains("VERITY_MERKLE_ITEM"),
        "{kinds:?}"
    );
    run("btrfs", ["check", "--check-data-csum", &path.to_string_lossy()]);
    let device = load(&path);
    let (checked, seen) = Sim::new(1).run(|_| async move {
        let options = CheckOptions { data: true, all_copies: true, ..CheckOptions::default() };
        let checked = check(vec![device.clone()], &options).await.expect("it opens");
        let fs = Fs::open(device, OpenOptions::default()).await.expect("it opens");
        assert!(fs.superblock().compat_ro.contains(CompatRo::VERITY));
        assert_eq!(fs.warnings(), [""; 0]);
        (checked, by_us(&fs).await)
    });
    assert_eq!(errors(&checked), [""; 0]);
    let expected = std::fs::read_to_string(Path::new(IMAGES).join("081-kernel-verity/expect.txt"));
    let expected = expected.expect("sums");
    for line in expected.lines() {
        let (sum, name) = line.split_once("  .").expect("two columns");
        let ours = &seen[name.as_bytes()].content;
        let ours: String = ours.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(ours, sum, "{name}");
    }
    assert_eq!(expected.lines().count(), 14);
}
