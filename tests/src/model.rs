//! The reference: what a block device may answer, and what a crash may leave of it.
//!
//! A device is small enough to be modelled exactly. Per sector the model keeps the versions that may
//! still be on the medium, oldest first: the last one known to be durable, then every change since,
//! in the order in which the export admitted them. From that follows
//!
//! - what a **read** must return: the last change admitted before it, or, where that one failed, what
//!   was there before it;
//! - what a **flush** forgets: everything older than the last change that had *finished* when the
//!   flush was asked for. Changes in flight stay possible, older ones do not come back;
//! - what a **crash** may leave: any version that is left, in any combination of sectors.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;

/// The model's unit, and the smallest one that any of our media keeps whole.
pub const SECTOR: usize = 512;

type Content = Arc<[u8]>;

#[derive(Clone)]
enum What {
    /// One of these: several where an earlier change failed.
    OneOf(Vec<Content>),
    /// These bytes of the sector change, from this offset on; the others are those of the version
    /// before.
    Part(usize, Content),
    /// Trimmed, or never written: no promise.
    Anything,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    InFlight,
    /// Finished at this event.
    Done(u64),
    Failed,
}

struct Version {
    change: u64,
    what: What,
    state: State,
}

/// A change that was admitted and has not been answered.
#[must_use]
pub struct Change {
    number: u64,
    sectors: std::ops::Range<u64>,
}

impl Change {
    pub fn number(&self) -> u64 {
        self.number
    }
}

/// A read that was admitted: which version of each sector it may see.
#[must_use]
pub struct Read {
    offset: u64,
    len: usize,
    /// The last change of each sector at admission.
    last: Vec<u64>,
}

/// A flush that was asked for.
#[must_use]
pub struct Flush(u64);

/// What the model does not allow.
#[derive(Debug, Clone)]
pub struct Wrong {
    pub sector: u64,
    pub when: &'static str,
    pub saw: String,
    pub allowed: String,
    /// The latest changes and lives that concern the sector, oldest first.
    pub history: Vec<String>,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} sector {}: saw {}, allowed: {}; history: {}",
            self.when,
            self.sector,
            self.saw,
            self.allowed,
            self.history.join(", ")
        )
    }
}

/// The contents a version may have; `None` means any.
type Set = Option<Vec<Content>>;

fn union(a: Set, b: Set) -> Set {
    let mut both = a?;
    both.extend(b?);
    Some(both)
}

#[derive(Default)]
struct History {
    versions: VecDeque<Version>,
}

impl History {
    /// What version `k` may hold.
    fn contents(&self, k: usize) -> Set {
        match &self.versions[k].what {
            What::OneOf(set) => Some(set.clone()),
            What::Anything => None,
            What::Part(at, bytes) => {
                let base = k.checked_sub(1).and_then(|below| self.visible(below));
                let patched = base?.into_iter().map(|content| {
                    let mut whole = content.to_vec();
                    whole[*at..*at + bytes.len()].copy_from_slice(bytes);
                    whole.into()
                });
                Some(patched.collect())
            }
        }
    }

    /// What may be seen when version `k` is the last one admitted.
    fn visible(&self, k: usize) -> Set {
        let mine = self.contents(k);
        match (self.versions[k].state, k.checked_sub(1)) {
            (State::InFlight | State::Failed, Some(below)) => union(mine, self.visible(below)),
            _ => mine,
        }
    }

    /// What a crash may leave.
    fn survivors(&self) -> Set {
        let all = 0..self.versions.len();
        all.map(|k| self.contents(k)).fold(Some(Vec::new()), union)
    }

    /// Where a change is, or the oldest version if it has been forgotten.
    fn place(&self, change: u64) -> usize {
        let place = self.versions.iter().position(|v| v.change == change);
        place.unwrap_or(0)
    }

    /// Everything older than version `k` is gone.
    fn forget_below(&mut self, k: usize) {
        self.versions[k].what = self.contents(k).map_or(What::Anything, What::OneOf);
        self.versions.drain(..k);
    }

    /// A part whose base is known becomes whole, so that chains of parts stay short.
    fn settle(&mut self, k: usize) {
        let waits = |v: &Version| v.state == State::InFlight;
        if !self.versions.range(..k).any(waits) {
            self.versions[k].what = self.contents(k).map_or(What::Anything, What::OneOf);
        }
    }
}

/// One line of the model's diary.
enum Event {
    Change { number: u64, name: &'static str, sectors: std::ops::Range<u64> },
    Finished { number: u64, ok: bool, durable: bool },
    Flushed,
    Crash,
}

pub struct Model {
    sectors: Vec<History>,
    diary: Vec<Event>,
    /// Sectors with more than one version.
    open: BTreeSet<u64>,
    changes: u64,
    events: u64,
}

impl Model {
    /// A device of so many bytes about which nothing is known.
    pub fn new(bytes: u64) -> Model {
        let sectors = usize::try_from(bytes / SECTOR as u64).expect("a small device");
        let unknown = || History {
            versions: VecDeque::from([Version {
                change: 0,
                what: What::Anything,
                state: State::Done(0),
            }]),
        };
        Model {
            sectors: (0..sectors).map(|_| unknown()).collect(),
            diary: Vec::new(),
            open: BTreeSet::new(),
            changes: 0,
            events: 0,
        }
    }

    pub fn size(&self) -> u64 {
        (self.sectors.len() * SECTOR) as u64
    }

    fn history(&self, sector: u64) -> &History {
        &self.sectors[usize::try_from(sector).expect("on the device")]
    }

    fn history_mut(&mut self, sector: u64) -> &mut History {
        &mut self.sectors[usize::try_from(sector).expect("on the device")]
    }

    fn admit(
        &mut self,
        name: &'static str,
        offset: u64,
        len: u64,
        what: impl Fn(u64) -> Option<What>,
    ) -> Change {
        self.changes += 1;
        let number = self.changes;
        let size = SECTOR as u64;
        let sectors = offset / size..(offset + len).div_ceil(size);
        for sector in sectors.clone() {
            if let Some(what) = what(sector) {
                self.open.insert(sector);
                self.history_mut(sector).versions.push_back(Version {
                    change: number,
                    what,
                    state: State::InFlight,
                });
            }
        }
        self.diary.push(Event::Change { number, name, sectors: sectors.clone() });
        Change { number, sectors }
    }

    /// The last lines of the diary that concern a sector.
    fn history_of(&self, sector: u64) -> Vec<String> {
        let mut mine = BTreeSet::new();
        let mut lines = Vec::new();
        for event in &self.diary {
            match event {
                Event::Change { number, name, sectors } if sectors.contains(&sector) => {
                    mine.insert(*number);
                    lines.push(format!("{number}: {name} {}..{}", sectors.start, sectors.end));
                }
                Event::Finished { number, ok, durable } if mine.contains(number) => {
                    let how = if *durable { " durably" } else { "" };
                    let end = if *ok { "done" } else { "failed" };
                    lines.push(format!("{number} {end}{how}"));
                }
                Event::Flushed => lines.push("flushed".to_owned()),
                Event::Crash => lines.push("-- restart --".to_owned()),
                _ => {}
            }
        }
        lines.dedup();
        lines.split_off(lines.len().saturating_sub(16))
    }

    /// A new life begins.
    pub fn restarted(&mut self) {
        self.diary.push(Event::Crash);
    }

    /// The number that the next change will have, for filling its bytes.
    pub fn next_change(&self) -> u64 {
        self.changes + 1
    }

    /// A write is admitted. Call it in the step that asks the export.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Change {
        self.change("write", offset, bytes)
    }

    fn change(&mut self, name: &'static str, offset: u64, bytes: &[u8]) -> Change {
        let len = bytes.len() as u64;
        self.admit(name, offset, len, |sector| {
            let start = (sector * SECTOR as u64).max(offset);
            let end = ((sector + 1) * SECTOR as u64).min(offset + len);
            let int = |n: u64| usize::try_from(n).expect("within a request");
            let content: Content = bytes[int(start - offset)..int(end - offset)].into();
            Some(if content.len() == SECTOR {
                What::OneOf(vec![content])
            } else {
                What::Part(int(start - sector * SECTOR as u64), content)
            })
        })
    }

    pub fn write_zeroes(&mut self, offset: u64, len: u64) -> Change {
        self.change("zero", offset, &vec![0; usize::try_from(len).expect("a request")])
    }

    /// A trim is admitted: whole sectors inside may become anything.
    pub fn trim(&mut self, offset: u64, len: u64) -> Change {
        self.admit("trim", offset, len, |sector| {
            let (start, end) = (sector * SECTOR as u64, (sector + 1) * SECTOR as u64);
            (offset <= start && end <= offset + len).then_some(What::Anything)
        })
    }

    /// A change is answered: `ok`, and durable if it was asked to be.
    pub fn finish(&mut self, change: Change, ok: bool, durable: bool) {
        self.events += 1;
        let event = self.events;
        self.diary.push(Event::Finished { number: change.number, ok, durable });
        for sector in change.sectors.clone() {
            let history = self.history_mut(sector);
            let place = history.versions.iter();
            let Some(k) = place.clone().position(|v| v.change == change.number) else {
                continue; // a trim leaves its edges alone
            };
            history.versions[k].state = if ok { State::Done(event) } else { State::Failed };
            history.settle(k);
            if ok && durable {
                history.forget_below(k);
            }
        }
        if ok && durable {
            self.close(change.sectors);
        }
    }

    pub fn flush(&mut self) -> Flush {
        self.events += 1;
        Flush(self.events)
    }

    /// A flush was answered well.
    pub fn flushed(&mut self, flush: &Flush) {
        self.diary.push(Event::Flushed);
        let open: Vec<u64> = self.open.iter().copied().collect();
        for sector in open.iter().copied() {
            let history = self.history_mut(sector);
            let done = |v: &Version| matches!(v.state, State::Done(at) if at < flush.0);
            if let Some(k) = history.versions.iter().rposition(done) {
                history.forget_below(k);
            }
        }
        self.close(open.into_iter());
    }

    fn close(&mut self, sectors: impl Iterator<Item = u64>) {
        for sector in sectors {
            if self.history(sector).versions.len() == 1 {
                self.open.remove(&sector);
            }
        }
    }

    /// A read is admitted.
    pub fn read(&self, offset: u64, len: usize) -> Read {
        let size = SECTOR as u64;
        let last = offset / size..(offset + len as u64).div_ceil(size);
        let last = last.map(|s| self.history(s).versions.back().map_or(0, |v| v.change));
        Read { offset, len, last: last.collect() }
    }

    /// A read is answered with these bytes.
    pub fn seen(&self, read: &Read, bytes: &[u8]) -> Result<(), Wrong> {
        assert!(bytes.len() == read.len, "a read fills its buffer");
        let first = read.offset / SECTOR as u64;
        for (sector, &last) in (first..).zip(&read.last) {
            let history = self.history(sector);
            let allowed = history.visible(history.place(last));
            self.compare("read", sector, allowed, read.offset, bytes)?;
        }
        Ok(())
    }

    /// After a crash these bytes were read. If the stack `settles`, they are what is there from now
    /// on; otherwise any version that was possible stays so until it is overwritten.
    pub fn recovered(&mut self, offset: u64, bytes: &[u8], settles: bool) -> Result<(), Wrong> {
        assert!(offset.is_multiple_of(SECTOR as u64), "whole sectors");
        let first = offset / SECTOR as u64;
        for (sector, content) in (first..).zip(bytes.chunks(SECTOR)) {
            let allowed = self.history(sector).survivors();
            let left = match &allowed {
                Some(set) if !settles => set.clone(),
                _ => vec![content.into()],
            };
            self.compare("after the crash", sector, allowed, offset, bytes)?;
            self.pin(sector, What::OneOf(left));
        }
        Ok(())
    }

    /// After a crash this sector cannot be read. Allowed only where a change was not durable, or
    /// nothing was known.
    pub fn unreadable(&mut self, sector: u64) -> Result<(), Wrong> {
        let versions = &self.history(sector).versions;
        let anything = |v: &Version| matches!(v.what, What::Anything);
        if versions.len() < 2 && !versions.iter().any(anything) {
            return Err(Wrong {
                sector,
                when: "after the crash",
                saw: "an error".into(),
                allowed: describe_set(&self.history(sector).survivors(), sector),
                history: self.history_of(sector),
            });
        }
        self.pin(sector, What::Anything);
        Ok(())
    }

    fn pin(&mut self, sector: u64, what: What) {
        self.open.remove(&sector);
        let change = self.changes;
        let history = self.history_mut(sector);
        history.versions.clear();
        history.versions.push_back(Version { change, what, state: State::Done(0) });
    }

    /// Compares the part of `sector` that a buffer from `offset` on covers.
    fn compare(
        &self,
        when: &'static str,
        sector: u64,
        allowed: Set,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), Wrong> {
        let base = sector * SECTOR as u64;
        let start = base.max(offset);
        let end = (base + SECTOR as u64).min(offset + bytes.len() as u64);
        let int = |n: u64| usize::try_from(n).expect("within a request");
        let saw = &bytes[int(start - offset)..int(end - offset)];
        let within = int(start - base)..int(end - base);
        let fine = match &allowed {
            None => true,
            Some(set) => set.iter().any(|c| c[within.clone()] == *saw),
        };
        if fine {
            return Ok(());
        }
        Err(Wrong {
            sector,
            when,
            saw: describe(saw, start),
            allowed: describe_set(&allowed, sector),
            history: self.history_of(sector),
        })
    }
}

/// Fills the bytes of change `number` at `offset`, so that each eight of them tell whose they are
/// and where they belong.
pub fn fill(number: u64, offset: u64, bytes: &mut [u8]) {
    for (index, byte) in bytes.iter_mut().enumerate() {
        let position = offset + index as u64;
        let word = (number << 40) | (position >> 3);
        let which = usize::try_from(position & 7).expect("below 8");
        *byte = word.to_le_bytes()[which];
    }
}

/// Bytes in words a person can use.
fn describe(bytes: &[u8], position: u64) -> String {
    let mut found: BTreeMap<String, usize> = BTreeMap::new();
    let skip = usize::try_from(position.wrapping_neg() & 7).expect("below 8");
    for word in bytes.get(skip..).unwrap_or_default().chunks_exact(8) {
        let word = u64::from_le_bytes(word.try_into().expect("eight bytes"));
        let (change, place) = (word >> 40, (word & ((1 << 40) - 1)) << 3);
        let name = match word {
            0 => "zeroes".to_owned(),
            _ if change > 0 && change < 1 << 20 && place < 1 << 30 => {
                format!("change {change} of sector {}", place / SECTOR as u64)
            }
            _ => "noise".to_owned(),
        };
        *found.entry(name).or_default() += 1;
    }
    let parts = found.iter().map(|(name, n)| format!("{name} ({n} words)"));
    parts.collect::<Vec<_>>().join(" + ")
}

fn describe_set(set: &Set, sector: u64) -> String {
    match set {
        None => "anything".to_owned(),
        Some(set) => {
            let each = set.iter().map(|c| describe(c, sector * SECTOR as u64));
            each.collect::<Vec<_>>().join(" | ")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sector(byte: u8) -> Vec<u8> {
        vec![byte; SECTOR]
    }

    fn model() -> Model {
        let mut model = Model::new(4096);
        model.recovered(0, &[0; 4096], true).unwrap();
        model
    }

    fn write(model: &mut Model, offset: u64, bytes: &[u8]) {
        let change = model.write(offset, bytes);
        model.finish(change, true, false);
    }

    #[test]
    fn a_flush_forgets_what_was_before_it_but_not_what_is_in_flight() {
        let mut m = model();
        write(&mut m, 0, &sector(1));
        let flush = m.flush();
        let late = m.write(0, &sector(2));
        m.flushed(&flush);
        let crash = |m: &Model| m.history(0).survivors().unwrap().iter().map(|c| c[0]).collect();
        let left: Vec<u8> = crash(&m);
        assert_eq!(left, [1, 2]);
        m.finish(late, true, true);
        let left: Vec<u8> = crash(&m);
        assert_eq!(left, [2]);
    }

    #[test]
    fn a_write_that_finished_during_the_flush_is_not_covered() {
        let mut m = model();
        let change = m.write(0, &sector(1));
        let flush = m.flush();
        m.finish(change, true, false);
        m.flushed(&flush);
        m.recovered(0, &sector(0), true).unwrap();
    }

    #[test]
    fn reads_see_the_last_write_admitted_before_them() {
        let mut m = model();
        write(&mut m, 0, &sector(1));
        let read = m.read(0, SECTOR);
        write(&mut m, 0, &sector(2));
        m.seen(&read, &sector(1)).unwrap();
        m.seen(&read, &sector(2)).unwrap_err();
        let failed = m.write(0, &sector(3));
        m.finish(failed, false, false);
        let read = m.read(0, SECTOR);
        m.seen(&read, &sector(2)).unwrap();
        m.seen(&read, &sector(3)).unwrap();
        m.seen(&read, &sector(1)).unwrap_err();
    }

    #[test]
    fn a_part_of_a_sector_builds_on_what_was_there() {
        let mut m = model();
        write(&mut m, 0, &sector(1));
        let failed = m.write(0, &sector(2));
        m.finish(failed, false, false);
        write(&mut m, 10, &[9; 4]);
        let with = |byte| {
            let mut s = sector(byte);
            s[10..14].fill(9);
            s
        };
        let read = m.read(0, SECTOR);
        m.seen(&read, &with(1)).unwrap();
        m.seen(&read, &with(2)).unwrap();
        m.seen(&read, &with(0)).unwrap_err();
        m.seen(&m.read(11, 2), &[9; 2]).unwrap();
        let flush = m.flush();
        m.flushed(&flush);
        m.recovered(0, &sector(1), true).unwrap_err();
        m.recovered(0, &with(2), true).unwrap();
        let read = m.read(0, SECTOR);
        m.seen(&read, &with(1)).unwrap_err();
    }

    #[test]
    fn a_stack_that_does_not_settle_may_change_its_mind_until_the_next_write() {
        let mut m = model();
        write(&mut m, 0, &sector(1));
        m.recovered(0, &sector(0), false).unwrap();
        m.seen(&m.read(0, SECTOR), &sector(1)).unwrap();
        write(&mut m, 0, &sector(2));
        m.seen(&m.read(0, SECTOR), &sector(1)).unwrap_err();
    }

    #[test]
    fn a_trim_promises_nothing_inside_and_touches_nothing_outside() {
        let mut m = model();
        write(&mut m, 0, &vec![1; 4 * SECTOR]);
        let trim = m.trim(100, 3 * 512);
        m.finish(trim, true, true);
        m.seen(&m.read(512, 1024), &[7; 1024]).unwrap();
        m.seen(&m.read(0, 512), &[7; 512]).unwrap_err();
        m.seen(&m.read(1536, 512), &[7; 512]).unwrap_err();
    }

    #[test]
    fn what_is_durable_must_be_readable() {
        let mut m = model();
        m.unreadable(3).unwrap_err();
        let change = m.write(3 * 512, &sector(1));
        m.unreadable(3).unwrap();
        drop(change);
    }

    #[test]
    fn bytes_tell_whose_they_are() {
        let mut bytes = vec![0; 1000];
        fill(17, 513, &mut bytes);
        assert_eq!(describe(&bytes[..504], 513), "change 17 of sector 1 (62 words)");
        assert_eq!(describe(&[0; 16], 0), "zeroes (2 words)");
    }
}
