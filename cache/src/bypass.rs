//! Whether a request uses the cache: the first rule that applies decides.
//!
//! Sequential streams and congestion are rules 8 and 9 of the format's list; they come with their
//! detectors, and their place is marked.

use varve_block::{BlockDevice, Extent};

use crate::format::CacheMode;
use crate::volume::Volume;

/// Share of buckets in use above which nothing new enters the cache.
const CUTOFF_ALL: u8 = 95;

/// What a request wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Read,
    Write,
    /// A write whose sender waits for it to be durable.
    SyncWrite,
}

/// How a write is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WriteWay {
    /// Into the cache only; dirty.
    Back,
    /// To both devices.
    Through,
    /// To the backing device; what the cache has there is invalidated.
    Around,
}

impl<S: BlockDevice, B: BlockDevice> Volume<S, B> {
    /// Whether a request goes around the cache: no fill, no caching write. Hits are served anyway.
    pub(crate) fn bypasses(&self, kind: Kind, range: Extent) -> bool {
        let in_use = self.set.buckets.borrow().in_use_percent();
        if self.detaching.get() {
            return true;
        }
        if in_use > CUTOFF_ALL {
            self.set.request_gc();
            return true;
        }
        match self.mode() {
            CacheMode::None => return true,
            CacheMode::Writearound if kind != Kind::Read => return true,
            _ => {}
        }
        let block = u64::from(self.set.layout.block_size);
        if !(range.start.0 + self.offset).is_multiple_of(block)
            || !range.len.0.is_multiple_of(block)
        {
            return true;
        }
        // Here: sequential streams, congestion.
        false
    }

    /// How to do a write.
    pub(crate) fn write_way(&self, kind: Kind, range: Extent) -> WriteWay {
        let bypass = self.bypasses(kind, range);
        if !bypass && self.should_write_back(kind) && self.set.has_space(true) {
            return WriteWay::Back;
        }
        if bypass { WriteWay::Around } else { WriteWay::Through }
    }

    fn should_write_back(&self, kind: Kind) -> bool {
        let in_use = self.set.buckets.borrow().in_use_percent();
        if self.mode() != CacheMode::Writeback || in_use > self.options.cutoff_sync {
            return false;
        }
        kind == Kind::SyncWrite || in_use <= self.options.cutoff
    }
}
