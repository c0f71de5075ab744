//! The nodes in memory.
//!
//! A node is found by its bucket. Interior nodes and leaves are treated alike: clean ones are
//! evicted when memory is short and nobody holds them, the root never is. Who needs a node that is
//! not there loads it; who needs the same one meanwhile waits for that.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use varve_block::Instant;
use varve_block::sync::{LocalSemaphore, Notify};

use super::Node;
use crate::alloc::index;
use crate::format::{Bucket, Key, Layout, Pos};

/// A node and what is going on with it.
///
/// ```text
///   clean ── insertion ──> unwritten ── write starts ──> writing (takes insertions again)
///     ^                                                     |
///     └───────────────────── durable ───────────────────────┘
///   any ── a structure change begins ──> frozen (no insertions) ── replaced ──> dead
/// ```
pub(crate) struct NodeCell {
    pub key: Key,
    pub level: u8,
    pub node: RefCell<Node>,
    /// Its keys are being moved to other nodes: lookups go on, insertions wait.
    pub frozen: Cell<bool>,
    /// It is not part of the tree any more.
    pub dead: Cell<bool>,
    pub writing: Cell<bool>,
    /// A write of it was asked for and has not begun.
    pub scheduled: Cell<bool>,
    /// Oldest journal entry with unwritten keys of it.
    pub pin: Cell<Option<u64>>,
    /// Newest stamp of the unwritten keys' data.
    pub stamp: Cell<u64>,
    pub dirty_since: Cell<Option<Instant>>,
    /// One of the above changed.
    pub changed: Notify,
    /// Looked at since the hand of the clock went by.
    used: Cell<bool>,
}

pub(crate) type NodeRef = Rc<NodeCell>;

impl NodeCell {
    pub(crate) fn new(node: Node) -> NodeRef {
        Rc::new(NodeCell {
            key: node.key(),
            level: node.level(),
            node: RefCell::new(node),
            frozen: Cell::new(false),
            dead: Cell::new(false),
            writing: Cell::new(false),
            scheduled: Cell::new(false),
            pin: Cell::new(None),
            stamp: Cell::new(0),
            dirty_since: Cell::new(None),
            changed: Notify::new(),
            used: Cell::new(true),
        })
    }

    pub(crate) fn bound(&self) -> Pos {
        self.key.pos()
    }

    fn evictable(self: &Rc<Self>) -> bool {
        !self.frozen.get()
            && !self.writing.get()
            && self.pin.get().is_none()
            && Rc::strong_count(self) == 1
            && !self.node.borrow().has_unwritten()
    }
}

/// A node whose insertions wait until this is dropped.
pub(crate) struct Freeze(NodeRef);

impl Freeze {
    pub(crate) fn new(node: &NodeRef) -> Freeze {
        assert!(!node.frozen.get(), "structure changes of a node come one after the other");
        node.frozen.set(true);
        Freeze(Rc::clone(node))
    }
}

impl Drop for Freeze {
    fn drop(&mut self) {
        self.0.frozen.set(false);
        self.0.changed.notify_all();
    }
}

enum Slot {
    Empty,
    /// Somebody reads it.
    Loading(Rc<Notify>),
    Ready(NodeRef),
}

/// See the module.
pub(crate) struct NodeCache {
    layout: Layout,
    slots: RefCell<Vec<Slot>>,
    root: RefCell<Option<NodeRef>>,
    /// Buckets of the nodes in `slots`, in the order of the clock.
    ring: RefCell<Vec<Bucket>>,
    hand: Cell<usize>,
    bytes: Cell<usize>,
    limit: usize,
    /// Leaves with unwritten keys, by the oldest entry they pin (none: 0) and bucket.
    unwritten: RefCell<BTreeMap<(u64, u64), NodeRef>>,
    /// Nodes with a write in flight that holds a pin, by that pin.
    flying: RefCell<BTreeMap<u64, usize>>,
    /// Nodes in the tree, in memory or not.
    pub total: Cell<u64>,
    /// Replacing nodes: one at a time.
    pub structure: LocalSemaphore,
}

/// What a lookup by bucket finds.
pub(crate) enum Cached {
    Ready(NodeRef),
    /// Wait, then look again.
    Loading(Rc<Notify>),
    Missing,
}

impl NodeCache {
    pub(crate) fn new(layout: &Layout, limit: usize) -> NodeCache {
        let mut slots = Vec::new();
        slots.resize_with(usize::try_from(layout.nbuckets).unwrap_or(0), || Slot::Empty);
        NodeCache {
            layout: *layout,
            slots: RefCell::new(slots),
            root: RefCell::new(None),
            ring: RefCell::default(),
            hand: Cell::new(0),
            bytes: Cell::new(0),
            limit,
            unwritten: RefCell::default(),
            flying: RefCell::default(),
            total: Cell::new(0),
            structure: LocalSemaphore::new(1),
        }
    }

    /// The root; there is one from the moment a set is open.
    pub(crate) fn root(&self) -> NodeRef {
        Rc::clone(self.root.borrow().as_ref().expect("an open set has a root"))
    }

    pub(crate) fn has_root(&self) -> bool {
        self.root.borrow().is_some()
    }

    pub(crate) fn set_root(&self, root: &NodeRef) {
        *self.root.borrow_mut() = Some(Rc::clone(root));
    }

    fn bucket(&self, key: &Key) -> Bucket {
        self.layout.bucket_of(key.pointer().offset())
    }

    /// The node that `key` points to.
    pub(crate) fn get(&self, key: &Key) -> Cached {
        match self.slots.borrow().get(index(self.bucket(key))) {
            Some(Slot::Ready(node)) if node.key == *key => {
                node.used.set(true);
                Cached::Ready(Rc::clone(node))
            }
            Some(Slot::Loading(done)) => Cached::Loading(Rc::clone(done)),
            _ => Cached::Missing,
        }
    }

    /// Claims the load of a node; the claim ends when the guard drops.
    pub(crate) fn begin_load(self: &NodeCache, key: &Key) -> Loading<'_> {
        let bucket = self.bucket(key);
        let done = Rc::new(Notify::new());
        self.slots.borrow_mut()[index(bucket)] = Slot::Loading(Rc::clone(&done));
        Loading { cache: self, bucket, done }
    }

    /// Puts a node in.
    pub(crate) fn insert(&self, node: &NodeRef) {
        let bucket = self.bucket(&node.key);
        let old = std::mem::replace(
            &mut self.slots.borrow_mut()[index(bucket)],
            Slot::Ready(Rc::clone(node)),
        );
        if !matches!(old, Slot::Ready(_)) {
            self.ring.borrow_mut().push(bucket);
            self.bytes.set(self.bytes.get() + node.node.borrow().frame().bytes());
        }
        self.evict();
    }

    /// Takes a replaced node out.
    pub(crate) fn remove(&self, node: &NodeRef) {
        let bucket = self.bucket(&node.key);
        self.slots.borrow_mut()[index(bucket)] = Slot::Empty;
        self.forget(bucket, node);
        node.dead.set(true);
    }

    fn forget(&self, bucket: Bucket, node: &NodeRef) {
        let mut ring = self.ring.borrow_mut();
        if let Some(at) = ring.iter().position(|b| *b == bucket) {
            ring.swap_remove(at);
            self.bytes.set(self.bytes.get() - node.node.borrow().frame().bytes());
        }
    }

    /// Drops clean nodes that nobody uses until the rest fits the limit: two turns of a clock.
    fn evict(&self) {
        let mut steps = 2 * self.ring.borrow().len();
        while self.bytes.get() > self.limit && steps > 0 {
            steps -= 1;
            let len = self.ring.borrow().len();
            let at = self.hand.get() % len;
            self.hand.set(at + 1);
            let bucket = self.ring.borrow()[at];
            let victim = {
                let mut slots = self.slots.borrow_mut();
                let slot = &mut slots[index(bucket)];
                let Slot::Ready(node) = &*slot else { continue };
                if node.used.replace(false) || !node.evictable() {
                    continue;
                }
                match std::mem::replace(slot, Slot::Empty) {
                    Slot::Ready(node) => node,
                    _ => continue,
                }
            };
            self.forget(bucket, &victim);
        }
    }

    pub(crate) fn cached(&self) -> u64 {
        self.ring.borrow().len() as u64
    }

    // Leaves with unwritten keys.

    /// `leaf` got keys; `pin` is the oldest entry with keys of it.
    pub(crate) fn note_unwritten(&self, leaf: &NodeRef, old_pin: Option<Option<u64>>) {
        let bucket = self.bucket(&leaf.key).0;
        let mut unwritten = self.unwritten.borrow_mut();
        if let Some(old) = old_pin {
            unwritten.remove(&(old.unwrap_or(0), bucket));
        }
        unwritten.insert((leaf.pin.get().unwrap_or(0), bucket), Rc::clone(leaf));
    }

    pub(crate) fn note_written(&self, leaf: &NodeRef, pin: Option<u64>) {
        self.unwritten.borrow_mut().remove(&(pin.unwrap_or(0), self.bucket(&leaf.key).0));
    }

    /// Up to 8 leaves whose oldest entry is `seq`.
    pub(crate) fn pinning(&self, seq: u64) -> Vec<NodeRef> {
        let unwritten = self.unwritten.borrow();
        unwritten.range((seq, 0)..=(seq, u64::MAX)).take(8).map(|(_, n)| Rc::clone(n)).collect()
    }

    /// All leaves with unwritten keys.
    pub(crate) fn all_unwritten(&self) -> Vec<NodeRef> {
        self.unwritten.borrow().values().cloned().collect()
    }

    pub(crate) fn fly(&self, pin: u64) {
        *self.flying.borrow_mut().entry(pin).or_insert(0) += 1;
    }

    pub(crate) fn land(&self, pin: u64) {
        let mut flying = self.flying.borrow_mut();
        if let Some(n) = flying.get_mut(&pin) {
            *n -= 1;
            if *n == 0 {
                flying.remove(&pin);
            }
        }
    }

    /// Whether a write in flight holds a pin on `seq`.
    pub(crate) fn writing_pinned(&self, seq: u64) -> bool {
        self.flying.borrow().contains_key(&seq)
    }

    /// The set failed: whoever waits for a node looks again.
    pub(crate) fn wake_all(&self) {
        for slot in self.slots.borrow().iter() {
            match slot {
                Slot::Ready(node) => node.changed.notify_all(),
                Slot::Loading(done) => done.notify_all(),
                Slot::Empty => {}
            }
        }
    }
}

/// A claim to load a node.
pub(crate) struct Loading<'a> {
    cache: &'a NodeCache,
    bucket: Bucket,
    done: Rc<Notify>,
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        let mut slots = self.cache.slots.borrow_mut();
        let slot = &mut slots[index(self.bucket)];
        if matches!(slot, Slot::Loading(done) if Rc::ptr_eq(done, &self.done)) {
            *slot = Slot::Empty;
        }
        drop(slots);
        self.done.notify_all();
    }
}
