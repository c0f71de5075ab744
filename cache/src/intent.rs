//! Which regions of the volume the two devices may disagree on after a power cut.
//!
//! A write to the backing device and the change of the index that goes with it become durable at
//! different times. Cut the power in between, and a clean cached copy may be older than the backing
//! device (the write made it, its invalidation did not), or newer (a copy of data that the backing
//! device has lost again). Either version is legal after a crash; but the cached one is shown until it
//! is evicted, and then the other. A block that nobody writes would change, and file systems that had
//! recovered from what they saw would break.
//!
//! So a region is marked, durably, before the first write to it, and the mark goes some time after
//! both devices are durable. Recovery drops what is clean in marked regions; from then on the backing
//! device alone says what is there.
//!
//! The kernel has no such thing, and neither looks at the mark nor minds it: it lies where the format
//! leaves sectors unused, between the superblock and the first bucket. If the kernel has run the set
//! since, it has shown the cached copies to its user, and the marks are void: `seq`, the low half of the
//! cache superblock's sequence number, tells, as the kernel counts it up when it starts a set.
//!
//! That is for a power cut. When only the process dies, both devices keep what they were given, and then
//! nothing may be in doubt, so that the kernel shows what we show: clean copies are out of the index,
//! durably, before the backing device changes under them ([`Volume::intend`](crate::volume)).
//!
//! ```text
//! sector 16 of the cache device, 8 sectors
//! | csum | magic (16) | set uuid | volume uuid | shift | seq | 32256 bits: one per region of 2^shift sectors |
//! 0      8            24         40            56      60    64                                           4096
//! ```
//!
//! A torn page (magic there, sum wrong) marks everything.

use std::cell::{Cell, RefCell};
use std::mem::size_of;
use std::time::Duration;

use uuid::Uuid;
use varve_block::sync::LocalSemaphore;
use varve_block::{Extent, Instant};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::format::{CacheSuper, Key, Layout};

/// Where the page lies.
pub(crate) const PAGE_SECTOR: u64 = 16;
pub(crate) const PAGE_SECTORS: u32 = 8;
const MAGIC: [u8; 16] = *b"varve intents 2\0";
const BITMAP: usize = 4032;
/// Regions are not smaller than 2 MiB.
const SHIFT_MIN: u32 = 12;
/// A mark stays so long after the last write to its region: busy regions are marked once.
const LINGER: Duration = Duration::from_secs(10);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawPage {
    csum: U64,
    magic: [u8; 16],
    set: [u8; 16],
    volume: [u8; 16],
    shift: U32,
    seq: U32,
    bits: [u8; BITMAP],
}
const _: () = assert!(size_of::<RawPage>() == 4096);

/// What the page says at the start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Marked {
    Nothing,
    /// These ranges of the volume's key space.
    Ranges {
        volume: Uuid,
        ranges: Vec<(u64, u64)>,
    },
    Everything,
}

/// Whether the layout leaves room for the page.
pub(crate) fn has_room(layout: &Layout) -> bool {
    let unused = layout.first_bucket * u64::from(layout.bucket_size);
    unused >= PAGE_SECTOR + u64::from(PAGE_SECTORS)
}

/// Which start of which set a page of marks belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Owner {
    pub set: Uuid,
    /// [`CacheSuper::seq`]
    pub seq: u64,
}

impl Owner {
    pub(crate) fn of(sb: &CacheSuper) -> Owner {
        Owner { set: sb.set_uuid, seq: sb.seq }
    }

    fn seq_low(self) -> u32 {
        u32::try_from(self.seq & u64::from(u32::MAX)).expect("masked")
    }
}

/// Reads the page; `owner` as the superblock says it before anything is written.
pub(crate) fn parse(bytes: &[u8], owner: Owner) -> Marked {
    let Ok((raw, _)) = RawPage::ref_from_prefix(bytes) else { return Marked::Nothing };
    if raw.magic != MAGIC {
        return Marked::Nothing;
    }
    if raw.csum != sum(raw) {
        return Marked::Everything;
    }
    let shift = raw.shift.get();
    let mine = Uuid::from_bytes(raw.set) == owner.set && raw.seq.get() == owner.seq_low();
    if !mine || !(SHIFT_MIN..48).contains(&shift) {
        return Marked::Nothing; // of a set that was here before, or the kernel's by now
    }
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for (byte, bits) in (0u64..).zip(raw.bits) {
        for bit in (0..8u64).filter(|bit| bits >> bit & 1 == 1) {
            let region = byte * 8 + bit;
            let (start, end) = (region << shift, (region + 1) << shift);
            match ranges.last_mut() {
                Some((_, last)) if *last == start => *last = end,
                _ => ranges.push((start, end)),
            }
        }
    }
    if ranges.is_empty() {
        return Marked::Nothing;
    }
    Marked::Ranges { volume: Uuid::from_bytes(raw.volume), ranges }
}

impl Marked {
    /// The stretches of a volume that are in doubt.
    pub(crate) fn of(&self, uuid: Uuid) -> &[(u64, u64)] {
        match self {
            Marked::Ranges { volume, ranges } if *volume == uuid => ranges,
            Marked::Nothing | Marked::Ranges { .. } => &[],
            Marked::Everything => &[(0, Key::OFFSET_MAX)],
        }
    }
}

fn sum(raw: &RawPage) -> u64 {
    varve_block::sum::bcache_crc64(raw.as_bytes().get(size_of::<U64>()..).unwrap_or(&[]))
}

#[derive(Clone, Copy, Default)]
struct Region {
    /// Writes under way.
    active: u32,
    /// The last settling that had begun when its last write ended.
    stamp: u64,
    used: Instant,
    marked: bool,
    /// The mark is on disk.
    durable: bool,
}

/// The marks of one volume.
pub(crate) struct Intents {
    shift: u32,
    regions: RefCell<Vec<Region>>,
    /// Whoever writes the page.
    pub turn: LocalSemaphore,
    /// Settlings of both devices, numbered: begun, and ended well.
    begun: Cell<u64>,
    ended: Cell<u64>,
}

impl Intents {
    /// Marks for a key space of `sectors` sectors.
    pub(crate) fn new(sectors: u64) -> Intents {
        let mut shift = SHIFT_MIN;
        while sectors >> shift >= BITMAP as u64 * 8 {
            shift += 1;
        }
        let count = usize::try_from((sectors >> shift) + 1).expect("at most as many as bits");
        Intents {
            shift,
            regions: RefCell::new(vec![Region::default(); count]),
            turn: LocalSemaphore::new(1),
            begun: Cell::new(1),
            ended: Cell::new(0),
        }
    }

    fn of(&self, range: Extent) -> std::ops::RangeInclusive<usize> {
        let index = |at: u64| usize::try_from(at >> self.shift).unwrap_or(usize::MAX);
        index(range.start.0)..=index(range.end().0.saturating_sub(1))
    }

    /// A write to `range` begins. True when its marks are on disk already.
    pub(crate) fn begin(&self, range: Extent) -> bool {
        let mut durable = true;
        for region in &mut self.regions.borrow_mut()[self.of(range)] {
            region.active += 1;
            region.marked = true;
            durable &= region.durable;
        }
        durable
    }

    pub(crate) fn is_durable(&self, range: Extent) -> bool {
        self.regions.borrow()[self.of(range)].iter().all(|region| region.durable)
    }

    /// It ended, whatever became of it.
    pub(crate) fn end(&self, range: Extent, now: Instant) {
        for region in &mut self.regions.borrow_mut()[self.of(range)] {
            region.active -= 1;
            region.stamp = self.begun.get();
            region.used = now;
        }
    }

    /// A settling begins: journal and backing device are about to be made durable.
    pub(crate) fn begin_settling(&self) -> u64 {
        self.begun.set(self.begun.get() + 1);
        self.begun.get()
    }

    pub(crate) fn end_settling(&self, number: u64) {
        self.ended.set(self.ended.get().max(number));
    }

    /// Whether some mark could go if both devices were settled now.
    pub(crate) fn lingering(&self, now: Instant) -> bool {
        let regions = self.regions.borrow();
        regions.iter().any(|r| r.marked && r.active == 0 && now - r.used >= LINGER)
    }

    /// The page to be written: all marks but those that have been settled and unused for a while
    /// (all that have been settled, with `all`). Ends in [`Intents::written`].
    pub(crate) fn page(&self, owner: Owner, volume: Uuid, now: Instant, all: bool) -> Vec<u8> {
        let mut raw = RawPage::new_zeroed();
        raw.magic = MAGIC;
        raw.set = owner.set.into_bytes();
        raw.seq = owner.seq_low().into();
        raw.volume = volume.into_bytes();
        raw.shift = self.shift.into();
        for (index, region) in self.regions.borrow_mut().iter_mut().enumerate() {
            let settled = region.active == 0 && self.ended.get() > region.stamp;
            if settled && (all || now - region.used >= LINGER) {
                region.marked = false;
                region.durable = false;
            }
            if region.marked {
                raw.bits[index / 8] |= 1 << (index % 8);
            }
        }
        raw.csum = sum(&raw).into();
        raw.as_bytes().to_vec()
    }

    /// A page is on disk.
    pub(crate) fn written(&self, page: &[u8]) {
        let Ok((raw, _)) = RawPage::ref_from_prefix(page) else { return };
        for (index, region) in self.regions.borrow_mut().iter_mut().enumerate() {
            region.durable = region.marked && raw.bits[index / 8] >> (index % 8) & 1 == 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use varve_block::{Sector, Sectors};

    fn at(start: u64, len: u64) -> Extent {
        Extent::new(Sector(start), Sectors(len))
    }

    fn later(s: u64) -> Instant {
        Instant(s * 1_000_000_000)
    }

    const SET: Owner = Owner { set: Uuid::from_u128(1), seq: 7 };
    const VOLUME: Uuid = Uuid::from_u128(2);

    #[test]
    fn a_region_is_marked_before_and_until_some_time_after() {
        let intents = Intents::new(1 << 20);
        assert!(!intents.begin(at(5000, 8)));
        let page = intents.page(SET, VOLUME, later(0), false);
        assert_eq!(
            parse(&page, SET),
            Marked::Ranges { volume: VOLUME, ranges: vec![(4096, 8192)] }
        );
        assert!(!intents.is_durable(at(5000, 8)), "not before it is written");
        intents.written(&page);
        assert!(intents.begin(at(4096, 4096)), "the same region again costs nothing");
        intents.end(at(5000, 8), later(1));
        let settling = intents.begin_settling();
        intents.end(at(4096, 4096), later(2));
        intents.end_settling(settling);
        let page = intents.page(SET, VOLUME, later(100), true);
        assert_ne!(parse(&page, SET), Marked::Nothing, "the settling began before the end");
        intents.end_settling(intents.begin_settling());
        let page = intents.page(SET, VOLUME, later(3), false);
        assert_ne!(parse(&page, SET), Marked::Nothing, "it lingers");
        let page = intents.page(SET, VOLUME, later(20), false);
        assert_eq!(parse(&page, SET), Marked::Nothing);
        assert!(!intents.begin(at(5000, 8)), "it has to be marked again");
    }

    #[test]
    fn a_torn_page_marks_everything_and_a_foreign_one_nothing() {
        let intents = Intents::new(1 << 40);
        intents.begin(at(0, 1 << 40));
        let page = intents.page(SET, VOLUME, later(0), false);
        let Marked::Ranges { ranges, .. } = parse(&page, SET) else { panic!("marks") };
        assert!(ranges[0].0 == 0 && ranges[0].1 >= 1 << 40 && ranges.len() == 1);
        assert_eq!(parse(&page, Owner { set: VOLUME, ..SET }), Marked::Nothing);
        assert_eq!(parse(&page, Owner { seq: 8, ..SET }), Marked::Nothing, "started since");
        let mut torn = page.clone();
        torn[2048..].fill(0);
        assert_eq!(parse(&torn, SET), Marked::Everything);
        assert_eq!(parse(&[0; 4096], SET), Marked::Nothing);
        assert_eq!(parse(&[], SET), Marked::Nothing);
    }
}
