//! Locks on runs of sectors, shared by every lane and connection of an export.
//!
//! Requests are admitted in the order they ask. A request waits for every *earlier* one that
//! overlaps it, unless both only read; so "order is yours" below becomes "the order of asking"
//! here, and a waiting writer is never overtaken by a reader of the same sectors.
//!
//! Each entry carries the number of earlier conflicts still alive. Asking and leaving cost one walk
//! over the entries in flight, a few hundred at most, under a mutex that nothing awaits.

use crate::units::Extent;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Clones share the lock.
#[derive(Clone, Default)]
pub struct RangeLock(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    next: u64,
    /// In order of asking, so sorted by ticket.
    entries: VecDeque<Entry>,
}

struct Entry {
    ticket: u64,
    range: Extent,
    exclusive: bool,
    blockers: usize,
    waker: Option<Waker>,
}

impl Entry {
    fn conflicts(&self, range: Extent, exclusive: bool) -> bool {
        (self.exclusive || exclusive) && self.range.overlaps(range)
    }
}

fn lock(m: &Mutex<Table>) -> MutexGuard<'_, Table> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RangeLock {
    pub fn new() -> RangeLock {
        RangeLock::default()
    }

    /// Shared with other readers of the range. The place in the order is taken *now*, not at the
    /// first poll.
    pub fn read(&self, range: Extent) -> impl Future<Output = RangeGuard> + use<> {
        self.ask(range, false)
    }

    /// The range alone. The place in the order is taken now.
    pub fn write(&self, range: Extent) -> impl Future<Output = RangeGuard> + use<> {
        self.ask(range, true)
    }

    fn ask(&self, range: Extent, exclusive: bool) -> Wait {
        let mut table = lock(&self.0);
        let blockers = table.entries.iter().filter(|e| e.conflicts(range, exclusive)).count();
        let ticket = table.next;
        table.next += 1;
        table.entries.push_back(Entry { ticket, range, exclusive, blockers, waker: None });
        drop(table);
        Wait { guard: Some(RangeGuard { table: Arc::clone(&self.0), ticket }) }
    }

    /// Entries held or waiting.
    pub fn in_flight(&self) -> usize {
        lock(&self.0).entries.len()
    }
}

/// The range is yours until this drops. `Send`: it may be dropped on another lane.
pub struct RangeGuard {
    table: Arc<Mutex<Table>>,
    ticket: u64,
}

struct Wait {
    guard: Option<RangeGuard>,
}

impl Future for Wait {
    type Output = RangeGuard;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<RangeGuard> {
        let guard = self.guard.as_ref().expect("polled after the end");
        {
            let mut table = lock(&guard.table);
            let at = table
                .entries
                .binary_search_by_key(&guard.ticket, |e| e.ticket)
                .expect("an entry stays until its guard drops");
            let entry = &mut table.entries[at];
            if entry.blockers > 0 {
                entry.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
        }
        Poll::Ready(self.guard.take().expect("seen above"))
    }
}

impl Drop for RangeGuard {
    fn drop(&mut self) {
        let mut table = lock(&self.table);
        let at = table
            .entries
            .binary_search_by_key(&self.ticket, |e| e.ticket)
            .expect("an entry leaves once");
        let gone = table.entries.remove(at).expect("just found");
        let mut woken = Vec::new();
        for later in table.entries.range_mut(at..) {
            if later.conflicts(gone.range, gone.exclusive) {
                later.blockers -= 1;
                if later.blockers == 0 {
                    woken.extend(later.waker.take());
                }
            }
        }
        drop(table);
        for waker in woken {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::poll_once;
    use crate::units::{Sector, Sectors};

    fn run(start: u64, len: u64) -> Extent {
        Extent::new(Sector(start), Sectors(len))
    }

    #[test]
    fn readers_share_and_a_writer_between_them_keeps_its_turn() {
        let l = RangeLock::new();
        let mut a = Box::pin(l.read(run(0, 8)));
        let mut w = Box::pin(l.write(run(4, 8)));
        let mut b = Box::pin(l.read(run(6, 1)));
        let mut far = Box::pin(l.write(run(100, 1)));
        let Poll::Ready(ga) = poll_once(a.as_mut()) else { panic!("first") };
        assert!(poll_once(w.as_mut()).is_pending());
        assert!(poll_once(b.as_mut()).is_pending(), "behind the writer");
        assert!(poll_once(far.as_mut()).is_ready());
        drop(ga);
        let Poll::Ready(gw) = poll_once(w.as_mut()) else { panic!("its turn") };
        assert!(poll_once(b.as_mut()).is_pending());
        drop(gw);
        assert!(poll_once(b.as_mut()).is_ready());
        assert_eq!(l.in_flight(), 0);
    }

    #[test]
    fn a_waiter_that_gives_up_unblocks_those_behind_it() {
        let l = RangeLock::new();
        let Poll::Ready(held) = poll_once(Box::pin(l.read(run(0, 8))).as_mut()) else {
            panic!("first")
        };
        let w = l.write(run(0, 8));
        let mut r = Box::pin(l.read(run(0, 8)));
        assert!(poll_once(r.as_mut()).is_pending());
        drop(w);
        assert!(poll_once(r.as_mut()).is_ready());
        drop(held);
    }
}
