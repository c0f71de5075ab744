//! Group-committed flushes.
//!
//! Every device flush has a number. Who asks needs the first flush that *starts* from now on: the
//! one that is running may have started before the asker's writes were finished below, and so may
//! not cover them. All who ask while one runs share the next. However many ask, at most two device
//! flushes stand between a question and its answer.
//!
//! ```text
//!   writes  --w1-----w2--------
//!   ask         A        B C
//!   device      [ #0   ] [ #1  ]        A needs #0; B and C came while #0 ran and share #1
//! ```
//!
//! The device flush runs in a task of its own: it must be seen to end even if everybody who asked
//! for it has gone, because a failure that nobody notices is forgotten by the kernel, and the next
//! fsync would succeed over lost data.

use crate::error::{DevId, Error, ErrorKind, Op, Result};
use crate::units::Extent;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

#[derive(Default)]
pub(super) struct FlushGroup {
    state: Mutex<State>,
    /// A copy of `failed.is_some()` that the write path reads without the mutex.
    poisoned: AtomicBool,
}

#[derive(Default)]
struct State {
    /// The number of the next flush to start.
    next: u64,
    /// Every flush below this number has ended well.
    done: u64,
    running: bool,
    failed: Option<Failure>,
    waiting: Vec<Waker>,
}

/// What is kept of a failed flush: an [`Error`] can be given out once, and many will ask.
struct Failure {
    number: u64,
    kind: ErrorKind,
    dev: DevId,
    text: String,
}

/// What an asker must do.
pub(super) enum Turn {
    /// Run the device's flush of this number, then [`FlushGroup::finish`] it, and ask again.
    Lead(u64),
    Ended(Result<()>),
}

impl FlushGroup {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the flush that covers everything finished by now.
    pub(super) fn need(&self) -> u64 {
        self.lock().next
    }

    /// The number of the flush that is running, if one is. It does *not* cover what finished after
    /// it started: only the deliberately wrong build asks for it.
    pub(super) fn need_without_epoch(&self) -> u64 {
        let state = self.lock();
        state.next - u64::from(state.running)
    }

    pub(super) fn poll(&self, need: u64, cx: &mut Context<'_>) -> Poll<Turn> {
        let mut state = self.lock();
        if state.done > need {
            return Poll::Ready(Turn::Ended(Ok(())));
        }
        if let Some(failure) = &state.failed {
            return Poll::Ready(Turn::Ended(Err(failure.error(Op::Flush, need))));
        }
        if !state.running {
            state.running = true;
            state.next += 1;
            return Poll::Ready(Turn::Lead(state.next - 1));
        }
        if !state.waiting.iter().any(|w| w.will_wake(cx.waker())) {
            state.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// The device flush `number` ended.
    pub(super) fn finish(&self, number: u64, result: Result<()>) {
        let mut state = self.lock();
        assert!(state.running, "a flush ends while it runs");
        assert!(number + 1 == state.next, "one flush runs at a time");
        state.running = false;
        match result {
            Ok(()) => state.done = number + 1,
            Err(error) => {
                tracing::error!(dev = %error.dev, error = %crate::error::chain(&error),
                    "flush failed; writes are refused until the device is reopened");
                self.poisoned.store(true, Ordering::SeqCst);
                state.failed.get_or_insert(Failure {
                    number,
                    kind: error.kind,
                    dev: error.dev.clone(),
                    text: crate::error::chain(&error),
                });
            }
        }
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        for waker in waiting {
            waker.wake();
        }
    }

    /// Refuses what must not happen after a failed flush.
    pub(super) fn admit(&self, op: Op, at: Extent) -> Result<()> {
        if !self.poisoned.load(Ordering::SeqCst) {
            return Ok(());
        }
        let state = self.lock();
        let failure = state.failed.as_ref().expect("poisoned by a failure");
        let poisoned = Error::new(ErrorKind::Poisoned, op, at, &failure.dev);
        Err(poisoned.with(failure.text.clone()))
    }

    pub(super) fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::SeqCst)
    }
}

impl Failure {
    /// Those whose flush failed hear why; those who come later hear that it is over.
    fn error(&self, op: Op, need: u64) -> Error {
        let kind = if need <= self.number { self.kind } else { ErrorKind::Poisoned };
        Error::new(kind, op, Extent::default(), &self.dev).with(self.text.clone())
    }
}
