//! A sprout without its seeds: in a dump, where several devices become one, what carries the uuid of a
//! seed carries the file system's own. The kernel's tools leave it, and cannot restore such a dump.

use crate::format::Uuid;
use crate::format::block::{HEADER_SIZE, Header, ItemHead, item_head};
use crate::format::chunk::DevItem;
use crate::format::key::{ItemType, objectid};
use crate::units::to_usize;
use std::collections::BTreeMap;

/// Where the uuid stands in a block's header.
const FSID: std::ops::Range<usize> = 32..48;

/// Makes a block, whose checksum is wrong afterwards, one of the file system `own`; `seeds` are uuids by
/// device number.
pub(super) fn graft(block: &mut [u8], own: Uuid, seeds: &BTreeMap<u64, Uuid>) {
    let Ok(header) = Header::parse(block) else { return };
    let of_seed = |fsid: Uuid| seeds.values().any(|seed| *seed == fsid);
    if of_seed(header.fsid)
        && let Some(field) = block.get_mut(FSID)
    {
        field.copy_from_slice(own.as_bytes());
    }
    if (header.owner, header.level) != (objectid::CHUNK_TREE, 0) {
        return;
    }
    for slot in 0..header.nritems as usize {
        let Some(ItemHead { key, offset, size }) = item_head(block, slot) else { return };
        let start = HEADER_SIZE + to_usize(offset.into());
        let Some(data) = block.get_mut(start..start + to_usize(size.into())) else { continue };
        if key.kind == ItemType::DEV_ITEM
            && let Ok(device) = DevItem::parse(data)
            && of_seed(device.fsid)
        {
            data.copy_from_slice(DevItem { fsid: own, ..device }.encode().as_ref());
        }
    }
}
