//! The client against servers of paper, line by line, and against our own.

mod lies;
mod orderly;
mod ours;

use super::*;
use crate::nbd::testing::string;
use crate::nbd::wire::*;
use std::rc::Rc;
use varve_block::rt::Stream;
use varve_block::{
    BlockDevice, BufPool, DevId, Durability, Error, ErrorKind, Extent, IoBuf, Rt, Sector, Sectors,
    Sim, Zero, chain,
};
use zerocopy::IntoBytes;

const SIZE: u64 = 1 << 20;

/// A world that ends: a connection has a clock, so one that hangs would tick for ever.
fn world(seed: u64) -> Sim {
    Sim::new(seed).max_steps(5_000_000)
}

/// A server's end of a connection, in the hands of a test.
struct Peer {
    stream: Stream,
    pool: BufPool,
}

/// A connection: the server's end, and the client's.
fn pair() -> (Peer, Stream) {
    let (near, far) = Stream::pair(1 << 20);
    (Peer { stream: near, pool: BufPool::new(0) }, far)
}

async fn open(rt: &Rt, stream: Stream) -> varve_block::Result<NbdDevice> {
    open_with(rt, stream, NbdOptions::default()).await
}

async fn open_with(rt: &Rt, stream: Stream, options: NbdOptions) -> varve_block::Result<NbdDevice> {
    NbdDevice::over(rt, stream, "disk", &DevId::new("nbd://test/disk"), options).await
}

impl Peer {
    async fn say(&self, bytes: &[u8]) {
        for piece in bytes.chunks(1 << 20) {
            let mut buf = self.pool.take_bytes(piece.len()).await;
            buf.copy_from_slice(piece);
            // The client may have heard enough.
            let _ = self.stream.send(&[buf.freeze()]).await;
        }
    }

    async fn hear(&self, n: usize) -> Vec<u8> {
        let buf = self.pool.take_bytes(n).await;
        self.stream.recv_exact(buf, 0..n).await.expect("the client goes on").to_vec()
    }

    /// The next request, and its payload if it is a write: `(command, flags, cookie, offset, length)`.
    async fn request(&self) -> (u16, u16, u64, u64, u32) {
        let raw: CompactRequest =
            zerocopy::FromBytes::read_from_bytes(&self.hear(28).await).expect("28 bytes");
        assert_eq!(raw.magic.get(), REQUEST_MAGIC);
        let (kind, length) = (raw.kind.get(), raw.length.get());
        if kind == command::WRITE {
            self.hear(length as usize).await;
        }
        (kind, raw.flags.get(), raw.cookie.get(), raw.offset.get(), length)
    }

    /// A server that agrees to what its `offer` says, and keeps it.
    async fn agree(&self, offer: Offer) {
        self.say(&greeting(3)).await;
        self.hear(4).await;
        loop {
            let head = self.hear(16).await;
            let option = u32::from_be_bytes(head[8..12].try_into().unwrap());
            let length = u32::from_be_bytes(head[12..].try_into().unwrap());
            self.hear(length as usize).await;
            let yes = reply(option, Rep::Ack as u32, &[]);
            let no = reply(option, Rep::ErrUnsup as u32, b"no");
            match option {
                option::STRUCTURED_REPLY => {
                    self.say(if offer.structured { &yes } else { &no }).await
                }
                option::SET_META_CONTEXT => {
                    let context = [&7_u32.to_be_bytes(), &b"base:allocation"[..]].concat();
                    self.say(&reply(option, Rep::MetaContext as u32, &context)).await;
                    self.say(&yes).await;
                }
                option::GO if offer.by_name => self.say(&no).await,
                option::GO => {
                    self.say(&reply(option, Rep::Info as u32, &export(offer.size, offer.flags)))
                        .await;
                    if let Some(sizes) = offer.sizes {
                        self.say(&reply(option, Rep::Info as u32, &block_size(sizes))).await;
                    }
                    self.say(&yes).await;
                    return;
                }
                option::EXPORT_NAME => {
                    let facts = export(offer.size, offer.flags);
                    self.say(&facts[2..]).await;
                    return;
                }
                other => panic!("option {other}"),
            }
        }
    }
}

/// What a server agrees to.
#[derive(Clone, Copy)]
struct Offer {
    structured: bool,
    by_name: bool,
    size: u64,
    flags: TransmissionFlags,
    sizes: Option<[u32; 3]>,
}

fn offer(structured: bool) -> Offer {
    use TransmissionFlags as F;
    let flags = F::HAS_FLAGS | F::SEND_FLUSH | F::SEND_FUA | F::SEND_TRIM | F::SEND_WRITE_ZEROES;
    Offer { structured, by_name: false, size: SIZE, flags, sizes: None }
}

fn greeting(flags: u16) -> Vec<u8> {
    let raw = Greeting {
        magic: GREETING_MAGIC.into(),
        option_magic: OPTION_MAGIC.into(),
        flags: flags.into(),
    };
    raw.as_bytes().to_vec()
}

fn reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let raw = OptionReply {
        magic: OPTION_REPLY_MAGIC.into(),
        option: option.into(),
        kind: kind.into(),
        length: u32::try_from(data.len()).unwrap().into(),
    };
    [raw.as_bytes(), data].concat()
}

fn export(size: u64, flags: TransmissionFlags) -> Vec<u8> {
    let raw =
        InfoExport { kind: info::EXPORT.into(), size: size.into(), flags: flags.bits().into() };
    raw.as_bytes().to_vec()
}

fn block_size([minimum, preferred, payload_max]: [u32; 3]) -> Vec<u8> {
    let raw = InfoBlockSize {
        kind: info::BLOCK_SIZE.into(),
        minimum: minimum.into(),
        preferred: preferred.into(),
        payload_max: payload_max.into(),
    };
    raw.as_bytes().to_vec()
}

fn simple(error: u32, cookie: u64) -> Vec<u8> {
    let raw = SimpleReply {
        magic: SIMPLE_REPLY_MAGIC.into(),
        error: error.into(),
        cookie: cookie.into(),
    };
    raw.as_bytes().to_vec()
}

fn chunk(kind: u16, flags: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    let raw = ChunkHead {
        magic: CHUNK_MAGIC.into(),
        flags: flags.into(),
        kind: kind.into(),
        cookie: cookie.into(),
        length: u32::try_from(payload.len()).unwrap().into(),
    };
    [raw.as_bytes(), payload].concat()
}

fn data(flags: u16, cookie: u64, offset: u64, bytes: &[u8]) -> Vec<u8> {
    chunk(1, flags, cookie, &[&offset.to_be_bytes(), bytes].concat())
}

fn hole(flags: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let body = HoleBody { offset: offset.into(), size: length.into() };
    chunk(2, flags, cookie, body.as_bytes())
}

fn error(kind: u16, flags: u16, cookie: u64, errno: u32, text: &str, behind: &[u8]) -> Vec<u8> {
    let body =
        ErrorBody { error: errno.into(), text_length: u16::try_from(text.len()).unwrap().into() };
    chunk(kind, flags, cookie, &[body.as_bytes(), text.as_bytes(), behind].concat())
}

fn status(flags: u16, cookie: u64, id: u32, extents: &[(u32, u32)]) -> Vec<u8> {
    let mut payload = id.to_be_bytes().to_vec();
    for (length, flags) in extents {
        payload.extend(length.to_be_bytes());
        payload.extend(flags.to_be_bytes());
    }
    chunk(5, flags, cookie, &payload)
}

async fn buf(sectors: u64) -> IoBuf {
    let mut buf = BufPool::new(0).take(Sectors(sectors)).await;
    buf.fill(0xEE);
    buf
}

fn extent(start: u64, len: u64) -> Extent {
    Extent::new(Sector(start), Sectors(len))
}

fn told(error: &Error) -> String {
    chain(error)
}
