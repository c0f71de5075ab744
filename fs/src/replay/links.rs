//! Giving a name to an inode and taking it away: the three items of a name, always together.

use super::draft::Draft;
use super::inodes::Replay;
use crate::csum::{extref_hash, name_hash};
use crate::error::Result;
use crate::format::block::ITEM_HEAD_SIZE;
use crate::format::dir::DirItem;
use crate::format::inode::{FileType, Inode, InodeRef};
use crate::format::key::{ItemType, Key};
use varve_block::BlockDevice;

/// Where an entry of a folder leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Target {
    pub(super) location: Key,
    pub(super) kind: u8,
}

impl Target {
    pub(super) fn of(entry: &DirItem<'_>) -> Target {
        Target { location: entry.location, kind: entry.kind }
    }

    /// The inode of this tree that it leads to, unless it leads to a subvolume.
    pub(super) fn inode(&self) -> Option<u64> {
        (self.location.kind == ItemType::INODE_ITEM).then_some(self.location.objectid)
    }
}

impl<D: BlockDevice> Replay<'_, D> {
    /// The entry called `name`, found by its hash.
    pub(super) async fn by_name(&self, dir: u64, name: &[u8]) -> Result<Option<Target>> {
        let key = Key::new(dir, ItemType::DIR_ITEM, name_hash(name));
        self.entry_in(key, name).await
    }

    /// The entry at `index`, if it is called `name`.
    pub(super) async fn at_index(
        &self,
        dir: u64,
        index: u64,
        name: &[u8],
    ) -> Result<Option<Target>> {
        self.entry_in(Key::new(dir, ItemType::DIR_INDEX, index), name).await
    }

    async fn entry_in(&self, key: Key, name: &[u8]) -> Result<Option<Target>> {
        let Some(data) = self.draft.get(key).await? else { return Ok(None) };
        let found = DirItem::each(&data).flatten().find(|entry| entry.name == name);
        Ok(found.map(|entry| Target::of(&entry)))
    }

    /// Puts `name` into a folder, at `index`. The back reference is the caller's.
    ///
    /// # Errors
    /// When the folder has the name or the index already.
    pub(super) async fn link(
        &mut self,
        dir: u64,
        (ino, inode): (u64, &Inode),
        name: &[u8],
        index: u64,
    ) -> Result<()> {
        let mut folder = self.require_inode(dir).await?;
        if self.by_name(dir, name).await?.is_some() {
            let what = format!("the folder has \"{}\" twice", name.escape_ascii());
            return Err(self.wrong(dir, &what));
        }
        let at = Key::new(dir, ItemType::DIR_INDEX, index);
        if self.draft.get(at).await?.is_some() {
            return Err(self.wrong(dir, &format!("the folder has index {index} twice")));
        }
        let location = Key::new(ino, ItemType::INODE_ITEM, 0);
        let kind = dir_type(inode.file_type());
        let entry = DirItem { location, transid: self.transid, kind, name, data: &[] }.encode();
        let hashed = Key::new(dir, ItemType::DIR_ITEM, name_hash(name));
        append(&mut self.draft, hashed, &entry).await?;
        self.draft.put(at, entry);
        folder.size = folder.size.saturating_add(2 * name.len() as u64);
        self.put_inode(dir, &folder);
        Ok(())
    }

    /// Notes in an inode that it has a name. `false` when it has it already.
    pub(super) async fn add_back_reference(
        &mut self,
        ino: u64,
        back: &InodeRef<'_>,
    ) -> Result<bool> {
        let key = Key::new(ino, ItemType::INODE_REF, back.parent);
        let mut refs = self.draft.get(key).await?.unwrap_or_default();
        if InodeRef::each(&refs, back.parent).flatten().any(|r| r.name == back.name) {
            return Ok(false);
        }
        refs.extend(back.encode());
        // As large as an item may be; what does not fit goes to an item of the other kind.
        let most = crate::format::block::leaf_space(self.nodesize) as usize - ITEM_HEAD_SIZE;
        if refs.len() <= most {
            self.draft.put(key, refs);
            return Ok(true);
        }
        let at = Key::new(ino, ItemType::INODE_EXTREF, extref_hash(back.parent, back.name));
        let extended = self.draft.get(at).await?.unwrap_or_default();
        let here = |r: InodeRef<'_>| (r.parent, r.name) == (back.parent, back.name);
        if InodeRef::each_ext(&extended).flatten().any(here) {
            return Ok(false);
        }
        self.draft.put(at, [extended, back.encode_ext()].concat());
        Ok(true)
    }

    /// Takes a name away, from the folder and from the inode, whose links are counted later.
    pub(super) async fn unlink(&mut self, dir: u64, ino: u64, name: &[u8]) -> Result<()> {
        self.recount.insert(ino);
        let hashed = Key::new(dir, ItemType::DIR_ITEM, name_hash(name));
        let entries = self.draft.get(hashed).await?.unwrap_or_default();
        let mut kept = Vec::new();
        for entry in DirItem::each(&entries).flatten().filter(|entry| entry.name != name) {
            kept.extend(entry.encode());
        }
        let missing = |of: &str| format!("\"{}\" is missing in {of}", name.escape_ascii());
        if kept.len() == entries.len() {
            return Err(self.wrong(dir, &missing("its folder")));
        }
        let Some(index) = self.remove_back_reference(ino, dir, name).await? else {
            return Err(self.wrong(ino, &missing("the names of its inode")));
        };
        self.draft.put_or_remove(hashed, kept);
        self.draft.remove(Key::new(dir, ItemType::DIR_INDEX, index));
        let mut folder = self.require_inode(dir).await?;
        folder.size = folder.size.saturating_sub(2 * name.len() as u64);
        self.put_inode(dir, &folder);
        Ok(())
    }

    /// The index that the name had.
    async fn remove_back_reference(
        &mut self,
        ino: u64,
        parent: u64,
        name: &[u8],
    ) -> Result<Option<u64>> {
        let key = Key::new(ino, ItemType::INODE_REF, parent);
        let refs = self.draft.get(key).await?.unwrap_or_default();
        let (mut kept, mut index) = (Vec::new(), None);
        for back in InodeRef::each(&refs, parent).flatten() {
            match back.name == name {
                true => index = Some(back.index),
                false => kept.extend(back.encode()),
            }
        }
        if index.is_some() {
            self.draft.put_or_remove(key, kept);
            return Ok(index);
        }
        let key = Key::new(ino, ItemType::INODE_EXTREF, extref_hash(parent, name));
        let refs = self.draft.get(key).await?.unwrap_or_default();
        let mut kept = Vec::new();
        for back in InodeRef::each_ext(&refs).flatten() {
            match (back.parent, back.name) == (parent, name) {
                true => index = Some(back.index),
                false => kept.extend(back.encode_ext()),
            }
        }
        if index.is_some() {
            self.draft.put_or_remove(key, kept);
        }
        Ok(index)
    }
}

async fn append<D: BlockDevice>(draft: &mut Draft<'_, D>, key: Key, more: &[u8]) -> Result<()> {
    let mut data = draft.get(key).await?.unwrap_or_default();
    data.extend_from_slice(more);
    draft.put(key, data);
    Ok(())
}

/// The type byte of a folder's entry.
fn dir_type(kind: FileType) -> u8 {
    match kind {
        FileType::Regular => 1,
        FileType::Directory => 2,
        FileType::CharDevice => 3,
        FileType::BlockDevice => 4,
        FileType::Fifo => 5,
        FileType::Socket => 6,
        FileType::Symlink => 7,
        FileType::Unknown => 0,
    }
}
