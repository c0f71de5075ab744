//! Block groups, chunks, devices: A.7 to A.9.

use super::*;

pub(super) fn edges(edges: &mut Edges) {
    groups(edges);
    sizes_of_chunks(edges);
    types_of_chunks(edges);
    counts_of_stripes(edges);
    devices(edges);
}

fn groups(edges: &mut Edges) {
    let good = BlockGroup { used: 0, chunk_objectid: 256, flags: GroupFlags::DATA };
    let of = |len, g: BlockGroup| vec![item(1 << 20, T::BLOCK_GROUP_ITEM, len, g.encode())];
    edges.items(61, 2, |len| of(len, good), &[1], &[0]);
    let key = Key::new(1 << 20, T::BLOCK_GROUP_ITEM, 9);
    let data = [good.encode().as_ref(), &[0]].concat();
    edges.data(62, 2, key, &[data[..24].to_vec()], &[data[..23].to_vec(), data]);
    let object = |chunk_objectid| of(9, BlockGroup { chunk_objectid, ..good });
    edges.items(64, 2, object, &[256], &[255, 257]);
    edges.items(65, 2, |used| of(9, BlockGroup { used, ..good }), &[0, 9], &[10]);
    let flags = |flags| of(9, BlockGroup { flags, ..good });
    use GroupFlags as F;
    edges.items(66, 2, flags, &[F::DATA, F::DATA | F::RAID1C4], &[F::DATA | F::DUP | F::RAID0]);
    let legal = [F::DATA, F::METADATA, F::SYSTEM, F::DATA | F::METADATA];
    edges.items(67, 2, flags, &legal, &[F::empty(), F::DATA | F::SYSTEM, F::TYPES]);
}

fn chunk(flags: GroupFlags, stripes: usize, sub_stripes: u16) -> Chunk {
    let stripe = Stripe { devid: 1, offset: 1 << 20, dev_uuid: Uuid::nil() };
    Chunk {
        length: 60 << 20,
        owner: 2,
        stripe_len: 65536,
        flags,
        io_align: 65536,
        io_width: 65536,
        sector_size: 4096,
        sub_stripes,
        stripes: vec![stripe; stripes],
    }
}

fn at(start: u64, chunk: &Chunk) -> Vec<NewItem> {
    vec![item(256, T::CHUNK_ITEM, start, chunk.encode())]
}

fn sizes_of_chunks(edges: &mut Edges) {
    let good = chunk(GroupFlags::DATA, 1, 1);
    let key = Key::new(256, T::CHUNK_ITEM, 0);
    let data = good.encode();
    edges.data(68, 3, key, &[&data], &[data[..79].to_vec()]);
    let dup = chunk(GroupFlags::DATA | GroupFlags::DUP, 2, 1).encode();
    let longer = [&dup[..], &[0]].concat();
    edges.data(69, 3, key, &[&dup], &[dup[..111].to_vec(), longer]);
    edges.data(70, 3, key, &[&data], &[patch(&data, 0x2c, &[0])]);
    edges.items(73, 3, |start| at(start, &good), &[0, 4096], &[4095, 4097]);
    let sector = |sector_size| at(0, &Chunk { sector_size, ..good.clone() });
    edges.items(74, 3, sector, &[4096], &[4095, 8192]);
    let length = |length| at(0, &Chunk { length, ..good.clone() });
    edges.items(75, 3, length, &[4096], &[0, 4095, 4097]);
    let end = (60u64 << 20).wrapping_neg();
    edges.items(76, 3, |start| at(start, &good), &[end - 4096], &[end]);
    let stripe_len = |stripe_len| at(0, &Chunk { stripe_len, ..good.clone() });
    edges.items(77, 3, stripe_len, &[65536], &[65535, 65537, 0]);
    let limit = 281_474_976_645_120;
    edges.items(78, 3, length, &[limit - 4096], &[limit]);
}

fn types_of_chunks(edges: &mut Edges) {
    use GroupFlags as F;
    let bit = |n: u32| {
        let flags = F::DATA | F::from_bits_retain(1 << n);
        at(0, &chunk(flags, if n == 10 { 4 } else { 1 }, 1))
    };
    edges.items(79, 3, bit, &[0, 10], &[11, 12, 63]);
    let flags = |(flags, stripes)| at(0, &chunk(flags, stripes, 1));
    let two = F::DUP | F::RAID1;
    edges.items(80, 3, flags, &[(F::DATA | F::DUP, 2)], &[(F::DATA | two, 2)]);
    edges.items(81, 3, flags, &[(F::DATA, 1)], &[(F::empty(), 1)]);
    let system = [F::SYSTEM | F::DATA, F::SYSTEM | F::METADATA].map(|flags| (flags, 1));
    edges.items(82, 3, flags, &[(F::SYSTEM, 1)], &system);
    let mixed = leaf_of(3, &flags((F::DATA | F::METADATA, 1)));
    let mut with = rules();
    with.incompat |= Incompat::MIXED_GROUPS;
    edges.pair(83, leaf(&with, &mixed), leaf(&rules(), &mixed));
}

/// Rules 71, 72 and 84: each profile over as few and as many stripes as it may.
fn counts_of_stripes(edges: &mut Edges) {
    use GroupFlags as F;
    let on = |profile, sub| move |stripes| at(0, &chunk(F::DATA | profile, stripes, sub));
    for (profile, copies) in [(F::DUP, 2), (F::RAID1, 2), (F::RAID1C3, 3), (F::RAID1C4, 4)] {
        edges.items(71, 3, on(profile, 1), &[copies], &[copies - 1]);
        edges.items(84, 3, on(profile, 1), &[copies], &[copies + 1]);
    }
    edges.items(72, 3, on(F::RAID5, 1), &[2], &[1]);
    edges.items(72, 3, on(F::RAID6, 1), &[3], &[2]);
    edges.items(84, 3, on(F::empty(), 1), &[1], &[2]);
    edges.items(84, 3, on(F::RAID10, 2), &[2, 4], &[3, 5]);
    let sub = |sub| at(0, &chunk(F::DATA | F::RAID10, 4, sub));
    edges.items(84, 3, sub, &[2], &[1, 3]);
    // What the stripes cannot share evenly, nobody can map.
    let length = |length| at(0, &Chunk { length, ..chunk(F::DATA | F::RAID0, 3, 1) });
    edges.items(84, 3, length, &[3 * 65536], &[3 * 65536 + 4096]);
    edges.items(84, 3, on(F::RAID0, 1), &[1, 3], &[7]);
}

fn devices(edges: &mut Edges) {
    let good = DevItem { devid: 1, total_bytes: 100, bytes_used: 100, ..DevItem::default() };
    let of = |objectid, devid, d: DevItem| vec![item(objectid, T::DEV_ITEM, devid, d.encode())];
    edges.items(85, 3, |objectid| of(objectid, 1, good), &[1], &[2]);
    let key = Key::new(1, T::DEV_ITEM, 1);
    let data = [good.encode().as_ref(), &[0]].concat();
    edges.data(86, 3, key, &[data[..98].to_vec()], &[data[..97].to_vec(), data]);
    edges.items(87, 3, |devid| of(1, devid, good), &[1], &[0, 2]);
    edges.items(88, 3, |n| of(1, 1, DevItem { bytes_used: n, ..good }), &[0, 100], &[101]);
    let good = dev_extent();
    let at = dev_extent_at;
    edges.items(89, 4, |n| vec![at(0, DevExtent { chunk_tree: n, ..good })], &[3], &[2, 4]);
    let key = Key::new(1, T::DEV_EXTENT, 0);
    let data = [good.encode().as_ref(), &[0]].concat();
    edges.data(89, 4, key, &[data[..48].to_vec()], &[data[..47].to_vec(), data]);
    let object = |n| vec![at(0, DevExtent { chunk_objectid: n, ..good })];
    edges.items(90, 4, object, &[256], &[255, 257]);
    edges.items(91, 4, |offset| vec![at(offset, good)], &[0, 4096], &[4095, 4097]);
    let offset = |n| vec![at(0, DevExtent { chunk_offset: Logical(n), ..good })];
    edges.items(92, 4, offset, &[0, 4096], &[4095, 4097]);
    edges.items(93, 4, |length| vec![at(0, DevExtent { length, ..good })], &[4096], &[4095, 4097]);
    edges.items(94, 4, |next| vec![at(0, good), at(next, good)], &[8192], &[4096]);
}
