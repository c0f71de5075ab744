//! Where the cipher runs: on the lane, or for large requests spread over a few threads.
//!
//! A request is encrypted or decrypted whole before anybody is told: its pieces come together again
//! before a write goes down or a read is answered. So the order of requests, and what a flush covers,
//! do not depend on where a piece was computed.
//!
//! The threads are bounded, and nothing waits for one to become free: a piece that finds all of them
//! busy is done on the lane. Requests up to [`ALONE`] bytes never leave it, as a trip to another thread
//! costs about what the cipher does. A piece belongs to whoever works on it, buffer and all.

use std::future::{poll_fn, ready};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use varve_block::sync::LocalSemaphore;
use varve_block::{IoBuf, IoView, Rt, Sector, Sectors};

use super::{Hooks, TURN_BYTES};
use crate::volume::Mapping;
use crate::xts::{Engine, Xts};

/// Requests of up to this many bytes stay on their lane.
const ALONE: usize = 128 << 10;
/// Least bytes of a piece that is given to a thread.
const PIECE_MIN: usize = 64 << 10;

/// Threads that a layer may use at a time, per direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Workers {
    /// As many as there are further cores, for engines that are slower than a trip to a thread: those
    /// without the processor's own AES. Measured with AES instructions, spreading gains nothing.
    #[default]
    Auto,
    /// This many; none keeps everything on the lane.
    Up(usize),
}

/// Most threads that an operator may ask for.
pub const WORKERS_MAX: usize = 64;
/// Most threads that are taken unasked.
const AUTO_MAX: usize = 3;

/// What happens to the bytes of a piece.
#[derive(Clone)]
pub(super) enum Work {
    Encrypt,
    Decrypt,
    /// Encrypts these bytes, which somebody else reads, into the piece.
    EncryptFrom(IoView),
}

impl Work {
    fn part(&self, bytes: Range<usize>) -> Work {
        match self {
            Work::EncryptFrom(view) => Work::EncryptFrom(view.slice(bytes)),
            other => other.clone(),
        }
    }

    fn run(&self, xts: &Xts, n: u64, bytes: Range<usize>, buf: &mut [u8]) {
        match self {
            Work::Encrypt => xts.encrypt(n, buf),
            Work::Decrypt => xts.decrypt(n, buf),
            Work::EncryptFrom(view) => xts.encrypt_into(n, &view[bytes], buf),
        }
    }
}

/// The threads of one direction of a layer.
pub(super) struct Spread {
    /// For engines that have the processor's own AES, and for the others. Counted once: to ask the host
    /// takes longer than to decrypt a sector.
    fast: usize,
    slow: usize,
    pub(super) free: LocalSemaphore,
}

impl Spread {
    pub(super) fn new(workers: Workers) -> Spread {
        let (fast, slow) = match workers {
            Workers::Up(n) => (n.min(WORKERS_MAX), n.min(WORKERS_MAX)),
            Workers::Auto => {
                let cores = std::thread::available_parallelism().map_or(1, usize::from);
                (0, (cores - 1).min(AUTO_MAX))
            }
        };
        Spread { fast, slow, free: LocalSemaphore::new(slow) }
    }

    fn threads(&self, engine: Engine) -> usize {
        if engine == Engine::Soft { self.slow } else { self.fast }
    }

    /// Does `work` to a whole buffer that begins at `at` on the volume and lies in one segment.
    pub(super) async fn run(
        &self,
        rt: &Rt,
        hooks: &Hooks,
        m: &Mapping,
        at: Sector,
        work: Work,
        buf: IoBuf,
    ) -> IoBuf {
        let threads = self.threads(m.xts.engine());
        if buf.len() <= ALONE || threads == 0 {
            return on_lane(rt, m, at, &work, buf).await;
        }
        let pieces = (buf.len() / PIECE_MIN).min(threads + 1);
        let unit = m.xts.sector_size().bytes();
        let piece = (buf.len() / pieces).next_multiple_of(unit);
        let mut away = Vec::new();
        let (mut from, mut rest) = (0, buf);
        while rest.len() > piece {
            let Some(permit) = self.free.try_acquire(1) else { break };
            let (mut head, tail) = rest.split_at_byte(piece);
            let bytes = from..from + piece;
            let (xts, part) = (Arc::clone(&m.xts), work.part(bytes));
            let n = m.iv_number(at + Sectors::exact(from as u64).expect("whole sectors"));
            let trip = rt.offload(move || {
                part.run(&xts, n, 0..head.len(), &mut head);
                head
            });
            away.push((begun(trip).await, permit));
            (from, rest) = (from + piece, tail);
        }
        let first = if hooks.forgets_position() { 0 } else { from };
        let at = at + Sectors::exact(first as u64).expect("whole sectors");
        let work = work.part(from..from + rest.len());
        let mut done = on_lane(rt, m, at, &work, rest).await;
        for (trip, permit) in away.into_iter().rev() {
            done = IoBuf::join(trip.await, done);
            drop(permit);
        }
        done
    }
}

/// Starts a future now: it is on its way while the lane does a piece of its own.
async fn begun<'a, T: 'a>(future: impl Future<Output = T> + 'a) -> LocalTrip<'a, T> {
    let mut future: LocalTrip<'a, T> = Box::pin(future);
    match poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await {
        Poll::Ready(value) => Box::pin(ready(value)),
        Poll::Pending => future,
    }
}

type LocalTrip<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// In turns, between which other tasks of the lane run: a request of a megabyte must not stall small ones.
async fn on_lane(rt: &Rt, m: &Mapping, at: Sector, work: &Work, mut buf: IoBuf) -> IoBuf {
    let mut from = 0;
    let mut parts = buf.chunks_mut(TURN_BYTES).peekable();
    while let Some(part) = parts.next() {
        let bytes = from..from + part.len();
        let n = m.iv_number(at + Sectors::exact(from as u64).expect("whole sectors"));
        from = bytes.end;
        work.run(&m.xts, n, bytes, part);
        if parts.peek().is_some() {
            rt.yield_now().await;
        }
    }
    buf
}
