//! The journal: recent insertions into leaves, in order, and the roots of everything else.
//!
//! Keys are put into the *open* entry and into their leaf in one step. The entry is written when
//! somebody needs it to be durable, when it is full, or after a delay; all waiters of an entry share
//! its write, and while it is under way the next entry collects keys.
//!
//! A leaf with unwritten keys *pins* the oldest entry that has keys of it. `last_seq`, the oldest
//! entry a reader needs, follows the oldest pin. Pins are absolute sequence numbers, not positions
//! in a ring: comparing wrapped positions once made the kernel reclaim too early.

pub(crate) mod ring;
mod write;

use std::cell::RefCell;
use std::collections::VecDeque;

use varve_block::sync::{LocalSemaphore, Notify};

use crate::format::journal::{JSET_BYTES_MAX, jset_bytes};
use crate::format::{Key, Layout};
use ring::Ring;

/// Entries between the oldest needed and the newest: as many as the kernel keeps.
const OPEN_MAX: usize = 20_000;
/// The longest key takes this many words.
pub(crate) const KEY_WORDS: usize = 3;

/// See the module.
pub(crate) struct Journal {
    state: RefCell<State>,
    /// Whoever writes an entry.
    turn: LocalSemaphore,
    /// An entry became durable, a pin went away, or the set failed.
    pub changed: Notify,
    /// The open entry got its first key.
    pub pending: Notify,
}

struct State {
    /// Of the open entry.
    seq: u64,
    keys: Vec<Key>,
    words: usize,
    words_max: usize,
    /// Newest stamp of the keys' data, see `Set::harden`.
    stamp: u64,
    /// Pins of the entries from `first` on, up to the open one.
    pins: VecDeque<u32>,
    first: u64,
    durable: u64,
    /// What the newest durable entry says is needed.
    durable_last: u64,
    ring: Ring,
    block_bytes: usize,
}

/// Blocks of the largest entry: 32 KiB, or a bucket.
pub(crate) fn entry_blocks_max(layout: &Layout) -> usize {
    let bucket = usize::try_from(layout.bucket_size / layout.block_size).unwrap_or(1);
    (JSET_BYTES_MAX / layout.block_bytes()).min(bucket)
}

impl Journal {
    /// A journal whose newest durable entry is `durable`, needing `durable_last` and later. Entries
    /// from there on count as pinned until [`Journal::replayed`].
    pub(crate) fn new(layout: &Layout, ring: Ring, durable: u64, durable_last: u64) -> Journal {
        let bytes = entry_blocks_max(layout) * layout.block_bytes();
        let seq = durable + 1;
        let first = durable_last.min(seq);
        let mut pins = VecDeque::new();
        for old in first..=seq {
            pins.push_back(u32::from(old < seq));
        }
        let state = State {
            seq,
            keys: Vec::new(),
            words: 0,
            words_max: (bytes - jset_bytes(0)) / 8,
            stamp: 0,
            pins,
            first,
            durable,
            durable_last,
            ring,
            block_bytes: layout.block_bytes(),
        };
        Journal {
            state: RefCell::new(state),
            turn: LocalSemaphore::new(1),
            changed: Notify::new(),
            pending: Notify::new(),
        }
    }

    /// Every key of the entries found at the start is in a leaf that pins it: recovery's own pins go.
    pub(crate) fn replayed(&self, found: std::ops::Range<u64>) {
        for seq in found {
            self.unpin(seq);
        }
    }

    /// Whether one more key fits the open entry.
    pub(crate) fn has_room(&self) -> bool {
        let state = self.state.borrow();
        state.words + KEY_WORDS <= state.words_max && state.pins.len() < OPEN_MAX
    }

    /// Adds a key to the open entry, which the caller's leaf pins from now on.
    pub(crate) fn append(&self, key: Key, stamp: u64) -> u64 {
        let mut state = self.state.borrow_mut();
        assert!(state.words + key.words() <= state.words_max, "no room in the journal entry");
        let first = state.keys.is_empty();
        state.words += key.words();
        state.keys.push(key);
        state.stamp = state.stamp.max(stamp);
        let seq = state.seq;
        drop(state);
        if first {
            self.pending.notify_one();
        }
        seq
    }

    /// Sequence number of the open entry.
    pub(crate) fn open_seq(&self) -> u64 {
        self.state.borrow().seq
    }

    /// The newest entry that has or had keys or is being written: what a flush waits for.
    pub(crate) fn newest(&self) -> u64 {
        let state = self.state.borrow();
        if state.keys.is_empty() { state.seq - 1 } else { state.seq }
    }

    pub(crate) fn durable(&self) -> u64 {
        self.state.borrow().durable
    }

    /// Entries that a reader would need now.
    pub(crate) fn open_entries(&self) -> u64 {
        let state = self.state.borrow();
        state.seq - state.last_seq()
    }

    pub(crate) fn pin(&self, seq: u64) {
        let mut state = self.state.borrow_mut();
        let index = state.index(seq);
        state.pins[index] += 1;
    }

    /// The pinning leaf is on disk (W4).
    pub(crate) fn unpin(&self, seq: u64) {
        let mut state = self.state.borrow_mut();
        let index = state.index(seq);
        assert!(state.pins[index] > 0, "entry {seq} was not pinned");
        state.pins[index] -= 1;
        // The open entry stays: it has no pins before its first key.
        while state.pins.len() > 1 && state.pins[0] == 0 {
            state.pins.pop_front();
            state.first += 1;
        }
        drop(state);
        self.changed.notify_all();
    }

    /// The oldest entry that is needed now.
    pub(crate) fn last_seq(&self) -> u64 {
        self.state.borrow().last_seq()
    }
}

impl State {
    fn index(&self, seq: u64) -> usize {
        assert!(self.first <= seq && seq <= self.seq, "entry {seq} is not open");
        usize::try_from(seq - self.first).expect("bounded by OPEN_MAX")
    }

    /// The first pinned entry; the open one when none is.
    fn last_seq(&self) -> u64 {
        let free = self.pins.iter().take_while(|&&pins| pins == 0).count();
        (self.first + free as u64).min(self.seq)
    }
}
