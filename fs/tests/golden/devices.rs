//! Devices that fail, count and dawdle.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;
use varve_block::dev::Mem;
use varve_block::sync::Notify;
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
    /// The first read of each sector ends after so long, whoever still waits for it, with garbage.
    pub(crate) first_is_late: Cell<Option<Duration>>,
    /// How many such reads have ended.
    pub(crate) garbage: Cell<usize>,
    /// What a read that starts at this byte gets, in place of what is there.
    pub(crate) instead: RefCell<BTreeMap<u64, Vec<u8>>>,
}

/// Memory that behaves as its [`Rig`] says.
pub(crate) struct Rigged {
    pub(crate) below: Mem,
    pub(crate) rig: Rc<Rig>,
    pub(crate) rt: Rt,
}

impl Rigged {
    /// As a device goes on with a request that nobody waits for any more.
    async fn late(&self, after: Duration, mut buf: IoBuf) -> Result<IoBuf> {
        let (rig, rt) = (Rc::clone(&self.rig), self.rt.clone());
        let ended = Rc::new((Notify::new(), Cell::new(None)));
        let end = Rc::clone(&ended);
        drop(self.rt.spawn(async move {
            rt.sleep(after).await;
            buf.fill(0xA5);
            rig.garbage.set(rig.garbage.get() + 1);
            end.1.set(Some(buf));
            end.0.notify_one();
        }));
        ended.0.notified().await;
        Ok(ended.1.take().expect("it was put there before"))
    }
}

impl BlockDevice for Rigged {
    fn geometry(&self) -> Geometry {
        self.below.geometry()
    }

    async fn read(&self, at: Sector, buf: IoBuf) -> Result<IoBuf> {
        let nth = {
            let mut reads = self.rig.reads.borrow_mut();
            let nth = reads.entry(at.0).or_default();
            *nth += 1;
            *nth
        };
        if let Some(late) = self.rig.first_is_late.get().filter(|_| nth == 1) {
            return self.late(late, buf).await;
        }
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
        let instead = self.rig.instead.borrow().get(&at.byte()).cloned();
        let mut buf = self.below.read(at, buf).await?;
        if let Some(instead) = instead {
            let len = buf.len().min(instead.len());
            buf[..len].copy_from_slice(&instead[..len]);
        }
        Ok(buf)
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
