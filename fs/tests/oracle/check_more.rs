//! What only one part of a file system knows: quota groups, logs, old space caches, made by the kernel.
//! The checker finds nothing to say, and `btrfs check` agrees; with one number changed both complain.

use crate::kernel::{Mount, check_clean, shell, try_run, workshop};
use crate::walk::load;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use varve_block::Sim;
use varve_fs::check::{CheckOptions, Checked, Severity, check};

fn ours(image: &Path) -> Checked {
    let device = load(image);
    Sim::new(3).run(|_| async move {
        check(vec![device], &CheckOptions::default()).await.expect("it opens")
    })
}

#[track_caller]
fn assert_clean(checked: &Checked) {
    let errors: Vec<_> =
        checked.findings.iter().filter(|f| f.severity == Severity::Error).collect();
    assert!(errors.is_empty(), "{errors:#?}");
}

/// Codes of all findings but the traces of mkfs.
fn codes(checked: &Checked) -> Vec<&'static str> {
    let mut codes: Vec<_> = checked.findings.iter().map(|f| f.code.text()).collect();
    codes.retain(|code| *code != "free-space-leftover");
    codes.sort_unstable();
    codes.dedup();
    codes
}

#[test]
fn quota_groups_of_shared_and_nested_subvolumes_add_up() {
    let Some(dir) = workshop("quota_groups_of_shared_and_nested_subvolumes_add_up") else { return };
    shell(dir.path(), "truncate -s 400M q; mkfs.btrfs -q -f -n 4096 q");
    let image = dir.path().join("q");
    let mount = Mount::new(&image, "");
    // Levels, snapshots with shared and own data, clones across subvolumes, a deleted snapshot.
    let work = "btrfs -q quota enable .; btrfs -q subvolume create a; btrfs -q subvolume create b; \
        btrfs qgroup create 1/1 .; btrfs qgroup create 1/2 .; btrfs qgroup create 2/1 .; \
        for i in $(seq 400); do seq $i 900 > a/$i; done; head -c 5M /dev/urandom > b/big; sync; \
        btrfs -q subvolume snapshot a s1; btrfs -q subvolume snapshot -r a s2; \
        cp --reflink=always b/big a/clone; seq 9000 > a/7; rm -f s1/3*; sync; \
        id() { btrfs subvolume show $1 | awk '/Subvolume ID/ {print $3}'; }; \
        btrfs -q qgroup assign --no-rescan 0/$(id a) 1/1 . || true; \
        btrfs -q qgroup assign --no-rescan 0/$(id s1) 1/1 . || true; \
        btrfs -q qgroup assign --no-rescan 0/$(id b) 1/2 . || true; \
        btrfs -q qgroup assign --no-rescan 1/1 2/1 . || true; \
        btrfs -q qgroup assign --no-rescan 1/2 2/1 . || true; \
        btrfs -q quota rescan -w .; btrfs -q subvolume delete s2; btrfs -q subvolume sync .; \
        btrfs -q quota rescan -w .; sync";
    shell(mount.path(), work);
    drop(mount);
    check_clean(&image, &[]);
    assert_clean(&ours(&image));
    assert_eq!(codes(&ours(&image)), Vec::<&str>::new());
}

#[test]
fn a_log_of_fsyncs_is_walked() {
    let Some(dir) = workshop("a_log_of_fsyncs_is_walked") else { return };
    shell(dir.path(), "truncate -s 300M log; mkfs.btrfs -q -f log");
    let image = dir.path().join("log");
    let mount = Mount::new(&image, "commit=300");
    // A copy of the disk while it is mounted is what a power cut leaves.
    let work = "echo base > base; btrfs -q subvolume create sub; sync; \
        for i in 1 2 3; do head -c 70000 /dev/urandom > f$i; sync f$i; done; \
        seq 20000 > sub/g; sync sub/g; mv f1 f1-renamed; sync f1-renamed";
    shell(mount.path(), work);
    shell(dir.path(), "cp --sparse=always log cut");
    drop(mount);
    let cut = dir.path().join("cut");
    let super_dump = shell(dir.path(), "btrfs inspect-internal dump-super cut");
    assert!(!super_dump.contains("log_root\t\t0\n"), "there is a log: {super_dump}");
    let checked = ours(&cut);
    assert_clean(&checked);
    assert!(try_run("btrfs", ["check", &cut.to_string_lossy()]).status.success());
    // A log block that is garbage.
    let root: u64 = super_dump
        .lines()
        .find_map(|line| line.strip_prefix("log_root\t\t")?.trim().parse().ok())
        .expect("its address");
    let file = open(&cut);
    let whole = std::fs::read(&cut).expect("the image");
    let copies: Vec<usize> = (0..whole.len() - 4096)
        .step_by(4096)
        .filter(|at| whole[at + 48..at + 56] == root.to_le_bytes())
        .collect();
    assert!(!copies.is_empty());
    for at in copies {
        file.write_all_at(b"garbage", at as u64 + 300).expect("a write");
    }
    assert_eq!(codes(&ours(&cut)), ["block-csum", "device-state"]);
}

#[test]
fn the_old_space_cache_is_compared_while_it_claims_to_be_valid() {
    let test = "the_old_space_cache_is_compared_while_it_claims_to_be_valid";
    let Some(dir) = workshop(test) else { return };
    shell(dir.path(), "truncate -s 2G v1; mkfs.btrfs -q -f -R ^free-space-tree v1");
    let image = dir.path().join("v1");
    let mount = Mount::new(&image, "space_cache=v1");
    let work = "for i in $(seq 300); do head -c $((i * 700)) /dev/urandom > $i; done; sync; \
        rm -f *3 *7; sync; head -c 9M /dev/urandom > big; sync";
    shell(mount.path(), work);
    drop(mount);
    check_clean(&image, &[]);
    let checked = ours(&image);
    assert_clean(&checked);
    assert_eq!(codes(&checked), Vec::<&str>::new());
    // A run that begins one sector too early is in use there; the pages' checksums are right.
    edit_caches(&image, |page| {
        for (at, change) in [(72, 4096_u64.wrapping_neg()), (80, 4096)] {
            let word = u64::from_le_bytes(page[at..at + 8].try_into().expect("eight bytes"));
            page[at..at + 8].copy_from_slice(&word.wrapping_add(change).to_le_bytes());
        }
    });
    let checked = ours(&image);
    assert!(!checked.is_clean(), "{:#?}", checked.findings);
    assert_eq!(codes(&checked), ["space-cache"]);
    assert!(checked.findings.iter().any(|f| f.message.contains("calls allocated space")));
    let tool = try_run("btrfs", ["check", &image.to_string_lossy()]);
    assert!(!tool.status.success(), "{}", String::from_utf8_lossy(&tool.stderr));
    // Of an older generation: nobody will believe it, so nothing is wrong.
    edit_caches(&image, |page| page[64] ^= 1);
    let checked = ours(&image);
    assert_clean(&checked);
    assert_eq!(codes(&checked), ["space-cache"]);
    assert!(checked.findings.iter().any(|f| f.message.contains("space cache generation (")));
}

/// Changes the first page of every cache in an image, and seals it. A cache of 16 pages begins with
/// as many checksums, of which the first is of all that follows them in its page.
fn edit_caches(image: &Path, edit: impl Fn(&mut [u8])) {
    let file = open(image);
    let whole = std::fs::read(image).expect("the image");
    let mut edited = 0;
    for at in (0..whole.len()).step_by(4096) {
        let mut page = whole[at..at + 4096].to_vec();
        if page[..64].iter().all(|byte| *byte == 0) || seal(&page) != page[..4] {
            continue;
        }
        edit(&mut page);
        let sum = seal(&page);
        page[..4].copy_from_slice(&sum);
        file.write_all_at(&page, at as u64).expect("a write");
        edited += 1;
    }
    assert!(edited > 0, "there are caches");
}

fn seal(page: &[u8]) -> [u8; 4] {
    varve_block::sum::crc32c(&page[64..]).to_le_bytes()
}

fn open(image: &Path) -> File {
    File::options().write(true).open(image).expect("an image")
}
