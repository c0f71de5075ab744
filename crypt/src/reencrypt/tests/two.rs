//! Two devices with one log, each with flushes of its own: what a flush of one makes durable, the other
//! may still lose.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use varve_block::dev::Mem;
use varve_block::{BlockDevice, Data, Durability, Extent, Geometry, IoBuf, Result, Sector, Zero};
use varve_block::{Rt, Sim};

#[derive(Clone, Debug)]
pub(super) enum Event {
    Write(u64, Vec<u8>),
    Flush,
}

type Log = Rc<RefCell<Vec<(usize, Event)>>>;

/// Clones are the same device.
#[derive(Clone)]
pub(super) struct Logged {
    mem: Mem,
    tag: usize,
    log: Log,
    delay: Option<Rt>,
}

/// Header and data device over these images.
pub(super) fn two(images: &[Vec<u8>; 2]) -> [Logged; 2] {
    let log = Log::default();
    [0, 1].map(|tag| Logged {
        mem: Mem::from_bytes(&images[tag]),
        tag,
        log: Rc::clone(&log),
        delay: None,
    })
}

impl Logged {
    pub(super) fn image(&self) -> Vec<u8> {
        self.mem.to_vec()
    }

    /// What happened to both devices since the last call.
    pub(super) fn take(&self) -> Vec<(usize, Event)> {
        self.log.take()
    }

    /// Every request takes a while, drawn, before and after it happens.
    pub(super) fn with_delay(self, rt: &Rt) -> Logged {
        Logged { delay: Some(rt.clone()), ..self }
    }

    async fn wait(&self) {
        if let Some(rt) = &self.delay {
            rt.sleep(Duration::from_nanos(rt.prng().below(20_000))).await;
        }
    }

    /// Events so far.
    pub(super) fn now(&self) -> usize {
        self.log.borrow().len()
    }

    pub(super) fn has_written(&self) -> bool {
        self.log.borrow().iter().any(|(_, e)| matches!(e, Event::Write(..)))
    }
}

impl BlockDevice for Logged {
    fn geometry(&self) -> Geometry {
        self.mem.geometry()
    }

    async fn read(&self, at: Sector, buf: IoBuf) -> Result<IoBuf> {
        self.wait().await;
        let read = self.mem.read(at, buf).await;
        self.wait().await;
        read
    }

    async fn write(&self, at: Sector, data: Data, how: Durability) -> Result<Data> {
        self.wait().await;
        let event = Event::Write(at.byte(), data.as_ref().to_vec());
        self.log.borrow_mut().push((self.tag, event));
        let written = self.mem.write(at, data, how).await;
        self.wait().await;
        written
    }

    async fn flush(&self) -> Result<()> {
        self.wait().await;
        self.log.borrow_mut().push((self.tag, Event::Flush));
        let flushed = self.mem.flush().await;
        self.wait().await;
        flushed
    }

    async fn discard(&self, range: Extent) -> Result<()> {
        self.mem.discard(range).await
    }

    async fn write_zeroes(&self, _range: Extent, _how: Zero) -> Result<()> {
        unreachable!("zeroes are written")
    }
}

/// Shows what a cut may leave of both devices: after each `stride`-th sector with all before it written, and
/// before each flush with any subset (some, drawn) of what no flush has covered.
pub(super) fn each_cut(
    before: &[Vec<u8>; 2],
    events: &[(usize, Event)],
    stride: usize,
    mut look: impl FnMut(&[Vec<u8>; 2]),
) {
    let chance = Sim::new(11).run(|rt| async move { rt.prng().fork() });
    let (mut durable, mut live) = (before.clone(), before.clone());
    let mut pending: Vec<(usize, usize, &[u8])> = Vec::new();
    let mut sectors = 0;
    for (tag, event) in events {
        match event {
            Event::Write(at, bytes) => {
                let at = usize::try_from(*at).unwrap();
                for (n, sector) in bytes.chunks(512).enumerate() {
                    let at = at + n * 512;
                    live[*tag][at..at + 512].copy_from_slice(sector);
                    pending.push((*tag, at, sector));
                    sectors += 1;
                    if sectors % stride == 0 {
                        look(&live);
                    }
                }
            }
            Event::Flush => {
                for _ in 0..2 {
                    let mut image = durable.clone();
                    for (tag, at, sector) in pending.iter().filter(|_| chance.chance(1, 2)) {
                        image[*tag][*at..at + 512].copy_from_slice(sector);
                    }
                    look(&image);
                }
                look(&live);
                for (_, at, sector) in pending.iter().filter(|(t, ..)| t == tag) {
                    durable[*tag][*at..at + 512].copy_from_slice(sector);
                }
                pending.retain(|(t, ..)| t != tag);
            }
        }
    }
}

/// Shows what a cut after every `every`-th event may leave: what a flush covered, and any subset (drawn) of
/// the sectors that none has.
pub(super) fn each_cut_at(
    before: &[Vec<u8>; 2],
    events: &[(usize, Event)],
    every: usize,
    seed: u64,
    mut look: impl FnMut(usize, &[Vec<u8>; 2]),
) {
    let chance = Sim::new(seed).run(|rt| async move { rt.prng().fork() });
    let mut durable = before.clone();
    let mut pending: Vec<(usize, usize, &[u8])> = Vec::new();
    for (n, (tag, event)) in (1..).zip(events) {
        match event {
            Event::Write(at, bytes) => {
                let at = usize::try_from(*at).unwrap();
                let sectors = bytes.chunks(512).enumerate();
                pending.extend(sectors.map(|(n, sector)| (*tag, at + n * 512, sector)));
            }
            Event::Flush => {
                for (_, at, sector) in pending.iter().filter(|(t, ..)| t == tag) {
                    durable[*tag][*at..at + 512].copy_from_slice(sector);
                }
                pending.retain(|(t, ..)| t != tag);
            }
        }
        if chance.chance(1, every as u64) {
            let mut image = durable.clone();
            for (tag, at, sector) in pending.iter().filter(|_| chance.chance(1, 2)) {
                image[*tag][*at..at + 512].copy_from_slice(sector);
            }
            look(n, &image);
        }
    }
}
