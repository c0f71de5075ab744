//! The superblock: byte 4096 of a cache device and of a backing device, 4096 bytes long.
//!
//! There is one copy only and it is rewritten in place. Both kinds share their head; what a cache
//! device uses for its bucket count is the data offset of a backing device. Whatever the page holds
//! beyond the fields we understand is kept when it is written again.
//!
//! Long because two layouts that share one page are told side by side, rule by rule.

use std::mem::{offset_of, size_of};

use ::uuid::Uuid;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Layout, PageModel, SetMagic};
use crate::error::{Corrupt, Hex, Place};
use varve_block::sum;

/// First sector of the superblock, on either device.
pub(crate) const SUPERBLOCK_SECTOR: u64 = 8;
/// Length of the area that is read and written.
pub(crate) const SUPERBLOCK_BYTES: usize = 4096;
/// Where the data of a backing device begin unless its superblock says otherwise.
pub(crate) const DATA_OFFSET_DEFAULT: u64 = 16;
/// Fewer buckets leave the kernel's free lists empty: it refuses such a device.
pub(crate) const NBUCKETS_MIN: u64 = 513;

const MAGIC: [u8; 16] = [
    0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81,
];
const KEYS_MAX: u16 = 256;

/// The structure as stored, 2258 of the 4096 bytes.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
pub(crate) struct RawSuperblock {
    pub(crate) csum: U64,
    pub(crate) offset: U64,
    pub(crate) version: U64,
    pub(crate) magic: [u8; 16],
    pub(crate) uuid: [u8; 16],
    pub(crate) set_uuid: [u8; 16],
    pub(crate) label: [u8; 32],
    pub(crate) flags: U64,
    pub(crate) seq: U64,
    pub(crate) feature_compat: U64,
    pub(crate) feature_incompat: U64,
    pub(crate) feature_ro_compat: U64,
    pub(crate) pad: [u8; 40],
    /// Of a backing device: the data offset.
    pub(crate) nbuckets: U64,
    pub(crate) block_size: U16,
    pub(crate) bucket_size: U16,
    pub(crate) nr_in_set: U16,
    pub(crate) nr_this_dev: U16,
    pub(crate) last_mount: U32,
    pub(crate) first_bucket: U16,
    pub(crate) keys: U16,
    pub(crate) d: [U64; 256],
    pub(crate) obso_bucket_size_hi: U16,
}
const _: () = assert!(size_of::<RawSuperblock>() == 2258);
const _: () = assert!(offset_of!(RawSuperblock, flags) == 0x068);
const _: () = assert!(offset_of!(RawSuperblock, nbuckets) == 0x0B8);
const _: () = assert!(offset_of!(RawSuperblock, last_mount) == 0x0C8);
const _: () = assert!(offset_of!(RawSuperblock, d) == 0x0D0);
const _: () = assert!(offset_of!(RawSuperblock, obso_bucket_size_hi) == 0x8D0);

impl RawSuperblock {
    fn sum(&self) -> u64 {
        let journal = usize::from(self.keys.get().min(KEYS_MAX)).saturating_mul(8);
        let end = offset_of!(RawSuperblock, d).saturating_add(journal);
        sum::bcache_crc64(self.as_bytes().get(size_of::<U64>()..end).unwrap_or(&[]))
    }

    fn is_backing(&self) -> bool {
        matches!(self.version.get(), 1 | 4 | 6)
    }
}

/// What the device itself says, to hold the superblock against.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceFacts {
    pub sectors: u64,
    /// Bytes; 512 for a file.
    pub logical_block: u32,
}

/// A superblock, whichever kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Superblock {
    Cache(CacheSuper),
    Backing(BackingSuper),
}

/// What a full cache does with a bucket to free.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Replacement {
    #[default]
    Lru,
    Fifo,
    Random,
}

/// How writes of a volume use the cache. Persisted in the backing device's superblock.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum CacheMode {
    #[default]
    Writethrough,
    Writeback,
    Writearound,
    None,
}

/// What the backing device needs from its cache.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum BackingState {
    /// It belongs to no set.
    #[default]
    None,
    /// The set holds nothing that is not here.
    Clean,
    /// The set holds newer data: this device alone is out of date.
    Dirty,
    /// It ran without its set: what the set holds is worthless. Shown as "inconsistent".
    Stale,
}

/// The feature words of a version-5 cache device; zero for older versions.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Features {
    pub compat: u64,
    pub incompat: u64,
    pub ro_compat: u64,
}

impl Features {
    /// The high half of the bucket size lies behind the journal list.
    pub const OBSOLETE_LARGE_BUCKET: u64 = 1;
    /// The bucket size field holds a logarithm.
    pub const LOG_LARGE_BUCKET_SIZE: u64 = 2;
}

/// Superblock of a cache device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CacheSuper {
    pub version: u64,
    pub uuid: Uuid,
    pub set_uuid: Uuid,
    pub label: [u8; 32],
    pub seq: u64,
    pub features: Features,
    pub layout: Layout,
    pub nr_in_set: u16,
    pub nr_this_dev: u16,
    /// Unix seconds.
    pub last_mount: u32,
    /// Journal buckets: the first ones from `first_bucket` on. 0 before the first start.
    pub journal_buckets: u16,
    flags: u64,
    page: Page,
}

/// Superblock of a backing device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackingSuper {
    pub version: u64,
    pub uuid: Uuid,
    pub set_uuid: Uuid,
    pub label: [u8; 32],
    pub seq: u64,
    /// Sector where the volume begins.
    pub data_offset: u64,
    /// Sectors.
    pub block_size: u16,
    /// Unix seconds.
    pub last_mount: u32,
    flags: u64,
    page: Page,
}

/// The area as it was found, or zeroes: the base of the next write.
#[derive(Clone, PartialEq, Eq)]
struct Page(Box<[u8; SUPERBLOCK_BYTES]>);

impl std::fmt::Debug for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Page(..)")
    }
}

fn wrong(
    row: u8,
    field: &'static str,
    found: impl std::fmt::Display,
    expected: impl std::fmt::Display,
) -> Corrupt {
    Corrupt::row(row, "superblock", Place::sector(SUPERBLOCK_SECTOR), field, found, expected)
}

impl Superblock {
    /// The rules of acceptance, in the kernel's order; the first broken one refuses the device.
    pub fn parse(page: &[u8], dev: DeviceFacts) -> Result<Superblock, Corrupt> {
        let (raw, page) = head(page)?;
        if raw.is_backing() {
            BackingSuper::from_raw(&raw, page, dev).map(Superblock::Backing)
        } else {
            CacheSuper::from_raw(&raw, page, dev).map(Superblock::Cache)
        }
    }

    /// Whether the area holds a bcache superblock at all, sound or not.
    pub fn looks_like_one(page: &[u8]) -> bool {
        RawSuperblock::ref_from_prefix(page).is_ok_and(|(raw, _)| raw.magic == MAGIC)
    }
}

/// Checks 1 to 4: what both kinds share.
fn head(bytes: &[u8]) -> Result<(RawSuperblock, Page), Corrupt> {
    let Ok((page, _)) = <[u8; SUPERBLOCK_BYTES]>::ref_from_prefix(bytes) else {
        return Err(wrong(1, "length", bytes.len(), "4096 bytes"));
    };
    let Ok((raw, _)) = RawSuperblock::ref_from_prefix(page) else {
        return Err(wrong(1, "length", bytes.len(), "2258 bytes"));
    };
    if raw.offset != SUPERBLOCK_SECTOR {
        return Err(wrong(1, "offset", raw.offset, SUPERBLOCK_SECTOR));
    }
    if raw.magic != MAGIC {
        return Err(wrong(1, "magic", Uuid::from_bytes(raw.magic), Uuid::from_bytes(MAGIC)));
    }
    if raw.keys.get() > KEYS_MAX {
        return Err(wrong(2, "keys", raw.keys, "at most 256"));
    }
    if raw.csum.get() != raw.sum() {
        return Err(wrong(2, "csum", Hex(raw.csum.get()), Hex(raw.sum())));
    }
    if raw.uuid == [0; 16] {
        return Err(wrong(4, "uuid", Uuid::nil(), "not zero"));
    }
    Ok((raw.clone(), Page(Box::new(*page))))
}

fn logical_block_fits(raw: &RawSuperblock, dev: DeviceFacts) -> Result<(), Corrupt> {
    let bytes = u32::from(raw.block_size.get()).saturating_mul(512);
    if bytes == 0 || bytes < dev.logical_block {
        let expected = format!("at least the device's block of {} bytes", dev.logical_block);
        return Err(wrong(5, "block_size", raw.block_size, expected));
    }
    Ok(())
}

impl CacheSuper {
    /// Known bits of `flags`: SYNC, DISCARD, REPLACEMENT.
    const SYNC: u64 = 1;
    const DISCARD: u64 = 2;
    const REPLACEMENT_SHIFT: u32 = 2;
    const REPLACEMENT_MASK: u64 = 7 << Self::REPLACEMENT_SHIFT;

    /// The superblock of a cache device; a backing device is refused.
    pub fn parse(page: &[u8], dev: DeviceFacts) -> Result<CacheSuper, Corrupt> {
        match Superblock::parse(page, dev)? {
            Superblock::Cache(cache) => Ok(cache),
            Superblock::Backing(backing) => {
                Err(wrong(3, "version", backing.version, "a cache device: 0, 3 or 5"))
            }
        }
    }

    fn from_raw(raw: &RawSuperblock, page: Page, dev: DeviceFacts) -> Result<CacheSuper, Corrupt> {
        logical_block_fits(raw, dev)?;
        let features = features(raw)?;
        let layout = layout(raw, features, dev)?;
        if raw.set_uuid == [0; 16] {
            return Err(wrong(4, "set_uuid", Uuid::nil(), "not zero"));
        }
        // The format numbers up to 8 devices per set; no kernel can assemble more than one.
        if raw.nr_in_set != 1 || raw.nr_this_dev != 0 {
            let found = format!("device {} of {}", raw.nr_this_dev, raw.nr_in_set);
            return Err(wrong(9, "nr_this_dev", found, "device 0 of 1"));
        }
        let cache = CacheSuper {
            version: raw.version.get(),
            uuid: Uuid::from_bytes(raw.uuid),
            set_uuid: Uuid::from_bytes(raw.set_uuid),
            label: raw.label,
            seq: raw.seq.get(),
            features,
            layout,
            nr_in_set: raw.nr_in_set.get(),
            nr_this_dev: raw.nr_this_dev.get(),
            last_mount: raw.last_mount.get(),
            journal_buckets: raw.keys.get(),
            flags: raw.flags.get(),
            page,
        };
        cache.journal_list(raw)?;
        if layout.bucket_start(super::Bucket(layout.first_bucket)) < 16 {
            return Err(wrong(8, "first_bucket", raw.first_bucket, "behind the superblock"));
        }
        Ok(cache)
    }

    /// Check 10.
    fn journal_list(&self, raw: &RawSuperblock) -> Result<(), Corrupt> {
        let first = self.layout.first_bucket;
        for (want, found) in (first..).zip(raw.d.iter().take(usize::from(raw.keys.get()))) {
            if *found != want {
                return Err(wrong(10, "d", found, format!("bucket {want}")));
            }
        }
        let end = first.saturating_add(u64::from(raw.keys.get()));
        if end > self.layout.nbuckets {
            return Err(wrong(10, "keys", raw.keys, "a journal inside the device"));
        }
        if self.sync() && self.journal_buckets < 2 {
            return Err(wrong(10, "keys", raw.keys, "at least 2 journal buckets once started"));
        }
        Ok(())
    }

    /// Buckets of the journal ring, in ring order.
    pub fn journal(&self) -> impl Iterator<Item = super::Bucket> + use<> {
        (self.layout.first_bucket..).take(self.journal_buckets.into()).map(super::Bucket)
    }

    pub fn set_magic(&self) -> SetMagic {
        SetMagic::of(self.set_uuid)
    }

    /// Clear: formatted, no content, the first start erases.
    pub fn sync(&self) -> bool {
        self.flags & Self::SYNC != 0
    }

    pub fn set_sync(&mut self, on: bool) {
        self.set_flag(Self::SYNC, on);
    }

    pub fn discard(&self) -> bool {
        self.flags & Self::DISCARD != 0
    }

    pub fn set_discard(&mut self, on: bool) {
        self.set_flag(Self::DISCARD, on);
    }

    /// The replacement policy; the kernel treats unknown values as the default too.
    pub fn replacement(&self) -> Replacement {
        match (self.flags & Self::REPLACEMENT_MASK) >> Self::REPLACEMENT_SHIFT {
            1 => Replacement::Fifo,
            2 => Replacement::Random,
            _ => Replacement::Lru,
        }
    }

    pub fn set_replacement(&mut self, policy: Replacement) {
        let bits = match policy {
            Replacement::Lru => 0,
            Replacement::Fifo => 1,
            Replacement::Random => 2,
        };
        self.flags = (self.flags & !Self::REPLACEMENT_MASK) | (bits << Self::REPLACEMENT_SHIFT);
    }

    /// Flag bits and policy numbers without a meaning (check 11).
    pub(crate) fn odd_flags(&self) -> Option<u64> {
        let policy = (self.flags & Self::REPLACEMENT_MASK) >> Self::REPLACEMENT_SHIFT;
        let unknown = self.flags & !(Self::SYNC | Self::DISCARD | Self::REPLACEMENT_MASK);
        (policy > 2 || unknown != 0).then_some(self.flags)
    }

    fn set_flag(&mut self, bit: u64, on: bool) {
        self.flags = if on { self.flags | bit } else { self.flags & !bit };
    }

    /// Why this set may not be written, although it can be read.
    pub fn read_only_because(&self) -> Option<&'static str> {
        (self.features.incompat & Features::OBSOLETE_LARGE_BUCKET != 0).then_some(
            "the bucket size is stored in the obsolete 32-bit form; recreate the cache set",
        )
    }

    /// The whole 4096-byte area, sealed.
    pub fn encode(&self) -> Box<[u8; SUPERBLOCK_BYTES]> {
        self.page.rewrite(|raw| {
            raw.version = self.version.into();
            raw.uuid = self.uuid.into_bytes();
            raw.set_uuid = self.set_uuid.into_bytes();
            raw.label = self.label;
            raw.flags = self.flags.into();
            raw.seq = self.seq.into();
            raw.last_mount = self.last_mount.into();
            raw.nbuckets = self.layout.nbuckets.into();
            raw.block_size = low16(self.layout.block_size).into();
            self.store_bucket_size(raw);
            raw.nr_in_set = self.nr_in_set.into();
            raw.nr_this_dev = self.nr_this_dev.into();
            raw.first_bucket = u16::try_from(self.layout.first_bucket).unwrap_or(u16::MAX).into();
            raw.keys = self.journal_buckets.into();
            let live = usize::from(self.journal_buckets);
            for (bucket, slot) in (self.layout.first_bucket..).zip(raw.d.iter_mut().take(live)) {
                *slot = bucket.into();
            }
            if self.version >= 5 {
                raw.feature_compat = self.features.compat.into();
                raw.feature_incompat = self.features.incompat.into();
                raw.feature_ro_compat = self.features.ro_compat.into();
            }
        })
    }

    fn store_bucket_size(&self, raw: &mut RawSuperblock) {
        let size = self.layout.bucket_size;
        let incompat = if self.version >= 5 { self.features.incompat } else { 0 };
        if incompat & Features::LOG_LARGE_BUCKET_SIZE != 0 {
            raw.bucket_size = low16(size.trailing_zeros()).into();
        } else if incompat & Features::OBSOLETE_LARGE_BUCKET != 0 {
            raw.bucket_size = low16(size).into();
            raw.obso_bucket_size_hi = low16(size >> 16).into();
        } else {
            raw.bucket_size = low16(size).into();
        }
    }
}

fn low16(value: u32) -> u16 {
    u16::try_from(value & 0xFFFF).unwrap_or(0)
}

fn features(raw: &RawSuperblock) -> Result<Features, Corrupt> {
    match raw.version.get() {
        0 | 3 => return Ok(Features::default()),
        5 => {}
        found => {
            return Err(wrong(3, "version", found, "0, 3, 5 (cache) or 1, 4, 6 (backing)"));
        }
    }
    let found = Features {
        compat: raw.feature_compat.get(),
        incompat: raw.feature_incompat.get(),
        ro_compat: raw.feature_ro_compat.get(),
    };
    let known = Features::OBSOLETE_LARGE_BUCKET | Features::LOG_LARGE_BUCKET_SIZE;
    if found.incompat & !known != 0 {
        return Err(wrong(3, "feature_incompat", Hex(found.incompat), "known bits 0 and 1"));
    }
    if found.compat != 0 {
        return Err(wrong(3, "feature_compat", Hex(found.compat), "no bit is known"));
    }
    if found.ro_compat != 0 {
        return Err(wrong(3, "feature_ro_compat", Hex(found.ro_compat), "no bit is known"));
    }
    Ok(found)
}

fn bucket_size(raw: &RawSuperblock, features: Features) -> Result<u32, Corrupt> {
    let field = u32::from(raw.bucket_size.get());
    if features.incompat & Features::LOG_LARGE_BUCKET_SIZE != 0 {
        return match field {
            3..=31 => Ok(1 << field),
            _ => Err(wrong(6, "bucket_size", field, "a logarithm of 3 to 31")),
        };
    }
    let size = if features.incompat & Features::OBSOLETE_LARGE_BUCKET != 0 {
        field | (u32::from(raw.obso_bucket_size_hi.get()) << 16)
    } else {
        field
    };
    if !size.is_power_of_two() || size < 8 {
        return Err(wrong(6, "bucket_size", size, "a power of two, at least 8 sectors"));
    }
    Ok(size)
}

/// Checks 5 to 7.
fn layout(raw: &RawSuperblock, features: Features, dev: DeviceFacts) -> Result<Layout, Corrupt> {
    let block_size = raw.block_size.get();
    let nbuckets = raw.nbuckets.get();
    if nbuckets < NBUCKETS_MIN {
        return Err(wrong(7, "nbuckets", nbuckets, "at least 513 (the kernel refuses fewer)"));
    }
    if !block_size.is_power_of_two() || block_size > 8 {
        return Err(wrong(5, "block_size", block_size, "1, 2, 4 or 8 sectors"));
    }
    let bucket_size = bucket_size(raw, features)?;
    let need = u128::from(nbuckets).saturating_mul(u128::from(bucket_size));
    if need > u128::from(dev.sectors) {
        let found = format!("{nbuckets} buckets of {bucket_size} sectors");
        return Err(wrong(7, "nbuckets", found, format!("at most {} sectors", dev.sectors)));
    }
    Ok(Layout {
        block_size: block_size.into(),
        bucket_size,
        nbuckets,
        first_bucket: raw.first_bucket.get().into(),
        pages: PageModel::default(),
    })
}

impl BackingSuper {
    const MODE_MASK: u64 = 0xF;
    const STATE_SHIFT: u32 = 61;
    const STATE_MASK: u64 = 3 << Self::STATE_SHIFT;

    /// The superblock of a backing device; a cache device is refused.
    pub fn parse(page: &[u8], dev: DeviceFacts) -> Result<BackingSuper, Corrupt> {
        match Superblock::parse(page, dev)? {
            Superblock::Backing(backing) => Ok(backing),
            Superblock::Cache(cache) => {
                Err(wrong(3, "version", cache.version, "a backing device: 1, 4 or 6"))
            }
        }
    }

    fn from_raw(
        raw: &RawSuperblock,
        page: Page,
        dev: DeviceFacts,
    ) -> Result<BackingSuper, Corrupt> {
        logical_block_fits(raw, dev)?;
        // Version 1 leaves the field zero and means 16.
        let data_offset = match raw.version.get() {
            1 => DATA_OFFSET_DEFAULT,
            _ => raw.nbuckets.get(),
        };
        if data_offset < DATA_OFFSET_DEFAULT {
            return Err(wrong(13, "data_offset", data_offset, "at least 16"));
        }
        if data_offset >= dev.sectors {
            let expected = format!("less than the device's {} sectors", dev.sectors);
            return Err(wrong(13, "data_offset", data_offset, expected));
        }
        Ok(BackingSuper {
            version: raw.version.get(),
            uuid: Uuid::from_bytes(raw.uuid),
            set_uuid: Uuid::from_bytes(raw.set_uuid),
            label: raw.label,
            seq: raw.seq.get(),
            data_offset,
            block_size: raw.block_size.get(),
            last_mount: raw.last_mount.get(),
            flags: raw.flags.get(),
            page,
        })
    }

    /// The cache mode. The kernel takes an unknown number for write-through.
    pub fn mode(&self) -> CacheMode {
        match self.flags & Self::MODE_MASK {
            1 => CacheMode::Writeback,
            2 => CacheMode::Writearound,
            3 => CacheMode::None,
            _ => CacheMode::Writethrough,
        }
    }

    pub fn set_mode(&mut self, mode: CacheMode) {
        let bits = match mode {
            CacheMode::Writethrough => 0,
            CacheMode::Writeback => 1,
            CacheMode::Writearound => 2,
            CacheMode::None => 3,
        };
        self.flags = (self.flags & !Self::MODE_MASK) | bits;
    }

    pub fn state(&self) -> BackingState {
        match (self.flags & Self::STATE_MASK) >> Self::STATE_SHIFT {
            0 => BackingState::None,
            1 => BackingState::Clean,
            2 => BackingState::Dirty,
            _ => BackingState::Stale,
        }
    }

    pub fn set_state(&mut self, state: BackingState) {
        let bits = match state {
            BackingState::None => 0,
            BackingState::Clean => 1,
            BackingState::Dirty => 2,
            BackingState::Stale => 3,
        };
        self.flags = (self.flags & !Self::STATE_MASK) | (bits << Self::STATE_SHIFT);
    }

    /// Flag bits and mode numbers without a meaning (check 11).
    pub(crate) fn odd_flags(&self) -> Option<u64> {
        let unknown = self.flags & !(Self::MODE_MASK | Self::STATE_MASK);
        (self.flags & Self::MODE_MASK > 3 || unknown != 0).then_some(self.flags)
    }

    /// The whole 4096-byte area, sealed.
    pub fn encode(&self) -> Box<[u8; SUPERBLOCK_BYTES]> {
        self.page.rewrite(|raw| {
            raw.version = self.version.into();
            raw.uuid = self.uuid.into_bytes();
            raw.set_uuid = self.set_uuid.into_bytes();
            raw.label = self.label;
            raw.flags = self.flags.into();
            raw.seq = self.seq.into();
            raw.last_mount = self.last_mount.into();
            raw.block_size = self.block_size.into();
            // No kernel reads this field of a backing device, and 6.12 writes leftovers into it.
            raw.first_bucket = 0.into();
            if self.version != 1 {
                raw.nbuckets = self.data_offset.into();
            }
        })
    }
}

impl Page {
    fn zeroed() -> Page {
        Page(Box::new([0; SUPERBLOCK_BYTES]))
    }

    fn rewrite(&self, fill: impl FnOnce(&mut RawSuperblock)) -> Box<[u8; SUPERBLOCK_BYTES]> {
        let mut page = self.0.clone();
        if let Ok((raw, _)) = RawSuperblock::mut_from_prefix(page.as_mut_slice()) {
            raw.offset = SUPERBLOCK_SECTOR.into();
            raw.magic = MAGIC;
            fill(raw);
            raw.csum = raw.sum().into();
        }
        page
    }
}

/// How to format a cache device; `Default`-like values are those of the kernel's tools.
#[derive(Clone, Debug)]
pub struct FormatCache {
    pub uuid: Uuid,
    pub set_uuid: Uuid,
    pub label: [u8; 32],
    /// Length of the device in sectors.
    pub device_sectors: u64,
    /// Sectors.
    pub block_size: u32,
    /// Sectors; 1024 by default.
    pub bucket_size: u32,
    pub discard: bool,
    pub replacement: Replacement,
}

/// How to format a backing device.
#[derive(Clone, Debug)]
pub struct FormatBacking {
    pub uuid: Uuid,
    /// Also a lone backing device gets one.
    pub set_uuid: Uuid,
    pub label: [u8; 32],
    pub device_sectors: u64,
    /// Sectors.
    pub block_size: u16,
    /// Sectors; 16 by default.
    pub data_offset: u64,
    pub mode: CacheMode,
}

impl FormatCache {
    /// The superblock of a fresh cache device, as `make-bcache -C` leaves it: version 0, SYNC clear,
    /// no journal yet. It has passed the rules of acceptance.
    pub fn superblock(&self) -> Result<CacheSuper, Corrupt> {
        let size = self.bucket_size;
        if !size.is_power_of_two() || size < 8 {
            return Err(wrong(6, "bucket_size", size, "a power of two, at least 8 sectors"));
        }
        let large = size > 32_768;
        let cache = CacheSuper {
            version: if large { 5 } else { 0 },
            uuid: self.uuid,
            set_uuid: self.set_uuid,
            label: self.label,
            seq: 0,
            features: Features {
                incompat: if large { Features::LOG_LARGE_BUCKET_SIZE } else { 0 },
                ..Features::default()
            },
            layout: Layout {
                block_size: self.block_size,
                bucket_size: size,
                nbuckets: self.device_sectors.checked_div(u64::from(size)).unwrap_or(0),
                // 8 sectors boot area, 8 sectors superblock, 8 more that nobody explains.
                first_bucket: u64::from(23_u32.checked_div(size).unwrap_or(0).saturating_add(1)),
                pages: PageModel::default(),
            },
            nr_in_set: 1,
            nr_this_dev: 0,
            last_mount: 0,
            journal_buckets: 0,
            flags: 0,
            page: Page::zeroed(),
        };
        let mut cache = cache;
        cache.set_discard(self.discard);
        cache.set_replacement(self.replacement);
        let dev = DeviceFacts { sectors: self.device_sectors, logical_block: 512 };
        CacheSuper::parse(cache.encode().as_slice(), dev)
    }
}

impl FormatBacking {
    /// The superblock of a fresh backing device, as `make-bcache -B` leaves it: state none.
    pub fn superblock(&self) -> Result<BackingSuper, Corrupt> {
        let mut backing = BackingSuper {
            version: if self.data_offset == DATA_OFFSET_DEFAULT { 1 } else { 4 },
            uuid: self.uuid,
            set_uuid: self.set_uuid,
            label: self.label,
            seq: 0,
            data_offset: self.data_offset,
            block_size: self.block_size,
            last_mount: 0,
            flags: 0,
            page: Page::zeroed(),
        };
        backing.set_mode(self.mode);
        let dev = DeviceFacts { sectors: self.device_sectors, logical_block: 512 };
        BackingSuper::parse(backing.encode().as_slice(), dev)
    }
}

/// Changes single fields and seals the result, for tests that damage superblocks.
#[cfg(test)]
pub(crate) fn edit(page: &mut [u8], change: impl FnOnce(&mut RawSuperblock)) {
    let (raw, _) = RawSuperblock::mut_from_prefix(page).unwrap();
    change(raw);
    raw.csum = raw.sum().into();
}

#[cfg(test)]
#[path = "superblock_tests.rs"]
mod tests;
