//! What is in the log: inodes that were fsynced since the last commit, and their names as far as the
//! log has them.

use super::reader::Inspector;
use crate::format::inode::{Inode, InodeRef};
use crate::format::key::{ItemType, objectid};
use std::collections::BTreeMap;
use varve_block::BlockDevice;

/// The log of one file tree.
#[derive(Debug)]
pub struct LogTree {
    pub subvolume: u64,
    pub inodes: Vec<LogEntry>,
}

/// One inode that a replay would bring back.
#[derive(Clone, Default, Debug)]
pub struct LogEntry {
    pub ino: u64,
    /// `None` when the log holds items of the inode but not itself.
    pub inode: Option<Inode>,
    /// Parent directory and name.
    pub names: Vec<(u64, Vec<u8>)>,
    /// File extents in the log.
    pub extents: u64,
}

impl LogEntry {
    /// Directories are logged for their names, and inodes of generation 0 only so that they exist.
    pub fn has_data(&self) -> bool {
        self.extents > 0 || self.inode.is_some_and(|inode| inode.generation != 0)
    }
}

impl<D: BlockDevice> Inspector<D> {
    /// The logs, one for every file tree that has one. What cannot be read is missing.
    pub async fn log(&self) -> Vec<LogTree> {
        let roots = self.log_roots().await;
        let mut trees = Vec::new();
        for root in roots.into_iter().filter(|root| root.id == objectid::TREE_LOG) {
            let mut inodes: BTreeMap<u64, LogEntry> = BTreeMap::new();
            for (key, data) in self.items(root.root).await {
                if key.objectid == objectid::EXTENT_CSUM {
                    continue;
                }
                let entry = inodes.entry(key.objectid).or_default();
                entry.ino = key.objectid;
                match key.kind {
                    ItemType::INODE_ITEM => entry.inode = Inode::parse(&data).ok(),
                    ItemType::EXTENT_DATA => entry.extents += 1,
                    ItemType::INODE_REF => entry.names.extend(
                        InodeRef::each(&data, key.offset)
                            .flatten()
                            .map(|name| (name.parent, name.name.to_vec())),
                    ),
                    ItemType::INODE_EXTREF => entry.names.extend(
                        InodeRef::each_ext(&data)
                            .flatten()
                            .map(|name| (name.parent, name.name.to_vec())),
                    ),
                    _ => (),
                }
            }
            trees.push(LogTree { subvolume: root.offset, inodes: inodes.into_values().collect() });
        }
        trees
    }
}
