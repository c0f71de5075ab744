//! The engine for hosts that forbid io_uring: file operations on a pool of threads, sockets by
//! poll(2) while the lane sleeps. Slower, and otherwise the same.
//!
//! An operation of a file is moved to a worker, with its buffer, and comes back through `ended`; its
//! entry in the [`OpTable`] waits without it. An operation of a socket stays in the table: it is
//! tried when it is new and again when poll(2) says so.

use super::Instant;
use super::engine::{AbortOnPanic, Clock, Engine, unix_time};
use super::executor::{Driver, Host, LaneShared, Wait};
use super::op::{Allocate, Ended, Fd, Op, OpKey, OpTable, Outcome};
use crossbeam_channel::{Receiver, Sender, unbounded};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FallocateFlags;
use rustix::io::{Errno, ReadWriteFlags};
use rustix::net::{RecvFlags, SendFlags, SocketFlags};
use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::thread::JoinHandle;
use std::time::Duration;

/// Threads per lane that block in file operations: the queue depth a device gets to see.
const WORKERS: usize = 8;
/// More parts than this the kernel refuses; what is left over goes with the next send.
const IOV_MAX: usize = 1024;

/// A file operation on its way to a worker.
struct Job {
    key: OpKey,
    op: Op,
}

type Report = (OpKey, Op, io::Result<Outcome>);

/// What workers have finished, for the lane to collect.
struct Finished {
    reports: Mutex<Vec<Report>>,
    lane: Arc<LaneShared>,
    /// Operations that no worker has begun are cancelled.
    closing: AtomicBool,
}

impl Finished {
    fn reports(&self) -> MutexGuard<'_, Vec<Report>> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A socket operation that the kernel said "not now" to.
struct Waiting {
    key: OpKey,
    fd: Fd,
    events: PollFlags,
}

pub(super) struct Threads {
    ops: RefCell<OpTable<()>>,
    /// Socket operations to try on the next turn.
    fresh: RefCell<Vec<OpKey>>,
    waiting: RefCell<Vec<Waiting>>,
    /// Holds no more than the table does, which callers bound by their buffers.
    jobs: RefCell<Option<Sender<Job>>>,
    workers: RefCell<Vec<JoinHandle<()>>>,
    finished: Arc<Finished>,
    clock: Clock,
    event: Arc<OwnedFd>,
}

impl Threads {
    pub(super) fn new(
        clock: Clock,
        event: Arc<OwnedFd>,
        lane: Arc<LaneShared>,
    ) -> io::Result<Threads> {
        let finished =
            Arc::new(Finished { reports: Mutex::default(), lane, closing: AtomicBool::new(false) });
        let (jobs, queue) = unbounded();
        let workers = (0..WORKERS)
            .map(|n| {
                let (queue, finished) = (queue.clone(), Arc::clone(&finished));
                std::thread::Builder::new()
                    .name(format!("varve-io-{n}"))
                    .spawn(move || serve(&queue, &finished))
            })
            .collect::<io::Result<Vec<_>>>()?;
        Ok(Threads {
            ops: RefCell::new(OpTable::new()),
            fresh: RefCell::default(),
            waiting: RefCell::default(),
            jobs: RefCell::new(Some(jobs)),
            workers: RefCell::new(workers),
            finished,
            clock,
            event,
        })
    }

    /// Notes an end, and returns what is to be done outside the borrow.
    fn ended(&self, key: OpKey, back: Option<Op>, result: io::Result<Outcome>) {
        let mut ops = self.ops.borrow_mut();
        let ended = ops.complete(key, back, result);
        let count = ops.stale();
        drop(ops);
        match ended {
            Ended::Awaited => self.ops.borrow().wake(key),
            Ended::Noted => {}
            Ended::Orphan(op, result) => drop((op, result)),
            Ended::Stale => tracing::error!(?key, count, "a request was completed twice"),
        }
    }

    /// Tries a socket operation; when the kernel says "not now", it waits for poll(2).
    fn attempt(&self, key: OpKey) {
        let tried = {
            let mut ops = self.ops.borrow_mut();
            // Its future may have gone since it was noted down.
            let Some((Some(op), ())) = ops.running_mut(key) else {
                return;
            };
            match attempt(op) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let (fd, events) = readiness(op);
                    let fd = Arc::clone(fd);
                    self.waiting.borrow_mut().push(Waiting { key, fd, events });
                    return;
                }
                tried => tried,
            }
        };
        self.ended(key, None, tried);
    }

    /// poll(2) over all sockets that wait, and the lane's eventfd.
    fn poll_sockets(&self, timeout: Option<Duration>) {
        let timeout = timeout.map(|t| Timespec::try_from(t).unwrap_or(LONG));
        let mut waiting = self.waiting.borrow_mut();
        let mut fds = Vec::with_capacity(waiting.len() + 1);
        fds.push(PollFd::new(&self.event, PollFlags::IN));
        fds.extend(waiting.iter().map(|w| PollFd::new(&w.fd, w.events)));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR | Errno::NOMEM | Errno::AGAIN) => return,
            Err(error) => panic!("poll(2) failed over our own descriptors: {error}"),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        if ready[0] {
            // The count says nothing; reading it makes the next wake-up news again.
            let _ = rustix::io::read(&*self.event, &mut [0u8; 8]);
        }
        let mut ready = ready.into_iter().skip(1);
        let mut fresh = self.fresh.borrow_mut();
        waiting.retain(|w| {
            let ready = ready.next().expect("one answer each");
            if ready {
                fresh.push(w.key);
            }
            !ready
        });
    }
}

/// For a deadline too far away to say.
const LONG: Timespec = Timespec { tv_sec: 3600, tv_nsec: 0 };

fn serve(queue: &Receiver<Job>, finished: &Finished) {
    let _abort = AbortOnPanic;
    for Job { key, mut op } in queue {
        let result = if finished.closing.load(Ordering::Acquire) {
            Err(io::Error::from(Errno::CANCELED))
        } else {
            blocking(&mut op)
        };
        finished.reports().push((key, op, result));
        finished.lane.notify();
    }
}

/// A file operation, on a worker.
pub(super) fn blocking(op: &mut Op) -> io::Result<Outcome> {
    let count = match op {
        Op::Read { file, at, buf, from, .. } => rustix::io::pread(file, &mut buf[*from..], *at)?,
        Op::Write { file, at, data, from, dsync } => {
            let flags = if *dsync { ReadWriteFlags::DSYNC } else { ReadWriteFlags::empty() };
            rustix::io::pwritev2(file, &[IoSlice::new(&data[*from..])], *at, flags)?
        }
        Op::DataSync { file } => rustix::fs::fdatasync(file).map(|()| 0)?,
        Op::Fallocate { file, what, at, len } => {
            let mode = match what {
                Allocate::PunchHole => FallocateFlags::PUNCH_HOLE,
                Allocate::ZeroRange => FallocateFlags::ZERO_RANGE,
            };
            let mode = mode | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(file, mode, *at, *len).map(|()| 0)?
        }
        _ => unreachable!("a socket operation went to a worker"),
    };
    Ok(Outcome::Count(count))
}

fn is_blocking(op: &Op) -> bool {
    matches!(op, Op::Read { .. } | Op::Write { .. } | Op::DataSync { .. } | Op::Fallocate { .. })
}

/// A socket operation, without waiting.
fn attempt(op: &mut Op) -> io::Result<Outcome> {
    let count = match op {
        Op::Accept { listener } => {
            let socket = rustix::net::accept_with(listener, SocketFlags::CLOEXEC)?;
            return Ok(Outcome::Socket(socket));
        }
        Op::Connect { socket, to } => return connect(socket, to),
        Op::Recv { socket, buf, part, .. } => {
            rustix::net::recv(socket, &mut buf[part.clone()], RecvFlags::DONTWAIT)?.0
        }
        Op::Send { socket, parts, from } => {
            let mut skip = *from;
            let mut slices = Vec::with_capacity(parts.len().min(IOV_MAX));
            for part in parts {
                let rest = &part[skip.min(part.len())..];
                skip -= part.len() - rest.len();
                if !rest.is_empty() && slices.len() < IOV_MAX {
                    slices.push(IoSlice::new(rest));
                }
            }
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            rustix::net::sendmsg(socket, &slices, &mut Default::default(), flags)?
        }
        Op::Poll { fd, events } => {
            let mut fds = [PollFd::new(fd, *events)];
            poll(&mut fds, Some(&Timespec::default()))?;
            match fds[0].revents() {
                none if none.is_empty() => return Err(Errno::AGAIN.into()),
                some => usize::from(some.bits()),
            }
        }
        _ => unreachable!("a file operation came to the lane"),
    };
    Ok(Outcome::Count(count))
}

/// The first call begins it; the one after the socket became writable learns how it went.
fn connect(socket: &Fd, to: &socket2::SockAddr) -> io::Result<Outcome> {
    let socket = socket2::SockRef::from(socket);
    match socket.connect(to) {
        Ok(()) => Ok(Outcome::Count(0)),
        Err(e) if e.raw_os_error() == Some(Errno::ISCONN.raw_os_error()) => Ok(Outcome::Count(0)),
        Err(e)
            if [Errno::INPROGRESS, Errno::ALREADY]
                .map(|n| Some(n.raw_os_error()))
                .contains(&e.raw_os_error()) =>
        {
            Err(Errno::AGAIN.into())
        }
        // A Unix listener whose backlog is full; poll(2) would call the socket writable for ever.
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
            Err(io::Error::from(io::ErrorKind::ConnectionRefused))
        }
        Err(e) => Err(e),
    }
}

/// What poll(2) must wait for before `op` is tried again.
fn readiness(op: &Op) -> (&Fd, PollFlags) {
    match op {
        Op::Accept { listener } => (listener, PollFlags::IN),
        Op::Recv { socket, .. } => (socket, PollFlags::IN),
        Op::Connect { socket, .. } | Op::Send { socket, .. } => (socket, PollFlags::OUT),
        Op::Poll { fd, events } => (fd, *events),
        _ => unreachable!("a file operation does not wait for readiness"),
    }
}

impl Driver for Threads {
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

impl Host for Threads {
    fn engine(&self) -> Engine {
        Engine::Threads
    }

    fn submit(&self, op: Op) -> OpKey {
        let jobs = self.jobs.borrow();
        let mut ops = self.ops.borrow_mut();
        let Some(jobs) = &*jobs else {
            return ops.insert_done(op, Err(Errno::CANCELED.into()));
        };
        if is_blocking(&op) {
            let key = ops.insert(None);
            jobs.send(Job { key, op }).expect("workers listen until the close");
            return key;
        }
        let key = ops.insert(Some(op));
        self.fresh.borrow_mut().push(key);
        key
    }

    fn poll_op(&self, key: OpKey, waker: &Waker) -> Option<(Op, io::Result<Outcome>)> {
        self.ops.borrow_mut().poll(key, waker)
    }

    fn abandon(&self, key: OpKey) {
        let mut ops = self.ops.borrow_mut();
        let ended = ops.abandon(key);
        // What a worker has, it finishes; what only waits for a peer ends here.
        let cancel = matches!(ops.running_mut(key), Some((Some(_), ())));
        drop(ops);
        drop(ended);
        if cancel {
            self.waiting.borrow_mut().retain(|w| w.key != key);
            self.ended(key, None, Err(Errno::CANCELED.into()));
        }
    }

    fn wait(&self, how: Wait) {
        // A worker that reported before the lane parked has notified a lane that was awake.
        let busy = how == Wait::No
            || !self.fresh.borrow().is_empty()
            || !self.finished.reports().is_empty();
        match how {
            _ if busy && self.waiting.borrow().is_empty() => {}
            _ if busy => self.poll_sockets(Some(Duration::ZERO)),
            Wait::Until(at) => self.poll_sockets(Some(at - self.clock.now())),
            _ => self.poll_sockets(None),
        }
    }

    fn reap(&self) {
        let reports = std::mem::take(&mut *self.finished.reports());
        for (key, op, result) in reports {
            self.ended(key, Some(op), result);
        }
        let fresh = self.fresh.take();
        for key in fresh {
            self.attempt(key);
        }
    }

    fn close(&self) {
        if self.jobs.take().is_none() {
            return;
        }
        let running = self.ops.borrow().running_keys();
        for key in running {
            let here = matches!(self.ops.borrow_mut().running_mut(key), Some((Some(_), ())));
            if here {
                self.ended(key, None, Err(Errno::CANCELED.into()));
            }
        }
        self.waiting.take();
        self.fresh.take();
        self.finished.closing.store(true, Ordering::Release);
        for worker in self.workers.take() {
            worker.join().expect("a worker that panics aborts");
        }
        self.reap();
        assert!(self.ops.borrow().running() == 0, "every worker has reported");
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.close();
    }
}
