//! From inode numbers to paths, for the findings that concern files.

use super::finding::Finding;
use super::roots::Roots;
use crate::format::inode::InodeRef;
use crate::format::key::{ItemType, Key, objectid};
use crate::tree::cursor::{Cursor, Tree};
use crate::volume::Volume;
use std::collections::BTreeMap;
use varve_block::BlockDevice;

/// Names of one inode that are followed: a file may have 65535.
const NAMES_MAX: usize = 16;
/// Directories between a file and the top of its tree, and trees in trees.
const DEPTH_MAX: usize = 256;
/// Findings whose paths are looked up.
const FINDINGS_MAX: usize = 10_000;

/// Finds the paths of the files that `found` is about, as far as the damage lets it.
pub(super) async fn fill<D: BlockDevice>(volume: &Volume<D>, roots: &Roots, found: &mut [Finding]) {
    let mut paths = Paths { volume, roots, known: BTreeMap::new() };
    let of_files = found.iter_mut().filter(|f| f.place.root.is_some() && f.place.inode.is_some());
    for finding in of_files.take(FINDINGS_MAX) {
        if let (Some(root), Some(inode)) = (finding.place.root, finding.place.inode) {
            let first = (root, inode);
            finding.paths = paths.of(root, inode).await;
            for file in &finding.files {
                if (file.root, file.inode) != first {
                    finding.paths.append(&mut paths.of(file.root, file.inode).await);
                }
            }
        }
    }
}

/// A parent and the name in it.
type Name = (u64, Vec<u8>);

pub(super) struct Paths<'a, D: BlockDevice> {
    volume: &'a Volume<D>,
    roots: &'a Roots,
    /// First names by tree and inode: parent and name.
    known: BTreeMap<(u64, u64), Vec<Name>>,
}

impl<D: BlockDevice> Paths<'_, D> {
    /// Every path of an inode, from the top of the file system.
    pub(super) async fn of(&mut self, root: u64, inode: u64) -> Vec<String> {
        if !objectid::is_file_tree(root) {
            return Vec::new();
        }
        let prefix = self.tree_path(root).await;
        if inode == objectid::FIRST_FREE {
            return vec![if prefix.is_empty() { "/".into() } else { text(&prefix) }];
        }
        let mut paths = Vec::new();
        for (parent, name) in self.names(root, inode).await {
            let Some(dir) = self.dir_path(root, parent).await else { continue };
            paths.push(text(&[&prefix[..], &dir, b"/", &name].concat()));
        }
        paths
    }

    /// Where a tree hangs: empty for the top one.
    async fn tree_path(&mut self, root: u64) -> Vec<u8> {
        let mut path = Vec::new();
        let mut at = root;
        for _ in 0..DEPTH_MAX {
            let Some(((parent, _), tie)) =
                self.roots.backrefs.iter().find(|((_, child), _)| *child == at)
            else {
                break;
            };
            let (parent, dir, name) = (*parent, tie.dir, tie.name.clone());
            let Some(above) = self.dir_path(parent, dir).await else { break };
            path = [&above[..], b"/", &name, &path].concat();
            at = parent;
        }
        path
    }

    /// A directory's path inside its tree; `None` if it does not lead to the top.
    async fn dir_path(&mut self, root: u64, dir: u64) -> Option<Vec<u8>> {
        let mut path = Vec::new();
        let mut at = dir;
        for _ in 0..DEPTH_MAX {
            if at == objectid::FIRST_FREE {
                return Some(path);
            }
            let (parent, name) = self.names(root, at).await.into_iter().next()?;
            path = [b"/", &name[..], &path].concat();
            at = parent;
        }
        None
    }

    async fn names(&mut self, root: u64, inode: u64) -> Vec<Name> {
        if let Some(known) = self.known.get(&(root, inode)) {
            return known.clone();
        }
        let mut names = Vec::new();
        if let Some(tree) = self.roots.tree(root) {
            // Damage here is why we are called: what can be found must do.
            let _ = look_up(self.volume, &tree, inode, &mut names).await;
        }
        self.known.insert((root, inode), names.clone());
        names
    }
}

async fn look_up<D: BlockDevice>(
    volume: &Volume<D>,
    tree: &Tree,
    inode: u64,
    names: &mut Vec<Name>,
) -> crate::error::Result<()> {
    let first = Key::new(inode, ItemType::INODE_REF, 0);
    let last = Key::new(inode, ItemType::INODE_EXTREF, u64::MAX);
    let mut cursor = Cursor::seek(volume, tree, first).await?;
    while let Some(item) = cursor.next_to(last).await? {
        let key = item.key();
        let found: Vec<_> = match key.kind {
            ItemType::INODE_REF => InodeRef::each(item.data(), key.offset).flatten().collect(),
            _ => InodeRef::each_ext(item.data()).flatten().collect(),
        };
        names.extend(found.iter().map(|name| (name.parent, name.name.to_vec())));
        if names.len() >= NAMES_MAX {
            names.truncate(NAMES_MAX);
            break;
        }
    }
    Ok(())
}

fn text(path: &[u8]) -> String {
    match std::str::from_utf8(path) {
        Ok(text) => text.to_owned(),
        Err(_) => path.escape_ascii().to_string(),
    }
}
