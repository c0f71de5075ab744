//! The log of fsyncs, replayed in memory: what a kernel would show after mounting (format: btrfs 15).
//!
//! An `fsync` writes no tree but a log: items of the inodes it was asked for, of their names, and of
//! whatever else must exist for those to make sense. A kernel puts them into the trees at the next
//! mount, read-only ones included, and so writes. Here the same is done beside the device:
//!
//! ```text
//! log trees --items--> Draft: a tree, and what is different from it
//!                        \--weave--> new blocks, in memory, at addresses that no chunk has
//!                                    (only what changed, up to the roots; the rest stays on disk)
//! ```
//!
//! Woven blocks have passed the tree checker like blocks that were read, so that readers above need
//! not know of them, and a log that leads to nonsense is refused like a damaged block.
//!
//! # What differs from a mount
//! Back references, allocation and quota are of no use to a reader and stay as they were. A kernel
//! stamps folders that lose a name during the replay with the time of the mount; here they keep theirs.

mod draft;
mod extents;
mod inodes;
mod links;
mod log;
mod names;
mod sums;
mod weave;

use crate::error::{Error, Result};
use crate::format::key::{ItemType, objectid};
use crate::format::root::Root;
use crate::format::superblock::{CompatRo, RootPointer};
use crate::fs::root_of;
use crate::tree::cursor::{Cursor, Tree};
use crate::tree::node::TreeBlock;
use crate::units::Logical;
use crate::volume::Volume;
use draft::Draft;
use inodes::Replay;
use log::Log;
use std::collections::BTreeMap;
use std::sync::Arc;
use varve_block::BlockDevice;
use weave::Weaver;

/// What a replay changed.
pub(crate) struct Replayed {
    /// Blocks in memory, by the addresses that pointers name them by.
    blocks: BTreeMap<Logical, Arc<TreeBlock>>,
    root: RootPointer,
}

/// Replays the log that the superblock names. Nothing is changed yet: see [`Volume::wear`].
///
/// # Errors
/// When a block of the log, or of a tree it changes, cannot be read; when the log contradicts itself or
/// the tree; when the file system has features that a replay might break.
pub(crate) async fn replay<D: BlockDevice>(volume: &Volume<D>) -> Result<Replayed> {
    match replay_all(volume).await {
        Ok(replayed) => Ok(replayed),
        Err(error) => {
            let message = "the log of what was fsynced after the last commit cannot be replayed \
                           (--nologreplay shows the last commit without it)";
            Err(Error::new(error.kind, message).at(error.place).because(error))
        }
    }
}

async fn replay_all<D: BlockDevice>(volume: &Volume<D>) -> Result<Replayed> {
    let unknown = volume.sb.compat_ro.difference(CompatRo::KNOWN);
    if !unknown.is_empty() {
        let bits = unknown.bits();
        let message = format!("unknown read-only compatible features 0x{bits:x}");
        return Err(Error::unsupported(message));
    }
    let mut weaver = Weaver::new(volume)?;
    let mut roots = Draft::new(volume, Tree::new(objectid::ROOT_TREE, volume.sb.tree_root()));
    let mut sums = match root_of(volume, objectid::CSUM_TREE).await? {
        Some((tree, _)) => Draft::new(volume, tree),
        None => return Err(Error::corrupt("there is no tree of checksums")),
    };
    let mut logs = log_roots(volume).await?;
    logs.reverse(); // as the kernel does; nothing should depend on it
    for (subvolume, tree) in logs {
        let Some((base, _)) = root_of(volume, subvolume).await? else {
            continue; // deleted: its log is void
        };
        let log = Log::read(volume, subvolume, tree).await?;
        let mut replay = Replay::new(volume, Draft::new(volume, base), &log);
        replay.all(&mut sums).await?;
        let woven = weaver.weave(&replay.draft).await?;
        point_to(&mut roots, &woven, weaver.generation()).await?;
    }
    if sums.is_changed() {
        let woven = weaver.weave(&sums).await?;
        point_to(&mut roots, &woven, weaver.generation()).await?;
    }
    let root = weaver.weave(&roots).await?.root;
    Ok(Replayed { blocks: weaver.finish(), root })
}

/// The subvolumes that have a log, and its root.
async fn log_roots<D: BlockDevice>(volume: &Volume<D>) -> Result<Vec<(u64, Tree)>> {
    let sb = &volume.sb;
    let generation = sb.generation.saturating_add(1);
    let root = RootPointer { block: sb.log_root, generation, level: sb.log_root_level };
    let tree = Tree::new(objectid::TREE_LOG, root);
    let first = crate::format::key::Key::new(objectid::TREE_LOG, ItemType::ROOT_ITEM, 0);
    let last = crate::format::key::Key { offset: u64::MAX, ..first };
    let mut cursor = Cursor::seek(volume, &tree, first).await?;
    let mut logs = Vec::new();
    while let Some(item) = cursor.next_to(last).await? {
        let subvolume = item.key().offset;
        if !objectid::is_file_tree(subvolume) {
            let message = format!("a log of tree {subvolume}, which holds no files");
            return Err(Error::corrupt(message));
        }
        let root = Root::parse(item.data()).map_err(|wrong| {
            Error::corrupt(format!("root item of the log of subvolume {subvolume}")).because(wrong)
        })?;
        let at = RootPointer { block: root.bytenr, generation: root.generation, level: root.level };
        logs.push((subvolume, Tree::new(objectid::TREE_LOG, at)));
    }
    Ok(logs)
}

/// Puts the new root of `tree` into its root item.
async fn point_to<D: BlockDevice>(
    roots: &mut Draft<'_, D>,
    tree: &Tree,
    generation: u64,
) -> Result<()> {
    let last = crate::format::key::Key::new(tree.id, ItemType::ROOT_ITEM, u64::MAX);
    let item = roots.last(last).await?;
    let Some((key, data)) = item.filter(|(key, _)| key.objectid == tree.id) else {
        return Err(Error::corrupt(format!("tree {} has no root item", tree.id)));
    };
    let mut root = Root::parse(&data)
        .map_err(|wrong| Error::corrupt(format!("root item of tree {}", tree.id)).because(wrong))?;
    if root.is_v2() {
        root.generation_v2 = generation;
    }
    root.bytenr = tree.root.block;
    root.level = tree.root.level;
    root.generation = generation;
    roots.put(key, root.encode().to_vec());
    Ok(())
}

impl<D: BlockDevice> Volume<D> {
    /// From here on the trees are as after the replay, in the transaction that a kernel would have
    /// committed it in.
    pub(crate) fn wear(&mut self, replayed: Replayed) {
        self.sb.root = replayed.root.block;
        self.sb.root_level = replayed.root.level;
        self.sb.generation = replayed.root.generation;
        self.made = replayed.blocks;
    }
}
