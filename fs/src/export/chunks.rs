//! The chunk tree of a file system to be rescued.

use super::scan::{BadBlocks, Scan};
use crate::error::{Error, Result};
use crate::format::chunk::{Chunk, DevItem};
use crate::format::key::{ItemType, Key, objectid};
use crate::seeds;
use crate::tree::cursor::Tree;
use crate::units::Logical;
use crate::volume::Volume;
use varve_block::BlockDevice;

/// From the superblock's chunks to all of them.
///
/// # Errors
/// When a block of the chunk tree is lost: what it held would be missed later, file by file.
pub(super) async fn from_tree<D: BlockDevice>(volume: &mut Volume<D>) -> Result<()> {
    let system = volume.sb.sys_chunks().map_err(|wrong| Error::corrupt(wrong.to_string()))?;
    for (start, chunk) in system {
        volume.chunks().borrow_mut().insert(start, chunk)?;
    }
    let tree = Tree { id: objectid::CHUNK_TREE, root: volume.sb.chunk_tree_root() };
    let bad = BadBlocks::default();
    let mut scan = Scan::seek(volume, &bad, &tree, Key::MIN).await;
    let mut devices = Vec::new();
    while let Some(item) = scan.next_to(Key::MAX).await {
        if item.key().kind == ItemType::DEV_ITEM {
            devices.extend(DevItem::parse(item.data()));
        }
        if item.key().kind == ItemType::CHUNK_ITEM
            && let Ok(chunk) = Chunk::parse(item.data())
        {
            // One that overlaps another is left out: the first word counts.
            let _ = volume.chunks().borrow_mut().insert(Logical(item.key().offset), chunk);
        }
    }
    if let Some(met) = scan.gaps.first() {
        return Err(Error::corrupt(format!("the chunk tree: {}", met.gap.why)));
    }
    drop(scan);
    seeds::learn(volume, &devices);
    Ok(())
}
