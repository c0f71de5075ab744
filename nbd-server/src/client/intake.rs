//! What the server says, byte by byte.

use super::link::Lost;
use crate::inbox::{EXACT_MAX, IN_PLACE_MIN, Inbox};
use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;
use varve_block::rt::Stream;
use varve_block::{BufPool, Instant, IoBuf, Rt};

/// The receiving side of a connection.
pub(super) struct Intake {
    rt: Rt,
    stream: Stream,
    inbox: Inbox,
    /// When bytes came last.
    heard: Rc<Cell<Instant>>,
}

impl Intake {
    pub(super) async fn new(
        rt: &Rt,
        stream: &Stream,
        own: &BufPool,
        heard: Rc<Cell<Instant>>,
    ) -> Intake {
        heard.set(rt.now());
        let inbox = Inbox::new(own).await;
        Intake { rt: rt.clone(), stream: stream.clone(), inbox, heard }
    }

    /// The next bytes of the stream; `None` when it ends before the first of them.
    pub(super) async fn head<const N: usize>(&mut self) -> Result<Option<[u8; N]>, Lost> {
        if self.inbox.bytes().is_empty() && !self.fill().await? {
            return Ok(None);
        }
        self.exact().await.map(Some)
    }

    /// The next bytes of the stream.
    pub(super) async fn exact<const N: usize>(&mut self) -> Result<[u8; N], Lost> {
        let mut bytes = [0; N];
        self.fill_slice(&mut bytes).await?;
        Ok(bytes)
    }

    /// A head whose first bytes have come.
    pub(super) async fn rest<const N: usize>(&mut self, begun: [u8; 4]) -> Result<[u8; N], Lost> {
        let mut bytes = [0; N];
        let (head, rest) = bytes.split_at_mut(begun.len());
        head.copy_from_slice(&begun);
        self.fill_slice(rest).await?;
        Ok(bytes)
    }

    /// The next bytes of the stream: few, because somebody has judged their number.
    pub(super) async fn bytes(&mut self, n: u32) -> Result<Vec<u8>, Lost> {
        let mut bytes = vec![0; n as usize];
        self.fill_slice(&mut bytes).await?;
        Ok(bytes)
    }

    async fn fill_slice(&mut self, bytes: &mut [u8]) -> Result<(), Lost> {
        let mut have = 0;
        while have < bytes.len() {
            have += self.inbox.copy_to(&mut bytes[have..]);
            if have < bytes.len() && !self.fill().await? {
                return Err(Lost::inside_a_frame());
            }
        }
        Ok(())
    }

    /// Fills `buf[part]` with the next bytes of the stream; long ones are received in place.
    pub(super) async fn payload(
        &mut self,
        mut buf: IoBuf,
        mut part: Range<usize>,
    ) -> Result<IoBuf, Lost> {
        let length = part.len();
        while !part.is_empty() {
            part.start += self.inbox.copy_to(&mut buf[part.clone()]);
            if part.is_empty() {
                break;
            }
            if part.len() < IN_PLACE_MIN {
                if !self.fill().await? {
                    return Err(Lost::inside_a_frame());
                }
                continue;
            }
            let end = part.end.min(part.start + EXACT_MAX);
            let received = self.stream.recv_exact(buf, part.start..end).await;
            buf = received.map_err(|e| Lost::receiving(&e))?;
            self.heard.set(self.rt.now());
            part.start = end;
        }
        self.inbox.ended_payload(length);
        Ok(buf)
    }

    async fn fill(&mut self) -> Result<bool, Lost> {
        let open = self.inbox.fill(&self.stream).await.map_err(|e| Lost::receiving(&e))?;
        self.heard.set(self.rt.now());
        Ok(open)
    }
}
