//! The kernel's FUSE protocol, as much of it as a read-only mount speaks: every number in this host's
//! order of bytes.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::mem::{offset_of, size_of};
use std::time::Duration;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// How long the kernel may keep what it was told: nothing changes.
const KEEP: Duration = Duration::from_secs(365 * 24 * 3600);

/// What the kernel may ask for, by its number.
pub(super) mod opcode {
    pub(crate) const LOOKUP: u32 = 1;
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const READLINK: u32 = 5;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const STATFS: u32 = 17;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const FSYNC: u32 = 20;
    pub(crate) const GETXATTR: u32 = 22;
    pub(crate) const LISTXATTR: u32 = 23;
    pub(crate) const OPENDIR: u32 = 27;
    pub(crate) const READDIR: u32 = 28;
    pub(crate) const RELEASEDIR: u32 = 29;
    pub(crate) const ACCESS: u32 = 34;
    pub(crate) const DESTROY: u32 = 38;
    pub(crate) const BATCH_FORGET: u32 = 42;
    pub(crate) const READDIRPLUS: u32 = 44;
    pub(crate) const LSEEK: u32 = 46;
}

/// Head of every request.
#[derive(FromBytes, KnownLayout, Immutable, Debug)]
#[repr(C)]
pub(super) struct RawRequest {
    pub(super) len: u32,
    pub(super) opcode: u32,
    pub(super) unique: u64,
    pub(super) node: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) pid: u32,
    pub(super) padding: u32,
}
const _: () = assert!(size_of::<RawRequest>() == 40 && offset_of!(RawRequest, node) == 16);

/// READ, READDIR and READDIRPLUS.
#[derive(FromBytes, KnownLayout, Immutable, Debug)]
#[repr(C)]
pub(super) struct RawRead {
    pub(super) handle: u64,
    pub(super) offset: u64,
    pub(super) len: u32,
    pub(super) read_flags: u32,
    pub(super) lock_owner: u64,
    pub(super) open_flags: u32,
    pub(super) padding: u32,
}
const _: () = assert!(size_of::<RawRead>() == 40 && offset_of!(RawRead, len) == 16);

/// GETXATTR, before the name, and LISTXATTR.
#[derive(FromBytes, KnownLayout, Immutable, Debug)]
#[repr(C)]
pub(super) struct RawXattr {
    /// 0: how long it is, is all that is asked.
    pub(super) room: u32,
    pub(super) padding: u32,
}
const _: () = assert!(size_of::<RawXattr>() == 8);

#[derive(FromBytes, KnownLayout, Immutable, Debug)]
#[repr(C)]
pub(super) struct RawSeek {
    pub(super) handle: u64,
    pub(super) offset: u64,
    pub(super) whence: u32,
    pub(super) padding: u32,
}
const _: () = assert!(size_of::<RawSeek>() == 24 && offset_of!(RawSeek, whence) == 16);

#[derive(FromBytes, KnownLayout, Immutable, Debug)]
#[repr(C)]
pub(super) struct RawAccess {
    pub(super) mask: u32,
    pub(super) padding: u32,
}
const _: () = assert!(size_of::<RawAccess>() == 8);

/// Head of every answer.
#[derive(IntoBytes, KnownLayout, Immutable, Debug)]
#[repr(C)]
pub(super) struct RawAnswer {
    pub(super) len: u32,
    /// An errno, negative.
    pub(super) error: i32,
    pub(super) unique: u64,
}
const _: () = assert!(size_of::<RawAnswer>() == 16 && offset_of!(RawAnswer, unique) == 8);

/// What stat(2) shows.
#[derive(IntoBytes, KnownLayout, Immutable, Clone, Copy, Default, Debug)]
#[repr(C)]
pub(super) struct RawAttr {
    pub(super) ino: u64,
    pub(super) size: u64,
    pub(super) blocks: u64,
    pub(super) atime: u64,
    pub(super) mtime: u64,
    pub(super) ctime: u64,
    pub(super) atime_ns: u32,
    pub(super) mtime_ns: u32,
    pub(super) ctime_ns: u32,
    pub(super) mode: u32,
    pub(super) nlink: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) rdev: u32,
    pub(super) blksize: u32,
    pub(super) flags: u32,
}
const _: () = assert!(size_of::<RawAttr>() == 88 && offset_of!(RawAttr, mode) == 60);

/// The answer to GETATTR.
#[derive(IntoBytes, KnownLayout, Immutable, Debug)]
#[repr(C)]
pub(super) struct RawAttrAnswer {
    valid: u64,
    valid_ns: u32,
    padding: u32,
    attr: RawAttr,
}
const _: () = assert!(size_of::<RawAttrAnswer>() == 104);

impl RawAttrAnswer {
    pub(super) fn new(attr: RawAttr) -> RawAttrAnswer {
        RawAttrAnswer { valid: KEEP.as_secs(), valid_ns: 0, padding: 0, attr }
    }
}

/// The answer to LOOKUP, and what READDIRPLUS tells of each name.
#[derive(IntoBytes, KnownLayout, Immutable, Debug)]
#[repr(C)]
pub(super) struct RawEntry {
    /// 0: there is none, and that may be kept too.
    node: u64,
    generation: u64,
    entry_valid: u64,
    attr_valid: u64,
    entry_valid_ns: u32,
    attr_valid_ns: u32,
    attr: RawAttr,
}
const _: () = assert!(size_of::<RawEntry>() == 128 && offset_of!(RawEntry, attr) == 40);

impl RawEntry {
    pub(super) fn new(attr: RawAttr) -> RawEntry {
        RawEntry {
            node: attr.ino,
            generation: 0,
            entry_valid: KEEP.as_secs(),
            attr_valid: KEEP.as_secs(),
            entry_valid_ns: 0,
            attr_valid_ns: 0,
            attr,
        }
    }
}

/// A name in a listing. The name follows, and zeroes up to a multiple of eight.
#[derive(IntoBytes, KnownLayout, Immutable, Debug)]
#[repr(C)]
pub(super) struct RawName {
    pub(super) ino: u64,
    /// Where to go on behind it.
    pub(super) cookie: u64,
    pub(super) name_len: u32,
    pub(super) kind: u32,
}
const _: () = assert!(size_of::<RawName>() == 24);

#[derive(IntoBytes, KnownLayout, Immutable, Debug)]
#[repr(C)]
pub(super) struct RawOpened {
    pub(super) handle: u64,
    pub(super) flags: u32,
    pub(super) backing: u32,
}
const _: () = assert!(size_of::<RawOpened>() == 16);

#[derive(IntoBytes, KnownLayout, Immutable, Debug)]
#[repr(C)]
pub(super) struct RawXattrSize {
    pub(super) len: u32,
    pub(super) padding: u32,
}
const _: () = assert!(size_of::<RawXattrSize>() == 8);

#[derive(IntoBytes, KnownLayout, Immutable, Default, Debug)]
#[repr(C)]
pub(super) struct RawSpace {
    pub(super) blocks: u64,
    pub(super) free: u64,
    pub(super) available: u64,
    pub(super) files: u64,
    pub(super) files_free: u64,
    pub(super) block_size: u32,
    pub(super) name_max: u32,
    pub(super) fragment_size: u32,
    pub(super) padding: u32,
    pub(super) spare: [u32; 6],
}
const _: () = assert!(size_of::<RawSpace>() == 80 && offset_of!(RawSpace, block_size) == 40);
