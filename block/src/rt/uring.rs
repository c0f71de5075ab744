#![allow(
    unsafe_code,
    reason = "the kernel gets addresses here; each block says who keeps them valid until when"
)]
//! The ring: one io_uring per lane.
//!
//! # Cancellation
//!
//! The kernel holds addresses from the moment an entry is pushed until its *terminal CQE* has been
//! reaped. All that time the operation, and with it every address it gave away, is in the
//! [`OpTable`], in memory that does not move: buffers are slots of a pool, socket addresses and
//! message headers are boxes. A future that is dropped only marks its entry as abandoned; if the
//! operation may wait for a peer, an `ASYNC_CANCEL` goes after it in the same queue. Whether the
//! cancel comes in time or not, the CQE of the operation itself ends the ownership, nothing else
//! does. [`Ring::close`] cancels everything and reaps until the table is empty, and dropping the
//! ring closes it: the kernel is done with our memory before it is freed.
//!
//! # One turn
//!
//! All ready tasks run and push entries; one `io_uring_enter` submits them and waits; all CQEs are
//! reaped and their tasks woken; and again. `DEFER_TASKRUN` lets the kernel complete requests only
//! inside that call, so nothing interrupts a task, and `SINGLE_ISSUER` spares it a lock.
//!
//! # Full queues
//!
//! A full submission queue is handed over at once. A full completion queue loses nothing: the
//! kernel keeps the overflow and hands it out when asked for events (`NODROP`).

use super::Instant;
use super::engine::{Clock, Engine, unix_time};
use super::executor::{Driver, Host, Wait};
use super::op::{Allocate, Ended, Op, OpKey, OpTable, Outcome};
use crate::buf::IoView;
use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue, types};
use std::cell::{Cell, RefCell, UnsafeCell};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

const SQ_ENTRIES: u32 = 256;
const CQ_ENTRIES: u32 = 4096;
/// `user_data` of the read on the lane's eventfd, and of cancels, whose own result says nothing.
/// No key is that large: slots are bounded by memory.
const WAKE: u64 = u64::MAX;
const CANCEL: u64 = u64::MAX - 1;
/// More parts than this the kernel refuses; what is left over goes with the next send.
const IOV_MAX: usize = 1024;
/// How often a close that waits for a slow device says so.
const CLOSE_WARN: Duration = Duration::from_secs(5);

/// A vectored send as the kernel wants it: it stays in place, beside its operation.
struct Message {
    header: libc::msghdr,
    parts: Vec<libc::iovec>,
}

pub(super) struct Ring {
    io: RefCell<IoUring>,
    ops: RefCell<OpTable<Option<Box<Message>>>>,
    clock: Clock,
    /// Written by whoever unparks the lane.
    event: Arc<OwnedFd>,
    /// Where the kernel puts the eventfd's count. Never read: the wake-up itself is the news.
    event_count: Box<UnsafeCell<u64>>,
    event_armed: Cell<bool>,
    /// Operations that have ended and whose tasks wait; woken on the lane's own turn.
    ended: RefCell<Vec<OpKey>>,
    closed: Cell<bool>,
}

impl Ring {
    /// A ring for the calling thread.
    pub(super) fn new(clock: Clock, event: Arc<OwnedFd>) -> io::Result<Ring> {
        let io = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(CQ_ENTRIES)
            .build(SQ_ENTRIES)?;
        let params = io.params();
        if !params.is_feature_nodrop() || !params.is_feature_ext_arg() {
            return Err(io::Error::from(io::ErrorKind::Unsupported));
        }
        let ring = Ring {
            io: RefCell::new(io),
            ops: RefCell::new(OpTable::new()),
            clock,
            event,
            event_count: Box::default(),
            event_armed: Cell::new(false),
            ended: RefCell::default(),
            closed: Cell::new(false),
        };
        ring.arm_event();
        Ok(ring)
    }

    fn arm_event(&self) {
        if self.event_armed.replace(true) {
            return;
        }
        let fd = types::Fd(self.event.as_raw_fd());
        let read = opcode::Read::new(fd, self.event_count.get().cast(), 8).build();
        self.push(&read.user_data(WAKE));
    }

    /// Queues an entry. Whatever addresses it holds, the caller has put into `ops` (or into `self`)
    /// before.
    fn push(&self, entry: &squeue::Entry) {
        loop {
            let mut io = self.io.borrow_mut();
            // SAFETY: the addresses in `entry` belong to an operation in `ops`, or to
            // `event_count`; both stay until the terminal CQE was reaped (see "Cancellation").
            let pushed = unsafe { io.submission().push(entry) };
            drop(io);
            if pushed.is_ok() {
                return;
            }
            self.enter(Wait::No);
        }
    }

    /// Submits everything, waits as told, and makes the kernel post what it has finished.
    fn enter(&self, how: Wait) {
        let io = self.io.borrow();
        let submitter = io.submitter();
        let result = match how {
            Wait::No => submitter.submit(),
            Wait::Forever => submitter.submit_and_wait(1),
            Wait::Until(at) => {
                let left = at - self.clock.now();
                let left = Timespec::from(left);
                submitter.submit_with_args(1, &SubmitArgs::new().timespec(&left))
            }
        };
        drop(io);
        let Err(error) = result else { return };
        match error.raw_os_error() {
            // A signal, or the deadline: the lane's loop looks at its timers and comes again.
            Some(libc::EINTR | libc::ETIME) => {}
            // The kernel wants room, in the completion queue or in memory: both come from reaping.
            Some(libc::EBUSY | libc::EAGAIN | libc::ENOMEM) => {
                self.take_completions();
            }
            _ => panic!("io_uring_enter failed, and with it every request in flight: {error}"),
        }
    }

    /// Notes every end the kernel has posted; wakes nobody.
    fn take_completions(&self) {
        let mut orphans = Vec::new();
        {
            let mut io = self.io.borrow_mut();
            let mut ops = self.ops.borrow_mut();
            let mut ended = self.ended.borrow_mut();
            for cqe in io.completion() {
                match cqe.user_data() {
                    WAKE => self.event_armed.set(false),
                    CANCEL => {}
                    key => {
                        let key = OpKey::from_u64(key);
                        let result = outcome(&mut ops, key, cqe.result());
                        match ops.complete(key, None, result) {
                            Ended::Awaited => ended.push(key),
                            Ended::Noted => {}
                            Ended::Orphan(op, result) => orphans.push((op, result)),
                            Ended::Stale => {
                                let count = ops.stale();
                                tracing::error!(?key, count, "a request was completed twice");
                            }
                        }
                    }
                }
            }
        }
        // Buffers go home and descriptors close here, where nothing is borrowed.
        drop(orphans);
    }

    fn cancel(&self, user_data: u64) {
        self.push(&opcode::AsyncCancel::new(user_data).build().user_data(CANCEL));
    }
}

/// What a CQE means. A descriptor in it gets an owner here, so that an abandoned accept closes it.
fn outcome(
    ops: &mut OpTable<Option<Box<Message>>>,
    key: OpKey,
    result: i32,
) -> io::Result<Outcome> {
    let Ok(count) = usize::try_from(result) else {
        return Err(io::Error::from_raw_os_error(-result));
    };
    match ops.running_mut(key) {
        Some((Some(Op::Accept { .. }), _)) => {
            // SAFETY: a successful accept returns a new descriptor that nobody else knows.
            Ok(Outcome::Socket(unsafe { OwnedFd::from_raw_fd(result) }))
        }
        _ => Ok(Outcome::Count(count)),
    }
}

fn len_u32(len: usize) -> u32 {
    u32::try_from(len).expect("a buffer is at most 8 MiB")
}

/// The kernel's form of `op`. The addresses in it are those of memory that `op` and `message` own.
fn entry(op: &mut Op, message: &mut Option<Box<Message>>) -> squeue::Entry {
    let fd = |fd: &Arc<OwnedFd>| types::Fd(fd.as_raw_fd());
    match op {
        Op::Read { file, at, buf, from, aside } => {
            let len = len_u32(buf.len() - *from);
            let how = if *aside { squeue::Flags::ASYNC } else { squeue::Flags::empty() };
            opcode::Read::new(fd(file), buf.as_io_ptr().wrapping_add(*from), len)
                .offset(*at)
                .build()
                .flags(how)
        }
        Op::Write { file, at, data, from, dsync } => {
            let part = &data[*from..];
            opcode::Write::new(fd(file), part.as_ptr(), len_u32(part.len()))
                .offset(*at)
                .rw_flags(if *dsync { libc::RWF_DSYNC } else { 0 })
                .build()
        }
        Op::DataSync { file } => {
            opcode::Fsync::new(fd(file)).flags(types::FsyncFlags::DATASYNC).build()
        }
        Op::Fallocate { file, what, at, len } => {
            let mode = match what {
                Allocate::PunchHole => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                Allocate::ZeroRange => libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
            };
            opcode::Fallocate::new(fd(file), *len).offset(*at).mode(mode).build()
        }
        Op::Accept { listener } => {
            let null = std::ptr::null_mut();
            opcode::Accept::new(fd(listener), null, std::ptr::null_mut())
                .flags(libc::SOCK_CLOEXEC)
                .build()
        }
        Op::Connect { socket, to } => {
            opcode::Connect::new(fd(socket), to.as_ptr().cast(), to.len()).build()
        }
        Op::Recv { socket, buf, part, all } => {
            let start = buf.as_io_ptr().wrapping_add(part.start);
            opcode::Recv::new(fd(socket), start, len_u32(part.len()))
                .flags(if *all { libc::MSG_WAITALL } else { 0 })
                .build()
        }
        Op::Send { socket, parts, from } => {
            let message = message.insert(Message::new(parts, *from));
            let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
            opcode::SendMsg::new(fd(socket), &raw const message.header)
                .flags(flags.unsigned_abs())
                .build()
        }
        Op::Poll { fd: file, events } => {
            opcode::PollAdd::new(fd(file), u32::from(events.bits())).build()
        }
    }
}

impl Message {
    /// A header for the bytes of `parts` without the first `skip`.
    fn new(parts: &[IoView], mut skip: usize) -> Box<Message> {
        let mut message = Box::new(Message {
            // SAFETY: a msghdr is integers and pointers, for which zero is a value: no name, no
            // control data, no parts.
            header: unsafe { std::mem::zeroed() },
            parts: Vec::with_capacity(parts.len().min(IOV_MAX)),
        });
        for part in parts {
            let rest = &part[skip.min(part.len())..];
            skip -= part.len() - rest.len();
            if !rest.is_empty() && message.parts.len() < IOV_MAX {
                message.parts.push(libc::iovec {
                    iov_base: rest.as_ptr().cast_mut().cast(),
                    iov_len: rest.len(),
                });
            }
        }
        message.header.msg_iov = message.parts.as_mut_ptr();
        message.header.msg_iovlen = message.parts.len();
        message
    }
}

impl Driver for Ring {
    fn now(&self) -> Instant {
        self.clock.now()
    }

    fn unix_time(&self) -> u64 {
        unix_time()
    }

    fn has_threads(&self) -> bool {
        true
    }

    fn host(&self) -> Option<&dyn Host> {
        Some(self)
    }
}

impl Host for Ring {
    fn engine(&self) -> Engine {
        Engine::Ring
    }

    fn submit(&self, op: Op) -> OpKey {
        let mut ops = self.ops.borrow_mut();
        if self.closed.get() {
            return ops.insert_done(op, Err(io::Error::from_raw_os_error(libc::ECANCELED)));
        }
        let key = ops.insert(Some(op));
        let Some((Some(op), message)) = ops.running_mut(key) else {
            unreachable!("just inserted");
        };
        let entry = entry(op, message).user_data(key.to_u64());
        drop(ops);
        self.push(&entry);
        key
    }

    fn poll_op(&self, key: OpKey, waker: &Waker) -> Option<(Op, io::Result<Outcome>)> {
        self.ops.borrow_mut().poll(key, waker)
    }

    fn abandon(&self, key: OpKey) {
        let mut ops = self.ops.borrow_mut();
        let ended = ops.abandon(key);
        let cancel = match ops.running_mut(key) {
            Some((Some(op), _)) => op.waits_for_peer(),
            _ => false,
        };
        drop(ops);
        drop(ended);
        if cancel {
            self.cancel(key.to_u64());
        }
    }

    fn wait(&self, how: Wait) {
        if how != Wait::No && self.ended.borrow().is_empty() {
            return self.enter(how);
        }
        let mut io = self.io.borrow_mut();
        let queue = io.submission();
        let idle = queue.is_empty() && !queue.taskrun() && !queue.cq_overflow();
        drop(queue);
        drop(io);
        if !idle {
            self.enter(Wait::No);
        }
    }

    fn reap(&self) {
        self.take_completions();
        if !self.closed.get() {
            self.arm_event();
        }
        let mut ended = self.ended.borrow_mut();
        let ops = self.ops.borrow();
        for key in ended.drain(..) {
            // Our wakers only note a task down; nothing calls back.
            ops.wake(key);
        }
    }

    fn close(&self) {
        if self.closed.replace(true) {
            return;
        }
        let running = self.ops.borrow().running_keys();
        for key in running {
            self.cancel(key.to_u64());
        }
        if self.event_armed.get() {
            self.cancel(WAKE);
        }
        let started = self.clock.now();
        let mut warned = started;
        loop {
            self.take_completions();
            let left = self.ops.borrow().running();
            if left == 0 && !self.event_armed.get() {
                return;
            }
            let now = self.clock.now();
            if now - warned >= CLOSE_WARN {
                warned = now;
                tracing::warn!(
                    in_flight = left,
                    waited_s = (now - started).as_secs(),
                    "still waiting for the host to end requests"
                );
            }
            self.enter(Wait::Until(now + CLOSE_WARN));
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.close();
    }
}
