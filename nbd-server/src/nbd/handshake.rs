//! The fixed newstyle handshake as a state machine over bytes.
//!
//! ```text
//!   server: greeting
//!   client: flags ──> option ──> option ──> ... ──> GO or EXPORT_NAME ──> transmission
//!                        └── ABORT, a broken frame, too many options ──> closed
//! ```
//!
//! # Limits
//! A peer that has shown nothing yet gets little: 64 options (and 16 for each name that `LIST` told
//! it: `nbdinfo --list` asks several questions per export), 64 KiB of data per option, of which no
//! byte is reserved before it has arrived. Up to 1 MiB is drained and refused in step; beyond that
//! the connection closes. The deadline belongs to the caller, who has the clock.
//!
//! # Invariants
//! - An answer is written only after the whole option has arrived and parsed, so no reply is ever
//!   followed by "that was wrong after all".
//! - How the bytes are cut on their way does not change what is answered.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

#[cfg(test)]
mod tests;

use super::facts::{Catalog, Context, Facts};
use super::option::{Go, Meta, Wrong, text};
use super::wire::*;
use zerocopy::{FromBytes, IntoBytes};

/// Longest option data that is looked at, in bytes.
const DATA_PARSED_MAX: u32 = 64 << 10;
/// Longest option data that is drained to stay in step, in bytes.
const DATA_DRAINED_MAX: u32 = 1 << 20;
/// Options a connection may send.
const OPTIONS_MAX: u32 = 64;
/// Further options for each export that `LIST` told of.
const OPTIONS_PER_EXPORT: u32 = 16;

/// Where a connection stands after a step.
#[derive(Debug)]
pub enum Phase {
    /// Go on: with the rest of the input, or when more has come.
    Handshake(Handshake),
    /// Agreed. What is left of the input is the first request.
    Transmission(Negotiated),
    /// Send what was written, then close.
    Closed(Close),
}

/// Why a handshake ended without an export.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Close {
    #[error("the client said goodbye")]
    Abort,
    #[error("client flags {0:#x} were not offered")]
    UnknownClientFlags(u32),
    #[error("option magic {0:#x} is wrong")]
    BadMagic(u64),
    #[error("option {0} needs a fixed newstyle client")]
    NotFixedNewstyle(u32),
    #[error("option {option} with {length} bytes of data")]
    OptionTooLong { option: u32, length: u32 },
    #[error("too many options")]
    TooManyOptions,
    #[error("EXPORT_NAME cannot be refused in any other way")]
    NoSuchExport,
    #[error("the server is stopping")]
    Stopping,
}

/// What the two sides agreed on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Negotiated {
    pub facts: Facts,
    /// Structured replies: `READ` answers in chunks, errors carry a text.
    pub structured: bool,
    /// Contexts that `BLOCK_STATUS` answers for; selected for this very export.
    pub contexts: Vec<Context>,
    /// The client asked for the block sizes and so is expected to obey them.
    pub block_size_asked: bool,
}

/// The handshake of one connection, from the greeting on.
#[derive(Debug)]
pub struct Handshake {
    state: State,
    /// The bytes of the piece that `state` waits for, as far as they have come.
    held: Vec<u8>,
    client: ClientFlags,
    structured: bool,
    selected: Option<Selection>,
    options_seen: u32,
    exports_told: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    ClientFlags,
    Head,
    Data { option: u32, length: u32 },
    Drain { option: u32, left: u32 },
}

/// The contexts chosen by the last `SET_META_CONTEXT`.
#[derive(Debug)]
struct Selection {
    export: String,
    contexts: Vec<Context>,
}

/// What an option led to.
enum Outcome {
    Next,
    Go(Box<Negotiated>),
    Close(Close),
}

impl Handshake {
    /// A fresh connection: the greeting is written to `out`.
    pub fn start(out: &mut Vec<u8>) -> Handshake {
        let greeting = Greeting {
            magic: GREETING_MAGIC.into(),
            option_magic: OPTION_MAGIC.into(),
            flags: HandshakeFlags::all().bits().into(),
        };
        out.extend_from_slice(greeting.as_bytes());
        Handshake {
            state: State::ClientFlags,
            held: Vec::new(),
            client: ClientFlags::empty(),
            structured: false,
            selected: None,
            options_seen: 0,
            exports_told: 0,
        }
    }

    /// Takes bytes off the front of `input`, at most to the end of one option, and appends the
    /// answers to `out`. Call again while input is left: the caller decides when `out` is long
    /// enough to be sent in between.
    pub fn step(mut self, input: &mut &[u8], catalog: &impl Catalog, out: &mut Vec<u8>) -> Phase {
        if let State::Drain { option, left } = self.state {
            return self.drain(option, left, input, out);
        }
        let need = match self.state {
            State::ClientFlags => size_of::<u32>(),
            State::Head => size_of::<OptionRequest>(),
            State::Data { length, .. } => length as usize,
            State::Drain { .. } => unreachable!("handled above"),
        };
        let missing = need.saturating_sub(self.held.len()).min(input.len());
        let (piece, rest) = input.split_at(missing);
        self.held.extend_from_slice(piece);
        *input = rest;
        if self.held.len() < need {
            return Phase::Handshake(self);
        }
        let held = std::mem::take(&mut self.held);
        let outcome = match self.state {
            State::ClientFlags => self.client_flags(&held),
            State::Head => self.head(&held, catalog, out),
            State::Data { option, .. } => {
                self.state = State::Head;
                self.answer(option, &held, catalog, out)
            }
            State::Drain { .. } => unreachable!("handled above"),
        };
        match outcome {
            Outcome::Next => {
                self.held = held; // keeps its memory, 64 KiB at most
                self.held.clear();
                Phase::Handshake(self)
            }
            Outcome::Go(negotiated) => Phase::Transmission(*negotiated),
            Outcome::Close(why) => Phase::Closed(why),
        }
    }

    fn client_flags(&mut self, held: &[u8]) -> Outcome {
        let raw = zerocopy::byteorder::big_endian::U32::read_from_bytes(held)
            .expect("four bytes were collected")
            .get();
        let Some(flags) = ClientFlags::from_bits(raw) else {
            return Outcome::Close(Close::UnknownClientFlags(raw));
        };
        self.client = flags;
        self.state = State::Head;
        Outcome::Next
    }

    fn head(&mut self, held: &[u8], catalog: &impl Catalog, out: &mut Vec<u8>) -> Outcome {
        let head = OptionRequest::read_from_bytes(held).expect("a whole head was collected");
        let (option, length) = (head.option.get(), head.length.get());
        if head.magic != OPTION_MAGIC {
            return Outcome::Close(Close::BadMagic(head.magic.get()));
        }
        let simple = matches!(option, option::EXPORT_NAME | option::ABORT);
        if !self.client.contains(ClientFlags::FIXED_NEWSTYLE) && !simple {
            return Outcome::Close(Close::NotFixedNewstyle(option));
        }
        self.options_seen = self.options_seen.saturating_add(1);
        let more = self.exports_told.saturating_mul(OPTIONS_PER_EXPORT);
        if self.options_seen > OPTIONS_MAX.saturating_add(more) {
            return Outcome::Close(Close::TooManyOptions);
        }
        // A name too long for EXPORT_NAME has no other answer than this, so why read it.
        let name_too_long = option == option::EXPORT_NAME && length as usize > STRING_MAX;
        if length > DATA_DRAINED_MAX || name_too_long {
            return Outcome::Close(Close::OptionTooLong { option, length });
        }
        if length > DATA_PARSED_MAX {
            self.state = State::Drain { option, left: length };
        } else if length > 0 {
            self.state = State::Data { option, length };
        } else {
            return self.answer(option, &[], catalog, out);
        }
        Outcome::Next
    }

    /// Throws away the data of an option that is too long to look at, then says so.
    fn drain(mut self, option: u32, left: u32, input: &mut &[u8], out: &mut Vec<u8>) -> Phase {
        let take = input.len().min(left as usize);
        *input = input.split_at(take).1;
        let left = left.saturating_sub(u32::try_from(take).unwrap_or(left));
        if left > 0 {
            self.state = State::Drain { option, left };
            return Phase::Handshake(self);
        }
        self.state = State::Head;
        match option {
            option::ABORT => {
                reply(out, option, Rep::Ack, &[]);
                return Phase::Closed(Close::Abort);
            }
            option::SET_META_CONTEXT => self.selected = None, // lost even when it fails
            _ => {}
        }
        refuse(out, option, Rep::ErrTooBig, "more option data than this server looks at");
        Phase::Handshake(self)
    }

    /// Answers one whole option.
    fn answer(
        &mut self,
        option: u32,
        data: &[u8],
        catalog: &impl Catalog,
        out: &mut Vec<u8>,
    ) -> Outcome {
        if option == option::ABORT {
            reply(out, option, Rep::Ack, &[]);
            return Outcome::Close(Close::Abort);
        }
        if catalog.stopping() {
            if option == option::EXPORT_NAME {
                return Outcome::Close(Close::Stopping);
            }
            refuse(out, option, Rep::ErrShutdown, "the server is stopping");
            return Outcome::Next; // the client may still say ABORT
        }
        match option {
            option::EXPORT_NAME => return self.export_name(data, catalog, out),
            option::INFO | option::GO => return self.info_or_go(option, data, catalog, out),
            option::LIST_META_CONTEXT => list_contexts(data, catalog, out),
            option::SET_META_CONTEXT => self.set_contexts(data, catalog, out),
            option::LIST | option::STARTTLS | option::STRUCTURED_REPLY if !data.is_empty() => {
                refuse(out, option, Rep::ErrInvalid, "this option carries no data");
            }
            option::LIST => self.list(catalog, out),
            option::STARTTLS => {
                refuse(out, option, Rep::ErrPolicy, "TLS is not configured on this server");
            }
            option::STRUCTURED_REPLY => {
                self.structured = true; // a repeat changes nothing and is no error
                reply(out, option, Rep::Ack, &[]);
            }
            _ => refuse(out, option, Rep::ErrUnsup, "this server does not know this option"),
        }
        Outcome::Next
    }

    /// The oldest way in: no reply exists but the facts, and no refusal but closing.
    fn export_name(&mut self, data: &[u8], catalog: &impl Catalog, out: &mut Vec<u8>) -> Outcome {
        let found = text(data, "the export name").ok().and_then(|name| catalog.find(name));
        let Some(facts) = found else {
            return Outcome::Close(Close::NoSuchExport);
        };
        let head = ExportNameReply {
            size: facts.size.into(),
            flags: facts.advertised(self.structured).bits().into(),
        };
        out.extend_from_slice(head.as_bytes());
        if !self.client.contains(ClientFlags::NO_ZEROES) {
            out.extend_from_slice(&[0; EXPORT_NAME_PADDING]);
        }
        Outcome::Go(Box::new(self.negotiated(facts, false)))
    }

    fn info_or_go(
        &mut self,
        option: u32,
        data: &[u8],
        catalog: &impl Catalog,
        out: &mut Vec<u8>,
    ) -> Outcome {
        let go = match Go::parse(data) {
            Ok(go) => go,
            Err(wrong) => {
                refuse_data(out, option, wrong);
                return Outcome::Next;
            }
        };
        let Some(facts) = catalog.find(go.name) else {
            refuse(out, option, Rep::ErrUnknown, "no such export");
            return Outcome::Next;
        };
        self.tell(option, &go, &facts, out);
        reply(out, option, Rep::Ack, &[]);
        if option == option::INFO {
            return Outcome::Next;
        }
        let asked = go.asks(info::BLOCK_SIZE);
        Outcome::Go(Box::new(self.negotiated(facts, asked)))
    }

    /// The INFO replies: the same for `INFO` and `GO`, each kind at most once.
    fn tell(&self, option: u32, go: &Go<'_>, facts: &Facts, out: &mut Vec<u8>) {
        let export = InfoExport {
            kind: info::EXPORT.into(),
            size: facts.size.into(),
            flags: facts.advertised(self.structured).bits().into(),
        };
        reply(out, option, Rep::Info, &[export.as_bytes()]);
        if go.asks(info::NAME) || go.name != facts.name {
            let kind = info::NAME.to_be_bytes();
            reply(out, option, Rep::Info, &[&kind, facts.name.as_bytes()]);
        }
        if let Some(description) = &facts.description
            && go.asks(info::DESCRIPTION)
        {
            let kind = info::DESCRIPTION.to_be_bytes();
            reply(out, option, Rep::Info, &[&kind, description.as_bytes()]);
        }
        // Told without being asked: clients ignore what they did not ask for, and those that
        // forgot to ask are the ones that need it.
        let sizes = InfoBlockSize {
            kind: info::BLOCK_SIZE.into(),
            minimum: facts.block_minimum.into(),
            preferred: facts.block_preferred.into(),
            payload_max: facts.payload_max.into(),
        };
        reply(out, option, Rep::Info, &[sizes.as_bytes()]);
    }

    fn negotiated(&mut self, facts: Facts, block_size_asked: bool) -> Negotiated {
        let contexts = match self.selected.take() {
            Some(selection) if selection.export == facts.name => selection.contexts,
            _ => Vec::new(), // selected for another export: it does not count here
        };
        Negotiated { facts, structured: self.structured, contexts, block_size_asked }
    }

    fn list(&mut self, catalog: &impl Catalog, out: &mut Vec<u8>) {
        let Some(exports) = catalog.list() else {
            refuse(out, option::LIST, Rep::ErrPolicy, "this server does not list its exports");
            return;
        };
        for (name, description) in &exports {
            let len = u32::try_from(name.len()).expect("a name has at most 4096 bytes");
            let description = description.as_deref().unwrap_or_default();
            let parts = [&len.to_be_bytes(), name.as_bytes(), description.as_bytes()];
            reply(out, option::LIST, Rep::Server, &parts);
        }
        // The most that one LIST told: asking again and again earns no further options.
        let told = u32::try_from(exports.len()).unwrap_or(u32::MAX);
        self.exports_told = self.exports_told.max(told);
        reply(out, option::LIST, Rep::Ack, &[]);
    }

    fn set_contexts(&mut self, data: &[u8], catalog: &impl Catalog, out: &mut Vec<u8>) {
        let option = option::SET_META_CONTEXT;
        self.selected = None; // replaced even when the new one fails
        if !self.structured {
            refuse(out, option, Rep::ErrInvalid, "contexts need structured replies first");
            return;
        }
        let meta = match Meta::parse(data) {
            Ok(meta) => meta,
            Err(wrong) => return refuse_data(out, option, wrong),
        };
        let Some(facts) = catalog.find(meta.name) else {
            return refuse(out, option, Rep::ErrUnknown, "no such export");
        };
        let asked = |context: &Context| meta.queries.iter().any(|q| context.selected_by(q));
        let contexts: Vec<_> = Context::ALL.iter().copied().filter(asked).collect();
        for context in &contexts {
            tell_context(out, option, context.id(), *context);
        }
        reply(out, option, Rep::Ack, &[]);
        self.selected = Some(Selection { export: facts.name, contexts });
    }
}

/// `LIST_META_CONTEXT` changes nothing and needs nothing before it.
fn list_contexts(data: &[u8], catalog: &impl Catalog, out: &mut Vec<u8>) {
    let option = option::LIST_META_CONTEXT;
    let meta = match Meta::parse(data) {
        Ok(meta) => meta,
        Err(wrong) => return refuse_data(out, option, wrong),
    };
    if catalog.find(meta.name).is_none() {
        return refuse(out, option, Rep::ErrUnknown, "no such export");
    }
    for context in Context::ALL {
        let listed = meta.queries.iter().any(|query| context.listed_by(query));
        if listed || meta.queries.is_empty() {
            tell_context(out, option, 0, *context);
        }
    }
    reply(out, option, Rep::Ack, &[]);
}

fn tell_context(out: &mut Vec<u8>, option: u32, id: u32, context: Context) {
    reply(out, option, Rep::MetaContext, &[&id.to_be_bytes(), context.name().as_bytes()]);
}

/// Appends one option reply.
fn reply(out: &mut Vec<u8>, option: u32, kind: Rep, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let head = OptionReply {
        magic: OPTION_REPLY_MAGIC.into(),
        option: option.into(),
        kind: (kind as u32).into(),
        length: u32::try_from(length).expect("replies are made of strings of 4096 bytes").into(),
    };
    out.extend_from_slice(head.as_bytes());
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

/// Appends an error reply with its text for people.
fn refuse(out: &mut Vec<u8>, option: u32, kind: Rep, why: &str) {
    reply(out, option, kind, &[why.as_bytes()]);
}

fn refuse_data(out: &mut Vec<u8>, option: u32, wrong: Wrong) {
    let kind = match wrong {
        Wrong::TooManyQueries => Rep::ErrTooBig,
        _ => Rep::ErrInvalid,
    };
    refuse(out, option, kind, &wrong.to_string());
}
