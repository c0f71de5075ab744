//! Buckets to write into: chosen, invalidated, made durably invalid, handed out.
//!
//! A single free list serves everybody; classes differ in how much they must leave to those who are
//! more urgent. The order is the one in which progress depends on each other: data may be skipped,
//! a split may wait for gc, gc needs a node or two to free more, and a prio chain makes new free
//! buckets out of clean ones.

mod buckets;
mod refill;
mod space;

pub(crate) use buckets::{Buckets, Durable, Role, index};
pub(crate) use space::Space;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use varve_block::sync::Notify;
use varve_block::{BlockDevice, Result};

use crate::format::{Bucket, CacheSuper, Replacement};
use crate::set::Set;

/// Nodes that a split may need: two per level and a root, for the deepest tree there is.
const SPLIT_RESERVE: usize = 19;
/// Nodes that gc writes before it frees those they replace.
const GC_RESERVE: usize = 12;

/// Who asks for a bucket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    Prio,
    Gc,
    Node,
    Data,
}

/// What hangs around the free list.
pub(crate) struct Allocator {
    /// Sets in a prio chain.
    prio_sets: usize,
    /// Buckets invalidated at a time.
    batch: usize,
    policy: Replacement,
    discard: bool,
    /// Buckets became free, or there is no hope.
    pub changed: Notify,
    /// The free list is low.
    pub wanted: Notify,
    /// Only gc can make more buckets available.
    pub gc_wanted: Cell<bool>,
    pub gc_wake: Notify,
    /// Buckets that take data now.
    open: RefCell<space::OpenBuckets>,
    /// Nothing could be invalidated the last time.
    exhausted: Cell<bool>,
}

impl Allocator {
    pub(crate) fn new(sb: &CacheSuper) -> Allocator {
        let layout = &sb.layout;
        Allocator {
            prio_sets: usize::try_from(layout.prio_sets()).unwrap_or(usize::MAX),
            batch: usize::try_from(layout.nbuckets / 64).unwrap_or(4096).clamp(8, 4096),
            policy: sb.replacement(),
            discard: sb.discard(),
            changed: Notify::new(),
            wanted: Notify::new(),
            gc_wanted: Cell::new(false),
            gc_wake: Notify::new(),
            open: RefCell::new(space::OpenBuckets::new(layout)),
            exhausted: Cell::new(false),
        }
    }

    /// Free buckets that this class leaves alone.
    fn keep(&self, class: Class) -> usize {
        match class {
            Class::Prio => 0,
            Class::Gc => self.prio_sets,
            Class::Node => self.prio_sets + GC_RESERVE,
            Class::Data => self.prio_sets + GC_RESERVE + SPLIT_RESERVE,
        }
    }

    /// Below this the allocator works.
    fn low(&self) -> usize {
        self.keep(Class::Data) + self.batch
    }

    /// As many free buckets as a set begins with.
    pub(crate) fn enough(&self) -> usize {
        2 * self.low()
    }
}

/// Buckets taken for metadata; what is not used goes back.
pub(crate) struct Grant<S: BlockDevice> {
    set: Rc<Set<S>>,
    buckets: Vec<Bucket>,
}

impl<S: BlockDevice> Grant<S> {
    /// The next one; it stays marked as metadata.
    pub(crate) fn take(&mut self) -> Option<Bucket> {
        self.buckets.pop()
    }

    pub(crate) fn len(&self) -> usize {
        self.buckets.len()
    }
}

impl<S: BlockDevice> Drop for Grant<S> {
    fn drop(&mut self) {
        if self.buckets.is_empty() {
            return;
        }
        let mut buckets = self.set.buckets.borrow_mut();
        for bucket in self.buckets.drain(..) {
            buckets.untake(bucket);
        }
        drop(buckets);
        self.set.alloc.changed.notify_all();
    }
}

impl<S: BlockDevice> Set<S> {
    /// Waits for `n` buckets for metadata.
    pub(crate) async fn grant(self: &Rc<Self>, n: usize, class: Class) -> Result<Grant<S>> {
        loop {
            self.writable()?;
            if let Some(grant) = self.try_grant(n, class) {
                return Ok(grant);
            }
            self.alloc.wanted.notify_one();
            self.alloc.changed.notified().await;
        }
    }

    /// `n` buckets for metadata, if they are there.
    pub(crate) fn try_grant(self: &Rc<Self>, n: usize, class: Class) -> Option<Grant<S>> {
        let keep = self.alloc.keep(class);
        let mut buckets = self.buckets.borrow_mut();
        if buckets.free_len() < keep + n {
            return None;
        }
        let taken = (0..n).map_while(|_| buckets.take_free(keep, Role::Meta)).collect();
        if buckets.free_len() < self.alloc.low() {
            self.alloc.wanted.notify_one();
        }
        drop(buckets);
        Some(Grant { set: Rc::clone(self), buckets: taken })
    }
}
