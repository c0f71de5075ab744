//! Inodes as users see them: identity, status, extended attributes.

use crate::error::{Error, ErrorKind, Place, Result};
use crate::format::dir::DirItem;
use crate::format::inode::{Inode, S_IFDIR};
use crate::format::key::{ItemType, Key, objectid};
use crate::fs::Fs;
use crate::tree::cursor::{Cursor, find};
use std::fmt;
use varve_block::BlockDevice;

/// An inode, anywhere in the file system.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct InodeId {
    /// The file tree it lives in.
    pub root: u64,
    pub ino: u64,
}

impl InodeId {
    /// The root directory of a file tree.
    pub fn root_of(tree: u64) -> InodeId {
        InodeId { root: tree, ino: objectid::FIRST_FREE }
    }

    /// What a snapshot shows in place of a subvolume that was nested in its source: an empty
    /// directory. No inode has this number.
    pub(crate) fn placeholder(tree: u64) -> InodeId {
        InodeId { root: tree, ino: PLACEHOLDER }
    }

    /// Whether it is an empty folder that a snapshot shows in place of a nested subvolume.
    pub fn is_empty_folder(&self) -> bool {
        self.is_placeholder()
    }

    pub(crate) fn is_placeholder(&self) -> bool {
        self.ino == PLACEHOLDER
    }
}

const PLACEHOLDER: u64 = 2;

impl fmt::Display for InodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "root {} inode {}", self.root, self.ino)
    }
}

impl<D: BlockDevice> Fs<D> {
    /// The inode item: everything `stat` shows.
    pub async fn inode(&self, id: InodeId) -> Result<Inode> {
        if id.is_placeholder() {
            return Ok(Inode { nlink: 1, mode: S_IFDIR | 0o755, ..Inode::default() });
        }
        let subvolume = self.subvolume(id.root).await?;
        let key = Key::new(id.ino, ItemType::INODE_ITEM, 0);
        let place = Place { root: Some(id.root), inode: Some(id.ino), ..Place::default() };
        match find(&self.volume, &subvolume.tree, key).await? {
            None => Err(Error::new(ErrorKind::NotFound, format!("{id}: no such inode")).at(place)),
            Some(item) => Inode::parse(item.data())
                .map_err(|wrong| Error::corrupt(format!("{id}: {wrong}")).at(place)),
        }
    }

    /// Every extended attribute, in the order of the tree.
    pub async fn xattrs(&self, id: InodeId) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut all = Vec::new();
        if id.is_placeholder() {
            return Ok(all);
        }
        let subvolume = self.subvolume(id.root).await?;
        let key = |offset| Key::new(id.ino, ItemType::XATTR_ITEM, offset);
        let mut cursor = Cursor::seek(&self.volume, &subvolume.tree, key(0)).await?;
        while let Some(item) = cursor.next_to(key(u64::MAX)).await? {
            for entry in DirItem::each(item.data()) {
                let entry =
                    entry.map_err(|wrong| Error::corrupt(format!("{id}: attribute, {wrong}")))?;
                all.push((entry.name.to_vec(), entry.data.to_vec()));
            }
        }
        Ok(all)
    }
}
