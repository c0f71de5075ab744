//! The disk's inside: which version of each unit is where.

use super::image::{Image, Unit};
use super::plan::{Effect, Plan};
use crate::device::{ExtentStatus, Geometry};
use crate::error::{ErrorKind, Op};
use crate::rt::{Instant, Prng};
use crate::units::{Extent, Sector, Sectors};
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;

/// How an operation ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It has not.
    Pending,
    Done,
    Failed(ErrorKind),
}

/// One line of the disk's log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    pub number: u64,
    pub op: Op,
    pub at: Extent,
    pub fua: bool,
    pub begun: Instant,
    pub ended: Instant,
    pub outcome: Outcome,
}

const LOG_MAX: usize = 10_000;

/// When a write was answered, in events of this disk; shared by its units. `u64::MAX`: not yet.
type Finished = Rc<Cell<u64>>;

struct Version {
    write: u64,
    bytes: Unit,
    finished: Finished,
}

/// A change on its way: units from `next` on have not taken effect.
struct InFlight {
    first: u64,
    new: Vec<Unit>,
    next: usize,
    finished: Finished,
}

pub(super) struct State {
    pub(super) geometry: Geometry,
    pub(super) plan: Plan,
    /// No power: nothing is answered.
    pub(super) off: bool,
    /// Everything fails.
    pub(super) dead: bool,
    /// A flush has failed.
    pub(super) poisoned: bool,
    pub(super) digest: u64,
    stable: Image,
    /// Versions above the stable one, oldest first. Reads see the last.
    volatile: BTreeMap<u64, Vec<Version>>,
    in_flight: BTreeMap<u64, InFlight>,
    /// Bits that read wrong, beside the medium: unit, byte in it, mask.
    flipped: BTreeMap<u64, (usize, u8)>,
    /// Counts answers and barriers, so that "finished before the flush began" is a comparison.
    events: u64,
    next: u64,
    /// How many operations each fault has looked at.
    seen: Vec<u64>,
    log: VecDeque<Record>,
}

impl State {
    pub(super) fn new(geometry: Geometry, image: Image, plan: Plan) -> State {
        State {
            geometry,
            off: false,
            dead: false,
            poisoned: false,
            digest: 0,
            stable: image,
            volatile: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            flipped: BTreeMap::new(),
            events: 0,
            next: 0,
            seen: vec![0; plan.faults.len()],
            log: VecDeque::new(),
            plan,
        }
    }

    pub(super) fn set_plan(&mut self, plan: Plan) {
        self.seen = vec![0; plan.faults.len()];
        self.plan = plan;
    }

    pub(super) fn begun(&self) -> u64 {
        self.next
    }

    /// The units of a range, which the geometry has made whole.
    pub(super) fn units_of(&self, at: Extent) -> Range<u64> {
        let unit = self.stable.unit().0;
        at.start.0 / unit..at.end().0 / unit
    }

    pub(super) fn begin(
        &mut self,
        op: Op,
        at: Extent,
        fua: bool,
        now: Instant,
        chance: &Prng,
    ) -> (u64, Option<Effect>) {
        let number = self.next;
        self.next += 1;
        if self.log.len() == LOG_MAX {
            self.log.pop_front();
        }
        self.log.push_back(Record {
            number,
            op,
            at,
            fua,
            begun: now,
            ended: now,
            outcome: Outcome::Pending,
        });
        let mut effect = None;
        for (fault, seen) in self.plan.faults.iter().zip(&mut self.seen) {
            if fault.looks_at(op, at) {
                *seen += 1;
                if effect.is_none() && fault.picks(*seen, chance) {
                    effect = Some(fault.effect);
                }
            }
        }
        (number, effect)
    }

    pub(super) fn end(&mut self, number: u64, outcome: Outcome, now: Instant, sum: u64) {
        let oldest = self.log.front().map_or(0, |r| r.number);
        let place = number.checked_sub(oldest).map(usize::try_from);
        let mut line = [number, now.0, sum, 0];
        if let Some(Ok(place)) = place
            && let Some(record) = self.log.get_mut(place)
        {
            record.outcome = outcome;
            record.ended = now;
            line[3] = record.at.start.0 ^ record.at.len.0.rotate_left(40) ^ record.begun.0;
        }
        for word in line {
            self.digest = Prng::new(self.digest ^ word).next_u64();
        }
    }

    pub(super) fn log(&self) -> Vec<Record> {
        self.log.iter().copied().collect()
    }

    pub(super) fn cut_units(&self, data: &[u8]) -> Vec<Unit> {
        data.chunks(self.stable.unit_len()).map(Unit::from).collect()
    }

    pub(super) fn zeroes(&self, range: Extent) -> Vec<Unit> {
        let zero: Unit = vec![0; self.stable.unit_len()].into();
        let units = self.units_of(range);
        units.map(|_| Rc::clone(&zero)).collect()
    }

    /// Discarded units hold anything: zeroes, what they held, or noise.
    pub(super) fn discarded(&self, range: Extent, chance: &Prng) -> Vec<Unit> {
        let zero: Unit = vec![0; self.stable.unit_len()].into();
        self.units_of(range)
            .map(|unit| match chance.below(3) {
                0 => Rc::clone(&zero),
                1 => self.current(unit).cloned().unwrap_or(Rc::clone(&zero)),
                _ => {
                    let mut noise = vec![0; self.stable.unit_len()];
                    chance.fill(&mut noise);
                    noise.into()
                }
            })
            .collect()
    }

    fn current(&self, unit: u64) -> Option<&Unit> {
        match self.volatile.get(&unit).and_then(|v| v.last()) {
            Some(version) => Some(&version.bytes),
            None => self.stable.units.get(&unit),
        }
    }

    /// Copies what reads see of `units` into the buffer of a read at `at`.
    pub(super) fn look(
        &self,
        units: Range<u64>,
        at: Extent,
        buf: &mut [u8],
    ) -> Result<(), ErrorKind> {
        let len = self.stable.unit_len();
        let first = self.units_of(at).start;
        for unit in units {
            let lost = self.stable.lost.contains(&unit);
            if self.dead || (lost && !self.volatile.contains_key(&unit)) {
                return Err(ErrorKind::Io);
            }
            let place = usize::try_from(unit - first).expect("within a request") * len;
            let out = &mut buf[place..place + len];
            match self.current(unit) {
                Some(bytes) => out.copy_from_slice(bytes),
                None => out.fill(0),
            }
            if let Some((byte, mask)) = self.flipped.get(&unit) {
                out[*byte] ^= mask;
            }
        }
        Ok(())
    }

    pub(super) fn flip(&mut self, byte: u64, mask: u8) {
        let len = self.stable.unit_len() as u64;
        let within = usize::try_from(byte % len).expect("below a unit");
        self.flipped.insert(byte / len, (within, mask));
    }

    /// A change is on its way to the medium.
    pub(super) fn submit(&mut self, number: u64, at: Extent, new: Vec<Unit>) {
        let first = self.units_of(at).start;
        let change = InFlight { first, new, next: 0, finished: Rc::new(Cell::new(u64::MAX)) };
        self.in_flight.insert(number, change);
    }

    /// The next `count` units of a change take effect: reads see them.
    pub(super) fn apply(&mut self, number: u64, count: usize) {
        let change = self.in_flight.get_mut(&number).expect("on its way");
        let end = change.next.saturating_add(count).min(change.new.len());
        for index in change.next..end {
            let unit = change.first + index as u64;
            self.flipped.remove(&unit);
            self.volatile.entry(unit).or_default().push(Version {
                write: number,
                bytes: Rc::clone(&change.new[index]),
                finished: Rc::clone(&change.finished),
            });
        }
        change.next = end;
    }

    /// A change failed. What it did of its work is there for reads to see; a flush from now on
    /// makes that durable, as it does with whatever else the cache holds.
    pub(super) fn abandon(&mut self, number: u64) {
        let change = self.in_flight.remove(&number).expect("on its way");
        change.finished.set(self.barrier());
    }

    /// A change is answered; with `fua`, its units are stable.
    pub(super) fn complete(&mut self, number: u64, fua: bool) {
        let change = self.in_flight.remove(&number).expect("on its way");
        change.finished.set(self.barrier());
        if !fua && self.geometry.volatile_cache {
            return;
        }
        for index in 0..change.new.len() {
            let unit = change.first + index as u64;
            let mine = |v: &Version| Rc::ptr_eq(&v.finished, &change.finished);
            self.settle(unit, mine);
        }
    }

    /// A moment between events: what was answered before has a smaller number.
    pub(super) fn barrier(&mut self) -> u64 {
        self.events += 1;
        self.events
    }

    /// A flush that began at `barrier` is answered.
    pub(super) fn stabilise(&mut self, barrier: u64) {
        let units: Vec<u64> = self.volatile.keys().copied().collect();
        for unit in units {
            self.settle(unit, |v| v.finished.get() < barrier);
        }
    }

    /// The last version of a unit that qualifies is stable, and the older ones are gone.
    fn settle(&mut self, unit: u64, qualifies: impl Fn(&Version) -> bool) {
        let Some(versions) = self.volatile.get_mut(&unit) else {
            return;
        };
        let Some(last) = versions.iter().rposition(qualifies) else {
            return;
        };
        let stable = versions.drain(..=last).next_back().expect("one at least");
        if versions.is_empty() {
            self.volatile.remove(&unit);
        }
        self.stable.units.insert(unit, stable.bytes);
        self.stable.lost.remove(&unit);
    }

    pub(super) fn settled(&self) -> Image {
        let mut image = self.stable.clone();
        for (&unit, versions) in &self.volatile {
            if let Some(last) = versions.last() {
                image.units.insert(unit, Rc::clone(&last.bytes));
                image.lost.remove(&unit);
            }
        }
        image
    }

    /// For each unit its stable version or any later one, also of what was still on its way.
    pub(super) fn crash(&self, chance: &Prng) -> Image {
        let mut image = self.stable.clone();
        let mut later: BTreeMap<u64, Vec<(u64, &Unit, bool)>> = BTreeMap::new();
        for (&unit, versions) in &self.volatile {
            let versions = versions.iter();
            let versions = versions.map(|v| (v.write, &v.bytes, v.finished.get() == u64::MAX));
            later.entry(unit).or_default().extend(versions);
        }
        for (&write, change) in &self.in_flight {
            for (index, bytes) in change.new.iter().enumerate().skip(change.next) {
                let unit = change.first + index as u64;
                later.entry(unit).or_default().push((write, bytes, true));
            }
        }
        // Independent coins seldom lose everything, or keep it, or tear nothing but one write, which
        // is what simple bugs need.
        let (mood, salt) = (chance.below(5), chance.next_u64());
        let kept = |write: u64| Prng::new(salt ^ write).chance(1, 2);
        for (unit, versions) in later {
            let pick = match mood {
                0 => None,
                1 => versions.last(),
                2 => versions.iter().rfind(|(write, ..)| kept(*write)),
                _ => chance.index(versions.len() + 1).checked_sub(1).map(|i| &versions[i]),
            };
            let torn = versions.iter().any(|(.., unfinished)| *unfinished);
            if torn && self.plan.torn_units_unreadable && chance.chance(1, 4) {
                image.lost.insert(unit);
            } else if let Some((_, bytes, _)) = pick {
                image.units.insert(unit, Rc::clone(bytes));
                image.lost.remove(&unit);
            }
        }
        image
    }

    pub(super) fn extents(&self, range: Extent, limit: usize) -> Vec<ExtentStatus> {
        let size = self.stable.unit();
        let mut runs: Vec<ExtentStatus> = Vec::new();
        for unit in self.units_of(range) {
            let hole = self.current(unit).is_none();
            let full = runs.len() == limit.max(1);
            match runs.last_mut() {
                Some(last) if last.hole == hole => last.range.len += size,
                _ if full => break,
                _ => runs.push(ExtentStatus {
                    range: Extent::new(Sector(unit * size.0), Sectors(size.0)),
                    hole,
                    zero: hole,
                }),
            }
        }
        runs
    }
}
