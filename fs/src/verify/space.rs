//! Block groups, chunks, devices: A.7 to A.9. Chunk rules also judge the superblock's array.

use super::{Item, Rules, Verdict};
use crate::format::block::leaf_space;
use crate::format::chunk::{
    BlockGroup, CHUNK_HEAD, Chunk, DevExtent, DevItem, GroupFlags, Profile, STRIPE, STRIPE_LEN,
    num_stripes,
};
use crate::format::key::{ItemType, Key, objectid};
use crate::format::superblock::Incompat;
use crate::units::Logical;

pub(super) fn block_group(item: &Item<'_>) -> Verdict {
    let length = item.key.offset;
    if length == 0 {
        return item.of_group(61, format_args!("invalid block group size 0"));
    }
    let Ok(group) = BlockGroup::parse(item.data) else {
        let have = item.size();
        return item.of_group(62, format_args!("invalid item size, have {have} expect 24"));
    };
    let expect = objectid::FIRST_CHUNK_TREE;
    if group.chunk_objectid != expect {
        let have = group.chunk_objectid;
        let text = format_args!("invalid block group chunk objectid, have {have} expect {expect}");
        return item.of_group(64, text);
    }
    if group.used > length {
        let have = group.used;
        let text = format_args!("invalid block group used, have {have} expect [0, {length})");
        return item.of_group(65, text);
    }
    let profile = group.flags & GroupFlags::PROFILES;
    let bits = profile.bits().count_ones();
    if bits > 1 {
        let have = profile.bits();
        let text = format_args!(
            "invalid profile flags, have 0x{have:x} ({bits} bits set) expect no more than 1 bit set"
        );
        return item.of_group(66, text);
    }
    let kind = group.flags & GroupFlags::TYPES;
    let mixed = GroupFlags::DATA | GroupFlags::METADATA;
    if ![GroupFlags::DATA, GroupFlags::METADATA, GroupFlags::SYSTEM, mixed].contains(&kind) {
        let (have, bits) = (kind.bits(), kind.bits().count_ones());
        let text = format_args!(
            "invalid type, have 0x{have:x} ({bits} bits set) expect either 0x1, 0x4, 0x2 or 0x5"
        );
        return item.of_group(67, text);
    }
    Ok(())
}

pub(super) fn chunk_item(item: &Item<'_>) -> Verdict {
    let start = item.key.offset;
    let of_chunk = |rule, text: String| {
        let block = item.leaf.header.bytenr;
        let slot = item.slot;
        let message =
            format!("corrupt leaf: root=3 block={block} slot={slot} chunk_start={start}, {text}");
        item.leaf.fail(rule, Some((slot, item.key)), message)
    };
    let have = item.data.len();
    let least = CHUNK_HEAD + STRIPE;
    let Some(stripes) = num_stripes(item.data).filter(|_| have >= least) else {
        let space = leaf_space(item.rules.nodesize);
        let text = format!("invalid chunk item size: have {have} expect [{least}, {space})");
        return of_chunk(68, text);
    };
    let expect = CHUNK_HEAD + STRIPE * usize::from(stripes);
    if stripes != 0 && have != expect {
        return of_chunk(69, format!("invalid chunk item size: have {have} expect {expect}"));
    }
    if stripes == 0 {
        return of_chunk(70, format!("invalid chunk num_stripes, have {stripes}"));
    }
    let Ok(chunk) = Chunk::parse(item.data) else { return Ok(()) };
    match chunk_rules(item.rules, Logical(start), &chunk) {
        Ok(()) => Ok(()),
        Err((rule, text)) => of_chunk(rule, text),
    }
}

/// Rules 70 to 84, wherever the chunk was found: the rule, and the kernel's words for it.
pub(crate) fn chunk_rules(rules: &Rules, at: Logical, chunk: &Chunk) -> Result<(), (u8, String)> {
    let stripes = chunk.stripes.len();
    let unit = rules.sectorsize;
    if stripes == 0 {
        return Err((70, format!("invalid chunk num_stripes, have {stripes}")));
    }
    // Of several profile bits (rule 80) the first decides here, as in the kernel.
    let bits = chunk.flags & GroupFlags::PROFILES;
    let named = Profile::ALL.into_iter().skip(1).find(|profile| bits.contains(profile.flag()));
    let profile = named.unwrap_or(Profile::Single);
    let copies = usize::from(profile.copies());
    if stripes < copies {
        return Err((
            71,
            format!("invalid chunk num_stripes < ncopies, have {stripes} < {copies}"),
        ));
    }
    let parity = usize::from(profile.parity());
    if parity > 0 && stripes == parity {
        let text = format!("invalid chunk num_stripes == nparity, have {stripes} == {parity}");
        return Err((72, text));
    }
    if !rules.aligned(at.0) {
        return Err((73, format!("invalid chunk logical, have {at} should aligned to {unit}")));
    }
    if chunk.sector_size != unit {
        let have = chunk.sector_size;
        return Err((74, format!("invalid chunk sectorsize, have {have} expect {unit}")));
    }
    let length = chunk.length;
    if length == 0 || !rules.aligned(length) {
        return Err((75, format!("invalid chunk length, have {length}")));
    }
    if at.checked_add(length).is_none() {
        let text = format!(
            "invalid chunk logical start and length, have logical start {at} length {length}"
        );
        return Err((76, text));
    }
    if chunk.stripe_len != STRIPE_LEN {
        return Err((77, format!("invalid chunk stripe length: {}", chunk.stripe_len)));
    }
    let limit = u64::from(u32::MAX) * STRIPE_LEN;
    if length >= limit {
        return Err((78, format!("chunk length too large: have {length} limit {limit}")));
    }
    chunk_type(rules, chunk.flags)?;
    stripe_counts(chunk, profile)
}

/// Rules 79 to 83.
fn chunk_type(rules: &Rules, flags: GroupFlags) -> Result<(), (u8, String)> {
    let unknown = flags.bits() & !(GroupFlags::TYPES | GroupFlags::PROFILES).bits();
    if unknown != 0 {
        return Err((79, format!("unrecognized chunk type: 0x{unknown:x}")));
    }
    let profile = (flags & GroupFlags::PROFILES).bits();
    if profile.count_ones() > 1 {
        let text = format!("invalid chunk profile flag: 0x{profile:x}, expect 0 or 1 bit set");
        return Err((80, text));
    }
    let have = flags.bits();
    if !flags.intersects(GroupFlags::TYPES) {
        let text = format!("missing chunk type flag, have 0x{have:x} one bit must be set in 0x7");
        return Err((81, text));
    }
    let mixed = GroupFlags::DATA | GroupFlags::METADATA;
    if flags.contains(GroupFlags::SYSTEM) && flags.intersects(mixed) {
        return Err((82, format!("system chunk with data or metadata type: 0x{have:x}")));
    }
    if flags.contains(mixed) && !rules.incompat.contains(Incompat::MIXED_GROUPS) {
        return Err((83, format!("mixed chunk type in non-mixed mode: 0x{have:x}")));
    }
    Ok(())
}

/// Rule 84, and RAID10 over an odd number of stripes, which the kernel lets pass.
fn stripe_counts(chunk: &Chunk, profile: Profile) -> Result<(), (u8, String)> {
    let stripes = chunk.stripes.len();
    let right = match profile {
        Profile::Raid10 => chunk.sub_stripes == 2 && stripes.is_multiple_of(2),
        Profile::Raid5 => stripes >= 2,
        Profile::Raid6 => stripes >= 3,
        Profile::Raid0 => true,
        Profile::Single => stripes == 1,
        Profile::Dup | Profile::Raid1 | Profile::Raid1c3 | Profile::Raid1c4 => {
            stripes == usize::from(profile.copies())
        }
    };
    // What the address arithmetic divides by must divide the length.
    let count = u16::try_from(stripes).ok().and_then(|n| profile.data_stripes(n));
    if right && count.is_some_and(|n| chunk.length.is_multiple_of(n.into())) {
        return Ok(());
    }
    let sub = chunk.sub_stripes;
    Err((84, format!("invalid num_stripes:sub_stripes {stripes}:{sub} for profile {profile}")))
}

pub(super) fn device(item: &Item<'_>) -> Verdict {
    let Key { objectid: id, offset, .. } = item.key;
    if id != objectid::DEV_ITEMS {
        let expect = objectid::DEV_ITEMS;
        return item.of_device(85, format_args!("invalid objectid: has={id} expect={expect}"));
    }
    let Ok(device) = DevItem::parse(item.data) else {
        let has = item.size();
        return item.of_device(86, format_args!("invalid item size: has {has} expect 98"));
    };
    if device.devid != offset {
        let has = device.devid;
        let text = format_args!("devid mismatch: key has={offset} item has={has}");
        return item.of_device(87, text);
    }
    if device.bytes_used > device.total_bytes {
        let (have, total) = (device.bytes_used, device.total_bytes);
        let text = format_args!("invalid bytes used: have {have} expect [0, {total}]");
        return item.of_device(88, text);
    }
    Ok(())
}

/// Rules 89 to 94, and the item's size, which the kernel does not test.
pub(super) fn dev_extent(item: &Item<'_>) -> Verdict {
    let Ok(extent) = DevExtent::parse(item.data) else {
        let have = item.size();
        return item.plain(89, format_args!("invalid dev extent item size, has {have} expect 48"));
    };
    if extent.chunk_tree != objectid::CHUNK_TREE {
        let (has, expect) = (extent.chunk_tree, objectid::CHUNK_TREE);
        let text = format_args!("invalid dev extent chunk tree id, has {has} expect {expect}");
        return item.plain(89, text);
    }
    if extent.chunk_objectid != objectid::FIRST_CHUNK_TREE {
        let (has, expect) = (extent.chunk_objectid, objectid::FIRST_CHUNK_TREE);
        let text = format_args!("invalid dev extent chunk objectid, has {has} expect {expect}");
        return item.plain(90, text);
    }
    let aligned = [
        (91, "key.offset", item.key.offset),
        (92, "chunk offset", extent.chunk_offset.0),
        (93, "length", extent.length),
    ];
    for (rule, field, has) in aligned {
        if !item.rules.aligned(has) {
            let unit = item.rules.sectorsize;
            let text = format_args!("invalid dev extent {field}, has {has} not aligned to {unit}");
            return item.plain(rule, text);
        }
    }
    if let Some((prev, data)) = item.prev
        && prev.kind == ItemType::DEV_EXTENT
        && prev.objectid == item.key.objectid
        && let Ok(before) = DevExtent::parse(data)
        && prev.offset.saturating_add(before.length) > item.key.offset
    {
        let (offset, len, current) = (prev.offset, before.length, item.key.offset);
        let text = format_args!(
            "dev extent overlap, prev offset {offset} len {len} current offset {current}"
        );
        return item.plain(94, text);
    }
    Ok(())
}
