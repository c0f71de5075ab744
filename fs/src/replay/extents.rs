//! Contents of files: extents of the log take the place of what they cover.

use super::draft::Draft;
use super::inodes::Replay;
use crate::error::Result;
use crate::format::file_extent::{Body, Compression, FileExtent, Place};
use crate::format::key::{ItemType, Key};
use crate::units::round_up;
use varve_block::BlockDevice;

impl<D: BlockDevice> Replay<'_, D> {
    pub(super) async fn extent_item(
        &mut self,
        key: Key,
        data: &[u8],
        sums: &mut Draft<'_, D>,
    ) -> Result<()> {
        let (ino, start) = (key.objectid, key.offset);
        let extent = self.parse(key, data)?;
        let (len, counted) = match &extent.body {
            Body::Inline(_) => (round_up(extent.ram_bytes, self.sectorsize), extent.ram_bytes),
            Body::Regular(place) | Body::Prealloc(place) if place.is_hole() => {
                (Some(place.num_bytes), 0)
            }
            Body::Regular(place) | Body::Prealloc(place) => {
                (Some(place.num_bytes), place.num_bytes)
            }
        };
        let end = len.and_then(|len| start.checked_add(len));
        let end = end.ok_or_else(|| self.wrong_extent(ino, start, &"an extent without an end"))?;
        self.require_inode(ino).await?;
        let inline = matches!(extent.body, Body::Inline(_));
        if !inline && self.draft.get(key).await?.as_deref() == Some(data) {
            return Ok(());
        }
        self.drop_extents(ino, start, end).await?;
        let hole = matches!(&extent.body, Body::Regular(p) | Body::Prealloc(p) if p.is_hole());
        if !(hole && self.no_holes) {
            self.draft.put(key, data.to_vec());
        }
        if let Body::Regular(place) | Body::Prealloc(place) = &extent.body
            && !place.is_hole()
        {
            self.copy_sums(key, &extent, place, sums).await?;
        }
        let mut inode = self.require_inode(ino).await?;
        inode.nbytes = inode.nbytes.saturating_add(counted);
        self.put_inode(ino, &inode);
        Ok(())
    }

    async fn copy_sums(
        &self,
        key: Key,
        extent: &FileExtent<'_>,
        place: &Place,
        sums: &mut Draft<'_, D>,
    ) -> Result<()> {
        let whole = extent.compression != Compression::None;
        let (skip, len) = match whole {
            true => (0, place.disk_num_bytes),
            false => (place.offset, place.num_bytes),
        };
        let at = place.disk_bytenr.checked_add(skip);
        let range = at.and_then(|at| self.sectors(at, len));
        let Some((from, to)) = range else {
            let what = format!("an extent at {} is not whole sectors", place.disk_bytenr);
            return Err(self.wrong_extent(key.objectid, key.offset, &what));
        };
        self.put_sums(from, to, sums).await
    }

    /// Takes `[from, to)` of a file away; extents that reach over an end are cut.
    pub(super) async fn drop_extents(&mut self, ino: u64, from: u64, to: u64) -> Result<()> {
        let key = |offset| Key::new(ino, ItemType::EXTENT_DATA, offset);
        let mut dropped = 0;
        let before = match from.checked_sub(1) {
            Some(before) => self.draft.last(key(before)).await?,
            None => None,
        };
        let of_file = |key: &Key| (key.objectid, key.kind) == (ino, ItemType::EXTENT_DATA);
        if let Some((at, data)) = before.filter(|(at, _)| of_file(at)) {
            dropped += self.drop_part(at, &data, from, to)?;
        }
        let Some(last) = to.checked_sub(1) else { return Ok(()) };
        let mut next = key(from);
        while let Some((at, data)) = self.draft.first(next..=key(last)).await? {
            dropped += self.drop_part(at, &data, from, to)?;
            next = at.next();
        }
        if dropped > 0 {
            let mut inode = self.require_inode(ino).await?;
            inode.nbytes = inode.nbytes.saturating_sub(dropped);
            self.put_inode(ino, &inode);
        }
        Ok(())
    }

    /// Cuts `[from, to)` out of one extent; how many allocated bytes that were.
    fn drop_part(&mut self, at: Key, data: &[u8], from: u64, to: u64) -> Result<u64> {
        let start = at.offset;
        let extent = self.parse(at, data)?;
        let end = start.saturating_add(extent.file_len());
        if end <= from {
            return Ok(0);
        }
        let (head, tail) = (start < from, end > to);
        let place = match &extent.body {
            Body::Inline(_) if head || tail => {
                return Err(self.wrong_extent(at.objectid, start, &"inline data is cut"));
            }
            Body::Inline(_) => {
                self.draft.remove(at);
                return Ok(end - start);
            }
            Body::Regular(place) | Body::Prealloc(place) => *place,
        };
        let part = |place: Place| {
            let body = match extent.body {
                Body::Prealloc(_) => Body::Prealloc(place),
                _ => Body::Regular(place),
            };
            FileExtent { body, ..extent }.encode()
        };
        self.draft.remove(at);
        if head {
            self.draft.put(at, part(Place { num_bytes: from - start, ..place }));
        }
        if tail {
            // A hole has no extent to be inside of.
            let offset = match place.is_hole() {
                true => place.offset,
                false => place.offset.saturating_add(to - start),
            };
            let rest = Place { offset, num_bytes: end - to, ..place };
            self.draft.put(Key { offset: to, ..at }, part(rest));
        }
        let gone = end.min(to) - start.max(from);
        Ok(if place.is_hole() { 0 } else { gone })
    }

    fn parse<'d>(&self, at: Key, data: &'d [u8]) -> Result<FileExtent<'d>> {
        FileExtent::parse(data).map_err(|wrong| self.wrong_extent(at.objectid, at.offset, &wrong))
    }
}
