//! The seam: [`BlockDevice`], its geometry, and [`Dyn`], the erased form. The contract is told in
//! the crate docs.

use crate::buf::{Data, IoBuf};
use crate::error::{DevId, Error, ErrorKind, Op, Result};
use crate::units::{Extent, Sector, Sectors};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

/// When a write is durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Durability {
    /// After the next flush that starts once the write is done.
    #[default]
    Cached,
    /// When the write is done (Force Unit Access).
    Fua,
}

/// How zeroes may be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Zero {
    /// The range may become a hole that reads as zeroes.
    pub may_unmap: bool,
    /// Fail with `Unsupported` (at once, nothing changed) rather than write zeroes the slow way.
    pub only_if_fast: bool,
    pub durability: Durability,
}

/// What a device is and can do. Combined bottom-up: a layer starts from the geometry below it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Geometry {
    pub dev: DevId,
    pub len: Sectors,
    /// Requests start and end on multiples of this.
    pub block: Sectors,
    /// What the medium prefers, and writes whole or not at all (never smaller than `block`).
    pub preferred: Sectors,
    /// No request is longer. At most [`Geometry::MAX_REQUEST`].
    pub max_request: Sectors,
    pub read_only: bool,
    /// Whether finished writes may be lost until a flush. `false`: flush is free.
    pub volatile_cache: bool,
    /// `discard` does something.
    pub can_discard: bool,
    /// `write_zeroes` is faster than writing.
    pub fast_zero: bool,
    /// `Fua` costs about what the write costs, instead of a flush of everything.
    pub cheap_fua: bool,
    pub rotational: bool,
}

impl Geometry {
    /// Longest request anywhere in the stack: 1 MiB. `Export` cuts there.
    pub const MAX_REQUEST: Sectors = Sectors(2048);

    pub fn new(dev: DevId, len: Sectors) -> Geometry {
        Geometry {
            dev,
            len,
            block: Sectors(1),
            preferred: Sectors(8),
            max_request: Geometry::MAX_REQUEST,
            read_only: false,
            volatile_cache: true,
            can_discard: false,
            fast_zero: false,
            cheap_fua: false,
            rotational: false,
        }
    }

    /// The door check every device makes before it acts.
    pub fn admit(&self, op: Op, at: Extent) -> Result<()> {
        let wrong = |kind| Err(Error::new(kind, op, at, &self.dev));
        if !at.fits(self.len) {
            return wrong(ErrorKind::OutOfRange);
        }
        if !at.start.is_aligned(self.block) || !at.len.is_multiple_of(self.block) {
            return wrong(ErrorKind::Misaligned);
        }
        if matches!(op, Op::Read | Op::Write) && at.len > self.max_request {
            return wrong(ErrorKind::Misaligned);
        }
        if self.read_only && matches!(op, Op::Write | Op::Discard | Op::WriteZeroes) {
            return wrong(ErrorKind::ReadOnly);
        }
        Ok(())
    }
}

/// What is known of a range without reading it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExtentStatus {
    pub range: Extent,
    /// Nothing is allocated there.
    pub hole: bool,
    /// It reads as zeroes.
    pub zero: bool,
}

impl ExtentStatus {
    pub fn data(range: Extent) -> ExtentStatus {
        ExtentStatus { range, hole: false, zero: false }
    }
}

/// A block device. The contract, in short; the crate docs tell it at length:
///
/// 1. *Whole or error.* `Ok` means every byte moved. Short transfers end below this trait.
/// 2. *Order is yours.* Overlapping requests in flight have no order; await to order them.
/// 3. *Done is not durable.* A finished write survives a crash once a `flush` **started after it
///    finished** has returned `Ok`, or if it was `Fua`. Nothing else promises anything.
/// 4. *Damage is per block.* After a crash a block holds its last flushed version or any later
///    one, or cannot be read. Blocks nobody wrote have not moved.
/// 5. *A failed flush is final.* The device answers `Poisoned` until it is reopened.
/// 6. *Drop is allowed.* A dropped future may still act; the ring keeps its buffer till the end.
pub trait BlockDevice: 'static {
    /// Length, block size, largest request, abilities. Constant while the device is open, but for
    /// layers that say otherwise.
    fn geometry(&self) -> Geometry;

    /// Fills the whole of `buf` from `at`. The buffer is private until the future is ready.
    fn read(&self, at: Sector, buf: IoBuf) -> impl Future<Output = Result<IoBuf>>;

    /// Writes all of `data` at `at`. After `Owned`, the contents of the returned buffer are
    /// unspecified: layers encrypt in place.
    fn write(&self, at: Sector, data: Data, how: Durability) -> impl Future<Output = Result<Data>>;

    /// Makes every write that finished before this call durable.
    fn flush(&self) -> impl Future<Output = Result<()>>;

    /// The contents of `range` are not needed any more and may become anything, per block.
    fn discard(&self, range: Extent) -> impl Future<Output = Result<()>>;

    /// `range` reads as zeroes afterwards. Any length that `geometry` can hold.
    fn write_zeroes(&self, range: Extent, how: Zero) -> impl Future<Output = Result<()>>;

    /// What is known of `range` without reading it: adjacent runs from `range.start`, at most
    /// `limit` (at least 1) of them; they may end before `range` does, never without progress.
    fn extents(
        &self,
        range: Extent,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<ExtentStatus>>> {
        let _ = limit;
        async move { Ok(vec![ExtentStatus::data(range)]) }
    }

    /// A hint that `range` will be read soon.
    fn prefetch(&self, range: Extent) -> impl Future<Output = Result<()>> {
        let _ = range;
        async { Ok(()) }
    }
}

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// [`BlockDevice`] with boxed futures, for the one place that erases a stack's type.
trait DynDevice {
    fn geometry(&self) -> Geometry;
    fn read(&self, at: Sector, buf: IoBuf) -> BoxFuture<'_, Result<IoBuf>>;
    fn write(&self, at: Sector, data: Data, how: Durability) -> BoxFuture<'_, Result<Data>>;
    fn flush(&self) -> BoxFuture<'_, Result<()>>;
    fn discard(&self, range: Extent) -> BoxFuture<'_, Result<()>>;
    fn write_zeroes(&self, range: Extent, how: Zero) -> BoxFuture<'_, Result<()>>;
    fn extents(&self, range: Extent, limit: usize) -> BoxFuture<'_, Result<Vec<ExtentStatus>>>;
    fn prefetch(&self, range: Extent) -> BoxFuture<'_, Result<()>>;
}

impl<D: BlockDevice> DynDevice for D {
    fn geometry(&self) -> Geometry {
        BlockDevice::geometry(self)
    }
    fn read(&self, at: Sector, buf: IoBuf) -> BoxFuture<'_, Result<IoBuf>> {
        Box::pin(BlockDevice::read(self, at, buf))
    }
    fn write(&self, at: Sector, data: Data, how: Durability) -> BoxFuture<'_, Result<Data>> {
        Box::pin(BlockDevice::write(self, at, data, how))
    }
    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(BlockDevice::flush(self))
    }
    fn discard(&self, range: Extent) -> BoxFuture<'_, Result<()>> {
        Box::pin(BlockDevice::discard(self, range))
    }
    fn write_zeroes(&self, range: Extent, how: Zero) -> BoxFuture<'_, Result<()>> {
        Box::pin(BlockDevice::write_zeroes(self, range, how))
    }
    fn extents(&self, range: Extent, limit: usize) -> BoxFuture<'_, Result<Vec<ExtentStatus>>> {
        Box::pin(BlockDevice::extents(self, range, limit))
    }
    fn prefetch(&self, range: Extent) -> BoxFuture<'_, Result<()>> {
        Box::pin(BlockDevice::prefetch(self, range))
    }
}

/// A device whose type was erased: one allocation per request, whatever stands below. Clones share
/// the device.
#[derive(Clone)]
pub struct Dyn(Rc<dyn DynDevice>);

impl Dyn {
    pub fn new(device: impl BlockDevice) -> Dyn {
        Dyn(Rc::new(device))
    }
}

impl BlockDevice for Dyn {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }
    fn read(&self, at: Sector, buf: IoBuf) -> impl Future<Output = Result<IoBuf>> {
        self.0.read(at, buf)
    }
    fn write(&self, at: Sector, data: Data, how: Durability) -> impl Future<Output = Result<Data>> {
        self.0.write(at, data, how)
    }
    fn flush(&self) -> impl Future<Output = Result<()>> {
        self.0.flush()
    }
    fn discard(&self, range: Extent) -> impl Future<Output = Result<()>> {
        self.0.discard(range)
    }
    fn write_zeroes(&self, range: Extent, how: Zero) -> impl Future<Output = Result<()>> {
        self.0.write_zeroes(range, how)
    }
    fn extents(
        &self,
        range: Extent,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<ExtentStatus>>> {
        self.0.extents(range, limit)
    }
    fn prefetch(&self, range: Extent) -> impl Future<Output = Result<()>> {
        self.0.prefetch(range)
    }
}

/// A shared device is a device: layers and tools may stand on one `Rc`.
impl<D: BlockDevice> BlockDevice for Rc<D> {
    fn geometry(&self) -> Geometry {
        (**self).geometry()
    }
    fn read(&self, at: Sector, buf: IoBuf) -> impl Future<Output = Result<IoBuf>> {
        (**self).read(at, buf)
    }
    fn write(&self, at: Sector, data: Data, how: Durability) -> impl Future<Output = Result<Data>> {
        (**self).write(at, data, how)
    }
    fn flush(&self) -> impl Future<Output = Result<()>> {
        (**self).flush()
    }
    fn discard(&self, range: Extent) -> impl Future<Output = Result<()>> {
        (**self).discard(range)
    }
    fn write_zeroes(&self, range: Extent, how: Zero) -> impl Future<Output = Result<()>> {
        (**self).write_zeroes(range, how)
    }
    fn extents(
        &self,
        range: Extent,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<ExtentStatus>>> {
        (**self).extents(range, limit)
    }
    fn prefetch(&self, range: Extent) -> impl Future<Output = Result<()>> {
        (**self).prefetch(range)
    }
}
