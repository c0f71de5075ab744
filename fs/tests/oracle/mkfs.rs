//! What our mkfs makes: clean to `btrfs check`, mounted read-write by the kernel, used, clean again.

use crate::kernel::{Mount, check_clean, run, shell, workshop};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use varve_fs::{Identity, MkfsOptions, Step, plan};

/// Carries a plan out on a sparse file.
pub(crate) fn make(path: &Path, size: u64, options: &MkfsOptions) {
    let identity = Identity::random(options.uuid, Default::default());
    let plan = plan(options, &identity, size).expect("a file system fits");
    let file = File::create(path).expect("an image file");
    file.set_len(size).expect("a sparse file");
    for step in plan.steps {
        if let Step::Write { at, bytes } = step {
            file.write_all_at(&bytes, at).expect("a write to the image");
        }
    }
}

const MIB: u64 = 1 << 20;

#[test]
fn btrfs_check_finds_nothing_to_say() {
    let Some(dir) = workshop("btrfs_check_finds_nothing_to_say") else { return };
    let image = dir.path().join("disk");
    let sizes = [109 * MIB, 256 * MIB, 1 << 30, (4 << 30) + 12_345, 60 << 30, 1 << 40];
    let base = MkfsOptions { label: "of varve".into(), ..MkfsOptions::default() };
    let mut shapes = vec![MkfsOptions { block_group_tree: true, ..base.clone() }];
    for nodesize in [4096, 8192, 16384, 32768, 65536] {
        for dup_metadata in [true, false] {
            shapes.push(MkfsOptions { nodesize, dup_metadata, ..base.clone() });
        }
    }
    for size in sizes {
        for options in &shapes {
            // Every shape on one size, and the common ones on all.
            if size == 1 << 30 || ![8192, 32768].contains(&options.nodesize) {
                make(&image, size, options);
                check_clean(&image, &[]);
            }
        }
    }
    let superblock = run("btrfs", ["inspect-internal", "dump-super", "-fa", path(&image)]);
    assert_eq!(superblock.matches("[match]").count(), 3 * 3, "{superblock}");
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a temporary path is text")
}

/// Enough to make the kernel allocate, split, snapshot, delete and compress.
const WORK: &str = r#"
    mkdir -p a/b/c; cp -r /usr/include/linux a/ 2>/dev/null || true
    for i in $(seq 300); do echo $i > a/b/$i; done
    head -c 9000000 /dev/urandom > a/big; head -c 3000000 /dev/zero > a/zero
    ln a/big a/b/big2; ln -s ../big a/b/link
    btrfs subvolume create s >/dev/null; cp a/big s/; btrfs subvolume snapshot s t >/dev/null
    for i in $(seq 1 2 300); do rm a/b/$i; done
    btrfs filesystem sync . >/dev/null
"#;

#[test]
fn the_kernel_mounts_and_uses_it() {
    let Some(dir) = workshop("the_kernel_mounts_and_uses_it") else { return };
    let cases = [
        (109 * MIB, 16384, true),
        (256 * MIB, 4096, true),
        (256 * MIB, 65536, false),
        (4 << 30, 32768, true),
        (1 << 40, 16384, true),
    ];
    for (n, (size, nodesize, dup_metadata)) in cases.into_iter().enumerate() {
        let image = dir.path().join(format!("disk{n}"));
        let options = MkfsOptions {
            nodesize,
            dup_metadata,
            block_group_tree: n == 3,
            ..MkfsOptions::default()
        };
        make(&image, size, &options);
        let mount = Mount::new(&image, "compress=zstd");
        shell(mount.path(), WORK);
        let before = shell(mount.path(), "find . -type f | sort | xargs -d '\\n' sha256sum");
        drop(mount);
        check_clean(&image, &["--check-data-csum"]);
        let mount = Mount::new(&image, "");
        let after = shell(mount.path(), "find . -type f | sort | xargs -d '\\n' sha256sum");
        assert_eq!(before, after);
        shell(mount.path(), "rm -r a; sync");
        // Moves every block group there is; the smallest devices have no room for that.
        if size > 1 << 30 {
            shell(mount.path(), "btrfs balance start --full-balance . >/dev/null");
        }
        drop(mount);
        check_clean(&image, &[]);
    }
}
