//! The log of one subvolume, all of it in memory: a replay goes over it several times and asks it for
//! single items.

use crate::error::{Error, Result};
use crate::format::dir::DirItem;
use crate::format::inode::{Inode, InodeRef};
use crate::format::key::{ItemType, Key, objectid};
use crate::tree::cursor::{Cursor, Tree};
use crate::units::Logical;
use crate::volume::Volume;
use std::collections::BTreeMap;
use varve_block::BlockDevice;

/// A log larger than this is none that a kernel wrote: it commits long before.
const BYTES_MAX: usize = 1 << 30;

pub(super) struct Log {
    pub(super) subvolume: u64,
    items: BTreeMap<Key, Vec<u8>>,
}

impl Log {
    pub(super) async fn read<D: BlockDevice>(
        volume: &Volume<D>,
        subvolume: u64,
        tree: Tree,
    ) -> Result<Log> {
        let mut items = BTreeMap::new();
        let mut bytes = 0;
        let mut cursor = Cursor::seek(volume, &tree, Key::MIN).await?;
        while let Some(item) = cursor.next().await? {
            bytes += item.data().len();
            if bytes > BYTES_MAX {
                let message = format!("the log of subvolume {subvolume} is larger than 1 GiB");
                return Err(Error::unsupported(message));
            }
            items.insert(item.key(), item.data().to_vec());
        }
        Ok(Log { subvolume, items })
    }

    pub(super) fn items(&self) -> impl Iterator<Item = (Key, &[u8])> {
        self.items.iter().map(|(key, data)| (*key, &data[..]))
    }

    /// Items of one kind of one object.
    fn of(&self, objectid: u64, kind: ItemType) -> impl Iterator<Item = (Key, &[u8])> {
        let range = Key::new(objectid, kind, 0)..=Key::new(objectid, kind, u64::MAX);
        self.items.range(range).map(|(key, data)| (*key, &data[..]))
    }

    /// The inodes of the log, without those that had no name any more: their items count for nothing.
    pub(super) fn inodes(&self) -> impl Iterator<Item = Result<(u64, Inode)>> {
        let items = self.items().filter(|(key, _)| key.kind == ItemType::INODE_ITEM);
        items.filter_map(|(key, data)| match Inode::parse(data) {
            Ok(inode) if inode.nlink == 0 => None,
            Ok(inode) => Some(Ok((key.objectid, inode))),
            Err(wrong) => {
                let message = format!("inode {} in the log: {wrong}", key.objectid);
                Some(Err(Error::corrupt(message)))
            }
        })
    }

    /// Whether the log has this inode as one without a name.
    pub(super) fn is_void(&self, ino: u64) -> bool {
        let item = self.items.get(&Key::new(ino, ItemType::INODE_ITEM, 0));
        item.and_then(|data| Inode::parse(data).ok()).is_some_and(|inode| inode.nlink == 0)
    }

    /// Ranges of indexes of a folder of which the log knows every entry, in order.
    pub(super) fn dir_ranges(&self, dir: u64) -> Vec<(u64, u64)> {
        let ranges = self.of(dir, ItemType::DIR_LOG_INDEX);
        let end = |data: &[u8]| data.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        ranges.filter_map(|(key, data)| Some((key.offset, end(data)?))).collect()
    }

    /// Whether a folder has this name at this index.
    pub(super) fn has_entry(&self, dir: u64, index: u64, name: &[u8]) -> bool {
        let item = self.items.get(&Key::new(dir, ItemType::DIR_INDEX, index));
        item.is_some_and(|data| DirItem::each(data).flatten().any(|entry| entry.name == name))
    }

    /// Whether an inode has this name, at whatever index.
    pub(super) fn has_name(&self, ino: u64, parent: u64, name: &[u8]) -> bool {
        self.has_ref(ino, parent, name) || self.has_extref(ino, parent, name)
    }

    pub(super) fn has_ref(&self, ino: u64, parent: u64, name: &[u8]) -> bool {
        let item = self.items.get(&Key::new(ino, ItemType::INODE_REF, parent));
        item.is_some_and(|data| InodeRef::each(data, parent).flatten().any(|r| r.name == name))
    }

    pub(super) fn has_extref(&self, ino: u64, parent: u64, name: &[u8]) -> bool {
        let at = crate::csum::extref_hash(parent, name);
        let item = self.items.get(&Key::new(ino, ItemType::INODE_EXTREF, at));
        item.is_some_and(|data| {
            InodeRef::each_ext(data).flatten().any(|r| (r.parent, r.name) == (parent, name))
        })
    }

    /// Whether an inode has an attribute of this name.
    pub(super) fn has_xattr(&self, ino: u64, hash: u64, name: &[u8]) -> bool {
        let item = self.items.get(&Key::new(ino, ItemType::XATTR_ITEM, hash));
        item.is_some_and(|data| DirItem::each(data).flatten().any(|entry| entry.name == name))
    }

    /// Items of checksums that may touch `[from, end)`: where they begin, and the digests.
    pub(super) fn sums_in(
        &self,
        from: Logical,
        end: Logical,
    ) -> impl Iterator<Item = (u64, &[u8])> {
        let key = |at| Key::new(objectid::EXTENT_CSUM, ItemType::EXTENT_CSUM, at);
        // Items do not overlap: of those that begin before, only the last reaches so far.
        let first = self.items.range(key(0)..=key(from.0)).next_back();
        let first = first.map_or(key(from.0), |(key, _)| *key);
        let items = self.items.range(first..key(end.0).max(first));
        items.map(|(key, data)| (key.offset, &data[..]))
    }
}
