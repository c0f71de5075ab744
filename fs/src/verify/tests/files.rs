//! Items of file trees, and checksums.

use super::*;

#[test]
pub(super) fn file_extents() {
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
    for kind in [T::INODE_REF, T::INODE_EXTREF, T::DIR_ITEM, T::DIR_INDEX, T::XATTR_ITEM] {
        broken(
            18,
            5,
            &[item(257, T::EXTENT_DATA, 0, &good), item(258, kind, 256, [0; 40])],
            "slot=1 ino=258, invalid previous key objectid, have 257 expect 258",
        );
    }
    fine(id::TREE_LOG, &[item(257, T::EXTENT_DATA, 0, &good), item(258, T::EXTENT_DATA, 0, &good)]);
}

#[test]
pub(super) fn checksums() {
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
pub(super) fn directory_entries_and_attributes() {
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
pub(super) fn names_of_inodes() {
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

#[test]
pub(super) fn inodes() {
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
