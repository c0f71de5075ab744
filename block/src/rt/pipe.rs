//! Two ends joined by memory: a connection for tests and for simulated worlds, also across lanes.

use crate::buf::IoView;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// One direction.
struct Half {
    bytes: VecDeque<u8>,
    capacity: usize,
    /// The sender has ended it: what is in it can still be read.
    ended: bool,
    /// The receiver is gone: nothing more is taken.
    deaf: bool,
    receivers: Vec<Waker>,
    senders: Vec<Waker>,
}

type Shared = Arc<Mutex<Half>>;

fn lock(half: &Shared) -> MutexGuard<'_, Half> {
    half.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Changes a direction, then wakes whoever waits on it.
fn change(half: &Shared, f: impl FnOnce(&mut Half)) {
    let mut inner = lock(half);
    f(&mut inner);
    let mut woken = std::mem::take(&mut inner.receivers);
    woken.append(&mut inner.senders);
    drop(inner);
    for waker in woken {
        waker.wake();
    }
}

struct Directions {
    inbound: Shared,
    outbound: Shared,
}

impl Drop for Directions {
    fn drop(&mut self) {
        change(&self.outbound, |half| half.ended = true);
        change(&self.inbound, |half| half.deaf = true);
    }
}

/// One end; the last clone to drop closes both directions.
#[derive(Clone)]
pub(super) struct End(Arc<Directions>);

/// `capacity` bytes fit each way; a small one makes short transfers.
pub(super) fn pair(capacity: usize) -> (End, End) {
    let half = || {
        Arc::new(Mutex::new(Half {
            bytes: VecDeque::new(),
            capacity: capacity.max(1),
            ended: false,
            deaf: false,
            receivers: Vec::new(),
            senders: Vec::new(),
        }))
    };
    let (there, back) = (half(), half());
    let end = |inbound: &Shared, outbound: &Shared| {
        End(Arc::new(Directions { inbound: Arc::clone(inbound), outbound: Arc::clone(outbound) }))
    };
    (end(&back, &there), end(&there, &back))
}

impl End {
    /// As recv(2).
    pub(super) fn recv<'a>(&'a self, into: &'a mut [u8]) -> impl Future<Output = usize> + 'a {
        poll_fn(move |cx| {
            let mut half = lock(&self.0.inbound);
            if into.is_empty() || (half.bytes.is_empty() && (half.ended || half.deaf)) {
                return Poll::Ready(0);
            }
            if half.bytes.is_empty() {
                half.receivers.push(cx.waker().clone());
                return Poll::Pending;
            }
            let n = into.len().min(half.bytes.len());
            for (to, byte) in into.iter_mut().zip(half.bytes.drain(..n)) {
                *to = byte;
            }
            drop(half);
            change(&self.0.inbound, |_| ());
            Poll::Ready(n)
        })
    }

    /// As sendmsg(2): at least one byte, as many as fit.
    pub(super) async fn send(&self, parts: &[IoView], skip: usize) -> io::Result<usize> {
        poll_fn(|cx| {
            let mut half = lock(&self.0.outbound);
            if half.deaf || half.ended {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let room = half.capacity - half.bytes.len();
            if room == 0 {
                half.senders.push(cx.waker().clone());
                return Poll::Pending;
            }
            let before = half.bytes.len();
            let bytes = parts.iter().flat_map(|part| part.iter());
            half.bytes.extend(bytes.skip(skip).take(room));
            let n = half.bytes.len() - before;
            drop(half);
            change(&self.0.outbound, |_| ());
            Poll::Ready(Ok(n))
        })
        .await
    }

    pub(super) fn shutdown_send(&self) {
        change(&self.0.outbound, |half| half.ended = true);
    }

    /// Ends both directions: whoever waits on either end returns.
    pub(super) fn shutdown(&self) {
        self.shutdown_send();
        change(&self.0.inbound, |half| half.deaf = true);
    }
}
