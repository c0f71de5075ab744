//! Time, chance and tasks, in one place.
//!
//! A *lane* is one thread with one executor; tasks never leave their lane, only memory does. What
//! drives a lane is one of three engines: the ring (io_uring), a thread pool where io_uring is
//! forbidden, or a seeded world that runs all lanes on one thread in virtual time. Code above sees
//! only [`Rt`], so the same seed replays the same run: no clock, chance or thread is to be had
//! elsewhere.

mod engine;
mod executor;
#[cfg(test)]
pub(crate) mod fake;
mod file;
#[cfg(test)]
mod loomed;
mod net;
mod op;
mod parking;
mod pipe;
mod prng;
mod signals;
mod sim;
#[cfg(test)]
mod tests;
mod threads;
mod uring;
mod workers;

/// What [`parking`] is built on; its test builds it on loom's instead.
mod atomics {
    pub(crate) use std::sync::atomic::{AtomicU8, Ordering};
}

#[cfg(test)]
pub(crate) use engine::run_on_fake;
pub use engine::{Config, Engine, probe_ring, run};
pub use executor::{LaneId, Task};
pub use file::File;
pub use net::{Conn, Listener, Stream};
pub use op::Allocate;
#[cfg(test)]
pub(crate) use op::Op as HostOp;
pub use prng::Prng;
pub use signals::{Signal, Signals};
pub use sim::{Deadlock, Sim};

use crate::sync::{MailReceiver, MailSender, mailbox, oneshot};
use executor::Lane;
use op::{Op, OpKey, Outcome};
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::ops::{Add, Sub};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

/// Nanoseconds since the engine started: virtual under simulation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Instant(pub u64);

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, d: Duration) -> Instant {
        Instant(self.0.saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub for Instant {
    type Output = Duration;
    /// Zero when `earlier` is later.
    fn sub(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The handle of one lane; clones are the same lane.
#[derive(Clone)]
pub struct Rt(Rc<Lane>);

impl Rt {
    pub(crate) fn from_lane(lane: Rc<Lane>) -> Rt {
        Rt(lane)
    }

    pub fn now(&self) -> Instant {
        self.0.driver().now()
    }

    /// Seconds since 1970 for stamps on disk; a constant plus virtual time under simulation.
    pub fn unix_time(&self) -> u64 {
        self.0.driver().unix_time()
    }

    /// Ready once `d` has gone by.
    pub fn sleep(&self, d: Duration) -> impl Future<Output = ()> + use<> {
        let at = self.now() + d;
        Sleep { lane: Rc::clone(&self.0), at, timer: None }
    }

    /// Jitter and victim choice; never keys or nonces.
    pub fn prng(&self) -> &Prng {
        self.0.prng()
    }

    /// Starts a task on this lane. Dropping the [`Task`] detaches it.
    pub fn spawn<F: Future + 'static>(&self, task: F) -> Task<F::Output> {
        Lane::spawn(&self.0, task)
    }

    /// Starts a task on another lane (or this one): `start` runs there and makes the future.
    pub fn spawn_on<F, Fut>(&self, lane: LaneId, start: F)
    where
        F: FnOnce(Rt) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        self.0.inject(lane, Box::new(move |rt: &Rt| drop(rt.spawn(start(rt.clone())))));
    }

    pub fn lane(&self) -> LaneId {
        self.0.id()
    }

    /// How many lanes there are.
    pub fn lanes(&self) -> usize {
        self.0.lanes()
    }

    /// Lets every other ready task run first.
    pub async fn yield_now(&self) {
        let mut yielded = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut yielded, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// Runs CPU-heavy work (a key derivation, a compressor) off the lane; inline under simulation.
    ///
    /// # Panics
    /// When `work` panicked.
    pub async fn offload<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        if !self.0.driver().has_threads() {
            self.yield_now().await;
            return work();
        }
        let (tx, rx) = oneshot();
        workers::submit(Box::new(move || tx.send(work())));
        rx.await.expect("offloaded work panicked")
    }

    /// What does the I/O of this lane: never `Auto`, and `None` in a simulated world.
    pub fn engine(&self) -> Option<Engine> {
        self.0.driver().host().map(executor::Host::engine)
    }

    /// Starts an operation on the host now; the future waits for its end. In a simulated world,
    /// which has no host, it ends as `Unsupported`.
    pub(crate) fn submit(&self, op: Op) -> Submitted {
        let lane = Rc::clone(&self.0);
        let state = match lane.driver().host() {
            Some(host) => Submission::Running(host.submit(op)),
            None => Submission::Refused(Box::new(op)),
        };
        Submitted { lane, state }
    }

    /// Keeps `thing` on this lane under a number that is unique in the process: who comes back with
    /// it gets the same thing.
    pub(crate) fn share<T: 'static>(&self, thing: Rc<T>) -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let share = NEXT.fetch_add(1, Ordering::Relaxed);
        self.0.shares().borrow_mut().insert(share, thing);
        share
    }

    /// What was kept on this lane under that number.
    pub(crate) fn shared<T: 'static>(&self, share: u64) -> Option<Rc<T>> {
        let thing = self.0.shares().borrow().get(&share).map(Rc::clone)?;
        Some(thing.downcast().expect("a number stands for one thing"))
    }

    pub(crate) fn unshare(&self, share: u64) {
        let thing = self.0.shares().borrow_mut().remove(&share);
        drop(thing);
    }

    /// A bounded queue between lanes.
    pub fn mailbox<T: Send>(&self, bound: usize) -> (MailSender<T>, MailReceiver<T>) {
        mailbox(bound)
    }
}

impl fmt::Debug for Rt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rt({:?})", self.0.id())
    }
}

/// The future of an operation on the host: the operation comes back with its buffers. Dropping it
/// leaves both to the engine until their end, see [`op`].
pub(crate) struct Submitted {
    lane: Rc<Lane>,
    state: Submission,
}

enum Submission {
    Running(OpKey),
    Refused(Box<Op>),
    Spent,
}

impl Submitted {
    fn host(&self) -> &dyn executor::Host {
        self.lane.driver().host().expect("a host took the operation")
    }
}

impl Future for Submitted {
    type Output = (Op, io::Result<Outcome>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Submission::Running(key) = self.state {
            let Some(ended) = self.host().poll_op(key, cx.waker()) else {
                return Poll::Pending;
            };
            self.state = Submission::Spent;
            return Poll::Ready(ended);
        }
        match std::mem::replace(&mut self.state, Submission::Spent) {
            Submission::Refused(op) => Poll::Ready((*op, Err(io::ErrorKind::Unsupported.into()))),
            _ => panic!("polled after the end"),
        }
    }
}

impl Drop for Submitted {
    fn drop(&mut self) {
        if let Submission::Running(key) = self.state {
            self.host().abandon(key);
        }
    }
}

struct Sleep {
    lane: Rc<Lane>,
    at: Instant,
    timer: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(timer) = self.timer.take() {
            self.lane.cancel_timer(self.at, timer);
        }
        if self.lane.driver().now() >= self.at {
            return Poll::Ready(());
        }
        let timer = self.lane.set_timer(self.at, cx.waker().clone());
        self.timer = Some(timer);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(timer) = self.timer {
            self.lane.cancel_timer(self.at, timer);
        }
    }
}
