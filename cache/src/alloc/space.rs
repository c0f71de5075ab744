//! Space for data: buckets that are being filled.
//!
//! A few buckets are open at a time. A stream that goes on where it ended finds its bucket again, so
//! what was written together is evicted together; dirty and clean data never share a bucket, or a
//! few dirty sectors would keep a bucket of clean ones from being reused.

use std::rc::Rc;

use varve_block::BlockDevice;

use super::{Class, Role};
use crate::format::{Bucket, Layout, Pos, Ptr};
use crate::set::Set;

/// Open buckets of each kind.
const OPEN_MAX: usize = 4;

/// A bucket that is being filled. It is pinned.
struct Open {
    bucket: Bucket,
    /// Next free sector of the device.
    at: u64,
    end: u64,
    dirty: bool,
    /// Where its newest data end.
    last: Pos,
    used: u64,
}

pub(super) struct OpenBuckets {
    open: Vec<Open>,
    max: usize,
    tick: u64,
}

impl OpenBuckets {
    pub(super) fn new(layout: &Layout) -> OpenBuckets {
        // A small set must not have much of it open.
        let max = usize::try_from(layout.nbuckets / 256).unwrap_or(OPEN_MAX).clamp(1, OPEN_MAX);
        OpenBuckets { open: Vec::new(), max, tick: 0 }
    }

    /// The bucket to go on in: one that ends where the data start, else the least recently used of
    /// as many as there may be.
    fn choose(&self, start: Pos, dirty: bool) -> Option<usize> {
        let same = || self.open.iter().enumerate().filter(|(_, o)| o.dirty == dirty);
        if let Some((i, _)) = same().find(|(_, o)| o.last == start) {
            return Some(i);
        }
        if same().count() < self.max {
            return None;
        }
        same().min_by_key(|(_, o)| o.used).map(|(i, _)| i)
    }
}

/// A stretch of a bucket for one write. The bucket is pinned until this is dropped, which happens
/// after its key is in the tree.
pub(crate) struct Space<S: BlockDevice> {
    set: Rc<Set<S>>,
    bucket: Bucket,
    pub ptr: Ptr,
    pub sectors: u64,
}

impl<S: BlockDevice> Drop for Space<S> {
    fn drop(&mut self) {
        self.set.buckets.borrow_mut().unpin(self.bucket);
    }
}

impl<S: BlockDevice> Set<S> {
    /// Space for up to `want` sectors of data that start at `start`: one stretch inside one bucket.
    /// None when no bucket is free now.
    pub(crate) fn space(self: &Rc<Self>, start: Pos, want: u64, dirty: bool) -> Option<Space<S>> {
        let mut open = self.alloc.open.borrow_mut();
        let index = match open.choose(start, dirty) {
            Some(index) => index,
            None => self
                .open_bucket(&mut open, dirty)
                .or_else(|| open.open.iter().position(|o| o.dirty == dirty))?,
        };
        open.tick += 1;
        let tick = open.tick;
        let chosen = &mut open.open[index];
        let sectors = want.min(chosen.end - chosen.at);
        let bucket = chosen.bucket;
        let ptr = Ptr::new(chosen.at, self.buckets.borrow().current(bucket));
        chosen.at += sectors;
        chosen.used = tick;
        chosen.last = Pos::new(start.inode, start.offset + sectors);
        let full = chosen.end - chosen.at < u64::from(self.layout.block_size);
        self.buckets.borrow_mut().pin(bucket);
        if full {
            open.open.swap_remove(index);
            self.buckets.borrow_mut().unpin(bucket);
        }
        Some(Space { set: Rc::clone(self), bucket, ptr, sectors })
    }

    fn open_bucket(&self, open: &mut OpenBuckets, dirty: bool) -> Option<usize> {
        let mut buckets = self.buckets.borrow_mut();
        let bucket = buckets.take_free(self.alloc.keep(Class::Data), Role::Data);
        if buckets.free_len() < self.alloc.low() {
            self.alloc.wanted.notify_one();
        }
        let bucket = bucket?;
        buckets.pin(bucket);
        let at = self.layout.bucket_start(bucket);
        let end = at + u64::from(self.layout.bucket_size);
        open.open.push(Open { bucket, at, end, dirty, last: Pos::MAX, used: 0 });
        Some(open.open.len() - 1)
    }

    /// Whether data could be had now: a writer decides before it begins.
    pub(crate) fn has_space(&self, dirty: bool) -> bool {
        self.buckets.borrow().free_len() > self.alloc.keep(Class::Data)
            || self.alloc.open.borrow().open.iter().any(|o| o.dirty == dirty)
    }
}
