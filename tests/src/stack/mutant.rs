//! Layers as they should not be written, to be caught; and the right ones beside them.

use std::rc::Rc;
use varve_block::sync::LocalSemaphore;
use varve_block::{
    BlockDevice, BufPool, Data, Durability, Error, ErrorKind, Extent, ExtentStatus, Geometry,
    IoBuf, Op, Result, Sector, Sectors, Zero,
};

/// What a layer does to a write; everything else passes.
pub trait Layer: 'static {
    fn write<D: BlockDevice>(
        &self,
        below: &D,
        at: Sector,
        data: Data,
        how: Durability,
    ) -> impl Future<Output = Result<Data>>;
}

/// A [`Layer`] over a device.
pub struct Over<L, D> {
    pub layer: L,
    pub below: D,
}

impl<L: Layer, D: BlockDevice> BlockDevice for Over<L, D> {
    fn geometry(&self) -> Geometry {
        self.below.geometry()
    }
    async fn read(&self, at: Sector, buf: IoBuf) -> Result<IoBuf> {
        self.below.read(at, buf).await
    }
    async fn write(&self, at: Sector, data: Data, how: Durability) -> Result<Data> {
        self.layer.write(&self.below, at, data, how).await
    }
    async fn flush(&self) -> Result<()> {
        self.below.flush().await
    }
    async fn discard(&self, range: Extent) -> Result<()> {
        self.below.discard(range).await
    }
    /// Not here: whoever wants zeroes writes them, through the layer.
    async fn write_zeroes(&self, range: Extent, _how: Zero) -> Result<()> {
        let (kind, dev) = (ErrorKind::Unsupported, self.geometry().dev);
        Err(Error::new(kind, Op::WriteZeroes, range, &dev))
    }
    async fn extents(&self, range: Extent, limit: usize) -> Result<Vec<ExtentStatus>> {
        self.below.extents(range, limit).await
    }
}

/// Tries a failed write again (C07).
pub enum Retry {
    /// With the bytes, which were frozen before they went down the first time.
    Frozen,
    /// With the buffer as the layer below left it, which is what keeping it would mean.
    Kept(Rc<std::cell::RefCell<Option<Vec<u8>>>>, BufPool),
}

impl Layer for Retry {
    async fn write<D: BlockDevice>(
        &self,
        below: &D,
        at: Sector,
        data: Data,
        how: Durability,
    ) -> Result<Data> {
        match self {
            Retry::Frozen => {
                let view = data.freeze();
                let mut last = below.write(at, Data::Shared(view.clone()), how).await;
                for _ in 0..9 {
                    if last.is_ok() {
                        break;
                    }
                    last = below.write(at, Data::Shared(view.clone()), how).await;
                }
                last
            }
            Retry::Kept(kept, pool) => {
                let mut last = below.write(at, data, how).await;
                for _ in 0..9 {
                    let Err(error) = last else { break };
                    let Some(bytes) = kept.borrow_mut().take() else { return Err(error) };
                    let mut buf = pool.take_bytes(bytes.len()).await;
                    buf.copy_from_slice(&bytes);
                    last = below.write(at, Data::Owned(buf), how).await;
                }
                last
            }
        }
    }
}

/// Sends a request on in steps of one block, each of which needs a permit (C05).
pub struct Stepwise {
    pub permits: LocalSemaphore,
    /// After waiting for a permit, start again with the bytes of the first step.
    pub forgets_position: bool,
}

impl Layer for Stepwise {
    async fn write<D: BlockDevice>(
        &self,
        below: &D,
        at: Sector,
        data: Data,
        how: Durability,
    ) -> Result<Data> {
        let step = below.geometry().block;
        let view = data.freeze();
        for piece in Extent::new(at, view.sectors()).pieces(step) {
            let mut from = piece.start - at;
            let permit = match self.permits.try_acquire(1) {
                Some(permit) => permit,
                None => {
                    if self.forgets_position {
                        from = Sectors(0);
                    }
                    self.permits.acquire(1).await
                }
            };
            let bytes = from.byte_len()..from.byte_len() + piece.len.byte_len();
            below.write(piece.start, Data::Shared(view.slice(bytes)), how).await?;
            drop(permit);
        }
        Ok(Data::Shared(view))
    }
}

/// Copies what it sends into memory of its own (C16).
pub struct Copies {
    pub pool: BufPool,
    /// Takes the memory in two halves, holding the first while it waits for the second.
    pub in_halves: bool,
}

impl Layer for Copies {
    async fn write<D: BlockDevice>(
        &self,
        below: &D,
        at: Sector,
        data: Data,
        how: Durability,
    ) -> Result<Data> {
        let half = Sectors(data.sectors().0 / 2);
        if !self.in_halves || half.0 == 0 {
            let buf = self.pool.take_copy(&data).await;
            below.write(at, buf.into(), how).await?;
            return Ok(data);
        }
        let (head, tail) = data.split_at(half);
        let first = self.pool.take_copy(&head).await;
        let second = self.pool.take_copy(&tail).await;
        below.write(at, first.into(), how).await?;
        below.write(at + half, second.into(), how).await?;
        Ok(tail)
    }
}
