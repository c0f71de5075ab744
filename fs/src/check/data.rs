//! File data against its checksums, on every copy there is.
//!
//! The checksum tree is walked once more, and what it covers is read in the order of its addresses,
//! a megabyte at a time and four of them at once; each is hashed where it was read to, on the workers
//! if there are any, while others are being read. What is in memory is those four.

use super::finding::Findings;
use super::owners;
use super::roots::Roots;
use super::run::Run;
use super::runs::Runs;
use super::walk::{Step, Walk};
use crate::csum::{Digest, Found};
use crate::error::Place;
use crate::format::key::{ItemType, objectid};
use crate::format::superblock::SuperFlags;
use crate::tree::node::TreeBlock;
use crate::units::{Logical, Physical, to_usize};
use crate::volume::{Fetched, Sums, Volume};
use std::cell::RefCell;
use std::sync::Arc;
use varve_block::sync::join_all;
use varve_block::{BlockDevice, Rt, chain};

/// Bytes of one request at most.
const WINDOW: u64 = 1 << 20;
/// Bytes between two checksummed ranges that are read rather than stepped over.
const BRIDGE: u64 = 64 << 10;
/// Windows that are read or hashed at once.
const AT_ONCE: usize = 4;
/// Windows, and bytes, whose faults are put in order together.
const BATCH_WINDOWS: usize = 256;
const BATCH_BYTES: u64 = 64 << 20;
/// Bad runs that are told one by one.
const BAD_MAX: usize = 20_000;

/// What was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DataCounts {
    /// Bytes that were compared with a checksum, each copy counted.
    pub verified: u64,
    /// Of those, and of those that could not be read, the bad ones.
    pub bad: u64,
}

/// What is wrong with a sector.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Fault {
    /// The digests as they are to be printed.
    Csum {
        found: String,
        expected: String,
    },
    Unreadable(String),
    /// No copy is on a device that is there.
    Missing,
}

impl Fault {
    fn same_kind(&self, other: &Fault) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

/// Consecutive bad sectors of one copy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Bad {
    pub(super) start: u64,
    pub(super) end: u64,
    /// 0: all of them.
    pub(super) mirror: usize,
    pub(super) place: Option<Physical>,
    /// Of the first sector.
    pub(super) fault: Fault,
}

/// A stretch of addresses with its digests.
struct Plan {
    at: u64,
    len: u64,
    mirrors: usize,
    sums: Arc<Sums>,
    /// Sectors of which no copy was good or bad yet: all devices that hold them are missing.
    unknown: Vec<bool>,
}

/// What one copy of a plan's bytes is like.
struct Look {
    mirror: usize,
    /// The device failed somewhere in it.
    failed: bool,
    /// The sectors whose digest is another one.
    wrong: Vec<(usize, Digest)>,
}

/// Reads and compares everything that has a checksum.
pub(super) async fn verify<D: BlockDevice>(
    run: &mut Run<'_, '_, D>,
    roots: &Roots,
    csums: &Runs,
    rt: Option<&Rt>,
) -> DataCounts {
    let sb = run.sb();
    if sb.flags.intersects(SuperFlags::METADUMP | SuperFlags::METADUMP_V2) {
        let text = "a metadata dump holds no file data: none was verified";
        run.findings.warn(super::Code::DataCsum, Place::default(), text);
        return DataCounts::default();
    }
    let Some(tree) = roots.tree(objectid::CSUM_TREE) else { return DataCounts::default() };
    let volume = run.reader.volume;
    let mut pass = Pass {
        volume,
        rt,
        sector: volume.rules.sectorsize.into(),
        queue: Vec::new(),
        queued: 0,
        bad: Vec::new(),
        overflow: 0,
        counts: DataCounts::default(),
    };
    let expected: u64 =
        csums.iter().map(|run| pass.copies(run.start) * (run.end - run.start)).sum();
    let mut walk = Walk::new(run.reader, tree, None);
    while let Some(step) = walk.next().await {
        let Step::Block(block) = step else { continue };
        if block.level() == 0 {
            pass.leaf(&block);
        }
        if pass.queue.len() >= BATCH_WINDOWS || pass.queued >= BATCH_BYTES {
            pass.flush().await;
            run.tell_data(pass.counts.verified, expected);
        }
    }
    run.reader.forget();
    pass.flush().await;
    let Pass { bad, overflow, counts, .. } = pass;
    if overflow > 0 {
        let text = format!("and {overflow} more runs of bad sectors, which are not listed");
        run.findings.add(super::Code::DataCsum, Place::default(), text);
    }
    owners::tell(run, roots, bad).await;
    counts
}

struct Pass<'a, D: BlockDevice> {
    volume: &'a Volume<D>,
    rt: Option<&'a Rt>,
    sector: u64,
    queue: Vec<Plan>,
    queued: u64,
    bad: Vec<Bad>,
    overflow: u64,
    counts: DataCounts,
}

impl<D: BlockDevice> Pass<'_, D> {
    /// How many copies are compared: of parity, what P and what Q give, but not every pair of lost
    /// stripes that they could make up for.
    fn copies(&self, at: u64) -> u64 {
        self.volume.chunks().borrow().map(Logical(at), 1).map_or(1, |piece| {
            let parity = piece.row.as_ref().map_or(0, |row| 1 + usize::from(row.q.is_some()));
            (piece.copies.len() + parity) as u64
        })
    }

    /// Plans the reads for one leaf of the checksum tree.
    fn leaf(&mut self, block: &TreeBlock) {
        let each = self.volume.rules.csum.size();
        let items: Vec<(u64, &[u8])> = (0..block.len())
            .filter_map(|slot| block.item(slot))
            .filter(|(key, data)| {
                let sectors = (data.len() / each) as u64;
                key.kind == ItemType::EXTENT_CSUM
                    && key.offset.is_multiple_of(self.sector)
                    && sectors
                        .checked_mul(self.sector)
                        .is_some_and(|len| key.offset.checked_add(len).is_some())
            })
            .map(|(key, data)| (key.offset, data))
            .collect();
        let sector = self.sector;
        let len_of = |data: &[u8]| (data.len() / each) as u64 * sector;
        let mut from = 0;
        while from < items.len() {
            let start = items[from].0;
            let mut to = from;
            let mut end = start;
            while let Some(&(at, data)) = items.get(to)
                && at <= end.saturating_add(BRIDGE)
            {
                end = end.max(at + len_of(data));
                to += 1;
            }
            self.stretch(&items[from..to], start, end);
            from = to;
        }
    }

    /// Cuts a stretch into windows, each inside one chunk.
    fn stretch(&mut self, items: &[(u64, &[u8])], start: u64, end: u64) {
        let each = self.volume.rules.csum.size();
        let sector = self.sector;
        let size = |data: &[u8]| (data.len() / each) as u64 * sector;
        let mut at = start;
        let mut first = 0;
        while at < end {
            let room = {
                let chunks = self.volume.chunks().borrow();
                chunks
                    .find(Logical(at))
                    .map(|(from, chunk)| chunk.length - (at.wrapping_sub(from.0)))
            };
            // Checksums of what no chunk holds were told by another phase.
            let Some(room) = room else {
                at += self.sector;
                continue;
            };
            let len = (end - at).min(WINDOW).min(room - room % self.sector);
            if len == 0 {
                at += self.sector;
                continue;
            }
            let mut sums = Sums::new(each, to_usize(len / self.sector));
            while items.get(first).is_some_and(|(from, data)| from + size(data) <= at) {
                first += 1;
            }
            for &(from, data) in items[first..].iter().take_while(|(from, _)| *from < at + len) {
                if from + size(data) > at {
                    let (skip, to) = (at.saturating_sub(from), from.saturating_sub(at));
                    sums.put(data, skip / self.sector, to / self.sector);
                }
            }
            let sectors = to_usize(len / self.sector);
            let unknown = (0..sectors as u64).map(|n| sums.at(n).is_some()).collect();
            let mirrors = to_usize(self.copies(at));
            self.queue.push(Plan { at, len, mirrors, sums: Arc::new(sums), unknown });
            self.queued += len;
            at += len;
        }
    }

    /// Reads what is planned, every copy, and compares it.
    async fn flush(&mut self) {
        let mut plans = std::mem::take(&mut self.queue);
        self.queued = 0;
        let looks: Vec<RefCell<Vec<Look>>> = plans.iter().map(|_| RefCell::default()).collect();
        let todo = RefCell::new(plans.iter().zip(&looks));
        let this = &*self;
        let reader = || async {
            loop {
                let next = todo.borrow_mut().next();
                let Some((plan, looks)) = next else { return };
                let seen = this.look(plan).await;
                *looks.borrow_mut() = seen;
            }
        };
        join_all((0..AT_ONCE).map(|_| reader()).collect::<Vec<_>>()).await;
        let looks: Vec<_> = looks.into_iter().map(RefCell::into_inner).collect();
        // Copy after copy: runs of bad sectors go on from window to window.
        let most = plans.iter().map(|plan| plan.mirrors).max().unwrap_or(0);
        for mirror in 1..=most {
            for (plan, looks) in plans.iter_mut().zip(&looks) {
                if let Some(look) = looks.iter().find(|look| look.mirror == mirror) {
                    self.settle(plan, look).await;
                }
            }
        }
        for plan in &plans {
            self.missing(plan);
        }
    }

    /// Every copy that is there.
    async fn look(&self, plan: &Plan) -> Vec<Look> {
        let mut looks = Vec::new();
        for mirror in 1..=plan.mirrors {
            if self.absent(plan.at, plan.len, mirror) {
                continue;
            }
            let len = to_usize(plan.len);
            let look = match self.volume.fetch_mirror(Logical(plan.at), mirror, len).await {
                Ok(bytes) => {
                    let wrong = self.compare(plan, bytes).await;
                    Look { mirror, failed: false, wrong }
                }
                Err(_) => Look { mirror, failed: true, wrong: Vec::new() },
            };
            looks.push(look);
        }
        looks
    }

    /// The sectors whose digests differ from what they should be.
    async fn compare(&self, plan: &Plan, bytes: Fetched) -> Vec<(usize, Digest)> {
        let (csum, sector, sums) =
            (self.volume.rules.csum, to_usize(self.sector), Arc::clone(&plan.sums));
        let work = move || {
            let sectors = bytes.chunks_exact(sector).enumerate();
            let wrong = sectors.filter_map(|(n, bytes)| {
                let wanted = sums.at(n as u64)?;
                let digest = csum.digest(bytes);
                (digest.bytes() != wanted).then_some((n, digest))
            });
            wrong.collect()
        };
        match self.rt {
            Some(rt) => rt.offload(work).await,
            None => work(),
        }
    }

    /// Whether nothing of this copy is on a device that is there.
    fn absent(&self, at: u64, len: u64, mirror: usize) -> bool {
        let mut at = at;
        let end = at + len;
        while at < end {
            let Ok(piece) = self.volume.chunks().borrow().map(Logical(at), end - at) else {
                return false;
            };
            if !self.gone(Logical(at), mirror) {
                return false;
            }
            at += piece.len.max(1);
        }
        true
    }

    /// Whether this copy needs a device that is missing.
    fn gone(&self, at: Logical, mirror: usize) -> bool {
        let Ok(piece) = self.volume.chunks().borrow().map(at, self.sector) else { return false };
        let here = |place: &Physical| {
            self.volume.members().iter().any(|member| member.devid == place.devid)
        };
        if let Some(place) = piece.copies.get(mirror.wrapping_sub(1)) {
            return !here(place);
        }
        piece.row.is_some_and(|row| {
            let others = row.data.iter().enumerate().filter(|(n, _)| *n != row.wanted);
            let parity = if mirror == 1 + piece.copies.len() { Some(row.p) } else { row.q };
            !others.map(|(_, place)| place).chain(parity.iter()).all(here)
        })
    }

    /// Takes in what one copy is like.
    async fn settle(&mut self, plan: &mut Plan, look: &Look) {
        if look.failed {
            // Somewhere in it the device gave up: each sector by itself.
            for n in 0..plan.unknown.len() {
                if plan.sums.at(n as u64).is_some() {
                    self.single(plan, n, look.mirror).await;
                }
            }
            return;
        }
        for n in 0..plan.unknown.len() {
            if plan.sums.at(n as u64).is_some() {
                plan.unknown[n] = false;
                self.counts.verified += self.sector;
            }
        }
        for (n, digest) in &look.wrong {
            let fault = self.mismatch(&plan.sums, *n, digest);
            self.note(plan.at + *n as u64 * self.sector, look.mirror, fault);
        }
    }

    async fn single(&mut self, plan: &mut Plan, n: usize, mirror: usize) {
        let at = plan.at + n as u64 * self.sector;
        if self.gone(Logical(at), mirror) {
            return;
        }
        let mut bytes = vec![0; to_usize(self.sector)];
        plan.unknown[n] = false;
        match self.volume.read_mirror(Logical(at), mirror, &mut bytes).await {
            Err(error) => self.note(at, mirror, Fault::Unreadable(chain(&error))),
            Ok(()) => {
                self.counts.verified += self.sector;
                let digest = self.volume.rules.csum.digest(&bytes);
                if plan.sums.at(n as u64).is_some_and(|wanted| wanted != digest.bytes()) {
                    let fault = self.mismatch(&plan.sums, n, &digest);
                    self.note(at, mirror, fault);
                }
            }
        }
    }

    fn mismatch(&self, sums: &Sums, n: usize, digest: &Digest) -> Fault {
        let wanted = sums.at(n as u64).unwrap_or(&[]);
        let expected = Found(wanted, self.volume.rules.csum).to_string();
        Fault::Csum { found: digest.to_string(), expected }
    }

    /// Sectors that nobody could say anything about.
    fn missing(&mut self, plan: &Plan) {
        for (n, unknown) in (0u64..).zip(&plan.unknown) {
            if *unknown {
                self.note(plan.at + n * self.sector, 0, Fault::Missing);
            }
        }
    }

    fn note(&mut self, at: u64, mirror: usize, fault: Fault) {
        self.counts.bad += self.sector;
        let place = {
            let chunks = self.volume.chunks().borrow();
            let piece = chunks.map(Logical(at), 1).ok();
            piece.and_then(|piece| piece.copies.get(mirror.wrapping_sub(1)).copied())
        };
        let end = at + self.sector;
        if let Some(last) = self.bad.last_mut()
            && last.end == at
            && last.mirror == mirror
            && last.fault.same_kind(&fault)
            && follows(last, place)
        {
            last.end = end;
        } else if self.bad.len() < BAD_MAX {
            self.bad.push(Bad { start: at, end, mirror, place, fault });
        } else {
            self.overflow += 1;
        }
    }
}

/// Whether `place` is where the run ends on its device.
fn follows(run: &Bad, place: Option<Physical>) -> bool {
    match (run.place, place) {
        (Some(first), Some(next)) => {
            first.devid == next.devid
                && first.byte.checked_add(run.end - run.start) == Some(next.byte)
        }
        (None, None) => true,
        _ => false,
    }
}

/// A finding for a run that is bad on one copy, or on all.
pub(super) fn words(bad: &Bad, sectorsize: u64) -> String {
    let Bad { start, end, mirror, place, fault } = bad;
    let count = (end - start) / sectorsize;
    let sectors = if count == 1 { "1 sector".to_owned() } else { format!("{count} sectors") };
    let copy = match place {
        Some(place) => format!("mirror {mirror}, {place}"),
        None if *mirror == 0 => "every mirror".to_owned(),
        None => format!("mirror {mirror}, rebuilt from parity"),
    };
    match fault {
        Fault::Csum { found, expected } => format!(
            "csum failed at logical {start}, {sectors}: csum {found} expected csum {expected} {copy}"
        ),
        Fault::Unreadable(error) => {
            format!("data at logical {start}, {sectors}, cannot be read: {copy}: {error}")
        }
        Fault::Missing => {
            format!("data at logical {start}, {sectors}, is on missing devices only")
        }
    }
}

/// What the runs that are bad are told as.
pub(super) fn code(fault: &Fault) -> super::Code {
    match fault {
        Fault::Csum { .. } => super::Code::DataCsum,
        Fault::Unreadable(_) | Fault::Missing => super::Code::DataUnreadable,
    }
}

/// Kept here so that findings know nothing of runs.
pub(super) fn tell(
    findings: &Findings,
    bad: &Bad,
    files: Vec<super::FileAt>,
    note: &str,
    sector: u64,
) {
    let first = files.first();
    let place = Place {
        root: first.map(|file| file.root),
        inode: first.map(|file| file.inode),
        offset: first.map(|file| file.offset),
        logical: Some(Logical(bad.start)),
    };
    let message = format!("{}{note}", words(bad, sector));
    findings.add_data(code(&bad.fault), place, message, (bad.mirror, bad.place), files);
}
