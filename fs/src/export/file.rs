//! One inode that is no folder: what it is, its extents, and what of them is missing.

use super::data::Trust;
use super::older::{Age, Patch};
use super::report::{Problem, ProblemKind, Range};
use super::scan::{Found, Met, Scan};
use super::sink::{Meta, Op, Part, Spot, bounded, is_whole};
use super::stale;
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

/// What a name says of what it leads to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Said {
    pub(crate) kind: FileType,
    /// Of an older state, and today's tree says neither yes nor no.
    pub(crate) age: Option<Age>,
}

impl Said {
    /// There is no name but the inode's own.
    pub(crate) const NOTHING: Said = Said { kind: FileType::Unknown, age: None };
}

/// A regular file on its way.
struct Copy {
    id: InodeId,
    spot: Option<Spot>,
    path: Vec<u8>,
    size: u64,
    has_sums: bool,
    /// Of the inode item, and when that was changed last.
    age: Option<Age>,
    transid: u64,
    /// The oldest state that anything was taken from.
    oldest: Option<u64>,
    /// The newest of today's extents.
    newest: u64,
    /// The size of a file that is one inline extent, which always knows it.
    inline: Option<u64>,
    /// Why nothing but the content is known.
    bare: Option<String>,
    /// Where the last extent ended.
    end: u64,
    bad: Vec<Range>,
    unverified: bool,
}

impl Copy {
    fn new(id: InodeId, path: Vec<u8>, inode: &Inode, head: &Head) -> Copy {
        // What an older inode item says may be too short.
        let sure = head.inode.is_some() && head.age.is_none();
        Copy {
            id,
            spot: None,
            path,
            size: if sure { inode.size } else { u64::MAX },
            has_sums: !inode.flags.contains(InodeFlags::NODATASUM),
            age: head.age,
            transid: inode.transid,
            oldest: head.oldest,
            newest: 0,
            inline: None,
            bare: None,
            end: 0,
            bad: Vec::new(),
            unverified: false,
        }
    }
}

/// What is known of an inode before its extents.
#[derive(Default)]
struct Head {
    inode: Option<Inode>,
    /// Of the inode item.
    age: Option<Age>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The oldest state that anything was taken from.
    oldest: Option<u64>,
    /// The first.
    extent: Option<Found>,
}

impl Head {
    /// Reads the items of the inode whose last possible one is `last`; `None` when it is a directory.
    async fn read<D: BlockDevice>(scan: &mut Scan<'_, D>, last: Key) -> Option<Head> {
        let mut head = Head::default();
        while let Some(item) = scan.next_to(last).await {
            match item.key().kind {
                _ if item.key().objectid != last.objectid => (),
                ItemType::INODE_ITEM => {
                    head.inode = Inode::parse(item.data()).ok();
                    head.age = item.age;
                    head.oldest = stale::oldest(head.oldest, item.age);
                }
                ItemType::XATTR_ITEM => {
                    add_xattrs(&mut head.xattrs, item.data());
                    head.oldest = stale::oldest(head.oldest, item.age);
                }
                ItemType::DIR_ITEM | ItemType::DIR_INDEX => return None,
                ItemType::EXTENT_DATA => {
                    head.extent = Some(item);
                    break;
                }
                _ => (),
            }
        }
        let directory = head.inode.is_some_and(|i| i.file_type() == FileType::Directory);
        (!directory).then_some(head)
    }
}

impl<D: BlockDevice> Walk<'_, D> {
    /// Copies a file, link or device to `name` in `folder`; `said` is what the name says of it.
    pub(crate) async fn copy(
        &mut self,
        folder: &Rc<Folder>,
        name: &[u8],
        id: InodeId,
        said: Said,
    ) -> Copying {
        let Some(tree) = self.tree(id.root) else { return Copying::Done };
        let key = |kind, offset| Key::new(id.ino, kind, offset);
        let first = key(ItemType::INODE_ITEM, 0);
        let last = key(ItemType::EXTENT_DATA, u64::MAX);
        // The borrows of the scan are of what outlives the walk, not of the walk.
        let (fs, bad) = (self.fs, self.bad);
        let mut scan = Scan::seek(&fs.volume, bad, &tree, first).await;
        let Some(mut head) = Head::read(&mut scan, last).await else { return Copying::IsDirectory };
        head.oldest = stale::oldest(head.oldest, said.age);
        let lost = head.inode.is_none().then(|| {
            let met = scan.gaps.iter().find(|met| met.gap.touches(first, last));
            met.map_or_else(|| format!("{id} has no inode item"), |met| met.gap.why.clone())
        });
        if let Some(filter) = &self.options.filter
            && !filter(&folder.path_of(name))
        {
            self.report.left_out += 1;
            return Copying::Done;
        }
        if head.inode.is_none() && head.extent.is_none() {
            let why = lost.unwrap_or_default();
            self.problem(folder.path_of(name), ProblemKind::NotWritten, why);
            return Copying::Done;
        }
        let inode = head.inode.unwrap_or_else(stand_in);
        let meta = Meta { inode, xattrs: std::mem::take(&mut head.xattrs) };
        if inode.file_type() == FileType::Regular {
            let copy = Copy::new(id, folder.path_of(name), &inode, &head);
            let lost = lost.map(|why| (why, said.kind));
            self.regular((folder, name), copy, meta, (scan, head.extent), lost).await;
            return Copying::Done;
        }
        let target = head.extent.as_ref();
        if let Some(oldest) = stale::oldest(head.oldest, target.and_then(|item| item.age)) {
            self.older(folder.path_of(name), oldest);
        }
        match inode.file_type() {
            FileType::Symlink => self.symlink(folder, name, meta, head.extent).await,
            FileType::Unknown => {
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
        (folder, name): (&Rc<Folder>, &[u8]),
        mut copy: Copy,
        meta: Meta,
        (mut scan, extent): (Scan<'_, D>, Option<Found>),
        lost: Option<(String, FileType)>,
    ) {
        let id = copy.id;
        copy.spot = self.spot_for(folder, name, Some(id), &meta.inode).await;
        if copy.spot.is_none() && !self.options.dry_run {
            return;
        }
        if self.options.dry_run {
            self.report.files += 1;
            self.report.bytes = self.report.bytes.saturating_add(meta.inode.size);
        }
        if let Some(spot) = &copy.spot {
            let temp = format!(".varve-export-{}-{}", id.root, id.ino).into_bytes();
            self.push(Op::Create { spot: spot.clone(), temp }).await;
        }
        let last = Key::new(id.ino, ItemType::EXTENT_DATA, u64::MAX);
        let mut next = extent;
        while let Some(item) = next {
            if (item.key().objectid, item.key().kind) == (id.ino, ItemType::EXTENT_DATA) {
                copy.oldest = stale::oldest(copy.oldest, item.age);
                self.extent(&mut copy, &item).await;
            }
            next = scan.next_to(last).await;
        }
        match copy.age {
            Some(age) if lost.is_none() && copy.newest > age.generation => {
                let why = format!(
                    "size, mode, owner and times are of generation {}, and extents of {}",
                    age.generation, copy.newest
                );
                copy.bad.push(Range { at: copy.end, len: 0, why });
                copy.size = copy.end.max(meta.inode.size);
            }
            Some(_) if lost.is_none() => copy.size = meta.inode.size,
            _ => (),
        }
        missing(&mut copy, &scan, last);
        if let Some((why, FileType::Regular)) = &lost
            && let (Some(size), true) = (copy.inline, copy.bad.is_empty())
        {
            copy.size = size;
            copy.bare = Some(format!("mode, owner and times are lost: {why}"));
        } else if let Some((why, _)) = lost {
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
        } else if let Some(why) = copy.bare {
            self.problem(copy.path, ProblemKind::Bare, why);
        } else if let Some(generation) = copy.oldest {
            self.older(copy.path, generation);
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
        copy.inline = match extent.body {
            Body::Inline(_) if at == 0 && copy.end == 0 => Some(extent.ram_bytes),
            _ => None,
        };
        if item.age.is_none() {
            copy.newest = copy.newest.max(extent.generation);
        }
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
            Body::Regular(place) => {
                match self.trust(copy.has_sums, item, extent.generation, &place).await {
                    Ok(trust) if extent.compression == Compression::None => {
                        self.plain(copy, trust, &place, (at, len)).await;
                    }
                    Ok(trust) => self.packed(copy, trust, &extent, &place, (at, len)).await,
                    Err(why) => copy.bad.push(Range { at, len, why }),
                }
            }
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

    async fn plain(
        &mut self,
        copy: &mut Copy,
        trust: Trust,
        place: &OnDisk,
        (at, len): (u64, u64),
    ) {
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
            let quality = self.data.read(self.fs, logical, &mut bytes, trust, &owner).await;
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
        trust: Trust,
        extent: &FileExtent<'_>,
        place: &OnDisk,
        (at, len): (u64, u64),
    ) {
        let (how, ram_bytes) = (extent.compression, extent.ram_bytes);
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
        let quality = self.data.read(self.fs, at_disk, &mut bytes, trust, &owner).await;
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

/// What lost blocks may have held of the file, and what older states cannot be trusted with: extents of
/// one time do not go with an inode item of another, unless the file was not changed in between.
fn missing<D: BlockDevice>(copy: &mut Copy, scan: &Scan<'_, D>, last: Key) {
    let first = Key::new(copy.id.ino, ItemType::EXTENT_DATA, 0);
    for Met { gap, filled } in scan.gaps.iter().filter(|met| met.gap.touches(first, last)) {
        for (from, to) in filled.holes_in(first, last) {
            lost_range(copy, *from, *to, gap.why.clone());
        }
        for Patch { from, to, age: Age { generation, .. }, .. } in filled.patches_in(first, last) {
            let later = copy.age.is_some_and(|age| age.generation < *generation);
            if copy.transid > *generation || later {
                let why = format!(
                    "of generation {generation}, and the file was changed in {}",
                    copy.transid
                );
                lost_range(copy, *from, *to, why);
            }
        }
    }
    copy.bad.sort_by_key(|range| range.at);
}

/// The bytes whose extents have keys `from` to before `to`.
fn lost_range(copy: &mut Copy, from: Key, to: Key, why: String) {
    let inside = |key: Key| (key.objectid, key.kind) == (copy.id.ino, ItemType::EXTENT_DATA);
    let at = if inside(from) { from.offset } else { 0 };
    let to = if inside(to) { to.offset } else { copy.size };
    let to = to.min(if copy.size == u64::MAX { at.max(copy.end) } else { copy.size });
    if at < to || copy.size == u64::MAX {
        copy.bad.push(Range { at, len: to.saturating_sub(at), why });
    }
}

/// For a file whose inode item is lost: readable by its new owner alone.
fn stand_in() -> Inode {
    Inode { nlink: 1, mode: 0o100_600 & (S_IFMT | 0o777), ..Inode::default() }
}
