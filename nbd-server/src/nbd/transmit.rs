//! The transmission phase: requests are framed, looked at field by field, and handed out valid.
//!
//! [`Transmission::next`] sees the stream of one connection. A valid `WRITE` is handed out *before*
//! its payload, so that the caller can wait for memory first and receive the bytes where they
//! belong; the payload of a request that is refused is eaten here, so that the stream stays
//! aligned.
//!
//! # Order of the checks
//! Magic, payload limit, shutdown, type and flags, read-only, range, alignment, payload size. A
//! request with several faults is answered for the first of them, whatever the others are.
//!
//! # Invariants
//! - A request that is handed out lies inside the export as it was negotiated.
//! - Each request yields exactly one event, or the connection closes.
//! - How the bytes are cut on their way does not change the events.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

#[cfg(test)]
mod tests;

use super::handshake::Negotiated;
use super::wire::*;
use zerocopy::{FromBytes, IntoBytes};

/// A payload beyond this is not even drained: the larger of twice what we told, and 64 MiB.
const PAYLOAD_HARD_MIN: u64 = 64 << 20;

/// A request that may be executed. Its range lies inside the export.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// The client's own; goes back as it came.
    pub cookie: u64,
    pub command: Command,
    /// Bytes.
    pub offset: u64,
    /// Bytes; the payload of a `WRITE` has this length.
    pub length: u32,
}

/// What to do, with the modifiers that mean something for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// `whole`: the client forbade more than one content chunk.
    Read {
        whole: bool,
    },
    Write {
        fua: bool,
    },
    Flush,
    Trim {
        fua: bool,
    },
    Cache,
    WriteZeroes {
        fua: bool,
        may_unmap: bool,
        only_if_fast: bool,
    },
    /// `one`: exactly one extent, not longer than the request.
    BlockStatus {
        one: bool,
    },
}

/// A request that was answered by looking at it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusal {
    pub cookie: u64,
    pub error: Errno,
    /// For people; travels with structured replies only.
    pub text: &'static str,
}

/// What came out of the stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// Execute this. The next [`Request::payload`] bytes of the stream are its payload and belong
    /// to the caller, who takes them before asking for the next event.
    Execute(Request),
    /// Answer with an error; its payload has been eaten.
    Refuse(Refusal),
    /// The client is done: finish what is in flight, then close.
    Disconnect,
    /// The stream cannot be trusted any more: close.
    Close(Close),
}

/// Why a transmission cannot go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Close {
    #[error("request magic {0:#x} is wrong")]
    BadMagic(u32),
    #[error("a payload of {0} bytes")]
    PayloadTooLong(u32),
}

impl Request {
    /// Bytes of payload that follow the request on the stream.
    pub fn payload(&self) -> u32 {
        match self.command {
            Command::Write { .. } => self.length,
            _ => 0,
        }
    }
}

/// The requests of one connection.
#[derive(Debug)]
pub struct Transmission {
    agreed: Negotiated,
    state: State,
    stopping: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Collecting a head, of which `have` bytes are here.
    Head { head: [u8; 28], have: usize },
    /// Eating the payload of a request that is refused.
    Eat { left: u32, refusal: Refusal },
    /// Nothing comes after the end.
    Ended(Event),
}

const EMPTY: State = State::Head { head: [0; 28], have: 0 };

impl Transmission {
    pub fn new(agreed: Negotiated) -> Transmission {
        Transmission { agreed, state: EMPTY, stopping: false }
    }

    /// What was negotiated.
    pub fn agreed(&self) -> &Negotiated {
        &self.agreed
    }

    /// From now on every request is answered `ESHUTDOWN`.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// Is the stream inside a frame? There the peer owes us bytes.
    pub fn inside_a_frame(&self) -> bool {
        match self.state {
            State::Head { have, .. } => have > 0,
            State::Eat { .. } => true,
            State::Ended(_) => false,
        }
    }

    /// Takes bytes off the front of `input` up to the next event; `None` when it needs more.
    pub fn next(&mut self, input: &mut &[u8]) -> Option<Event> {
        loop {
            match &mut self.state {
                State::Ended(event) => return Some(*event),
                State::Eat { left, refusal } => {
                    let take = input.len().min(*left as usize);
                    *input = input.split_at(take).1;
                    *left = left.saturating_sub(u32::try_from(take).unwrap_or(*left));
                    if *left > 0 {
                        return None;
                    }
                    let refusal = *refusal;
                    self.state = EMPTY;
                    return Some(Event::Refuse(refusal));
                }
                State::Head { head, have } => {
                    let raw = if *have == 0
                        && let Ok((raw, rest)) = CompactRequest::read_from_prefix(input)
                    {
                        *input = rest; // the common case: no copy on the way
                        raw
                    } else {
                        let room = head.split_at_mut(*have).1;
                        let (piece, rest) = input.split_at(room.len().min(input.len()));
                        room.split_at_mut(piece.len()).0.copy_from_slice(piece);
                        *have = have.saturating_add(piece.len());
                        *input = rest;
                        if *have < head.len() {
                            return None;
                        }
                        CompactRequest::read_from_bytes(head.as_bytes()).expect("a whole head")
                    };
                    self.state = EMPTY;
                    if let Some(event) = self.decide(&raw) {
                        return Some(event);
                    }
                }
            }
        }
    }

    /// Judges one head; `None` when a payload has to be eaten first.
    fn decide(&mut self, raw: &CompactRequest) -> Option<Event> {
        let length = raw.length.get();
        if raw.magic != REQUEST_MAGIC {
            return Some(self.end(Event::Close(Close::BadMagic(raw.magic.get()))));
        }
        if raw.kind == command::DISC {
            return Some(self.end(Event::Disconnect)); // whatever its other fields say
        }
        let payload = if raw.kind == command::WRITE { length } else { 0 };
        let told = u64::from(self.agreed.facts.payload_max);
        if u64::from(payload) > told.saturating_mul(2).max(PAYLOAD_HARD_MIN) {
            return Some(self.end(Event::Close(Close::PayloadTooLong(length))));
        }
        match self.check(raw) {
            Ok(request) => Some(Event::Execute(request)),
            Err((error, text)) => {
                let refusal = Refusal { cookie: raw.cookie.get(), error, text };
                if payload == 0 {
                    return Some(Event::Refuse(refusal));
                }
                self.state = State::Eat { left: payload, refusal };
                None
            }
        }
    }

    fn end(&mut self, event: Event) -> Event {
        self.state = State::Ended(event);
        event
    }

    /// The checks behind the framing, in their order.
    fn check(&self, raw: &CompactRequest) -> Result<Request, (Errno, &'static str)> {
        if self.stopping {
            return Err((Errno::Shutdown, "the server is stopping"));
        }
        let (offset, length) = (raw.offset.get(), raw.length.get());
        let command = self.command(raw)?;
        let changes = matches!(
            command,
            Command::Write { .. } | Command::Trim { .. } | Command::WriteZeroes { .. }
        );
        if changes && self.agreed.facts.flags.contains(TransmissionFlags::READ_ONLY) {
            return Err((Errno::Perm, "the export is read-only"));
        }
        self.range(command, offset, length)?;
        self.alignment(offset, length)?;
        let long = length > self.agreed.facts.payload_max;
        match command {
            Command::Write { .. } if long => Err((Errno::Inval, "more than the maximum payload")),
            Command::Read { whole: true } if long => {
                Err((Errno::Overflow, "too long for one chunk"))
            }
            Command::Read { .. } if long && !self.agreed.structured => {
                Err((Errno::Inval, "too long for a simple reply"))
            }
            _ => Ok(Request { cookie: raw.cookie.get(), command, offset, length }),
        }
    }

    /// Type and flags: known, and legal for each other and for this negotiation.
    fn command(&self, raw: &CompactRequest) -> Result<Command, (Errno, &'static str)> {
        use CommandFlags as F;
        let can = self.agreed.facts.flags;
        let unknown = (Errno::Inval, "a flag that this command does not have");
        let flags = F::from_bits(raw.flags.get()).ok_or(unknown)?;
        // FUA is legal on everything once it was offered, and means nothing on most.
        let offered = |flag: F, when: bool| if when { flag } else { F::empty() };
        let fua = offered(F::FUA, can.contains(TransmissionFlags::SEND_FUA));
        let fast = offered(F::FAST_ZERO, can.contains(TransmissionFlags::SEND_FAST_ZERO));
        let df = offered(F::DF, self.agreed.structured);
        let legal = match raw.kind.get() {
            command::READ => df,
            command::WRITE | command::FLUSH | command::TRIM | command::CACHE => F::empty(),
            command::WRITE_ZEROES => F::NO_HOLE | fast,
            command::BLOCK_STATUS => F::REQ_ONE,
            _ => return Err((Errno::Inval, "this server does not know this command")),
        } | fua;
        if !legal.contains(flags) {
            return Err(unknown);
        }
        let read_only = can.contains(TransmissionFlags::READ_ONLY);
        let fua = flags.contains(F::FUA);
        Ok(match raw.kind.get() {
            command::READ => Command::Read { whole: flags.contains(F::DF) },
            command::WRITE => Command::Write { fua },
            command::FLUSH if raw.offset != 0 || raw.length != 0 => {
                return Err((Errno::Inval, "FLUSH has neither offset nor length"));
            }
            command::FLUSH => Command::Flush,
            command::TRIM if !read_only && !can.contains(TransmissionFlags::SEND_TRIM) => {
                return Err((Errno::Inval, "this export cannot TRIM"));
            }
            command::TRIM => Command::Trim { fua },
            command::CACHE => Command::Cache,
            command::WRITE_ZEROES => Command::WriteZeroes {
                fua,
                may_unmap: !flags.contains(F::NO_HOLE),
                only_if_fast: flags.contains(F::FAST_ZERO),
            },
            _ if self.agreed.contexts.is_empty() => {
                return Err((Errno::Inval, "no metadata context was negotiated"));
            }
            _ => Command::BlockStatus { one: flags.contains(F::REQ_ONE) },
        })
    }

    fn range(
        &self,
        command: Command,
        offset: u64,
        length: u32,
    ) -> Result<(), (Errno, &'static str)> {
        let size = self.agreed.facts.size;
        let room = size.checked_sub(u64::from(length));
        if room.is_none_or(|last| offset > last) {
            let error = match command {
                Command::Write { .. } | Command::WriteZeroes { .. } => Errno::NoSpc,
                _ => Errno::Inval,
            };
            return Err((error, "beyond the end of the export"));
        }
        if matches!(command, Command::BlockStatus { .. }) && length == 0 {
            return Err((Errno::Inval, "an empty range has no extent"));
        }
        Ok(())
    }

    /// Only for clients that asked for the block sizes, and only where the export insists.
    fn alignment(&self, offset: u64, length: u32) -> Result<(), (Errno, &'static str)> {
        let facts = &self.agreed.facts;
        if !facts.strict_block_size || !self.agreed.block_size_asked {
            return Ok(());
        }
        let block = u64::from(facts.block_minimum);
        if offset.is_multiple_of(block) && u64::from(length).is_multiple_of(block) {
            return Ok(());
        }
        Err((Errno::Inval, "not a multiple of the minimum block size"))
    }
}
