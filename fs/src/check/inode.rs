//! One inode while its items pass by, and the verdict on it: a set of error bits, numbered and worded
//! as the reference checker has them.

use super::files::has_csums;
use crate::format::dir::DirItem;
use crate::format::file_extent::{Body, FileExtent, MAX_UNCOMPRESSED};
use crate::format::inode::{FileType, Inode, InodeFlags};
use crate::format::key::objectid;
use crate::units::round_up;

pub(crate) mod error {
    pub(crate) const NO_INODE_ITEM: u32 = 0x1;
    pub(crate) const NO_ORPHAN_ITEM: u32 = 0x2;
    pub(crate) const DUP_DIR_INDEX: u32 = 0x8;
    pub(crate) const ODD_DIR_ITEM: u32 = 0x10;
    pub(crate) const ODD_FILE_EXTENT: u32 = 0x20;
    pub(crate) const BAD_FILE_EXTENT: u32 = 0x40;
    pub(crate) const FILE_EXTENT_OVERLAP: u32 = 0x80;
    pub(crate) const FILE_EXTENT_DISCOUNT: u32 = 0x100;
    pub(crate) const DIR_ISIZE: u32 = 0x200;
    pub(crate) const FILE_NBYTES: u32 = 0x400;
    pub(crate) const ODD_CSUM_ITEM: u32 = 0x800;
    pub(crate) const SOME_CSUM_MISSING: u32 = 0x1000;
    pub(crate) const LINK_COUNT: u32 = 0x2000;
    pub(crate) const FILE_EXTENT_TOO_LARGE: u32 = 0x8000;
    pub(crate) const ODD_INODE_FLAGS: u32 = 0x10000;
    pub(crate) const INLINE_RAM_BYTES: u32 = 0x20000;
    pub(crate) const DIR_HASH: u32 = 0x40000;
    pub(crate) const INVALID_MODE: u32 = 0x80000;
    pub(crate) const INVALID_GENERATION: u32 = 0x0010_0000;
    pub(crate) const INVALID_NLINK: u32 = 0x0020_0000;
    pub(crate) const INVALID_XATTR: u32 = 0x0040_0000;
    pub(crate) const DEPRECATED_FREE_INO: u32 = 0x0080_0000;
    pub(crate) const DUP_FILENAME: u32 = 0x0100_0000;

    const TEXTS: [(u32, &str); 23] = [
        (NO_INODE_ITEM, "no inode item"),
        (NO_ORPHAN_ITEM, "no orphan item"),
        (DUP_DIR_INDEX, "dup dir index"),
        (ODD_DIR_ITEM, "odd dir item"),
        (ODD_FILE_EXTENT, "odd file extent"),
        (BAD_FILE_EXTENT, "bad file extent"),
        (FILE_EXTENT_OVERLAP, "file extent overlap"),
        (FILE_EXTENT_DISCOUNT, "file extent discount"),
        (DIR_ISIZE, "dir isize wrong"),
        (FILE_NBYTES, "nbytes wrong"),
        (ODD_CSUM_ITEM, "odd csum item"),
        (SOME_CSUM_MISSING, "some csum missing"),
        (LINK_COUNT, "link count wrong"),
        (FILE_EXTENT_TOO_LARGE, "file extent too large"),
        (ODD_INODE_FLAGS, "odd inode flags"),
        (INLINE_RAM_BYTES, "invalid inline ram bytes"),
        (DIR_HASH, "name hash mismatch with key"),
        (INVALID_MODE, "invalid inode mode"),
        (INVALID_GENERATION, "invalid inode generation or transid"),
        (INVALID_NLINK, "invalid nlink"),
        (INVALID_XATTR, "invalid xattr"),
        (DEPRECATED_FREE_INO, "deprecated free inode cache"),
        (DUP_FILENAME, "duplicate filename"),
    ];

    pub(crate) fn texts(errors: u32) -> String {
        let texts: Vec<_> =
            TEXTS.iter().filter(|(bit, _)| errors & bit != 0).map(|(_, text)| *text).collect();
        texts.join(", ")
    }
}

/// What an inode is measured against.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Surroundings {
    pub(crate) sectorsize: u64,
    pub(crate) leaf_space: u64,
    pub(crate) no_holes: bool,
    /// Newest generation that an inode may have.
    pub(crate) generation: u64,
    /// Checksums of data are known: the checksum tree could be read.
    pub(crate) csums: bool,
}

#[derive(Debug)]
pub(crate) struct InodeState {
    pub(crate) ino: u64,
    pub(crate) item: Option<Inode>,
    /// Entries of INODE_REF and INODE_EXTREF.
    pub(crate) names: u64,
    pub(crate) has_entries: bool,
    /// Twice the lengths of the names in DIR_INDEX.
    pub(crate) dir_bytes: u64,
    pub(crate) errors: u32,
    pub(crate) found_csum: bool,
    pub(crate) missing_csum: bool,
    pub(crate) packed_without_csum: bool,
    has_extents: bool,
    /// Bytes that the extents allocate.
    bytes: u64,
    /// Where the extents so far end.
    end: u64,
    /// First byte that no item covers.
    gap: Option<u64>,
}

impl InodeState {
    pub(crate) fn new(ino: u64) -> InodeState {
        InodeState {
            ino,
            item: None,
            names: 0,
            has_entries: false,
            dir_bytes: 0,
            errors: 0,
            found_csum: false,
            missing_csum: false,
            packed_without_csum: false,
            has_extents: false,
            bytes: 0,
            end: 0,
            gap: None,
        }
    }

    pub(crate) fn extent(&mut self, at: u64, extent: &FileExtent<'_>, around: &Surroundings) {
        self.has_extents = true;
        if at < self.end {
            self.errors |= error::FILE_EXTENT_OVERLAP;
        }
        if at > self.end {
            self.gap.get_or_insert(self.end);
        }
        let packed = extent.compression.to_disk() != 0;
        let len = match extent.body {
            Body::Inline(data) => {
                let ram = extent.ram_bytes;
                self.bytes = self.bytes.saturating_add(ram);
                self.inline(data.len() as u64, ram, packed, around);
                round_up(ram, around.sectorsize).unwrap_or(u64::MAX)
            }
            Body::Regular(place) | Body::Prealloc(place) => {
                let prealloc = matches!(extent.body, Body::Prealloc(_));
                let inside = place.offset.checked_add(place.num_bytes);
                let bad = place.num_bytes == 0
                    || !place.num_bytes.is_multiple_of(around.sectorsize)
                    || inside.is_none_or(|end| end > extent.ram_bytes)
                    || (prealloc && packed);
                if bad {
                    self.errors |= error::BAD_FILE_EXTENT;
                }
                if !place.is_hole() {
                    self.bytes = self.bytes.saturating_add(place.num_bytes);
                    self.disk(place.disk_num_bytes, extent.ram_bytes, inside, packed);
                }
                place.num_bytes
            }
        };
        self.end = self.end.max(at.saturating_add(len));
    }

    fn inline(&mut self, stored: u64, ram: u64, packed: bool, around: &Surroundings) {
        if ram == 0 {
            self.errors |= error::BAD_FILE_EXTENT;
        }
        if !packed && stored != ram {
            self.errors |= error::INLINE_RAM_BYTES;
        }
        if ram > around.sectorsize.max(around.leaf_space) || (packed && ram > around.sectorsize) {
            self.errors |= error::FILE_EXTENT_TOO_LARGE;
        }
    }

    /// The extent itself.
    fn disk(&mut self, disk: u64, ram: u64, inside: Option<u64>, packed: bool) {
        if packed {
            if ram > MAX_UNCOMPRESSED || disk > MAX_UNCOMPRESSED {
                self.errors |= error::FILE_EXTENT_TOO_LARGE;
            }
        } else if inside.is_none_or(|end| end > disk) {
            self.errors |= error::BAD_FILE_EXTENT;
        }
    }

    pub(crate) fn xattrs(&mut self, data: &[u8]) {
        if DirItem::each(data).any(|entry| entry.is_err()) {
            self.errors |= error::INVALID_XATTR;
        }
    }

    /// The type that directory entries must show.
    pub(crate) fn dir_type(&self) -> u8 {
        match self.item.map(|inode| inode.file_type()) {
            Some(FileType::Regular) => 1,
            Some(FileType::Directory) => 2,
            Some(FileType::CharDevice) => 3,
            Some(FileType::BlockDevice) => 4,
            Some(FileType::Fifo) => 5,
            Some(FileType::Socket) => 6,
            Some(FileType::Symlink) => 7,
            Some(FileType::Unknown) | None => 0,
        }
    }

    /// Names that have a directory entry: not a root directory's "..".
    pub(crate) fn entry_names(&self) -> u64 {
        let dotdot = self.ino == objectid::FIRST_FREE && self.names > 0;
        self.names - u64::from(dotdot)
    }

    /// Deleted, with its items still there: an orphan item must say so.
    pub(crate) fn is_unlinked(&self) -> bool {
        self.ino != objectid::FREE_INO
            && self.names == 0
            && self.item.is_some_and(|inode| inode.nlink == 0)
    }

    pub(crate) fn verdict(&self, around: &Surroundings) -> u32 {
        if self.ino == objectid::FREE_INO {
            return error::DEPRECATED_FREE_INO;
        }
        let mut errors = self.errors;
        let Some(inode) = &self.item else { return errors | error::NO_INODE_ITEM };
        let mut note = |wrong: bool, bit: u32| {
            if wrong {
                errors |= bit;
            }
        };
        let newest = around.generation;
        note(inode.generation > newest || inode.transid > newest, error::INVALID_GENERATION);
        note(self.names != u64::from(inode.nlink), error::LINK_COUNT);
        let kind = inode.file_type();
        note(kind == FileType::Unknown, error::INVALID_MODE);
        match kind {
            FileType::Directory => {
                note(inode.nlink > 1, error::INVALID_NLINK);
                note(self.dir_bytes != inode.size, error::DIR_ISIZE);
                note(self.has_extents, error::ODD_FILE_EXTENT);
            }
            FileType::Regular | FileType::Symlink => {
                note(self.has_entries, error::ODD_DIR_ITEM);
                note(self.bytes != inode.nbytes, error::FILE_NBYTES);
                let odd = InodeFlags::IMMUTABLE | InodeFlags::APPEND;
                let link = kind == FileType::Symlink;
                note(link && inode.flags.intersects(odd), error::ODD_INODE_FLAGS);
                note(self.uncovered(inode, around), error::FILE_EXTENT_DISCOUNT);
            }
            _ => {
                note(self.has_entries, error::ODD_DIR_ITEM);
                note(self.has_extents, error::ODD_FILE_EXTENT);
            }
        }
        if around.csums {
            let summed = has_csums(inode);
            note(summed && self.missing_csum, error::SOME_CSUM_MISSING);
            note(!summed && self.found_csum, error::ODD_CSUM_ITEM);
            // Nobody compresses what has no checksum.
            note(!summed && self.packed_without_csum, error::SOME_CSUM_MISSING);
        }
        errors
    }

    /// Whether, without the feature that makes gaps holes, some byte has no item.
    fn uncovered(&self, inode: &Inode, around: &Surroundings) -> bool {
        let regular = inode.file_type() == FileType::Regular;
        if around.no_holes || !regular || inode.nlink == 0 {
            return false;
        }
        let covered = self.gap.unwrap_or(self.end);
        covered < inode.size
    }
}
