//! Names: what a folder's log says of its entries, and what an inode's log says of its names. Where
//! they get into the way of what is there, the log is right.

use super::inodes::Replay;
use super::links::Target;
use crate::error::Result;
use crate::format::dir::DirItem;
use crate::format::inode::InodeRef;
use crate::format::key::{ItemType, Key};
use varve_block::BlockDevice;

impl<D: BlockDevice> Replay<'_, D> {
    /// In each range of indexes that the log knows all entries of, what it does not have was removed.
    pub(super) async fn drop_names(&mut self, dir: u64) -> Result<()> {
        if self.inode(dir).await?.is_none() {
            return Ok(());
        }
        for (from, to) in self.log.dir_ranges(dir) {
            self.drop_range(dir, from, to, false).await?;
        }
        Ok(())
    }

    /// Every name in a folder that has none itself any more.
    pub(super) async fn drop_all_names(&mut self, dir: u64) -> Result<()> {
        self.drop_range(dir, 0, u64::MAX, true).await
    }

    async fn drop_range(&mut self, dir: u64, from: u64, to: u64, whole: bool) -> Result<()> {
        let key = |index| Key::new(dir, ItemType::DIR_INDEX, index);
        let mut next = key(from);
        while let Some((at, data)) = self.draft.first(next..=key(to)).await? {
            for entry in DirItem::each(&data) {
                let entry = entry.map_err(|wrong| self.wrong(dir, &wrong))?;
                if !whole && self.log.has_entry(dir, at.offset, entry.name) {
                    continue;
                }
                let target = Target::of(&entry);
                self.drop_entry(dir, &target, entry.name).await?;
            }
            next = at.next();
        }
        Ok(())
    }

    async fn drop_entry(&mut self, dir: u64, target: &Target, name: &[u8]) -> Result<()> {
        let Some(ino) = target.inode() else {
            // Making and removing subvolumes commits, so a log has no say in it.
            let what = format!("\"{}\" is a subvolume", name.escape_ascii());
            return Err(self.wrong(dir, &what));
        };
        self.require_inode(ino).await?;
        self.unlink(dir, ino, name).await
    }

    /// An entry as the folder's log has it. If the inode's log has the name too, it comes from there.
    pub(super) async fn dir_index(&mut self, key: Key, data: &[u8]) -> Result<()> {
        let (dir, index) = (key.objectid, key.offset);
        self.require_inode(dir).await?;
        let entry = DirItem::each(data).next();
        let entry = entry.ok_or_else(|| self.wrong(dir, &"an entry without a name"))?;
        let entry = entry.map_err(|wrong| self.wrong(dir, &wrong))?;
        let (name, logged) = (entry.name, Target::of(&entry));
        let inode = match logged.inode() {
            Some(ino) => self.inode(ino).await?,
            None => None,
        };
        let mut same = 0;
        for by_index in [false, true] {
            let there = match by_index {
                false => self.by_name(dir, name).await?,
                true => self.at_index(dir, index, name).await?,
            };
            match there {
                Some(there) if there == logged => same += 1,
                // What has no inode takes nobody's place.
                Some(there) if inode.is_some() => self.drop_entry(dir, &there, name).await?,
                _ => (),
            }
        }
        let (Some(ino), Some(inode)) = (logged.inode(), inode) else { return Ok(()) };
        if same == 2 || self.log.has_name(ino, dir, name) {
            return Ok(());
        }
        if self.by_name(dir, name).await?.is_some() {
            return Ok(()); // at another index: as it is
        }
        if !self.add_back_reference(ino, &InodeRef { parent: dir, index, name }).await? {
            return Ok(());
        }
        self.link(dir, (ino, &inode), name, index).await?;
        if !super::inodes::is_dir(&inode) {
            self.recount.insert(ino);
        }
        Ok(())
    }

    /// An item with an inode's names: those in one folder, or those with one hash.
    pub(super) async fn names_item(&mut self, key: Key, data: &[u8]) -> Result<()> {
        let ino = key.objectid;
        let extended = key.kind == ItemType::INODE_EXTREF;
        let names = names_in(key, data).map_err(|wrong| self.wrong(ino, &wrong))?;
        let Some((first, _, _)) = names.first() else { return Ok(()) };
        if self.inode(*first).await?.is_none() {
            return Ok(()); // that folder was not logged; the links are counted without it
        }
        let inode = self.require_inode(ino).await?;
        for (parent, index, name) in &names {
            if self.inode(*parent).await?.is_none() {
                if extended {
                    continue;
                }
                return Ok(());
            }
            let there =
                [self.at_index(*parent, *index, name).await?, self.by_name(*parent, name).await?];
            if there.iter().all(|entry| entry.and_then(|entry| entry.inode()) == Some(ino)) {
                continue;
            }
            if !self.make_room(ino, *parent, *index, name).await? {
                return Ok(());
            }
            self.link(*parent, (ino, &inode), name, *index).await?;
        }
        // Names that the item had and has no more.
        let old = self.draft.get(key).await?.unwrap_or_default();
        for (parent, _, name) in names_in(key, &old).map_err(|wrong| self.wrong(ino, &wrong))? {
            let stays = names.iter().any(|(p, _, n)| (*p, n) == (parent, &name));
            if !stays {
                self.unlink(parent, ino, &name).await?;
            }
        }
        self.draft.put(key, data.to_vec());
        Ok(())
    }

    /// Before `name` is put into `dir`: the inode's names there that the log does not have go, and so
    /// does whatever else has the name. `false` for the top folder, whose name is not touched.
    async fn make_room(&mut self, ino: u64, dir: u64, index: u64, name: &[u8]) -> Result<bool> {
        let key = Key::new(ino, ItemType::INODE_REF, dir);
        if let Some(old) = self.draft.get(key).await? {
            if ino == dir {
                return Ok(false);
            }
            for (parent, _, old) in names_in(key, &old).map_err(|wrong| self.wrong(ino, &wrong))? {
                if !self.log.has_ref(ino, parent, &old) {
                    self.unlink(parent, ino, &old).await?;
                }
            }
        }
        let at = crate::csum::extref_hash(dir, name);
        let key = Key::new(ino, ItemType::INODE_EXTREF, at);
        if let Some(old) = self.draft.get(key).await? {
            for (parent, _, old) in names_in(key, &old).map_err(|wrong| self.wrong(ino, &wrong))? {
                if parent == dir && !self.log.has_extref(ino, parent, &old) {
                    self.unlink(parent, ino, &old).await?;
                }
            }
        }
        if let Some(there) = self.at_index(dir, index, name).await? {
            self.drop_entry(dir, &there, name).await?;
        }
        if let Some(there) = self.by_name(dir, name).await? {
            self.drop_entry(dir, &there, name).await?;
        }
        Ok(true)
    }
}

/// Parent, index and name of each entry.
type Names = Vec<(u64, u64, Vec<u8>)>;

fn names_in(key: Key, data: &[u8]) -> Result<Names, crate::format::Wrong> {
    let owned = |back: InodeRef<'_>| (back.parent, back.index, back.name.to_vec());
    match key.kind {
        ItemType::INODE_REF => {
            InodeRef::each(data, key.offset).map(|back| back.map(owned)).collect()
        }
        _ => InodeRef::each_ext(data).map(|back| back.map(owned)).collect(),
    }
}
