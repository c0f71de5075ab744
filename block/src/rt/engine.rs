//! `run`: real lanes, each on its thread, from the first poll of `main` to a clean end.
//!
//! At the end every lane drops its tasks, cancels what its engine still has in flight and waits for
//! it; only then rings and buffers go. So nothing of a run is left when `run` returns, and a file
//! it wrote may be opened again at once.

use super::executor::{Driver, Host, Lane, LaneId, LaneShared, Wait};
use super::threads::Threads;
use super::uring::Ring;
use super::{Instant, Rt};
use rustix::event::{EventfdFlags, eventfd};
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

/// What does the I/O of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Engine {
    /// The ring where the host allows it, else threads, and a warning says why.
    #[default]
    Auto,
    /// io_uring, of Linux 6.1 or later.
    Ring,
    /// A pool of threads for files and poll(2) for sockets.
    Threads,
}

/// How a run is made.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    pub engine: Engine,
    /// Lane 0 is the calling thread, each further one a thread of its own. At least 1.
    pub lanes: usize,
}

impl Default for Config {
    fn default() -> Config {
        Config { engine: Engine::Auto, lanes: 1 }
    }
}

/// Whether this host lets us use io_uring as the ring engine needs it; the error says why not.
pub fn probe_ring() -> io::Result<()> {
    Ring::new(Clock::start(), new_event()?).map(drop)
}

/// Runs `main` on lane 0 until it is ready, then ends the run with everything in it.
///
/// # Errors
/// When the host grants no engine or no threads.
///
/// # Panics
/// A panic in a task of lane 0 unwinds to the caller, where the profile unwinds at all; on any
/// other lane it aborts the process.
pub fn run<T: 'static, F: Future<Output = T> + 'static>(
    config: Config,
    main: impl FnOnce(Rt) -> F,
) -> io::Result<T> {
    let clock = Clock::start();
    let events = (0..config.lanes.max(1)).map(|_| new_event()).collect::<io::Result<Vec<_>>>()?;
    let shared: Arc<[Arc<LaneShared>]> = events
        .iter()
        .map(|event| {
            let event = Arc::clone(event);
            LaneShared::new(Box::new(move || wake(&event)))
        })
        .collect();
    let (engine, host) = first_host(config.engine, clock, &events[0], &shared[0])?;
    let mut others = Others { shared: Arc::clone(&shared), threads: Vec::new() };
    for (n, event) in events.iter().enumerate().skip(1) {
        others.start(LaneId(n), engine, clock, event)?;
    }
    let running = Running::new(LaneId(0), host, shared)?;
    let rt = Rt::from_lane(Rc::clone(&running.lane));
    let mut main = std::pin::pin!(rt.spawn(main(rt.clone())));
    running.drive(|| main.is_finished());
    drop(others);
    drop(running);
    match crate::sync::poll_once(main.as_mut()) {
        std::task::Poll::Ready(value) => Ok(value),
        std::task::Poll::Pending => unreachable!("main has finished"),
    }
}

/// A run whose host does what `judge` says.
#[cfg(test)]
pub(crate) fn run_on_fake<T: 'static, F: Future<Output = T> + 'static>(
    judge: impl FnMut(&super::op::Op) -> super::fake::Verdict + 'static,
    main: impl FnOnce(Rt) -> F,
) -> T {
    let host = Rc::new(super::fake::Fake::new(Clock::start(), Box::new(judge)));
    let shared = Arc::new([LaneShared::new(Box::new(|| ()))]);
    let running = Running::new(LaneId(0), host, shared).unwrap();
    let rt = Rt::from_lane(Rc::clone(&running.lane));
    let mut main = std::pin::pin!(rt.spawn(main(rt.clone())));
    running.drive(|| main.is_finished());
    drop(running);
    match crate::sync::poll_once(main.as_mut()) {
        std::task::Poll::Ready(value) => value,
        std::task::Poll::Pending => unreachable!("main has finished"),
    }
}

fn new_event() -> io::Result<Arc<OwnedFd>> {
    Ok(Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?))
}

fn wake(event: &OwnedFd) {
    // Any count but zero will do. It fails only when the counter is full: then the lane is awake.
    let _ = rustix::io::write(event, &1u64.to_le_bytes());
}

/// Time of one run, the same on all its lanes.
#[derive(Clone, Copy)]
pub(super) struct Clock(std::time::Instant);

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "this is where Rt gets its time from")]
    fn start() -> Clock {
        Clock(std::time::Instant::now())
    }

    pub(super) fn now(self) -> Instant {
        Instant(u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

pub(super) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

type Hosts = Rc<dyn Real>;

/// An engine as a driver and as a host.
pub(super) trait Real: Driver + Host {
    fn as_driver(self: Rc<Self>) -> Rc<dyn Driver>;
}

impl<H: Driver + Host + 'static> Real for H {
    fn as_driver(self: Rc<Self>) -> Rc<dyn Driver> {
        self
    }
}

fn new_host(
    engine: Engine,
    clock: Clock,
    event: &Arc<OwnedFd>,
    shared: &Arc<LaneShared>,
) -> io::Result<Hosts> {
    Ok(match engine {
        Engine::Threads => Rc::new(Threads::new(clock, Arc::clone(event), Arc::clone(shared))?),
        Engine::Ring | Engine::Auto => Rc::new(Ring::new(clock, Arc::clone(event))?),
    })
}

/// Lane 0's engine, and which one the other lanes take.
fn first_host(
    wanted: Engine,
    clock: Clock,
    event: &Arc<OwnedFd>,
    shared: &Arc<LaneShared>,
) -> io::Result<(Engine, Hosts)> {
    match new_host(wanted, clock, event, shared) {
        Ok(host) if wanted == Engine::Auto => Ok((Engine::Ring, host)),
        Err(error) if wanted == Engine::Auto => {
            tracing::warn!(%error, "io_uring cannot be used here (it needs Linux 6.1, and seccomp \
                and kernel.io_uring_disabled must allow it): falling back to threads");
            let host = new_host(Engine::Threads, clock, event, shared)?;
            Ok((Engine::Threads, host))
        }
        other => other.map(|host| (wanted, host)),
    }
}

/// A lane while it runs on this thread.
struct Running {
    lane: Rc<Lane>,
    host: Hosts,
    _here: super::executor::Entered,
}

/// How often ready tasks may make each other ready before the engine is looked at.
const ROUNDS_MAX: usize = 16;

impl Running {
    fn new(id: LaneId, host: Hosts, shared: Arc<[Arc<LaneShared>]>) -> io::Result<Running> {
        let here = shared[id.0].enter();
        let seed = getrandom::u64().map_err(io::Error::other)?;
        Ok(Running {
            lane: Lane::new(id, Rc::clone(&host).as_driver(), shared, seed),
            host,
            _here: here,
        })
    }

    fn drive(&self, done: impl Fn() -> bool) {
        let shared = self.lane.shared();
        loop {
            for _ in 0..ROUNDS_MAX {
                if !self.lane.run() {
                    break;
                }
                if done() {
                    return;
                }
            }
            if shared.stopped() {
                return;
            }
            let deadline = self.lane.next_deadline();
            if deadline.is_some() {
                self.lane.fire_timers(self.host.now());
            }
            if shared.try_park() {
                let deadline = self.lane.next_deadline();
                self.host.wait(deadline.map_or(Wait::Forever, Wait::Until));
                shared.resume();
            } else {
                self.host.wait(Wait::No);
            }
            self.host.reap();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.lane.drop_tasks();
        self.host.close();
        // A task's end may have been reported to another, which was dropped too: what is left are
        // wake-ups for nobody.
        self.lane.drop_tasks();
    }
}

/// The threads of the other lanes; dropping it ends them.
struct Others {
    shared: Arc<[Arc<LaneShared>]>,
    threads: Vec<JoinHandle<()>>,
}

impl Others {
    /// Starts a lane and waits until its engine stands. A ring must be made on its own thread.
    fn start(
        &mut self,
        id: LaneId,
        engine: Engine,
        clock: Clock,
        event: &Arc<OwnedFd>,
    ) -> io::Result<()> {
        let (ready, stands) = mpsc::sync_channel(1);
        let (shared, event) = (Arc::clone(&self.shared), Arc::clone(event));
        let body = move || {
            let _abort = AbortOnPanic;
            let made = new_host(engine, clock, &event, &shared[id.0])
                .and_then(|host| Running::new(id, host, shared));
            // Nobody listens only when the run has failed already.
            match made {
                Ok(running) => {
                    let _ = ready.send(Ok(()));
                    running.drive(|| false);
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        };
        let thread =
            std::thread::Builder::new().name(format!("varve-lane-{}", id.0)).spawn(body)?;
        self.threads.push(thread);
        stands.recv().unwrap_or_else(|_| Err(io::Error::other("a lane ended before it began")))
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        for shared in self.shared.iter().skip(1) {
            shared.stop();
        }
        for thread in self.threads.drain(..) {
            thread.join().expect("a lane that panics aborts");
        }
    }
}

/// A thread that unwinds has left an invariant broken in the middle of somebody's data.
pub(super) struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}
