//! [`Cache`]: a backing device with an SSD in front of it, as one block device.

use std::rc::Rc;

use varve_block::{
    BlockDevice, Data, Durability, Extent, Geometry, IoBuf, Result, Rt, Sector, Zero,
};

use crate::format::CacheMode;
use crate::open::{OpenError, OpenOptions};
use crate::status::Status;

/// One volume behind one cache set. What `/dev/bcache0` would show.
pub struct Cache<S: BlockDevice, B: BlockDevice> {
    inner: Rc<Inner<S, B>>,
}

struct Inner<S, B> {
    ssd: S,
    hdd: B,
}

impl<S: BlockDevice, B: BlockDevice> Cache<S, B> {
    /// Opens the set on `ssd` and the volume on `hdd`, recovering whatever a crash left; attaches
    /// the volume when both belong together. Background tasks start on this lane.
    pub async fn open(
        rt: &Rt,
        ssd: S,
        hdd: B,
        options: OpenOptions,
    ) -> Result<Cache<S, B>, OpenError> {
        let _ = (rt, options);
        Ok(Cache { inner: Rc::new(Inner { ssd, hdd }) })
    }

    /// A snapshot for display.
    pub fn status(&self) -> Status {
        unimplemented!("arrives with the request path")
    }

    /// Changes the mode from the next request on and persists it. Dirty data stay.
    pub async fn set_mode(&self, mode: CacheMode) -> Result<()> {
        let _ = mode;
        Ok(())
    }

    /// Writes all dirty data back; `Ok` once the volume's state on disk is clean.
    pub async fn write_back_all(&self) -> Result<()> {
        Ok(())
    }

    /// Writes all dirty data back and takes the volume out of the set. The cache passes everything
    /// through afterwards.
    pub async fn detach(&self) -> Result<()> {
        Ok(())
    }

    /// Stops background work, writes dirty nodes and a last journal entry. Dirty data stay where
    /// they are; the next open finds them. Requests fail with `Stopped` from now on.
    pub async fn stop(&self) -> Result<()> {
        Ok(())
    }
}

impl<S: BlockDevice, B: BlockDevice> BlockDevice for Cache<S, B> {
    fn geometry(&self) -> Geometry {
        let _ = &self.inner.ssd;
        self.inner.hdd.geometry()
    }
    async fn read(&self, at: Sector, buf: IoBuf) -> Result<IoBuf> {
        self.inner.hdd.read(at, buf).await
    }
    async fn write(&self, at: Sector, data: Data, how: Durability) -> Result<Data> {
        self.inner.hdd.write(at, data, how).await
    }
    async fn flush(&self) -> Result<()> {
        self.inner.hdd.flush().await
    }
    async fn discard(&self, range: Extent) -> Result<()> {
        self.inner.hdd.discard(range).await
    }
    async fn write_zeroes(&self, range: Extent, how: Zero) -> Result<()> {
        self.inner.hdd.write_zeroes(range, how).await
    }
}
