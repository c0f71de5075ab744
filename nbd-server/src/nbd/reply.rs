//! Replies of the transmission phase, as bytes.
//!
//! Only heads are made here. The data of a `READ` stays in the buffer it was read into, and leaves
//! behind its head in one send.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use super::facts::Context;
use super::wire::*;
use zerocopy::IntoBytes;

/// Bytes of head before the data of one chunk: chunk head and offset.
pub const CHUNK_OVERHEAD: usize = size_of::<ChunkHead>().saturating_add(size_of::<u64>());

/// The reply style of one connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Style {
    Simple,
    Structured,
}

/// Is this the last chunk of its reply?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Last {
    No,
    Yes,
}

impl Style {
    pub fn of(structured: bool) -> Style {
        if structured { Style::Structured } else { Style::Simple }
    }

    /// Success of anything that returns nothing. Sixteen bytes in both styles.
    pub fn done(self, out: &mut Vec<u8>, cookie: u64) {
        simple(out, cookie, 0);
    }

    /// Success of a `READ` of nothing.
    pub fn done_empty_read(self, out: &mut Vec<u8>, cookie: u64) {
        match self {
            Style::Simple => simple(out, cookie, 0),
            Style::Structured => none(out, cookie),
        }
    }

    /// Failure of the whole request. `text` is cut to what the protocol carries.
    pub fn failed(self, out: &mut Vec<u8>, cookie: u64, error: Errno, text: &str) {
        match self {
            Style::Simple => simple(out, cookie, error as u32),
            Style::Structured => error_chunk(out, cookie, error, text),
        }
    }
}

/// A simple reply; after a successful `READ` the data follows.
pub fn simple(out: &mut Vec<u8>, cookie: u64, error: u32) {
    let head = SimpleReply {
        magic: SIMPLE_REPLY_MAGIC.into(),
        error: error.into(),
        cookie: cookie.into(),
    };
    out.extend_from_slice(head.as_bytes());
}

/// Head of `length` bytes of data, which follow it.
pub fn data(out: &mut Vec<u8>, cookie: u64, offset: u64, length: u32, last: Last) {
    debug_assert!(length > 0, "a content chunk has content");
    let body = length.checked_add(8).expect("a chunk is far shorter than 4 GiB");
    chunk(out, cookie, Chunk::OffsetData, body, last);
    out.extend_from_slice(&offset.to_be_bytes());
}

/// `length` bytes that read as zeroes.
pub fn hole(out: &mut Vec<u8>, cookie: u64, offset: u64, length: u32, last: Last) {
    debug_assert!(length > 0, "a content chunk has content");
    let body = HoleBody { offset: offset.into(), size: length.into() };
    chunk(out, cookie, Chunk::OffsetHole, short(body.as_bytes().len()), last);
    out.extend_from_slice(body.as_bytes());
}

/// The end of a reply that has said everything.
pub fn none(out: &mut Vec<u8>, cookie: u64) {
    chunk(out, cookie, Chunk::None, 0, Last::Yes);
}

/// A read failed at `offset`; what was sent before it is good. The reply goes on to [`none`].
pub fn error_at(out: &mut Vec<u8>, cookie: u64, error: Errno, text: &str, offset: u64) {
    let text = cut(text);
    let body = ErrorBody { error: (error as u32).into(), text_length: tiny(text.len()).into() };
    let length = size_of::<ErrorBody>().saturating_add(text.len()).saturating_add(8);
    chunk(out, cookie, Chunk::ErrorOffset, short(length), Last::No);
    out.extend_from_slice(body.as_bytes());
    out.extend_from_slice(text.as_bytes());
    out.extend_from_slice(&offset.to_be_bytes());
}

/// The extents of one context.
pub fn status(
    out: &mut Vec<u8>,
    cookie: u64,
    context: Context,
    extents: &[StatusExtent],
    last: Last,
) {
    debug_assert!(!extents.is_empty(), "a status chunk has an extent");
    let length = extents.as_bytes().len().saturating_add(4);
    chunk(out, cookie, Chunk::BlockStatus, short(length), last);
    out.extend_from_slice(&context.id().to_be_bytes());
    out.extend_from_slice(extents.as_bytes());
}

fn error_chunk(out: &mut Vec<u8>, cookie: u64, error: Errno, text: &str) {
    let text = cut(text);
    let body = ErrorBody { error: (error as u32).into(), text_length: tiny(text.len()).into() };
    let length = size_of::<ErrorBody>().saturating_add(text.len());
    chunk(out, cookie, Chunk::Error, short(length), Last::Yes);
    out.extend_from_slice(body.as_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn chunk(out: &mut Vec<u8>, cookie: u64, kind: Chunk, length: u32, last: Last) {
    let head = ChunkHead {
        magic: CHUNK_MAGIC.into(),
        flags: if last == Last::Yes { CHUNK_DONE } else { 0 }.into(),
        kind: (kind as u16).into(),
        cookie: cookie.into(),
        length: length.into(),
    };
    out.extend_from_slice(head.as_bytes());
}

/// At most 4096 bytes, cut between characters.
fn cut(text: &str) -> &str {
    let len = text.floor_char_boundary(STRING_MAX);
    text.split_at(len).0
}

fn short(len: usize) -> u32 {
    u32::try_from(len).expect("heads, texts and extent lists are short")
}

fn tiny(len: usize) -> u16 {
    u16::try_from(len).expect("texts are cut to 4096 bytes")
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Frame, frame};
    use super::*;
    use proptest::prelude::*;

    fn read(bytes: &[u8]) -> Vec<Frame> {
        let mut rest = bytes;
        let mut all = Vec::new();
        while !rest.is_empty() {
            all.push(frame(&mut rest, |_| 0));
        }
        all
    }

    #[test]
    fn success_is_sixteen_bytes_in_both_styles() {
        for style in [Style::Simple, Style::Structured] {
            let mut out = Vec::new();
            style.done(&mut out, u64::MAX);
            assert_eq!(out.len(), 16);
            let cookie = u64::MAX;
            assert_eq!(read(&out), [Frame::Simple { error: 0, cookie, data: Vec::new() }]);
        }
    }

    #[test]
    fn an_empty_structured_read_is_a_lone_none_chunk() {
        let mut out = Vec::new();
        Style::Structured.done_empty_read(&mut out, 3);
        assert_eq!(read(&out), [Frame::None { cookie: 3 }]);
    }

    #[test]
    fn a_failed_read_tells_the_good_part_the_place_and_the_end() {
        let mut out = Vec::new();
        data(&mut out, 9, 4096, 3, Last::No);
        out.extend_from_slice(b"abc");
        error_at(&mut out, 9, Errno::Io, "sum of dev1 sector 8 is wrong", 4099);
        none(&mut out, 9);
        let text = "sum of dev1 sector 8 is wrong".to_owned();
        let frames = [
            Frame::Data { cookie: 9, offset: 4096, data: b"abc".to_vec(), done: false },
            Frame::ErrorAt { cookie: 9, error: 5, text, offset: 4099 },
            Frame::None { cookie: 9 },
        ];
        assert_eq!(read(&out), frames);
    }

    #[test]
    fn holes_and_extents_are_read_back() {
        let mut out = Vec::new();
        hole(&mut out, 1, 512, 4096, Last::No);
        let extents = [
            StatusExtent { length: 512.into(), flags: 3.into() },
            StatusExtent { length: 1024.into(), flags: 0.into() },
        ];
        status(&mut out, 2, Context::BaseAllocation, &extents, Last::Yes);
        let frames = [
            Frame::Hole { cookie: 1, offset: 512, length: 4096, done: false },
            Frame::Status { cookie: 2, id: 1, extents: vec![(512, 3), (1024, 0)], done: true },
        ];
        assert_eq!(read(&out), frames);
    }

    proptest! {
        #[test]
        fn texts_of_any_length_become_legal_errors(text in ".{0,3000}", cookie: u64) {
            let mut out = Vec::new();
            Style::Structured.failed(&mut out, cookie, Errno::Io, &text);
            error_at(&mut out, cookie, Errno::Io, &text, 7);
            Style::Simple.failed(&mut out, cookie, Errno::Io, &text);
            let frames = read(&out);
            prop_assert_eq!(frames.len(), 3);
            let Frame::Error { text: told, .. } = &frames[0] else { panic!("{:?}", frames[0]) };
            prop_assert!(text.starts_with(told.as_str()));
            prop_assert!(told.len() + 3 >= text.len().min(STRING_MAX));
        }
    }
}
