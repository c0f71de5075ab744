//! What was received and not looked at yet, for either side of a connection.

use std::io;
use varve_block::rt::Stream;
use varve_block::{BufPool, IoBuf};

/// One receive brings at most this many bytes.
const RECEIVE_LEN: usize = 256 << 10;
/// After a payload of at least this length the next one probably has it too, so only a little is
/// received ahead: bytes that come through the receive buffer are copied once more.
const LONG_PAYLOAD: usize = 128 << 10;
const RECEIVE_LEN_LONG: usize = 4 << 10;
/// The rest of a payload that is longer than this is received in place.
pub(crate) const IN_PLACE_MIN: usize = 16 << 10;
/// So much of it at a time, and without looking at what has come before it is all there.
pub(crate) const EXACT_MAX: usize = 256 << 10;

/// Bytes of the stream, in order.
pub(crate) struct Inbox {
    /// `None` while a receive is under way, and after one that failed.
    buf: Option<IoBuf>,
    start: usize,
    end: usize,
    /// How much to receive next time.
    ask: usize,
}

impl Inbox {
    /// `own` is this connection's, so that no other can exhaust it.
    pub(crate) async fn new(own: &BufPool) -> Inbox {
        let buf = own.take_bytes(RECEIVE_LEN).await;
        Inbox { buf: Some(buf), start: 0, end: 0, ask: RECEIVE_LEN }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.buf.as_ref().map_or(&[], |buf| &buf[self.start..self.end])
    }

    pub(crate) fn used(&mut self, n: usize) {
        self.start += n;
        debug_assert!(self.start <= self.end, "no more was used than there was");
    }

    /// Takes what there is, as far as `to` has room: how many bytes.
    pub(crate) fn copy_to(&mut self, to: &mut [u8]) -> usize {
        let here = self.bytes();
        let n = here.len().min(to.len());
        to[..n].copy_from_slice(&here[..n]);
        self.used(n);
        n
    }

    /// Receives more; everything before must have been used. False at the end of the stream.
    pub(crate) async fn fill(&mut self, stream: &Stream) -> io::Result<bool> {
        assert!(self.start == self.end, "received bytes are used before the next receive");
        let buf = self.buf.take().ok_or(io::ErrorKind::NotConnected)?;
        let (n, buf) = stream.recv(buf, 0..self.ask).await?;
        self.buf = Some(buf);
        (self.start, self.end) = (0, n);
        Ok(n > 0)
    }

    /// A payload of this length has come whole.
    pub(crate) fn ended_payload(&mut self, length: usize) {
        self.ask = if length >= LONG_PAYLOAD { RECEIVE_LEN_LONG } else { RECEIVE_LEN };
    }
}
