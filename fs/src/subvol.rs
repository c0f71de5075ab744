//! Subvolumes and snapshots: which there are, where they hang, which one is the default
//! (format: btrfs 12).

use crate::csum::name_hash;
use crate::error::{Error, Result};
use crate::format::Uuid;
use crate::format::dir::DirItem;
use crate::format::key::{ItemType, Key, objectid};
use crate::format::root::{Root, RootRef};
use crate::fs::Fs;
use crate::tree::cursor::{Cursor, find};
use varve_block::BlockDevice;

/// A subvolume as the root tree knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SubvolumeInfo {
    pub id: u64,
    /// The tree and directory it hangs in, and its name there; the top level hangs nowhere.
    pub parent: Option<(u64, u64, Vec<u8>)>,
    pub generation: u64,
    pub uuid: Uuid,
    /// The subvolume it is a snapshot of.
    pub parent_uuid: Uuid,
    pub received_uuid: Uuid,
    pub read_only: bool,
    /// Deleted, and not gone yet.
    pub being_deleted: bool,
}

impl<D: BlockDevice> Fs<D> {
    /// All of them, in the order of their ids.
    pub async fn subvolumes(&self) -> Result<Vec<SubvolumeInfo>> {
        let root_tree = self.root_tree();
        let mut all: Vec<SubvolumeInfo> = Vec::new();
        let first = Key::new(objectid::FS_TREE, ItemType::UNTYPED, 0);
        let mut cursor = Cursor::seek(&self.volume, &root_tree, first).await?;
        let last = Key::new((1 << 48) - 1, ItemType(u8::MAX), u64::MAX);
        while let Some(item) = cursor.next_to(last).await? {
            let Key { objectid: id, kind, offset } = item.key();
            if !objectid::is_file_tree(id) {
                continue;
            }
            let broken =
                |wrong| Error::corrupt(format!("item {} of the root tree: {wrong}", item.key()));
            match kind {
                ItemType::ROOT_ITEM => {
                    let root = Root::parse(item.data()).map_err(broken)?;
                    all.push(info(id, &root));
                }
                ItemType::ROOT_BACKREF => {
                    let back = RootRef::parse(item.data()).map_err(broken)?;
                    if let Some(mine) = all.last_mut().filter(|last| last.id == id) {
                        mine.parent = Some((offset, back.dirid, back.name.to_vec()));
                    }
                }
                _ => (),
            }
        }
        Ok(all)
    }

    /// The subvolume that a mount without options shows.
    pub async fn default_subvolume(&self) -> Result<u64> {
        let name = b"default";
        let dir = self.volume.sb.root_dir_objectid;
        let key = Key::new(dir, ItemType::DIR_ITEM, name_hash(name));
        let Some(item) = find(&self.volume, &self.root_tree(), key).await? else {
            return Ok(objectid::FS_TREE);
        };
        let entry = DirItem::each(item.data())
            .filter_map(std::result::Result::ok)
            .find(|entry| entry.name == name);
        Ok(entry.map_or(objectid::FS_TREE, |entry| entry.location.objectid))
    }
}

fn info(id: u64, root: &Root) -> SubvolumeInfo {
    let if_v2 = |uuid: Uuid| if root.is_v2() { uuid } else { Uuid::nil() };
    SubvolumeInfo {
        id,
        parent: None,
        generation: root.generation,
        uuid: if_v2(root.uuid),
        parent_uuid: if_v2(root.parent_uuid),
        received_uuid: if_v2(root.received_uuid),
        read_only: root.is_read_only(),
        being_deleted: root.refs == 0,
    }
}
