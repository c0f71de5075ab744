//! What a cache says about itself: for the live display, `cache show` and JSON.

use uuid::Uuid;
use varve_block::Extent;

use crate::format::{BackingState, CacheMode};

/// A snapshot, taken without waiting for anything.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    pub set_uuid: Uuid,
    pub backing_uuid: Uuid,
    pub mode: CacheMode,
    pub state: BackingState,
    pub requests: Requests,
    /// Sectors that only the cache has.
    pub dirty_sectors: u64,
    /// Percent of buckets that hold dirty data, metadata or open allocations.
    pub in_use_percent: u8,
    pub buckets: BucketCounts,
    pub index: IndexStatus,
    /// Extents of the volume that could not be written back, with their device error.
    pub quarantine: Vec<(Extent, String)>,
    /// Set once the cache had to stop writing its index: why.
    pub safe_mode: Option<String>,
    /// Requests go straight to the backing device: detached, or the set failed with nothing dirty.
    pub uncached: bool,
}

/// Counters since the cache was opened.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Requests {
    pub hits: u64,
    /// A request with any missing part counts here.
    pub misses: u64,
    pub bypass_hits: u64,
    pub bypass_misses: u64,
    /// Fills that lost against a write of the same range.
    pub miss_collisions: u64,
    /// Sectors that went around the cache.
    pub bypassed_sectors: u64,
    /// Sectors written by requests, by where they went first.
    pub written_dirty: u64,
    pub written_through: u64,
    /// Sectors the background writer moved to the backing device.
    pub written_back: u64,
    /// Reads that the cache device failed and the backing device served.
    pub cache_errors_survived: u64,
}

/// Buckets by what they hold.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct BucketCounts {
    pub total: u64,
    /// Ready to be written.
    pub free: u64,
    /// Hold nothing, but must be invalidated before they are written.
    pub unused: u64,
    pub clean: u64,
    pub dirty: u64,
    pub metadata: u64,
}

/// The index and its log.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct IndexStatus {
    pub depth: u8,
    pub nodes: u64,
    pub nodes_cached: u64,
    pub journal_seq: u64,
    pub open_entries: u64,
}
