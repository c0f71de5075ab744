//! What stacks stand on.

use super::gone;
use crate::place::Place;
use varve_block::dev::{FileDevice, FileOptions};
use varve_block::{
    BlockDevice, Data, Durability, Extent, ExtentStatus, Geometry, IoBuf, Result, Rt, Sector, Zero,
};
use varve_nbd_server::{NbdDevice, NbdOptions};

/// The lowest device of a stack. A request to a file costs what it would cost without the other: a match
/// and no box; so one to an export, which waits for another program, is the one that is boxed.
pub(crate) enum Bottom {
    File(FileDevice),
    Nbd(NbdDevice),
}

impl Bottom {
    pub(crate) async fn open(rt: &Rt, place: &Place, read_only: bool) -> Result<Bottom> {
        match place {
            Place::Path(path) => {
                let options = FileOptions { read_only, ..FileOptions::default() };
                FileDevice::open(rt, path, options).await.map(Bottom::File)
            }
            Place::Nbd(uri) => {
                let options = NbdOptions { read_only, ..NbdOptions::default() };
                let device = NbdDevice::open(rt, uri, options).await?;
                gone::watch(rt, place, &device);
                Ok(Bottom::Nbd(device))
            }
        }
    }
}

impl BlockDevice for Bottom {
    fn geometry(&self) -> Geometry {
        match self {
            Bottom::File(device) => device.geometry(),
            Bottom::Nbd(device) => device.geometry(),
        }
    }

    async fn read(&self, at: Sector, buf: IoBuf) -> Result<IoBuf> {
        match self {
            Bottom::File(device) => device.read(at, buf).await,
            Bottom::Nbd(device) => Box::pin(device.read(at, buf)).await,
        }
    }

    async fn write(&self, at: Sector, data: Data, how: Durability) -> Result<Data> {
        match self {
            Bottom::File(device) => device.write(at, data, how).await,
            Bottom::Nbd(device) => Box::pin(device.write(at, data, how)).await,
        }
    }

    async fn flush(&self) -> Result<()> {
        match self {
            Bottom::File(device) => device.flush().await,
            Bottom::Nbd(device) => Box::pin(device.flush()).await,
        }
    }

    async fn discard(&self, range: Extent) -> Result<()> {
        match self {
            Bottom::File(device) => device.discard(range).await,
            Bottom::Nbd(device) => Box::pin(device.discard(range)).await,
        }
    }

    async fn write_zeroes(&self, range: Extent, how: Zero) -> Result<()> {
        match self {
            Bottom::File(device) => device.write_zeroes(range, how).await,
            Bottom::Nbd(device) => Box::pin(device.write_zeroes(range, how)).await,
        }
    }

    async fn extents(&self, range: Extent, limit: usize) -> Result<Vec<ExtentStatus>> {
        match self {
            Bottom::File(device) => device.extents(range, limit).await,
            Bottom::Nbd(device) => Box::pin(device.extents(range, limit)).await,
        }
    }

    async fn prefetch(&self, range: Extent) -> Result<()> {
        match self {
            Bottom::File(device) => device.prefetch(range).await,
            Bottom::Nbd(device) => Box::pin(device.prefetch(range)).await,
        }
    }
}
