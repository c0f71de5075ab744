//! The other side of the wire, for tests: a catalog, requests as a client writes them, and replies
//! as a strict client reads them.

use super::facts::{Catalog, Facts};
use super::handshake::{Handshake, Negotiated, Phase};
use super::wire::*;
use zerocopy::{FromBytes, IntoBytes};

/// Two exports, `disk` (also the default export, also called `alias`) and `other`.
pub(crate) struct Shelf {
    pub(crate) exports: Vec<Facts>,
    pub(crate) listing: bool,
    pub(crate) stopping: bool,
}

pub(crate) fn facts(name: &str) -> Facts {
    use TransmissionFlags as F;
    Facts {
        name: name.to_owned(),
        description: Some(format!("about {name}")),
        size: 1 << 30,
        flags: F::SEND_FLUSH
            | F::SEND_FUA
            | F::SEND_TRIM
            | F::SEND_WRITE_ZEROES
            | F::CAN_MULTI_CONN
            | F::SEND_CACHE
            | F::SEND_FAST_ZERO,
        block_minimum: 512,
        block_preferred: 4096,
        payload_max: 64 << 20,
        strict_block_size: false,
    }
}

impl Shelf {
    pub(crate) fn new() -> Shelf {
        let exports = vec![facts("disk"), facts("other")];
        Shelf { exports, listing: true, stopping: false }
    }
}

impl Catalog for Shelf {
    fn find(&self, name: &str) -> Option<Facts> {
        let name = if name.is_empty() || name == "alias" { "disk" } else { name };
        self.exports.iter().find(|facts| facts.name == name).cloned()
    }
    fn list(&self) -> Option<Vec<(String, Option<String>)>> {
        let told = |f: &Facts| (f.name.clone(), f.description.clone());
        self.listing.then(|| self.exports.iter().map(told).collect())
    }
    fn stopping(&self) -> bool {
        self.stopping
    }
}

pub(crate) fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap();
    let head =
        OptionRequest { magic: OPTION_MAGIC.into(), option: option.into(), length: length.into() };
    [head.as_bytes(), data].concat()
}

pub(crate) fn string(text: &[u8]) -> Vec<u8> {
    [&u32::try_from(text.len()).unwrap().to_be_bytes(), text].concat()
}

pub(crate) fn go_data(name: &str, asked: &[u16]) -> Vec<u8> {
    let mut data = string(name.as_bytes());
    data.extend(u16::try_from(asked.len()).unwrap().to_be_bytes());
    asked.iter().for_each(|a| data.extend(a.to_be_bytes()));
    data
}

pub(crate) fn meta_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = string(name.as_bytes());
    data.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
    queries.iter().for_each(|q| data.extend(string(q.as_bytes())));
    data
}

/// One option reply, taken apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Answer {
    pub(crate) option: u32,
    pub(crate) kind: u32,
    pub(crate) data: Vec<u8>,
}

/// All of `bytes` as option replies. Error replies must carry a text of legal length.
pub(crate) fn answers(mut bytes: &[u8]) -> Vec<Answer> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let (head, rest) = OptionReply::read_from_prefix(bytes).expect("a whole reply head");
        assert_eq!(head.magic.get(), OPTION_REPLY_MAGIC);
        let (data, rest) = rest.split_at(head.length.get() as usize);
        bytes = rest;
        if head.kind.get() >> 31 == 1 {
            assert!(!data.is_empty() && data.len() <= STRING_MAX, "an error explains itself");
            str::from_utf8(data).expect("error texts are UTF-8");
        }
        all.push(Answer { option: head.option.get(), kind: head.kind.get(), data: data.to_vec() });
    }
    all
}

/// How a handshake ended, or `Open` when it waits for more.
#[derive(Debug)]
pub(crate) enum End {
    Open,
    Agreed(Negotiated),
    Closed(super::handshake::Close),
}

/// Feeds a fresh handshake with `bytes` in pieces of `piece` bytes. Returns what the server wrote
/// behind its greeting, how it ended, and the bytes it did not take.
pub(crate) fn handshake(bytes: &[u8], piece: usize, shelf: &Shelf) -> (Vec<u8>, End, Vec<u8>) {
    let mut out = Vec::new();
    let mut machine = Handshake::start(&mut out);
    assert_eq!(out.len(), 18);
    let mut given = 0;
    while given < bytes.len() {
        let end = bytes.len().min(given + piece);
        let mut input = &bytes[given..end];
        while !input.is_empty() {
            match machine.step(&mut input, shelf, &mut out) {
                Phase::Handshake(next) => machine = next,
                Phase::Transmission(agreed) => {
                    let left = [input, &bytes[end..]].concat();
                    return (out.split_off(18), End::Agreed(agreed), left);
                }
                Phase::Closed(why) => return (out.split_off(18), End::Closed(why), Vec::new()),
            }
        }
        given = end;
    }
    (out.split_off(18), End::Open, Vec::new())
}

/// A negotiation as an ordinary client makes it.
pub(crate) fn negotiate(shelf: &Shelf, name: &str, structured: bool) -> Negotiated {
    let mut bytes = ClientFlags::all().bits().to_be_bytes().to_vec();
    if structured {
        bytes.extend(option(option::STRUCTURED_REPLY, &[]));
        bytes.extend(option(option::SET_META_CONTEXT, &meta_data(name, &["base:allocation"])));
    }
    bytes.extend(option(option::GO, &go_data(name, &[info::BLOCK_SIZE])));
    match handshake(&bytes, usize::MAX >> 1, shelf) {
        (_, End::Agreed(agreed), left) if left.is_empty() => agreed,
        other => panic!("no agreement: {other:?}"),
    }
}

pub(crate) fn request(flags: u16, kind: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let raw = CompactRequest {
        magic: REQUEST_MAGIC.into(),
        flags: flags.into(),
        kind: kind.into(),
        cookie: cookie.into(),
        offset: offset.into(),
        length: length.into(),
    };
    raw.as_bytes().to_vec()
}

/// One reply frame of the transmission phase.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Frame {
    Simple { error: u32, cookie: u64, data: Vec<u8> },
    None { cookie: u64 },
    Data { cookie: u64, offset: u64, data: Vec<u8>, done: bool },
    Hole { cookie: u64, offset: u64, length: u32, done: bool },
    Status { cookie: u64, id: u32, extents: Vec<(u32, u32)>, done: bool },
    Error { cookie: u64, error: u32, text: String },
    ErrorAt { cookie: u64, error: u32, text: String, offset: u64 },
}

const ERRNOS: [u32; 8] = [1, 5, 12, 22, 28, 75, 95, 108];

/// Takes one frame off the front; `simple_data` is what a successful simple reply to this cookie
/// carries. Whatever breaks a rule of the protocol panics.
pub(crate) fn frame(bytes: &mut &[u8], simple_data: impl Fn(u64) -> usize) -> Frame {
    let take = |bytes: &mut &[u8], n: usize| {
        let (head, rest) = bytes.split_at(n);
        *bytes = rest;
        head.to_vec()
    };
    if bytes.starts_with(&SIMPLE_REPLY_MAGIC.to_be_bytes()) {
        let (head, rest) = SimpleReply::read_from_prefix(bytes).expect("a whole simple reply");
        *bytes = rest;
        let (error, cookie) = (head.error.get(), head.cookie.get());
        assert!(error == 0 || ERRNOS.contains(&error), "errno {error}");
        let data = take(bytes, if error == 0 { simple_data(cookie) } else { 0 });
        return Frame::Simple { error, cookie, data };
    }
    let (head, rest) = ChunkHead::read_from_prefix(bytes).expect("a whole chunk head");
    *bytes = rest;
    assert_eq!(head.magic.get(), CHUNK_MAGIC);
    assert!(head.flags.get() <= CHUNK_DONE);
    let (cookie, done) = (head.cookie.get(), head.flags.get() == CHUNK_DONE);
    let body = take(bytes, head.length.get() as usize);
    let u32_at = |at: usize| u32::from_be_bytes(body[at..at + 4].try_into().unwrap());
    let u64_at = |at: usize| u64::from_be_bytes(body[at..at + 8].try_into().unwrap());
    let text = |len: usize| {
        assert!(len <= STRING_MAX);
        String::from_utf8(body[6..6 + len].to_vec()).expect("error texts are UTF-8")
    };
    match head.kind.get() {
        0 => {
            assert!(body.is_empty() && done);
            Frame::None { cookie }
        }
        1 => {
            assert!(body.len() > 8, "a content chunk has content");
            Frame::Data { cookie, offset: u64_at(0), data: body[8..].to_vec(), done }
        }
        2 => {
            assert!(body.len() == 12 && u32_at(8) > 0);
            Frame::Hole { cookie, offset: u64_at(0), length: u32_at(8), done }
        }
        5 => {
            assert!(body.len() >= 12 && body.len() % 8 == 4);
            let extents: Vec<_> =
                (4..body.len()).step_by(8).map(|at| (u32_at(at), u32_at(at + 4))).collect();
            assert!(extents.iter().all(|e| e.0 > 0) && extents.len() <= 8192);
            Frame::Status { cookie, id: u32_at(0), extents, done }
        }
        0x8001 => {
            let len = usize::from(u16::from_be_bytes(body[4..6].try_into().unwrap()));
            assert!(ERRNOS.contains(&u32_at(0)) && body.len() == 6 + len && done);
            Frame::Error { cookie, error: u32_at(0), text: text(len) }
        }
        0x8002 => {
            let len = usize::from(u16::from_be_bytes(body[4..6].try_into().unwrap()));
            assert!(ERRNOS.contains(&u32_at(0)) && body.len() == 14 + len && !done);
            Frame::ErrorAt { cookie, error: u32_at(0), text: text(len), offset: u64_at(6 + len) }
        }
        kind => panic!("chunk type {kind}"),
    }
}
