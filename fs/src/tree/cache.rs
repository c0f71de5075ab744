//! Tree blocks by address. Two promises, both paid for in blood elsewhere:
//!
//! 1. *One read per block.* Whoever comes while a block is being read waits for that very read. The
//!    classic race is to look for the block, find it missing, and start a second read into memory
//!    that the first has published meanwhile; here the look and the claim are one step.
//! 2. *A published block never changes.* Every read has memory of its own and is published by pointer,
//!    after it was checked. A late or repeated completion has nothing to scribble on.
//!
//! ```text
//! (absent) --claim--> Reading --publish--> Valid --evict--> (absent)
//!                        \--- leader fails or is dropped ---> (absent), waiters look again
//! ```

use super::node::TreeBlock;
use crate::units::Logical;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use varve_block::sync::Notify;

/// Blocks of one file system on one lane, up to a budget of bytes.
#[derive(Debug)]
pub(crate) struct BlockCache {
    state: RefCell<State>,
    budget: usize,
    hits: Cell<u64>,
    misses: Cell<u64>,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<Logical, Entry>,
    /// Valid blocks in the order they will be looked at for eviction.
    clock: VecDeque<Logical>,
    bytes: usize,
}

#[derive(Debug)]
enum Entry {
    Reading(Rc<Waiters>),
    /// The flag is set by each use after the first, and cleared when the hand of the clock passes:
    /// a scan that touches every block once does not push out the roots.
    Valid(Arc<TreeBlock>, Cell<bool>),
}

#[derive(Default)]
pub(crate) struct Waiters(Notify);

impl std::fmt::Debug for Waiters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Waiters(..)")
    }
}

impl Waiters {
    /// Ready when the read that was under way has ended, one way or the other.
    pub(crate) async fn ended(&self) {
        self.0.notified().await;
    }
}

/// What a reader has to do.
pub(crate) enum Look<'a> {
    Hit(Arc<TreeBlock>),
    /// Somebody reads it: wait, then look again.
    Wait(Rc<Waiters>),
    /// It is yours to read.
    Claimed(Claim<'a>),
}

/// The right and duty to read one block. Dropped unpublished, it lets the next reader try.
pub(crate) struct Claim<'a> {
    cache: &'a BlockCache,
    at: Logical,
    waiters: Rc<Waiters>,
}

impl BlockCache {
    pub(crate) fn new(budget: usize) -> BlockCache {
        BlockCache { state: RefCell::default(), budget, hits: Cell::new(0), misses: Cell::new(0) }
    }

    /// Looks and, where there is nothing, claims: one step, with no await in it.
    pub(crate) fn look(&self, at: Logical) -> Look<'_> {
        let mut state = self.state.borrow_mut();
        match state.entries.get(&at) {
            Some(Entry::Valid(block, used)) => {
                used.set(true);
                self.hits.set(self.hits.get() + 1);
                Look::Hit(Arc::clone(block))
            }
            Some(Entry::Reading(waiters)) => Look::Wait(Rc::clone(waiters)),
            None => {
                let waiters = Rc::new(Waiters::default());
                state.entries.insert(at, Entry::Reading(Rc::clone(&waiters)));
                self.misses.set(self.misses.get() + 1);
                Look::Claimed(Claim { cache: self, at, waiters })
            }
        }
    }

    /// Hits and misses since the start.
    pub(crate) fn counters(&self) -> (u64, u64) {
        (self.hits.get(), self.misses.get())
    }
}

impl Claim<'_> {
    /// The block is good: everybody may have it.
    pub(crate) fn publish(self, block: TreeBlock) -> Arc<TreeBlock> {
        let block = Arc::new(block);
        let mut state = self.cache.state.borrow_mut();
        state.bytes += block.size();
        state.entries.insert(self.at, Entry::Valid(Arc::clone(&block), Cell::new(false)));
        state.clock.push_back(self.at);
        state.shrink(self.cache.budget);
        drop(state);
        block
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut state = self.cache.state.borrow_mut();
        if let Some(Entry::Reading(_)) = state.entries.get(&self.at) {
            state.entries.remove(&self.at);
        }
        drop(state);
        self.waiters.0.notify_all();
    }
}

impl State {
    /// Second chance: what was used since the hand last passed stays for another round.
    fn shrink(&mut self, budget: usize) {
        while self.bytes > budget && self.clock.len() > 1 {
            let Some(at) = self.clock.pop_front() else { break };
            let Some(Entry::Valid(block, used)) = self.entries.get(&at) else { continue };
            if used.replace(false) {
                self.clock.push_back(at);
                continue;
            }
            self.bytes -= block.size();
            self.entries.remove(&at);
        }
    }
}

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::csum::CsumType;
    use crate::format::Uuid;
    use crate::format::superblock::Incompat;
    use crate::tree::build::{self, Stamp};
    use crate::verify::{Expect, Rules};

    pub(super) fn block(at: u64) -> TreeBlock {
        let rules = Rules {
            sectorsize: 4096,
            nodesize: 4096,
            csum: CsumType::Crc32c,
            incompat: Incompat::empty(),
            generation_max: 1,
            fsids: vec![Uuid::nil()],
            writable: false,
            changing_csums: false,
        };
        let stamp = Stamp {
            fsid: Uuid::nil(),
            chunk_tree_uuid: Uuid::nil(),
            bytenr: Logical(at),
            generation: 1,
            owner: 7,
        };
        let mut bytes = build::leaf(&stamp, 4096, &[]);
        build::seal(&mut bytes, CsumType::Crc32c);
        let logical = Logical(at);
        let expect = Expect { logical, level: 0, generation: None, first_key: None, owner: None };
        TreeBlock::check(&rules, bytes, &expect, 1).unwrap()
    }

    #[test]
    fn a_second_reader_waits_and_a_failed_read_passes_the_claim_on() {
        let cache = BlockCache::new(1 << 20);
        let Look::Claimed(first) = cache.look(Logical(4096)) else { panic!("nobody was here") };
        assert!(matches!(cache.look(Logical(4096)), Look::Wait(_)));
        drop(first);
        let Look::Claimed(second) = cache.look(Logical(4096)) else { panic!("it is free again") };
        second.publish(block(4096));
        assert!(matches!(cache.look(Logical(4096)), Look::Hit(_)));
    }

    #[test]
    fn memory_stays_within_the_budget_and_used_blocks_outlive_unused_ones() {
        let cache = BlockCache::new(8 * 4096);
        for n in 1..100 {
            if let Look::Claimed(claim) = cache.look(Logical(n * 4096)) {
                claim.publish(block(n * 4096));
            }
            assert!(matches!(cache.look(Logical(4096)), Look::Hit(_)), "the root is hot");
            let state = cache.state.borrow();
            assert!(state.bytes <= 8 * 4096);
            assert_eq!(state.entries.len(), state.clock.len());
        }
    }
}
