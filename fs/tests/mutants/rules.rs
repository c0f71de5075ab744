//! One damage for each finding code, and what the checker must say to it. `~` marks a warning.

use crate::disk::{Disk, codes, le32, le64};
use std::collections::BTreeSet;
use varve_fs::check::Code;
use varve_fs::format::key::{ItemType as T, Key};

const EXTENT_TREE: u64 = 2;
const CHUNK_TREE: u64 = 3;
const DEV_TREE: u64 = 4;
const FS_TREE: u64 = 5;
const CSUM_TREE: u64 = 7;
const QUOTA_TREE: u64 = 8;
const UUID_TREE: u64 = 9;
const FREE_SPACE_TREE: u64 = 10;

/// The root block of tree `id`.
fn root_of(disk: &Disk, id: u64) -> u64 {
    let found =
        disk.items(1).into_iter().find(|(.., k)| (k.objectid, k.kind) == (id, T::ROOT_ITEM));
    let (at, slot, _) = found.expect("a root item");
    let block = disk.block(at);
    le64(&block, 101 + le32(&block, 101 + 25 * slot + 17) + 0xb0)
}

struct Case {
    name: &'static str,
    damage: fn(&mut Disk),
    codes: &'static [&'static str],
}

fn put64(bytes: &mut [u8], at: usize, n: u64) {
    bytes[at..at + 8].copy_from_slice(&n.to_le_bytes());
}

fn add64(bytes: &mut [u8], at: usize, n: u64) {
    put64(bytes, at, le64(bytes, at).wrapping_add(n));
}

fn is(kind: T) -> impl Fn(&Key) -> bool {
    move |key| key.kind == kind
}

/// The first leaf of a tree, as it stands on the disk.
fn leaf(disk: &Disk, owner: u64) -> u64 {
    disk.items(owner)[0].0
}

fn edit_leaf(disk: &mut Disk, owner: u64, edit: impl FnOnce(&mut [u8])) {
    let at = leaf(disk, owner);
    let mut block = disk.block(at);
    edit(&mut block);
    disk.put(at, block);
}

/// A regular file with data of its own.
fn plain_file(disk: &Disk) -> u64 {
    let found = disk.items(FS_TREE).into_iter().find(|(at, slot, key)| {
        let block = disk.block(*at);
        let data = 101 + le32(&block, 101 + 25 * slot + 17);
        key.kind == T::EXTENT_DATA && block[data + 0x14] == 1 && block[data + 0x10] == 0
    });
    found.expect("a regular extent").2.objectid
}

/// A leaf of the file tree that is no root; with extents of its own, or without.
fn below_a_root(disk: &Disk, with_data: bool) -> u64 {
    let root = root_of(disk, FS_TREE);
    let mut leaves: std::collections::BTreeMap<u64, bool> = std::collections::BTreeMap::new();
    for (at, slot, key) in disk.items(FS_TREE) {
        let block = disk.block(at);
        let data = 101 + le32(&block, 101 + 25 * slot + 17);
        // Not inline, and no hole.
        let extent = key.kind == T::EXTENT_DATA && block[data + 0x14] != 0;
        *leaves.entry(at).or_default() |= extent && le64(&block, data + 0x15) != 0;
    }
    let found = leaves.into_iter().find(|(at, data)| *at != root && *data == with_data);
    found.expect("such a leaf").0
}

/// The header names a subvolume that exists, and is another.
fn rename(disk: &mut Disk, at: u64) {
    let id = subvolume(disk);
    let mut block = disk.block(at);
    put64(&mut block, 88, id);
    disk.put(at, block);
}

/// A subvolume's id.
fn subvolume(disk: &Disk) -> u64 {
    let items = disk.items(1);
    let found = items.iter().find(|(_, _, key)| key.kind == T::ROOT_BACKREF);
    found.expect("a subvolume").2.objectid
}

#[rustfmt::skip]
const CASES: &[Case] = &[
    Case { name: "the second superblock is garbage", codes: &["~super-copy"],
        damage: |d| d.write((64 << 20) + 500, b"garbage") },
    Case { name: "the superblock counts more bytes", codes: &["super-totals"],
        damage: |d| d.edit_super(|sb| add64(sb, 0x78, 4096)) },
    Case { name: "the superblock counts more devices", codes: &["~super-totals"],
        damage: |d| d.edit_super(|sb| add64(sb, 0x88, 1)) },
    Case { name: "the superblock counts more devices than anybody has", codes: &["super-totals"],
        damage: |d| d.edit_super(|sb| add64(sb, 0x88, 1 << 31)) },
    Case { name: "an unsealed flip", codes: &["block-csum"],
        damage: |d| { let at = leaf(d, UUID_TREE); for p in d.blocks[&at].clone() { d.write(p + 200, b"flip"); } } },
    Case { name: "a block of another place", codes: &["block-identity"],
        damage: |d| edit_leaf(d, UUID_TREE, |b| add64(b, 48, 65536)) },
    Case { name: "a block from the past", codes: &["block-transid"],
        damage: |d| edit_leaf(d, UUID_TREE, |b| add64(b, 80, u64::MAX)) },
    Case { name: "a block of another tree", codes: &["block-parent"],
        damage: |d| edit_leaf(d, UUID_TREE, |b| put64(b, 88, 7)) },
    Case { name: "items overlap", codes: &["block-layout"],
        damage: |d| edit_leaf(d, UUID_TREE, |b| b[101 + 17] ^= 1) },
    Case { name: "a file type that is none", codes: &["inode", "item-rule", "name"],
        damage: |d| { let i = plain_file(d); d.edit(FS_TREE, |k| (k.objectid, k.kind) == (i, T::INODE_ITEM),
            |_, data| data[0x34..0x38].fill(0)) } },
    Case { name: "a root item from the future", codes: &["item-rule", "root-item"],
        damage: |d| d.edit(1, |k| k.objectid == FS_TREE && k.kind == T::ROOT_ITEM, |_, data| put64(data, 0xc8, 1 << 40)) },
    Case { name: "a root directory that is none", codes: &["root-item"],
        damage: |d| d.edit(1, |k| k.objectid == FS_TREE && k.kind == T::ROOT_ITEM, |_, data| put64(data, 0xa8, 300)) },
    Case { name: "a root item under a number that nobody looks for", codes: &["root-item"],
        damage: |d| d.edit(1, |k| k.objectid == UUID_TREE && k.kind == T::ROOT_ITEM, |key, _| put64(key, 9, 1 << 52)) },
    Case { name: "an extent with one reference too many", codes: &["extent-record"],
        damage: |d| d.edit(EXTENT_TREE, is(T::EXTENT_ITEM), |_, data| add64(data, 0, 1)) },
    Case { name: "a data reference counted twice", codes: &["extent-refs"],
        damage: |d| d.edit(EXTENT_TREE, is(T::EXTENT_ITEM), |_, data| { add64(data, 0, 1); data[24 + 25] += 1; }) },
    Case { name: "a block without its record", codes: &["block-group-used", "extent-missing", "free-space-tree", "super-totals"],
        damage: |d| d.remove(EXTENT_TREE, is(T::METADATA_ITEM)) },
    Case { name: "a record's tree is another", codes: &["extent-refs"],
        damage: |d| d.edit(EXTENT_TREE, is(T::METADATA_ITEM), |_, data| put64(data, 25, 999)) },
    Case { name: "references keyed by parent that are not", codes: &["full-backref"],
        damage: |d| { let at = leaf(d, CSUM_TREE); d.edit(EXTENT_TREE, move |k| k.objectid == at, |_, data| data[17] |= 1) } },
    Case { name: "a group that uses more", codes: &["block-group-used"],
        damage: |d| d.edit(EXTENT_TREE, is(T::BLOCK_GROUP_ITEM), |_, data| add64(data, 0, 4096)) },
    Case { name: "a group of another kind", codes: &["block-group-chunk"],
        damage: |d| d.edit(EXTENT_TREE, is(T::BLOCK_GROUP_ITEM), |_, data| put64(data, 16, if data[16] == 1 { 4 } else { 1 })) },
    Case { name: "a chunk of another kind", codes: &["block-group-chunk", "extent-type"],
        damage: |d| d.edit(CHUNK_TREE, |k| k.kind == T::CHUNK_ITEM && k.offset > 50 << 20, |_, data| data[0x18] = 4) },
    Case { name: "a chunk on a device of another uuid", codes: &["dev-item"],
        damage: |d| d.edit(CHUNK_TREE, |k| k.kind == T::CHUNK_ITEM && k.offset > 50 << 20, |_, data| data[48 + 16] ^= 1) },
    Case { name: "a system chunk that the chunk tree has not", codes: &["block-group-chunk"],
        damage: |d| d.edit_super(|sb| sb[0x32b + 17 + 0x2e] += 1) },
    Case { name: "a root block of another tree", codes: &["block-parent"],
        damage: |d| { let id = subvolume(d); let at = root_of(d, id); let mut b = d.block(at); put64(&mut b, 88, 260); d.put(at, b) } },
    Case { name: "a leaf without data of another tree", codes: &["block-parent"],
        damage: |d| { let at = below_a_root(d, false); rename(d, at) } },
    Case { name: "a leaf with data of another tree", codes: &["block-parent", "extent-refs"],
        damage: |d| { let at = below_a_root(d, true); rename(d, at) } },
    Case { name: "a block of the old backref revision", codes: &["full-backref"],
        damage: |d| edit_leaf(d, CSUM_TREE, |b| b[63] = 0) },
    Case { name: "a top directory whose parent has a name", codes: &["inode"],
        damage: |d| d.edit(FS_TREE, |k| k.objectid == 256 && k.kind == T::INODE_REF, |_, data| data[11] = b'x') },
    Case { name: "an entry that leads nowhere", codes: &["inode", "name"],
        damage: |d| d.edit(FS_TREE, |k| k.objectid == 256 && k.kind == T::DIR_ITEM, |_, data| data[8] = 0) },
    Case { name: "more of an extent than there is of it", codes: &["inode"],
        damage: |d| { let i = plain_file(d); d.edit(FS_TREE, |k| (k.objectid, k.kind) == (i, T::EXTENT_DATA), |_, data| put64(data, 8, 0)) } },
    Case { name: "an extent from the future", codes: &["inode"],
        damage: |d| { let i = plain_file(d); d.edit(FS_TREE, |k| (k.objectid, k.kind) == (i, T::EXTENT_DATA), |_, data| put64(data, 0, 1 << 40)) } },
    Case { name: "a device extent of no chunk", codes: &["dev-extent"],
        damage: |d| d.edit(DEV_TREE, is(T::DEV_EXTENT), |_, data| add64(data, 16, 1 << 30)) },
    Case { name: "a device that uses more", codes: &["dev-item"],
        damage: |d| d.edit(CHUNK_TREE, is(T::DEV_ITEM), |_, data| add64(data, 16, 4096)) },
    Case { name: "a device of another file system", codes: &["dev-item"],
        damage: |d| d.edit(CHUNK_TREE, is(T::DEV_ITEM), |_, data| data[82] ^= 1) },
    Case { name: "a free run that is missing", codes: &["free-space-tree"],
        damage: |d| d.remove(FREE_SPACE_TREE, |k| k.kind == T::FREE_SPACE_EXTENT && k.objectid > 21 << 20) },
    Case { name: "a free run that is too long", codes: &["free-space-tree"],
        damage: |d| d.edit(FREE_SPACE_TREE, |k| k.kind == T::FREE_SPACE_EXTENT && k.objectid > 21 << 20,
            |key, _| { add64(key, 0, 4096_u64.wrapping_neg()); add64(key, 9, 4096); }) },
    Case { name: "a wrong count of free runs", codes: &["free-space-tree"],
        damage: |d| d.edit(FREE_SPACE_TREE, |k| k.kind == T::FREE_SPACE_INFO && k.objectid > 21 << 20, |_, data| data[0] += 1) },
    Case { name: "a file's bytes", codes: &["inode"],
        damage: |d| { let i = plain_file(d); d.edit(FS_TREE, |k| (k.objectid, k.kind) == (i, T::INODE_ITEM),
            |_, data| add64(data, 0x18, 4096)) } },
    Case { name: "a file's link count", codes: &["inode"],
        damage: |d| { let i = plain_file(d); d.edit(FS_TREE, |k| (k.objectid, k.kind) == (i, T::INODE_ITEM),
            |_, data| data[0x28] += 1) } },
    Case { name: "a directory's size", codes: &["inode"],
        damage: |d| d.edit(FS_TREE, |k| k.objectid == 256 && k.kind == T::INODE_ITEM, |_, data| data[0x10] += 2) },
    Case { name: "an entry without its index", codes: &["inode", "name"],
        damage: |d| d.remove(FS_TREE, |k| k.objectid == 256 && k.kind == T::DIR_INDEX) },
    Case { name: "an index that leads elsewhere", codes: &["name"],
        damage: |d| d.edit(FS_TREE, |k| k.objectid == 256 && k.kind == T::DIR_INDEX, |_, data| put64(data, 0, 0x7777)) },
    Case { name: "a type that nobody knows", codes: &["extent-unused", "inode", "unknown-key"],
        damage: |d| { let i = plain_file(d); d.edit(FS_TREE, |k| (k.objectid, k.kind) == (i, T::EXTENT_DATA), |key, _| key[8] = 109) } },
    Case { name: "a checksum of nothing", codes: &["csum-stray", "inode"],
        damage: |d| d.edit(CSUM_TREE, |_| true, |key, _| put64(key, 9, 4096)) },
    Case { name: "a subvolume that nobody names", codes: &["root-ref"],
        damage: |d| d.remove(1, is(T::ROOT_BACKREF)) },
    Case { name: "a subvolume deleted and not on the list", codes: &["root-orphan", "~uuid-tree"],
        damage: |d| { let id = subvolume(d); d.edit(1, |k| (k.objectid, k.kind) == (id, T::ROOT_ITEM), |_, data| data[0xd8] = 0) } },
    Case { name: "a writable subvolume that was received", codes: &["received-uuid", "~uuid-tree"],
        damage: |d| { let id = subvolume(d); d.edit(1, |k| (k.objectid, k.kind) == (id, T::ROOT_ITEM),
            |_, data| { data[0x117..0x127].fill(7); data[0xd0] = 0; }) } },
    Case { name: "a uuid of nobody", codes: &["~uuid-tree"],
        damage: |d| d.edit(UUID_TREE, |_| true, |_, data| data[0] ^= 1) },
    Case { name: "a checksum of other data", codes: &["data-csum"],
        damage: |d| d.edit(CSUM_TREE, |_| true, |_, data| data[0] ^= 1) },
];

#[test]
fn each_damage_is_told_under_its_code_and_no_other() {
    assert_told(CASES, Disk::golden);
}

#[track_caller]
fn assert_told(cases: &[Case], whole: fn() -> Disk) {
    let mut wrong = Vec::new();
    for Case { name, damage, codes: expected } in cases {
        let mut disk = whole();
        damage(&mut disk);
        let found = match disk.check() {
            Ok(checked) => codes(&checked),
            Err(error) => BTreeSet::from([format!("refused: {}", varve_block::chain(&error))]),
        };
        let expected: BTreeSet<String> = expected.iter().map(|code| (*code).to_owned()).collect();
        if found != expected {
            wrong.push(format!("{name}: expected {expected:?}, found {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Of simple quotas, on the image that has them.
#[rustfmt::skip]
const SIMPLE_QUOTAS: &[Case] = &[
    Case { name: "nothing", codes: &[], damage: |_| () },
    Case { name: "a group that has more", codes: &["quota"],
        damage: |d| d.edit(QUOTA_TREE, a_group_that_has_something, |_, data| add64(data, 8, 4096)) },
    Case { name: "a group of which others have a part", codes: &["quota"],
        damage: |d| d.edit(QUOTA_TREE, a_group_that_has_something, |_, data| add64(data, 24, 4096_u64.wrapping_neg())) },
    Case { name: "data that is older than the quotas", codes: &["quota"],
        damage: |d| d.edit(EXTENT_TREE, is(T::EXTENT_ITEM), |_, data| put64(data, 8, 1)) },
    Case { name: "quotas since later", codes: &["quota"],
        damage: |d| d.edit(QUOTA_TREE, is(T::QGROUP_STATUS), |_, data| add64(data, 32, 1000)) },
    Case { name: "a group that has more, in quotas known to be inconsistent", codes: &[],
        damage: |d| {
            d.edit(QUOTA_TREE, a_group_that_has_something, |_, data| add64(data, 8, 4096));
            d.edit(QUOTA_TREE, is(T::QGROUP_STATUS), |_, data| data[16] |= 4);
        } },
];

/// The top of the file system has.
fn a_group_that_has_something(key: &Key) -> bool {
    (key.kind, key.offset) == (T::QGROUP_INFO, FS_TREE)
}

#[test]
fn simple_quotas_are_what_their_owners_have() {
    assert_told(SIMPLE_QUOTAS, Disk::squota);
}

/// Codes that other tests provoke, because these damages cannot: and where.
const ELSEWHERE: &[(Code, &str)] = &[
    (Code::DeviceState, "tests/oracle/check_data.rs"),
    (Code::BlockUnreadable, "tests/golden/damage.rs"),
    (Code::BlockAlignment, "the corpora, by tests/verdict"),
    (Code::TreeMissing, "never alone: a tree without root is refused"),
    (Code::ExtentOverlap, "rule 146 sees it inside a leaf"),
    (Code::FreeSpaceLeftover, "the golden image has them"),
    (Code::CsumOverlap, "rule 37 sees it inside a leaf"),
    (Code::LogTree, "the corpora, by tests/verdict"),
    (Code::SpaceCache, "tests/oracle/check_more.rs"),
    (Code::DataUnreadable, "tests/golden/check_data.rs"),
];

#[test]
fn every_code_is_provoked_somewhere() {
    let here: BTreeSet<&str> = CASES
        .iter()
        .chain(SIMPLE_QUOTAS)
        .flat_map(|case| case.codes)
        .map(|code| code.trim_start_matches('~'))
        .collect();
    for code in Code::ALL {
        let elsewhere = ELSEWHERE.iter().any(|(other, _)| other == code);
        assert!(here.contains(code.text()) != elsewhere, "{code}: here or elsewhere, not both");
    }
}
