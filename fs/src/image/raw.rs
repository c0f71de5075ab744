//! Trees, walked without believing them: what is readable is shown, what is not is passed over. For
//! tools whose work is not to judge.

use super::container::Container;
use crate::error::Result;
use crate::format::block::{self, Header, MAX_LEVEL};
use crate::format::key::Key;
use crate::format::superblock::RootPointer;
use crate::tree::build::{self, NewItem, Stamp};
use crate::units::Logical;
use std::collections::BTreeSet;
use varve_block::BlockDevice;

/// Blocks that one walk visits at most: a tree of 16 GiB.
const BLOCKS_MAX: usize = 1 << 20;

/// Calls `visit` with every block of the tree at `root` that is where its parent says and of the level
/// that it should be; leaves and nodes, each once.
pub(crate) async fn walk_blocks<D: BlockDevice>(
    dump: &Container<D>,
    nodesize: u32,
    root: RootPointer,
    mut visit: impl FnMut(Logical, &[u8]),
) -> Result<()> {
    let mut seen = BTreeSet::new();
    let mut todo = vec![(root.block, root.level)];
    let mut bytes = vec![0; nodesize as usize];
    while let Some((at, level)) = todo.pop() {
        if level >= MAX_LEVEL || seen.len() == BLOCKS_MAX || !seen.insert(at) {
            continue;
        }
        dump.read(at, &mut bytes).await?;
        let Ok(header) = Header::parse(&bytes) else { continue };
        if header.bytenr != at || header.level != level {
            continue;
        }
        visit(at, &bytes);
        if let Some(below) = level.checked_sub(1) {
            let pointers =
                (0..header.nritems as usize).map_while(|slot| block::pointer(&bytes, slot));
            todo.extend(pointers.map(|pointer| (pointer.block, below)));
        }
    }
    Ok(())
}

/// A leaf with each item changed or dropped, its header kept; unsealed. `None` for a node, and for
/// what would be left without items or with more than fits.
pub(crate) fn repack(
    leaf: &[u8],
    mut change: impl FnMut(Key, &[u8]) -> Option<NewItem>,
) -> Option<Vec<u8>> {
    let header = Header::parse(leaf).ok().filter(|header| header.level == 0)?;
    let nodesize = u32::try_from(leaf.len()).ok()?;
    let items: Vec<NewItem> =
        block::items(leaf).filter_map(|(key, data)| change(key, data)).collect();
    if items.is_empty() || !build::fits_leaf(nodesize, &items) {
        return None;
    }
    let stamp = Stamp {
        fsid: header.fsid,
        chunk_tree_uuid: header.chunk_tree_uuid,
        bytenr: header.bytenr,
        generation: header.generation,
        owner: header.owner,
    };
    Some(build::leaf(&stamp, nodesize, &items))
}
