//! The export seen from above as a device.

use super::Export;
use crate::buf::{Data, IoBuf};
use crate::device::{BlockDevice, Durability, ExtentStatus, Geometry, Zero};
use crate::error::{Op, Result};
use crate::units::{Bytes, Extent, Sector, Sectors};

/// An export is a device: tools and file systems may stand on it beside the front ends, in the same
/// order.
impl<D: BlockDevice> BlockDevice for Export<D> {
    fn geometry(&self) -> Geometry {
        let bound = self.bound();
        let below = bound.device.geometry();
        Geometry {
            len: Bytes(bound.size).sectors_exact().expect("whole blocks"),
            max_request: bound.piece,
            read_only: self.is_read_only(),
            ..below
        }
    }

    async fn read(&self, at: Sector, buf: IoBuf) -> Result<IoBuf> {
        let range = Extent::new(at, buf.sectors());
        self.geometry().admit(Op::Read, range)?;
        Export::read(self, at.byte(), buf).await
    }

    async fn write(&self, at: Sector, data: Data, how: Durability) -> Result<Data> {
        let range = Extent::new(at, data.sectors());
        self.geometry().admit(Op::Write, range)?;
        let timed = self.timed(Op::Write, data.len() as u64);
        let written = self.write_one(at.byte(), data, how == Durability::Fua);
        let data = timed.end(written.await)?;
        Ok(data.expect("an admitted request is one piece"))
    }

    async fn flush(&self) -> Result<()> {
        Export::flush(self).await
    }

    async fn discard(&self, range: Extent) -> Result<()> {
        self.geometry().admit(Op::Discard, range)?;
        self.trim(range.start.byte(), range.len.bytes(), false).await
    }

    async fn write_zeroes(&self, range: Extent, how: Zero) -> Result<()> {
        self.geometry().admit(Op::WriteZeroes, range)?;
        Export::write_zeroes(self, range.start.byte(), range.len.bytes(), how).await
    }

    async fn extents(&self, range: Extent, limit: usize) -> Result<Vec<ExtentStatus>> {
        self.geometry().admit(Op::Extents, range)?;
        let runs = self.block_status(range.start.byte(), range.len.bytes(), limit);
        let mut at = range.start;
        let runs = runs.await?.into_iter().map(|run| {
            let len = Sectors::exact(run.len).expect("runs of whole sectors");
            let range = Extent::new(at, len);
            at = range.end();
            ExtentStatus { range, hole: run.hole, zero: run.zero }
        });
        Ok(runs.collect())
    }

    async fn prefetch(&self, range: Extent) -> Result<()> {
        self.geometry().admit(Op::Prefetch, range)?;
        Export::prefetch(self, range.start.byte(), range.len.bytes()).await
    }
}
