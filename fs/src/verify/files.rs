//! Items of file trees, and data checksums: A.3 to A.6 and A.10.

use super::{Item, Verdict};
use crate::csum::name_hash;
use crate::format::block::{ITEM_HEAD_SIZE, leaf_space};
use crate::format::dir::{DIR_ITEM_SIZE, DirItemHead, ENCRYPTED, XATTR};
use crate::format::file_extent::{Fields, INLINE, INLINE_HEAD, REGULAR_SIZE};
use crate::format::inode::{
    FileType, INODE_EXTREF_SIZE, INODE_REF_SIZE, Inode, InodeFlags, NAME_MAX, S_IFMT,
    inode_extref_head, inode_ref_head,
};
use crate::format::key::{ItemType, Key, objectid};
use crate::units::round_up;

const FIRST: u64 = objectid::FIRST_FREE;
const LAST: u64 = objectid::LAST_FREE;

/// Rule 18: an inode's items stand together, so the one before is the same inode's.
fn same_inode_before(item: &Item<'_>) -> Verdict {
    let Some((prev, _)) = item.prev else { return Ok(()) };
    if !objectid::is_file_tree(item.leaf.header.owner) || prev.objectid == item.key.objectid {
        return Ok(());
    }
    let (have, expect) = (prev.objectid, item.key.objectid);
    item.of_inode(18, format_args!("invalid previous key objectid, have {have} expect {expect}"))
}

pub(super) fn extent_data(item: &Item<'_>) -> Verdict {
    let unit = item.sectorsize();
    let start = item.key.offset;
    if !item.rules.aligned(start) {
        let text = format_args!(
            "unaligned file_offset for file extent, have {start} should be aligned to {unit}"
        );
        return item.of_file(17, text);
    }
    same_inode_before(item)?;
    let size = item.data.len();
    let Some(fields) = Fields::decode(item.data) else {
        let text = format_args!("invalid item size, have {size} expect [21, 4096)");
        return item.of_file(19, text);
    };
    if fields.kind > 2 {
        let have = fields.kind;
        let text = format_args!("invalid type for file extent, have {have} expect range [0, 2]");
        return item.of_file(20, text);
    }
    if fields.compression > 3 {
        let have = fields.compression;
        let text =
            format_args!("invalid compression for file extent, have {have} expect range [0, 3]");
        return item.of_file(21, text);
    }
    if fields.encryption != 0 {
        let have = fields.encryption;
        let text = format_args!("invalid encryption for file extent, have {have} expect 0");
        return item.of_file(22, text);
    }
    if fields.kind == INLINE {
        return inline_extent(item, &fields);
    }
    let Some(place) = fields.place else {
        let text = format_args!(
            "invalid item size for reg/prealloc file extent, have {size} expect {REGULAR_SIZE}"
        );
        return item.of_file(25, text);
    };
    let aligned = [
        (26, "ram_bytes", fields.ram_bytes),
        (27, "disk_bytenr", place.disk_bytenr.0),
        (28, "disk_num_bytes", place.disk_num_bytes),
        (29, "offset", place.offset),
        (30, "num_bytes", place.num_bytes),
    ];
    for (rule, field, have) in aligned {
        if !item.rules.aligned(have) {
            let text = format_args!(
                "invalid {field} for file extent, have {have}, should be aligned to {unit}"
            );
            return item.of_file(rule, text);
        }
    }
    if start.checked_add(place.num_bytes).is_none() {
        let len = place.num_bytes;
        let text =
            format_args!("extent end overflow, have file offset {start} extent num bytes {len}");
        return item.of_file(31, text);
    }
    after_previous_extent(item)
}

/// Rules 23 and 24.
fn inline_extent(item: &Item<'_>, fields: &Fields) -> Verdict {
    if item.key.offset != 0 {
        let have = item.key.offset;
        let text = format_args!("invalid file_offset for inline file extent, have {have} expect 0");
        return item.of_file(23, text);
    }
    let ram = fields.ram_bytes;
    if fields.compression == 0 && ram.checked_add(INLINE_HEAD as u64) != Some(item.size()) {
        let expect = item.size().saturating_sub(INLINE_HEAD as u64);
        let text = format_args!(
            "invalid ram_bytes for uncompressed inline extent, have {ram} expect {expect}"
        );
        return item.of_file(24, text);
    }
    Ok(())
}

/// Rule 32, told of the slot before.
fn after_previous_extent(item: &Item<'_>) -> Verdict {
    let Some(before) = item.before() else { return Ok(()) };
    let Key { objectid, kind, offset } = before.key;
    if kind != ItemType::EXTENT_DATA || objectid != item.key.objectid {
        return Ok(());
    }
    let Some(fields) = Fields::decode(before.data) else { return Ok(()) };
    let len = match fields.place {
        Some(place) if fields.kind != INLINE => place.num_bytes,
        _ => round_up(fields.ram_bytes, item.sectorsize()).unwrap_or(u64::MAX),
    };
    let end = offset.saturating_add(len);
    let next = item.key.offset;
    if end > next {
        let text = format_args!(
            "file extent end range ({end}) goes beyond start offset ({next}) of the next file \
             extent"
        );
        return before.of_file(32, text);
    }
    Ok(())
}

pub(super) fn csum(item: &Item<'_>) -> Verdict {
    if item.rules.changing_csums {
        return Ok(());
    }
    let unit = item.sectorsize();
    let Key { objectid, offset, .. } = item.key;
    if objectid != objectid::EXTENT_CSUM {
        let expect = objectid::EXTENT_CSUM;
        let text =
            format_args!("invalid key objectid for csum item, have {objectid} expect {expect}");
        return item.plain(34, text);
    }
    if !item.rules.aligned(offset) {
        let text = format_args!(
            "unaligned key offset for csum item, have {offset} should be aligned to {unit}"
        );
        return item.plain(35, text);
    }
    let each = item.rules.csum.size() as u64;
    let size = item.size();
    if !size.is_multiple_of(each) {
        let text = format_args!(
            "unaligned item size for csum item, have {size} should be aligned to {each}"
        );
        return item.plain(36, text);
    }
    if let Some(before) = item.before()
        && before.key.kind == ItemType::EXTENT_CSUM
    {
        let end = before.key.offset.saturating_add((before.size() / each).saturating_mul(unit));
        if end > offset {
            let text = format_args!(
                "csum end range ({end}) goes beyond the start range ({offset}) of the next csum \
                 item"
            );
            return before.plain(37, text);
        }
    }
    Ok(())
}

pub(super) fn dir_entries(item: &Item<'_>) -> Verdict {
    same_inode_before(item)?;
    let size = item.data.len();
    let mut rest = item.data;
    while !rest.is_empty() {
        let at = size - rest.len();
        let Some((head, body)) = DirItemHead::parse(rest) else {
            let have = at + DIR_ITEM_SIZE;
            let text =
                format_args!("dir item header crosses item boundary, have {have} boundary {size}");
            return item.of_inode(39, text);
        };
        entry_location(item, &head)?;
        entry_lengths(item, &head)?;
        let len = usize::from(head.name_len) + usize::from(head.data_len);
        let Some((_, after)) = body.split_at_checked(len) else {
            let have = at + DIR_ITEM_SIZE + len;
            let text =
                format_args!("dir item data crosses item boundary, have {have} boundary {size}");
            return item.of_inode(52, text);
        };
        let name = body.get(..usize::from(head.name_len)).unwrap_or(&[]);
        if item.key.kind != ItemType::DIR_INDEX && name_hash(name) != item.key.offset {
            let (have, expect) = (name_hash(name), item.key.offset);
            let text = format_args!(
                "name hash mismatch with key, have 0x{have:016x} expect 0x{expect:016x}"
            );
            return item.of_inode(53, text);
        }
        rest = after;
    }
    Ok(())
}

/// Rules 40 to 45.
fn entry_location(item: &Item<'_>, head: &DirItemHead) -> Verdict {
    let Key { objectid: id, kind, offset } = head.location;
    match kind {
        ItemType::ROOT_ITEM if id == 0 => {
            item.of_inode(40, format_args!("invalid location key root id 0"))
        }
        ItemType::ROOT_ITEM if !objectid::is_file_tree(id) => {
            let text =
                format_args!("invalid location key objectid, have {id} expect [{FIRST}, {LAST}]");
            item.of_inode(41, text)
        }
        ItemType::ROOT_ITEM => Ok(()),
        ItemType::INODE_ITEM | ItemType::UNTYPED if item.key.kind == ItemType::XATTR_ITEM => {
            if head.location == Key::MIN {
                return Ok(());
            }
            item.of_inode(
                44,
                format_args!("invalid location key for xattr, have {}", head.location),
            )
        }
        ItemType::INODE_ITEM | ItemType::UNTYPED => {
            if !is_inode_number(id) {
                let text = format_args!(
                    "invalid location key objectid: has {id} expect {} or [{FIRST}, {LAST}] or {}",
                    objectid::ROOT_TREE_DIR,
                    objectid::FREE_INO
                );
                return item.of_inode(42, text);
            }
            if offset != 0 {
                let text = format_args!("invalid location key offset:has {offset} expect 0");
                return item.of_inode(43, text);
            }
            Ok(())
        }
        ItemType(other) => {
            let text = format_args!("invalid location key type, have {other}, expect 132 or 1");
            item.of_inode(45, text)
        }
    }
}

/// Rules 46 to 51, and a name that is not there at all, which the kernel lets pass.
fn entry_lengths(item: &Item<'_>, head: &DirItemHead) -> Verdict {
    let kind = head.kind & !ENCRYPTED;
    let is_xattr = item.key.kind == ItemType::XATTR_ITEM;
    if !(1..=XATTR).contains(&kind) {
        let text = format_args!("invalid dir item type, have {kind} expect (0, 9)");
        return item.of_inode(46, text);
    }
    if is_xattr && kind != XATTR {
        let text = format_args!("invalid dir item type for XATTR key, have {kind} expect {XATTR}");
        return item.of_inode(47, text);
    }
    if !is_xattr && kind == XATTR {
        return item.of_inode(48, format_args!("xattr dir type found for non-XATTR key"));
    }
    let (name, data) = (u64::from(head.name_len), u64::from(head.data_len));
    if name > NAME_MAX as u64 {
        let text = format_args!("dir item name len too long, have {name} max {NAME_MAX}");
        return item.of_inode(49, text);
    }
    if name == 0 {
        return item.of_inode(49, format_args!("dir item name len too short, have 0 min 1"));
    }
    let max = u64::from(leaf_space(item.rules.nodesize))
        .saturating_sub((ITEM_HEAD_SIZE + DIR_ITEM_SIZE) as u64);
    if name + data > max {
        let have = name + data;
        let text = format_args!("dir item name and data len too long, have {have} max {max}");
        return item.of_inode(50, text);
    }
    if data != 0 && !is_xattr {
        let text = format_args!("dir item with invalid data len, have {data} expect 0");
        return item.of_inode(51, text);
    }
    Ok(())
}

pub(super) fn inode_ref(item: &Item<'_>) -> Verdict {
    same_inode_before(item)?;
    let size = item.data.len();
    if size <= INODE_REF_SIZE {
        let space = leaf_space(item.rules.nodesize);
        let text =
            format_args!("invalid item size, have {size} expect ({INODE_REF_SIZE}, {space})");
        return item.of_inode(55, text);
    }
    let end = item.at + item.size();
    let mut rest = item.data;
    while !rest.is_empty() {
        let ptr = end - rest.len() as u64;
        let Some((len, body)) = inode_ref_head(rest) else {
            let text = format_args!(
                "inode ref overflow, ptr {ptr} end {end} inode_ref_size {INODE_REF_SIZE}"
            );
            return item.of_inode(56, text);
        };
        if len == 0 || usize::from(len) > NAME_MAX {
            let text =
                format_args!("invalid inode ref name length, has {len} expect [1, {NAME_MAX}]");
            return item.of_inode(57, text);
        }
        let Some((_, after)) = body.split_at_checked(usize::from(len)) else {
            let text = format_args!("inode ref overflow, ptr {ptr} end {end} namelen {len}");
            return item.of_inode(58, text);
        };
        rest = after;
    }
    Ok(())
}

/// Rules 59 and 60; a name's length is tested as in INODE_REF, which the kernel leaves out.
pub(super) fn inode_extref(item: &Item<'_>) -> Verdict {
    same_inode_before(item)?;
    let end = item.at + item.size();
    let mut rest = item.data;
    loop {
        let ptr = end - rest.len() as u64;
        let Some((len, body)) = inode_extref_head(rest) else {
            let text = format_args!(
                "inode extref overflow, ptr {ptr} end {end} inode_extref size {INODE_EXTREF_SIZE}"
            );
            return item.of_inode(59, text);
        };
        let name = body.split_at_checked(usize::from(len));
        let Some((_, after)) = name.filter(|(name, _)| (1..=NAME_MAX).contains(&name.len())) else {
            let text = format_args!("inode extref overflow, ptr {ptr} end {end} namelen {len}");
            return item.of_inode(60, text);
        };
        if after.is_empty() {
            return Ok(());
        }
        rest = after;
    }
}

/// Inode numbers, and the two odd objects that have inodes in the root tree.
fn is_inode_number(id: u64) -> bool {
    (FIRST..=LAST).contains(&id) || id == objectid::ROOT_TREE_DIR || id == objectid::FREE_INO
}

const KNOWN_FLAGS: u64 = 0xFFF | InodeFlags::ROOT_ITEM_INIT.bits();

pub(super) fn inode(item: &Item<'_>) -> Verdict {
    let Key { objectid: id, offset, .. } = item.key;
    if !is_inode_number(id) {
        let text = format_args!(
            "invalid key objectid: has {id} expect {} or [{FIRST}, {LAST}] or {}",
            objectid::ROOT_TREE_DIR,
            objectid::FREE_INO
        );
        return item.plain(95, text);
    }
    if offset != 0 {
        return item.of_inode(96, format_args!("invalid key offset: has {offset} expect 0"));
    }
    let Ok(inode) = Inode::parse(item.data) else {
        let (has, expect) = (item.size(), Inode::SIZE);
        return item.plain(97, format_args!("invalid item size: has {has} expect {expect}"));
    };
    let max = item.rules.generation_max;
    if inode.generation > max {
        let has = inode.generation;
        let text = format_args!("invalid inode generation: has {has} expect (0, {max}]");
        return item.of_inode(98, text);
    }
    if inode.transid > max {
        let has = inode.transid;
        let text = format_args!("invalid inode transid: has {has} expect [0, {max}]");
        return item.of_inode(99, text);
    }
    let mode = inode.mode;
    let unknown = mode & !(S_IFMT | 0o7777);
    if unknown != 0 {
        return item.of_inode(100, format_args!("unknown mode bit detected: 0x{unknown:x}"));
    }
    if inode.file_type() == FileType::Unknown {
        let text = format_args!("invalid mode: has 0{mode:o} expect valid S_IF* bit(s)");
        return item.of_inode(101, text);
    }
    if inode.file_type() == FileType::Directory && inode.nlink > 1 {
        let has = inode.nlink;
        let text = format_args!("invalid nlink: has {has} expect no more than 1 for dir");
        return item.of_inode(102, text);
    }
    let flags = inode.flags.bits();
    let unknown = flags & u64::from(u32::MAX) & !KNOWN_FLAGS;
    if unknown != 0 {
        return item.of_inode(103, format_args!("unknown incompat flags detected: 0x{unknown:x}"));
    }
    let unknown = (flags >> 32) & !(InodeFlags::VERITY.bits() >> 32);
    if item.rules.writable && unknown != 0 {
        let text =
            format_args!("unknown ro-compat flags detected on writeable mount: 0x{unknown:x}");
        return item.of_inode(104, text);
    }
    Ok(())
}
