//! One inode that is no folder: what it is, its extents, and what of them is missing.

use super::report::{Problem, ProblemKind, Range};
use super::scan::{Found, Scan};
use super::sink::{Meta, Op, Part, Spot, bounded, is_whole};
use super::walk::{Walk, add_xattrs};
use crate::format::file_extent::{
    Body, Compression, FileExtent, MAX_UNCOMPRESSED, Place as OnDisk,
};
use crate::format::inode::{FileType, Inode, InodeFlags, S_IFMT};
use crate::format::key::{ItemType, Key};
use crate::inode::InodeId;
use crate::units::to_usize;
use crate::volume::Owner;
use std::rc::Rc;
use std::sync::Arc;
use varve_block::BlockDevice;

use super::place::Folder;

/// A file is read in pieces of this size.
const WINDOW: u64 = 1 << 20;

/// What became of an inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Copying {
    Done,
    IsDirectory,
}

/// A regular file on its way.
struct Copy {
    id: InodeId,
    spot: Option<Spot>,
    path: Vec<u8>,
    size: u64,
    checked: bool,
    /// Where the last extent ended.
    end: u64,
    bad: Vec<Range>,
    unverified: bool,
}

impl<D: BlockDevice> Walk<'_, D> {
    /// Copies a file, link or device to `name` in `folder`.
    pub(crate) async fn copy(&mut self, folder: &Rc<Folder>, name: &[u8], id: InodeId) -> Copying {
        let Some(tree) = self.tree(id.root) else { return Copying::Done };
        let key = |kind, offset| Key::new(id.ino, kind, offset);
        let first = key(ItemType::INODE_ITEM, 0);
        let last = key(ItemType::EXTENT_DATA, u64::MAX);
        // The borrows of the scan are of what outlives the walk, not of the walk.
        let (fs, bad) = (self.fs, self.bad);
        let mut scan = Scan::seek(&fs.volume, bad, &tree, first).await;
        let mut meta: Option<Inode> = None;
        let mut xattrs = Vec::new();
        let mut extent = None;
        while let Some(item) = scan.next_to(last).await {
            match item.key().kind {
                _ if item.key().objectid != id.ino => (),
                ItemType::INODE_ITEM => meta = Inode::parse(item.data()).ok(),
                ItemType::XATTR_ITEM => add_xattrs(&mut xattrs, item.data()),
                ItemType::DIR_ITEM | ItemType::DIR_INDEX => return Copying::IsDirectory,
                ItemType::EXTENT_DATA => {
                    extent = Some(item);
                    break;
                }
                _ => (),
            }
        }
        let lost = meta.is_none().then(|| {
            let gap = scan.gaps.iter().find(|gap| gap.touches(first, last));
            gap.map_or_else(|| format!("{id} has no inode item"), |gap| gap.why.clone())
        });
        if meta.is_some_and(|inode| inode.file_type() == FileType::Directory) {
            return Copying::IsDirectory;
        }
        if let Some(filter) = &self.options.filter
            && !filter(&folder.path_of(name))
        {
            self.report.left_out += 1;
            return Copying::Done;
        }
        if meta.is_none() && extent.is_none() {
            let why = lost.unwrap_or_default();
            self.problem(folder.path_of(name), ProblemKind::NotWritten, why);
            return Copying::Done;
        }
        let inode = meta.unwrap_or_else(stand_in);
        let meta = Meta { inode, xattrs };
        match inode.file_type() {
            FileType::Regular => {
                self.regular(folder, name, id, meta, (scan, extent), lost).await;
            }
            FileType::Symlink => self.symlink(folder, name, meta, extent).await,
            FileType::Unknown | FileType::Directory => {
                let why = format!("{id} has mode 0{:o}, which is of no kind", inode.mode);
                self.problem(folder.path_of(name), ProblemKind::NotWritten, why);
            }
            _ => self.special(folder, name, id, meta).await,
        }
        Copying::Done
    }

    /// The spot, unless what is there already is a whole copy, or the file has another name that was
    /// written before.
    async fn spot_for(
        &mut self,
        folder: &Rc<Folder>,
        name: &[u8],
        id: Option<InodeId>,
        inode: &Inode,
    ) -> Option<Spot> {
        if self.options.dry_run {
            return None;
        }
        let (spot, was_there) = self.spot(folder, name)?;
        let several = id.filter(|_| inode.nlink > 1);
        let whole = was_there && is_whole(&spot.dir, name, inode);
        if whole {
            self.report.already_there += 1;
        }
        let first = several.and_then(|id| self.links.get(&id).cloned());
        match first {
            Some((at, from)) if !whole => {
                if let Some((from_spot, _)) = self.spot(&at, &from) {
                    let from_dir = Arc::clone(&from_spot.dir);
                    self.push(Op::Link { spot, from_dir, from }).await;
                }
                return None;
            }
            None => {
                if let Some(id) = several {
                    self.links.insert(id, (Rc::clone(folder), name.to_vec()));
                }
            }
            _ => (),
        }
        (!whole).then_some(spot)
    }

    async fn special(&mut self, folder: &Rc<Folder>, name: &[u8], id: InodeId, meta: Meta) {
        if self.options.dry_run {
            self.report.special += 1;
        } else if let Some(spot) = self.spot_for(folder, name, Some(id), &meta.inode).await {
            self.push(Op::Special { spot, meta }).await;
        }
    }

    async fn symlink(
        &mut self,
        folder: &Rc<Folder>,
        name: &[u8],
        meta: Meta,
        extent: Option<Found>,
    ) {
        let target =
            extent.as_ref().and_then(|item| match FileExtent::parse(item.data()).ok()? {
                FileExtent {
                    body: Body::Inline(target), compression: Compression::None, ..
                } => Some(target.to_vec()),
                _ => None,
            });
        // A link leads where it says: it is made, never followed.
        let Some(target) = target.filter(|t| !t.is_empty() && !t.contains(&0)) else {
            let why = "the target of the symbolic link is lost";
            self.problem(folder.path_of(name), ProblemKind::NotWritten, why);
            return;
        };
        if self.options.dry_run {
            self.report.symlinks += 1;
        } else if let Some(spot) = self.spot_for(folder, name, None, &meta.inode).await {
            self.push(Op::Symlink { spot, target, meta }).await;
        }
    }

    async fn regular(
        &mut self,
        folder: &Rc<Folder>,
        name: &[u8],
        id: InodeId,
        meta: Meta,
        (mut scan, extent): (Scan<'_, D>, Option<Found>),
        lost: Option<String>,
    ) {
        let spot = self.spot_for(folder, name, Some(id), &meta.inode).await;
        if spot.is_none() && !self.options.dry_run {
            return;
        }
        if self.options.dry_run {
            self.report.files += 1;
            self.report.bytes = self.report.bytes.saturating_add(meta.inode.size);
        }
        let checked =
            !meta.inode.flags.contains(InodeFlags::NODATASUM) && !self.fs.options.ignore_data_csums;
        let mut copy = Copy {
            id,
            path: folder.path_of(name),
            spot,
            size: if lost.is_some() { u64::MAX } else { meta.inode.size },
            checked,
            end: 0,
            bad: Vec::new(),
            unverified: false,
        };
        if let Some(spot) = &copy.spot {
            let temp = format!(".varve-export-{}-{}", id.root, id.ino).into_bytes();
            self.push(Op::Create { spot: spot.clone(), temp }).await;
        }
        let last = Key::new(id.ino, ItemType::EXTENT_DATA, u64::MAX);
        let mut next = extent;
        while let Some(item) = next {
            if (item.key().objectid, item.key().kind) == (id.ino, ItemType::EXTENT_DATA) {
                self.extent(&mut copy, &item).await;
            }
            next = scan.next_to(last).await;
        }
        missing(&mut copy, &scan, last);
        if let Some(why) = lost {
            let why = format!("size, mode, owner and times are lost: {why}");
            copy.bad.push(Range { at: copy.end, len: 0, why });
            copy.size = copy.end;
        }
        self.close(copy, meta).await;
    }

    async fn close(&mut self, copy: Copy, meta: Meta) {
        let damaged = !copy.bad.is_empty();
        if damaged {
            let why = copy.bad.first().map(|range| range.why.clone()).unwrap_or_default();
            let (path, ranges) = (copy.path.clone(), copy.bad);
            let kind = ProblemKind::Damaged;
            self.report.problems.push(Problem { path, kind, ranges, why });
        } else if copy.unverified {
            self.problem(copy.path, ProblemKind::Unverified, "checksums are missing");
        }
        if copy.spot.is_some() {
            if damaged {
                // Other names of it must not be linked to a file that is not there.
                self.links.remove(&copy.id);
            }
            self.push(Op::Close { meta, size: copy.size, damaged }).await;
        }
    }

    async fn extent(&mut self, copy: &mut Copy, item: &Found) {
        let at = item.key().offset;
        let extent = match FileExtent::parse(item.data()) {
            Ok(extent) => extent,
            Err(wrong) => {
                copy.bad.push(Range { at, len: 0, why: wrong.to_string() });
                return;
            }
        };
        let len = extent.file_len().min(copy.size.saturating_sub(at));
        if len == 0 {
            return;
        }
        copy.end = copy.end.max(at.saturating_add(len));
        if copy.spot.is_none() {
            return; // a dry run reads no data
        }
        match extent.body {
            Body::Prealloc(_) => (),
            Body::Regular(place) if place.is_hole() => (),
            Body::Inline(bytes) => self.inline(copy, &extent, bytes, (at, len)).await,
            Body::Regular(place) => match extent.compression {
                Compression::None => self.plain(copy, &place, at, len).await,
                how => self.packed(copy, how, extent.ram_bytes, &place, (at, len)).await,
            },
        }
    }

    async fn inline(
        &mut self,
        copy: &mut Copy,
        extent: &FileExtent<'_>,
        bytes: &[u8],
        (at, len): (u64, u64),
    ) {
        if extent.ram_bytes > MAX_UNCOMPRESSED {
            let why = format!("an inline extent of {} bytes", extent.ram_bytes);
            copy.bad.push(Range { at, len, why });
            return;
        }
        let part = match extent.compression {
            Compression::None => {
                let bytes = bytes.get(..to_usize(len)).unwrap_or(bytes).to_vec();
                Part::Plain { at, bytes }
            }
            how => Part::Packed {
                at,
                how,
                bytes: bytes.to_vec(),
                unpacked: to_usize(extent.ram_bytes),
                skip: 0,
                len: to_usize(len),
            },
        };
        self.push(Op::Write(part)).await;
    }

    async fn plain(&mut self, copy: &mut Copy, place: &OnDisk, at: u64, len: u64) {
        let sector = u64::from(self.fs.volume.rules.sectorsize);
        let end = place.offset.checked_add(place.num_bytes);
        if end.is_none_or(|end| end > place.disk_num_bytes) {
            let why = format!("an extent of {} bytes is used behind its end", place.disk_num_bytes);
            copy.bad.push(Range { at, len, why });
            return;
        }
        let mut done = 0;
        while done < len {
            let want = bounded(len - done, WINDOW);
            let owner = Owner { root: copy.id.root, inode: copy.id.ino, offset: at + done };
            let start = place.offset + done;
            let Some(logical) = place.disk_bytenr.checked_add(start - start % sector) else {
                return;
            };
            // Whole sectors are read; what a broken item cuts out of one is cut out here.
            let skip = to_usize(start % sector);
            let whole = (skip + want).next_multiple_of(to_usize(sector));
            let mut bytes = vec![0; whole];
            let quality = self.data.read(self.fs, logical, &mut bytes, copy.checked, &owner).await;
            copy.unverified |= quality.unverified;
            copy.bad.extend(quality.bad.into_iter().map(|range| {
                let from = at + done + range.at;
                Range { at: from, len: range.len.min((at + len).saturating_sub(from)), ..range }
            }));
            bytes.truncate(skip + want);
            if skip > 0 {
                bytes.drain(..skip);
            }
            self.push(Op::Write(Part::Plain { at: at + done, bytes })).await;
            done += want as u64;
        }
    }

    async fn packed(
        &mut self,
        copy: &mut Copy,
        how: Compression,
        ram_bytes: u64,
        place: &OnDisk,
        (at, len): (u64, u64),
    ) {
        let end = place.offset.checked_add(place.num_bytes);
        if ram_bytes > MAX_UNCOMPRESSED
            || place.disk_num_bytes > MAX_UNCOMPRESSED
            || end.is_none_or(|end| end > ram_bytes)
        {
            let why = format!("a compressed extent says {ram_bytes} bytes, and is used beyond");
            copy.bad.push(Range { at, len, why });
            return;
        }
        let mut bytes = vec![0; to_usize(place.disk_num_bytes)];
        let offset = at.wrapping_sub(place.offset);
        let owner = Owner { root: copy.id.root, inode: copy.id.ino, offset };
        let at_disk = place.disk_bytenr;
        let quality = self.data.read(self.fs, at_disk, &mut bytes, copy.checked, &owner).await;
        copy.unverified |= quality.unverified;
        if let Some(first) = quality.bad.into_iter().next() {
            // One bad sector spoils what was packed with it.
            copy.bad.push(Range { at, len, why: first.why });
            return;
        }
        let (skip, len) = (to_usize(place.offset), to_usize(len));
        let unpacked = to_usize(ram_bytes);
        self.push(Op::Write(Part::Packed { at, how, bytes, unpacked, skip, len })).await;
    }
}

/// What lost blocks may have held of the file.
fn missing<D: BlockDevice>(copy: &mut Copy, scan: &Scan<'_, D>, last: Key) {
    let id = copy.id;
    let first = Key::new(id.ino, ItemType::EXTENT_DATA, 0);
    for gap in scan.gaps.iter().filter(|gap| gap.touches(first, last)) {
        let inside = |key: Key| (key.objectid, key.kind) == (id.ino, ItemType::EXTENT_DATA);
        let at = if inside(gap.from) { gap.from.offset } else { 0 };
        let to = if inside(gap.to) { gap.to.offset } else { copy.size };
        let to = to.min(if copy.size == u64::MAX { at.max(copy.end) } else { copy.size });
        if at < to || copy.size == u64::MAX {
            copy.bad.push(Range { at, len: to.saturating_sub(at), why: gap.why.clone() });
        }
    }
    copy.bad.sort_by_key(|range| range.at);
}

/// For a file whose inode item is lost: readable by its new owner alone.
fn stand_in() -> Inode {
    Inode { nlink: 1, mode: 0o100_600 & (S_IFMT | 0o777), ..Inode::default() }
}
