//! S07, S08, S11: bad sectors of data, in everything that data can be. What is lost is what the kernel
//! cannot read either, found by reading every path there is.

use crate::kernel::{Mount, run, shell, workshop};
use crate::walk::{assert_same, by_kernel, by_us, load};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use varve_block::dev::Mem;
use varve_block::{Prng, Sim};
use varve_fs::check::{CheckOptions, Severity, check};
use varve_fs::format::inode::FileType;
use varve_fs::format::key::{ItemType, Key, objectid};
use varve_fs::owners::{Damage, PlaceKind, Scanned};
use varve_fs::{Fs, InodeId, Logical, OpenOptions};

const SECTOR: u64 = 4096;

/// Path and sector of a file.
type Losses = BTreeSet<(Vec<u8>, u64)>;

/// Plain, compressed, beside inline data, reserved and partly written, shared by three files, hard
/// linked, with a middle that nobody uses; and all of it in four snapshots.
const FILL: &str = "btrfs -q subvolume create v >/dev/null; cd v; mkdir d
    head -c 300001 /dev/urandom > plain
    touch packed; btrfs property set packed compression zstd
    seq 200000 > packed; truncate -s 700001 packed
    echo inline > inline
    fallocate -l 400000 reserved; head -c 50000 /dev/urandom | dd of=reserved bs=4k seek=9 conv=notrunc status=none
    head -c 200000 /dev/urandom > shared; cp --reflink=always shared d/one; cp --reflink=always shared two
    head -c 100000 /dev/urandom > linked; ln linked d/link; ln linked link
    head -c 400000 /dev/urandom > book; sync
    head -c 200704 /dev/urandom | dd of=book bs=4k seek=20 conv=notrunc status=none; sync
    for n in 1 2 3 4; do btrfs -q subvolume snapshot . ../s$n >/dev/null; done
    head -c 40960 /dev/urandom | dd of=plain bs=4k seek=5 conv=notrunc status=none
    echo gone | dd of=d/one bs=4k seek=3 conv=notrunc status=none; sync";

/// Every sector that has a checksum.
async fn sectors(fs: &Fs<Mem>) -> Vec<u64> {
    let tree = fs.tree(objectid::CSUM_TREE).await.expect("the root tree").expect("sums");
    let first = Key::new(objectid::EXTENT_CSUM, ItemType::EXTENT_CSUM, 0);
    let mut cursor = fs.seek(&tree, first).await.expect("a leaf");
    let mut all = Vec::new();
    while let Some(item) = cursor.next().await.expect("a leaf") {
        let count = item.data().len() as u64 / 4;
        all.extend((0..count).map(|n| item.key().offset + n * SECTOR));
    }
    all
}

/// Spoils some sectors in the first copy of each: the addresses, with device and byte.
fn spoil(disks: &[PathBuf], chance: u64, seed: u64) -> BTreeMap<u64, (u64, u64)> {
    let devices = disks.iter().map(|disk| load(disk)).collect();
    let bad: BTreeMap<u64, (u64, u64)> = Sim::new(1).run(move |_| async move {
        let options = OpenOptions { ignore_log: true, ..OpenOptions::default() };
        let fs = Fs::open_devices(devices, options).await.expect("it opens");
        let (chunks, prng) = (fs.chunks(), Prng::new(seed));
        let all = sectors(&fs).await.into_iter().filter(|_| prng.chance(chance, 100));
        let place = |at| chunks.map(Logical(at), SECTOR).expect("it is mapped").copies[0];
        all.map(|at| (at, (place(at).devid, place(at).byte))).collect()
    });
    for (devid, byte) in bad.values() {
        let disk = &disks[usize::try_from(*devid).expect("small") - 1];
        let file = File::options().read(true).write(true).open(disk).expect("an image");
        let mut old = [0; 7];
        file.read_exact_at(&mut old, byte + 99).expect("a read");
        file.write_all_at(&old.map(|b| !b), byte + 99).expect("a write");
    }
    bad
}

/// What cannot be read below a mount, by trying.
fn unreadable(top: &Path) -> Losses {
    let mut lost = Losses::new();
    let mut todo = vec![(Vec::new(), top.to_path_buf())];
    while let Some((name, path)) = todo.pop() {
        let meta = path.symlink_metadata().expect("a status");
        if meta.is_dir() {
            for entry in path.read_dir().expect("a folder") {
                let entry = entry.expect("an entry");
                let slash: &[u8] = if name.is_empty() { b"" } else { b"/" };
                let child = [&name[..], slash, &entry.file_name().into_vec()].concat();
                todo.push((child, entry.path()));
            }
        } else if meta.is_file() {
            let file = File::open(&path).expect("a file");
            for at in (0..meta.len()).step_by(4096) {
                let mut sector = [0; 4096];
                if file.read_at(&mut sector, at).is_err() {
                    lost.insert((name.clone(), at / SECTOR));
                }
            }
        }
    }
    lost
}

/// The same by us.
async fn unreadable_by_us(fs: &Fs<Mem>) -> Losses {
    let mut lost = Losses::new();
    let mut todo = vec![(Vec::new(), InodeId::root_of(objectid::FS_TREE))];
    while let Some((name, id)) = todo.pop() {
        let inode = fs.inode(id).await.expect("an inode");
        if inode.file_type() == FileType::Directory {
            for entry in fs.read_dir(id, 0, 1000).await.expect("a folder") {
                let slash: &[u8] = if name.is_empty() { b"" } else { b"/" };
                todo.push(([&name[..], slash, &entry.name].concat(), entry.id));
            }
            continue;
        }
        for at in (0..inode.size).step_by(4096) {
            if fs.read(id, at, 4096).await.is_err() {
                lost.insert((name.clone(), at / SECTOR));
            }
        }
    }
    lost
}

/// The report's losses, sector by sector, up to the ends of files.
async fn reported(fs: &Fs<Mem>, damage: &Damage) -> Losses {
    let mut lost = Losses::new();
    for place in damage.places.iter().filter(|place| place.kind == PlaceKind::Data) {
        for used in &place.used {
            let size = fs.inode(used.id).await.expect("an inode").size;
            let end = used.range.end.min(size).div_ceil(SECTOR);
            for path in &used.paths {
                lost.extend((used.range.start / SECTOR..end).map(|n| (path.clone(), n)));
            }
        }
    }
    lost
}

async fn scanned(fs: &Fs<Mem>) -> (Scanned, Damage) {
    let scanned = fs.scan_data(&mut |_| ()).await.expect("the sums can be read");
    let bad: Vec<Logical> = scanned.bad.iter().map(|bad| bad.at).collect();
    let damage = fs.damage(&bad).await.expect("the trees can be read");
    (scanned, damage)
}

#[test]
fn s07_every_bad_sector_is_traced_to_what_the_kernel_cannot_read() {
    let test = "s07_every_bad_sector_is_traced_to_what_the_kernel_cannot_read";
    let Some(dir) = workshop(test) else { return };
    let disk = dir.path().join("disk");
    shell(dir.path(), "truncate -s 300M disk; mkfs.btrfs -q -d single -m single disk >/dev/null");
    let mount = Mount::new(&disk, "");
    shell(mount.path(), FILL);
    // Deleted, and open while the power goes.
    let orphan = mount.path().join("v/orphan");
    shell(mount.path(), "head -c 200000 /dev/urandom > v/orphan; sync");
    let open = File::open(&orphan).expect("a file");
    std::fs::remove_file(&orphan).expect("it goes");
    shell(mount.path(), "sync");
    let cut = dir.path().join("cut");
    run("cp", [Path::new("--sparse=always"), &disk, &cut]);
    drop(open);
    drop(mount);
    let bad = spoil(std::slice::from_ref(&cut), 15, 7);
    assert!(bad.len() > 40, "only {} sectors", bad.len());
    let device = load(&cut);
    let mount = Mount::new(&cut, "ro");
    let theirs = unreadable(mount.path());
    drop(mount);
    assert!(!theirs.is_empty(), "the kernel read everything");

    Sim::new(1).run(|_| async move {
        let options = OpenOptions { subvolume: Some(objectid::FS_TREE), ..OpenOptions::default() };
        let fs = Fs::open(device, options).await.expect("it opens");
        assert_eq!(unreadable_by_us(&fs).await, theirs, "other sectors fail than the kernel's");
        let (scanned, damage) = scanned(&fs).await;
        // One event for each, at the place where it was done.
        let found = scanned.bad.iter().map(|bad| {
            assert_eq!((bad.mirror, bad.copies), (1, 1));
            (bad.at.0, (bad.physical.devid, bad.physical.byte))
        });
        assert_eq!(found.clone().count(), bad.len());
        assert_eq!(found.collect::<BTreeMap<_, _>>(), bad);
        assert_eq!(reported(&fs, &damage).await, theirs, "not what the paths say");
        // What no path leads to is labelled.
        let kinds = |wanted| damage.places.iter().filter(move |place| place.kind == wanted);
        assert!(kinds(PlaceKind::Bookend).count() > 0, "no middle that nobody uses was hit");
        assert!(kinds(PlaceKind::Bookend).all(|place| !place.holders.is_empty()));
        let orphan = |place: &&varve_fs::owners::Place| {
            !place.used.is_empty() && place.used.iter().all(|used| used.paths.is_empty())
        };
        assert!(kinds(PlaceKind::Data).filter(orphan).count() > 0, "the deleted file was not hit");
        let known = [PlaceKind::Data, PlaceKind::Bookend];
        assert!(damage.places.iter().all(|place| known.contains(&place.kind)));
        let hit = |path: &str| theirs.iter().any(|(name, _)| name == path.as_bytes());
        let files = ["plain", "packed", "reserved", "shared", "d/one", "two", "linked", "d/link"];
        for (top, file) in ["v", "s1", "s4"].iter().flat_map(|top| files.map(|file| (top, file))) {
            assert!(hit(&format!("{top}/{file}")), "{top}/{file} was not hit");
        }
    });
}

/// Each profile that can mend: the good copy is returned, and each bad one counted once.
#[test]
fn s08_with_one_good_source_every_byte_is_returned_and_every_fault_counted() {
    let test = "s08_with_one_good_source_every_byte_is_returned_and_every_fault_counted";
    let Some(dir) = workshop(test) else { return };
    for (profile, count) in [("dup", 1), ("raid1", 2), ("raid10", 4), ("raid5", 3), ("raid6", 4)] {
        let disks: Vec<_> = (1..=count).map(|n| dir.path().join(format!("disk{n}"))).collect();
        let metadata = if count == 1 { "dup" } else { "raid1" };
        shell(
            dir.path(),
            &format!(
                "rm -f disk?; for n in $(seq {count}); do truncate -s 400M disk$n; done
                mkfs.btrfs -q -d {profile} -m {metadata} disk? >/dev/null 2>&1"
            ),
        );
        let mount = Mount::several(&disks, "");
        shell(mount.path(), FILL);
        drop(mount);
        let mount = Mount::several(&disks, "ro");
        let theirs = by_kernel(mount.path());
        drop(mount);
        // Of a row with parity, a few: with every tenth sector bad, two of one row are not rare.
        let bad = spoil(&disks, if profile == "raid5" { 1 } else { 4 }, 8);
        assert!(bad.len() > 3, "{profile}: only {} sectors", bad.len());
        let devices: Vec<Mem> = disks.iter().map(|disk| load(disk)).collect();
        Sim::new(1).run(|_| async move {
            let fs = Fs::open_devices(devices, OpenOptions::default()).await.expect("it opens");
            assert_same(&theirs, &by_us(&fs).await);
            assert!(fs.counters().bad_copies > 0, "{profile}: nothing was noticed");
            let (scanned, _) = scanned(&fs).await;
            let found: BTreeSet<u64> = scanned.bad.iter().map(|bad| bad.at.0).collect();
            assert_eq!(scanned.bad.len(), bad.len(), "{profile}: counted otherwise than done");
            assert_eq!(found, bad.keys().copied().collect(), "{profile}");
        });
    }
}

/// Damage, a report, the files it names deleted, those that only hold a bad extent with them: then the
/// check, data too, finds nothing.
#[test]
fn s11_after_deleting_what_the_report_names_the_check_is_clean() {
    let test = "s11_after_deleting_what_the_report_names_the_check_is_clean";
    let Some(dir) = workshop(test) else { return };
    let disk = dir.path().join("disk");
    shell(dir.path(), "truncate -s 300M disk; mkfs.btrfs -q -d single -m dup disk >/dev/null");
    let mount = Mount::new(&disk, "");
    shell(
        mount.path(),
        &format!("{FILL}; cd ..; for i in $(seq 90); do seq $i 2000 > f$i; done; sync"),
    );
    drop(mount);
    let errors = |device: Mem| {
        let checked = Sim::new(3).run(|rt| async move {
            let options = CheckOptions { data: true, rt: Some(&rt), ..CheckOptions::default() };
            check(vec![device], &options).await.expect("it opens")
        });
        let errors = checked.findings.into_iter().filter(|f| f.severity == Severity::Error);
        errors.map(|f| format!("{f:?}")).collect::<Vec<_>>()
    };
    assert_eq!(errors(load(&disk)), [""; 0], "the check of the whole disk");
    assert!(!spoil(std::slice::from_ref(&disk), 2, 11).is_empty());
    assert!(!errors(load(&disk)).is_empty(), "the damage is not found");
    let device = load(&disk);
    let (paths, all): (BTreeSet<Vec<u8>>, usize) = Sim::new(1).run(|_| async move {
        let fs = Fs::open(device, OpenOptions::default()).await.expect("it opens");
        let (_, damage) = scanned(&fs).await;
        let used = damage.places.iter().flat_map(|place| place.used.iter().chain(&place.holders));
        let paths = used.flat_map(|used| used.paths.clone()).collect();
        (paths, by_us_names(&fs).await)
    });
    assert!(!paths.is_empty() && paths.len() < all, "{} of {all}", paths.len());
    let mount = Mount::new(&disk, "");
    for path in &paths {
        let path = mount.path().join(std::ffi::OsString::from_vec(path.clone()));
        std::fs::remove_file(path).expect("it goes");
    }
    shell(mount.path(), "sync");
    drop(mount);
    assert_eq!(errors(load(&disk)), [""; 0], "something bad is left");
}

/// How many files there are.
async fn by_us_names(fs: &Fs<Mem>) -> usize {
    let mut count = 0;
    let mut todo = vec![InodeId::root_of(objectid::FS_TREE)];
    while let Some(id) = todo.pop() {
        for entry in fs.read_dir(id, 0, 10_000).await.expect("a folder") {
            match entry.kind {
                FileType::Directory => todo.push(entry.id),
                _ => count += 1,
            }
        }
    }
    count
}
