#![allow(
    unsafe_code,
    reason = "the one home of raw I/O memory; each block says who keeps its promise"
)]
//! Memory for I/O: [`IoBuf`] (one owner, writable), [`IoView`] (shared, frozen), and [`BufPool`].
//!
//! A pool hands out page-aligned *slots*. An [`IoBuf`] owns a byte range of a slot; ranges of one
//! slot that are owned separately never overlap, which is what makes `split_at` and `join` sound.
//! The slot goes home when its last part drops, from any lane. A pool has a budget in bytes and
//! [`BufPool::take`] waits for it in the order of arrival: memory pushes back, it does not grow.
//!
//! One pool per layer, and a layer waits only on its own: a request that holds the last buffer of a
//! shared pool while it waits for another is a deadlock.

use crate::units::{SECTOR_SIZE, Sectors};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::ops::{Deref, DerefMut, Range};
use std::pin::Pin;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Slots are aligned for O_DIRECT on any device we know.
pub const ALIGN: usize = 4096;
const MIN_CLASS_SHIFT: u32 = 12;
const MAX_CLASS_SHIFT: u32 = 23;
const CLASSES: usize = (MAX_CLASS_SHIFT - MIN_CLASS_SHIFT + 1) as usize;
/// The longest buffer a pool gives: 8 MiB.
pub const MAX_LEN: usize = 1 << MAX_CLASS_SHIFT;

/// A page-aligned piece of memory, always initialised (it starts zeroed, and safe code writes it).
struct Memory {
    start: NonNull<u8>,
    class: usize,
}

// SAFETY: `Memory` is plain heap memory owned by one value at a time; nothing in it is tied to a
// thread.
unsafe impl Send for Memory {}
// SAFETY: a shared `Memory` gives no access by itself; `IoBuf` and `IoView` guard the ranges.
unsafe impl Sync for Memory {}

impl Memory {
    fn layout(class: usize) -> Layout {
        Layout::from_size_align(class_len(class), ALIGN).expect("a size class is a valid layout")
    }

    fn new(class: usize) -> Memory {
        let layout = Memory::layout(class);
        // SAFETY: the layout has a size of at least 4096.
        let raw = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(raw).unwrap_or_else(|| handle_alloc_error(layout));
        Memory { start, class }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `start` came from `alloc_zeroed` with this very layout and is freed once, here.
        unsafe { dealloc(self.start.as_ptr(), Memory::layout(self.class)) }
    }
}

fn class_len(class: usize) -> usize {
    1 << (class + MIN_CLASS_SHIFT as usize)
}

fn class_of(len: usize) -> usize {
    assert!(len <= MAX_LEN, "a buffer of {len} bytes is above the largest class");
    let shift = len.max(1).next_power_of_two().trailing_zeros();
    (shift.max(MIN_CLASS_SHIFT) - MIN_CLASS_SHIFT) as usize
}

/// A slot on loan: goes back to its pool when the last part of it drops.
struct Slot {
    memory: Option<Memory>,
    pool: Arc<Pool>,
}

impl Slot {
    fn start(&self) -> NonNull<u8> {
        self.memory.as_ref().expect("a slot has memory until it drops").start
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.pool.give_back(memory);
        }
    }
}

/// A writable piece of a slot, with one owner. `Send`, not `Clone`.
pub struct IoBuf {
    slot: Arc<Slot>,
    range: Range<usize>,
}

/// A frozen piece of a slot: cloneable, shareable, never written again.
#[derive(Clone)]
pub struct IoView {
    slot: Arc<Slot>,
    range: Range<usize>,
}

impl IoBuf {
    /// Length in whole sectors.
    ///
    /// # Panics
    /// When the length in bytes is no multiple of a sector.
    pub fn sectors(&self) -> Sectors {
        Sectors::of_slice(self)
    }

    /// Two owners of adjacent parts: part hit, part miss.
    pub fn split_at(self, n: Sectors) -> (IoBuf, IoBuf) {
        self.split_at_byte(n.byte_len())
    }

    pub fn split_at_byte(self, n: usize) -> (IoBuf, IoBuf) {
        assert!(n <= self.range.len(), "split at {n} of {}", self.range.len());
        let mid = self.range.start + n;
        let tail = IoBuf { slot: Arc::clone(&self.slot), range: mid..self.range.end };
        (IoBuf { slot: self.slot, range: self.range.start..mid }, tail)
    }

    /// The inverse of [`IoBuf::split_at`].
    ///
    /// Parts of different slots are copied into a new one: a device that survived an error below may
    /// have answered a read with another buffer than the one it was given.
    ///
    /// # Panics
    /// When the two are parts of one slot, but not adjacent.
    pub fn join(head: IoBuf, tail: IoBuf) -> IoBuf {
        if !Arc::ptr_eq(&head.slot, &tail.slot) {
            return IoBuf::copied(&head, &tail);
        }
        assert!(head.range.end == tail.range.start, "joined buffers are adjacent");
        IoBuf { slot: head.slot, range: head.range.start..tail.range.end }
    }

    /// Both parts in a slot of their own, outside the pool's budget: rare, and nobody may wait here.
    fn copied(head: &IoBuf, tail: &IoBuf) -> IoBuf {
        let len = head.len() + tail.len();
        let pool = &head.slot.pool;
        let memory = {
            let mut state = lock(&pool.state);
            state.lent += class_len(class_of(len));
            state.memory(class_of(len), pool.budget)
        };
        let mut whole = pool.lend(memory, len);
        whole[..head.len()].copy_from_slice(head);
        whole[head.len()..].copy_from_slice(tail);
        whole
    }

    /// Drops everything behind the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        assert!(len <= self.range.len(), "truncate to {len} of {}", self.range.len());
        self.range.end = self.range.start + len;
    }

    /// Gives up the right to write, and gains the right to share.
    pub fn freeze(self) -> IoView {
        IoView { slot: self.slot, range: self.range }
    }

    /// Where the kernel may put bytes: valid for `len()` bytes until the last part of the slot
    /// drops. Only the ring takes it, and it keeps the buffer until the operation's end.
    pub(crate) fn as_io_ptr(&mut self) -> *mut u8 {
        // SAFETY: the range lies inside the slot.
        unsafe { self.slot.start().as_ptr().add(self.range.start) }
    }
}

impl Deref for IoBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the range lies inside the slot, whose memory is initialised and lives as long as
        // `self.slot`; no other `IoBuf` covers it, and writing needs `&mut self`.
        unsafe {
            std::slice::from_raw_parts(
                self.slot.start().as_ptr().cast_const().wrapping_add(self.range.start),
                self.range.len(),
            )
        }
    }
}

impl DerefMut for IoBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` is the only way to this range.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.slot.start().as_ptr().wrapping_add(self.range.start),
                self.range.len(),
            )
        }
    }
}

impl fmt::Debug for IoBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoBuf({} bytes)", self.range.len())
    }
}

impl IoView {
    pub fn sectors(&self) -> Sectors {
        Sectors::of_slice(self)
    }

    /// A part of it, in bytes, sharing the slot.
    pub fn slice(&self, part: Range<usize>) -> IoView {
        assert!(part.start <= part.end, "a slice ends after it starts");
        assert!(part.end <= self.range.len(), "a slice lies inside its view");
        let start = self.range.start;
        IoView { slot: Arc::clone(&self.slot), range: start + part.start..start + part.end }
    }
}

impl Deref for IoView {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: as `IoBuf::deref`; a view comes from a consumed `IoBuf`, so nobody can write this
        // range as long as a view of it lives.
        unsafe {
            std::slice::from_raw_parts(
                self.slot.start().as_ptr().cast_const().wrapping_add(self.range.start),
                self.range.len(),
            )
        }
    }
}

impl fmt::Debug for IoView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoView({} bytes)", self.range.len())
    }
}

/// What a write takes.
#[derive(Debug)]
pub enum Data {
    /// May be scribbled on: encryption works in place.
    Owned(IoBuf),
    /// May not: somebody else reads it too. A layer that transforms copies into its own pool.
    Shared(IoView),
}

impl Data {
    pub fn sectors(&self) -> Sectors {
        Sectors::of_slice(self)
    }

    pub fn split_at(self, n: Sectors) -> (Data, Data) {
        match self {
            Data::Owned(buf) => {
                let (a, b) = buf.split_at(n);
                (Data::Owned(a), Data::Owned(b))
            }
            Data::Shared(view) => {
                let mid = n.byte_len();
                let (a, b) = (view.slice(0..mid), view.slice(mid..view.len()));
                (Data::Shared(a), Data::Shared(b))
            }
        }
    }

    /// Frozen, so that the bytes can go to two places without a copy.
    pub fn freeze(self) -> IoView {
        match self {
            Data::Owned(buf) => buf.freeze(),
            Data::Shared(view) => view,
        }
    }
}

impl Deref for Data {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Data::Owned(buf) => buf,
            Data::Shared(view) => view,
        }
    }
}

impl From<IoBuf> for Data {
    fn from(buf: IoBuf) -> Data {
        Data::Owned(buf)
    }
}

impl From<IoView> for Data {
    fn from(view: IoView) -> Data {
        Data::Shared(view)
    }
}

/// A budget of I/O memory, shared by lanes. Clones share it.
#[derive(Clone)]
pub struct BufPool(Arc<Pool>);

struct Pool {
    budget: usize,
    state: Mutex<PoolState>,
}

struct PoolState {
    free: [Vec<Memory>; CLASSES],
    /// Bytes on loan or promised to a woken waiter.
    lent: usize,
    /// Bytes lying in `free`.
    idle: usize,
    waiters: VecDeque<Arc<Mutex<Waiter>>>,
}

struct Waiter {
    class: usize,
    granted: bool,
    gone: bool,
    waker: Option<Waker>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BufPool {
    /// A pool that lends at most `budget` bytes at a time (at least one largest buffer).
    pub fn new(budget: usize) -> BufPool {
        let state =
            PoolState { free: Default::default(), lent: 0, idle: 0, waiters: VecDeque::new() };
        BufPool(Arc::new(Pool { budget: budget.max(MAX_LEN), state: Mutex::new(state) }))
    }

    /// A buffer of `len` sectors with arbitrary contents; waits for its turn when the pool is dry.
    pub async fn take(&self, len: Sectors) -> IoBuf {
        self.take_bytes(len.byte_len()).await
    }

    /// As [`BufPool::take`], for lengths that are no multiple of a sector (sockets).
    pub fn take_bytes(&self, len: usize) -> impl Future<Output = IoBuf> + use<> {
        Take { pool: Arc::clone(&self.0), len, waiter: None }
    }

    /// A buffer if one can be had at once and nobody waits.
    pub fn try_take(&self, len: Sectors) -> Option<IoBuf> {
        let len = len.byte_len();
        self.0.try_take(len).map(|memory| self.0.lend(memory, len))
    }

    /// A buffer of zeroes.
    pub async fn take_zeroed(&self, len: Sectors) -> IoBuf {
        let mut buf = self.take(len).await;
        buf.fill(0);
        buf
    }

    /// A buffer holding `bytes`, padded with zeroes to whole sectors.
    pub async fn take_copy(&self, bytes: &[u8]) -> IoBuf {
        let mut buf = self.take_bytes(bytes.len().next_multiple_of(SECTOR_SIZE)).await;
        let (head, tail) = buf.split_at_mut(bytes.len());
        head.copy_from_slice(bytes);
        tail.fill(0);
        buf
    }

    /// Bytes on loan now.
    pub fn lent(&self) -> usize {
        lock(&self.0.state).lent
    }
}

impl Pool {
    fn lend(self: &Arc<Pool>, memory: Memory, len: usize) -> IoBuf {
        let slot = Arc::new(Slot { memory: Some(memory), pool: Arc::clone(self) });
        IoBuf { slot, range: 0..len }
    }

    fn try_take(&self, len: usize) -> Option<Memory> {
        let class = class_of(len);
        let mut state = lock(&self.state);
        if !state.waiters.is_empty() || state.lent + class_len(class) > self.budget {
            return None;
        }
        state.lent += class_len(class);
        Some(state.memory(class, self.budget))
    }

    fn give_back(&self, memory: Memory) {
        let mut state = lock(&self.state);
        let len = class_len(memory.class);
        state.lent -= len;
        state.idle += len;
        let class = memory.class;
        state.free[class].push(memory);
        let woken = state.grant(self.budget);
        drop(state);
        for waker in woken {
            waker.wake();
        }
    }
}

impl PoolState {
    /// Memory of a class, recycled if there is any. Idle memory of other classes is given back to
    /// the allocator when loans and idle memory together outgrow twice the budget.
    fn memory(&mut self, class: usize, budget: usize) -> Memory {
        if let Some(memory) = self.free[class].pop() {
            self.idle -= class_len(class);
            return memory;
        }
        if self.lent + self.idle > 2 * budget {
            self.free.iter_mut().for_each(Vec::clear);
            self.idle = 0;
        }
        Memory::new(class)
    }

    /// Promises memory to waiters from the front, as far as it goes: a large request is not
    /// overtaken for ever by small ones.
    fn grant(&mut self, budget: usize) -> Vec<Waker> {
        let mut woken = Vec::new();
        while let Some(front) = self.waiters.front() {
            let mut waiter = lock(front);
            if !waiter.gone {
                if self.lent + class_len(waiter.class) > budget {
                    break;
                }
                self.lent += class_len(waiter.class);
                waiter.granted = true;
                woken.extend(waiter.waker.take());
            }
            drop(waiter);
            self.waiters.pop_front();
        }
        woken
    }
}

/// The future of [`BufPool::take`]. Dropping it gives up the place in the queue.
struct Take {
    pool: Arc<Pool>,
    len: usize,
    waiter: Option<Arc<Mutex<Waiter>>>,
}

impl Future for Take {
    type Output = IoBuf;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<IoBuf> {
        let class = class_of(self.len);
        let Some(waiter) = self.waiter.clone() else {
            if let Some(memory) = self.pool.try_take(self.len) {
                return Poll::Ready(self.pool.lend(memory, self.len));
            }
            let waker = Some(cx.waker().clone());
            let waiter = Waiter { class, granted: false, gone: false, waker };
            let waiter = Arc::new(Mutex::new(waiter));
            let woken = {
                let mut state = lock(&self.pool.state);
                state.waiters.push_back(Arc::clone(&waiter));
                // A buffer may have come home between the try and this line.
                state.grant(self.pool.budget)
            };
            self.waiter = Some(waiter);
            for waker in woken {
                waker.wake();
            }
            return Poll::Pending;
        };
        let mut inner = lock(&waiter);
        if !inner.granted {
            inner.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        drop(inner);
        self.waiter = None;
        let memory = lock(&self.pool.state).memory(class, self.pool.budget);
        Poll::Ready(self.pool.lend(memory, self.len))
    }
}

impl Drop for Take {
    fn drop(&mut self) {
        let Some(waiter) = self.waiter.take() else {
            return;
        };
        let mut state = lock(&self.pool.state);
        let mut inner = lock(&waiter);
        inner.gone = true;
        if inner.granted {
            state.lent -= class_len(inner.class);
        }
        drop(inner);
        let woken = state.grant(self.pool.budget);
        drop(state);
        for waker in woken {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::poll_once;

    fn now<T>(f: impl Future<Output = T>) -> T {
        let mut f = Box::pin(f);
        match poll_once(f.as_mut()) {
            Poll::Ready(v) => v,
            Poll::Pending => panic!("the pool had room"),
        }
    }

    #[test]
    fn parts_are_disjoint_and_join_back() {
        let pool = BufPool::new(0);
        let buf = now(pool.take(Sectors(16)));
        assert_eq!(buf.as_ptr() as usize % ALIGN, 0);
        let (mut a, mut b) = buf.split_at(Sectors(6));
        a.fill(1);
        b.fill(2);
        let whole = IoBuf::join(a, b);
        assert!(whole[..6 * 512].iter().all(|&x| x == 1));
        assert!(whole[6 * 512..].iter().all(|&x| x == 2));
        assert_eq!(whole.sectors(), Sectors(16));
    }

    #[test]
    #[should_panic(expected = "adjacent")]
    fn joining_in_the_wrong_order_is_a_bug() {
        let pool = BufPool::new(0);
        let (a, b) = now(pool.take(Sectors(16))).split_at(Sectors(8));
        drop(IoBuf::join(b, a));
    }

    #[test]
    fn parts_of_two_slots_are_joined_by_copying() {
        let pool = BufPool::new(0);
        let (mut a, _) = now(pool.take(Sectors(16))).split_at(Sectors(6));
        let (_, mut b) = now(pool.take(Sectors(16))).split_at(Sectors(6));
        a.fill(1);
        b.fill(2);
        let whole = IoBuf::join(a, b);
        assert!(whole[..6 * 512].iter().all(|&x| x == 1));
        assert!(whole[6 * 512..].iter().all(|&x| x == 2));
        assert_eq!(whole.sectors(), Sectors(16));
        drop(whole);
        assert_eq!(pool.lent(), 0);
    }

    #[test]
    fn a_dry_pool_makes_takers_wait_in_order() {
        let pool = BufPool::new(MAX_LEN);
        let all = now(pool.take_bytes(MAX_LEN));
        assert!(pool.try_take(Sectors(1)).is_none());
        let mut large = Box::pin(pool.take_bytes(MAX_LEN));
        let mut small = Box::pin(pool.take_bytes(512));
        assert!(poll_once(large.as_mut()).is_pending());
        assert!(poll_once(small.as_mut()).is_pending());
        drop(all);
        assert!(poll_once(small.as_mut()).is_pending(), "the large one came first");
        let Poll::Ready(buf) = poll_once(large.as_mut()) else { panic!("granted") };
        drop(buf);
        assert!(poll_once(small.as_mut()).is_ready());
        assert_eq!(pool.lent(), 0);
    }

    #[test]
    fn a_dropped_waiter_gives_its_grant_back() {
        let pool = BufPool::new(MAX_LEN);
        let all = now(pool.take_bytes(MAX_LEN));
        let mut first = Box::pin(pool.take_bytes(MAX_LEN));
        let mut second = Box::pin(pool.take_bytes(4096));
        assert!(poll_once(first.as_mut()).is_pending());
        assert!(poll_once(second.as_mut()).is_pending());
        drop(all);
        drop(first);
        assert!(poll_once(second.as_mut()).is_ready());
        assert_eq!(pool.lent(), 0);
    }

    #[test]
    fn a_slot_goes_home_with_its_last_part() {
        let pool = BufPool::new(0);
        let (a, b) = now(pool.take(Sectors(8))).split_at(Sectors(4));
        let view = a.freeze();
        let part = view.slice(0..512);
        drop(view);
        drop(b);
        assert_eq!(pool.lent(), 4096);
        std::thread::scope(|s| {
            s.spawn(move || drop(part));
        });
        assert_eq!(pool.lent(), 0);
    }
}
