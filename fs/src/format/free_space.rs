//! Free space: the tree's info item, and the head of the old cache (format: btrfs 9).

use super::key::{Key, RawKey};
use super::{Result, exactly};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a FREE_SPACE_BITMAP; the last one of a group may be shorter.
pub const BITMAP_SIZE: usize = 256;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Debug)]
#[repr(C)]
pub(crate) struct RawInfo {
    extent_count: U32,
    flags: U32,
}
const _: () = assert!(size_of::<RawInfo>() == 8);

/// FREE_SPACE_INFO: how many maximal free runs a group has, and how they are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FreeSpaceInfo {
    pub extent_count: u32,
    pub flags: u32,
}

impl FreeSpaceInfo {
    /// The group's runs are bitmaps, not FREE_SPACE_EXTENT items.
    pub const USING_BITMAPS: u32 = 1;

    pub fn parse(bytes: &[u8]) -> Result<FreeSpaceInfo> {
        let raw = exactly::<RawInfo>(bytes, "8")?;
        Ok(FreeSpaceInfo { extent_count: raw.extent_count.get(), flags: raw.flags.get() })
    }

    pub fn encode(&self) -> [u8; 8] {
        zerocopy::transmute!(RawInfo {
            extent_count: self.extent_count.into(),
            flags: self.flags.into(),
        })
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Debug)]
#[repr(C)]
pub(crate) struct RawCacheHead {
    location: RawKey,
    generation: U64,
    num_entries: U64,
    num_bitmaps: U64,
}
const _: () = assert!(size_of::<RawCacheHead>() == 41);

/// `(-11 0 group)` in the root tree: the inode that holds a group's old-style cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CacheHead {
    pub location: Key,
    /// Must equal the cache inode's generation, or the cache is stale.
    pub generation: u64,
    pub num_entries: u64,
    pub num_bitmaps: u64,
}

impl CacheHead {
    pub fn parse(bytes: &[u8]) -> Result<CacheHead> {
        let raw = exactly::<RawCacheHead>(bytes, "41")?;
        Ok(CacheHead {
            location: Key::from(&raw.location),
            generation: raw.generation.get(),
            num_entries: raw.num_entries.get(),
            num_bitmaps: raw.num_bitmaps.get(),
        })
    }

    pub fn encode(&self) -> [u8; 41] {
        zerocopy::transmute!(RawCacheHead {
            location: self.location.into(),
            generation: self.generation.into(),
            num_entries: self.num_entries.into(),
            num_bitmaps: self.num_bitmaps.into(),
        })
    }
}
