//! A part of a device as a device: a partition, a payload behind a header.

use crate::buf::{Data, IoBuf};
use crate::device::{BlockDevice, Durability, ExtentStatus, Geometry, Zero};
use crate::error::{Error, ErrorKind, Op, Result};
use crate::units::{Extent, Sector};

#[derive(Clone, Debug)]
pub struct Window<D> {
    below: D,
    part: Extent,
}

impl<D: BlockDevice> Window<D> {
    /// `part` of `below`, or `OutOfRange`/`Misaligned` when it has no such part.
    pub fn new(below: D, part: Extent) -> Result<Window<D>> {
        let geometry = below.geometry();
        let wrong = |kind| Err(Error::new(kind, Op::Open, part, &geometry.dev));
        if !part.fits(geometry.len) {
            return wrong(ErrorKind::OutOfRange);
        }
        if !part.start.is_aligned(geometry.block) || !part.len.is_multiple_of(geometry.block) {
            return wrong(ErrorKind::Misaligned);
        }
        Ok(Window { below, part })
    }

    fn map(&self, op: Op, range: Extent) -> Result<Extent> {
        if !range.fits(self.part.len) {
            return Err(Error::new(ErrorKind::OutOfRange, op, range, &self.below.geometry().dev));
        }
        Ok(Extent::new(Sector(self.part.start.0 + range.start.0), range.len))
    }
}

impl<D: BlockDevice> BlockDevice for Window<D> {
    fn geometry(&self) -> Geometry {
        Geometry { len: self.part.len, ..self.below.geometry() }
    }

    async fn read(&self, at: Sector, buf: IoBuf) -> Result<IoBuf> {
        let below = self.map(Op::Read, Extent::new(at, buf.sectors()))?;
        self.below.read(below.start, buf).await
    }

    async fn write(&self, at: Sector, data: Data, how: Durability) -> Result<Data> {
        let below = self.map(Op::Write, Extent::new(at, data.sectors()))?;
        self.below.write(below.start, data, how).await
    }

    async fn flush(&self) -> Result<()> {
        self.below.flush().await
    }

    async fn discard(&self, range: Extent) -> Result<()> {
        self.below.discard(self.map(Op::Discard, range)?).await
    }

    async fn write_zeroes(&self, range: Extent, how: Zero) -> Result<()> {
        self.below.write_zeroes(self.map(Op::WriteZeroes, range)?, how).await
    }

    async fn extents(&self, range: Extent, limit: usize) -> Result<Vec<ExtentStatus>> {
        let mut runs = self.below.extents(self.map(Op::Extents, range)?, limit).await?;
        for run in &mut runs {
            run.range.start = Sector(run.range.start.0 - self.part.start.0);
        }
        Ok(runs)
    }

    async fn prefetch(&self, range: Extent) -> Result<()> {
        self.below.prefetch(self.map(Op::Prefetch, range)?).await
    }
}
