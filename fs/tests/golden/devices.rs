//! Devices that fail, count and dawdle.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;
use varve_block::dev::Mem;
use varve_block::{
    BlockDevice, Data, Durability, Error, ErrorKind, Extent, Geometry, IoBuf, Op, Result, Rt,
    Sector, Zero,
};

/// What happened to a [`Rigged`] device, and what shall happen. Shared with the test.
#[derive(Default)]
pub(crate) struct Rig {
    /// How often each sector was the start of a read.
    pub(crate) reads: RefCell<BTreeMap<u64, usize>>,
    /// Bytes that cannot be read.
    pub(crate) broken: RefCell<Vec<Range<u64>>>,
    /// Each read takes a random time up to this.
    pub(crate) delay_us: Cell<u64>,
}

/// Memory that behaves as its [`Rig`] says.
pub(crate) struct Rigged {
    pub(crate) below: Mem,
    pub(crate) rig: Rc<Rig>,
    pub(crate) rt: Rt,
}

impl BlockDevice for Rigged {
    fn geometry(&self) -> Geometry {
        self.below.geometry()
    }

    async fn read(&self, at: Sector, buf: IoBuf) -> Result<IoBuf> {
        *self.rig.reads.borrow_mut().entry(at.0).or_default() += 1;
        let range = Extent::new(at, buf.sectors());
        let most = self.rig.delay_us.get();
        if most > 0 {
            let wait = self.rt.prng().below(most);
            self.rt.sleep(Duration::from_micros(wait)).await;
        }
        let bytes = at.byte()..range.end().byte();
        let hit = |bad: &Range<u64>| bad.start < bytes.end && bytes.start < bad.end;
        if self.rig.broken.borrow().iter().any(hit) {
            return Err(Error::new(ErrorKind::Io, Op::Read, range, &self.geometry().dev));
        }
        self.below.read(at, buf).await
    }

    async fn write(&self, at: Sector, data: Data, how: Durability) -> Result<Data> {
        self.below.write(at, data, how).await
    }

    async fn flush(&self) -> Result<()> {
        self.below.flush().await
    }

    async fn discard(&self, range: Extent) -> Result<()> {
        self.below.discard(range).await
    }

    async fn write_zeroes(&self, range: Extent, how: Zero) -> Result<()> {
        self.below.write_zeroes(range, how).await
    }
}
