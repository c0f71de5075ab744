//! Where a file has data, and where it has none: what `lseek` with SEEK_DATA and SEEK_HOLE tells.

use crate::error::{Error, Result};
use crate::format::file_extent::{Body, Compression, FileExtent};
use crate::format::key::{ItemType, Key};
use crate::fs::Fs;
use crate::inode::InodeId;
use crate::tree::cursor::{Cursor, find_last};
use crate::units::Logical;
use varve_block::BlockDevice;

impl<D: BlockDevice> Fs<D> {
    /// The first byte at or behind `offset` that is data; `None` when only holes follow. Allocated
    /// space that was never written counts as a hole, as for the kernel.
    pub async fn next_data(&self, id: InodeId, offset: u64) -> Result<Option<u64>> {
        let size = self.inode(id).await?.size;
        let mut at = offset;
        while let Some((start, end, data)) = self.extent_behind(id, at).await? {
            if data {
                let found = start.max(offset);
                return Ok((found < size).then_some(found));
            }
            at = end;
        }
        Ok(None)
    }

    /// The first byte at or behind `offset` that is a hole. The end of the file is one; `None` when
    /// `offset` is there or behind.
    pub async fn next_hole(&self, id: InodeId, offset: u64) -> Result<Option<u64>> {
        let size = self.inode(id).await?.size;
        let mut at = offset;
        if at >= size {
            return Ok(None);
        }
        while let Some((start, end, data)) = self.extent_behind(id, at).await? {
            if start > at || !data {
                return Ok(Some(at.min(size)));
            }
            at = end;
        }
        Ok(Some(at.min(size)))
    }

    /// The address of a byte of a file: `None` where it is in a hole or inside a tree block. For a
    /// compressed extent the address where that begins.
    ///
    /// # Errors
    /// `NotFound` when there is no such file.
    pub async fn logical_of(&self, id: InodeId, offset: u64) -> Result<Option<Logical>> {
        self.inode(id).await?;
        let subvolume = self.subvolume(id.root).await?;
        let key = Key::new(id.ino, ItemType::EXTENT_DATA, offset);
        let Some(item) = find_last(&self.volume, &subvolume.tree, key).await? else {
            return Ok(None);
        };
        let Key { objectid, kind, offset: start } = item.key();
        if (objectid, kind) != (id.ino, ItemType::EXTENT_DATA) {
            return Ok(None);
        }
        let extent = FileExtent::parse(item.data())
            .map_err(|wrong| Error::corrupt(format!("{id} offset {start}: {wrong}")))?;
        let (Body::Regular(place) | Body::Prealloc(place)) = extent.body else { return Ok(None) };
        let into = offset - start;
        if place.is_hole() || into >= place.num_bytes {
            return Ok(None);
        }
        Ok(match extent.compression {
            Compression::None => place.disk_bytenr.checked_add(place.offset.saturating_add(into)),
            _ => Some(place.disk_bytenr),
        })
    }

    /// The first extent that ends behind `offset`: its start, its end, and whether it holds data.
    async fn extent_behind(&self, id: InodeId, offset: u64) -> Result<Option<(u64, u64, bool)>> {
        let subvolume = self.subvolume(id.root).await?;
        let key = |offset| Key::new(id.ino, ItemType::EXTENT_DATA, offset);
        let mut cursor = Cursor::seek_back(&self.volume, &subvolume.tree, key(offset)).await?;
        while let Some(item) = cursor.next_to(key(u64::MAX)).await? {
            let Key { objectid, kind, offset: start } = item.key();
            if (objectid, kind) != (id.ino, ItemType::EXTENT_DATA) {
                continue; // the item before the first extent
            }
            let extent = FileExtent::parse(item.data())
                .map_err(|wrong| Error::corrupt(format!("{id} offset {start}: {wrong}")))?;
            let (len, data) = match extent.body {
                Body::Inline(_) => (extent.ram_bytes, true),
                Body::Prealloc(place) => (place.num_bytes, false),
                Body::Regular(place) => (place.num_bytes, !place.is_hole()),
            };
            let end = start.saturating_add(len);
            if end > offset {
                return Ok(Some((start, end, data)));
            }
        }
        Ok(None)
    }
}
