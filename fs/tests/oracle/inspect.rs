//! What lies below files, as the kernel's tools see it: dump-tree item by item, dumps both ways.

use crate::kernel::{Mount, check_clean, run, shell, try_run, workshop};
use crate::walk::load;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use varve_block::{BlockDevice, BufPool, Sector, Sim};
use varve_fs::format::block;
use varve_fs::format::key::ItemType;
use varve_fs::inspect::{Fields, Inspector, Step, Value, Walk, describe};
use varve_fs::{DumpDevice, DumpOptions, is_dump};

/// Everything that makes items of its own: subvolumes, snapshots, quotas, attributes, links, reflinks,
/// preallocation, compression, names that collide.
const FEATURES: &str = "
    btrfs quota enable .
    btrfs -q subvolume create sub 2>/dev/null || btrfs subvolume create sub >/dev/null
    for n in $(seq 1 400); do echo $n > sub/file-$n; done
    mkdir dir; touch dir/4mcqpb1w9r dir/ymgbw34tsy
    for n in $(seq 1 300); do ln sub/file-1 sub/a-long-name-for-a-hard-link-$n; done
    head -c 300000 /dev/urandom > data
    cp --reflink=always data copy
    fallocate -l 1M prealloc; truncate -s 10M holes; echo end >> holes
    head -c 1000000 /dev/zero > zeroes; btrfs property set zeroes compression zstd
    setfattr -n user.o953q73mvm -v one data; setfattr -n user.r51x0gag3f -v two data
    mknod device c 5 1; mkfifo pipe; ln -s data link
    sync
    btrfs subvolume snapshot sub snap >/dev/null; btrfs subvolume snapshot -r . ro >/dev/null
    rm sub/file-2*; btrfs qgroup limit 1G sub || true
    sync; btrfs quota rescan -w . >/dev/null || true";

fn filled(dir: &Path, name: &str, mkfs: &str) -> std::path::PathBuf {
    shell(dir, &format!("truncate -s 300M {name}; mkfs.btrfs -q {mkfs} {name} >/dev/null 2>&1"));
    let image = dir.join(name);
    let mount = Mount::new(&image, "compress=zstd");
    shell(mount.path(), FEATURES);
    drop(mount);
    image
}

/// One item: its key as three numbers, its size, and every number that is told of it.
#[derive(PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Told {
    key: (u64, String, u64),
    size: u64,
    numbers: BTreeSet<u64>,
}

/// `leaf ... item N key (A TYPE B) itemoff X itemsize Y`, and the lines below.
fn by_their_tool(said: &str) -> Vec<Told> {
    let mut items: Vec<Told> = Vec::new();
    for line in said.lines() {
        let line = line.trim();
        let Some(rest) = line.strip_prefix("item ").filter(|line| line.contains(" key (")) else {
            if line.starts_with("leaf ") || line.starts_with("node ") || line.starts_with("key (") {
                continue;
            }
            if let Some(item) = items.last_mut() {
                item.numbers.extend(numbers(line));
            }
            continue;
        };
        let (_, rest) = rest.split_once(" key (").expect("a key");
        let (key, rest) = rest.split_once(')').expect("the end of a key");
        let parts: Vec<_> = key.split_whitespace().collect();
        let size = rest.split_whitespace().last().and_then(|n| n.parse().ok()).expect("a size");
        items.push(Told {
            key: (number(parts[0]), parts[1].to_owned(), number(parts[2])),
            size,
            numbers: numbers(key).collect(),
        });
    }
    items
}

/// Decimal and hexadecimal numbers in a line.
fn numbers(line: &str) -> impl Iterator<Item = u64> {
    line.split(|c: char| !c.is_ascii_alphanumeric()).filter_map(|word| {
        let hex = word.strip_prefix("0x").and_then(|hex| u64::from_str_radix(hex, 16).ok());
        word.parse().ok().or(hex)
    })
}

/// Their names for object ids.
fn number(word: &str) -> u64 {
    if let Some(hex) = word.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).expect("a number");
    }
    if let Some((level, id)) = word.split_once('/') {
        return number(level) << 48 | number(id);
    }
    let named = [
        ("ROOT_TREE", 1),
        ("DEV_ITEMS", 1),
        ("EXTENT_TREE", 2),
        ("CHUNK_TREE", 3),
        ("DEV_TREE", 4),
        ("FS_TREE", 5),
        ("ROOT_TREE_DIR", 6),
        ("CSUM_TREE", 7),
        ("QUOTA_TREE", 8),
        ("UUID_TREE", 9),
        ("FREE_SPACE_TREE", 10),
        ("BLOCK_GROUP_TREE", 11),
        ("FIRST_CHUNK_TREE", 256),
        ("DEV_STATS", 0),
        ("DATA_RELOC_TREE", u64::MAX - 8),
        ("EXTENT_CSUM", u64::MAX - 9),
        ("FREE_SPACE", u64::MAX - 10),
        ("ORPHAN", u64::MAX - 4),
    ];
    let found = named.iter().find(|(name, _)| *name == word).map(|(_, id)| *id);
    found.unwrap_or_else(|| {
        word.parse().or_else(|_| word.parse().map(i64::cast_unsigned)).unwrap_or(u64::MAX)
    })
}

fn told(fields: &Fields, into: &mut BTreeSet<u64>) {
    for (name, value) in fields {
        match value {
            // Not on their list: what is printed there as a word, a sum of ours, or packed otherwise.
            Value::Num(_)
                if [
                    "type",
                    "bytes",
                    "rdev",
                    "io_align",
                    "io_width",
                    "free_sectors",
                    "flags",
                    "encryption",
                    "chunk_tree",
                    "sub_stripes",
                    "byte_limit",
                    "inode",
                    "max_exclusive",
                    "rsv_referenced",
                    "rsv_exclusive",
                    "max_referenced",
                    "subvol_id",
                    "root",
                    "parent",
                ]
                .contains(name) => {}
            Value::Num(n) => drop(into.insert(*n)),
            Value::List(list) => list.iter().for_each(|fields| told(fields, into)),
            _ => {}
        }
    }
}

fn by_us(images: &[PathBuf]) -> Vec<Told> {
    let devices = images.iter().map(|image| load(image)).collect();
    Sim::new(1).run(|_| async move {
        let fs = Inspector::open_devices(devices, 0).await.expect("it opens");
        let sb = fs.superblock().clone();
        let mut items = Vec::new();
        for root in fs.roots().await {
            let mut walk = Walk::new(root.root);
            while let Some(step) = walk.next(&fs).await {
                let Step::Block(found) = step else { panic!("a block is lost") };
                assert_eq!(found.problem, None);
                for (key, data) in block::items(&found.bytes) {
                    let fields =
                        describe(key, data, sb.csum().expect("a known type"), sb.sectorsize);
                    let malformed = fields.iter().any(|(name, _)| *name == "malformed");
                    assert!(!malformed, "{key} {fields:?}");
                    let mut numbers = BTreeSet::new();
                    told(&fields, &mut numbers);
                    let key = (key.objectid, key.kind.to_string(), key.offset);
                    items.push(Told { key, size: data.len() as u64, numbers });
                }
            }
        }
        items
    })
}

/// Keys and sizes, in order.
fn keyed(items: &[Told]) -> Vec<(u64, &str, u64, u64)> {
    let mut keys: Vec<_> =
        items.iter().map(|i| (i.key.0, kind(&i.key.1), i.key.2, i.size)).collect();
    keys.sort_unstable();
    keys
}

/// Every item of a file system, which has at least so many; the types of them. Devices after the first
/// must be where the tool finds them.
pub(crate) fn compare(images: &[PathBuf], least: usize) -> BTreeSet<String> {
    let said = run("btrfs", ["inspect-internal", "dump-tree", &images[0].to_string_lossy()]);
    compare_told(&said, images, least)
}

/// As [`compare`], with what `btrfs inspect-internal dump-tree` said at some time.
pub(crate) fn compare_told(said: &str, images: &[PathBuf], least: usize) -> BTreeSet<String> {
    let (theirs, ours) = (by_their_tool(said), by_us(images));
    assert!(theirs.len() > least, "only {} items", theirs.len());
    // They print trees in another order; keys of one tree stay together in both.
    let sorted = |mut items: Vec<Told>| {
        items.sort();
        items
    };
    let (theirs, ours) = (sorted(theirs), sorted(ours));
    assert_eq!(theirs.len(), ours.len());
    for (theirs, ours) in keyed(&theirs).iter().zip(&keyed(&ours)) {
        if theirs.0 != u64::MAX && theirs.2 != u64::MAX {
            assert_eq!(theirs, ours);
        }
    }
    // Every number that we tell of an item, they tell of some item of that key and size.
    let place = |told: &Told| (told.key.0, kind(&told.key.1).to_owned(), told.key.2, told.size);
    let mut known: BTreeMap<_, BTreeSet<u64>> = BTreeMap::new();
    for their in &theirs {
        known.entry(place(their)).or_insert_with(|| [0, 1].into()).extend(&their.numbers);
    }
    for our in &ours {
        // Of what seals a file they tell the key alone.
        if our.key.1.starts_with("VERITY_") {
            continue;
        }
        let Some(known) = known.get(&place(our)).filter(|known| known.len() > 2) else { continue };
        let strange: Vec<_> = our.numbers.difference(known).collect();
        assert!(
            strange.is_empty(),
            "{:?}: {strange:?} of {:?}, they tell {known:?}",
            our.key,
            our.numbers
        );
    }
    ours.iter().map(|item| item.key.1.clone()).collect()
}

/// Their names for types that differ from the kernel's.
fn kind(name: &str) -> &str {
    match name {
        "PERSISTENT_ITEM" => "DEV_STATS",
        "TEMPORARY_ITEM" => "BALANCE_ITEM",
        other => other,
    }
}

#[test]
fn dump_tree_tells_item_by_item_what_the_tools_tell() {
    let Some(dir) = workshop("dump_tree_tells_item_by_item_what_the_tools_tell") else { return };
    let mut kinds = BTreeSet::new();
    for (name, mkfs) in [("plain", "-n 16k"), ("small", "-n 4k -m single --csum xxhash")] {
        kinds.extend(compare(&[filled(dir.path(), name, mkfs)], 1000));
    }
    for must in [
        ItemType::INODE_EXTREF,
        ItemType::ROOT_REF,
        ItemType::EXTENT_DATA,
        ItemType::XATTR_ITEM,
        ItemType::QGROUP_INFO,
        ItemType::UUID_KEY_SUBVOL,
        ItemType::FREE_SPACE_INFO,
        ItemType::CHUNK_ITEM,
    ] {
        assert!(kinds.contains(&must.to_string()), "{must}");
    }
}

fn dumped(image: &Path, options: DumpOptions) -> Vec<u8> {
    let device = load(image);
    Sim::new(1).run(|_| async move {
        let mut bytes = Vec::new();
        let sink = |part: &[u8]| {
            bytes.extend_from_slice(part);
            Ok(())
        };
        let report = varve_fs::dump(vec![device], options, sink, |_, _| ()).await.expect("a dump");
        assert!(report.problems.is_empty(), "{:?}", report.problems);
        assert!(report.blocks > 10);
        bytes
    })
}

#[test]
fn our_dumps_restore_with_the_tool_and_their_check_finds_nothing() {
    let test = "our_dumps_restore_with_the_tool_and_their_check_finds_nothing";
    let Some(dir) = workshop(test) else { return };
    if std::process::Command::new("btrfs-image").output().is_err() {
        println!("{test}: skipped, no btrfs-image");
        return;
    }
    let image = filled(dir.path(), "disk", "-n 16k");
    let secret = run("strings", ["-n", "8", &image.to_string_lossy()]);
    assert!(secret.contains("a-long-name-for-a-hard-link-7"), "the name is there to be hidden");
    for (level, sanitise) in [(0, false), (9, false), (0, true), (6, true)] {
        let bytes = dumped(&image, DumpOptions { level, sanitise });
        let dump = dir.path().join(format!("{level}-{sanitise}.dump"));
        std::fs::write(&dump, &bytes).expect("a file");
        let theirs = dir.path().join("theirs");
        let out = try_run("btrfs-image", [Path::new("-r"), &dump, &theirs]);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        check_clean(&theirs, &[]);
        if sanitise && level == 0 {
            let hidden = run("strings", ["-n", "8", &dump.to_string_lossy()]);
            assert!(!hidden.contains("a-long-name"), "a name has leaked");
        }
        // And as we would restore it.
        let ours = dir.path().join("ours");
        restored(&bytes, &ours);
        check_clean(&ours, &[]);
    }
}

/// Writes the whole device that a dump stands for.
fn restored(bytes: &[u8], to: &Path) {
    let mem = varve_block::dev::Mem::from_bytes(bytes);
    let all = Sim::new(1).run(|_| async move {
        assert!(is_dump(&mem).await.expect("a read"));
        let device = DumpDevice::open(mem).await.expect("a dump");
        let pool = BufPool::new(0);
        let mut all = Vec::new();
        let len = device.geometry().len;
        for piece in varve_block::Extent::new(Sector(0), len).pieces(varve_block::Sectors(2048)) {
            let part = device.read(piece.start, pool.take(piece.len).await).await.expect("a read");
            all.extend_from_slice(&part);
        }
        all
    });
    std::fs::write(to, all).expect("a file");
}
