//! From inodes back to paths: every name that leads to one (format: btrfs 10.2, 12).

use crate::error::Result;
use crate::format::key::objectid;
use crate::fs::Fs;
use crate::inode::InodeId;
use std::collections::BTreeMap;
use varve_block::BlockDevice;

/// Folders that a path is followed up through. The kernel makes none deeper than its longest path.
const DEPTH_MAX: usize = 4096;

impl<D: BlockDevice> Fs<D> {
    /// Every path of an inode inside its own tree, one for each hard link, without a first slash. The
    /// root directory has one that is empty. An inode without names, an orphan, has none.
    ///
    /// # Errors
    /// When the tree cannot be read there.
    pub async fn paths_in_tree(&self, id: InodeId) -> Result<Vec<Vec<u8>>> {
        if id == InodeId::root_of(id.root) {
            return Ok(vec![Vec::new()]);
        }
        let mut paths = Vec::new();
        for (parent, _, name) in self.names(id).await? {
            if let Some(folder) = self.folder_in_tree(id.root, parent).await? {
                paths.push(joined(folder, &name));
            }
        }
        Ok(paths)
    }

    /// The path of a directory inside its tree; `None` when nothing leads to it.
    async fn folder_in_tree(&self, root: u64, ino: u64) -> Result<Option<Vec<u8>>> {
        let mut parts: Vec<Vec<u8>> = Vec::new();
        let mut at = ino;
        for _ in 0..DEPTH_MAX {
            if at == objectid::FIRST_FREE {
                parts.reverse();
                return Ok(Some(parts.join(&b'/')));
            }
            let names = self.names(InodeId { root, ino: at }).await?;
            let Some((parent, _, name)) = names.into_iter().next() else { return Ok(None) };
            parts.push(name);
            at = parent;
        }
        Ok(None)
    }

    /// Where every file tree hangs, as a path from the top level without a first slash. Trees that
    /// hang nowhere, deleted ones above all, are absent.
    ///
    /// # Errors
    /// When the root tree cannot be read. A subvolume whose path cannot be read is absent too.
    pub async fn subvolume_paths(&self) -> Result<BTreeMap<u64, Vec<u8>>> {
        let all = self.subvolumes().await?;
        let mut known = BTreeMap::from([(objectid::FS_TREE, Vec::new())]);
        // Each round finds those that hang in what is known; as many rounds as the deepest is deep.
        loop {
            let before = known.len();
            for one in &all {
                let Some((tree, folder, name)) = &one.parent else { continue };
                if known.contains_key(&one.id) || !known.contains_key(tree) {
                    continue;
                }
                let Ok(Some(inside)) = self.folder_in_tree(*tree, *folder).await else { continue };
                let above = known.get(tree).cloned().unwrap_or_default();
                known.insert(one.id, joined(joined(above, &inside), name));
            }
            if known.len() == before {
                return Ok(known);
            }
        }
    }
}

/// `folder/name`, where either may be empty.
pub(crate) fn joined(mut folder: Vec<u8>, name: &[u8]) -> Vec<u8> {
    if !folder.is_empty() && !name.is_empty() {
        folder.push(b'/');
    }
    folder.extend_from_slice(name);
    folder
}
