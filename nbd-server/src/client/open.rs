//! From a URI to a device.

use super::device::NbdDevice;
use super::intake::Intake;
use super::link::Link;
use super::negotiate::{Refusal, Talk};
use super::uri::{NbdUri, ServerAt};
use crate::nbd::offer::Terms;
use crate::nbd::wire::TransmissionFlags;
use crate::serve::tune;
use std::io;
use std::net::ToSocketAddrs;
use std::rc::Rc;
use std::time::Duration;
use varve_block::rt::Stream;
use varve_block::sync::{Either, select};
use varve_block::{BufPool, DevId, Error, ErrorKind, Extent, Geometry, Op, Result, Rt, Sectors};

/// What formats here are made of: a larger unit cannot be their medium.
const BLOCK_MAX: Sectors = Sectors(8);

/// How an export is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NbdOptions {
    pub read_only: bool,
    /// From the first try to connect until the export is granted.
    pub open_max: Duration,
    /// A server that owes an answer may be silent for so long. A flush of a slow disk takes its time.
    pub silence_max: Duration,
}

impl Default for NbdOptions {
    fn default() -> NbdOptions {
        NbdOptions {
            read_only: false,
            open_max: Duration::from_secs(15),
            silence_max: Duration::from_secs(300),
        }
    }
}

async fn connect(rt: &Rt, server: &ServerAt) -> io::Result<Stream> {
    let (host, port) = match server {
        ServerAt::Unix(path) => return Stream::connect_unix(rt, path).await,
        ServerAt::Tcp { host, port } => (host.clone(), *port),
    };
    let found = rt.offload(move || {
        let found = (host.as_str(), port).to_socket_addrs();
        found.map(Iterator::collect::<Vec<_>>)
    });
    let mut refused = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in found.await? {
        match Stream::connect_tcp(rt, address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

impl NbdDevice {
    /// Connects to the server and agrees on the export.
    ///
    /// # Errors
    /// [`ErrorKind::ReadOnly`] when the export may only be read and more was asked for,
    /// [`ErrorKind::Unsupported`] when it cannot be used in units of 4096 bytes; otherwise
    /// [`ErrorKind::Io`]. All say what the server did.
    pub async fn open(rt: &Rt, uri: &NbdUri, options: NbdOptions) -> Result<NbdDevice> {
        let dev = DevId::new(uri.to_string());
        let stream = async {
            let stream = connect(rt, &uri.server)
                .await
                .map_err(|error| fail(ErrorKind::Io, &dev, format!("no connection: {error}")))?;
            if let Err(error) = tune(&stream) {
                tracing::debug!(%error, "socket options"); // it works all the same
            }
            Ok(stream)
        };
        let opening =
            async { NbdDevice::over(rt, stream.await?, &uri.export, &dev, options).await };
        match select(opening, rt.sleep(options.open_max)).await {
            Either::Left(opened) => opened,
            Either::Right(()) => Err(late(&dev, options.open_max)),
        }
    }

    /// The same over a connection that is there.
    ///
    /// # Errors
    /// As [`NbdDevice::open`].
    pub async fn over(
        rt: &Rt,
        stream: Stream,
        export: &str,
        dev: &DevId,
        options: NbdOptions,
    ) -> Result<NbdDevice> {
        let own = BufPool::new(0);
        let heard = Rc::default();
        let mut intake = Intake::new(rt, &stream, &own, Rc::clone(&heard)).await;
        let talk = Talk { stream: &stream, own: &own, intake: &mut intake };
        let terms = match select(talk.negotiate(export), rt.sleep(options.open_max)).await {
            Either::Left(Ok(terms)) => terms,
            Either::Left(Err(refusal)) => {
                let kind = match refusal {
                    Refusal::Tls => ErrorKind::Unsupported,
                    Refusal::Stopping => ErrorKind::Stopped,
                    _ => ErrorKind::Io,
                };
                return Err(fail(kind, dev, refusal.to_string()));
            }
            Either::Right(()) => return Err(late(dev, options.open_max)),
        };
        let (geometry, piece) = geometry(dev, &terms, options.read_only)?;
        let silence_max = options.silence_max;
        let link = Link::start(rt, stream, terms, own, intake, heard, silence_max);
        Ok(NbdDevice::new(link, geometry, piece))
    }
}

fn fail(kind: ErrorKind, dev: &DevId, why: String) -> Error {
    Error::new(kind, Op::Open, Extent::default(), dev).with(why)
}

fn late(dev: &DevId, limit: Duration) -> Error {
    let why = format!("the server did not grant the export within {} seconds", limit.as_secs());
    fail(ErrorKind::Io, dev, why)
}

/// The export as a device, and the most that one request moves.
fn geometry(dev: &DevId, terms: &Terms, read_only: bool) -> Result<(Geometry, Sectors)> {
    use TransmissionFlags as F;
    let offers = |flags| terms.flags.contains(flags);
    if !read_only && offers(F::READ_ONLY) {
        return Err(fail(ErrorKind::ReadOnly, dev, "the server exports it read-only".into()));
    }
    let sectors = |bytes: u32| Sectors(u64::from(bytes) >> varve_block::SECTOR_SHIFT);
    let block = sectors(terms.sizes.minimum).max(Sectors(1));
    let longest = sectors(terms.sizes.payload_max).min(Geometry::MAX_REQUEST);
    let piece = Sectors(longest.0 - longest.0 % block.0);
    if block > BLOCK_MAX || piece.0 == 0 {
        let (minimum, most) = (terms.sizes.minimum, terms.sizes.payload_max);
        let why = format!("the server moves at least {minimum} and at most {most} bytes at a time");
        return Err(fail(ErrorKind::Unsupported, dev, why));
    }
    let whole = terms.size >> varve_block::SECTOR_SHIFT;
    let len = Sectors(whole - whole % block.0);
    if len.bytes() != terms.size {
        let ignored = terms.size - len.bytes();
        tracing::warn!(%dev, ignored, "the end of the export is no whole block and is not used");
    }
    if !read_only && !offers(F::SEND_FLUSH) {
        tracing::warn!(%dev, "the server knows no flush: what is written may not survive its end");
    }
    let geometry = Geometry {
        block,
        preferred: sectors(terms.sizes.preferred).clamp(block, Geometry::MAX_REQUEST),
        read_only,
        volatile_cache: offers(F::SEND_FLUSH),
        can_discard: !read_only && offers(F::SEND_TRIM),
        fast_zero: !read_only && offers(F::SEND_WRITE_ZEROES | F::SEND_FAST_ZERO),
        cheap_fua: offers(F::SEND_FUA),
        rotational: offers(F::ROTATIONAL),
        ..Geometry::new(dev.clone(), len)
    };
    Ok((geometry, piece))
}
