//! Blocks whose header names another tree than their parent's does.
//!
//! That is right where a snapshot was taken: the parent was copied, and the child was not, which still is
//! the first tree's. Then that tree still refers to it, or a block that was its does: the child's record
//! says which. A header that no record explains is one that somebody changed: the keys of all
//! references below hang on it (format: btrfs 12.4, 24.2).

use super::finding::Code;
use super::roots::Roots;
use super::run::Run;
use crate::error::{Place, Result};
use crate::format::block::Header;
use crate::format::extent::{Extent, Reference};
use crate::format::key::{ItemType, Key, objectid};
use crate::tree::cursor::{Cursor, Tree};
use crate::tree::node::TreeBlock;
use crate::units::Logical;
use crate::volume::Volume;
use varve_block::BlockDevice;

/// A block that its parent does not explain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Strange {
    at: Logical,
    owner: u64,
    tree: u64,
}

/// As many are looked at; more of them are found by their references anyhow.
const STRANGE_MAX: usize = 1 << 16;

/// Notes a block of a file tree that was reached from a parent with the header owner `above`.
pub(super) fn note(strange: &mut Vec<Strange>, tree: u64, block: &TreeBlock, above: Option<u64>) {
    let header = block.header();
    let other = above.is_some_and(|above| above != header.owner);
    let told = objectid::is_file_tree(tree) && objectid::is_file_tree(header.owner);
    if other && told && !header.is_reloc() && strange.len() < STRANGE_MAX {
        strange.push(Strange { at: header.bytenr, owner: header.owner, tree });
    }
}

/// Looks up the records of the blocks that were noted.
pub(super) async fn judge<D: BlockDevice>(run: &mut Run<'_, '_, D>, roots: &Roots) {
    let strange = std::mem::take(&mut run.strange);
    let Some(extents) = roots.tree(objectid::EXTENT_TREE) else { return };
    for Strange { at, owner, tree } in strange {
        // Of a block whose own references are keyed by its address, the owner counts no more.
        if run.space.full_backref.has(at.0) || !run.space.recorded.has(at.0) {
            continue;
        }
        // Where the record cannot be read, that was told.
        if let Ok(false) = explained(run.reader.volume, &extents, at, owner).await {
            let size = run.reader.volume.sb.nodesize;
            let place = Place { root: Some(tree), logical: Some(at), ..Place::default() };
            let text = format!(
                "owner ref check failed [{at} {size}]: its header names tree {owner}, which does \
                 not refer to it"
            );
            run.findings.add(Code::BlockParent, place, text);
        }
    }
}

/// Whether the record of the block at `at` has a reference by tree `owner`, or by a block of it.
async fn explained<D: BlockDevice>(
    volume: &Volume<D>,
    extents: &Tree,
    at: Logical,
    owner: u64,
) -> Result<bool> {
    let key = |kind, offset| Key::new(at.0, kind, offset);
    let mut cursor = Cursor::seek(volume, extents, key(ItemType::EXTENT_ITEM, 0)).await?;
    let last = key(ItemType::SHARED_DATA_REF, u64::MAX);
    while let Some(item) = cursor.next_to(last).await? {
        let key = item.key();
        let references = match key.kind {
            ItemType::EXTENT_ITEM | ItemType::METADATA_ITEM => {
                Extent::parse(key.kind, item.data()).map_or_else(|_| Vec::new(), |e| e.inline)
            }
            ItemType::TREE_BLOCK_REF => vec![Reference::TreeBlock { root: key.offset }],
            ItemType::SHARED_BLOCK_REF => {
                vec![Reference::SharedBlock { parent: Logical(key.offset) }]
            }
            _ => continue,
        };
        for reference in references {
            let explains = match reference {
                Reference::TreeBlock { root } => root == owner,
                Reference::SharedBlock { parent } => {
                    owner_of(volume, parent).await.is_none_or(|of| of == owner)
                }
                _ => false,
            };
            if explains {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// What the header at `at` names; `None` when no copy can be read.
async fn owner_of<D: BlockDevice>(volume: &Volume<D>, at: Logical) -> Option<u64> {
    for mirror in 1..=volume.mirrors(at).ok()? {
        let mut bytes = vec![0; volume.rules.nodesize as usize];
        if volume.read_mirror(at, mirror, &mut bytes).await.is_ok()
            && let Ok(header) = Header::parse(&bytes)
            && header.bytenr == at
        {
            return Some(header.owner);
        }
    }
    None
}
