//! Contents of files without a copy of them, where that is possible: most reads of most files.

use crate::error::Result;
use crate::format::file_extent::{Body, Compression, FileExtent};
use crate::format::inode::{FileType, InodeFlags};
use crate::format::key::{ItemType, Key};
use crate::fs::{Fs, Subvolume};
use crate::inode::InodeId;
use crate::tree::cursor::Cursor;
use crate::units::{Logical, to_usize};
use varve_block::{BlockDevice, IoView};

impl<D: BlockDevice> Fs<D> {
    /// As [`Fs::read`], in the memory that a device put it to. Give it back before long: others wait for
    /// it.
    ///
    /// `None` where that cannot be, and [`Fs::read`] knows more: the range is in several pieces,
    /// compressed, a hole, does not begin with a sector, or its first copy is not a good one.
    ///
    /// # Errors
    /// As [`Fs::inode`].
    pub async fn read_lent(&self, id: InodeId, offset: u64, len: usize) -> Result<Option<IoView>> {
        let sector = u64::from(self.volume.rules.sectorsize);
        let inode = self.inode(id).await?;
        let end = offset.saturating_add(len as u64).min(inode.size);
        if inode.file_type() != FileType::Regular || offset >= end || !offset.is_multiple_of(sector)
        {
            return Ok(None);
        }
        let want = end - offset;
        let Some(whole) = want.checked_next_multiple_of(sector) else { return Ok(None) };
        let subvolume = self.subvolume(id.root).await?;
        let Some(at) = self.plain_at(&subvolume, id.ino, offset, whole).await? else {
            return Ok(None);
        };
        let checked =
            !inode.flags.contains(InodeFlags::NODATASUM) && !self.options.ignore_data_csums;
        let sums = match checked {
            true => Some(self.sums(at, whole).await?),
            false => None,
        };
        // What is wrong with the first copy is told by who tries the others.
        let Ok(Some(mut buf)) = self.volume.lend_mirror(at, 1, to_usize(whole)).await else {
            return Ok(None);
        };
        if let Some(sums) = sums {
            let csum = self.volume.rules.csum;
            let mut sectors = (0u64..).zip(buf.chunks_exact(to_usize(sector)));
            if !sectors.all(|(n, bytes)| sums.at(n) == Some(csum.digest(bytes).bytes())) {
                return Ok(None);
            }
        }
        buf.truncate(to_usize(want));
        Ok(Some(buf.freeze()))
    }

    /// Where `[offset, offset + len)` of a file lies, if it is one piece of an extent that is neither a
    /// hole nor compressed.
    async fn plain_at(
        &self,
        subvolume: &Subvolume,
        ino: u64,
        offset: u64,
        len: u64,
    ) -> Result<Option<Logical>> {
        let wanted = Key::new(ino, ItemType::EXTENT_DATA, offset);
        let mut cursor = Cursor::seek_back(&self.volume, &subvolume.tree, wanted).await?;
        while let Some(item) = cursor.next_to(wanted).await? {
            let Key { objectid, kind, offset: start } = item.key();
            if (objectid, kind) != (ino, ItemType::EXTENT_DATA) {
                continue; // the item before the first extent
            }
            let Ok(extent) = FileExtent::parse(item.data()) else { return Ok(None) };
            let (Body::Regular(place), Compression::None) = (extent.body, extent.compression)
            else {
                return Ok(None);
            };
            let skip = offset - start;
            let holds = |bytes: u64| skip.checked_add(len).is_some_and(|end| end <= bytes);
            let on_disk = place.offset.checked_add(place.num_bytes);
            if place.is_hole()
                || !holds(place.num_bytes)
                || on_disk.is_none_or(|end| end > place.disk_num_bytes)
            {
                return Ok(None);
            }
            let sector = u64::from(self.volume.rules.sectorsize);
            let at = place.offset.checked_add(skip);
            let at = at.and_then(|inside| place.disk_bytenr.checked_add(inside));
            return Ok(at.filter(|at| at.0.is_multiple_of(sector)));
        }
        Ok(None)
    }
}
