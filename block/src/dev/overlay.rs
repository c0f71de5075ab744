//! A device whose writes stay in memory: what a recovery would write can be looked at, and the device below
//! is left as it is.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use crate::buf::{Data, IoBuf};
use crate::device::{BlockDevice, Durability, ExtentStatus, Geometry, Zero};
use crate::error::{Error, ErrorKind, Op, Result};
use crate::units::{Extent, Sector};

/// Writable until it is [sealed](Overlay::seal), whatever the device below is.
pub struct Overlay<D> {
    below: D,
    /// By their number; each is one block of the device.
    blocks: RefCell<BTreeMap<u64, Box<[u8]>>>,
    blocks_max: usize,
    sealed: Cell<bool>,
}

impl<D: BlockDevice> Overlay<D> {
    /// Keeps writes to `bytes_max` bytes of the device at most; more fail with `NoSpace`.
    pub fn new(below: D, bytes_max: u64) -> Overlay<D> {
        let blocks_max = bytes_max / below.geometry().block.bytes();
        Overlay {
            below,
            blocks: RefCell::default(),
            blocks_max: usize::try_from(blocks_max).unwrap_or(usize::MAX),
            sealed: Cell::new(false),
        }
    }

    /// From now on it is read-only.
    pub fn seal(&self) {
        self.sealed.set(true);
    }

    fn put(&self, op: Op, range: Extent, bytes: impl Iterator<Item = Box<[u8]>>) -> Result<()> {
        let block = self.below.geometry().block.0;
        let mut blocks = self.blocks.borrow_mut();
        for (n, bytes) in (range.start.0 / block..).zip(bytes) {
            if blocks.len() >= self.blocks_max && !blocks.contains_key(&n) {
                return Err(Error::new(ErrorKind::NoSpace, op, range, &self.below.geometry().dev));
            }
            blocks.insert(n, bytes);
        }
        Ok(())
    }

    fn numbers(&self, range: Extent) -> std::ops::Range<u64> {
        let block = self.below.geometry().block.0;
        range.start.0 / block..range.end().0 / block
    }
}

impl<D: BlockDevice> BlockDevice for Overlay<D> {
    fn geometry(&self) -> Geometry {
        Geometry {
            read_only: self.sealed.get(),
            volatile_cache: false,
            can_discard: false,
            fast_zero: false,
            ..self.below.geometry()
        }
    }

    async fn read(&self, at: Sector, buf: IoBuf) -> Result<IoBuf> {
        let mut buf = self.below.read(at, buf).await?;
        let range = Extent::new(at, buf.sectors());
        let block = self.below.geometry().block;
        for (n, bytes) in self.blocks.borrow().range(self.numbers(range)) {
            let from = (Sector(n * block.0) - at).byte_len();
            buf[from..from + bytes.len()].copy_from_slice(bytes);
        }
        Ok(buf)
    }

    async fn write(&self, at: Sector, data: Data, _how: Durability) -> Result<Data> {
        let range = Extent::new(at, data.sectors());
        self.geometry().admit(Op::Write, range)?;
        let block = self.below.geometry().block.byte_len();
        self.put(Op::Write, range, data.as_ref().chunks(block).map(Box::from))?;
        Ok(data)
    }

    async fn flush(&self) -> Result<()> {
        Ok(())
    }

    async fn discard(&self, range: Extent) -> Result<()> {
        self.geometry().admit(Op::Discard, range)?;
        Err(Error::new(ErrorKind::Unsupported, Op::Discard, range, &self.below.geometry().dev))
    }

    async fn write_zeroes(&self, range: Extent, how: Zero) -> Result<()> {
        let (op, geometry) = (Op::WriteZeroes, self.geometry());
        geometry.admit(op, range)?;
        if how.only_if_fast {
            return Err(Error::new(ErrorKind::Unsupported, op, range, &geometry.dev));
        }
        let zeroes = || vec![0; geometry.block.byte_len()].into_boxed_slice();
        self.put(op, range, self.numbers(range).map(|_| zeroes()))
    }

    async fn extents(&self, range: Extent, limit: usize) -> Result<Vec<ExtentStatus>> {
        // A hole below may have been written here.
        if self.blocks.borrow().range(self.numbers(range)).next().is_some() {
            return Ok(vec![ExtentStatus::data(range)]);
        }
        self.below.extents(range, limit).await
    }

    async fn prefetch(&self, range: Extent) -> Result<()> {
        self.below.prefetch(range).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::BufPool;
    use crate::dev::Mem;
    use crate::rt::Sim;
    use crate::units::Sectors;

    fn mem() -> Mem {
        Mem::from_bytes(&(0..8).flat_map(|n: u8| [n; 512]).collect::<Vec<_>>())
    }

    async fn read<D: BlockDevice>(device: &D, at: u64, sectors: u64) -> Vec<u8> {
        let buf = BufPool::new(0).take(Sectors(sectors)).await;
        device.read(Sector(at), buf).await.unwrap().to_vec()
    }

    #[test]
    fn what_is_written_is_read_and_the_device_keeps_its_own() {
        let below = mem();
        let (held, before) = (below.clone(), below.to_vec());
        Sim::new(1).run(|_| async move {
            let over = Overlay::new(held, 1 << 20);
            let mut data = BufPool::new(0).take(Sectors(2)).await;
            data.fill(0xaa);
            over.write(Sector(3), Data::Owned(data), Durability::Fua).await.unwrap();
            over.write_zeroes(Extent::new(Sector(6), Sectors(1)), Zero::default()).await.unwrap();
            over.flush().await.unwrap();
            let seen = read(&over, 1, 7).await;
            let firsts: Vec<u8> = seen.chunks(512).map(|sector| sector[511]).collect();
            assert_eq!(firsts, [1, 2, 0xaa, 0xaa, 5, 0, 7]);
            let all = Extent::new(Sector(0), Sectors(8));
            assert_eq!(over.extents(all, 9).await.unwrap(), [ExtentStatus::data(all)]);
        });
        assert_eq!(below.to_vec(), before);
    }

    #[test]
    fn it_takes_no_more_than_its_room_and_nothing_once_it_is_sealed() {
        Sim::new(1).run(|_| async move {
            let over = Overlay::new(mem(), 1024);
            let zero = |at, len| Extent::new(Sector(at), Sectors(len));
            over.write_zeroes(zero(0, 2), Zero::default()).await.unwrap();
            over.write_zeroes(zero(1, 1), Zero::default()).await.unwrap();
            let full = over.write_zeroes(zero(4, 1), Zero::default()).await.unwrap_err();
            assert_eq!(full.kind, ErrorKind::NoSpace);
            assert!(!over.geometry().read_only);
            over.seal();
            assert!(over.geometry().read_only);
            let refused = over.write_zeroes(zero(1, 1), Zero::default()).await.unwrap_err();
            assert_eq!(refused.kind, ErrorKind::ReadOnly);
            assert_eq!(read(&over, 0, 2).await, vec![0; 1024]);
        });
    }
}
