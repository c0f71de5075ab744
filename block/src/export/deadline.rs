//! A device that must answer in time.
//!
//! A completion that never comes (a dead link, a lost interrupt, a firmware bug) must not hang a
//! flush for ever. But a write that was given up on may still land, at any later moment, over
//! whatever was written since; so after one such, this device takes no more changes until it is
//! reopened. A late read harms nobody: its buffer is its own.

use crate::buf::{Data, IoBuf};
use crate::device::{BlockDevice, Durability, ExtentStatus, Geometry, Zero};
use crate::error::{Error, ErrorKind, Op, Result};
use crate::rt::Rt;
use crate::sync::{Either, select};
use crate::units::{Extent, Sector};
use std::cell::Cell;
use std::future::Future;
use std::time::Duration;

pub struct Deadline<D> {
    rt: Rt,
    below: D,
    limit: Duration,
    fenced: Cell<bool>,
}

impl<D: BlockDevice> Deadline<D> {
    pub fn new(rt: Rt, below: D, limit: Duration) -> Deadline<D> {
        Deadline { rt, below, limit, fenced: Cell::new(false) }
    }

    /// A change was given up on, so none is taken any more.
    pub fn is_fenced(&self) -> bool {
        self.fenced.get()
    }

    fn error(&self, kind: ErrorKind, op: Op, at: Extent, text: String) -> Error {
        Error::new(kind, op, at, &self.below.geometry().dev).with(text)
    }

    async fn within<T>(
        &self,
        op: Op,
        at: Extent,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let changes = !matches!(op, Op::Read | Op::Extents | Op::Prefetch);
        if changes && self.fenced.get() {
            let text = "an earlier change was given up on and may still land".to_owned();
            return Err(self.error(ErrorKind::Poisoned, op, at, text));
        }
        match select(work, self.rt.sleep(self.limit)).await {
            Either::Left(result) => result,
            Either::Right(()) => {
                let text = format!("no answer in {} ms", self.limit.as_millis());
                let error = self.error(ErrorKind::Io, op, at, text);
                if changes {
                    self.fenced.set(true);
                    tracing::error!(dev = %error.dev, error = %crate::error::chain(&error),
                        "request given up on; no more changes until the device is reopened");
                }
                Err(error)
            }
        }
    }
}

impl<D: BlockDevice> BlockDevice for Deadline<D> {
    fn geometry(&self) -> Geometry {
        self.below.geometry()
    }

    async fn read(&self, at: Sector, buf: IoBuf) -> Result<IoBuf> {
        let range = Extent::new(at, buf.sectors());
        self.within(Op::Read, range, self.below.read(at, buf)).await
    }

    async fn write(&self, at: Sector, data: Data, how: Durability) -> Result<Data> {
        let range = Extent::new(at, data.sectors());
        self.within(Op::Write, range, self.below.write(at, data, how)).await
    }

    async fn flush(&self) -> Result<()> {
        let all = Extent::new(Sector::ZERO, self.below.geometry().len);
        self.within(Op::Flush, all, self.below.flush()).await
    }

    async fn discard(&self, range: Extent) -> Result<()> {
        self.within(Op::Discard, range, self.below.discard(range)).await
    }

    async fn write_zeroes(&self, range: Extent, how: Zero) -> Result<()> {
        self.within(Op::WriteZeroes, range, self.below.write_zeroes(range, how)).await
    }

    async fn extents(&self, range: Extent, limit: usize) -> Result<Vec<ExtentStatus>> {
        self.within(Op::Extents, range, self.below.extents(range, limit)).await
    }

    async fn prefetch(&self, range: Extent) -> Result<()> {
        self.within(Op::Prefetch, range, self.below.prefetch(range)).await
    }
}
