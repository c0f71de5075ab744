//! The answer to one request, from the client's side: what may come, and what has come so far.
//!
//! A reply comes in chunks, in any order. Before the bytes of a chunk are taken off the stream its
//! head is judged here: does it answer this request, is it inside, was it there before? So a byte
//! of a read is written once, and a reply that ends has filled all of it, or says why not.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use super::breach::Breach;
use super::wire::*;
use std::ops::Range;
use zerocopy::FromBytes;

/// Separate stretches of one read that are remembered: a request of 1 MiB in pieces of 512 bytes
/// that all come out of order. Neighbours are merged.
const STRETCHES_MAX: usize = 2048;
/// Error chunks of one reply.
const ERRORS_MAX: u32 = 64;
/// Extents of one context, as the protocol bounds them.
const EXTENTS_MAX: u32 = 1 << 20;
/// What an error chunk has beside its text.
const ERROR_FIXED: u32 = 14;
/// Longest error chunk: its text is a string.
const ERROR_MAX: u32 = 4096 + ERROR_FIXED;
const _: () = assert!(STRING_MAX == 4096);

/// What was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    /// Bytes, by chunks or by a simple reply.
    Read { structured: bool },
    /// The extents of this metadata context, at most so many of them.
    Status { context: u32, limit: usize },
    /// That it is done.
    Plain,
}

/// The server did not do it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    pub errno: u32,
    /// What it says to people, if anything; without control characters.
    pub text: String,
}

/// What follows a chunk's head on the stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Body {
    Nothing,
    /// The offset of data, then so many bytes: see [`Claim::data`].
    Data(u32),
    /// A [`HoleBody`]: see [`Claim::hole`].
    Hole,
    /// An error of so many bytes: see [`Claim::error`].
    Error(u32),
    /// A context, then so many extents: see [`Claim::status`] and [`Claim::extent`].
    Status(u32),
}

/// One request that waits for its answer.
#[derive(Debug)]
pub struct Claim {
    asked: Asked,
    /// Bytes of the export that the request is about.
    offset: u64,
    length: u32,
    /// Where bytes have come: sorted, apart from each other, relative to `offset`.
    come: Vec<Range<u32>>,
    extents: Vec<StatusExtent>,
    /// Bytes that the extents have gone through.
    described: u64,
    listed: bool,
    errors: u32,
    refused: Option<Refused>,
}

impl Claim {
    pub fn new(asked: Asked, offset: u64, length: u32) -> Claim {
        Claim {
            asked,
            offset,
            length,
            come: Vec::new(),
            extents: Vec::new(),
            described: 0,
            listed: false,
            errors: 0,
            refused: None,
        }
    }

    /// A simple reply: how many bytes of data follow it.
    pub fn simple(&mut self, errno: u32) -> Result<usize, Breach> {
        if errno != 0 {
            self.refused = Some(Refused { errno, text: String::new() });
            return Ok(0);
        }
        match self.asked {
            Asked::Plain => Ok(0),
            Asked::Read { structured: false } => Ok(self.length as usize),
            Asked::Read { structured: true } => Err(Breach::NotSimple),
            Asked::Status { .. } => Err(Breach::StatusLists),
        }
    }

    /// The head of a chunk: what follows.
    pub fn chunk(&self, kind: u16, length: u32, done: bool) -> Result<Body, Breach> {
        let wrong = || Breach::ChunkLength { kind, length };
        if kind & CHUNK_ERROR != 0 {
            let least = if kind == Chunk::ErrorOffset as u16 { ERROR_FIXED } else { 6 };
            let fits = length >= least && length <= ERROR_MAX;
            return if fits { Ok(Body::Error(length)) } else { Err(wrong()) };
        }
        match (kind, self.asked) {
            (k, _) if k == Chunk::None as u16 => {
                if length == 0 && done {
                    Ok(Body::Nothing)
                } else {
                    Err(wrong())
                }
            }
            (k, Asked::Read { .. }) if k == Chunk::OffsetData as u16 => {
                let bytes = length.checked_sub(8).filter(|n| *n > 0);
                bytes.map(Body::Data).ok_or_else(wrong)
            }
            (k, Asked::Read { .. }) if k == Chunk::OffsetHole as u16 => {
                if length as usize == size_of::<HoleBody>() { Ok(Body::Hole) } else { Err(wrong()) }
            }
            (k, Asked::Status { .. }) if k == Chunk::BlockStatus as u16 => {
                let list = length.checked_sub(4).filter(|n| *n > 0 && n.is_multiple_of(8));
                let count = list.and_then(|n| n.checked_div(8)).filter(|n| *n <= EXTENTS_MAX);
                count.map(Body::Status).ok_or_else(wrong)
            }
            _ => Err(Breach::ChunkKind { kind, what: self.what() }),
        }
    }

    fn what(&self) -> &'static str {
        match self.asked {
            Asked::Read { .. } => "a read",
            Asked::Status { .. } => "a question about block status",
            Asked::Plain => "a request without an answer of its own",
        }
    }

    /// Data for `[offset, offset + length)` of the export: its place in the request's buffer.
    pub fn data(&mut self, offset: u64, length: u32) -> Result<Range<usize>, Breach> {
        let asked = Breach::Outside {
            offset,
            length: length.into(),
            asked: self.offset,
            asked_length: self.length,
        };
        let start = offset.checked_sub(self.offset).and_then(|n| u32::try_from(n).ok());
        let end = start.and_then(|start| start.checked_add(length));
        let (Some(start), Some(end)) = (start, end.filter(|end| *end <= self.length)) else {
            return Err(asked);
        };
        self.come_at(start..end)?;
        Ok(start as usize..end as usize)
    }

    /// Zeroes: their place in the request's buffer.
    pub fn hole(&mut self, body: [u8; size_of::<HoleBody>()]) -> Result<Range<usize>, Breach> {
        let raw: &HoleBody = zerocopy::transmute_ref!(&body);
        let (offset, length) = (raw.offset.get(), raw.size.get());
        if length == 0 {
            return Err(Breach::ChunkLength { kind: Chunk::OffsetHole as u16, length });
        }
        self.data(offset, length)
    }

    fn come_at(&mut self, mut new: Range<u32>) -> Result<(), Breach> {
        let at = self.come.partition_point(|old| old.end <= new.start);
        let here = |byte: u32| self.offset.saturating_add(byte.into());
        if let Some(next) = self.come.get(at).filter(|next| next.start < new.end) {
            return Err(Breach::Overlap(here(next.start.max(new.start))));
        }
        if let Some(next) = self.come.get(at).filter(|next| next.start == new.end) {
            new.end = next.end;
            self.come.remove(at);
        }
        let full = self.come.len() >= STRETCHES_MAX;
        let before = at.checked_sub(1).and_then(|n| self.come.get_mut(n));
        match before.filter(|old| old.end == new.start) {
            Some(old) => old.end = new.end,
            None if full => return Err(Breach::Pieces),
            None => self.come.insert(at, new),
        }
        Ok(())
    }

    /// The whole payload of an error chunk. The first error of a reply is the one that is told.
    pub fn error(&mut self, kind: u16, payload: &[u8]) -> Result<(), Breach> {
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let wrong = || Breach::ChunkLength { kind, length };
        let (raw, rest) = ErrorBody::read_from_prefix(payload).map_err(|_| wrong())?;
        let text = rest.get(..raw.text_length.get().into()).ok_or_else(wrong)?;
        let behind = rest.len().saturating_sub(text.len());
        match kind {
            k if k == Chunk::Error as u16 && behind != 0 => return Err(wrong()),
            k if k == Chunk::ErrorOffset as u16 && behind != 8 => return Err(wrong()),
            _ => {}
        }
        if raw.error.get() == 0 {
            return Err(Breach::NoError);
        }
        self.errors = self.errors.saturating_add(1);
        if self.errors > ERRORS_MAX {
            return Err(Breach::Pieces);
        }
        let told = Refused { errno: raw.error.get(), text: for_people(text) };
        self.refused.get_or_insert(told);
        Ok(())
    }

    /// The context of a list of extents.
    pub fn status(&mut self, id: u32) -> Result<(), Breach> {
        match self.asked {
            Asked::Status { context, .. } if context != id => Err(Breach::Context(id)),
            _ if std::mem::replace(&mut self.listed, true) => Err(Breach::StatusLists),
            _ => Ok(()),
        }
    }

    /// The next extent of the list.
    pub fn extent(&mut self, raw: StatusExtent) -> Result<(), Breach> {
        if raw.length.get() == 0 || self.described >= self.length.into() {
            return Err(Breach::StatusExtent);
        }
        self.described = self.described.saturating_add(raw.length.get().into());
        if let Asked::Status { limit, .. } = self.asked
            && self.extents.len() < limit
        {
            self.extents.push(raw);
        }
        Ok(())
    }

    /// The reply has ended: the extents, or what the server says instead.
    pub fn end(self) -> Result<Result<Vec<StatusExtent>, Refused>, Breach> {
        if let Some(refused) = self.refused {
            return Ok(Err(refused));
        }
        match self.asked {
            Asked::Read { structured: true } => {
                let first = self.come.first().filter(|first| first.start == 0);
                let end = first.map_or(0, |first| first.end);
                if end != self.length {
                    return Err(Breach::Missing(self.offset.saturating_add(end.into())));
                }
            }
            Asked::Status { .. } if !self.listed => return Err(Breach::StatusLists),
            _ => {}
        }
        Ok(Ok(self.extents))
    }
}

/// Text of a peer, fit for one line of a terminal.
pub fn for_people(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let shown = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
    shown.take(STRING_MAX).collect()
}
