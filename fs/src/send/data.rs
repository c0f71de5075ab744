//! Contents: which ranges of a file are not what the receiver has, and where it could take them from.
//!
//! A range is sent as a *clone* where the receiver has its extent already (in this subvolume, in the
//! parent, or in another source), as an *encoded write* where the extent is compressed and that was
//! asked for, else as plain writes. Each is always right in place of the other.

use super::compare::Differs;
use super::wire::{Attr, Command};
use super::{Sender, Snapshot, failed};
use crate::error::{Error, Result};
use crate::format::file_extent::{Body, Compression, FileExtent, MAX_UNCOMPRESSED};
use crate::format::inode::{Inode, InodeFlags};
use crate::format::key::{ItemType, Key, objectid};
use crate::fs::{Fs, root_of};
use crate::inode::InodeId;
use crate::tree::cursor::{Cursor, Tree, find};
use crate::units::{Logical, to_usize};
use crate::volume::Owner;
use std::collections::BTreeMap;
use varve_block::BlockDevice;

/// Data of one write command: as much as the kernel sends, and what attribute lengths of version 1
/// allow.
const WRITE_V1: usize = 48 << 10;
const WRITE_V2: usize = 128 << 10;
/// What is read at a time.
const WINDOW: u64 = 1 << 20;
/// Places per extent that are remembered: more would cost memory, and one is enough.
const PLACES: usize = 4;
/// FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
const PUNCH_HOLE: u32 = 3;

/// What a range of a file is made of.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Source {
    /// Hole or preallocated: zeroes.
    Zero,
    Inline {
        compression: u8,
        bytes: Vec<u8>,
    },
    Disk {
        at: Logical,
        disk_len: u64,
        ram_bytes: u64,
        compression: Compression,
    },
}

/// A range of a file, and for an extent the byte of it that the range begins with.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Segment {
    start: u64,
    end: u64,
    offset: u64,
    source: Source,
}

impl Segment {
    /// The part from `start` to `end`.
    fn part(&self, start: u64, end: u64) -> Segment {
        let offset = self.offset + (start - self.start);
        Segment { start, end, offset, source: self.source.clone() }
    }
}

/// A place where an extent is used: bytes from `offset` of it stand at `start` of the file.
#[derive(Clone, Copy, Debug)]
struct Used {
    ino: u64,
    start: u64,
    offset: u64,
    len: u64,
}

/// Where the receiver has which extents.
pub(super) struct Extents {
    extent_tree: Option<Tree>,
    /// In the subvolume that is being made.
    sent: BTreeMap<u64, Vec<Used>>,
    sources: Vec<Snapshot>,
    /// In each of the sources, once one was asked for.
    index: Option<Vec<BTreeMap<u64, Vec<Used>>>>,
}

impl Extents {
    pub(super) async fn new<D: BlockDevice>(fs: &Fs<D>, sources: Vec<Snapshot>) -> Result<Extents> {
        // Without an extent tree there are no clones, but the data is there all the same.
        let extent_tree = root_of(&fs.volume, objectid::EXTENT_TREE).await.ok().flatten();
        let extent_tree = extent_tree.map(|(tree, _)| tree);
        Ok(Extents { extent_tree, sent: BTreeMap::new(), sources, index: None })
    }

    /// Whether the extent is used more than once: only then is it worth remembering.
    async fn is_shared<D: BlockDevice>(&self, fs: &Fs<D>, at: Logical, len: u64) -> bool {
        let Some(tree) = &self.extent_tree else { return false };
        let key = Key::new(at.0, ItemType::EXTENT_ITEM, len);
        match find(&fs.volume, tree, key).await {
            Ok(Some(item)) => {
                let refs = item.data().first_chunk::<8>();
                refs.is_some_and(|refs| u64::from_le_bytes(*refs) > 1)
            }
            _ => false,
        }
    }

    /// Every extent of every source, read once.
    async fn read_sources<D: BlockDevice>(&mut self, fs: &Fs<D>) -> Result<()> {
        if self.index.is_some() {
            return Ok(());
        }
        let mut index = Vec::new();
        for source in &self.sources {
            let tree = &source.subvolume.tree;
            let first = Key::new(objectid::FIRST_FREE, ItemType::UNTYPED, 0);
            let last = Key::new(objectid::LAST_FREE, ItemType(u8::MAX), u64::MAX);
            let mut cursor = Cursor::seek(&fs.volume, tree, first).await?;
            let mut used: BTreeMap<u64, Vec<Used>> = BTreeMap::new();
            while let Some(item) = cursor.next_to(last).await? {
                let Key { objectid: ino, kind: ItemType::EXTENT_DATA, offset: start } = item.key()
                else {
                    continue;
                };
                if let Ok(FileExtent { body: Body::Regular(place), .. }) =
                    FileExtent::parse(item.data())
                    && !place.is_hole()
                {
                    let places = used.entry(place.disk_bytenr.0).or_default();
                    if places.len() < PLACES {
                        let (offset, len) = (place.offset, place.num_bytes);
                        places.push(Used { ino, start, offset, len });
                    }
                }
            }
            index.push(used);
        }
        self.index = Some(index);
        Ok(())
    }
}

/// A clone that the receiver can do.
struct CloneFrom {
    /// `None`: the subvolume that is being made.
    source: Option<usize>,
    ino: u64,
    at: u64,
    len: u64,
}

impl<D: BlockDevice> Sender<'_, '_, D> {
    /// Sends what is different of a file's contents; whether that was anything.
    pub(super) async fn file(
        &mut self,
        ino: u64,
        path: &[u8],
        old: Option<&Inode>,
        new: &Inode,
        differs: Differs,
    ) -> Result<bool> {
        let old_size = old.map_or(0, |old| old.size);
        let extents_differ = old.is_none() || differs.contains(Differs::EXTENTS);
        if !extents_differ && old_size == new.size {
            return Ok(false);
        }
        let mut wrote = false;
        // First what is cut off, so that no write ends in the middle of what follows.
        if new.size < old_size {
            self.truncate(path, new.size)?;
            wrote = true;
        }
        if extents_differ || old_size != new.size {
            let sector = u64::from(self.fs.volume.rules.sectorsize);
            let end = new.size.checked_next_multiple_of(sector).unwrap_or(u64::MAX);
            let root = self.new.subvolume.id;
            let wanted = segments(self.fs, InodeId { root, ino }, end).await?;
            let had = match (&self.old, old) {
                (Some(tree), Some(_)) => {
                    let id = InodeId { root: tree.subvolume.id, ino };
                    segments(self.fs, id, end).await?
                }
                _ => vec![Segment { start: 0, end, offset: 0, source: Source::Zero }],
            };
            for piece in different(&wanted, &had) {
                wrote |= self.piece(ino, path, new, old_size.min(new.size), piece).await?;
            }
            for segment in &wanted {
                self.remember(ino, new, segment).await;
            }
        }
        if old.is_none_or(|old| old.size < new.size) && new.size > 0 {
            self.truncate(path, new.size)?;
            wrote = true;
        }
        Ok(wrote)
    }

    fn truncate(&mut self, path: &[u8], size: u64) -> Result<()> {
        let command = self.out.command(Command::Truncate).path(path);
        command.u64(Attr::Size, size).send().map_err(failed)
    }

    /// One range that the receiver does not have.
    async fn piece(
        &mut self,
        ino: u64,
        path: &[u8],
        new: &Inode,
        had_size: u64,
        piece: Segment,
    ) -> Result<bool> {
        let end = piece.end.min(new.size);
        if piece.start >= end {
            return Ok(false);
        }
        let piece = piece.part(piece.start, end);
        match &piece.source {
            Source::Zero => self.zero(path, &piece, had_size),
            Source::Inline { .. } => {
                self.write(ino, path, piece.start, piece.end).await?;
                Ok(true)
            }
            Source::Disk { .. } => {
                self.extent(ino, path, new, piece).await?;
                Ok(true)
            }
        }
    }

    /// A hole where the receiver has data.
    fn zero(&mut self, path: &[u8], piece: &Segment, had_size: u64) -> Result<bool> {
        let end = piece.end.min(had_size);
        if piece.start >= end {
            return Ok(false); // behind what it has: the size alone makes it
        }
        if self.out.version() >= 2 {
            let sector = u64::from(self.fs.volume.rules.sectorsize);
            let len = (end - piece.start).next_multiple_of(sector);
            let punch = self.out.command(Command::Fallocate).path(path);
            let punch = punch.u32(Attr::FallocateMode, PUNCH_HOLE);
            let punch = punch.u64(Attr::FileOffset, piece.start).u64(Attr::Size, len);
            punch.send().map_err(failed)?;
            return Ok(true);
        }
        let zeroes = [0; WRITE_V1];
        let mut at = piece.start;
        while at < end {
            let len = to_usize(end - at).min(WRITE_V1);
            let bytes = zeroes.get(..len).unwrap_or(&zeroes);
            self.write_command(path, at, bytes)?;
            at += len as u64;
        }
        Ok(true)
    }

    fn write_command(&mut self, path: &[u8], at: u64, bytes: &[u8]) -> Result<()> {
        let write = self.out.command(Command::Write).path(path).u64(Attr::FileOffset, at);
        write.bytes(Attr::Data, bytes).send().map_err(failed)
    }

    async fn write(&mut self, ino: u64, path: &[u8], start: u64, end: u64) -> Result<()> {
        let id = InodeId { root: self.new.subvolume.id, ino };
        let most = if self.out.version() >= 2 { WRITE_V2 } else { WRITE_V1 };
        let mut at = start;
        let mut window = Vec::new();
        while at < end {
            window.resize(to_usize((end - at).min(WINDOW)), 0);
            let len = self.fs.read_into(id, at, &mut window).await?;
            if len == 0 {
                return Err(Error::corrupt(format!("{id} ends at byte {at}")));
            }
            for bytes in window.get(..len).unwrap_or(&[]).chunks(most) {
                self.write_command(path, at, bytes)?;
                at += bytes.len() as u64;
            }
        }
        Ok(())
    }

    /// An extent: cloned as far as that goes, the rest written.
    async fn extent(&mut self, ino: u64, path: &[u8], new: &Inode, piece: Segment) -> Result<()> {
        let mut piece = piece;
        while piece.start < piece.end {
            if let Some(from) = self.clone_for(ino, new, &piece).await? {
                let next = piece.start + from.len;
                self.clone_command(path, piece.start, &from).await?;
                piece = piece.part(next, piece.end);
                continue;
            }
            if self.options.compressed_data && self.encoded(ino, path, new, &piece).await? {
                return Ok(());
            }
            return self.write(ino, path, piece.start, piece.end).await;
        }
        Ok(())
    }

    async fn clone_command(&mut self, path: &[u8], at: u64, from: &CloneFrom) -> Result<()> {
        let (root, uuid, ctransid) = match from.source.and_then(|n| self.extents.sources.get(n)) {
            Some(source) => (source.subvolume.id, source.uuid, source.ctransid),
            None => (self.new.subvolume.id, self.new.uuid, self.new.ctransid),
        };
        let names = self.fs.names(InodeId { root, ino: from.ino }).await?;
        let Some((dir, _, name)) = names.into_iter().min() else {
            return Err(Error::corrupt(format!("root {root} inode {} has no name", from.ino)));
        };
        let clone_path = self.path(root, dir, &name, false).await?;
        let clone = self.out.command(Command::Clone);
        let clone = clone.u64(Attr::FileOffset, at).u64(Attr::CloneLen, from.len).path(path);
        let clone = clone.uuid(Attr::CloneUuid, uuid).u64(Attr::CloneCtransid, ctransid);
        let clone = clone.bytes(Attr::ClonePath, &clone_path);
        clone.u64(Attr::CloneOffset, from.at).send().map_err(failed)
    }

    /// Somewhere the receiver has the first bytes of `piece`, in whole sectors or up to both ends of
    /// file.
    async fn clone_for(
        &mut self,
        ino: u64,
        new: &Inode,
        piece: &Segment,
    ) -> Result<Option<CloneFrom>> {
        let Source::Disk { at, disk_len, .. } = piece.source else { return Ok(None) };
        if !self.extents.is_shared(self.fs, at, disk_len).await {
            return Ok(None);
        }
        let here = self.extents.sent.get(&at.0).cloned().unwrap_or_default();
        for used in here {
            let to_end = used.ino != ino && piece.end == new.size;
            let size = match used.ino == ino {
                true => used.start + used.len,
                false => self.size(self.new.subvolume.id, used.ino).await?,
            };
            if let Some((from, len)) = self.overlap(&used, piece, size, to_end)
                && (used.ino != ino || from + len <= piece.start)
            {
                return Ok(Some(CloneFrom { source: None, ino: used.ino, at: from, len }));
            }
        }
        if self.extents.sources.is_empty() {
            return Ok(None);
        }
        self.extents.read_sources(self.fs).await?;
        let found: Vec<(usize, Used)> = self
            .extents
            .index
            .iter()
            .flatten()
            .enumerate()
            .flat_map(|(n, index)| index.get(&at.0).into_iter().flatten().map(move |u| (n, *u)))
            .collect();
        for (n, used) in found {
            let root = match self.extents.sources.get(n) {
                Some(source) => source.subvolume.id,
                None => continue,
            };
            let size = self.size(root, used.ino).await?;
            if let Some((from, len)) = self.overlap(&used, piece, size, piece.end == new.size) {
                // One that was unlinked while in use has no path.
                if !self.fs.names(InodeId { root, ino: used.ino }).await?.is_empty() {
                    return Ok(Some(CloneFrom { source: Some(n), ino: used.ino, at: from, len }));
                }
            }
        }
        Ok(None)
    }

    async fn size(&self, root: u64, ino: u64) -> Result<u64> {
        Ok(self.fs.inode(InodeId { root, ino }).await?.size)
    }

    /// Position in the other file and length, of what it has of the start of `piece`.
    fn overlap(&self, used: &Used, piece: &Segment, size: u64, to_end: bool) -> Option<(u64, u64)> {
        let sector = u64::from(self.fs.volume.rules.sectorsize);
        let skip = piece.offset.checked_sub(used.offset)?;
        let from = used.start.checked_add(skip)?;
        let end = used.start.checked_add(used.len)?.min(size);
        let len = end.checked_sub(from)?.min(piece.end - piece.start);
        // A last sector that is not whole can be cloned only where it is the last of both files.
        let both_end = to_end && from + len == size && len == piece.end - piece.start;
        let len = if both_end { len } else { len - len % sector };
        (len > 0 && from.is_multiple_of(sector)).then_some((from, len))
    }

    /// The extent as it is on disk; `false` when it is not compressed.
    async fn encoded(
        &mut self,
        ino: u64,
        path: &[u8],
        new: &Inode,
        piece: &Segment,
    ) -> Result<bool> {
        let Source::Disk { at, disk_len, ram_bytes, compression } = piece.source else {
            return Ok(false);
        };
        let sector = u64::from(self.fs.volume.rules.sectorsize);
        let code = match compression {
            Compression::None => return Ok(false),
            Compression::Zlib => 1,
            Compression::Zstd => 2,
            // One code for each sector size from 4 KiB on.
            Compression::Lzo => 3 + (sector.trailing_zeros().saturating_sub(12)),
        };
        let len = piece.end - piece.start;
        if disk_len > MAX_UNCOMPRESSED
            || ram_bytes > MAX_UNCOMPRESSED
            || piece.offset.saturating_add(len) > ram_bytes
            || disk_len == 0
        {
            return Ok(false);
        }
        let mut bytes = vec![0; to_usize(disk_len)];
        let checked = !new.flags.contains(InodeFlags::NODATASUM);
        let sums = match checked {
            true => Some(self.fs.sums(at, disk_len).await?),
            false => None,
        };
        let root = self.new.subvolume.id;
        let owner = Owner { root, inode: ino, offset: piece.start.wrapping_sub(piece.offset) };
        self.fs.volume.read_data(at, &mut bytes, sums.as_ref(), &owner).await?;
        let write = self.out.command(Command::EncodedWrite).path(path);
        let write = write.u64(Attr::FileOffset, piece.start).u64(Attr::UnencodedFileLen, len);
        let write = write.u64(Attr::UnencodedLen, ram_bytes);
        let write = write.u64(Attr::UnencodedOffset, piece.offset);
        let write = write.u32(Attr::Compression, code);
        write.bytes(Attr::Data, &bytes).send().map_err(failed)?;
        Ok(true)
    }

    /// Notes where an extent is now, for files that come later.
    async fn remember(&mut self, ino: u64, new: &Inode, segment: &Segment) {
        let Source::Disk { at, disk_len, .. } = segment.source else { return };
        let end = segment.end.min(new.size);
        if end <= segment.start || !self.extents.is_shared(self.fs, at, disk_len).await {
            return;
        }
        let places = self.extents.sent.entry(at.0).or_default();
        if places.len() < PLACES {
            let (start, offset, len) = (segment.start, segment.offset, end - segment.start);
            places.push(Used { ino, start, offset, len });
        }
    }
}

/// A file's bytes up to `end`, without gaps.
async fn segments<D: BlockDevice>(fs: &Fs<D>, id: InodeId, end: u64) -> Result<Vec<Segment>> {
    let subvolume = fs.subvolume(id.root).await?;
    let sector = u64::from(fs.volume.rules.sectorsize);
    let key = |offset| Key::new(id.ino, ItemType::EXTENT_DATA, offset);
    let mut cursor = Cursor::seek(&fs.volume, &subvolume.tree, key(0)).await?;
    let mut all: Vec<Segment> = Vec::new();
    let mut at = 0;
    let hole = |start, end| Segment { start, end, offset: 0, source: Source::Zero };
    while let Some(item) = cursor.next_to(key(u64::MAX)).await? {
        let start = item.key().offset;
        if start >= end {
            break;
        }
        let extent = FileExtent::parse(item.data())
            .map_err(|wrong| Error::corrupt(format!("{id} extent at {start}: {wrong}")))?;
        let len = match extent.body {
            Body::Inline(_) => extent.ram_bytes.checked_next_multiple_of(sector),
            _ => Some(extent.file_len()),
        };
        let stop = len.and_then(|len| start.checked_add(len));
        let Some(stop) = stop.filter(|_| start >= at) else {
            return Err(Error::corrupt(format!("{id}: the extent at {start} overlaps another")));
        };
        if at < start {
            all.push(hole(at, start));
        }
        let (offset, source) = match extent.body {
            Body::Inline(bytes) => {
                let compression = extent.compression.to_disk();
                (0, Source::Inline { compression, bytes: bytes.to_vec() })
            }
            Body::Regular(place) if !place.is_hole() => {
                let (at, disk_len) = (place.disk_bytenr, place.disk_num_bytes);
                let (ram_bytes, compression) = (extent.ram_bytes, extent.compression);
                (place.offset, Source::Disk { at, disk_len, ram_bytes, compression })
            }
            _ => (0, Source::Zero),
        };
        let stop = stop.min(end);
        if start < stop {
            all.push(Segment { start, end: stop, offset, source });
        }
        at = stop;
    }
    if at < end {
        all.push(hole(at, end));
    }
    Ok(all)
}

/// The parts of `wanted` that `had` does not have in the same place.
fn different(wanted: &[Segment], had: &[Segment]) -> Vec<Segment> {
    let mut out: Vec<Segment> = Vec::new();
    let mut rest = had.iter().peekable();
    for want in wanted {
        let mut at = want.start;
        while at < want.end {
            while rest.peek().is_some_and(|have| have.end <= at) {
                rest.next();
            }
            let (end, same) = match rest.peek() {
                None => (want.end, want.source == Source::Zero),
                Some(have) => {
                    let end = want.end.min(have.end);
                    let (a, b) = (want.part(at, end), have.part(at, end));
                    let same = match (&a.source, &b.source) {
                        (Source::Zero, Source::Zero) => true,
                        (x, y) => x == y && a.offset == b.offset,
                    };
                    (end, same)
                }
            };
            if !same {
                match out.last_mut() {
                    // What was cut only by the other side's borders is sent in one piece.
                    Some(last)
                        if last.end == at && at > want.start && last.source == want.source =>
                    {
                        last.end = end;
                    }
                    _ => out.push(want.part(at, end)),
                }
            }
            at = end;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(start: u64, end: u64, at: u64, offset: u64) -> Segment {
        let source = Source::Disk {
            at: Logical(at),
            disk_len: 1 << 20,
            ram_bytes: 1 << 20,
            compression: Compression::None,
        };
        Segment { start, end, offset, source }
    }

    fn zero(start: u64, end: u64) -> Segment {
        Segment { start, end, offset: 0, source: Source::Zero }
    }

    #[test]
    fn the_same_extent_in_the_same_place_is_no_difference() {
        let file = [disk(0, 8192, 1 << 20, 0), zero(8192, 16384)];
        assert!(different(&file, &file).is_empty());
        // Split at another place it is still the same.
        let split = [disk(0, 4096, 1 << 20, 0), disk(4096, 8192, 1 << 20, 4096), zero(8192, 16384)];
        assert!(different(&file, &split).is_empty());
    }

    #[test]
    fn an_overwritten_middle_is_the_only_difference() {
        let old = [disk(0, 16384, 1 << 20, 0)];
        let new = [
            disk(0, 4096, 1 << 20, 0),
            disk(4096, 8192, 2 << 20, 0),
            disk(8192, 16384, 1 << 20, 8192),
        ];
        assert_eq!(different(&new, &old), [disk(4096, 8192, 2 << 20, 0)]);
    }

    #[test]
    fn a_hole_over_data_and_data_over_a_hole_are_differences() {
        let (data, hole) = ([disk(0, 8192, 1 << 20, 0)], [zero(0, 8192)]);
        assert_eq!(different(&hole, &data), hole);
        assert_eq!(different(&data, &hole), data);
        assert_eq!(different(&data, &[]), data);
        assert!(different(&hole, &[]).is_empty());
    }

    #[test]
    fn a_piece_is_not_cut_where_only_the_old_file_was() {
        let old = [disk(0, 4096, 3 << 20, 0), disk(4096, 8192, 4 << 20, 0)];
        let new = [disk(0, 8192, 1 << 20, 0)];
        assert_eq!(different(&new, &old), new);
    }
}
