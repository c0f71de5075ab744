//! Roots of trees, and how subvolumes hang in each other (format: btrfs 12).

use super::inode::{Inode, RawInode, RawTime, Time, name_len};
use super::key::{Key, RawKey};
use super::{Result, Uuid, head, wrong, wrong_len};
use crate::units::Logical;
use std::mem::offset_of;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Size of ROOT_ITEM before the fields from `generation_v2` on were added.
pub(crate) const LEGACY_SIZE: usize = 239;
pub(crate) const ROOT_ITEM_SIZE: usize = 439;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Debug)]
#[repr(C)]
pub(crate) struct RawRoot {
    inode: RawInode,
    generation: U64,
    root_dirid: U64,
    bytenr: U64,
    byte_limit: U64,
    bytes_used: U64,
    last_snapshot: U64,
    flags: U64,
    refs: U32,
    drop_progress: RawKey,
    drop_level: u8,
    level: u8,
    generation_v2: U64,
    uuid: [u8; 16],
    parent_uuid: [u8; 16],
    received_uuid: [u8; 16],
    ctransid: U64,
    otransid: U64,
    stransid: U64,
    rtransid: U64,
    ctime: RawTime,
    otime: RawTime,
    stime: RawTime,
    rtime: RawTime,
    reserved: [u8; 64],
}
const _: () = assert!(size_of::<RawRoot>() == ROOT_ITEM_SIZE);
const _: () = assert!(offset_of!(RawRoot, generation_v2) == LEGACY_SIZE);

/// ROOT_ITEM: where a tree's root block is, and what a subvolume remembers of its life.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Root {
    pub inode: Inode,
    pub generation: u64,
    /// 256 for file trees, 0 else.
    pub root_dirid: u64,
    pub bytenr: Logical,
    pub byte_limit: u64,
    pub bytes_used: u64,
    /// Transaction of the last snapshot taken: older blocks may be shared.
    pub last_snapshot: u64,
    pub flags: u64,
    /// 1 alive, 0 being deleted.
    pub refs: u32,
    pub drop_progress: Key,
    pub drop_level: u8,
    pub level: u8,
    /// Equal to `generation`, or everything below is stale: a kernel that did not know these
    /// fields wrote the item last.
    pub generation_v2: u64,
    pub uuid: Uuid,
    pub parent_uuid: Uuid,
    pub received_uuid: Uuid,
    pub ctransid: u64,
    pub otransid: u64,
    pub stransid: u64,
    pub rtransid: u64,
    pub ctime: Time,
    pub otime: Time,
    pub stime: Time,
    pub rtime: Time,
    pub reserved: [u8; 64],
}

impl Root {
    pub const RDONLY: u64 = 1;
    pub const DEAD: u64 = 1 << 48;

    /// Takes the current and the legacy form; a legacy item reads as one with zeroes behind.
    pub fn parse(bytes: &[u8]) -> Result<Root> {
        let mut raw = RawRoot::new_zeroed();
        let into = raw.as_mut_bytes().get_mut(..bytes.len());
        match into {
            Some(into) if [LEGACY_SIZE, ROOT_ITEM_SIZE].contains(&bytes.len()) => {
                into.copy_from_slice(bytes);
            }
            _ => return wrong_len(bytes.len(), "439 or 239"),
        }
        Ok(Root {
            inode: Inode::from(&raw.inode),
            generation: raw.generation.get(),
            root_dirid: raw.root_dirid.get(),
            bytenr: Logical(raw.bytenr.get()),
            byte_limit: raw.byte_limit.get(),
            bytes_used: raw.bytes_used.get(),
            last_snapshot: raw.last_snapshot.get(),
            flags: raw.flags.get(),
            refs: raw.refs.get(),
            drop_progress: Key::from(&raw.drop_progress),
            drop_level: raw.drop_level,
            level: raw.level,
            generation_v2: raw.generation_v2.get(),
            uuid: Uuid::from_bytes(raw.uuid),
            parent_uuid: Uuid::from_bytes(raw.parent_uuid),
            received_uuid: Uuid::from_bytes(raw.received_uuid),
            ctransid: raw.ctransid.get(),
            otransid: raw.otransid.get(),
            stransid: raw.stransid.get(),
            rtransid: raw.rtransid.get(),
            ctime: raw.ctime.into(),
            otime: raw.otime.into(),
            stime: raw.stime.into(),
            rtime: raw.rtime.into(),
            reserved: raw.reserved,
        })
    }

    pub fn encode(&self) -> [u8; ROOT_ITEM_SIZE] {
        zerocopy::transmute!(RawRoot {
            inode: self.inode.raw(),
            generation: self.generation.into(),
            root_dirid: self.root_dirid.into(),
            bytenr: self.bytenr.0.into(),
            byte_limit: self.byte_limit.into(),
            bytes_used: self.bytes_used.into(),
            last_snapshot: self.last_snapshot.into(),
            flags: self.flags.into(),
            refs: self.refs.into(),
            drop_progress: self.drop_progress.into(),
            drop_level: self.drop_level,
            level: self.level,
            generation_v2: self.generation_v2.into(),
            uuid: self.uuid.into_bytes(),
            parent_uuid: self.parent_uuid.into_bytes(),
            received_uuid: self.received_uuid.into_bytes(),
            ctransid: self.ctransid.into(),
            otransid: self.otransid.into(),
            stransid: self.stransid.into(),
            rtransid: self.rtransid.into(),
            ctime: self.ctime.into(),
            otime: self.otime.into(),
            stime: self.stime.into(),
            rtime: self.rtime.into(),
            reserved: self.reserved,
        })
    }

    /// Whether uuids, transids and times can be believed.
    pub fn is_v2(&self) -> bool {
        self.generation_v2 == self.generation
    }

    pub fn is_read_only(&self) -> bool {
        self.flags & Root::RDONLY != 0
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Debug)]
#[repr(C)]
pub(crate) struct RawRootRef {
    dirid: U64,
    sequence: U64,
    name_len: U16,
}
const _: () = assert!(size_of::<RawRootRef>() == ROOT_REF_SIZE);
pub(crate) const ROOT_REF_SIZE: usize = 18;

/// ROOT_REF and ROOT_BACKREF: under which name, in which directory, a subvolume hangs in its parent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RootRef<'a> {
    pub dirid: u64,
    /// Index of the DIR_INDEX item.
    pub sequence: u64,
    pub name: &'a [u8],
}

impl<'a> RootRef<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<RootRef<'a>> {
        let (raw, name) = head::<RawRootRef>(bytes, "more than 18")?;
        if name.len() != usize::from(raw.name_len.get()) {
            return wrong("name length", raw.name_len.get().into(), "the rest of the item");
        }
        Ok(RootRef { dirid: raw.dirid.get(), sequence: raw.sequence.get(), name })
    }

    /// # Panics
    /// With a name above 65535 bytes.
    pub fn encode(&self) -> Vec<u8> {
        let raw = RawRootRef {
            dirid: self.dirid.into(),
            sequence: self.sequence.into(),
            name_len: name_len(self.name).into(),
        };
        [raw.as_bytes(), self.name].concat()
    }
}

/// Length of the name that a root reference says it has: for a checker.
pub(crate) fn root_ref_name_len(bytes: &[u8]) -> Option<u16> {
    let (raw, _) = RawRootRef::ref_from_prefix(bytes).ok()?;
    Some(raw.name_len.get())
}
