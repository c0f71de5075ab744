//! The tree checker: looks at every field of a block once, as it enters (format: btrfs appendix A).
//!
//! A checksum says that a block is what somebody wrote, not that it makes sense: memory flips bits
//! before checksums are computed, and hostile images carry good ones. So each block passes here
//! after its checksum, and what lies behind may trust lengths, order and ranges.
//!
//! Each rule has the number of the format file's appendix, and its message is the kernel's, so that
//! old bug reports stay searchable. To add a rule: one row in the function of its item. To add an
//! item: one function, and one row in `rules_of`.
//!
//! Not here: what needs more than one block. That is `check`'s.

mod block;
mod extents;
mod files;
mod roots;
mod space;
mod superblock;

#[cfg(test)]
mod tests;

pub use block::{Expect, examine_block, read_block, write_block};
pub(crate) use block::{expected, once_written};
pub(crate) use space::chunk_rules;
pub use superblock::{SuperFault, superblock};

use crate::csum::CsumType;
use crate::format::Uuid;
use crate::format::block::{self as raw, Header, ItemHead};
use crate::format::key::{ItemType, Key, objectid};
use crate::format::superblock::{Incompat, SuperFlags, Superblock};
use crate::units::Logical;
use std::fmt;
use std::ops::ControlFlow;

/// What the rules measure against: a few fields of the superblock.
#[derive(Clone, Debug)]
pub struct Rules {
    pub sectorsize: u32,
    pub nodesize: u32,
    pub csum: CsumType,
    pub incompat: Incompat,
    /// No generation on disk is above this: the transaction after the last commit (logs have it).
    pub generation_max: u64,
    /// What a block's header may carry: the file system's own uuid, and its seeds'.
    pub fsids: Vec<Uuid>,
    /// Read-write opens refuse inode features that they could not maintain.
    pub writable: bool,
    /// An offline conversion of checksums was interrupted: csum items are of two kinds.
    pub changing_csums: bool,
}

impl Rules {
    /// `None` when the checksum type is unknown, which [`superblock`] has refused before.
    pub fn of(sb: &Superblock) -> Option<Rules> {
        Some(Rules {
            sectorsize: sb.sectorsize,
            nodesize: sb.nodesize,
            csum: sb.csum()?,
            incompat: sb.incompat,
            generation_max: sb.generation.saturating_add(1),
            fsids: vec![sb.tree_fsid()],
            writable: false,
            changing_csums: sb
                .flags
                .intersects(SuperFlags::CHANGING_DATA_CSUM | SuperFlags::CHANGING_META_CSUM),
        })
    }

    fn aligned(&self, n: u64) -> bool {
        n.is_multiple_of(self.sectorsize.into())
    }
}

/// A broken rule, and where.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Corrupt {
    /// Number in appendix A of the format file.
    pub rule: u8,
    pub block: Logical,
    /// Owner in the block's header.
    pub root: u64,
    pub slot: Option<u32>,
    pub key: Option<Key>,
    /// The kernel's sentence.
    pub message: String,
}

impl Corrupt {
    /// Every broken rule comes by here, so that a test can see which there were.
    fn boxed(self) -> Box<Corrupt> {
        #[cfg(test)]
        tests::audit::note(&self);
        Box::new(self)
    }
}

pub type Verdict = Result<(), Box<Corrupt>>;

/// A leaf under examination.
struct Leaf<'a> {
    rules: &'a Rules,
    header: &'a Header,
    bytes: &'a [u8],
}

/// An item under examination. Its slot passed the rules of A.1, so `data` is all of it.
struct Item<'a> {
    leaf: &'a Leaf<'a>,
    rules: &'a Rules,
    slot: u32,
    /// Where the data begins, from the start of the block: the kernel prints such positions.
    at: u64,
    key: Key,
    data: &'a [u8],
    prev: Option<(Key, &'a [u8])>,
}

impl Leaf<'_> {
    fn fail(&self, rule: u8, slot: Option<(u32, Key)>, message: String) -> Verdict {
        let corrupt = Corrupt {
            rule,
            block: self.header.bytenr,
            root: self.header.owner,
            slot: slot.map(|(slot, _)| slot),
            key: slot.map(|(_, key)| key),
            message,
        };
        Err(corrupt.boxed())
    }

    /// Rules about the leaf or one of its slots: the plain prefix.
    fn plain(&self, rule: u8, slot: u32, key: Option<Key>, text: fmt::Arguments<'_>) -> Verdict {
        let Header { owner, bytenr, .. } = self.header;
        let message = format!("corrupt leaf: root={owner} block={bytenr} slot={slot}, {text}");
        self.fail(rule, key.map(|key| (slot, key)), message)
    }
}

impl<'a> Item<'a> {
    fn sectorsize(&self) -> u64 {
        self.rules.sectorsize.into()
    }

    fn size(&self) -> u64 {
        self.data.len() as u64
    }

    /// The same complaint, about the item before this one.
    fn before(&self) -> Option<Item<'a>> {
        let (key, data) = self.prev?;
        Some(Item { slot: self.slot.checked_sub(1)?, key, data, prev: None, ..*self })
    }

    /// `corrupt leaf: root= block= slot= ` and the rest of the line.
    fn fail(&self, rule: u8, rest: fmt::Arguments<'_>) -> Verdict {
        let Header { owner, bytenr, .. } = self.leaf.header;
        let Item { slot, key, .. } = *self;
        let message = format!("corrupt leaf: root={owner} block={bytenr} slot={slot}{rest}");
        self.leaf.fail(rule, Some((slot, key)), message)
    }

    fn plain(&self, rule: u8, text: fmt::Arguments<'_>) -> Verdict {
        self.fail(rule, format_args!(", {text}"))
    }

    fn of_file(&self, rule: u8, text: fmt::Arguments<'_>) -> Verdict {
        let Key { objectid, offset, .. } = self.key;
        self.fail(rule, format_args!(" ino={objectid} file_offset={offset}, {text}"))
    }

    fn of_inode(&self, rule: u8, text: fmt::Arguments<'_>) -> Verdict {
        self.fail(rule, format_args!(" ino={}, {text}", self.key.objectid))
    }

    fn of_group(&self, rule: u8, text: fmt::Arguments<'_>) -> Verdict {
        let Key { objectid, offset, .. } = self.key;
        self.fail(rule, format_args!(" bg_start={objectid} bg_len={offset}, {text}"))
    }

    /// No comma, and the key's objectid instead of the device id: so the kernel prints it.
    fn of_device(&self, rule: u8, text: fmt::Arguments<'_>) -> Verdict {
        self.fail(rule, format_args!(" devid={} {text}", self.key.objectid))
    }

    /// Neither root nor comma: so the kernel prints it.
    fn of_extent(&self, rule: u8, text: fmt::Arguments<'_>) -> Verdict {
        let Item { slot, key, .. } = *self;
        let len = match key.kind {
            ItemType::METADATA_ITEM => self.rules.nodesize.into(),
            _ => key.offset,
        };
        let message = format!(
            "corrupt leaf: block={} slot={slot} extent bytenr={} len={len} {text}",
            self.leaf.header.bytenr, key.objectid
        );
        self.leaf.fail(rule, Some((slot, key)), message)
    }
}

/// Which function knows the rules of which item. Types that are missing have none.
fn rules_of(kind: ItemType) -> Option<fn(&Item<'_>) -> Verdict> {
    Some(match kind {
        ItemType::EXTENT_DATA => files::extent_data,
        ItemType::EXTENT_CSUM => files::csum,
        ItemType::DIR_ITEM | ItemType::DIR_INDEX | ItemType::XATTR_ITEM => files::dir_entries,
        ItemType::INODE_REF => files::inode_ref,
        ItemType::INODE_EXTREF => files::inode_extref,
        ItemType::INODE_ITEM => files::inode,
        ItemType::BLOCK_GROUP_ITEM => space::block_group,
        ItemType::CHUNK_ITEM => space::chunk_item,
        ItemType::DEV_ITEM => space::device,
        ItemType::DEV_EXTENT => space::dev_extent,
        ItemType::ROOT_ITEM => roots::root,
        ItemType::ROOT_REF | ItemType::ROOT_BACKREF => roots::root_ref,
        ItemType::EXTENT_ITEM | ItemType::METADATA_ITEM => extents::record,
        ItemType::TREE_BLOCK_REF | ItemType::SHARED_BLOCK_REF | ItemType::SHARED_DATA_REF => {
            extents::keyed_ref
        }
        ItemType::EXTENT_DATA_REF => extents::keyed_data_ref,
        ItemType::RAID_STRIPE => extents::raid_stripe,
        _ => return None,
    })
}

/// Every rule of a leaf, stopping at the first that is broken.
pub fn leaf(rules: &Rules, block: &[u8]) -> Verdict {
    let mut first = None;
    leaf_each(rules, block, |corrupt| {
        first = Some(corrupt);
        ControlFlow::Break(())
    });
    first.map_or(Ok(()), Err)
}

/// Every rule of a leaf, telling `found` of each broken one until it has heard enough.
pub fn leaf_each(
    rules: &Rules,
    block: &[u8],
    mut found: impl FnMut(Box<Corrupt>) -> ControlFlow<()>,
) {
    let Ok(header) = Header::parse(block) else { return };
    let leaf = Leaf { rules, header: &header, bytes: block };
    if let Err(corrupt) = leaf_whole(&leaf)
        && found(corrupt).is_break()
    {
        return;
    }
    let mut prev_key = Key::MIN;
    let mut end = u64::from(raw::leaf_space(rules.nodesize));
    let mut prev = None;
    for slot in 0..header.nritems {
        let head = match leaf_slot(&leaf, slot, prev_key, end) {
            Ok(head) => head,
            // Behind a bad head, positions mean nothing.
            Err(corrupt) => {
                let _ = found(corrupt);
                return;
            }
        };
        prev_key = head.key;
        end = head.offset.into();
        let data = raw::item_data(block, &head).unwrap_or(&[]);
        let item = Item {
            leaf: &leaf,
            rules,
            slot,
            at: raw::HEADER_SIZE as u64 + u64::from(head.offset),
            key: head.key,
            data,
            prev: prev.replace((head.key, data)),
        };
        if let Some(check) = rules_of(head.key.kind)
            && let Err(corrupt) = check(&item)
            && found(corrupt).is_break()
        {
            return;
        }
    }
}

/// A.1, rules 1 to 5.
fn leaf_whole(leaf: &Leaf<'_>) -> Verdict {
    let Header { level, nritems, owner, .. } = *leaf.header;
    if level != 0 {
        return leaf.plain(
            1,
            0,
            None,
            format_args!("invalid level for leaf, have {level} expect 0"),
        );
    }
    if !leaf.header.is_written() {
        return leaf.plain(2, 0, None, format_args!("invalid flag for leaf, WRITTEN not set"));
    }
    if nritems > 0 || leaf.header.is_reloc() {
        return Ok(());
    }
    let empty = format_args!("invalid root, root {owner} must never be empty");
    match owner {
        objectid::ROOT_TREE
        | objectid::CHUNK_TREE
        | objectid::DEV_TREE
        | objectid::FS_TREE
        | objectid::DATA_RELOC_TREE => leaf.plain(3, 0, None, empty),
        0 => leaf.plain(4, 0, None, format_args!("invalid owner, root 0 is not defined")),
        objectid::EXTENT_TREE if !leaf.rules.incompat.contains(Incompat::EXTENT_TREE_V2) => {
            leaf.plain(5, 0, None, empty)
        }
        _ => Ok(()),
    }
}

/// A.1, rules 6 to 9: order of keys, and data packed without holes.
fn leaf_slot(
    leaf: &Leaf<'_>,
    slot: u32,
    prev: Key,
    expected_end: u64,
) -> Result<ItemHead, Box<Corrupt>> {
    let index = usize::try_from(slot).unwrap_or(usize::MAX);
    let heads_end = (u64::from(slot) + 1) * raw::ITEM_HEAD_SIZE as u64;
    let Some(head) = raw::item_head(leaf.bytes, index) else {
        // More heads than the block has room for: the kernel's rule 9 catches it one slot later.
        let text = format_args!("slot overlaps with its data, item end {heads_end} data start 0");
        return Err(leaf.plain(9, slot, None, text).expect_err("plain always fails"));
    };
    let end = u64::from(head.offset) + u64::from(head.size);
    let space = u64::from(raw::leaf_space(leaf.rules.nodesize));
    let key = head.key;
    let verdict = if key <= prev {
        let text = format_args!("bad key order, prev {prev} current {key}");
        leaf.plain(6, slot, Some(key), text)
    } else if end != expected_end {
        let text = format_args!("unexpected item end, have {end} expect {expected_end}");
        leaf.plain(7, slot, Some(key), text)
    } else if end > space {
        let text = format_args!("slot end outside of leaf, have {end} expect range [0, {space}]");
        leaf.plain(8, slot, Some(key), text)
    } else if heads_end > u64::from(head.offset) {
        let start = head.offset;
        let text =
            format_args!("slot overlaps with its data, item end {heads_end} data start {start}");
        leaf.plain(9, slot, Some(key), text)
    } else {
        Ok(())
    };
    verdict.map(|()| head)
}

/// A.2: every rule of a node. Unlike the kernel, the last pointer is examined too.
pub fn node(rules: &Rules, block: &[u8]) -> Verdict {
    let Ok(header) = Header::parse(block) else { return Ok(()) };
    let Header { owner, bytenr, level, nritems, .. } = header;
    let fail = |rule, slot: Option<(u32, Key)>, rest: fmt::Arguments<'_>| -> Verdict {
        let corrupt = Corrupt {
            rule,
            block: bytenr,
            root: owner,
            slot: slot.map(|(slot, _)| slot),
            key: slot.map(|(_, key)| key),
            message: format!("corrupt node: root={owner} block={bytenr}{rest}"),
        };
        Err(corrupt.boxed())
    };
    if !header.is_written() {
        return fail(11, None, format_args!(" slot=0, invalid flag for node, WRITTEN not set"));
    }
    if !(1..raw::MAX_LEVEL).contains(&level) {
        let text = format_args!(" slot=0, invalid level for node, have {level} expect [1, 7]");
        return fail(12, None, text);
    }
    let capacity = raw::node_capacity(rules.nodesize);
    if !(1..=capacity).contains(&nritems) {
        let size = if nritems == 0 { "small" } else { "large" };
        let text = format_args!(", nritems too {size}, have {nritems} expect range [1,{capacity}]");
        return fail(13, None, text);
    }
    let mut prev: Option<Key> = None;
    for slot in 0..nritems {
        let index = usize::try_from(slot).unwrap_or(usize::MAX);
        let Some(pointer) = raw::pointer(block, index) else { break };
        let here = Some((slot, pointer.key));
        if pointer.block.0 == 0 {
            return fail(14, here, format_args!(" slot={slot}, invalid NULL node pointer"));
        }
        if !rules.aligned(pointer.block.0) {
            let (have, unit) = (pointer.block, rules.sectorsize);
            let text = format_args!(
                " slot={slot}, unaligned pointer, have {have} should be aligned to {unit}"
            );
            return fail(15, here, text);
        }
        if let Some(prev) = prev
            && prev >= pointer.key
        {
            let text = format_args!(
                " slot={}, bad key order, current {prev} next {}",
                slot.saturating_sub(1),
                pointer.key
            );
            return fail(16, here, text);
        }
        prev = Some(pointer.key);
    }
    Ok(())
}
