//! Contents of files: extents, holes, compression, checksums (format: btrfs 8, 10.5, 11).

use crate::compress::unpack;
use crate::error::{Error, ErrorKind, Place as At, Result};
use crate::format::file_extent::{Body, Compression, FileExtent, MAX_UNCOMPRESSED, Place};
use crate::format::inode::{FileType, Inode, InodeFlags};
use crate::format::key::{ItemType, Key, objectid};
use crate::fs::{Fs, Subvolume};
use crate::inode::InodeId;
use crate::tree::cursor::{Cursor, Item, Tree};
use crate::units::{Logical, to_usize};
use crate::volume::{Owner, Sums};
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;
use varve_block::BlockDevice;

/// Data is read in windows of this size: one device request each, and a bound on what a large extent
/// costs in memory.
const WINDOW: u64 = 1 << 20;

/// The extents that were unpacked last. A reader of small pieces would otherwise unpack the same
/// 128 KiB again and again.
#[derive(Debug, Default)]
pub(crate) struct Unpacked {
    recent: VecDeque<(Logical, Rc<[u8]>)>,
}

impl Unpacked {
    const KEPT: usize = 16;

    /// The extent at `at`, if `len` bytes of it were unpacked.
    fn get(&mut self, at: Logical, len: usize) -> Option<Rc<[u8]>> {
        let n = self.recent.iter().position(|(key, bytes)| *key == at && bytes.len() >= len)?;
        let hit = self.recent.remove(n)?;
        let bytes = Rc::clone(&hit.1);
        self.recent.push_front(hit);
        Some(bytes)
    }

    fn put(&mut self, at: Logical, bytes: Rc<[u8]>) {
        self.recent.retain(|(key, _)| *key != at);
        self.recent.truncate(Self::KEPT - 1);
        self.recent.push_front((at, bytes));
    }
}

/// A piece of a file being filled in: `out` stands for the bytes from `start` on.
struct Target<'a> {
    subvolume: &'a Subvolume,
    ino: u64,
    inode: &'a Inode,
    start: u64,
    out: &'a mut [u8],
}

impl Target<'_> {
    fn end(&self) -> u64 {
        self.start + self.out.len() as u64
    }

    /// The common part of the file's range `[from, from + len)` and what is wanted.
    fn overlap(&self, from: u64, len: u64) -> Option<Range<u64>> {
        let range = from.max(self.start)..from.saturating_add(len).min(self.end());
        (!range.is_empty()).then_some(range)
    }

    fn slice(&mut self, range: &Range<u64>) -> &mut [u8] {
        let from = to_usize(range.start - self.start);
        let to = to_usize(range.end - self.start);
        self.out.get_mut(from..to).unwrap_or(&mut [])
    }

    fn owner(&self, offset: u64) -> Owner {
        Owner { root: self.subvolume.id, inode: self.ino, offset }
    }

    fn damaged(&self, offset: u64, what: impl std::fmt::Display) -> Error {
        let owner = self.owner(offset);
        let place = At { root: Some(owner.root), inode: Some(self.ino), ..At::default() };
        Error::corrupt(format!("{owner}: {what}")).at(At { offset: Some(offset), ..place })
    }
}

/// Where sectors are read to.
enum Into<'a> {
    /// This range of the file, in the target itself.
    Target(Range<u64>),
    /// Elsewhere, on behalf of this place in the file.
    Other(&'a mut [u8], Owner),
}

impl<D: BlockDevice> Fs<D> {
    /// Up to `len` bytes of a file or symbolic link from `offset` on: fewer only at its end.
    ///
    /// # Errors
    /// As [`Fs::read_into`].
    pub async fn read(&self, id: InodeId, offset: u64, len: usize) -> Result<Vec<u8>> {
        let size = self.inode(id).await?.size;
        // A file may claim any size; what is allocated is bounded by what was asked for.
        let mut out = vec![0; len.min(to_usize(size.saturating_sub(offset)))];
        let len = self.read_into(id, offset, &mut out).await?;
        out.truncate(len);
        Ok(out)
    }

    /// Fills `out` from `offset` on and says how many bytes there were: fewer only at the end.
    ///
    /// # Errors
    /// `Corrupt` or `Io` when a part of the range has no good copy, naming root, inode, offset and
    /// logical address. `out` is unspecified then: ask for smaller ranges to get at the rest.
    pub async fn read_into(&self, id: InodeId, offset: u64, out: &mut [u8]) -> Result<usize> {
        let subvolume = self.subvolume(id.root).await?;
        let inode = self.inode(id).await?;
        match inode.file_type() {
            FileType::Regular | FileType::Symlink => (),
            FileType::Directory => {
                return Err(Error::new(ErrorKind::IsADirectory, format!("{id} is a directory")));
            }
            _ => return Err(Error::new(ErrorKind::Invalid, format!("{id} has no contents"))),
        }
        let len = out.len().min(to_usize(inode.size.saturating_sub(offset)));
        let (out, _) = out.split_at_mut(len);
        if !out.is_empty() {
            out.fill(0); // holes
            let ino = id.ino;
            let (subvolume, inode) = (&*subvolume, &inode);
            self.fill(Target { subvolume, ino, inode, start: offset, out }).await?;
        }
        Ok(len)
    }

    /// Visits the extents that touch the target. What no extent covers is a hole, and zero already.
    async fn fill(&self, mut target: Target<'_>) -> Result<()> {
        let key = |offset| Key::new(target.ino, ItemType::EXTENT_DATA, offset);
        let (first, last) = (key(target.start), key(target.end() - 1));
        let tree = &target.subvolume.tree;
        let mut cursor = Cursor::seek_back(&self.volume, tree, first).await?;
        while let Some(item) = cursor.next_to(last).await? {
            let Key { objectid, kind, offset } = item.key();
            if (objectid, kind) != (target.ino, ItemType::EXTENT_DATA) {
                continue; // the item before the first extent
            }
            self.fill_extent(&mut target, &item, offset).await?;
        }
        Ok(())
    }

    async fn fill_extent(&self, target: &mut Target<'_>, item: &Item, at: u64) -> Result<()> {
        let extent = FileExtent::parse(item.data()).map_err(|wrong| target.damaged(at, wrong))?;
        match extent.body {
            Body::Prealloc(_) => Ok(()),
            Body::Inline(packed) => self.fill_inline(target, &extent, packed, at),
            Body::Regular(place) if place.is_hole() => Ok(()),
            Body::Regular(place) => {
                let Some(range) = target.overlap(at, place.num_bytes) else { return Ok(()) };
                match extent.compression {
                    Compression::None => self.fill_plain(target, &place, at, range).await,
                    _ => self.fill_packed(target, &extent, &place, at, range).await,
                }
            }
        }
    }

    fn fill_inline(
        &self,
        target: &mut Target<'_>,
        extent: &FileExtent<'_>,
        packed: &[u8],
        at: u64,
    ) -> Result<()> {
        if extent.ram_bytes > MAX_UNCOMPRESSED {
            let what = format!("inline extent of {} bytes", extent.ram_bytes);
            return Err(target.damaged(at, what));
        }
        let Some(range) = target.overlap(at, extent.ram_bytes) else { return Ok(()) };
        let mut plain = vec![0; to_usize(extent.ram_bytes)];
        let sectorsize = self.volume.rules.sectorsize as usize;
        unpack(extent.compression, packed, &mut plain, sectorsize)
            .map_err(|damaged| target.damaged(at, damaged))?;
        let from = plain.get(to_usize(range.start - at)..to_usize(range.end - at));
        target.slice(&range).copy_from_slice(from.unwrap_or(&[]));
        Ok(())
    }

    /// The bytes as they stand on disk.
    async fn fill_plain(
        &self,
        target: &mut Target<'_>,
        place: &Place,
        at: u64,
        range: Range<u64>,
    ) -> Result<()> {
        let end = place.offset.checked_add(place.num_bytes);
        if end.is_none_or(|end| end > place.disk_num_bytes) {
            let what = format!(
                "extent of {} bytes is used from {} on for {}",
                place.disk_num_bytes, place.offset, place.num_bytes
            );
            return Err(target.damaged(at, what));
        }
        let sector = u64::from(self.volume.rules.sectorsize);
        let mut edge = vec![0; to_usize(sector)];
        let mut from = range.start;
        while from < range.end {
            let inside = place.offset + (from - at);
            let skip = inside % sector;
            let logical = place
                .disk_bytenr
                .checked_add(inside - skip)
                .ok_or_else(|| target.damaged(at, "extent beyond the address space"))?;
            let left = range.end - from;
            let to = if skip == 0 && left >= sector {
                // Whole sectors go where they belong at once, as many as one window holds.
                let to = from + (left - left % sector).min(WINDOW);
                self.read_checked(target, logical, Into::Target(from..to)).await?;
                to
            } else {
                let to = from + left.min(sector - skip);
                let owner = target.owner(from.wrapping_sub(skip));
                self.read_checked(target, logical, Into::Other(&mut edge, owner)).await?;
                let want = edge.get(to_usize(skip)..to_usize(skip + (to - from)));
                target.slice(&(from..to)).copy_from_slice(want.unwrap_or(&[]));
                to
            };
            from = to;
        }
        Ok(())
    }

    /// A compressed extent is read and unpacked whole, whatever part of it is wanted.
    async fn fill_packed(
        &self,
        target: &mut Target<'_>,
        extent: &FileExtent<'_>,
        place: &Place,
        at: u64,
        range: Range<u64>,
    ) -> Result<()> {
        let end = place.offset.checked_add(place.num_bytes);
        if extent.ram_bytes > MAX_UNCOMPRESSED
            || place.disk_num_bytes > MAX_UNCOMPRESSED
            || end.is_none_or(|end| end > extent.ram_bytes)
        {
            let what = format!(
                "compressed extent of {} bytes, {} on disk, is used from {} on for {}",
                extent.ram_bytes, place.disk_num_bytes, place.offset, place.num_bytes
            );
            return Err(target.damaged(at, what));
        }
        let len = to_usize(extent.ram_bytes);
        let known = self.unpacked.borrow_mut().get(place.disk_bytenr, len);
        let plain = match known {
            Some(plain) => plain,
            None => {
                let mut packed = vec![0; to_usize(place.disk_num_bytes)];
                let owner = target.owner(at.wrapping_sub(place.offset));
                let into = Into::Other(&mut packed, owner);
                self.read_checked(target, place.disk_bytenr, into).await?;
                let mut plain = vec![0; len];
                let sectorsize = self.volume.rules.sectorsize as usize;
                unpack(extent.compression, &packed, &mut plain, sectorsize)
                    .map_err(|damaged| target.damaged(at, damaged))?;
                let plain: Rc<[u8]> = plain.into();
                self.unpacked.borrow_mut().put(place.disk_bytenr, Rc::clone(&plain));
                plain
            }
        };
        let skip = place.offset + (range.start - at);
        let want = plain.get(to_usize(skip)..to_usize(skip + (range.end - range.start)));
        target.slice(&range).copy_from_slice(want.unwrap_or(&[]));
        Ok(())
    }

    /// Whole sectors of data, with their checksums where the inode has them.
    async fn read_checked(
        &self,
        target: &mut Target<'_>,
        at: Logical,
        into: Into<'_>,
    ) -> Result<()> {
        let unchecked =
            target.inode.flags.contains(InodeFlags::NODATASUM) || self.options.ignore_data_csums;
        let (out, owner) = match into {
            Into::Target(range) => {
                let owner = target.owner(range.start);
                (target.slice(&range), owner)
            }
            Into::Other(out, owner) => (out, owner),
        };
        let sums = match unchecked {
            true => None,
            false => Some(self.sums(at, out.len() as u64).await?),
        };
        self.volume.read_data(at, out, sums.as_ref(), &owner).await
    }

    /// The digests of `[at, at + len)`.
    pub(crate) async fn sums(&self, at: Logical, len: u64) -> Result<Sums> {
        match &self.csums {
            Some(tree) => self.sums_in(tree, at, len).await,
            None => Ok(self.no_sums(len)),
        }
    }

    fn no_sums(&self, len: u64) -> Sums {
        let sectors = len / u64::from(self.volume.rules.sectorsize);
        Sums::new(self.volume.rules.csum.size(), to_usize(sectors))
    }

    /// As [`Fs::sums`], by another tree of checksums.
    pub(crate) async fn sums_in(&self, tree: &Tree, at: Logical, len: u64) -> Result<Sums> {
        let sector = u64::from(self.volume.rules.sectorsize);
        let mut sums = self.no_sums(len);
        let key = |at| Key::new(objectid::EXTENT_CSUM, ItemType::EXTENT_CSUM, at);
        let end = at.0.saturating_add(len);
        let mut cursor = Cursor::seek_back(&self.volume, tree, key(at.0)).await?;
        while let Some(item) = cursor.next_to(key(end - 1)).await? {
            if item.key().kind != ItemType::EXTENT_CSUM {
                continue;
            }
            let start = item.key().offset;
            let (first, to) = (at.0.saturating_sub(start), start.saturating_sub(at.0));
            sums.put(item.data(), first / sector, to / sector);
        }
        Ok(sums)
    }

    /// The target of a symbolic link.
    pub async fn read_link(&self, id: InodeId) -> Result<Vec<u8>> {
        let inode = self.inode(id).await?;
        if inode.file_type() != FileType::Symlink {
            return Err(Error::new(ErrorKind::Invalid, format!("{id} is no symbolic link")));
        }
        // Targets are inline, and so shorter than a tree block.
        let most = self.volume.rules.nodesize as usize;
        self.read(id, 0, most).await
    }
}
