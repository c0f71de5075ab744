//! How space is used: block groups and devices, as the trees have them (format: btrfs 5, 7).

use crate::error::{Error, Result};
use crate::format::chunk::{BlockGroup, Chunk, DevItem};
use crate::format::key::{ItemType, Key, objectid};
use crate::format::superblock::CompatRo;
use crate::fs::{Fs, root_of};
use crate::tree::cursor::{Cursor, Tree, find};
use crate::units::Logical;
use varve_block::BlockDevice;

/// A chunk and how much of it is used.
#[derive(Clone, Debug)]
pub struct Group {
    pub start: Logical,
    pub chunk: Chunk,
    /// Bytes allocated in it; `None` when its block group is missing.
    pub used: Option<u64>,
}

/// A device as the chunk tree has it.
#[derive(Clone, Debug)]
pub struct Device {
    pub item: DevItem,
    /// What it is called here; `None` when it is missing.
    pub name: Option<String>,
}

impl<D: BlockDevice> Fs<D> {
    /// Every chunk with its block group, in the order of addresses.
    ///
    /// # Errors
    /// When the tree of block groups cannot be read.
    pub async fn groups(&self) -> Result<Vec<Group>> {
        let sb = &self.volume.sb;
        let id = match sb.compat_ro.contains(CompatRo::BLOCK_GROUP_TREE) {
            true => objectid::BLOCK_GROUP_TREE,
            false => objectid::EXTENT_TREE,
        };
        let tree = root_of(&self.volume, id).await?.map(|(tree, _)| tree);
        let mut groups = Vec::new();
        for (start, chunk) in self.chunks().iter() {
            let key = Key::new(start.0, ItemType::BLOCK_GROUP_ITEM, chunk.length);
            let item = match &tree {
                Some(tree) => find(&self.volume, tree, key).await?,
                None => None,
            };
            let parse = |data: &[u8]| {
                BlockGroup::parse(data)
                    .map_err(|wrong| Error::corrupt(format!("block group {start}: {wrong}")))
            };
            let group = item.map(|item| parse(item.data())).transpose()?;
            groups.push(Group { start, chunk: chunk.clone(), used: group.map(|group| group.used) });
        }
        Ok(groups)
    }

    /// Every device of the file system, present or missing.
    ///
    /// # Errors
    /// When the chunk tree cannot be read.
    pub async fn devices(&self) -> Result<Vec<Device>> {
        let tree = Tree::new(objectid::CHUNK_TREE, self.volume.sb.chunk_tree_root());
        let key = |offset| Key::new(objectid::DEV_ITEMS, ItemType::DEV_ITEM, offset);
        let mut cursor = Cursor::seek(&self.volume, &tree, key(0)).await?;
        let mut devices = Vec::new();
        while let Some(item) = cursor.next_to(key(u64::MAX)).await? {
            let item = DevItem::parse(item.data()).map_err(|wrong| {
                Error::corrupt(format!("device {}: {wrong}", item.key().offset))
            })?;
            let member = self.volume.members().iter().find(|m| m.devid == item.devid);
            let name = member.map(|member| member.geometry.dev.to_string());
            devices.push(Device { item, name });
        }
        Ok(devices)
    }
}
