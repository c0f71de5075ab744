//! A device that remembers every write, to be cut at each of its sectors afterwards.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use varve_block::dev::Mem;
use varve_block::{
    BlockDevice, Data, Durability, Extent, Geometry, IoBuf, Result, Sector, Sim, Zero,
};

#[derive(Clone, Debug)]
pub(crate) enum Event {
    Write(u64, Vec<u8>),
    /// A write that is durable once it is answered, whatever comes of those before it.
    Durable(u64, Vec<u8>),
    Flush,
}

/// Clones are the same device.
#[derive(Clone)]
pub(crate) struct Recorder {
    mem: Mem,
    events: Rc<RefCell<Vec<Event>>>,
    lost: Rc<Cell<Option<Sector>>>,
}

impl Recorder {
    pub(crate) fn new(image: &[u8]) -> Recorder {
        Recorder { mem: Mem::from_bytes(image), events: Rc::default(), lost: Rc::default() }
    }

    pub(crate) fn image(&self) -> Vec<u8> {
        self.mem.to_vec()
    }

    /// Writes that begin there are answered, and do not happen.
    pub(crate) fn lose_writes_at(&self, at: Sector) {
        self.lost.set(Some(at));
    }

    /// What happened since the last call.
    pub(crate) fn take(&self) -> Vec<Event> {
        self.events.take()
    }

    pub(crate) fn has_written(&self) -> bool {
        self.events.borrow().iter().any(|e| matches!(e, Event::Write(..) | Event::Durable(..)))
    }
}

impl BlockDevice for Recorder {
    fn geometry(&self) -> Geometry {
        self.mem.geometry()
    }

    async fn read(&self, at: Sector, buf: IoBuf) -> Result<IoBuf> {
        self.mem.read(at, buf).await
    }

    async fn write(&self, at: Sector, data: Data, how: Durability) -> Result<Data> {
        if self.lost.get() == Some(at) {
            return Ok(data);
        }
        let bytes = data.as_ref().to_vec();
        self.events.borrow_mut().push(match how {
            Durability::Cached => Event::Write(at.byte(), bytes),
            Durability::Fua => Event::Durable(at.byte(), bytes),
        });
        self.mem.write(at, data, how).await
    }

    async fn flush(&self) -> Result<()> {
        self.events.borrow_mut().push(Event::Flush);
        self.mem.flush().await
    }

    async fn discard(&self, range: Extent) -> Result<()> {
        self.mem.discard(range).await
    }

    async fn write_zeroes(&self, _range: Extent, _how: Zero) -> Result<()> {
        unreachable!("header work writes its zeroes itself")
    }
}

/// A medium that a cut may leave.
pub(crate) struct Cut<'a> {
    pub(crate) image: &'a [u8],
    /// Sector writes that reached it since the last flush, and how many there were to come.
    pub(crate) sectors: usize,
    pub(crate) of: usize,
}

/// Shows every medium that the cut may leave: between two flushes, after each 512-byte write, and with
/// any subset of them (some, drawn).
pub(crate) fn each_cut(before: &[u8], events: &[Event], mut look: impl FnMut(&Cut<'_>)) {
    let chance = Sim::new(7).run(|rt| async move { rt.prng().fork() });
    let mut durable = before.to_vec();
    for epoch in events.split(|e| matches!(e, Event::Flush)) {
        let sectors: Vec<(u64, &[u8], bool)> = epoch
            .iter()
            .filter_map(|e| match e {
                Event::Write(at, bytes) => Some((at, bytes, false)),
                Event::Durable(at, bytes) => Some((at, bytes, true)),
                Event::Flush => None,
            })
            .flat_map(|(at, bytes, durable)| {
                (at / 512..).zip(bytes.chunks(512)).map(move |(at, bytes)| (at, bytes, durable))
            })
            .collect();
        let put = |image: &mut Vec<u8>, (sector, bytes, _): (u64, &[u8], bool)| {
            let at = usize::try_from(sector * 512).unwrap();
            image[at..at + bytes.len()].copy_from_slice(bytes);
        };
        let of = sectors.len();
        for _ in 0..12 {
            let mut image = durable.clone();
            let mut n = 0;
            // What is durable is there once anything after it is.
            let any = sectors.iter().any(|(.., durable)| *durable);
            let until = if any { chance.index(of + 1) } else { of };
            for &sector in sectors[..until].iter().filter(|s| s.2 || chance.chance(1, 2)) {
                put(&mut image, sector);
                n += 1;
            }
            look(&Cut { image: &image, sectors: n, of });
        }
        look(&Cut { image: &durable, sectors: 0, of });
        for (n, &sector) in (1..).zip(&sectors) {
            put(&mut durable, sector);
            look(&Cut { image: &durable, sectors: n, of });
        }
    }
}
