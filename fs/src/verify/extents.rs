//! Extent records and keyed references: A.12 and A.13.

use super::{Item, Verdict};
use crate::format::block::{MAX_LEVEL, leaf_space};
use crate::format::extent::{
    DATA_REF_SIZE, DataRef, EXTENT_SIZE, Extent, ExtentFlags, INLINE_REF_SIZE, InlineRefs,
    Reference, Stop, parse_shared_count,
};
use crate::format::key::{ItemType, Key, objectid};
use crate::format::superblock::Incompat;

/// EXTENT_ITEM, METADATA_ITEM.
pub(super) fn record(item: &Item<'_>) -> Verdict {
    let Key { objectid, kind, offset } = item.key;
    let skinny = kind == ItemType::METADATA_ITEM;
    if skinny && !item.rules.incompat.contains(Incompat::SKINNY_METADATA) {
        let text = format_args!(
            "invalid key type, METADATA_ITEM type invalid when SKINNY_METADATA feature disabled"
        );
        return item.plain(120, text);
    }
    if !item.rules.aligned(objectid) {
        let unit = item.rules.sectorsize;
        let text =
            format_args!("invalid key objectid, have {objectid} expect to be aligned to {unit}");
        return item.plain(121, text);
    }
    if skinny && offset >= MAX_LEVEL.into() {
        let text = format_args!("invalid tree level, have {offset} expect [0, 7]");
        return item.of_extent(122, text);
    }
    let Ok((extent, refs)) = Extent::parse_head(kind, item.data) else {
        let (have, space) = (item.size(), leaf_space(item.rules.nodesize));
        if have >= EXTENT_SIZE as u64 {
            // A tree block's record that ends within what stands before its references: the kernel finds
            // itself behind the end.
            let text = format_args!("invalid extent item size, padding bytes found");
            return item.of_extent(144, text);
        }
        let text = format_args!("invalid item size, have {have} expect [24, {space})");
        return item.of_extent(123, text);
    };
    let max = item.rules.generation_max;
    if extent.generation > max {
        let have = extent.generation;
        let text = format_args!("invalid generation, have {have} expect (0, {max}]");
        return item.of_extent(124, text);
    }
    let kinds = extent.flags & (ExtentFlags::DATA | ExtentFlags::TREE_BLOCK);
    if kinds.bits().count_ones() != 1 {
        let have = extent.flags.bits();
        let text = format_args!("invalid extent flag, have 0x{have:x} expect 1 bit set in 0x3");
        return item.of_extent(125, text);
    }
    if extent.flags.contains(ExtentFlags::TREE_BLOCK) {
        tree_block(item, &extent)?;
    } else {
        data(item, &extent)?;
    }
    inline_refs(item, &extent, refs)?;
    behind_previous(item)
}

/// Rules 126 and 130.
fn tree_block(item: &Item<'_>, extent: &Extent) -> Verdict {
    let nodesize = u64::from(item.rules.nodesize);
    if item.key.kind == ItemType::EXTENT_ITEM && item.key.offset != nodesize {
        let have = item.key.offset;
        let text = format_args!("invalid extent length, have {have} expect {nodesize}");
        return item.of_extent(126, text);
    }
    if let Some((_, level)) = extent.tree_block
        && level >= MAX_LEVEL
    {
        let text = format_args!("invalid tree block info level, have {level} expect [0, 7]");
        return item.of_extent(130, text);
    }
    Ok(())
}

/// Rules 127 to 129.
fn data(item: &Item<'_>, extent: &Extent) -> Verdict {
    let Key { kind, offset, .. } = item.key;
    if kind != ItemType::EXTENT_ITEM {
        let have = kind.0;
        let text = format_args!("invalid key type, have {have} expect 168 for data backref");
        return item.of_extent(127, text);
    }
    if !item.rules.aligned(offset) {
        let unit = item.rules.sectorsize;
        let text = format_args!("invalid extent length, have {offset} expect aligned to {unit}");
        return item.of_extent(128, text);
    }
    if extent.flags.contains(ExtentFlags::FULL_BACKREF) {
        let text = format_args!("invalid extent flag, data has full backref set");
        return item.of_extent(129, text);
    }
    Ok(())
}

/// Rules 131 to 145.
fn inline_refs(item: &Item<'_>, extent: &Extent, bytes: &[u8]) -> Verdict {
    let end = item.at + item.size();
    let first = end - bytes.len() as u64;
    let mut last = (0u8, u64::MAX);
    let mut total = 0u64;
    for step in InlineRefs::new(bytes) {
        let reference = match step {
            Ok(reference) => reference,
            Err(stop) => return inline_stop(item, first, end, &stop),
        };
        inline_ref(item, &reference)?;
        let (kind, sequence) = (reference.kind().0, reference.sequence());
        if kind < last.0 {
            let prev = last.0;
            let text = format_args!("inline ref out-of-order: has type {kind}, prev type {prev}");
            return item.of_extent(142, text);
        }
        if kind == last.0 && sequence > last.1 {
            let offset = match reference {
                Reference::Data(data) => data.offset,
                _ => sequence,
            };
            let text = format_args!(
                "inline ref out-of-order: has type {kind} offset {offset} seq 0x{sequence:x}, \
                 prev type {} seq 0x{:x}",
                last.0, last.1
            );
            return item.of_extent(143, text);
        }
        last = (kind, sequence);
        total = total.saturating_add(reference.count());
    }
    if total > extent.refs {
        let have = extent.refs;
        let text = format_args!("invalid extent refs, have {have} expect >= inline {total}");
        return item.of_extent(145, text);
    }
    Ok(())
}

/// Rules 131, 132, 141: where a reference does not fit, or is none.
fn inline_stop(item: &Item<'_>, first: u64, end: u64, stop: &Stop) -> Verdict {
    let ptr = first + stop.at as u64;
    let overflow = |rule, size: usize| {
        let text = format_args!(
            "inline ref item overflows extent item, ptr {ptr} iref size {size} end {end}"
        );
        item.of_extent(rule, text)
    };
    match ItemType(stop.kind) {
        _ if stop.left < INLINE_REF_SIZE => overflow(131, INLINE_REF_SIZE),
        ItemType::EXTENT_DATA_REF => overflow(132, DATA_REF_SIZE + 1),
        ItemType::SHARED_DATA_REF => overflow(132, INLINE_REF_SIZE + 4),
        ItemType(kind) => item.of_extent(141, format_args!("unknown inline ref type: {kind}")),
    }
}

/// Rules 133 to 140, for one reference.
fn inline_ref(item: &Item<'_>, reference: &Reference) -> Verdict {
    let unit = item.rules.sectorsize;
    match reference {
        // Without simple quotas an owner is odd, and harmless: the kernel warns and goes on.
        Reference::Owner { .. } | Reference::TreeBlock { .. } => Ok(()),
        Reference::SharedBlock { parent } if !item.rules.aligned(parent.0) => {
            let text =
                format_args!("invalid tree parent bytenr, have {parent} expect aligned to {unit}");
            item.of_extent(133, text)
        }
        Reference::SharedBlock { .. } => Ok(()),
        Reference::Data(data) => {
            let rules = [134, 135, 136, 137];
            data_ref(item, data, rules, "data ref")
        }
        Reference::SharedData { parent, .. } if !item.rules.aligned(parent.0) => {
            let text =
                format_args!("invalid data parent bytenr, have {parent} expect aligned to {unit}");
            item.of_extent(138, text)
        }
        Reference::SharedData { count: 0, .. } => {
            let text = format_args!("invalid shared data ref count, should have non-zero value");
            item.of_extent(139, text)
        }
        Reference::SharedData { .. } => Ok(()),
    }
}

/// The four rules that an EXTENT_DATA_REF has in both its forms.
fn data_ref(item: &Item<'_>, data: &DataRef, rules: [u8; 4], name: &str) -> Verdict {
    let [root_rule, inode_rule, offset_rule, count_rule] = rules;
    let root = data.root;
    let special = [objectid::DATA_RELOC_TREE, objectid::ROOT_TREE];
    if !objectid::is_file_tree(root) && !special.contains(&root) {
        return item.of_extent(root_rule, format_args!("invalid {name} root value {root}"));
    }
    let inode = data.inode;
    if !(objectid::FIRST_FREE..=objectid::LAST_FREE).contains(&inode) {
        return item.of_extent(inode_rule, format_args!("invalid {name} objectid value {inode}"));
    }
    if !item.rules.aligned(data.offset) {
        let (have, unit) = (data.offset, item.rules.sectorsize);
        let text = format_args!("invalid {name} offset, have {have} expect aligned to {unit}");
        return item.of_extent(offset_rule, text);
    }
    if data.count == 0 {
        let text = format_args!("invalid {name} count, should have non-zero value");
        return item.of_extent(count_rule, text);
    }
    Ok(())
}

/// Rule 146.
fn behind_previous(item: &Item<'_>) -> Verdict {
    let Some((prev, _)) = item.prev else { return Ok(()) };
    let len = match prev.kind {
        ItemType::EXTENT_ITEM => prev.offset,
        ItemType::METADATA_ITEM => item.rules.nodesize.into(),
        _ => return Ok(()),
    };
    if prev.objectid.saturating_add(len) > item.key.objectid {
        let bracket = |key: Key| format!("[{} {} {}]", key.objectid, key.kind.0, key.offset);
        let text = format_args!(
            "previous extent {} overlaps current extent {}",
            bracket(prev),
            bracket(item.key)
        );
        return item.of_extent(146, text);
    }
    Ok(())
}

/// TREE_BLOCK_REF, SHARED_BLOCK_REF, SHARED_DATA_REF.
pub(super) fn keyed_ref(item: &Item<'_>) -> Verdict {
    let Key { objectid, kind, offset } = item.key;
    let expect = if kind == ItemType::SHARED_DATA_REF { 4 } else { 0 };
    let have = item.size();
    if have != expect {
        let text =
            format_args!("invalid item size, have {have} expect {expect} for key type {}", kind.0);
        return item.plain(148, text);
    }
    if kind == ItemType::SHARED_DATA_REF && parse_shared_count(item.data) == Ok(0) {
        let text = format_args!("invalid shared data backref count, should have non-zero value");
        return item.of_extent(147, text);
    }
    aligned_objectid(item, objectid)?;
    if kind != ItemType::TREE_BLOCK_REF && !item.rules.aligned(offset) {
        let unit = item.rules.sectorsize;
        let text =
            format_args!("invalid tree parent bytenr, have {offset} expect aligned to {unit}");
        return item.of_extent(150, text);
    }
    Ok(())
}

fn aligned_objectid(item: &Item<'_>, objectid: u64) -> Verdict {
    if item.rules.aligned(objectid) {
        return Ok(());
    }
    let unit = item.rules.sectorsize;
    let text = format_args!(
        "invalid key objectid for shared block ref, have {objectid} expect aligned to {unit}"
    );
    item.plain(149, text)
}

/// EXTENT_DATA_REF as an item of its own.
pub(super) fn keyed_data_ref(item: &Item<'_>) -> Verdict {
    let have = item.size();
    if !have.is_multiple_of(DATA_REF_SIZE as u64) {
        let text = format_args!(
            "invalid item size, have {have} expect aligned to {DATA_REF_SIZE} for key type 178"
        );
        return item.plain(151, text);
    }
    aligned_objectid(item, item.key.objectid)?;
    for bytes in item.data.chunks_exact(DATA_REF_SIZE) {
        let Ok(data) = DataRef::parse(bytes) else { continue };
        data_ref(item, &data, [152, 153, 154, 155], "extent data backref")?;
    }
    Ok(())
}

pub(super) fn raid_stripe(item: &Item<'_>) -> Verdict {
    let have = item.key.objectid;
    if !item.rules.aligned(have) {
        let unit = item.rules.sectorsize;
        let text = format_args!(
            "invalid key objectid for raid stripe extent, have {have} expect aligned to {unit}"
        );
        return item.plain(156, text);
    }
    if !item.rules.incompat.contains(Incompat::RAID_STRIPE_TREE) {
        let text =
            format_args!("RAID_STRIPE_EXTENT present but RAID_STRIPE_TREE incompat bit unset");
        return item.plain(157, text);
    }
    Ok(())
}
