//! One operation on the host, from its start to its end, and the table that owns it meanwhile.
//!
//! # Who owns memory, until when
//!
//! An [`Op`] owns its buffers and its file descriptor. While the host works on it, the [`OpTable`]
//! owns the `Op`; the future that waits for it owns a key and nothing else. So a dropped future
//! cannot free what the kernel still writes: the entry stays, marked as abandoned, until the engine
//! reports the end, and only then buffers go home and the descriptor is closed.
//!
//! # Late completions
//!
//! A key is a slot and the slot's generation. Between *take* (the engine hears of an end) and
//! *touch* (the entry is changed) the generation is compared: a completion that comes twice, or for
//! a slot that has a new tenant, is refused and counted. A caller that shows a stale key is a bug of
//! ours and panics. A vacant slot carries a pattern that must be intact when it is taken again.

use crate::buf::{Data, IoBuf, IoView};
use rustix::event::PollFlags;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::Waker;

/// A descriptor that stays open until the last operation on it has ended.
pub(crate) type Fd = Arc<OwnedFd>;

/// What `fallocate` is asked for; the length of the file never changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Allocate {
    /// The range becomes a hole.
    PunchHole,
    /// The range reads as zeroes and stays allocated.
    ZeroRange,
}

/// An operation the host can do. A new kind (a `uring_cmd` for ublk) is a variant here, an entry in
/// `uring.rs`, and an answer in `threads.rs`.
#[derive(Debug)]
pub(crate) enum Op {
    /// Into `buf[from..]`, from byte `at`. `aside`: another thread of the host's is to copy the bytes,
    /// where they would be copied by this one.
    Read {
        file: Fd,
        at: u64,
        buf: IoBuf,
        from: usize,
        aside: bool,
    },
    /// `data[from..]` to byte `at`.
    Write {
        file: Fd,
        at: u64,
        data: Data,
        from: usize,
        dsync: bool,
    },
    DataSync {
        file: Fd,
    },
    Fallocate {
        file: Fd,
        what: Allocate,
        at: u64,
        len: u64,
    },
    Accept {
        listener: Fd,
    },
    Connect {
        socket: Fd,
        to: Box<socket2::SockAddr>,
    },
    /// Into `buf[part]`. `all`: do not end before it is full, if the engine can do that.
    Recv {
        socket: Fd,
        buf: IoBuf,
        part: Range<usize>,
        all: bool,
    },
    /// The bytes of `parts` in order, without the first `from`.
    Send {
        socket: Fd,
        parts: Vec<IoView>,
        from: usize,
    },
    Poll {
        fd: Fd,
        events: PollFlags,
    },
}

impl Op {
    /// Whether it may wait for a peer, so that dropping its future must cancel it. A transfer to a
    /// disk ends by itself, and cancelling it would only cost.
    pub(crate) fn waits_for_peer(&self) -> bool {
        match self {
            Op::Read { .. } | Op::Write { .. } | Op::DataSync { .. } | Op::Fallocate { .. } => {
                false
            }
            Op::Accept { .. }
            | Op::Connect { .. }
            | Op::Recv { .. }
            | Op::Send { .. }
            | Op::Poll { .. } => true,
        }
    }
}

/// How an operation ended well.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Bytes moved, or the events of a poll.
    Count(usize),
    Socket(OwnedFd),
}

/// A slot and its generation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OpKey {
    slot: u32,
    generation: u32,
}

impl OpKey {
    pub(crate) fn to_u64(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.slot)
    }

    pub(crate) fn from_u64(raw: u64) -> OpKey {
        let half = |n: u64| u32::try_from(n & u64::from(u32::MAX)).expect("32 bits");
        OpKey { slot: half(raw), generation: half(raw >> 32) }
    }
}

/// Where an operation stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Vacant,
    /// The host works on it.
    Running,
    /// The host works on it, and its future was dropped.
    Abandoned,
    /// Its future has not asked yet.
    Done,
}

const POISON: u64 = 0xDEAD_0B5C_0FFE_E000;

/// Laid out so that an operation moves in once and out once.
struct Slot<X> {
    generation: u32,
    stage: Stage,
    /// The next vacant slot; [`POISON`] while this one is vacant.
    next: Option<u32>,
    poison: u64,
    /// Away while a worker thread has it.
    op: Option<Op>,
    /// What an engine keeps in place with it.
    extra: X,
    /// Whom to wake. Kept when the slot is vacant: the next tenant is often the same task, and then
    /// needs no clone.
    waker: Waker,
    /// Whether `waker` is this tenant's.
    awaited: bool,
    result: io::Result<Outcome>,
}

/// Operations in flight on one lane.
pub(crate) struct OpTable<X> {
    slots: Vec<Slot<X>>,
    free: Option<u32>,
    running: usize,
    stale: u64,
}

/// What is to be done, outside the table's borrow, after an operation has ended.
#[must_use]
pub(crate) enum Ended {
    /// Somebody waits: [`OpTable::wake`].
    Awaited,
    /// Its future will look by itself.
    Noted,
    /// Its future is gone: here is what it owned, to drop.
    Orphan(Op, io::Result<Outcome>),
    /// No such operation is running. Counted.
    Stale,
}

impl<X: Default> OpTable<X> {
    pub(crate) fn new() -> OpTable<X> {
        OpTable { slots: Vec::new(), free: None, running: 0, stale: 0 }
    }

    /// How many the host still works on.
    pub(crate) fn running(&self) -> usize {
        self.running
    }

    /// How many completions were refused.
    pub(crate) fn stale(&self) -> u64 {
        self.stale
    }

    /// A slot to fill.
    fn take(&mut self) -> (OpKey, &mut Slot<X>) {
        let slot = match self.free {
            Some(slot) => slot,
            None => {
                let slot = u32::try_from(self.slots.len()).expect("memory bounds the operations");
                self.slots.push(Slot {
                    generation: 0,
                    stage: Stage::Vacant,
                    next: None,
                    poison: POISON,
                    op: None,
                    extra: X::default(),
                    waker: Waker::noop().clone(),
                    awaited: false,
                    result: Ok(Outcome::Count(0)),
                });
                slot
            }
        };
        let entry = &mut self.slots[slot as usize];
        assert!(entry.stage == Stage::Vacant, "slot {slot} is in the free list and in use");
        assert!(entry.poison == POISON, "slot {slot} was written while it was free");
        self.free = entry.next;
        entry.poison = 0;
        (OpKey { slot, generation: entry.generation }, entry)
    }

    pub(crate) fn insert(&mut self, op: Option<Op>) -> OpKey {
        self.running += 1;
        let (key, slot) = self.take();
        slot.stage = Stage::Running;
        slot.op = op;
        key
    }

    /// An operation that ended before it began.
    pub(crate) fn insert_done(&mut self, op: Op, result: io::Result<Outcome>) -> OpKey {
        let (key, slot) = self.take();
        slot.stage = Stage::Done;
        slot.op = Some(op);
        slot.result = result;
        key
    }

    /// For callers of ours, whose key must be good.
    fn slot(&mut self, key: OpKey) -> &mut Slot<X> {
        let slot = &mut self.slots[key.slot as usize];
        assert!(
            slot.generation == key.generation,
            "slot {} has generation {}, its key says {}",
            key.slot,
            slot.generation,
            key.generation
        );
        slot
    }

    fn vacate(&mut self, key: OpKey) -> (Op, io::Result<Outcome>) {
        let next = self.free.replace(key.slot);
        let slot = self.slot(key);
        slot.generation = slot.generation.wrapping_add(1);
        slot.stage = Stage::Vacant;
        slot.next = next;
        slot.poison = POISON;
        slot.awaited = false;
        slot.extra = X::default();
        let op = slot.op.take().expect("an ended operation is here");
        (op, std::mem::replace(&mut slot.result, Ok(Outcome::Count(0))))
    }

    fn running_slot(&mut self, key: OpKey) -> Option<&mut Slot<X>> {
        self.slots.get_mut(key.slot as usize).filter(|slot| {
            slot.generation == key.generation
                && matches!(slot.stage, Stage::Running | Stage::Abandoned)
        })
    }

    /// The operation and what the engine keeps with it, or `None` when it is not running.
    pub(crate) fn running_mut(&mut self, key: OpKey) -> Option<(&mut Option<Op>, &mut X)> {
        self.running_slot(key).map(|slot| (&mut slot.op, &mut slot.extra))
    }

    /// The engine reports an end. `back` is the operation, where a worker had it.
    pub(crate) fn complete(
        &mut self,
        key: OpKey,
        back: Option<Op>,
        result: io::Result<Outcome>,
    ) -> Ended {
        let Some(slot) = self.running_slot(key) else {
            self.stale += 1;
            return Ended::Stale;
        };
        slot.result = result;
        if back.is_some() {
            slot.op = back;
        }
        let abandoned = slot.stage == Stage::Abandoned;
        slot.stage = Stage::Done;
        let awaited = slot.awaited;
        self.running -= 1;
        if abandoned {
            let (op, result) = self.vacate(key);
            return Ended::Orphan(op, result);
        }
        if awaited { Ended::Awaited } else { Ended::Noted }
    }

    /// Wakes whoever waits for an operation that has ended.
    pub(crate) fn wake(&self, key: OpKey) {
        let slot = &self.slots[key.slot as usize];
        // Its future may have gone, or asked by itself, since it ended.
        if slot.generation == key.generation && slot.awaited {
            slot.waker.wake_by_ref();
        }
    }

    /// The future asks. After `Some` the key is spent.
    pub(crate) fn poll(&mut self, key: OpKey, waker: &Waker) -> Option<(Op, io::Result<Outcome>)> {
        let slot = self.slot(key);
        match slot.stage {
            Stage::Running => {
                slot.waker.clone_from(waker);
                slot.awaited = true;
                None
            }
            Stage::Done => Some(self.vacate(key)),
            other => panic!("a future asks for a slot that is {other:?}"),
        }
    }

    /// The future was dropped: what it owned, when the host is done with it already.
    pub(crate) fn abandon(&mut self, key: OpKey) -> Option<(Op, io::Result<Outcome>)> {
        let slot = self.slot(key);
        match slot.stage {
            Stage::Running => {
                slot.stage = Stage::Abandoned;
                None
            }
            Stage::Done => Some(self.vacate(key)),
            other => panic!("a future leaves a slot that is {other:?}"),
        }
    }

    /// The keys of everything the host works on.
    pub(crate) fn running_keys(&self) -> Vec<OpKey> {
        let running = |slot: &Slot<X>| matches!(slot.stage, Stage::Running | Stage::Abandoned);
        let slots = self.slots.iter().zip(0u32..).filter(|(slot, _)| running(slot));
        slots.map(|(slot, n)| OpKey { slot: n, generation: slot.generation }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::BufPool;
    use crate::units::Sectors;

    fn op(pool: &BufPool) -> Op {
        let buf = pool.try_take(Sectors(8)).expect("the pool has room");
        let file = Arc::new(std::fs::File::open("/dev/null").unwrap().into());
        Op::Read { file, at: 0, buf, from: 0, aside: false }
    }

    #[test]
    fn an_abandoned_operation_keeps_its_buffer_until_its_end() {
        let pool = BufPool::new(0);
        let mut table: OpTable<()> = OpTable::new();
        let key = table.insert(Some(op(&pool)));
        assert!(table.abandon(key).is_none());
        assert_eq!(pool.lent(), 4096, "the host may still write there");
        let Ended::Orphan(op, _) = table.complete(key, None, Ok(Outcome::Count(1))) else {
            panic!("nobody waits for it");
        };
        drop(op);
        assert_eq!((pool.lent(), table.running()), (0, 0));
    }

    #[test]
    fn a_completion_for_a_finished_request_is_refused_and_counted() {
        let pool = BufPool::new(0);
        let mut table: OpTable<()> = OpTable::new();
        let first = table.insert(Some(op(&pool)));
        assert!(matches!(table.complete(first, None, Ok(Outcome::Count(1))), Ended::Noted));
        // Twice while its result waits, and once more when the slot has a new tenant.
        assert!(matches!(table.complete(first, None, Ok(Outcome::Count(1))), Ended::Stale));
        assert!(table.poll(first, Waker::noop()).is_some());
        let second = table.insert(Some(op(&pool)));
        assert_eq!(second.slot, first.slot, "the pool of slots is a stack");
        assert!(matches!(table.complete(first, None, Ok(Outcome::Count(1))), Ended::Stale));
        assert!(table.poll(second, Waker::noop()).is_none(), "still running");
        assert_eq!((table.stale(), table.running()), (2, 1));
        assert_eq!(OpKey::from_u64(second.to_u64()), second);
    }

    #[test]
    #[should_panic(expected = "generation")]
    fn touching_an_operation_after_its_slot_was_reused_is_a_bug() {
        let pool = BufPool::new(0);
        let mut table: OpTable<()> = OpTable::new();
        let first = table.insert_done(op(&pool), Ok(Outcome::Count(0)));
        assert!(table.poll(first, Waker::noop()).is_some());
        table.insert(Some(op(&pool)));
        table.abandon(first);
    }

    #[test]
    #[should_panic(expected = "written while it was free")]
    fn a_scribble_on_a_free_slot_is_found_when_it_is_taken() {
        let pool = BufPool::new(0);
        let mut table: OpTable<()> = OpTable::new();
        let key = table.insert_done(op(&pool), Ok(Outcome::Count(0)));
        assert!(table.abandon(key).is_some());
        table.slots[0].poison -= 1;
        table.insert(Some(op(&pool)));
    }
}
