//! One connection in its transmission phase: who waits for which reply.
//!
//! # Invariants
//! - A cookie is in the table from before its head is queued until its reply has ended, or the
//!   connection is lost; it is never used twice.
//! - A buffer is in the table, or in the receiver's hands while bytes come into it. So a future that
//!   is dropped leaves nothing behind that anybody still writes to.
//! - Only the receiver ends requests one by one; [`Link::lose`] ends them all.

use super::intake::Intake;
use crate::nbd::answer::{Asked, Body, Claim, Refused};
use crate::nbd::breach::Breach;
use crate::nbd::offer::Terms;
use crate::nbd::wire::{
    CHUNK_DONE, CHUNK_MAGIC, ChunkHead, CommandFlags, CompactRequest, HoleBody, REQUEST_MAGIC,
    SIMPLE_REPLY_MAGIC, SimpleReply, StatusExtent, command,
};
use crate::outbox::Outbox;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use varve_block::rt::Stream;
use varve_block::sync::{LocalSemaphore, Notify, OneSender, Permit, oneshot};
use varve_block::{BufPool, Instant, IoBuf, IoView, Rt};
use zerocopy::{IntoBytes, transmute};

/// Requests in flight. Servers work on 16 or so at a time; the rest only waits there instead of here.
const IN_FLIGHT_MAX: usize = 64;
/// How often a silent server is looked for.
const SILENCE_TICK: Duration = Duration::from_secs(5);

/// Why a connection is of no use any more. It is told as text and not as a source: an error of a
/// socket (a broken pipe) must not be taken for one of our own output.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Lost(Arc<str>);

impl Lost {
    pub(super) fn breach(breach: &Breach) -> Lost {
        Lost(format!("the server breaks the protocol: {breach}").into())
    }

    pub(super) fn inside_a_frame() -> Lost {
        Lost("the server closed the connection in the middle of an answer".into())
    }

    pub(super) fn receiving(error: &io::Error) -> Lost {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Lost::inside_a_frame(),
            _ => Lost(format!("the connection broke: {error}").into()),
        }
    }

    pub(super) fn sending(error: &io::Error) -> Lost {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Lost::closed(),
            _ => Lost(format!("the connection broke: {error}").into()),
        }
    }

    pub(super) fn silent(limit: Duration) -> Lost {
        Lost(format!("the server has said nothing for {} seconds", limit.as_secs()).into())
    }

    pub(super) fn closed() -> Lost {
        Lost("the server closed the connection".into())
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a request was not done.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server says so; the connection goes on.
    Refused(Refused),
    /// What became of it is not known.
    Lost(Lost),
}

/// What a request brings home.
pub(super) struct Done {
    /// The buffer of a read, filled.
    pub(super) buf: Option<IoBuf>,
    pub(super) extents: Vec<StatusExtent>,
}

/// A request as it is sent.
pub(super) struct Call {
    pub(super) command: u16,
    pub(super) flags: CommandFlags,
    /// In bytes.
    pub(super) offset: u64,
    pub(super) length: u32,
    pub(super) asked: Asked,
}

/// A request that was sent.
struct Waiting {
    claim: Claim,
    buf: Option<IoBuf>,
    done: OneSender<Result<Done, Failure>>,
    _place: Permit,
}

/// The connection, as its tasks and its device share it.
pub(super) struct Link {
    rt: Rt,
    stream: Stream,
    pub(super) terms: Terms,
    outbox: Outbox,
    own: BufPool,
    places: LocalSemaphore,
    waiting: RefCell<BTreeMap<u64, Waiting>>,
    next_cookie: Cell<u64>,
    /// When bytes came last, or nobody waited.
    heard: Rc<Cell<Instant>>,
    lost: RefCell<Option<Lost>>,
    changed: Notify,
    /// We said goodbye while there was a connection.
    left: Cell<bool>,
}

impl Link {
    /// Goes on where the handshake ended.
    pub(super) fn start(
        rt: &Rt,
        stream: Stream,
        terms: Terms,
        own: BufPool,
        intake: Intake,
        heard: Rc<Cell<Instant>>,
        silence_max: Duration,
    ) -> Rc<Link> {
        let link = Rc::new(Link {
            rt: rt.clone(),
            stream,
            terms,
            outbox: Outbox::new(),
            own,
            places: LocalSemaphore::new(IN_FLIGHT_MAX),
            waiting: RefCell::default(),
            next_cookie: Cell::new(1),
            heard,
            lost: RefCell::default(),
            changed: Notify::new(),
            left: Cell::new(false),
        });
        drop(rt.spawn(Rc::clone(&link).send()));
        drop(rt.spawn(Rc::clone(&link).receive(intake)));
        drop(rt.spawn(Rc::clone(&link).watch(silence_max)));
        link
    }

    pub(super) fn lost(&self) -> Option<Lost> {
        self.lost.borrow().clone()
    }

    /// Waits for the end of the connection: why, unless it was our goodbye.
    pub(super) async fn end(&self) -> Option<Lost> {
        loop {
            if let Some(lost) = self.lost() {
                return (!self.left.get()).then_some(lost);
            }
            self.changed.notified().await;
        }
    }

    /// One request, from its place among those in flight to its reply.
    ///
    /// # Cancellation
    /// A request that was queued is sent and done, whoever waits for it or not.
    pub(super) async fn call(
        &self,
        call: Call,
        buf: Option<IoBuf>,
        data: Option<IoView>,
    ) -> Result<Done, Failure> {
        let place = self.places.acquire(1).await;
        if let Some(lost) = self.lost() {
            // Whoever wants to end because of that has a turn, though his work never waits any more.
            self.rt.yield_now().await;
            return Err(Failure::Lost(lost));
        }
        let cookie = self.next_cookie.replace(self.next_cookie.get() + 1);
        let (done, outcome) = oneshot();
        let claim = Claim::new(call.asked, call.offset, call.length);
        if self.waiting.borrow().is_empty() {
            self.heard.set(self.rt.now());
        }
        self.waiting.borrow_mut().insert(cookie, Waiting { claim, buf, done, _place: place });
        self.queue(&call, cookie, data);
        match outcome.await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::Lost(self.lost().unwrap_or_else(Lost::closed))),
        }
    }

    fn queue(&self, call: &Call, cookie: u64, data: Option<IoView>) {
        let head = CompactRequest {
            magic: REQUEST_MAGIC.into(),
            flags: call.flags.bits().into(),
            kind: call.command.into(),
            cookie: cookie.into(),
            offset: call.offset.into(),
            length: call.length.into(),
        };
        self.outbox.push(None, |writer| {
            writer.head(|out| out.extend_from_slice(head.as_bytes()));
            if let Some(data) = data {
                writer.data(data);
            }
        });
    }

    /// Says goodbye behind everything that is queued.
    pub(super) fn leave(&self) {
        self.left.set(self.lost.borrow().is_none());
        let call = Call {
            command: command::DISC,
            flags: CommandFlags::empty(),
            offset: 0,
            length: 0,
            asked: Asked::Plain,
        };
        self.queue(&call, 0, None);
        self.outbox.close();
    }

    /// The connection is of no use any more: everybody who waits is told why. The first reason counts.
    fn lose(&self, why: Lost) {
        self.lost.borrow_mut().get_or_insert(why);
        self.outbox.kill();
        self.outbox.close();
        self.stream.shutdown();
        let all = self.waiting.take();
        drop(all); // outside the borrow: whoever waits runs on with the reason
        self.changed.notify_all();
    }

    async fn send(self: Rc<Self>) {
        let sent = self.outbox.run(&self.own, async |parcel| {
            while !parcel.parts.is_empty() {
                let n = self.stream.send_some(&parcel.parts).await?;
                parcel.advance(n);
            }
            Ok::<(), io::Error>(())
        });
        match sent.await {
            // Behind our goodbye. What is still on its way back is for nobody.
            Ok(()) => self.stream.shutdown(),
            Err(error) => self.lose(Lost::sending(&error)),
        }
    }

    async fn watch(self: Rc<Self>, silence_max: Duration) {
        while self.lost.borrow().is_none() {
            self.rt.sleep(SILENCE_TICK).await;
            let owed = !self.waiting.borrow().is_empty();
            if owed && self.rt.now() - self.heard.get() >= silence_max {
                self.lose(Lost::silent(silence_max));
            }
        }
    }

    async fn receive(self: Rc<Self>, mut intake: Intake) {
        let why = loop {
            match self.receive_one(&mut intake).await {
                Ok(true) => {}
                Ok(false) => break Lost::closed(),
                Err(why) => break why,
            }
        };
        self.lose(why);
    }

    /// One simple reply or one chunk; false at the end of the stream.
    async fn receive_one(&self, intake: &mut Intake) -> Result<bool, Lost> {
        let Some(magic) = intake.head::<4>().await? else { return Ok(false) };
        match u32::from_be_bytes(magic) {
            SIMPLE_REPLY_MAGIC => self.simple(intake, magic).await?,
            CHUNK_MAGIC if self.terms.structured => self.chunk(intake, magic).await?,
            CHUNK_MAGIC => return Err(Lost::breach(&Breach::NotStructured)),
            other => return Err(Lost::breach(&Breach::Magic(other))),
        }
        Ok(true)
    }

    async fn simple(&self, intake: &mut Intake, magic: [u8; 4]) -> Result<(), Lost> {
        let raw: SimpleReply =
            transmute!(intake.rest::<{ size_of::<SimpleReply>() }>(magic).await?);
        let cookie = raw.cookie.get();
        let length = self.claim(cookie, |claim| claim.simple(raw.error.get()))?;
        self.payload(intake, cookie, 0..length).await?;
        self.finish(cookie)
    }

    async fn chunk(&self, intake: &mut Intake, magic: [u8; 4]) -> Result<(), Lost> {
        let raw: ChunkHead = transmute!(intake.rest::<{ size_of::<ChunkHead>() }>(magic).await?);
        let (flags, kind, cookie) = (raw.flags.get(), raw.kind.get(), raw.cookie.get());
        if flags & !CHUNK_DONE != 0 {
            return Err(Lost::breach(&Breach::ChunkFlags(flags)));
        }
        let done = flags & CHUNK_DONE != 0;
        match self.claim(cookie, |claim| claim.chunk(kind, raw.length.get(), done))? {
            Body::Nothing => {}
            Body::Data(length) => {
                let offset = u64::from_be_bytes(intake.exact().await?);
                let part = self.claim(cookie, |claim| claim.data(offset, length))?;
                self.payload(intake, cookie, part).await?;
            }
            Body::Hole => {
                let body = intake.exact::<{ size_of::<HoleBody>() }>().await?;
                let part = self.claim(cookie, |claim| claim.hole(body))?;
                let mut waiting = self.waiting.borrow_mut();
                if let Some(buf) = waiting.get_mut(&cookie).and_then(|one| one.buf.as_mut()) {
                    buf[part].fill(0);
                }
            }
            Body::Error(length) => {
                let payload = intake.bytes(length).await?;
                self.claim(cookie, |claim| claim.error(kind, &payload))?;
            }
            Body::Status(count) => {
                let id = u32::from_be_bytes(intake.exact().await?);
                self.claim(cookie, |claim| claim.status(id))?;
                for _ in 0..count {
                    let raw: [u8; size_of::<StatusExtent>()] = intake.exact().await?;
                    let raw = transmute!(raw);
                    self.claim(cookie, |claim| claim.extent(raw))?;
                }
            }
        }
        if done { self.finish(cookie) } else { Ok(()) }
    }

    /// Looks at the request that a reply is for.
    fn claim<T>(
        &self,
        cookie: u64,
        look: impl FnOnce(&mut Claim) -> Result<T, Breach>,
    ) -> Result<T, Lost> {
        let mut waiting = self.waiting.borrow_mut();
        let found = waiting.get_mut(&cookie).ok_or(Breach::Cookie(cookie));
        found.and_then(|one| look(&mut one.claim)).map_err(|breach| Lost::breach(&breach))
    }

    /// Receives into a part of a request's buffer.
    async fn payload(
        &self,
        intake: &mut Intake,
        cookie: u64,
        part: Range<usize>,
    ) -> Result<(), Lost> {
        if part.is_empty() {
            return Ok(());
        }
        let buf = self.waiting.borrow_mut().get_mut(&cookie).and_then(|one| one.buf.take());
        let buf = buf.expect("what asks for data has a buffer for it");
        let buf = intake.payload(buf, part).await?;
        if let Some(one) = self.waiting.borrow_mut().get_mut(&cookie) {
            one.buf = Some(buf);
        }
        Ok(())
    }

    /// The reply has ended.
    fn finish(&self, cookie: u64) -> Result<(), Lost> {
        let one = self.waiting.borrow_mut().remove(&cookie);
        let breach = |breach| Lost::breach(&breach);
        let Waiting { claim, buf, done, _place } = one.ok_or(breach(Breach::Cookie(cookie)))?;
        let outcome = claim.end().map_err(breach)?;
        done.send(outcome.map(|extents| Done { buf, extents }).map_err(Failure::Refused));
        Ok(())
    }
}

#[cfg(test)]
impl Link {
    /// Requests whose replies have not ended.
    pub(super) fn in_flight(&self) -> usize {
        self.waiting.borrow().len()
    }
}
