//! One connection, from the greeting to the close.
//!
//! ```text
//!   negotiate ──> reader ──admit──> a task per request ──> outbox ──> writer
//!                   ^                                                   |
//!                   +------------- a place is free <--------------------+
//! ```
//!
//! The reader takes what one receive brings, as many requests as that is; the payload of a long
//! write is received straight into the buffer that goes down the stack. Requests run side by side
//! and finish in any order. The writer sends what has gathered since its last send.
//!
//! # Ending
//! Whatever ended the reader (goodbye, the end of the stream, a broken frame), every request that
//! was begun runs to its end, because it holds its place in the order of the device; its reply is
//! sent if the peer still reads. Only then the socket closes. A write whose payload never came is
//! never begun.
//!
//! # Stalls
//! Inside a frame the peer owes bytes, and while replies wait it owes reading. Sixty seconds
//! without either close the connection; between requests a client may be silent for ever.

#[cfg(test)]
mod tests;

use crate::admit::InFlight;
use crate::execute::{self, Job, PIECE, Session};
use crate::hall::{Guest, Hall};
use crate::inbox::{self, Inbox};
use crate::nbd::handshake::{Handshake, Phase};
use crate::nbd::transmit::{Command, Event, Request, Transmission};
use crate::outbox::Outbox;
use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;
use varve_block::rt::Stream;
use varve_block::sync::{Either, select};
use varve_block::{BufPool, Dyn, Export, Instant, IoBuf};

/// From the accept to the first request.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);
/// Without progress where the peer owes some.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// How often stalls are looked for.
const STALL_TICK: Duration = Duration::from_secs(5);

/// Handshake answers are sent when they reach this length.
const ANSWERS_MAX: usize = 64 << 10;

/// What the tasks of one connection share.
pub(crate) struct Conn {
    pub(crate) hall: Rc<Hall>,
    stream: Stream,
    pub(crate) outbox: Outbox,
    pub(crate) in_flight: Rc<InFlight>,
    /// Small buffers that no other connection can exhaust: received bytes, heads of replies.
    own: BufPool,
    receiving: Wait,
    sending: Wait,
}

/// Since when the peer owes something.
#[derive(Default)]
struct Wait(Cell<Option<Instant>>);

/// Why the reader ended.
#[derive(Debug)]
enum Ended {
    /// The client said so, or closed between two requests.
    Gone,
    /// The stream broke off, or could not be trusted.
    Broken,
}

impl Conn {
    pub(crate) fn new(hall: Rc<Hall>, stream: Stream) -> Rc<Conn> {
        Rc::new(Conn {
            stream,
            outbox: Outbox::new(),
            in_flight: InFlight::new(hall.budget.clone()),
            own: BufPool::new(0),
            receiving: Wait::default(),
            sending: Wait::default(),
            hall,
        })
    }

    /// Serves the client until it is gone and everything it began has ended.
    pub(crate) async fn serve(self: Rc<Self>, negotiating: impl Sized) {
        let conn = Rc::clone(&self);
        let shutdown = Box::new(move || conn.stream.shutdown());
        let guest = Guest { in_flight: Rc::clone(&self.in_flight), shutdown };
        let _entry = self.hall.enter(guest);
        let mut inbox = Inbox::new(&self.own).await;
        let deadline = self.hall.rt.sleep(HANDSHAKE_TIMEOUT);
        let agreed = match select(self.negotiate(&mut inbox), deadline).await {
            Either::Left(agreed) => agreed,
            Either::Right(()) => {
                tracing::debug!("handshake took longer than {HANDSHAKE_TIMEOUT:?}");
                self.hall.stats.handshakes_failed.add(1);
                None
            }
        };
        drop(negotiating);
        if let Some((machine, export)) = agreed {
            self.transmit(machine, export, inbox).await;
        }
        self.stream.shutdown();
    }

    async fn negotiate(&self, inbox: &mut Inbox) -> Option<(Transmission, Export<Dyn>)> {
        let mut out = Vec::new();
        let mut machine = Handshake::start(&mut out);
        loop {
            let mut input = inbox.bytes();
            let before = input.len();
            let phase = if before == 0 {
                Phase::Handshake(machine)
            } else {
                machine.step(&mut input, &self.hall.exports, &mut out)
            };
            let used = before - input.len();
            inbox.used(used);
            let open = matches!(phase, Phase::Handshake(_));
            if !open || inbox.bytes().is_empty() || out.len() >= ANSWERS_MAX {
                self.say(&mut out).await.ok()?;
            }
            match phase {
                Phase::Handshake(next) => machine = next,
                Phase::Transmission(agreed) => {
                    let export = self.hall.exports.open(&agreed.facts.name)?;
                    return Some((Transmission::new(agreed), export));
                }
                Phase::Closed(why) => {
                    tracing::debug!("handshake ended: {why}");
                    if !matches!(why, crate::nbd::handshake::Close::Abort) {
                        self.hall.stats.handshakes_failed.add(1);
                    }
                    return None;
                }
            }
            if inbox.bytes().is_empty() && !self.hear(inbox).await.ok()? {
                return None;
            }
        }
    }

    /// Sends all of `out`, and empties it.
    async fn say(&self, out: &mut Vec<u8>) -> io::Result<()> {
        for part in out.chunks(ANSWERS_MAX) {
            let mut buf = self.own.take_bytes(part.len()).await;
            buf.copy_from_slice(part);
            self.stream.send(&[buf.freeze()]).await?;
        }
        out.clear();
        Ok(())
    }

    async fn transmit(self: &Rc<Self>, machine: Transmission, export: Export<Dyn>, inbox: Inbox) {
        let conn = Rc::clone(self);
        let writer = self.hall.rt.spawn(async move { conn.write_replies().await });
        let conn = Rc::clone(self);
        let watchdog = self.hall.rt.spawn(async move { conn.watch().await });
        match self.read_requests(machine, export, inbox).await {
            Ended::Gone => {}
            Ended::Broken => self.hall.stats.streams_broken.add(1),
        }
        self.in_flight.idle().await;
        self.outbox.close();
        writer.await;
        watchdog.cancel().await;
    }

    async fn read_requests(
        self: &Rc<Self>,
        mut machine: Transmission,
        export: Export<Dyn>,
        mut inbox: Inbox,
    ) -> Ended {
        let session = Session::new(Rc::clone(self), export, machine.agreed());
        loop {
            if self.hall.stopping() {
                machine.stop();
            }
            let mut input = inbox.bytes();
            let before = input.len();
            let event = machine.next(&mut input);
            let used = before - input.len();
            inbox.used(used);
            match event {
                None => {
                    if machine.inside_a_frame() {
                        self.receiving.begin(self);
                    }
                    match self.hear(&mut inbox).await {
                        Ok(true) => {}
                        Ok(false) if !machine.inside_a_frame() => return Ended::Gone,
                        Ok(false) | Err(_) => return Ended::Broken,
                    }
                }
                Some(Event::Execute(request)) => {
                    let ticket = self.in_flight.admit(Conn::cost(&request)).await;
                    let Ok(payload) = self.payload(&mut inbox, request.payload()).await else {
                        return Ended::Broken;
                    };
                    self.hall.stats.requests.add(1);
                    let job = Job { session: Rc::clone(&session), request };
                    drop(self.hall.rt.spawn(job.run(payload, ticket)));
                }
                Some(Event::Refuse(refusal)) => {
                    let ticket = self.in_flight.admit_refusal().await;
                    self.hall.stats.requests_refused.add(1);
                    let (cookie, error) = (refusal.cookie, refusal.error);
                    self.outbox.push(Some(ticket), |reply| {
                        reply.head(|out| session.style.failed(out, cookie, error, refusal.text));
                    });
                }
                Some(Event::Disconnect) => return Ended::Gone,
                Some(Event::Close(why)) => {
                    tracing::debug!("stream closed: {why}");
                    return Ended::Broken;
                }
            }
        }
    }

    /// Receives more; false at the end of the stream.
    async fn hear(&self, inbox: &mut Inbox) -> io::Result<bool> {
        let open = inbox.fill(&self.stream).await?;
        self.heard();
        Ok(open)
    }

    fn heard(&self) {
        self.hall.stats.receives.add(1);
        self.receiving.end();
    }

    /// The next `length` bytes of the stream, in buffers of their own.
    async fn payload(&self, inbox: &mut Inbox, length: u32) -> io::Result<Vec<IoBuf>> {
        let mut left = length as usize;
        let mut pieces = Vec::with_capacity(left.div_ceil(PIECE));
        while left > 0 {
            let mut buf = self.hall.pool.take_bytes(left.min(PIECE)).await;
            left -= buf.len();
            let mut have = 0;
            while have < buf.len() {
                let n = inbox.copy_to(&mut buf[have..]);
                if n > 0 {
                    have += n;
                    continue;
                }
                let missing = buf.len() - have;
                self.receiving.begin(self);
                if missing + left < inbox::IN_PLACE_MIN {
                    if !self.hear(inbox).await? {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    continue;
                }
                let end = buf.len().min(have + inbox::EXACT_MAX);
                buf = self.stream.recv_exact(buf, have..end).await?;
                self.heard();
                have = end;
            }
            pieces.push(buf);
        }
        inbox.ended_payload(length as usize);
        Ok(pieces)
    }

    /// Bytes of memory a request needs before it may start.
    fn cost(request: &Request) -> usize {
        match request.command {
            Command::Read { .. } => execute::footprint(execute::window(request.length)),
            Command::Write { .. } => execute::footprint(request.length as usize),
            _ => 0,
        }
    }

    async fn write_replies(&self) {
        let sent = self.outbox.run(&self.own, async |parcel| {
            self.sending.begin(self);
            while !parcel.parts.is_empty() {
                let n = self.stream.send_some(&parcel.parts).await?;
                self.hall.stats.sends.add(1);
                self.sending.begin(self); // progress: the clock starts again
                parcel.advance(n);
            }
            self.sending.end();
            Ok::<(), io::Error>(())
        });
        if sent.await.is_err() {
            // The peer reads no more. What it began runs to its end, and nobody hears of it.
            self.outbox.kill();
            self.sending.end();
            self.stream.shutdown();
        }
    }

    /// Closes the stream when the peer owes us something for too long.
    async fn watch(&self) {
        loop {
            self.hall.rt.sleep(STALL_TICK).await;
            let now = self.hall.rt.now();
            if self.receiving.overdue(now) || self.sending.overdue(now) {
                tracing::debug!("peer made no progress for {STALL_TIMEOUT:?}");
                self.hall.stats.stalls.add(1);
                self.stream.shutdown();
                return;
            }
        }
    }
}

impl Wait {
    fn begin(&self, conn: &Conn) {
        self.0.set(Some(conn.hall.rt.now()));
    }

    fn end(&self) {
        self.0.set(None);
    }

    fn overdue(&self, now: Instant) -> bool {
        self.0.get().is_some_and(|since| now - since >= STALL_TIMEOUT)
    }
}
