//! The superblock: where everything begins, and the only block that is ever overwritten in place
//! (format: btrfs 1, 21).

use super::block::MAX_LEVEL;
use super::chunk::{Chunk, DevItem, RawDevItem, SYS_CHUNK_ARRAY_SIZE, parse_sys_array};
use super::{Result, Uuid, Wrong, wrong};
use crate::csum::CsumType;
use crate::units::Logical;
use std::mem::offset_of;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

pub const SUPER_SIZE: usize = 4096;
/// Byte offsets of the copies on each device; a copy exists where it fits.
pub const SUPER_OFFSETS: [u64; 3] = [64 << 10, 64 << 20, 256 << 30];
/// "_BHRfS_M"
pub const MAGIC: u64 = 0x4D5F_5366_5248_425F;
/// "!BHRfS_M", while a file system is being made.
pub const MAGIC_PARTIAL: u64 = 0x4D5F_5366_5248_4221;
const LABEL_SIZE: usize = 256;

/// The copies that fit on a device of `total` bytes, as the kernel counts them.
pub fn copies_on(total: u64) -> impl Iterator<Item = u64> {
    let fits = move |at: &u64| at.saturating_add(SUPER_SIZE as u64) < total;
    SUPER_OFFSETS.into_iter().take_while(fits)
}

bitflags::bitflags! {
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct SuperFlags: u64 {
        const WRITTEN = 1 << 0;
        const RELOC = 1 << 1;
        const ERROR = 1 << 2;
        const SEEDING = 1 << 32;
        const METADUMP = 1 << 33;
        const METADUMP_V2 = 1 << 34;
        const CHANGING_FSID = 1 << 35;
        const CHANGING_FSID_V2 = 1 << 36;
        const CHANGING_BG_TREE = 1 << 38;
        const CHANGING_DATA_CSUM = 1 << 39;
        const CHANGING_META_CSUM = 1 << 40;
        const _ = !0;
    }

    /// Features without which the file system cannot be read right.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Incompat: u64 {
        const MIXED_BACKREF = 1 << 0;
        const DEFAULT_SUBVOL = 1 << 1;
        const MIXED_GROUPS = 1 << 2;
        const COMPRESS_LZO = 1 << 3;
        const COMPRESS_ZSTD = 1 << 4;
        const BIG_METADATA = 1 << 5;
        const EXTENDED_IREF = 1 << 6;
        const RAID56 = 1 << 7;
        const SKINNY_METADATA = 1 << 8;
        const NO_HOLES = 1 << 9;
        const METADATA_UUID = 1 << 10;
        const RAID1C34 = 1 << 11;
        const ZONED = 1 << 12;
        const EXTENT_TREE_V2 = 1 << 13;
        const RAID_STRIPE_TREE = 1 << 14;
        const SIMPLE_QUOTA = 1 << 16;
        const REMAP_TREE = 1 << 17;
        const _ = !0;
    }

    /// Features without which it can be read, and must not be written.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct CompatRo: u64 {
        const FREE_SPACE_TREE = 1 << 0;
        const FREE_SPACE_TREE_VALID = 1 << 1;
        const VERITY = 1 << 2;
        const BLOCK_GROUP_TREE = 1 << 3;
        const _ = !0;
    }
}

impl SuperFlags {
    /// What this engine opens. The other bits mean an interrupted offline conversion; an interrupted
    /// change of the uuid touches superblocks only.
    pub const ACCEPTED: SuperFlags = SuperFlags::WRITTEN
        .union(SuperFlags::RELOC)
        .union(SuperFlags::ERROR)
        .union(SuperFlags::SEEDING)
        .union(SuperFlags::METADUMP)
        .union(SuperFlags::METADUMP_V2)
        .union(SuperFlags::CHANGING_FSID_V2);
}

impl Incompat {
    /// What this engine reads. Zoned devices, and the trees that newer kernels experiment with,
    /// place data by rules that it does not know: refused.
    pub const READABLE: Incompat = Incompat::MIXED_BACKREF
        .union(Incompat::DEFAULT_SUBVOL)
        .union(Incompat::MIXED_GROUPS)
        .union(Incompat::COMPRESS_LZO)
        .union(Incompat::COMPRESS_ZSTD)
        .union(Incompat::BIG_METADATA)
        .union(Incompat::EXTENDED_IREF)
        .union(Incompat::RAID56)
        .union(Incompat::SKINNY_METADATA)
        .union(Incompat::NO_HOLES)
        .union(Incompat::METADATA_UUID)
        .union(Incompat::RAID1C34)
        .union(Incompat::SIMPLE_QUOTA);
}

impl CompatRo {
    pub const KNOWN: CompatRo = CompatRo::FREE_SPACE_TREE
        .union(CompatRo::FREE_SPACE_TREE_VALID)
        .union(CompatRo::VERITY)
        .union(CompatRo::BLOCK_GROUP_TREE);
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct RawBackup {
    tree_root: [U64; 2],
    chunk_root: [U64; 2],
    extent_root: [U64; 2],
    fs_root: [U64; 2],
    dev_root: [U64; 2],
    csum_root: [U64; 2],
    total_bytes: U64,
    bytes_used: U64,
    num_devices: U64,
    unused_64: [U64; 4],
    levels: [u8; 6],
    unused_8: [u8; 10],
}
const _: () = assert!(size_of::<RawBackup>() == 168 && offset_of!(RawBackup, levels) == 0x98);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Debug)]
#[repr(C)]
pub(crate) struct RawSuper {
    csum: [u8; 32],
    fsid: [u8; 16],
    bytenr: U64,
    flags: U64,
    magic: U64,
    generation: U64,
    root: U64,
    chunk_root: U64,
    log_root: U64,
    unused_log_transid: U64,
    total_bytes: U64,
    bytes_used: U64,
    root_dir_objectid: U64,
    num_devices: U64,
    sectorsize: U32,
    nodesize: U32,
    leafsize: U32,
    stripesize: U32,
    sys_chunk_array_size: U32,
    chunk_root_generation: U64,
    compat_flags: U64,
    compat_ro_flags: U64,
    incompat_flags: U64,
    csum_type: U16,
    root_level: u8,
    chunk_root_level: u8,
    log_root_level: u8,
    dev_item: RawDevItem,
    label: [u8; LABEL_SIZE],
    cache_generation: U64,
    uuid_tree_generation: U64,
    metadata_uuid: [u8; 16],
    nr_global_roots: U64,
    reserved: [u8; 216],
    sys_chunk_array: [u8; SYS_CHUNK_ARRAY_SIZE],
    super_roots: [RawBackup; 4],
    padding: [u8; 565],
}
const _: () = assert!(size_of::<RawSuper>() == SUPER_SIZE);
const _: () = assert!(offset_of!(RawSuper, dev_item) == 0xc9);
const _: () = assert!(offset_of!(RawSuper, label) == 0x12b);
const _: () = assert!(offset_of!(RawSuper, sys_chunk_array) == 0x32b);
const _: () = assert!(offset_of!(RawSuper, super_roots) == 0xb2b);

/// Address, generation and level of a tree's root block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RootPointer {
    pub block: Logical,
    pub generation: u64,
    pub level: u8,
}

/// One of the four records of earlier commits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Backup {
    pub tree_root: RootPointer,
    pub chunk_root: RootPointer,
    pub extent_root: RootPointer,
    pub fs_root: RootPointer,
    pub dev_root: RootPointer,
    pub csum_root: RootPointer,
    pub total_bytes: u64,
    pub bytes_used: u64,
    pub num_devices: u64,
}

impl From<&RawBackup> for Backup {
    fn from(raw: &RawBackup) -> Backup {
        let root = |[block, generation]: [U64; 2], level| RootPointer {
            block: Logical(block.get()),
            generation: generation.get(),
            level,
        };
        let [tree, chunk, extent, fs, dev, csum] = raw.levels;
        Backup {
            tree_root: root(raw.tree_root, tree),
            chunk_root: root(raw.chunk_root, chunk),
            extent_root: root(raw.extent_root, extent),
            fs_root: root(raw.fs_root, fs),
            dev_root: root(raw.dev_root, dev),
            csum_root: root(raw.csum_root, csum),
            total_bytes: raw.total_bytes.get(),
            bytes_used: raw.bytes_used.get(),
            num_devices: raw.num_devices.get(),
        }
    }
}

impl From<&Backup> for RawBackup {
    fn from(backup: &Backup) -> RawBackup {
        let pair = |root: &RootPointer| [root.block.0.into(), root.generation.into()];
        let mut raw = RawBackup::new_zeroed();
        raw.tree_root = pair(&backup.tree_root);
        raw.chunk_root = pair(&backup.chunk_root);
        raw.extent_root = pair(&backup.extent_root);
        raw.fs_root = pair(&backup.fs_root);
        raw.dev_root = pair(&backup.dev_root);
        raw.csum_root = pair(&backup.csum_root);
        raw.total_bytes = backup.total_bytes.into();
        raw.bytes_used = backup.bytes_used.into();
        raw.num_devices = backup.num_devices.into();
        raw.levels = [
            backup.tree_root.level,
            backup.chunk_root.level,
            backup.extent_root.level,
            backup.fs_root.level,
            backup.dev_root.level,
            backup.csum_root.level,
        ];
        raw
    }
}

/// A superblock, decoded. Its checksum and rules are the business of [`crate::verify::superblock`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Superblock {
    pub fsid: Uuid,
    /// Physical offset of the copy this was read from.
    pub bytenr: u64,
    pub flags: SuperFlags,
    pub magic: u64,
    pub generation: u64,
    pub root: Logical,
    pub chunk_root: Logical,
    /// 0 when there is no log.
    pub log_root: Logical,
    pub total_bytes: u64,
    pub bytes_used: u64,
    pub root_dir_objectid: u64,
    pub num_devices: u64,
    pub sectorsize: u32,
    pub nodesize: u32,
    pub leafsize: u32,
    pub stripesize: u32,
    pub sys_chunk_array_size: u32,
    pub chunk_root_generation: u64,
    pub compat: u64,
    pub compat_ro: CompatRo,
    pub incompat: Incompat,
    /// As stored; [`Superblock::csum`] when it is known.
    pub csum_type: u16,
    pub root_level: u8,
    pub chunk_root_level: u8,
    pub log_root_level: u8,
    pub dev_item: DevItem,
    pub label: Label,
    pub cache_generation: u64,
    pub uuid_tree_generation: u64,
    pub metadata_uuid: Uuid,
    pub sys_chunk_array: Box<[u8; SYS_CHUNK_ARRAY_SIZE]>,
    pub backups: [Backup; 4],
    /// Nobody's yet; kept on rewrite.
    pub reserved: Reserved,
}

/// Bytes of the superblock whose meaning is unknown here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reserved {
    csum: [u8; 32],
    unused_log_transid: u64,
    nr_global_roots: u64,
    middle: [u8; 216],
    end: Box<[u8; 565]>,
}

impl Default for Reserved {
    fn default() -> Reserved {
        Reserved {
            csum: [0; 32],
            unused_log_transid: 0,
            nr_global_roots: 0,
            middle: [0; 216],
            end: Box::new([0; 565]),
        }
    }
}

/// The volume label: NUL-terminated when shorter than its field.
#[derive(Clone, PartialEq, Eq)]
pub struct Label([u8; LABEL_SIZE]);

impl Label {
    /// `None` for a label that is too long or holds NUL or a newline.
    pub fn new(text: &[u8]) -> Option<Label> {
        if text.contains(&0) || text.contains(&b'\n') {
            return None;
        }
        let mut field = [0; LABEL_SIZE];
        // The last byte stays NUL.
        let (room, _) = field.split_at_mut_checked(LABEL_SIZE.checked_sub(1)?)?;
        room.get_mut(..text.len())?.copy_from_slice(text);
        Some(Label(field))
    }

    pub fn as_bytes(&self) -> &[u8] {
        self.0.split(|&byte| byte == 0).next().unwrap_or(&[])
    }
}

impl std::fmt::Debug for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.as_bytes().escape_ascii().to_string())
    }
}

impl Superblock {
    /// Decodes `bytes`; only the length and the magic can be wrong at this stage.
    pub fn parse(bytes: &[u8]) -> Result<Superblock> {
        let Ok(raw) = RawSuper::ref_from_bytes(bytes) else {
            return wrong("superblock length", bytes.len() as u64, "4096");
        };
        if raw.magic.get() != MAGIC {
            return wrong("superblock magic", raw.magic.get(), "_BHRfS_M");
        }
        Ok(Superblock {
            fsid: Uuid::from_bytes(raw.fsid),
            bytenr: raw.bytenr.get(),
            flags: SuperFlags::from_bits_retain(raw.flags.get()),
            magic: raw.magic.get(),
            generation: raw.generation.get(),
            root: Logical(raw.root.get()),
            chunk_root: Logical(raw.chunk_root.get()),
            log_root: Logical(raw.log_root.get()),
            total_bytes: raw.total_bytes.get(),
            bytes_used: raw.bytes_used.get(),
            root_dir_objectid: raw.root_dir_objectid.get(),
            num_devices: raw.num_devices.get(),
            sectorsize: raw.sectorsize.get(),
            nodesize: raw.nodesize.get(),
            leafsize: raw.leafsize.get(),
            stripesize: raw.stripesize.get(),
            sys_chunk_array_size: raw.sys_chunk_array_size.get(),
            chunk_root_generation: raw.chunk_root_generation.get(),
            compat: raw.compat_flags.get(),
            compat_ro: CompatRo::from_bits_retain(raw.compat_ro_flags.get()),
            incompat: Incompat::from_bits_retain(raw.incompat_flags.get()),
            csum_type: raw.csum_type.get(),
            root_level: raw.root_level,
            chunk_root_level: raw.chunk_root_level,
            log_root_level: raw.log_root_level,
            dev_item: DevItem::from(&raw.dev_item),
            label: Label(raw.label),
            cache_generation: raw.cache_generation.get(),
            uuid_tree_generation: raw.uuid_tree_generation.get(),
            metadata_uuid: Uuid::from_bytes(raw.metadata_uuid),
            sys_chunk_array: Box::new(raw.sys_chunk_array),
            backups: raw.super_roots.each_ref().map(Backup::from),
            reserved: Reserved {
                csum: raw.csum,
                unused_log_transid: raw.unused_log_transid.get(),
                nr_global_roots: raw.nr_global_roots.get(),
                middle: raw.reserved,
                end: Box::new(raw.padding),
            },
        })
    }

    /// The inverse of `parse`, checksum field as it was read.
    pub fn encode(&self) -> [u8; SUPER_SIZE] {
        zerocopy::transmute!(RawSuper {
            csum: self.reserved.csum,
            fsid: self.fsid.into_bytes(),
            bytenr: self.bytenr.into(),
            flags: self.flags.bits().into(),
            magic: self.magic.into(),
            generation: self.generation.into(),
            root: self.root.0.into(),
            chunk_root: self.chunk_root.0.into(),
            log_root: self.log_root.0.into(),
            unused_log_transid: self.reserved.unused_log_transid.into(),
            total_bytes: self.total_bytes.into(),
            bytes_used: self.bytes_used.into(),
            root_dir_objectid: self.root_dir_objectid.into(),
            num_devices: self.num_devices.into(),
            sectorsize: self.sectorsize.into(),
            nodesize: self.nodesize.into(),
            leafsize: self.leafsize.into(),
            stripesize: self.stripesize.into(),
            sys_chunk_array_size: self.sys_chunk_array_size.into(),
            chunk_root_generation: self.chunk_root_generation.into(),
            compat_flags: self.compat.into(),
            compat_ro_flags: self.compat_ro.bits().into(),
            incompat_flags: self.incompat.bits().into(),
            csum_type: self.csum_type.into(),
            root_level: self.root_level,
            chunk_root_level: self.chunk_root_level,
            log_root_level: self.log_root_level,
            dev_item: self.dev_item.raw(),
            label: self.label.0,
            cache_generation: self.cache_generation.into(),
            uuid_tree_generation: self.uuid_tree_generation.into(),
            metadata_uuid: self.metadata_uuid.into_bytes(),
            nr_global_roots: self.reserved.nr_global_roots.into(),
            reserved: self.reserved.middle,
            sys_chunk_array: *self.sys_chunk_array,
            super_roots: self.backups.each_ref().map(RawBackup::from),
            padding: *self.reserved.end,
        })
    }

    /// The copy that goes to byte `at`, sealed with its checksum.
    ///
    /// # Panics
    /// With an unknown checksum type, which `verify` lets nobody open.
    pub fn seal(&self, at: u64) -> [u8; SUPER_SIZE] {
        let csum = self.csum().expect("the checksum type was checked when the superblock was made");
        let mut copy = self.clone();
        copy.bytenr = at;
        let mut bytes = copy.encode();
        let (field, rest) = bytes.split_at_mut(32);
        field.copy_from_slice(csum.digest(rest).field());
        bytes
    }

    pub fn csum(&self) -> Option<CsumType> {
        CsumType::from_disk(self.csum_type)
    }

    /// The uuid that tree blocks and device items carry.
    pub fn tree_fsid(&self) -> Uuid {
        if self.incompat.contains(Incompat::METADATA_UUID) { self.metadata_uuid } else { self.fsid }
    }

    /// The chunks that lead to the chunk tree.
    pub fn sys_chunks(&self) -> Result<Vec<(Logical, Chunk)>, Wrong> {
        let size = usize::try_from(self.sys_chunk_array_size).unwrap_or(usize::MAX);
        match self.sys_chunk_array.get(..size) {
            Some(array) => parse_sys_array(array),
            None => wrong("sys_chunk_array_size", self.sys_chunk_array_size.into(), "up to 2048"),
        }
    }

    /// # Panics
    /// When `chunks` need more than 2048 bytes.
    pub fn set_sys_chunks(&mut self, chunks: &[(Logical, Chunk)]) {
        let bytes = super::chunk::encode_sys_array(chunks);
        self.sys_chunk_array.fill(0);
        let room = self.sys_chunk_array.get_mut(..bytes.len());
        room.expect("system chunks fit their array").copy_from_slice(&bytes);
        self.sys_chunk_array_size = u32::try_from(bytes.len()).expect("at most 2048");
    }

    pub fn tree_root(&self) -> RootPointer {
        RootPointer { block: self.root, generation: self.generation, level: self.root_level }
    }

    pub fn chunk_tree_root(&self) -> RootPointer {
        RootPointer {
            block: self.chunk_root,
            generation: self.chunk_root_generation,
            level: self.chunk_root_level,
        }
    }

    /// Whether every level a tree root names exists.
    pub(crate) fn levels(&self) -> [(&'static str, u8); 3] {
        [
            ("tree_root", self.root_level),
            ("chunk_root", self.chunk_root_level),
            ("log_root", self.log_root_level),
        ]
    }

    /// The levels are below the format's limit.
    pub(crate) fn level_ok(level: u8) -> bool {
        level < MAX_LEVEL
    }
}
