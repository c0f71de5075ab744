//! Block groups, chunks, devices.

use super::*;

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
pub(super) fn block_groups() {
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
pub(super) fn chunks() {
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
pub(super) fn devices_and_their_extents() {
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
    let extent = dev_extent();
    let at = dev_extent_at;
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
