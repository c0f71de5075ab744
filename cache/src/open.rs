//! How a cache is opened, and why it may not be.

use std::time::Duration;

use uuid::Uuid;
use varve_block::DevId;

use crate::error::Corrupt;
use crate::format::{BackingState, CacheMode};

/// What the operator may choose. The defaults are the kernel's.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// A new cache mode, persisted as the kernel does; `None` keeps what the superblock says.
    pub mode: Option<CacheMode>,
    /// Attach a backing device that belongs to no set, or to another one that holds nothing of it.
    pub attach: bool,
    /// Memory for the index, in bytes; clean nodes beyond it are evicted.
    pub node_cache: usize,
    /// Memory for data in flight, in bytes.
    pub pool: usize,
    /// Unflushed index changes reach the journal after at most this long.
    pub journal_delay: Duration,
    pub writeback: WritebackOptions,
    /// Allocation, gc and writeback run by themselves. Off only in tests that drive them by hand.
    pub background: bool,
}

/// The knobs of the background writer.
#[derive(Clone, Copy, Debug)]
pub struct WritebackOptions {
    pub running: bool,
    /// Dirty data above this share of the cache are written back, at a rate that leaves clients most
    /// of the devices. 0: everything, as fast as the devices allow.
    pub percent: u8,
    /// Rest after a full scan, and the time without requests after which the volume counts as idle.
    pub delay: Duration,
    /// How long the writer rests between two looks while it has no reason to work.
    pub look_again: Duration,
    /// Above this share of buckets in use, only synchronous writes stay in the cache.
    pub cutoff: u8,
    /// Above this one, none.
    pub cutoff_sync: u8,
}

impl Default for OpenOptions {
    fn default() -> OpenOptions {
        OpenOptions {
            mode: None,
            attach: false,
            node_cache: 64 << 20,
            pool: 64 << 20,
            journal_delay: Duration::from_millis(100),
            writeback: WritebackOptions::default(),
            background: true,
        }
    }
}

impl Default for WritebackOptions {
    fn default() -> WritebackOptions {
        WritebackOptions {
            running: true,
            percent: 10,
            delay: Duration::from_secs(30),
            look_again: Duration::from_secs(1),
            cutoff: 40,
            cutoff_sync: 70,
        }
    }
}

/// Why a cache was not opened. Nothing has been written to either device in any of these cases
/// except `Device`, which may come at any step.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{dev} is not usable")]
    Superblock { dev: DevId, source: Corrupt },
    #[error("{dev}: the cache set cannot be read")]
    Damaged { dev: DevId, source: Corrupt },
    #[error("{dev} is a {found} device, a {wanted} device is needed here")]
    WrongRole { dev: DevId, found: &'static str, wanted: &'static str },
    #[error("{hdd} belongs to set {hdd_set}, {ssd} is set {ssd_set}")]
    OtherSet { hdd: DevId, hdd_set: Uuid, ssd: DevId, ssd_set: Uuid },
    #[error(
        "{hdd} has dirty data in set {set}, but {ssd} does not hold them ({why}); \
         serving it would show old data"
    )]
    DirtyElsewhere { hdd: DevId, ssd: DevId, set: Uuid, why: &'static str },
    #[error("{hdd} has no slot left in set {set}: all {slots} were used")]
    NoSlot { hdd: DevId, set: Uuid, slots: usize },
    #[error("{hdd} works in blocks of {hdd_block} sectors, the set in blocks of {set_block}")]
    BlockSize { hdd: DevId, hdd_block: u16, set_block: u32 },
    #[error(
        "{hdd}: data begin at sector {data_offset}, which is no multiple of its block of {block}"
    )]
    DataOffset { hdd: DevId, data_offset: u64, block: u64 },
    #[error("{dev} can be read but not written: {why}")]
    ReadOnly { dev: DevId, why: &'static str },
    #[error(
        "{hdd} is {state:?} and its cache set {set} is missing; {}",
        if *.state == BackingState::Dirty { "the newest data are there" } else { "waiting for it" }
    )]
    CacheMissing { hdd: DevId, state: BackingState, set: Uuid },
    #[error(transparent)]
    Device(#[from] varve_block::Error),
}
