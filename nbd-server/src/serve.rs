//! The server: listeners, lanes, connections, and an end that loses nothing.
//!
//! ```text
//!   Place ──accept──> a lane's mailbox ──> Hall ──> Conn, Conn, Conn ...
//!   Place ──accept──>      ...
//! ```
//!
//! Connections go to the lanes in turn, and stay there. All state that connections share across
//! lanes is behind [`Export`]: the order of requests and the flush group.
//!
//! # The end
//! [`Server::stop`] lets nobody in any more, answers new requests with `ESHUTDOWN`, waits (up to the
//! drain timeout) until what was begun is answered, flushes every export, and only then closes: a
//! kernel client whose connection breaks before a reply comes would send that write again.

#[cfg(test)]
mod tests;

use crate::conn::Conn;
use crate::hall::{Exports, Hall, Look};
use crate::listen::{Address, Listen};
use crate::stats::Stats;
use socket2::{Domain, TcpKeepalive};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use varve_block::rt::{self, Listener, Stream};
use varve_block::sync::{LocalSemaphore, MailReceiver, MailSender, OneSender, oneshot};
use varve_block::{BufPool, Dyn, Export, LaneId, Rt, Task};

/// After an accept that failed, for want of descriptors most likely, before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes that may wait in a Unix socket.
const SEND_BUFFER: usize = 2 << 20;
/// A TCP peer that is silent for so long is asked whether it lives, so often, at this distance.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_PROBES: u32 = 5;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Connections on their way to a lane.
const MAILBOX: usize = 16;

/// An export as a lane serves it.
pub type Exported = (Look, Export<Dyn>);

/// The limits of a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Bytes that the requests in flight on one lane may hold.
    pub memory: usize,
    /// Connections at a time; more are accepted and closed at once.
    pub connections_max: usize,
    /// Of these, how many may still be negotiating.
    pub handshakes_max: usize,
    /// How long a stop waits for requests in flight.
    pub drain_timeout: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            memory: 1 << 30,
            connections_max: 100,
            handshakes_max: 64,
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen at {place}")]
    Listen { place: Listen, source: io::Error },
    #[error("export {name:?}: {why}")]
    Export { name: String, why: &'static str },
    #[error("nothing to serve")]
    NoExport,
}

/// A running server. Dropping it without [`Server::stop`] drops its connections where they are.
pub struct Server {
    rt: Rt,
    options: Options,
    stats: Arc<Stats>,
    lanes: Rc<Lanes>,
    acceptors: Vec<Task<()>>,
    addresses: Vec<Address>,
}

/// The lanes that serve, and who is next.
#[derive(Default)]
struct Lanes {
    mail: std::cell::RefCell<Vec<MailSender<Message>>>,
    next: Cell<usize>,
}

enum Message {
    Connection {
        peer: rt::Conn,
        guest: Guest,
    },
    /// Drain, flush, close, then answer.
    Stop(OneSender<()>),
}

/// A place among the connections; and, until it is dropped, one among the handshakes.
struct Guest {
    _open: Counted,
    negotiating: Counted,
}

struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>, max: usize) -> Option<Counted> {
        let mine = Counted(Arc::clone(count));
        (count.fetch_add(1, Ordering::Relaxed) < max).then_some(mine)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Counts {
    open: Arc<AtomicUsize>,
    negotiating: Arc<AtomicUsize>,
}

impl Server {
    /// Listens at all places, and serves `exports` on this lane. The first export is also the
    /// default one.
    pub fn start(
        rt: &Rt,
        listen: &[Listen],
        exports: Vec<Exported>,
        options: Options,
    ) -> Result<Server, StartError> {
        check(&exports)?;
        let mut places = Vec::new();
        for place in listen {
            let opened = place.open(rt);
            let opened =
                opened.map_err(|source| StartError::Listen { place: place.clone(), source })?;
            places.extend(opened);
        }
        let stats = Arc::new(Stats::default());
        let lanes = Rc::new(Lanes::default());
        let counts = Rc::new(Counts::default());
        let mut server = Server {
            rt: rt.clone(),
            options,
            stats: Arc::clone(&stats),
            lanes: Rc::clone(&lanes),
            acceptors: Vec::new(),
            addresses: Vec::new(),
        };
        let mail = server.new_lane();
        drop(rt.spawn(lane(rt.clone(), exports, mail, options, Arc::clone(&stats))));
        for (listener, address) in places {
            let door = Door {
                rt: rt.clone(),
                listener,
                options,
                stats: Arc::clone(&stats),
                lanes: Rc::clone(&lanes),
                counts: Rc::clone(&counts),
            };
            server.acceptors.push(rt.spawn(door.accept()));
            tracing::info!(%address, "serving");
            server.addresses.push(address);
        }
        Ok(server)
    }

    /// Lets another lane take its share of the connections. `open` makes that lane's handles of the
    /// same exports, and runs there.
    pub fn add_lane(
        &self,
        lane_id: LaneId,
        open: impl FnOnce(&Rt) -> Vec<Exported> + Send + 'static,
    ) {
        let mail = self.new_lane();
        let (options, stats) = (self.options, Arc::clone(&self.stats));
        self.rt.spawn_on(lane_id, move |rt| {
            let exports = open(&rt);
            lane(rt, exports, mail, options, stats)
        });
    }

    fn new_lane(&self) -> MailReceiver<Message> {
        let (sender, receiver) = self.rt.mailbox(MAILBOX);
        self.lanes.mail.borrow_mut().push(sender);
        receiver
    }

    /// Where clients find it; displayed as NBD URIs.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Counters of all lanes.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// Lets nobody in, finishes what was begun, flushes, and closes.
    pub async fn stop(mut self) {
        for acceptor in self.acceptors.drain(..) {
            acceptor.cancel().await; // drops its listener, which unlinks its socket
        }
        let lanes = self.lanes.mail.take();
        let mut stopped = Vec::new();
        for mail in lanes {
            let (sender, receiver) = oneshot();
            if mail.send(Message::Stop(sender)).await.is_ok() {
                stopped.push(receiver);
            }
        }
        for lane in stopped {
            let _ = lane.await; // a lane that is gone has nothing left to stop
        }
        tracing::info!("stopped");
    }
}

fn check(exports: &[Exported]) -> Result<(), StartError> {
    let mut names = BTreeSet::new();
    for (look, _) in exports {
        let wrong = |why| StartError::Export { name: look.name.clone(), why };
        look.check().map_err(wrong)?;
        for name in look.aliases.iter().chain([&look.name]) {
            if !names.insert(name) {
                return Err(wrong("another export has this name"));
            }
        }
    }
    if exports.is_empty() { Err(StartError::NoExport) } else { Ok(()) }
}

/// One listener.
struct Door {
    rt: Rt,
    listener: Listener,
    options: Options,
    stats: Arc<Stats>,
    lanes: Rc<Lanes>,
    counts: Rc<Counts>,
}

impl Door {
    async fn accept(self) {
        loop {
            match self.listener.accept().await {
                Ok(stream) => self.admit(stream).await,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept");
                    self.rt.sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn admit(&self, stream: Stream) {
        self.stats.connections.add(1);
        let open = Counted::new(&self.counts.open, self.options.connections_max);
        let negotiating = Counted::new(&self.counts.negotiating, self.options.handshakes_max);
        let (Some(open), Some(negotiating)) = (open, negotiating) else {
            // Closed at once: in the backlog it would wait for nothing.
            self.stats.connections_refused.add(1);
            return;
        };
        if let Err(error) = tune(&stream) {
            tracing::debug!(%error, "socket options"); // it serves all the same
        }
        let guest = Guest { _open: open, negotiating };
        let mail = {
            let lanes = self.lanes.mail.borrow();
            let n = self.lanes.next.get();
            self.lanes.next.set(n.wrapping_add(1));
            lanes.get(n % lanes.len().max(1)).cloned()
        };
        if let Some(mail) = mail {
            // A lane that has stopped drops the connection, as it should.
            let _ = mail.send(Message::Connection { peer: stream.detach(), guest }).await;
        }
    }
}

/// Sets what makes a connection fast, and what notices a peer that has vanished.
pub(crate) fn tune(stream: &Stream) -> io::Result<()> {
    let Some(socket) = stream.socket() else { return Ok(()) };
    // A whole reply of 1 MiB and the next one fit, so that the client copies one while we make the
    // other. The host may grant less. TCP sizes its buffers by itself, and better.
    if socket.domain()? == Domain::UNIX {
        return socket.set_send_buffer_size(SEND_BUFFER);
    }
    let probes = TcpKeepalive::new().with_time(KEEPALIVE_IDLE);
    let probes = probes.with_interval(KEEPALIVE_INTERVAL).with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&probes)
}

/// Serves one connection that is there, until it ends; for worlds without sockets.
pub async fn serve_stream(rt: &Rt, stream: Stream, exports: Vec<Exported>) {
    let hall = hall(rt, exports, Options::default().memory, Arc::default());
    Conn::new(Rc::new(hall), stream).serve(()).await;
}

fn hall(rt: &Rt, exports: Vec<Exported>, memory: usize, stats: Arc<Stats>) -> Hall {
    let stopping = Rc::new(Cell::new(false));
    Hall::new(
        rt.clone(),
        Exports::new(exports, Rc::clone(&stopping)),
        // Twice the budget: a read that failed is probed while its buffers are still counted.
        BufPool::new(memory.saturating_mul(2)),
        LocalSemaphore::new(memory.max(crate::hall::PAYLOAD_MAX as usize)),
        stats,
        stopping,
    )
}

/// One lane, from its first connection to the stop.
async fn lane(
    rt: Rt,
    exports: Vec<Exported>,
    mut mail: MailReceiver<Message>,
    options: Options,
    stats: Arc<Stats>,
) {
    let hall = Rc::new(hall(&rt, exports, options.memory, stats));
    while let Some(message) = mail.recv().await {
        match message {
            Message::Connection { peer, guest } => {
                let hall = Rc::clone(&hall);
                let stream = peer.attach(&rt);
                drop(rt.spawn(async move {
                    let Guest { _open, negotiating } = guest;
                    Conn::new(hall, stream).serve(negotiating).await;
                }));
            }
            Message::Stop(answer) => {
                hall.stop(options.drain_timeout).await;
                answer.send(());
                return;
            }
        }
    }
}
