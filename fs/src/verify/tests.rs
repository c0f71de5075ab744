//! One broken block per rule, with the rule and the words that the kernel would use; and the largest
//! and smallest legal values, which must pass: a checker that is too strict loses data too.

use super::*;
use crate::csum::name_hash;
use crate::format::block::{FLAG_RELOC, Pointer};
use crate::format::chunk::{BlockGroup, Chunk, DevExtent, DevItem, GroupFlags, Stripe};
use crate::format::dir::DirItem;
use crate::format::extent::{DataRef, Extent, ExtentFlags, Reference};
use crate::format::file_extent::{Body, Compression, FileExtent, Place};
use crate::format::inode::{Inode, InodeFlags, InodeRef};
use crate::format::root::{Root, RootRef};
use crate::tree::build::{self, NewItem, Stamp};
use ItemType as T;
use objectid as id;

const NODE: u32 = 16384;
const AT: Logical = Logical(30_408_704);

fn rules() -> Rules {
    Rules {
        sectorsize: 4096,
        nodesize: NODE,
        csum: CsumType::Crc32c,
        incompat: Incompat::SKINNY_METADATA,
        generation_max: 10,
        fsids: vec![Uuid::from_u128(7)],
        writable: true,
        changing_csums: false,
    }
}

fn stamp(owner: u64) -> Stamp {
    Stamp {
        fsid: Uuid::from_u128(7),
        chunk_tree_uuid: Uuid::from_u128(8),
        bytenr: AT,
        generation: 9,
        owner,
    }
}

fn leaf_of(owner: u64, items: &[NewItem]) -> Vec<u8> {
    build::leaf(&stamp(owner), NODE, items)
}

/// The first broken rule of a leaf of `items`.
fn judge(owner: u64, items: &[NewItem]) -> Option<(u8, String)> {
    leaf(&rules(), &leaf_of(owner, items)).err().map(|c| (c.rule, c.message))
}

#[track_caller]
fn broken(rule: u8, owner: u64, items: &[NewItem], words: &str) {
    let (found, message) = judge(owner, items).expect("a broken rule");
    assert_eq!((found, message.ends_with(words)), (rule, true), "{message}\nexpected: {words}");
}

#[track_caller]
fn fine(owner: u64, items: &[NewItem]) {
    assert_eq!(judge(owner, items), None);
}

fn item(objectid: u64, kind: ItemType, offset: u64, data: impl AsRef<[u8]>) -> NewItem {
    (Key::new(objectid, kind, offset), data.as_ref().to_vec())
}

/// `data` with some bytes overwritten.
fn patch(data: impl AsRef<[u8]>, at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut data = data.as_ref().to_vec();
    data[at..at + bytes.len()].copy_from_slice(bytes);
    data
}

fn place(at: u64, len: u64) -> Place {
    Place { disk_bytenr: Logical(at), disk_num_bytes: len, offset: 0, num_bytes: len }
}

fn regular(place: Place) -> Vec<u8> {
    FileExtent {
        generation: 9,
        ram_bytes: place.disk_num_bytes,
        compression: Compression::None,
        body: Body::Regular(place),
    }
    .encode()
}

fn inline(data: &[u8]) -> Vec<u8> {
    FileExtent {
        generation: 9,
        ram_bytes: data.len() as u64,
        compression: Compression::None,
        body: Body::Inline(data),
    }
    .encode()
}

#[test]
fn a_leaf_as_a_whole() {
    let block = leaf_of(5, &[]);
    let verdict = |block: &[u8]| leaf(&rules(), block).unwrap_err();
    let level_one = patch(&block, 100, &[1]);
    assert_eq!(
        verdict(&level_one).message,
        "corrupt leaf: root=5 block=30408704 slot=0, invalid level for leaf, have 1 expect 0"
    );
    assert_eq!(verdict(&patch(&block, 0x38, &[0])).rule, 2);
    for owner in [1, 3, 4, 5, id::DATA_RELOC_TREE] {
        broken(3, owner, &[], &format!("invalid root, root {owner} must never be empty"));
    }
    broken(4, 0, &[], "invalid owner, root 0 is not defined");
    broken(5, 2, &[], "invalid root, root 2 must never be empty");
    fine(id::CSUM_TREE, &[]);
    fine(256, &[]);
    let flags = (FLAG_RELOC | 1).to_le_bytes();
    assert!(leaf(&rules(), &patch(leaf_of(1, &[]), 0x38, &flags)).is_ok());
}

#[test]
fn items_out_of_order_or_out_of_place() {
    let orphan = |n| item(id::ORPHAN, T::ORPHAN_ITEM, n, []);
    broken(
        6,
        5,
        &[orphan(9), orphan(9)],
        "bad key order, prev (18446744073709551611 48 9) current (18446744073709551611 48 9)",
    );
    broken(6, 5, &[item(0, T::UNTYPED, 0, [])], "bad key order, prev (0 0 0) current (0 0 0)");
    let two = leaf_of(
        256,
        &[item(300, T::VERITY_DESC_ITEM, 1, [1; 8]), item(300, T::VERITY_DESC_ITEM, 2, [2; 8])],
    );
    let rule = |block: &[u8]| leaf(&rules(), block).unwrap_err().rule;
    // The second item's offset, moved down by one: a hole between the two.
    let at = 101 + 25 + 17;
    assert_eq!(rule(&patch(&two, at, &(16283u32 - 17).to_le_bytes())), 7);
    // An item as large as the leaf, ending where it should: its data begins over the heads.
    let huge = patch(&two, at, &[(20u32).to_le_bytes(), (16275u32 - 20).to_le_bytes()].concat());
    assert_eq!(rule(&huge), 9);
    // More items than the block could ever hold.
    assert_eq!(rule(&patch(&two, 0x60, &u32::MAX.to_le_bytes())), 6);
    let full: Vec<_> = (1..=651).map(orphan).collect();
    fine(256, &full);
    let block = patch(leaf_of(256, &full), 0x60, &10_000u32.to_le_bytes());
    assert!([6, 9].contains(&rule(&block)));
}

#[test]
fn nodes() {
    let pointer = |n: u64| Pointer {
        key: Key::new(n, T::INODE_ITEM, 0),
        block: Logical(n * 16384),
        generation: 9,
    };
    let good = build::node(&stamp(5), NODE, 1, &[pointer(1), pointer(2), pointer(3)]);
    assert_eq!(node(&rules(), &good), Ok(()));
    let verdict = |block: &[u8]| node(&rules(), block).unwrap_err();
    assert_eq!(verdict(&patch(&good, 0x38, &[0])).rule, 11);
    assert_eq!(verdict(&patch(&good, 100, &[8])).rule, 12);
    let none = verdict(&patch(&good, 0x60, &[0]));
    assert_eq!(
        none.message,
        "corrupt node: root=5 block=30408704, nritems too small, have 0 expect range [1,493]"
    );
    assert_eq!(verdict(&patch(&good, 0x60, &494u32.to_le_bytes())).rule, 13);
    // The last pointer, which the kernel does not look at.
    let last = 101 + 2 * 33;
    assert_eq!(verdict(&patch(&good, last + 17, &[0; 8])).rule, 14);
    assert_eq!(verdict(&patch(&good, last + 17, &[1])).rule, 15);
    let order = verdict(&patch(&good, last, &[1]));
    assert_eq!(order.rule, 16);
    assert!(order.message.ends_with("slot=1, bad key order, current (2 1 0) next (1 1 0)"));
}

#[test]
fn file_extents() {
    let good = regular(place(1 << 20, 8192));
    let one = |offset, data: Vec<u8>| vec![item(257, T::EXTENT_DATA, offset, data)];
    fine(5, &one(0, good.clone()));
    fine(5, &one(0, inline(b"hello")));
    fine(5, &one(0, inline(b"")));
    fine(5, &one((1 << 63) - 8192, good.clone()));
    let case =
        |rule, offset, data: Vec<u8>, words: &str| broken(rule, 5, &one(offset, data), words);
    case(
        17,
        100,
        good.clone(),
        "ino=257 file_offset=100, unaligned file_offset for file extent, have 100 should be aligned to 4096",
    );
    case(19, 0, good[..20].to_vec(), "invalid item size, have 20 expect [21, 4096)");
    case(20, 0, patch(&good, 20, &[3]), "invalid type for file extent, have 3 expect range [0, 2]");
    case(
        21,
        0,
        patch(&good, 16, &[4]),
        "invalid compression for file extent, have 4 expect range [0, 3]",
    );
    case(22, 0, patch(&good, 17, &[1]), "invalid encryption for file extent, have 1 expect 0");
    case(23, 4096, inline(b"x"), "invalid file_offset for inline file extent, have 4096 expect 0");
    case(
        24,
        0,
        patch(inline(b"hello"), 8, &[6]),
        "invalid ram_bytes for uncompressed inline extent, have 6 expect 5",
    );
    case(
        25,
        0,
        good[..52].to_vec(),
        "invalid item size for reg/prealloc file extent, have 52 expect 53",
    );
    let fields = [
        (26, 8, "ram_bytes"),
        (27, 0x15, "disk_bytenr"),
        (28, 0x1d, "disk_num_bytes"),
        (29, 0x25, "offset"),
        (30, 0x2d, "num_bytes"),
    ];
    for (rule, at, field) in fields {
        let words = format!("invalid {field} for file extent, have ");
        let (found, message) = judge(5, &one(0, patch(&good, at, &[1]))).unwrap();
        assert_eq!((found, message.contains(&words)), (rule, true), "{message}");
    }
    case(
        31,
        1 << 63,
        patch(&good, 0x2d, &(1u64 << 63).to_le_bytes()),
        "extent end overflow, have file offset 9223372036854775808 extent num bytes 9223372036854775808",
    );
    let two = |next, first: Vec<u8>| {
        vec![item(257, T::EXTENT_DATA, 0, first), item(257, T::EXTENT_DATA, next, good.clone())]
    };
    fine(5, &two(8192, good.clone()));
    fine(5, &two(4096, inline(&[1; 100])));
    broken(
        32,
        5,
        &two(4096, good.clone()),
        "slot=0 ino=257 file_offset=0, file extent end range (8192) goes beyond start offset (4096) of the next file extent",
    );
    broken(
        18,
        5,
        &[item(257, T::EXTENT_DATA, 0, &good), item(258, T::EXTENT_DATA, 0, &good)],
        "slot=1 ino=258, invalid previous key objectid, have 257 expect 258",
    );
    fine(id::TREE_LOG, &[item(257, T::EXTENT_DATA, 0, &good), item(258, T::EXTENT_DATA, 0, &good)]);
}

#[test]
fn checksums() {
    let one =
        |objectid, offset, len: usize| vec![item(objectid, T::EXTENT_CSUM, offset, vec![0; len])];
    fine(7, &one(id::EXTENT_CSUM, 4096, 16_228));
    broken(
        34,
        7,
        &one(5, 0, 4),
        "invalid key objectid for csum item, have 5 expect 18446744073709551606",
    );
    broken(
        35,
        7,
        &one(id::EXTENT_CSUM, 1, 4),
        "unaligned key offset for csum item, have 1 should be aligned to 4096",
    );
    broken(
        36,
        7,
        &one(id::EXTENT_CSUM, 0, 5),
        "unaligned item size for csum item, have 5 should be aligned to 4",
    );
    let two = |next| [one(id::EXTENT_CSUM, 0, 8), one(id::EXTENT_CSUM, next, 4)].concat();
    fine(7, &two(8192));
    broken(
        37,
        7,
        &two(4096),
        "slot=0, csum end range (8192) goes beyond the start range (4096) of the next csum item",
    );
}

#[test]
fn directory_entries_and_attributes() {
    let child = Key::new(257, T::INODE_ITEM, 0);
    let entry = DirItem { location: child, transid: 9, kind: 1, name: b"name", data: b"" };
    let hash = name_hash(b"name");
    let one = |e: DirItem<'_>| vec![item(256, T::DIR_ITEM, name_hash(e.name), e.encode())];
    let attr = DirItem { location: Key::MIN, kind: 8, name: b"user.a", data: b"v", ..entry };
    let xattr = |e: DirItem<'_>| vec![item(256, T::XATTR_ITEM, name_hash(e.name), e.encode())];
    let at = |objectid, kind, offset| Key::new(objectid, kind, offset);
    fine(5, &one(entry));
    fine(5, &xattr(attr));
    fine(
        1,
        &one(DirItem {
            location: at(5, T::ROOT_ITEM, u64::MAX),
            kind: 2,
            name: b"default",
            ..entry
        }),
    );
    fine(5, &one(DirItem { name: &[b'x'; 255], ..entry }));
    fine(5, &xattr(DirItem { data: &[1; 16228 - 6], ..attr }));
    let long = [1; 16228 - 5];
    let cases: [(u8, DirItem<'_>, &str); 9] = [
        (
            40,
            DirItem { location: at(0, T::ROOT_ITEM, 0), ..entry },
            "invalid location key root id 0",
        ),
        (
            41,
            DirItem { location: at(7, T::ROOT_ITEM, 0), ..entry },
            "invalid location key objectid, have 7 expect [256, 18446744073709551360]",
        ),
        (
            42,
            DirItem { location: at(7, T::INODE_ITEM, 0), ..entry },
            "has 7 expect 6 or [256, 18446744073709551360] or 18446744073709551604",
        ),
        (
            43,
            DirItem { location: at(257, T::INODE_ITEM, 1), ..entry },
            "invalid location key offset:has 1 expect 0",
        ),
        (
            45,
            DirItem { location: at(257, T::DIR_ITEM, 0), ..entry },
            "invalid location key type, have 84, expect 132 or 1",
        ),
        (46, DirItem { kind: 9, ..entry }, "invalid dir item type, have 9 expect (0, 9)"),
        (48, DirItem { kind: 8, ..entry }, "xattr dir type found for non-XATTR key"),
        (
            49,
            DirItem { name: &[b'x'; 256], ..entry },
            "dir item name len too long, have 256 max 255",
        ),
        (51, DirItem { data: b"x", ..entry }, "dir item with invalid data len, have 1 expect 0"),
    ];
    for (rule, entry, words) in cases {
        broken(rule, 5, &one(entry), words);
    }
    broken(44, 5, &xattr(DirItem { location: child, ..attr }), "have (257 1 0)");
    broken(
        47,
        5,
        &xattr(DirItem { kind: 1, data: b"", ..attr }),
        "invalid dir item type for XATTR key, have 1 expect 8",
    );
    broken(
        49,
        5,
        &one(DirItem { name: b"", ..entry }),
        "dir item name len too short, have 0 min 1",
    );
    // An item of 16258 bytes at most holds no such attribute; its header can still claim one.
    let claims = patch(attr.encode(), 25, &u16::try_from(long.len()).unwrap().to_le_bytes());
    broken(
        50,
        5,
        &[item(256, T::XATTR_ITEM, name_hash(b"user.a"), claims)],
        "dir item name and data len too long, have 16229 max 16228",
    );
    let raw = |kind, offset, data: &[u8]| vec![item(256, kind, offset, data)];
    broken(
        39,
        5,
        &raw(T::DIR_ITEM, hash, &entry.encode()[..29]),
        "dir item header crosses item boundary, have 30 boundary 29",
    );
    broken(
        52,
        5,
        &raw(T::DIR_ITEM, hash, &entry.encode()[..33]),
        "dir item data crosses item boundary, have 34 boundary 33",
    );
    broken(53, 5, &raw(T::DIR_ITEM, 1, &entry.encode()), "expect 0x0000000000000001");
    fine(5, &raw(T::DIR_INDEX, 2, &entry.encode()));
    broken(
        18,
        5,
        &[
            item(255, T::INODE_REF, 1, InodeRef { parent: 1, index: 1, name: b"n" }.encode()),
            one(entry).remove(0),
        ],
        "invalid previous key objectid, have 255 expect 256",
    );
}

#[test]
fn names_of_inodes() {
    let name = InodeRef { parent: 256, index: 2, name: b"name" };
    let one = |data: Vec<u8>| vec![item(257, T::INODE_REF, 256, data)];
    let ext = |data: Vec<u8>| vec![item(257, T::INODE_EXTREF, 9, data)];
    let longest = InodeRef { name: &[b'x'; 255], ..name };
    fine(5, &one([name.encode(), longest.encode()].concat()));
    fine(5, &ext([name.encode_ext(), longest.encode_ext()].concat()));
    broken(
        55,
        5,
        &one(name.encode()[..10].to_vec()),
        "invalid item size, have 10 expect (10, 16283)",
    );
    broken(
        56,
        5,
        &one([name.encode(), vec![0; 3]].concat()),
        "inode ref overflow, ptr 16381 end 16384 inode_ref_size 10",
    );
    broken(
        57,
        5,
        &one([InodeRef { name: b"", ..name }.encode(), vec![0; 11]].concat()),
        "invalid inode ref name length, has 0 expect [1, 255]",
    );
    broken(
        58,
        5,
        &one(name.encode()[..13].to_vec()),
        "inode ref overflow, ptr 16371 end 16384 namelen 4",
    );
    broken(59, 5, &ext(vec![]), "inode extref overflow, ptr 16384 end 16384 inode_extref size 18");
    broken(
        60,
        5,
        &ext(name.encode_ext()[..20].to_vec()),
        "inode extref overflow, ptr 16364 end 16384 namelen 4",
    );
}

fn single(flags: GroupFlags) -> Chunk {
    let stripe = Stripe { devid: 1, offset: 1 << 20, dev_uuid: Uuid::nil() };
    Chunk {
        length: 8 << 20,
        owner: 2,
        stripe_len: 65536,
        flags,
        io_align: 65536,
        io_width: 65536,
        sector_size: 4096,
        sub_stripes: 1,
        stripes: vec![stripe],
    }
}

#[test]
fn block_groups() {
    let group = BlockGroup { used: 100, chunk_objectid: 256, flags: GroupFlags::DATA };
    let one = |len, g: BlockGroup| vec![item(1 << 20, T::BLOCK_GROUP_ITEM, len, g.encode())];
    fine(2, &one(100, group));
    broken(61, 2, &one(0, group), "bg_start=1048576 bg_len=0, invalid block group size 0");
    broken(
        62,
        2,
        &[item(1 << 20, T::BLOCK_GROUP_ITEM, 9, [0; 23])],
        "invalid item size, have 23 expect 24",
    );
    broken(
        64,
        2,
        &one(100, BlockGroup { chunk_objectid: 1, ..group }),
        "invalid block group chunk objectid, have 1 expect 256",
    );
    broken(65, 2, &one(99, group), "invalid block group used, have 100 expect [0, 99)");
    let both = GroupFlags::DATA | GroupFlags::DUP | GroupFlags::RAID1;
    broken(
        66,
        2,
        &one(100, BlockGroup { flags: both, ..group }),
        "invalid profile flags, have 0x30 (2 bits set) expect no more than 1 bit set",
    );
    let none = GroupFlags::DUP;
    broken(
        67,
        2,
        &one(100, BlockGroup { flags: none, ..group }),
        "invalid type, have 0x0 (0 bits set) expect either 0x1, 0x4, 0x2 or 0x5",
    );
}

#[test]
fn chunks() {
    let good = single(GroupFlags::DATA);
    let one = |start, c: Chunk| vec![item(256, T::CHUNK_ITEM, start, c.encode())];
    fine(3, &one(0, good.clone()));
    let case = |rule, start, change: &dyn Fn(&mut Chunk), words: &str| {
        let mut chunk = good.clone();
        change(&mut chunk);
        broken(rule, 3, &one(start, chunk), words);
    };
    broken(
        68,
        3,
        &[item(256, T::CHUNK_ITEM, 0, [0; 79])],
        "chunk_start=0, invalid chunk item size: have 79 expect [80, 16283)",
    );
    let short = patch(good.encode(), 0x2c, &[2]);
    broken(
        69,
        3,
        &[item(256, T::CHUNK_ITEM, 0, short)],
        "invalid chunk item size: have 80 expect 112",
    );
    let zero = patch(good.encode(), 0x2c, &[0]);
    broken(70, 3, &[item(256, T::CHUNK_ITEM, 0, zero)], "invalid chunk num_stripes, have 0");
    case(
        71,
        0,
        &|c| c.flags |= GroupFlags::RAID1,
        "invalid chunk num_stripes < ncopies, have 1 < 2",
    );
    case(
        72,
        0,
        &|c| c.flags |= GroupFlags::RAID5,
        "invalid chunk num_stripes == nparity, have 1 == 1",
    );
    case(73, 7, &|_| (), "invalid chunk logical, have 7 should aligned to 4096");
    case(74, 0, &|c| c.sector_size = 512, "invalid chunk sectorsize, have 512 expect 4096");
    case(75, 0, &|c| c.length = 0, "invalid chunk length, have 0");
    case(
        76,
        u64::MAX - 4095,
        &|_| (),
        "invalid chunk logical start and length, have logical start 18446744073709547520 length 8388608",
    );
    case(77, 0, &|c| c.stripe_len = 4096, "invalid chunk stripe length: 4096");
    case(
        78,
        0,
        &|c| c.length = 281_474_976_645_120,
        "chunk length too large: have 281474976645120 limit 281474976645120",
    );
    case(
        79,
        0,
        &|c| c.flags |= GroupFlags::from_bits_retain(1 << 20),
        "unrecognized chunk type: 0x100000",
    );
    case(
        80,
        0,
        &|c| {
            c.flags |= GroupFlags::DUP | GroupFlags::RAID1;
            c.stripes.push(c.stripes[0])
        },
        "invalid chunk profile flag: 0x30, expect 0 or 1 bit set",
    );
    case(
        81,
        0,
        &|c| c.flags = GroupFlags::empty(),
        "missing chunk type flag, have 0x0 one bit must be set in 0x7",
    );
    case(82, 0, &|c| c.flags |= GroupFlags::SYSTEM, "system chunk with data or metadata type: 0x3");
    case(83, 0, &|c| c.flags |= GroupFlags::METADATA, "mixed chunk type in non-mixed mode: 0x5");
    case(
        84,
        0,
        &|c| c.stripes.push(c.stripes[0]),
        "invalid num_stripes:sub_stripes 2:1 for profile single",
    );
    let odd = |c: &mut Chunk| {
        c.flags |= GroupFlags::RAID10;
        c.sub_stripes = 2;
        c.stripes = vec![c.stripes[0]; 3];
    };
    case(84, 0, &odd, "invalid num_stripes:sub_stripes 3:2 for profile RAID10");
}

#[test]
fn devices_and_their_extents() {
    let device = DevItem { devid: 1, total_bytes: 100, bytes_used: 100, ..DevItem::default() };
    let one = |objectid, devid, d: DevItem| vec![item(objectid, T::DEV_ITEM, devid, d.encode())];
    fine(3, &one(1, 1, device));
    broken(85, 3, &one(2, 1, device), "slot=0 devid=2 invalid objectid: has=2 expect=1");
    broken(86, 3, &[item(1, T::DEV_ITEM, 1, [0; 97])], "invalid item size: has 97 expect 98");
    broken(87, 3, &one(1, 2, device), "devid mismatch: key has=2 item has=1");
    broken(
        88,
        3,
        &one(1, 1, DevItem { bytes_used: 101, ..device }),
        "invalid bytes used: have 101 expect [0, 100]",
    );
    let extent = DevExtent {
        chunk_tree: 3,
        chunk_objectid: 256,
        chunk_offset: Logical(1 << 20),
        length: 8192,
        chunk_tree_uuid: Uuid::nil(),
    };
    let at = |offset, e: DevExtent| item(1, T::DEV_EXTENT, offset, e.encode());
    fine(4, &[at(4096, extent), at(12288, extent)]);
    broken(
        89,
        4,
        &[at(0, DevExtent { chunk_tree: 4, ..extent })],
        "invalid dev extent chunk tree id, has 4 expect 3",
    );
    broken(
        89,
        4,
        &[item(1, T::DEV_EXTENT, 0, [0; 40])],
        "invalid dev extent item size, has 40 expect 48",
    );
    broken(
        90,
        4,
        &[at(0, DevExtent { chunk_objectid: 4, ..extent })],
        "invalid dev extent chunk objectid, has 4 expect 256",
    );
    broken(91, 4, &[at(1, extent)], "invalid dev extent key.offset, has 1 not aligned to 4096");
    broken(
        92,
        4,
        &[at(0, DevExtent { chunk_offset: Logical(1), ..extent })],
        "invalid dev extent chunk offset, has 1 not aligned to 4096",
    );
    broken(
        93,
        4,
        &[at(0, DevExtent { length: 1, ..extent })],
        "invalid dev extent length, has 1 not aligned to 4096",
    );
    broken(
        94,
        4,
        &[at(0, extent), at(4096, extent)],
        "dev extent overlap, prev offset 0 len 8192 current offset 4096",
    );
}

#[test]
fn inodes() {
    let inode = Inode { generation: 10, transid: 10, nlink: 1, mode: 0o40755, ..Inode::default() };
    let one = |objectid, offset, i: Inode| vec![item(objectid, T::INODE_ITEM, offset, i.encode())];
    fine(5, &one(256, 0, inode));
    fine(5, &one(id::LAST_FREE, 0, Inode { nlink: 0, mode: 0o107777, ..inode }));
    broken(
        95,
        5,
        &one(255, 0, inode),
        "has 255 expect 6 or [256, 18446744073709551360] or 18446744073709551604",
    );
    broken(96, 5, &one(256, 1, inode), "slot=0 ino=256, invalid key offset: has 1 expect 0");
    broken(
        97,
        5,
        &[item(256, T::INODE_ITEM, 0, [0; 159])],
        "slot=0, invalid item size: has 159 expect 160",
    );
    broken(
        98,
        5,
        &one(256, 0, Inode { generation: 11, ..inode }),
        "invalid inode generation: has 11 expect (0, 10]",
    );
    broken(
        99,
        5,
        &one(256, 0, Inode { transid: 11, ..inode }),
        "invalid inode transid: has 11 expect [0, 10]",
    );
    broken(
        100,
        5,
        &one(256, 0, Inode { mode: 0o1040755, ..inode }),
        "unknown mode bit detected: 0x40000",
    );
    broken(
        101,
        5,
        &one(256, 0, Inode { mode: 0o755, ..inode }),
        "invalid mode: has 0755 expect valid S_IF* bit(s)",
    );
    broken(
        102,
        5,
        &one(256, 0, Inode { nlink: 2, ..inode }),
        "invalid nlink: has 2 expect no more than 1 for dir",
    );
    let flags = InodeFlags::from_bits_retain;
    broken(
        103,
        5,
        &one(256, 0, Inode { flags: flags(1 << 12), ..inode }),
        "unknown incompat flags detected: 0x1000",
    );
    broken(
        104,
        5,
        &one(256, 0, Inode { flags: flags(1 << 33), ..inode }),
        "unknown ro-compat flags detected on writeable mount: 0x2",
    );
    let mut read_only = rules();
    read_only.writable = false;
    let block = leaf_of(5, &one(256, 0, Inode { flags: flags(1 << 33), ..inode }));
    assert_eq!(leaf(&read_only, &block), Ok(()));
}

#[test]
fn roots() {
    let mut root = Root::parse(&[0; 439]).unwrap();
    root.generation = 10;
    root.last_snapshot = 10;
    let one = |objectid, offset, r: &Root| vec![item(objectid, T::ROOT_ITEM, offset, r.encode())];
    fine(1, &one(5, 0, &root));
    fine(1, &one(id::TREE_RELOC, 5, &root));
    fine(1, &[item(5, T::ROOT_ITEM, 0, [0; 239])]);
    broken(
        105,
        1,
        &one(id::TREE_RELOC, 7, &root),
        "invalid reloc tree for root 7, root id is not a subvolume tree",
    );
    broken(106, 1, &one(0, 1, &root), "invalid root id 0");
    broken(107, 1, &one(id::TREE_RELOC, 0, &root), "invalid root id 0 for reloc tree");
    broken(
        108,
        1,
        &[item(5, T::ROOT_ITEM, 0, [0; 438])],
        "invalid root item size, have 438 expect 439 or 239",
    );
    let case = |rule, change: &dyn Fn(&mut Root), words: &str| {
        let mut root = root.clone();
        change(&mut root);
        broken(rule, 1, &one(5, 0, &root), words);
    };
    case(109, &|r| r.generation = 11, "invalid root generation, have 11 expect (0, 10]");
    case(110, &|r| r.generation_v2 = 11, "invalid root v2 generation, have 11 expect (0, 10]");
    case(111, &|r| r.last_snapshot = 11, "invalid root last_snapshot, have 11 expect (0, 10]");
    case(
        112,
        &|r| r.bytenr = Logical(1),
        "invalid root bytenr, have 1 expect to be aligned to 4096",
    );
    case(113, &|r| r.level = 8, "invalid root level, have 8 expect [0, 7]");
    case(114, &|r| r.drop_level = 8, "invalid root drop_level, have 8 expect [0, 7]");
    case(
        115,
        &|r| r.drop_progress.objectid = 3,
        "invalid root drop_level 0 with non-zero drop_progress objectid 3",
    );
    case(116, &|r| r.flags = 2, "invalid root flags, have 0x2 expect mask 0x1000000000001");
    let name = RootRef { dirid: 256, sequence: 2, name: b"sub" };
    let at = |data: Vec<u8>| vec![item(5, T::ROOT_REF, 256, data)];
    fine(1, &at(name.encode()));
    broken(
        117,
        1,
        &at(name.encode()[..18].to_vec()),
        "invalid root ref item size for key type 156, have 18 expect > 18",
    );
    broken(
        118,
        1,
        &at(RootRef { name: &[b'x'; 256], ..name }.encode()),
        "root ref name too long for key type 156, have 256 max 255",
    );
    broken(
        119,
        1,
        &at(name.encode()[..20].to_vec()),
        "invalid root ref item size for key type 156, have 20 expect 21",
    );
}

fn data_extent(inline: Vec<Reference>) -> Extent {
    let refs = inline.iter().map(Reference::count).sum();
    Extent { refs, generation: 9, flags: ExtentFlags::DATA, tree_block: None, inline }
}

const DATA: DataRef = DataRef { root: 5, inode: 257, offset: 0, count: 1 };

#[test]
fn extent_records() {
    let tree = Extent {
        refs: 1,
        generation: 9,
        flags: ExtentFlags::TREE_BLOCK,
        tree_block: None,
        inline: vec![Reference::TreeBlock { root: 5 }],
    };
    let data = data_extent(vec![Reference::Data(DATA)]);
    let skinny = |level, e: &Extent| vec![item(1 << 20, T::METADATA_ITEM, level, e.encode())];
    let long = |len, e: &Extent| vec![item(1 << 20, T::EXTENT_ITEM, len, e.encode())];
    fine(2, &skinny(7, &tree));
    fine(2, &long(4096, &data));
    let mut old = rules();
    old.incompat = Incompat::empty();
    assert_eq!(leaf(&old, &leaf_of(2, &skinny(0, &tree))).unwrap_err().rule, 120);
    broken(
        121,
        2,
        &[item(1, T::METADATA_ITEM, 0, tree.encode())],
        "invalid key objectid, have 1 expect to be aligned to 4096",
    );
    broken(
        122,
        2,
        &skinny(8, &tree),
        "corrupt leaf: block=30408704 slot=0 extent bytenr=1048576 len=16384 invalid tree level, have 8 expect [0, 7]",
    );
    broken(
        123,
        2,
        &[item(1 << 20, T::METADATA_ITEM, 0, [0; 23])],
        "invalid item size, have 23 expect [24, 16283)",
    );
    broken(
        124,
        2,
        &skinny(0, &Extent { generation: 11, ..tree.clone() }),
        "invalid generation, have 11 expect (0, 10]",
    );
    broken(
        125,
        2,
        &skinny(0, &Extent { flags: ExtentFlags::empty(), ..tree.clone() }),
        "invalid extent flag, have 0x0 expect 1 bit set in 0x3",
    );
    let info = Some((Key::new(256, T::INODE_ITEM, 0), 7));
    fine(2, &long(16384, &Extent { tree_block: info, ..tree.clone() }));
    broken(
        126,
        2,
        &long(4096, &Extent { tree_block: info, ..tree.clone() }),
        "invalid extent length, have 4096 expect 16384",
    );
    broken(127, 2, &skinny(0, &data), "invalid key type, have 169 expect 168 for data backref");
    broken(128, 2, &long(4097, &data), "invalid extent length, have 4097 expect aligned to 4096");
    let full = ExtentFlags::DATA | ExtentFlags::FULL_BACKREF;
    broken(
        129,
        2,
        &long(4096, &Extent { flags: full, ..data.clone() }),
        "invalid extent flag, data has full backref set",
    );
    let high = Some((Key::MIN, 8));
    broken(
        130,
        2,
        &long(16384, &Extent { tree_block: high, ..tree.clone() }),
        "invalid tree block info level, have 8 expect [0, 7]",
    );
    broken(
        146,
        2,
        &[long(8192, &data), vec![item((1 << 20) + 4096, T::EXTENT_ITEM, 4096, data.encode())]]
            .concat(),
        "previous extent [1048576 168 8192] overlaps current extent [1052672 168 4096]",
    );
}

#[test]
fn inline_references() {
    let long = |e: &Extent| vec![item(1 << 20, T::EXTENT_ITEM, 4096, e.encode())];
    let data = data_extent(vec![Reference::Data(DATA)]);
    let cut = |n: usize| vec![item(1 << 20, T::EXTENT_ITEM, 4096, &data.encode()[..n])];
    broken(
        131,
        2,
        &cut(24 + 8),
        "inline ref item overflows extent item, ptr 16376 iref size 9 end 16384",
    );
    broken(
        132,
        2,
        &cut(24 + 28),
        "inline ref item overflows extent item, ptr 16356 iref size 29 end 16384",
    );
    let cases: [(u8, Reference, &str); 8] = [
        (
            133,
            Reference::SharedBlock { parent: Logical(1) },
            "invalid tree parent bytenr, have 1 expect aligned to 4096",
        ),
        (134, Reference::Data(DataRef { root: 7, ..DATA }), "invalid data ref root value 7"),
        (135, Reference::Data(DataRef { inode: 5, ..DATA }), "invalid data ref objectid value 5"),
        (
            136,
            Reference::Data(DataRef { offset: 1, ..DATA }),
            "invalid data ref offset, have 1 expect aligned to 4096",
        ),
        (
            137,
            Reference::Data(DataRef { count: 0, ..DATA }),
            "invalid data ref count, should have non-zero value",
        ),
        (
            138,
            Reference::SharedData { parent: Logical(1), count: 1 },
            "invalid data parent bytenr, have 1 expect aligned to 4096",
        ),
        (
            139,
            Reference::SharedData { parent: Logical(0), count: 0 },
            "invalid shared data ref count, should have non-zero value",
        ),
        (
            145,
            Reference::SharedData { parent: Logical(0), count: 2 },
            "invalid extent refs, have 1 expect >= inline 2",
        ),
    ];
    for (rule, reference, words) in cases {
        broken(rule, 2, &long(&Extent { refs: 1, ..data_extent(vec![reference]) }), words);
    }
    // Offsets wrap after a reflink, aligned all the same; owners of simple quotas count nothing.
    let wrapped = Reference::Data(DataRef { offset: 4096u64.wrapping_neg(), ..DATA });
    fine(2, &long(&data_extent(vec![Reference::Owner { root: 5 }, wrapped])));
    let unknown = patch(data.encode(), 24, &[177]);
    broken(141, 2, &[item(1 << 20, T::EXTENT_ITEM, 4096, unknown)], "unknown inline ref type: 177");
    let shared = |parent| Reference::SharedData { parent: Logical(parent), count: 1 };
    fine(2, &long(&data_extent(vec![shared(8192), shared(8192), shared(4096)])));
    broken(
        142,
        2,
        &long(&data_extent(vec![shared(4096), Reference::Data(DATA)])),
        "inline ref out-of-order: has type 178, prev type 184",
    );
    broken(
        143,
        2,
        &long(&data_extent(vec![shared(4096), shared(8192)])),
        "inline ref out-of-order: has type 184 offset 8192 seq 0x2000, prev type 184 seq 0x1000",
    );
}

#[test]
fn keyed_references() {
    let one = |objectid, kind, offset, data: &[u8]| vec![item(objectid, kind, offset, data)];
    let at = 1 << 20;
    fine(2, &one(at, T::TREE_BLOCK_REF, 5, &[]));
    fine(2, &one(at, T::SHARED_DATA_REF, 4096, &[1, 0, 0, 0]));
    fine(2, &one(at, T::EXTENT_DATA_REF, 99, &DATA.encode()));
    broken(
        147,
        2,
        &one(at, T::SHARED_DATA_REF, 4096, &[0; 4]),
        "invalid shared data backref count, should have non-zero value",
    );
    broken(
        148,
        2,
        &one(at, T::TREE_BLOCK_REF, 5, &[0]),
        "invalid item size, have 1 expect 0 for key type 176",
    );
    broken(
        149,
        2,
        &one(1, T::SHARED_BLOCK_REF, 0, &[]),
        "invalid key objectid for shared block ref, have 1 expect aligned to 4096",
    );
    broken(
        150,
        2,
        &one(at, T::SHARED_BLOCK_REF, 1, &[]),
        "invalid tree parent bytenr, have 1 expect aligned to 4096",
    );
    broken(
        151,
        2,
        &one(at, T::EXTENT_DATA_REF, 9, &[0; 27]),
        "invalid item size, have 27 expect aligned to 28 for key type 178",
    );
    let cases: [(u8, DataRef, &str); 4] = [
        (152, DataRef { root: 7, ..DATA }, "invalid extent data backref root value 7"),
        (153, DataRef { inode: 7, ..DATA }, "invalid extent data backref objectid value 7"),
        (
            154,
            DataRef { offset: 7, ..DATA },
            "invalid extent data backref offset, have 7 expect aligned to 4096",
        ),
        (
            155,
            DataRef { count: 0, ..DATA },
            "invalid extent data backref count, should have non-zero value",
        ),
    ];
    for (rule, data, words) in cases {
        broken(rule, 2, &one(at, T::EXTENT_DATA_REF, 9, &data.encode()), words);
    }
    broken(
        156,
        12,
        &one(1, T::RAID_STRIPE, 4096, &[]),
        "invalid key objectid for raid stripe extent, have 1 expect aligned to 4096",
    );
    broken(
        157,
        12,
        &one(at, T::RAID_STRIPE, 4096, &[]),
        "RAID_STRIPE_EXTENT present but RAID_STRIPE_TREE incompat bit unset",
    );
}

#[test]
fn a_block_against_its_parent() {
    let orphan = item(id::ORPHAN, T::ORPHAN_ITEM, 1, []);
    let mut good = leaf_of(256, std::slice::from_ref(&orphan));
    build::seal(&mut good, CsumType::Crc32c);
    let expect = Expect {
        logical: AT,
        level: 0,
        generation: Some(9),
        first_key: Some(orphan.0),
        owner: Some(300),
    };
    let read = |block: &[u8], expect: Expect| read_block(&rules(), block, &expect, 2);
    assert_eq!(read(&good, expect), Ok(()));
    let sealed = |at: usize, bytes: &[u8]| {
        let mut block = patch(&good, at, bytes);
        build::seal(&mut block, CsumType::Crc32c);
        block
    };
    let case = |rule, block: &[u8], expect: Expect, words: &str| {
        let corrupt = read(block, expect).unwrap_err();
        assert_eq!((corrupt.rule, corrupt.message.as_str()), (rule, words));
    };
    case(
        164,
        &sealed(0x30, &[1]),
        expect,
        "bad tree block start, mirror 2 want 30408704 have 30408705",
    );
    case(165, &sealed(0x20, &[1]), expect, "bad fsid on logical 30408704 mirror 2");
    case(
        166,
        &sealed(100, &[8]),
        expect,
        "bad tree block level, mirror 2 level 8 on logical 30408704",
    );
    let flipped = read(&patch(&good, 5000, &[1]), expect).unwrap_err();
    assert_eq!(flipped.rule, 167);
    assert!(
        flipped
            .message
            .starts_with("checksum verify failed on logical 30408704 mirror 2 wanted 0x")
    );
    case(
        160,
        &good,
        Expect { level: 1, ..expect },
        "level verify failed on logical 30408704 mirror 2 wanted 1 found 0",
    );
    case(
        161,
        &good,
        Expect { generation: Some(8), ..expect },
        "parent transid verify failed on logical 30408704 mirror 2 wanted 8 found 9",
    );
    case(
        163,
        &good,
        Expect { first_key: Some(Key::MIN), ..expect },
        "tree first key mismatch detected, bytenr=30408704 parent_transid=9 key expected=(0,0,0) has=(18446744073709551611,48,1)",
    );
    case(
        158,
        &good,
        Expect { owner: Some(7), ..expect },
        "corrupted leaf, root=7 block=30408704 owner mismatch, have 256 expect 7",
    );
    case(
        159,
        &sealed(0x58, &[7, 0]),
        expect,
        "corrupted leaf, root=300 block=30408704 owner mismatch, have 7 expect [256, 18446744073709551360]",
    );
    assert_eq!(read(&good, Expect { owner: Some(id::TREE_LOG), ..expect }), Ok(()));
    let mut empty = leaf_of(256, &[]);
    build::seal(&mut empty, CsumType::Crc32c);
    case(162, &empty, expect, "invalid tree nritems, bytenr=30408704 nritems=0 expect >0");
    assert_eq!(read(&good[..50], expect).unwrap_err().rule, 164);
    assert_eq!(write_block(&rules(), &good, 8), Ok(()));
    assert_eq!(write_block(&rules(), &good, 9).unwrap_err().rule, 169);
}

#[test]
fn every_finding_of_a_leaf_is_told() {
    let bad = |n| item(n, T::CHUNK_ITEM, 0, [0; 3]);
    let mut rules_broken = Vec::new();
    leaf_each(&rules(), &leaf_of(3, &[bad(256), bad(257), bad(258)]), |corrupt| {
        rules_broken.push((corrupt.rule, corrupt.slot));
        ControlFlow::Continue(())
    });
    assert_eq!(rules_broken, [(68, Some(0)), (68, Some(1)), (68, Some(2))]);
}

proptest::proptest! {
    /// Any damage to a block of every kind of item ends in a verdict.
    #[test]
    fn no_bytes_make_the_checker_panic(
        hits in proptest::collection::vec((0usize..16384, proptest::prelude::any::<u8>()), 0..40),
        owner in 0u64..12,
    ) {
        let kinds = [1u8, 12, 13, 24, 84, 96, 108, 128, 132, 144, 156, 168, 169, 176, 178, 182, 184, 192, 204, 216, 228, 230];
        let items: Vec<_> = kinds.iter().map(|&k| item(256, ItemType(k), 4096, vec![k; 53 + usize::from(k)])).collect();
        let mut block = leaf_of(owner, &items);
        for (at, byte) in hits {
            block[at] = byte;
        }
        let mut findings = 0;
        leaf_each(&rules(), &block, |_| { findings += 1; ControlFlow::Continue(()) });
        let _ = node(&rules(), &block);
        proptest::prop_assert!(findings <= 16384);
    }
}
