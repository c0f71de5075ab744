//! One lane: its tasks, its timers, its inbox. What parks it and what its time is, the driver says.

use super::engine::Engine;
use super::op::{Op, OpKey, Outcome};
use super::parking::Parking;
use super::{Instant, Prng, Rt};
use slab::Slab;
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// Which lane: lane 0 is the one `run` was called on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LaneId(pub usize);

/// What differs between the engines: the clock and the way to wait.
pub(crate) trait Driver {
    fn now(&self) -> Instant;
    fn unix_time(&self) -> u64;
    /// Whether other threads may do work for this lane.
    fn has_threads(&self) -> bool;
    /// The way to files and sockets; a simulated world has none.
    fn host(&self) -> Option<&dyn Host> {
        None
    }
}

/// How long [`Host::wait`] may sleep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wait {
    /// Not at all: there is other work.
    No,
    /// Until something ends or somebody unparks the lane.
    Forever,
    Until(Instant),
}

/// An engine that does real I/O. One lane calls it, from one thread.
pub(crate) trait Host {
    fn engine(&self) -> Engine;

    /// Starts an operation; it is the engine's until its end.
    fn submit(&self, op: Op) -> OpKey;

    /// The operation and how it ended; until then `waker` is told. After `Some` the key is spent.
    fn poll_op(&self, key: OpKey, waker: &Waker) -> Option<(Op, std::io::Result<Outcome>)>;

    /// Nobody waits for it any more: cancelled where it could take for ever, dropped at its end.
    fn abandon(&self, key: OpKey);

    /// Hands over what was submitted and sleeps. Wakes no task.
    fn wait(&self, how: Wait);

    /// Takes what has ended and wakes the tasks that wait for it.
    fn reap(&self);

    /// Cancels everything and waits for its end. Later operations end at once as cancelled.
    fn close(&self);
}

/// The key of a task in its lane's slab, and which of the slab's generations of that key it is: a
/// late wake-up must not poll a stranger.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct TaskId {
    key: usize,
    generation: u64,
}

struct TaskSlot {
    generation: u64,
    /// Taken out while it runs.
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
    wake: Arc<TaskWake>,
    /// `wake` as its future sees it; goes with it.
    waker: Waker,
    cancelled: bool,
}

struct TaskWake {
    lane: Arc<LaneShared>,
    id: TaskId,
    queued: AtomicBool,
}

impl Wake for TaskWake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.lane.push(self.id);
        }
    }
}

pub(crate) type Start = Box<dyn FnOnce(&Rt) + Send>;

#[derive(Default)]
struct Inbox {
    ready: VecDeque<TaskId>,
    starts: Vec<Start>,
}

/// The part of a lane that others may touch.
pub(crate) struct LaneShared {
    inbox: Mutex<Inbox>,
    parking: Parking,
    stop: AtomicBool,
    unpark: Box<dyn Fn() + Send + Sync>,
}

/// The lane whose loop runs on this thread, and its tasks that were woken from this thread: the
/// common case, which needs neither the lock nor the handshake.
struct Here {
    lane: Cell<*const LaneShared>,
    ready: RefCell<VecDeque<TaskId>>,
}

thread_local! {
    static HERE: Here = const {
        Here { lane: Cell::new(std::ptr::null()), ready: RefCell::new(VecDeque::new()) }
    };
}

/// While it lives, this thread is the lane's. A run inside a run puts the outer lane aside.
pub(crate) struct Entered {
    lane: *const LaneShared,
    ready: VecDeque<TaskId>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        HERE.with(|here| {
            here.lane.set(self.lane);
            *here.ready.borrow_mut() = std::mem::take(&mut self.ready);
        });
    }
}

impl LaneShared {
    pub(crate) fn new(unpark: Box<dyn Fn() + Send + Sync>) -> Arc<LaneShared> {
        Arc::new(LaneShared {
            inbox: Mutex::default(),
            parking: Parking::new(),
            stop: AtomicBool::new(false),
            unpark,
        })
    }

    /// Makes this thread the lane's own.
    pub(crate) fn enter(self: &Arc<LaneShared>) -> Entered {
        HERE.with(|here| Entered {
            lane: here.lane.replace(Arc::as_ptr(self)),
            ready: here.ready.take(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something was put where the lane will look.
    pub(crate) fn notify(&self) {
        if self.parking.notify() {
            (self.unpark)();
        }
    }

    fn push(&self, id: TaskId) {
        let local = HERE.try_with(|here| {
            let local = std::ptr::eq(here.lane.get(), self);
            if local {
                here.ready.borrow_mut().push_back(id);
            }
            local
        });
        // A thread that is ending has no lane.
        if !local.unwrap_or(false) {
            self.lock().ready.push_back(id);
            self.notify();
        }
    }

    pub(crate) fn start(&self, start: Start) {
        self.lock().starts.push(start);
        self.notify();
    }

    /// Asks the lane's loop to end.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.notify();
    }

    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// True: nothing was put in, and from now on whoever puts something in unparks.
    pub(crate) fn try_park(&self) -> bool {
        HERE.with(|here| here.ready.borrow().is_empty()) && self.parking.try_park()
    }

    /// The lane is awake again.
    pub(crate) fn resume(&self) {
        self.parking.resume();
    }
}

pub(crate) struct Lane {
    id: LaneId,
    driver: Rc<dyn Driver>,
    shared: Arc<LaneShared>,
    all: Arc<[Arc<LaneShared>]>,
    tasks: RefCell<Slab<TaskSlot>>,
    generation: Cell<u64>,
    timers: RefCell<BTreeMap<(Instant, u64), Waker>>,
    next_timer: Cell<u64>,
    prng: Prng,
    /// Things of this lane that [`Rt::shared`] finds by their number.
    shares: RefCell<BTreeMap<u64, Rc<dyn Any>>>,
    /// Scratch for [`Lane::run_here`], kept to reuse its memory.
    batch: RefCell<VecDeque<TaskId>>,
}

impl Lane {
    pub(crate) fn new(
        id: LaneId,
        driver: Rc<dyn Driver>,
        all: Arc<[Arc<LaneShared>]>,
        seed: u64,
    ) -> Rc<Lane> {
        Rc::new(Lane {
            id,
            driver,
            shared: Arc::clone(&all[id.0]),
            all,
            tasks: RefCell::default(),
            generation: Cell::new(0),
            timers: RefCell::default(),
            next_timer: Cell::new(0),
            prng: Prng::new(seed),
            shares: RefCell::default(),
            batch: RefCell::default(),
        })
    }

    pub(crate) fn id(&self) -> LaneId {
        self.id
    }

    pub(crate) fn lanes(&self) -> usize {
        self.all.len()
    }

    pub(crate) fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    pub(crate) fn shared(&self) -> &Arc<LaneShared> {
        &self.shared
    }

    pub(crate) fn shares(&self) -> &RefCell<BTreeMap<u64, Rc<dyn Any>>> {
        &self.shares
    }

    pub(crate) fn prng(&self) -> &Prng {
        &self.prng
    }

    pub(crate) fn inject(&self, lane: LaneId, start: Start) {
        self.all[lane.0].start(start);
    }

    pub(crate) fn spawn<F: Future + 'static>(lane: &Rc<Lane>, f: F) -> Task<F::Output> {
        let join = Rc::new(Join { value: RefCell::new(None), waker: RefCell::new(None) });
        let done = Rc::clone(&join);
        let future = Box::pin(async move {
            let value = f.await;
            *done.value.borrow_mut() = Some(value);
            if let Some(waker) = done.waker.take() {
                waker.wake();
            }
        });
        let generation = lane.generation.get();
        lane.generation.set(generation + 1);
        let mut tasks = lane.tasks.borrow_mut();
        let entry = tasks.vacant_entry();
        let id = TaskId { key: entry.key(), generation };
        let wake = Arc::new(TaskWake {
            lane: Arc::clone(&lane.shared),
            id,
            queued: AtomicBool::new(true),
        });
        let waker = Waker::from(Arc::clone(&wake));
        entry.insert(TaskSlot { generation, future: Some(future), wake, waker, cancelled: false });
        drop(tasks);
        lane.shared.push(id);
        Task { join, id, lane: Rc::downgrade(lane) }
    }

    pub(crate) fn set_timer(&self, at: Instant, waker: Waker) -> u64 {
        let n = self.next_timer.get();
        self.next_timer.set(n + 1);
        self.timers.borrow_mut().insert((at, n), waker);
        n
    }

    pub(crate) fn cancel_timer(&self, at: Instant, timer: u64) {
        self.timers.borrow_mut().remove(&(at, timer));
    }

    /// When the next timer is due.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.timers.borrow().first_key_value().map(|((at, _), _)| *at)
    }

    /// Wakes the tasks whose time has come.
    pub(crate) fn fire_timers(&self, now: Instant) {
        loop {
            let waker = {
                let mut timers = self.timers.borrow_mut();
                match timers.first_entry() {
                    Some(first) if first.key().0 <= now => first.remove(),
                    _ => return,
                }
            };
            waker.wake();
        }
    }

    /// Runs what is ready now, from this lane and from others, once; true if there was something.
    pub(crate) fn run(self: &Rc<Lane>) -> bool {
        let mut any = false;
        if self.shared.parking.collect() {
            any |= self.run_starts();
            let mut ready = std::mem::take(&mut self.shared.lock().ready);
            HERE.with(|here| here.ready.borrow_mut().append(&mut ready));
        }
        any | self.run_here()
    }

    /// Runs what was sent from other lanes; true if there was something.
    fn run_starts(self: &Rc<Lane>) -> bool {
        let starts = std::mem::take(&mut self.shared.lock().starts);
        let any = !starts.is_empty();
        let rt = Rt::from_lane(Rc::clone(self));
        for start in starts {
            start(&rt);
        }
        any
    }

    /// Runs every task of this thread that is ready now, in order; those they wake run next time.
    fn run_here(&self) -> bool {
        let mut batch = self.batch.take();
        HERE.with(|here| std::mem::swap(&mut batch, &mut *here.ready.borrow_mut()));
        let any = !batch.is_empty();
        while let Some(id) = batch.pop_front() {
            self.run_task(id);
        }
        self.batch.replace(batch);
        any
    }

    /// How many tasks are ready (simulation chooses among them).
    pub(crate) fn ready_len(&self) -> usize {
        let inbox = self.shared.lock();
        inbox.ready.len() + inbox.starts.len()
    }

    /// Runs the `n`-th ready task, out of order: the simulation's choice.
    pub(crate) fn run_nth(self: &Rc<Lane>, n: usize) {
        if self.run_starts() {
            return;
        }
        let id = self.shared.lock().ready.remove(n);
        if let Some(id) = id {
            self.run_task(id);
        }
    }

    fn run_task(&self, id: TaskId) {
        // Both are taken out: the task may do anything to this table while it runs.
        let (mut future, waker) = {
            let mut tasks = self.tasks.borrow_mut();
            let Some(slot) = tasks.get_mut(id.key) else {
                return;
            };
            if slot.generation != id.generation {
                return;
            }
            let Some(future) = slot.future.take() else {
                return;
            };
            slot.wake.queued.store(false, Ordering::Release);
            (future, std::mem::replace(&mut slot.waker, Waker::noop().clone()))
        };
        let done = future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        let mut tasks = self.tasks.borrow_mut();
        let slot = tasks.get_mut(id.key).expect("a running task keeps its slot");
        let retired = if done || slot.cancelled {
            Some(tasks.remove(id.key))
        } else {
            slot.future = Some(future);
            slot.waker = waker;
            return;
        };
        // The future and whatever it owns drop without the borrow: they may spawn or wake.
        drop(tasks);
        drop(future);
        drop(retired);
    }

    /// Drops every task and every shared thing, as the end of a lane does. They may hold the lane
    /// itself, and tasks may spawn while they drop.
    pub(crate) fn drop_tasks(&self) {
        loop {
            let tasks = self.tasks.take();
            let shares = self.shares.take();
            if tasks.is_empty() && shares.is_empty() {
                return;
            }
            drop(tasks);
            drop(shares);
        }
    }

    fn cancel(&self, id: TaskId) {
        let mut tasks = self.tasks.borrow_mut();
        let Some(slot) = tasks.get_mut(id.key) else {
            return;
        };
        if slot.generation != id.generation {
            return;
        }
        if slot.future.is_none() {
            slot.cancelled = true; // it cancels itself, from inside its own poll
            return;
        }
        let slot = tasks.remove(id.key);
        drop(tasks);
        drop(slot);
    }
}

struct Join<T> {
    value: RefCell<Option<T>>,
    waker: RefCell<Option<Waker>>,
}

/// A task on this lane. Await it for its result; drop it to let it run on its own.
pub struct Task<T> {
    join: Rc<Join<T>>,
    id: TaskId,
    lane: Weak<Lane>,
}

impl<T> Task<T> {
    /// Stops the task where it awaits: its future is dropped before this returns.
    pub async fn cancel(self) {
        if let Some(lane) = self.lane.upgrade() {
            lane.cancel(self.id);
        }
    }

    pub fn is_finished(&self) -> bool {
        self.join.value.borrow().is_some()
    }
}

impl<T> Future for Task<T> {
    type Output = T;

    /// # Panics
    /// Never ready if the task was dropped with its lane.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        if let Some(value) = self.join.value.borrow_mut().take() {
            return Poll::Ready(value);
        }
        *self.join.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}
