//! The gate of an export: every request passes it, and [`Gate::close`] waits until all that passed
//! have left while those that come are held, not failed.
//!
//! One atomic word counts the requests inside and carries the closed bit, so that passing an open
//! gate costs one compare-and-swap. Only closing, reopening and waiting take the mutex.

// From the parent, so that `loomed.rs` can put loom's in their place.
use super::atomics::{AtomicU64, Mutex, MutexGuard, Ordering::SeqCst};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::PoisonError;
use std::task::{Poll, Waker};

const CLOSED: u64 = 1 << 63;

#[derive(Default)]
pub(super) struct Gate {
    /// Requests inside; the top bit says closed.
    word: AtomicU64,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    /// Who is held at the closed gate, in the order of coming.
    held: VecDeque<Waker>,
    /// Who closed the gate and waits for the last to leave.
    closer: Option<Waker>,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_enter(&self) -> bool {
        self.word
            .fetch_update(SeqCst, SeqCst, |word| (word & CLOSED == 0).then_some(word + 1))
            .is_ok()
    }

    /// Waits for an open gate, and is inside until the pass drops.
    pub(super) async fn enter(&self) -> Pass<'_> {
        poll_fn(|cx| {
            if self.try_enter() {
                return Poll::Ready(());
            }
            let mut queue = self.lock();
            // It may have been opened before the lock was ours.
            if self.try_enter() {
                return Poll::Ready(());
            }
            if !queue.held.iter().any(|w| w.will_wake(cx.waker())) {
                queue.held.push_back(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
        Pass(self)
    }

    /// One more request inside, for work that an entered request leaves running behind it.
    pub(super) fn enter_behind(&self, _inside: &Pass<'_>) {
        self.word.fetch_add(1, SeqCst);
    }

    pub(super) fn leave(&self) {
        if self.word.fetch_sub(1, SeqCst) == CLOSED | 1 {
            let closer = self.lock().closer.take();
            if let Some(waker) = closer {
                waker.wake();
            }
        }
    }

    /// Closes the gate (waiting for its turn if somebody else holds it closed) and waits until
    /// nobody is inside. The caller must [`Gate::open`] it again, also when this future is dropped
    /// after `closed` was set.
    pub(super) async fn close(&self, closed: &mut bool) {
        poll_fn(|cx| {
            let mut queue = self.lock();
            if !*closed {
                if self.word.fetch_or(CLOSED, SeqCst) & CLOSED != 0 {
                    queue.held.push_back(cx.waker().clone());
                    return Poll::Pending;
                }
                *closed = true;
            }
            queue.closer = Some(cx.waker().clone());
            if self.word.load(SeqCst) == CLOSED {
                queue.closer = None;
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
    }

    pub(super) fn open(&self) {
        let held = {
            let mut queue = self.lock();
            queue.closer = None;
            self.word.fetch_and(!CLOSED, SeqCst);
            std::mem::take(&mut queue.held)
        };
        for waker in held {
            waker.wake();
        }
    }

    /// Requests inside now.
    pub(super) fn inside(&self) -> u64 {
        self.word.load(SeqCst) & !CLOSED
    }

    pub(super) fn is_closed(&self) -> bool {
        self.word.load(SeqCst) & CLOSED != 0
    }
}

/// Inside the gate until this drops.
pub(super) struct Pass<'a>(&'a Gate);

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}
