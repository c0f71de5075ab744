//! Waiting within one lane.

use std::cell::{Cell, RefCell, RefMut};
use std::collections::VecDeque;
use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

struct Waiting {
    permits: usize,
    granted: Cell<bool>,
    gone: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// A count of permits, handed out in the order of asking.
#[derive(Clone)]
pub struct LocalSemaphore(Rc<SemaphoreState>);

struct SemaphoreState {
    free: Cell<usize>,
    queue: RefCell<VecDeque<Rc<Waiting>>>,
}

impl LocalSemaphore {
    pub fn new(permits: usize) -> LocalSemaphore {
        LocalSemaphore(Rc::new(SemaphoreState {
            free: Cell::new(permits),
            queue: RefCell::new(VecDeque::new()),
        }))
    }

    /// Waits for `permits`; they return when the guard drops.
    pub fn acquire(&self, permits: usize) -> impl Future<Output = Permit> + use<> {
        Acquire { state: Rc::clone(&self.0), permits, waiting: None }
    }

    /// Permits if they are free and nobody waits.
    pub fn try_acquire(&self, permits: usize) -> Option<Permit> {
        self.0.try_take(permits).then(|| Permit { state: Rc::clone(&self.0), permits })
    }

    pub fn available(&self) -> usize {
        self.0.free.get()
    }
}

impl SemaphoreState {
    fn try_take(&self, permits: usize) -> bool {
        let free = self.free.get();
        let ok = free >= permits && self.queue.borrow().is_empty();
        if ok {
            self.free.set(free - permits);
        }
        ok
    }

    fn release(&self, permits: usize) {
        self.free.set(self.free.get() + permits);
        self.grant();
    }

    fn grant(&self) {
        loop {
            let front = {
                let mut queue = self.queue.borrow_mut();
                let Some(front) = queue.front() else { return };
                if !front.gone.get() && self.free.get() < front.permits {
                    return;
                }
                queue.pop_front().expect("a front was seen")
            };
            if !front.gone.get() {
                self.free.set(self.free.get() - front.permits);
                front.granted.set(true);
                if let Some(waker) = front.waker.take() {
                    waker.wake();
                }
            }
        }
    }
}

/// Permits on loan.
pub struct Permit {
    state: Rc<SemaphoreState>,
    permits: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.state.release(self.permits);
    }
}

struct Acquire {
    state: Rc<SemaphoreState>,
    permits: usize,
    waiting: Option<Rc<Waiting>>,
}

impl Future for Acquire {
    type Output = Permit;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Permit> {
        let permits = self.permits;
        if let Some(waiting) = &self.waiting {
            if !waiting.granted.get() {
                *waiting.waker.borrow_mut() = Some(cx.waker().clone());
                return Poll::Pending;
            }
            self.waiting = None;
            return Poll::Ready(Permit { state: Rc::clone(&self.state), permits });
        }
        if self.state.try_take(permits) {
            return Poll::Ready(Permit { state: Rc::clone(&self.state), permits });
        }
        let waiting = Rc::new(Waiting {
            permits,
            granted: Cell::new(false),
            gone: Cell::new(false),
            waker: RefCell::new(Some(cx.waker().clone())),
        });
        self.state.queue.borrow_mut().push_back(Rc::clone(&waiting));
        self.waiting = Some(waiting);
        Poll::Pending
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        let Some(waiting) = self.waiting.take() else {
            return;
        };
        waiting.gone.set(true);
        if waiting.granted.get() {
            self.state.release(waiting.permits);
        } else {
            self.state.grant();
        }
    }
}

/// A mutex whose guard may be held across `.await`, on one lane.
pub struct LocalMutex<T> {
    turn: LocalSemaphore,
    value: RefCell<T>,
}

pub struct LocalMutexGuard<'a, T> {
    // Dropped in this order: the borrow ends before the next owner wakes.
    value: RefMut<'a, T>,
    _turn: Permit,
}

impl<T> LocalMutex<T> {
    pub fn new(value: T) -> LocalMutex<T> {
        LocalMutex { turn: LocalSemaphore::new(1), value: RefCell::new(value) }
    }

    pub async fn lock(&self) -> LocalMutexGuard<'_, T> {
        let turn = self.turn.acquire(1).await;
        LocalMutexGuard { value: self.value.borrow_mut(), _turn: turn }
    }

    pub fn try_lock(&self) -> Option<LocalMutexGuard<'_, T>> {
        let turn = self.turn.try_acquire(1)?;
        Some(LocalMutexGuard { value: self.value.borrow_mut(), _turn: turn })
    }
}

impl<T> Deref for LocalMutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for LocalMutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

/// Readers together or one writer, in the order of asking: a writer is not starved. It guards
/// *time*, not a value; the state it protects sits beside it. Clones share the lock and guards are
/// owned, so they may travel with a task.
#[derive(Clone)]
pub struct LocalRwLock(LocalSemaphore);

const ALL_READERS: usize = 1 << 30;

pub struct LocalReadGuard {
    _permit: Permit,
}

pub struct LocalWriteGuard {
    _permit: Permit,
}

impl LocalRwLock {
    pub fn new() -> LocalRwLock {
        LocalRwLock(LocalSemaphore::new(ALL_READERS))
    }

    pub async fn read(&self) -> LocalReadGuard {
        LocalReadGuard { _permit: self.0.acquire(1).await }
    }

    pub fn try_read(&self) -> Option<LocalReadGuard> {
        self.0.try_acquire(1).map(|permit| LocalReadGuard { _permit: permit })
    }

    pub async fn write(&self) -> LocalWriteGuard {
        LocalWriteGuard { _permit: self.0.acquire(ALL_READERS).await }
    }

    pub fn try_write(&self) -> Option<LocalWriteGuard> {
        self.0.try_acquire(ALL_READERS).map(|permit| LocalWriteGuard { _permit: permit })
    }
}

impl Default for LocalRwLock {
    fn default() -> LocalRwLock {
        LocalRwLock::new()
    }
}

/// "Something changed, look again." Within a lane a test and the `notified().await` after it cannot
/// be interrupted, so no wake-up is lost.
#[derive(Default)]
pub struct Notify {
    waiting: RefCell<VecDeque<Rc<Waiting>>>,
    stored: Cell<bool>,
}

impl Notify {
    pub fn new() -> Notify {
        Notify::default()
    }

    /// Wakes everyone who waits now.
    pub fn notify_all(&self) {
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        for w in waiting {
            w.granted.set(true);
            if let Some(waker) = w.waker.take() {
                waker.wake();
            }
        }
    }

    /// Wakes one waiter, or lets the next one through at once.
    pub fn notify_one(&self) {
        loop {
            let Some(w) = self.waiting.borrow_mut().pop_front() else {
                self.stored.set(true);
                return;
            };
            if w.gone.get() {
                continue;
            }
            w.granted.set(true);
            if let Some(waker) = w.waker.take() {
                waker.wake();
            }
            return;
        }
    }

    pub fn notified(&self) -> impl Future<Output = ()> + '_ {
        Notified { notify: self, waiting: None }
    }
}

struct Notified<'a> {
    notify: &'a Notify,
    waiting: Option<Rc<Waiting>>,
}

impl Future for Notified<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(w) = &self.waiting {
            if w.granted.get() {
                self.waiting = None;
                return Poll::Ready(());
            }
            *w.waker.borrow_mut() = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if self.notify.stored.replace(false) {
            return Poll::Ready(());
        }
        let w = Rc::new(Waiting {
            permits: 0,
            granted: Cell::new(false),
            gone: Cell::new(false),
            waker: RefCell::new(Some(cx.waker().clone())),
        });
        self.notify.waiting.borrow_mut().push_back(Rc::clone(&w));
        self.waiting = Some(w);
        Poll::Pending
    }
}

impl Drop for Notified<'_> {
    fn drop(&mut self) {
        let Some(w) = self.waiting.take() else { return };
        w.gone.set(true);
        if w.granted.get() {
            // Woken but never ran: pass a single wake-up on.
            self.notify.notify_one();
        } else {
            self.notify.waiting.borrow_mut().retain(|other| !Rc::ptr_eq(other, &w));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::poll_once;

    #[test]
    fn a_writer_waits_for_readers_and_later_readers_for_the_writer() {
        let lock = LocalRwLock::new();
        let first = lock.try_read().expect("free");
        let mut writer = Box::pin(lock.write());
        assert!(poll_once(writer.as_mut()).is_pending());
        let mut second = Box::pin(lock.read());
        assert!(poll_once(second.as_mut()).is_pending(), "no overtaking");
        drop(first);
        let Poll::Ready(w) = poll_once(writer.as_mut()) else { panic!("the writer's turn") };
        assert!(poll_once(second.as_mut()).is_pending());
        drop(w);
        assert!(poll_once(second.as_mut()).is_ready());
    }

    #[test]
    fn a_dropped_waiter_does_not_block_the_queue() {
        let s = LocalSemaphore::new(1);
        let held = s.try_acquire(1).expect("free");
        let mut a = Box::pin(s.acquire(1));
        let mut b = Box::pin(s.acquire(1));
        assert!(poll_once(a.as_mut()).is_pending());
        assert!(poll_once(b.as_mut()).is_pending());
        drop(held);
        drop(a);
        assert!(poll_once(b.as_mut()).is_ready());
        assert_eq!(s.available(), 1);
    }

    #[test]
    fn one_notification_reaches_one_waiter_even_if_the_first_goes_away() {
        let n = Notify::new();
        let mut a = Box::pin(n.notified());
        let mut b = Box::pin(n.notified());
        assert!(poll_once(a.as_mut()).is_pending());
        assert!(poll_once(b.as_mut()).is_pending());
        n.notify_one();
        drop(a);
        assert!(poll_once(b.as_mut()).is_ready());
        n.notify_one();
        assert!(poll_once(Box::pin(n.notified()).as_mut()).is_ready(), "stored");
    }
}
