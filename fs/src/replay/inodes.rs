//! The order of a replay, and what it does to inode items.

use super::draft::Draft;
use super::log::Log;
use crate::error::{Error, Place, Result};
use crate::format::dir::DirItem;
use crate::format::inode::{FileType, Inode, InodeRef};
use crate::format::key::{ItemType, Key, objectid};
use crate::format::superblock::Incompat;
use crate::units::{Logical, round_up};
use crate::volume::Volume;
use std::collections::BTreeSet;
use varve_block::BlockDevice;

/// The replay of one subvolume's log.
pub(super) struct Replay<'a, D: BlockDevice> {
    pub(super) draft: Draft<'a, D>,
    pub(super) log: &'a Log,
    /// Inodes whose links are counted at the end.
    pub(super) recount: BTreeSet<u64>,
    pub(super) transid: u64,
    pub(super) sectorsize: u64,
    pub(super) nodesize: u32,
    pub(super) no_holes: bool,
    pub(super) sum_size: usize,
}

impl<'a, D: BlockDevice> Replay<'a, D> {
    pub(super) fn new(volume: &Volume<D>, draft: Draft<'a, D>, log: &'a Log) -> Replay<'a, D> {
        Replay {
            draft,
            log,
            recount: BTreeSet::new(),
            transid: volume.sb.generation.saturating_add(1),
            sectorsize: volume.rules.sectorsize.into(),
            nodesize: volume.rules.nodesize,
            no_holes: volume.rules.incompat.contains(Incompat::NO_HOLES),
            sum_size: volume.rules.csum.size(),
        }
    }

    /// In the kernel's passes: inodes first, so that names can be given to them; then the names that
    /// folders have, then those that inodes have, and contents; links are counted last.
    pub(super) async fn all(&mut self, sums: &mut Draft<'_, D>) -> Result<()> {
        let log = self.log;
        for inode in log.inodes() {
            let (ino, inode) = inode?;
            self.inode_item(ino, inode).await?;
        }
        for (key, data) in log.items() {
            if key.kind == ItemType::DIR_INDEX && !log.is_void(key.objectid) {
                self.dir_index(key, data).await?;
            }
        }
        for (key, data) in log.items() {
            if key.objectid == objectid::EXTENT_CSUM || log.is_void(key.objectid) {
                continue;
            }
            match key.kind {
                ItemType::XATTR_ITEM => self.draft.put(key, data.to_vec()),
                ItemType::INODE_REF | ItemType::INODE_EXTREF => self.names_item(key, data).await?,
                ItemType::EXTENT_DATA => self.extent_item(key, data, sums).await?,
                _ => (),
            }
        }
        self.count_links().await
    }

    async fn inode_item(&mut self, ino: u64, logged: Inode) -> Result<()> {
        self.drop_xattrs(ino).await?;
        if logged.file_type() == FileType::Directory {
            self.drop_names(ino).await?;
        }
        let new = match self.inode(ino).await? {
            Some(old) => replaced(&old, logged),
            None => {
                // What is inside adds to it later.
                let size = if is_dir(&logged) { 0 } else { logged.size };
                Inode { nbytes: 0, size, ..logged }
            }
        };
        let generation = if new.generation == 0 { self.transid } else { new.generation };
        self.put_inode(ino, &Inode { generation, ..new });
        if logged.file_type() == FileType::Regular {
            // Space may have been reserved behind the end before the fsync: that comes from the log.
            let from = round_up(new.size, self.sectorsize).unwrap_or(u64::MAX);
            self.drop_extents(ino, from, u64::MAX).await?;
        }
        self.recount.insert(ino);
        Ok(())
    }

    /// Attributes that the log does not have were removed.
    async fn drop_xattrs(&mut self, ino: u64) -> Result<()> {
        for (key, data) in self.draft.all(ino, ItemType::XATTR_ITEM).await? {
            let mut kept = Vec::new();
            for entry in DirItem::each(&data) {
                let entry = entry.map_err(|wrong| self.wrong(ino, &wrong))?;
                if self.log.has_xattr(ino, key.offset, entry.name) {
                    kept.extend(entry.encode());
                }
            }
            if kept != data {
                self.draft.put_or_remove(key, kept);
            }
        }
        Ok(())
    }

    async fn count_links(&mut self) -> Result<()> {
        // Emptying a folder without a name takes names from further inodes.
        while let Some(ino) = self.recount.pop_last() {
            let mut links = 0;
            for (key, data) in self.draft.all(ino, ItemType::INODE_REF).await? {
                links += InodeRef::each(&data, key.offset).flatten().count();
            }
            for (_, data) in self.draft.all(ino, ItemType::INODE_EXTREF).await? {
                links += InodeRef::each_ext(&data).flatten().count();
            }
            let mut inode = self.require_inode(ino).await?;
            let links = u32::try_from(links).unwrap_or(u32::MAX);
            if inode.nlink != links {
                inode.nlink = links;
                self.put_inode(ino, &inode);
            }
            if links == 0 {
                if is_dir(&inode) {
                    self.drop_all_names(ino).await?;
                }
                let orphan = Key::new(objectid::ORPHAN, ItemType::ORPHAN_ITEM, ino);
                self.draft.put(orphan, Vec::new());
            }
        }
        Ok(())
    }

    pub(super) async fn inode(&self, ino: u64) -> Result<Option<Inode>> {
        let item = self.draft.get(Key::new(ino, ItemType::INODE_ITEM, 0)).await?;
        let parsed = item.map(|data| Inode::parse(&data)).transpose();
        parsed.map_err(|wrong| self.wrong(ino, &wrong))
    }

    pub(super) async fn require_inode(&self, ino: u64) -> Result<Inode> {
        self.inode(ino).await?.ok_or_else(|| self.wrong(ino, &"there is no such inode"))
    }

    pub(super) fn put_inode(&mut self, ino: u64, inode: &Inode) {
        self.draft.put(Key::new(ino, ItemType::INODE_ITEM, 0), inode.encode().to_vec());
    }

    /// Something about an inode that the log and the tree do not agree about.
    pub(super) fn wrong(&self, ino: u64, what: &dyn std::fmt::Display) -> Error {
        let root = self.log.subvolume;
        let place = Place { root: Some(root), inode: Some(ino), ..Place::default() };
        Error::corrupt(format!("log of subvolume {root}, inode {ino}: {what}")).at(place)
    }

    pub(super) fn wrong_extent(
        &self,
        ino: u64,
        offset: u64,
        what: &dyn std::fmt::Display,
    ) -> Error {
        let error = self.wrong(ino, what);
        let place = Place { offset: Some(offset), ..error.place };
        error.at(place)
    }

    /// Whole sectors from `at` on.
    pub(super) fn sectors(&self, at: Logical, len: u64) -> Option<(Logical, Logical)> {
        let end = at.checked_add(len)?;
        let aligned = |at: Logical| at.0.is_multiple_of(self.sectorsize);
        (aligned(at) && aligned(end)).then_some((at, end))
    }
}

pub(super) fn is_dir(inode: &Inode) -> bool {
    inode.file_type() == FileType::Directory
}

/// An inode that was there, and how it was logged. With generation 0 it was only logged so that it
/// exists; its size is then part of it if its contents were logged, which 0 does not say.
fn replaced(old: &Inode, logged: Inode) -> Inode {
    let both = |kind| old.file_type() == kind && logged.file_type() == kind;
    if logged.generation == 0 {
        let sized = both(FileType::Regular) && logged.size != 0;
        return Inode { size: if sized { logged.size } else { old.size }, ..*old };
    }
    // Extents and names that are put in or taken out change these.
    let size = if both(FileType::Directory) { old.size } else { logged.size };
    Inode { nbytes: old.nbytes, size, ..logged }
}
