//! Roots and their references: A.11.

use super::{Item, Verdict};
use crate::format::block::MAX_LEVEL;
use crate::format::inode::NAME_MAX;
use crate::format::key::objectid;
use crate::format::root::{ROOT_REF_SIZE, Root, root_ref_name_len};

pub(super) fn root(item: &Item<'_>) -> Verdict {
    let id = item.key.objectid;
    let source = item.key.offset;
    if id == objectid::TREE_RELOC && source != 0 && !objectid::is_file_tree(source) {
        let text =
            format_args!("invalid reloc tree for root {source}, root id is not a subvolume tree");
        return item.plain(105, text);
    }
    if id == 0 {
        return item.plain(106, format_args!("invalid root id 0"));
    }
    if id == objectid::TREE_RELOC && source == 0 {
        return item.plain(107, format_args!("invalid root id 0 for reloc tree"));
    }
    let Ok(root) = Root::parse(item.data) else {
        let have = item.size();
        let text = format_args!("invalid root item size, have {have} expect 439 or 239");
        return item.plain(108, text);
    };
    let max = item.rules.generation_max;
    let generations = [
        (109, "generation", root.generation),
        (110, "v2 generation", root.generation_v2),
        (111, "last_snapshot", root.last_snapshot),
    ];
    for (rule, field, have) in generations {
        if have > max {
            let text = format_args!("invalid root {field}, have {have} expect (0, {max}]");
            return item.plain(rule, text);
        }
    }
    if !item.rules.aligned(root.bytenr.0) {
        let (have, unit) = (root.bytenr, item.rules.sectorsize);
        let text = format_args!("invalid root bytenr, have {have} expect to be aligned to {unit}");
        return item.plain(112, text);
    }
    if root.level >= MAX_LEVEL {
        let have = root.level;
        return item.plain(113, format_args!("invalid root level, have {have} expect [0, 7]"));
    }
    if root.drop_level >= MAX_LEVEL {
        let have = root.drop_level;
        return item.plain(114, format_args!("invalid root drop_level, have {have} expect [0, 7]"));
    }
    if root.drop_progress.objectid != 0 && root.drop_level == 0 {
        let progress = root.drop_progress.objectid;
        let text = format_args!(
            "invalid root drop_level 0 with non-zero drop_progress objectid {progress}"
        );
        return item.plain(115, text);
    }
    let mask = Root::RDONLY | Root::DEAD;
    if root.flags & !mask != 0 {
        let have = root.flags;
        let text = format_args!("invalid root flags, have 0x{have:x} expect mask 0x{mask:x}");
        return item.plain(116, text);
    }
    Ok(())
}

pub(super) fn root_ref(item: &Item<'_>) -> Verdict {
    let (have, kind) = (item.size(), item.key.kind.0);
    let head = ROOT_REF_SIZE as u64;
    let Some(name) = root_ref_name_len(item.data).filter(|_| have > head) else {
        let text = format_args!(
            "invalid root ref item size for key type {kind}, have {have} expect > {head}"
        );
        return item.plain(117, text);
    };
    if usize::from(name) > NAME_MAX {
        let text =
            format_args!("root ref name too long for key type {kind}, have {name} max {NAME_MAX}");
        return item.plain(118, text);
    }
    let expect = head + u64::from(name);
    if have != expect {
        let text = format_args!(
            "invalid root ref item size for key type {kind}, have {have} expect {expect}"
        );
        return item.plain(119, text);
    }
    Ok(())
}
