//! Inodes and the names that lead to them (format: btrfs 10.1, 10.2).

use super::{Result, exactly, head, wrong};
use std::fmt;
use std::mem::offset_of;
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Longest name of a file, attribute or subvolume.
pub const NAME_MAX: usize = 255;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct RawTime {
    seconds: I64,
    nanos: U32,
}
const _: () = assert!(size_of::<RawTime>() == 12);

/// Seconds since 1970 (negative before) and nanoseconds, as stored: nobody checks the latter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Time {
    pub seconds: i64,
    pub nanos: u32,
}

impl From<RawTime> for Time {
    fn from(raw: RawTime) -> Time {
        Time { seconds: raw.seconds.get(), nanos: raw.nanos.get() }
    }
}

impl From<Time> for RawTime {
    fn from(time: Time) -> RawTime {
        RawTime { seconds: time.seconds.into(), nanos: time.nanos.into() }
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09}", self.seconds, self.nanos)
    }
}

bitflags::bitflags! {
    /// The low half of an inode's flags. The high half is for read-only-compatible features.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct InodeFlags: u64 {
        const NODATASUM = 1 << 0;
        const NODATACOW = 1 << 1;
        const READONLY = 1 << 2;
        const NOCOMPRESS = 1 << 3;
        const PREALLOC = 1 << 4;
        const SYNC = 1 << 5;
        const IMMUTABLE = 1 << 6;
        const APPEND = 1 << 7;
        const NODUMP = 1 << 8;
        const NOATIME = 1 << 9;
        const DIRSYNC = 1 << 10;
        const COMPRESS = 1 << 11;
        /// Only inside ROOT_ITEM: the fields of the embedded inode are initialised.
        const ROOT_ITEM_INIT = 1 << 31;
        /// Read-only compatible: fs-verity.
        const VERITY = 1 << 32;
        const _ = !0;
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Debug)]
#[repr(C)]
pub(crate) struct RawInode {
    generation: U64,
    transid: U64,
    size: U64,
    nbytes: U64,
    block_group: U64,
    nlink: U32,
    uid: U32,
    gid: U32,
    mode: U32,
    rdev: U64,
    flags: U64,
    sequence: U64,
    reserved: [u8; 32],
    atime: RawTime,
    ctime: RawTime,
    mtime: RawTime,
    otime: RawTime,
}
const _: () = assert!(size_of::<RawInode>() == 160 && offset_of!(RawInode, atime) == 0x70);

/// INODE_ITEM.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Inode {
    /// Transaction that created it.
    pub generation: u64,
    /// Transaction that last changed it.
    pub transid: u64,
    pub size: u64,
    /// Allocated bytes: extents without holes, inline data uncompressed.
    pub nbytes: u64,
    pub block_group: u64,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
    pub rdev: u64,
    pub flags: InodeFlags,
    pub sequence: u64,
    /// Nobody's yet; kept on rewrite.
    pub reserved: [u8; 32],
    pub atime: Time,
    pub ctime: Time,
    pub mtime: Time,
    pub otime: Time,
}

impl Inode {
    pub const SIZE: usize = 160;

    pub fn parse(bytes: &[u8]) -> Result<Inode> {
        Ok(Inode::from(exactly::<RawInode>(bytes, "160")?))
    }

    pub fn encode(&self) -> [u8; Inode::SIZE] {
        zerocopy::transmute!(self.raw())
    }

    pub(crate) fn raw(&self) -> RawInode {
        RawInode {
            generation: self.generation.into(),
            transid: self.transid.into(),
            size: self.size.into(),
            nbytes: self.nbytes.into(),
            block_group: self.block_group.into(),
            nlink: self.nlink.into(),
            uid: self.uid.into(),
            gid: self.gid.into(),
            mode: self.mode.into(),
            rdev: self.rdev.into(),
            flags: self.flags.bits().into(),
            sequence: self.sequence.into(),
            reserved: self.reserved,
            atime: self.atime.into(),
            ctime: self.ctime.into(),
            mtime: self.mtime.into(),
            otime: self.otime.into(),
        }
    }

    /// Major and minor number of a device: the kernel's own 12 and 20 bits, as it has them in memory.
    pub fn device(&self) -> (u32, u32) {
        let bits = |n: u64, mask: u32| u32::try_from(n & u64::from(mask)).unwrap_or(0);
        (bits(self.rdev >> 20, 0xFFF), bits(self.rdev, 0xF_FFFF))
    }

    pub fn file_type(&self) -> FileType {
        FileType::from_mode(self.mode)
    }
}

impl From<&RawInode> for Inode {
    fn from(raw: &RawInode) -> Inode {
        Inode {
            generation: raw.generation.get(),
            transid: raw.transid.get(),
            size: raw.size.get(),
            nbytes: raw.nbytes.get(),
            block_group: raw.block_group.get(),
            nlink: raw.nlink.get(),
            uid: raw.uid.get(),
            gid: raw.gid.get(),
            mode: raw.mode.get(),
            rdev: raw.rdev.get(),
            flags: InodeFlags::from_bits_retain(raw.flags.get()),
            sequence: raw.sequence.get(),
            reserved: raw.reserved,
            atime: raw.atime.into(),
            ctime: raw.ctime.into(),
            mtime: raw.mtime.into(),
            otime: raw.otime.into(),
        }
    }
}

/// What an inode is: the type bits of its mode.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FileType {
    Regular,
    Directory,
    CharDevice,
    BlockDevice,
    Fifo,
    Socket,
    Symlink,
    /// Mode bits that name no type: corruption, which the tree checker reports.
    Unknown,
}

pub const S_IFMT: u32 = 0o170_000;
pub const S_IFDIR: u32 = 0o040_000;

impl FileType {
    pub fn from_mode(mode: u32) -> FileType {
        match mode & S_IFMT {
            0o100_000 => FileType::Regular,
            S_IFDIR => FileType::Directory,
            0o020_000 => FileType::CharDevice,
            0o060_000 => FileType::BlockDevice,
            0o010_000 => FileType::Fifo,
            0o140_000 => FileType::Socket,
            0o120_000 => FileType::Symlink,
            _ => FileType::Unknown,
        }
    }

    /// From the type byte of a directory entry.
    pub fn from_dir_type(kind: u8) -> FileType {
        match kind {
            1 => FileType::Regular,
            2 => FileType::Directory,
            3 => FileType::CharDevice,
            4 => FileType::BlockDevice,
            5 => FileType::Fifo,
            6 => FileType::Socket,
            7 => FileType::Symlink,
            _ => FileType::Unknown,
        }
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Debug)]
#[repr(C)]
pub(crate) struct RawInodeRef {
    index: U64,
    name_len: U16,
}
const _: () = assert!(size_of::<RawInodeRef>() == INODE_REF_SIZE);
pub(crate) const INODE_REF_SIZE: usize = 10;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Debug)]
#[repr(C)]
pub(crate) struct RawInodeExtref {
    parent: U64,
    index: U64,
    name_len: U16,
}
const _: () = assert!(size_of::<RawInodeExtref>() == INODE_EXTREF_SIZE);
pub(crate) const INODE_EXTREF_SIZE: usize = 18;

/// One name of an inode: an entry of INODE_REF (whose key names the parent) or INODE_EXTREF.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InodeRef<'a> {
    pub parent: u64,
    /// Index of the DIR_INDEX item of the same name.
    pub index: u64,
    pub name: &'a [u8],
}

impl<'a> InodeRef<'a> {
    /// The entries of an INODE_REF item under `(inode INODE_REF parent)`. Ends after the first
    /// entry that does not fit.
    pub fn each(bytes: &'a [u8], parent: u64) -> impl Iterator<Item = Result<InodeRef<'a>>> {
        entries(bytes, move |rest| {
            let (raw, rest) = head::<RawInodeRef>(rest, "an inode reference of 10 bytes")?;
            let (name, rest) = name_of(rest, raw.name_len.get())?;
            Ok((InodeRef { parent, index: raw.index.get(), name }, rest))
        })
    }

    /// The entries of an INODE_EXTREF item: hash collisions share one.
    pub fn each_ext(bytes: &'a [u8]) -> impl Iterator<Item = Result<InodeRef<'a>>> {
        entries(bytes, |rest| {
            let (raw, rest) = head::<RawInodeExtref>(rest, "an extended reference of 18 bytes")?;
            let (name, rest) = name_of(rest, raw.name_len.get())?;
            Ok((InodeRef { parent: raw.parent.get(), index: raw.index.get(), name }, rest))
        })
    }

    /// # Panics
    /// With a name above 65535 bytes.
    pub fn encode(&self) -> Vec<u8> {
        let raw = RawInodeRef { index: self.index.into(), name_len: name_len(self.name).into() };
        [raw.as_bytes(), self.name].concat()
    }

    /// # Panics
    /// With a name above 65535 bytes.
    pub fn encode_ext(&self) -> Vec<u8> {
        let raw = RawInodeExtref {
            parent: self.parent.into(),
            index: self.index.into(),
            name_len: name_len(self.name).into(),
        };
        [raw.as_bytes(), self.name].concat()
    }
}

pub(crate) fn name_len(name: &[u8]) -> u16 {
    u16::try_from(name.len()).expect("names are checked before they are encoded")
}

/// Length of the name behind an entry's head, and what follows that head: for a checker.
pub(crate) fn inode_ref_head(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (raw, rest) = RawInodeRef::ref_from_prefix(bytes).ok()?;
    Some((raw.name_len.get(), rest))
}

pub(crate) fn inode_extref_head(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (raw, rest) = RawInodeExtref::ref_from_prefix(bytes).ok()?;
    Some((raw.name_len.get(), rest))
}

/// A name of `len` bytes at the head of `rest`.
pub(crate) fn name_of(rest: &[u8], len: u16) -> Result<(&[u8], &[u8])> {
    match rest.split_at_checked(usize::from(len)) {
        Some(split) => Ok(split),
        None => wrong("name length", len.into(), "no more than the rest of the item"),
    }
}

/// Entries packed one behind the other until the item ends; stops after the first bad one.
pub(crate) fn entries<'a, T>(
    bytes: &'a [u8],
    parse: impl Fn(&'a [u8]) -> Result<(T, &'a [u8])>,
) -> impl Iterator<Item = Result<T>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        match parse(rest) {
            Ok((entry, after)) => {
                rest = after;
                Some(Ok(entry))
            }
            Err(wrong) => {
                rest = &[];
                Some(Err(wrong))
            }
        }
    })
}
