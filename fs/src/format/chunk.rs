//! Chunks, devices, block groups: how logical addresses become places (format: btrfs 5).

use super::key::{ItemType, Key, RawKey, objectid};
use super::{Result, Uuid, exactly, head, wrong};
use crate::units::Logical;
use std::fmt;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Striping unit of every profile, fixed by the format.
pub const STRIPE_LEN: u64 = 65536;
/// No device extent starts below: boot loaders and the first superblock live there.
pub const RESERVED: u64 = 1 << 20;
/// Room for chunks in the superblock.
pub const SYS_CHUNK_ARRAY_SIZE: usize = 2048;
pub(crate) const CHUNK_HEAD: usize = 48;
pub(crate) const STRIPE: usize = 32;

bitflags::bitflags! {
    /// What a chunk or block group holds, and how it is spread. Bits nobody knows are kept.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct GroupFlags: u64 {
        const DATA = 1 << 0;
        const SYSTEM = 1 << 1;
        const METADATA = 1 << 2;
        const RAID0 = 1 << 3;
        const RAID1 = 1 << 4;
        const DUP = 1 << 5;
        const RAID10 = 1 << 6;
        const RAID5 = 1 << 7;
        const RAID6 = 1 << 8;
        const RAID1C3 = 1 << 9;
        const RAID1C4 = 1 << 10;
        const _ = !0;
    }
}

impl GroupFlags {
    pub const TYPES: GroupFlags =
        GroupFlags::DATA.union(GroupFlags::SYSTEM).union(GroupFlags::METADATA);
    pub const PROFILES: GroupFlags = GroupFlags::RAID0
        .union(GroupFlags::RAID1)
        .union(GroupFlags::DUP)
        .union(GroupFlags::RAID10)
        .union(GroupFlags::RAID5)
        .union(GroupFlags::RAID6)
        .union(GroupFlags::RAID1C3)
        .union(GroupFlags::RAID1C4);

    /// `None` when more than one profile bit is set.
    pub fn profile(self) -> Option<Profile> {
        let bits = self.intersection(GroupFlags::PROFILES);
        Profile::ALL.into_iter().find(|profile| profile.flag() == bits)
    }
}

/// `DATA|single`, as the kernel's tools print it.
impl fmt::Display for GroupFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let types = self.intersection(GroupFlags::TYPES);
        let names = [
            (GroupFlags::DATA, "DATA"),
            (GroupFlags::SYSTEM, "SYSTEM"),
            (GroupFlags::METADATA, "METADATA"),
        ];
        for (flag, name) in names {
            if types.contains(flag) {
                write!(f, "{name}|")?;
            }
        }
        match self.profile() {
            Some(profile) => profile.fmt(f),
            None => write!(f, "{:#x}", self.intersection(GroupFlags::PROFILES).bits()),
        }
    }
}

/// How a chunk spreads its bytes over devices.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Profile {
    Single,
    Dup,
    Raid0,
    Raid1,
    Raid1c3,
    Raid1c4,
    Raid10,
    Raid5,
    Raid6,
}

impl Profile {
    pub const ALL: [Profile; 9] = [
        Profile::Single,
        Profile::Dup,
        Profile::Raid0,
        Profile::Raid1,
        Profile::Raid1c3,
        Profile::Raid1c4,
        Profile::Raid10,
        Profile::Raid5,
        Profile::Raid6,
    ];

    pub fn flag(self) -> GroupFlags {
        match self {
            Profile::Single => GroupFlags::empty(),
            Profile::Dup => GroupFlags::DUP,
            Profile::Raid0 => GroupFlags::RAID0,
            Profile::Raid1 => GroupFlags::RAID1,
            Profile::Raid1c3 => GroupFlags::RAID1C3,
            Profile::Raid1c4 => GroupFlags::RAID1C4,
            Profile::Raid10 => GroupFlags::RAID10,
            Profile::Raid5 => GroupFlags::RAID5,
            Profile::Raid6 => GroupFlags::RAID6,
        }
    }

    /// Full copies of each byte, not counting parity.
    pub fn copies(self) -> u16 {
        match self {
            Profile::Single | Profile::Raid0 | Profile::Raid5 | Profile::Raid6 => 1,
            Profile::Dup | Profile::Raid1 | Profile::Raid10 => 2,
            Profile::Raid1c3 => 3,
            Profile::Raid1c4 => 4,
        }
    }

    /// Parity stripes of a row.
    pub fn parity(self) -> u16 {
        match self {
            Profile::Raid5 => 1,
            Profile::Raid6 => 2,
            _ => 0,
        }
    }

    /// Devices that may be lost without losing data.
    pub fn tolerated_losses(self) -> u16 {
        match self {
            Profile::Single | Profile::Dup | Profile::Raid0 => 0,
            Profile::Raid1 | Profile::Raid10 | Profile::Raid5 => 1,
            Profile::Raid1c3 | Profile::Raid6 => 2,
            Profile::Raid1c4 => 3,
        }
    }

    /// Stripes that hold different data, of `stripes` in all: what a chunk's length divides by.
    /// `None` where the format knows no such chunk.
    pub fn data_stripes(self, stripes: u16) -> Option<u16> {
        let data = match self {
            Profile::Single => (stripes == 1).then_some(1),
            Profile::Dup | Profile::Raid1 | Profile::Raid1c3 | Profile::Raid1c4 => {
                (stripes == self.copies()).then_some(1)
            }
            Profile::Raid0 => Some(stripes),
            Profile::Raid10 => stripes.is_multiple_of(2).then(|| stripes.wrapping_shr(1)),
            Profile::Raid5 | Profile::Raid6 => stripes.checked_sub(self.parity()),
        };
        data.filter(|&n| n > 0)
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Profile::Single => "single",
            Profile::Dup => "DUP",
            Profile::Raid0 => "RAID0",
            Profile::Raid1 => "RAID1",
            Profile::Raid1c3 => "RAID1C3",
            Profile::Raid1c4 => "RAID1C4",
            Profile::Raid10 => "RAID10",
            Profile::Raid5 => "RAID5",
            Profile::Raid6 => "RAID6",
        })
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Debug)]
#[repr(C)]
pub(crate) struct RawChunk {
    length: U64,
    owner: U64,
    stripe_len: U64,
    flags: U64,
    io_align: U32,
    io_width: U32,
    sector_size: U32,
    num_stripes: U16,
    sub_stripes: U16,
}
const _: () = assert!(size_of::<RawChunk>() == CHUNK_HEAD);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Debug)]
#[repr(C)]
pub(crate) struct RawStripe {
    devid: U64,
    offset: U64,
    dev_uuid: [u8; 16],
}
const _: () = assert!(size_of::<RawStripe>() == STRIPE);

/// CHUNK_ITEM: one run of logical addresses and the device runs that hold it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chunk {
    pub length: u64,
    /// Always 2, the extent tree; nobody reads it.
    pub owner: u64,
    pub stripe_len: u64,
    pub flags: GroupFlags,
    pub io_align: u32,
    pub io_width: u32,
    pub sector_size: u32,
    pub sub_stripes: u16,
    pub stripes: Vec<Stripe>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stripe {
    pub devid: u64,
    pub offset: u64,
    pub dev_uuid: Uuid,
}

impl Chunk {
    /// The whole of `bytes` must be one chunk.
    pub fn parse(bytes: &[u8]) -> Result<Chunk> {
        let (chunk, rest) = Chunk::parse_prefix(bytes)?;
        if !rest.is_empty() {
            return wrong("item size", bytes.len() as u64, "48 + 32 * num_stripes");
        }
        Ok(chunk)
    }

    /// A chunk at the head of `bytes`, and what follows it.
    pub(crate) fn parse_prefix(bytes: &[u8]) -> Result<(Chunk, &[u8])> {
        let (raw, rest) = head::<RawChunk>(bytes, "at least 48 bytes")?;
        let count = usize::from(raw.num_stripes.get());
        let Ok((stripes, rest)) = <[RawStripe]>::ref_from_prefix_with_elems(rest, count) else {
            return wrong("num_stripes", count as u64, "as many as the item holds");
        };
        let stripes = stripes.iter().map(|stripe| Stripe {
            devid: stripe.devid.get(),
            offset: stripe.offset.get(),
            dev_uuid: Uuid::from_bytes(stripe.dev_uuid),
        });
        let chunk = Chunk {
            length: raw.length.get(),
            owner: raw.owner.get(),
            stripe_len: raw.stripe_len.get(),
            flags: GroupFlags::from_bits_retain(raw.flags.get()),
            io_align: raw.io_align.get(),
            io_width: raw.io_width.get(),
            sector_size: raw.sector_size.get(),
            sub_stripes: raw.sub_stripes.get(),
            stripes: stripes.collect(),
        };
        Ok((chunk, rest))
    }

    /// # Panics
    /// With more than 65535 stripes, which no parsed chunk has.
    pub fn encode(&self) -> Vec<u8> {
        let count = u16::try_from(self.stripes.len()).expect("a chunk has at most 65535 stripes");
        let raw = RawChunk {
            length: self.length.into(),
            owner: self.owner.into(),
            stripe_len: self.stripe_len.into(),
            flags: self.flags.bits().into(),
            io_align: self.io_align.into(),
            io_width: self.io_width.into(),
            sector_size: self.sector_size.into(),
            num_stripes: count.into(),
            sub_stripes: self.sub_stripes.into(),
        };
        let mut bytes = raw.as_bytes().to_vec();
        for stripe in &self.stripes {
            let raw = RawStripe {
                devid: stripe.devid.into(),
                offset: stripe.offset.into(),
                dev_uuid: stripe.dev_uuid.into_bytes(),
            };
            bytes.extend_from_slice(raw.as_bytes());
        }
        bytes
    }

    /// The length of this chunk's extent on each of its devices.
    pub fn stripe_size(&self) -> Option<u64> {
        let profile = self.flags.profile()?;
        let data = profile.data_stripes(u16::try_from(self.stripes.len()).ok()?)?;
        self.length.checked_div(u64::from(data))
    }
}

/// The number of stripes that a chunk says it has: for a checker.
pub(crate) fn num_stripes(bytes: &[u8]) -> Option<u16> {
    let (raw, _) = RawChunk::ref_from_prefix(bytes).ok()?;
    Some(raw.num_stripes.get())
}

/// The chunks that the superblock carries, so that the chunk tree can be found.
pub fn parse_sys_array(array: &[u8]) -> Result<Vec<(Logical, Chunk)>> {
    let mut chunks = Vec::new();
    let mut rest = array;
    while !rest.is_empty() {
        let (raw, after) = head::<RawKey>(rest, "a key of 17 bytes in sys_chunk_array")?;
        let key = Key::from(raw);
        if key.kind != ItemType::CHUNK_ITEM {
            return wrong("sys_chunk_array item type", key.kind.0.into(), "228");
        }
        let (chunk, after) = Chunk::parse_prefix(after)?;
        if chunk.stripes.is_empty() {
            return wrong("sys_chunk_array num_stripes", 0, "at least 1");
        }
        if !chunk.flags.contains(GroupFlags::SYSTEM) {
            return wrong("sys_chunk_array chunk type", chunk.flags.bits(), "SYSTEM");
        }
        chunks.push((Logical(key.offset), chunk));
        rest = after;
    }
    Ok(chunks)
}

pub fn encode_sys_array(chunks: &[(Logical, Chunk)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (start, chunk) in chunks {
        let key = Key::new(objectid::FIRST_CHUNK_TREE, ItemType::CHUNK_ITEM, start.0);
        bytes.extend_from_slice(RawKey::from(key).as_bytes());
        bytes.extend_from_slice(&chunk.encode());
    }
    bytes
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Debug)]
#[repr(C)]
pub(crate) struct RawDevItem {
    devid: U64,
    total_bytes: U64,
    bytes_used: U64,
    io_align: U32,
    io_width: U32,
    sector_size: U32,
    kind: U64,
    generation: U64,
    start_offset: U64,
    dev_group: U32,
    seek_speed: u8,
    bandwidth: u8,
    uuid: [u8; 16],
    fsid: [u8; 16],
}
const _: () = assert!(size_of::<RawDevItem>() == 98);

/// DEV_ITEM: one member device. Also stored in each superblock, for the device it is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DevItem {
    pub devid: u64,
    pub total_bytes: u64,
    /// Sum of the lengths of its DEV_EXTENTs: chunks, not extents.
    pub bytes_used: u64,
    pub io_align: u32,
    pub io_width: u32,
    pub sector_size: u32,
    pub kind: u64,
    pub generation: u64,
    pub start_offset: u64,
    pub dev_group: u32,
    pub seek_speed: u8,
    pub bandwidth: u8,
    pub uuid: Uuid,
    /// The metadata uuid where the file system has one.
    pub fsid: Uuid,
}

impl DevItem {
    pub fn parse(bytes: &[u8]) -> Result<DevItem> {
        Ok(DevItem::from(exactly::<RawDevItem>(bytes, "98")?))
    }

    pub fn encode(&self) -> [u8; 98] {
        zerocopy::transmute!(self.raw())
    }

    pub(crate) fn raw(&self) -> RawDevItem {
        RawDevItem {
            devid: self.devid.into(),
            total_bytes: self.total_bytes.into(),
            bytes_used: self.bytes_used.into(),
            io_align: self.io_align.into(),
            io_width: self.io_width.into(),
            sector_size: self.sector_size.into(),
            kind: self.kind.into(),
            generation: self.generation.into(),
            start_offset: self.start_offset.into(),
            dev_group: self.dev_group.into(),
            seek_speed: self.seek_speed,
            bandwidth: self.bandwidth,
            uuid: self.uuid.into_bytes(),
            fsid: self.fsid.into_bytes(),
        }
    }
}

impl From<&RawDevItem> for DevItem {
    fn from(raw: &RawDevItem) -> DevItem {
        DevItem {
            devid: raw.devid.get(),
            total_bytes: raw.total_bytes.get(),
            bytes_used: raw.bytes_used.get(),
            io_align: raw.io_align.get(),
            io_width: raw.io_width.get(),
            sector_size: raw.sector_size.get(),
            kind: raw.kind.get(),
            generation: raw.generation.get(),
            start_offset: raw.start_offset.get(),
            dev_group: raw.dev_group.get(),
            seek_speed: raw.seek_speed,
            bandwidth: raw.bandwidth,
            uuid: Uuid::from_bytes(raw.uuid),
            fsid: Uuid::from_bytes(raw.fsid),
        }
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Debug)]
#[repr(C)]
pub(crate) struct RawDevExtent {
    chunk_tree: U64,
    chunk_objectid: U64,
    chunk_offset: U64,
    length: U64,
    chunk_tree_uuid: [u8; 16],
}
const _: () = assert!(size_of::<RawDevExtent>() == 48);

/// DEV_EXTENT: the run of a device that one chunk stripe occupies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DevExtent {
    pub chunk_tree: u64,
    pub chunk_objectid: u64,
    pub chunk_offset: Logical,
    pub length: u64,
    pub chunk_tree_uuid: Uuid,
}

impl DevExtent {
    pub fn parse(bytes: &[u8]) -> Result<DevExtent> {
        let raw = exactly::<RawDevExtent>(bytes, "48")?;
        Ok(DevExtent {
            chunk_tree: raw.chunk_tree.get(),
            chunk_objectid: raw.chunk_objectid.get(),
            chunk_offset: Logical(raw.chunk_offset.get()),
            length: raw.length.get(),
            chunk_tree_uuid: Uuid::from_bytes(raw.chunk_tree_uuid),
        })
    }

    pub fn encode(&self) -> [u8; 48] {
        zerocopy::transmute!(RawDevExtent {
            chunk_tree: self.chunk_tree.into(),
            chunk_objectid: self.chunk_objectid.into(),
            chunk_offset: self.chunk_offset.0.into(),
            length: self.length.into(),
            chunk_tree_uuid: self.chunk_tree_uuid.into_bytes(),
        })
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Debug)]
#[repr(C)]
pub(crate) struct RawBlockGroup {
    used: U64,
    chunk_objectid: U64,
    flags: U64,
}
const _: () = assert!(size_of::<RawBlockGroup>() == 24);

/// BLOCK_GROUP_ITEM: how much of a chunk is allocated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockGroup {
    pub used: u64,
    pub chunk_objectid: u64,
    pub flags: GroupFlags,
}

impl BlockGroup {
    pub fn parse(bytes: &[u8]) -> Result<BlockGroup> {
        let raw = exactly::<RawBlockGroup>(bytes, "24")?;
        Ok(BlockGroup {
            used: raw.used.get(),
            chunk_objectid: raw.chunk_objectid.get(),
            flags: GroupFlags::from_bits_retain(raw.flags.get()),
        })
    }

    pub fn encode(&self) -> [u8; 24] {
        zerocopy::transmute!(RawBlockGroup {
            used: self.used.into(),
            chunk_objectid: self.chunk_objectid.into(),
            flags: self.flags.bits().into(),
        })
    }
}

/// Device statistics, PERSISTENT_ITEM `(0 249 devid)`: five error counters.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Debug)]
#[repr(C)]
pub(crate) struct RawDevStats {
    counters: [U64; 5],
}
const _: () = assert!(size_of::<RawDevStats>() == 40);

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DevStats {
    pub write_errors: u64,
    pub read_errors: u64,
    pub flush_errors: u64,
    pub corruption_errors: u64,
    pub generation_errors: u64,
}

impl DevStats {
    /// Newer kernels may append counters; the five known ones come first.
    pub fn parse(bytes: &[u8]) -> Result<DevStats> {
        let (raw, _) = head::<RawDevStats>(bytes, "at least 40 bytes")?;
        let [write, read, flush, corruption, generation] = raw.counters.map(U64::get);
        Ok(DevStats {
            write_errors: write,
            read_errors: read,
            flush_errors: flush,
            corruption_errors: corruption,
            generation_errors: generation,
        })
    }

    pub fn encode(&self) -> [u8; 40] {
        let counters = [
            self.write_errors,
            self.read_errors,
            self.flush_errors,
            self.corruption_errors,
            self.generation_errors,
        ];
        zerocopy::transmute!(RawDevStats { counters: counters.map(U64::new) })
    }
}
