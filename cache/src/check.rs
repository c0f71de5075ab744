//! The offline checker: every rule that a set must keep, each with its number.
//!
//! Findings are collected; one broken structure does not hide the next. The numbers are stable: they
//! are the rows of [`ROWS`], in scripts and bug reports `bcache-37` will always be a set out of
//! order. Nothing is written.
//!
//! What is judged is what a *start* would find: generations recovered from the tree, the journal
//! replayed over it. The kernel itself notices about half of these rows; the others it serves.

mod extents;
mod index;
mod rows;

use std::fmt;

use varve_block::{BlockDevice, BufPool, DevId};

pub use rows::{ROWS, Row, Severity};

use crate::error::{Corrupt, LoadError, Place, Rule};
use crate::format::superblock::SUPERBLOCK_SECTOR;
use crate::format::{BackingState, BackingSuper, CacheSuper, Superblock, UuidTable};
use crate::load::Loader;
use crate::show::Content;

/// More findings than this are counted, not kept.
const FINDINGS_MAX: usize = 10_000;

/// One broken rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Number of the rule, see [`ROWS`].
    pub row: u8,
    pub severity: Severity,
    pub dev: DevId,
    pub corrupt: Corrupt,
}

impl Finding {
    /// The stable name: `bcache-37`.
    pub fn code(&self) -> String {
        format!("bcache-{}", self.row)
    }

    /// What is wrong, and where: set, bucket, node, key.
    pub fn message(&self) -> String {
        self.corrupt.to_string()
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}: {}", self.code(), self.severity, self.dev, self.corrupt)
    }
}

/// The verdict.
#[derive(Debug, Default)]
pub struct Report {
    pub findings: Vec<Finding>,
    /// Findings beyond the limit.
    pub suppressed: u64,
    pub cache: Option<CacheSuper>,
    pub backing: Option<BackingSuper>,
    /// What the set holds, as far as it could be read.
    pub content: Option<Content>,
}

impl Report {
    /// The worst severity there is.
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).max()
    }

    /// Whether anything but notes was found.
    pub fn has_problems(&self) -> bool {
        self.worst() > Some(Severity::Note)
    }
}

/// What to do beyond the structures.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct CheckOptions {
    /// Read every dirty extent, and compare every clean one with the backing device (54).
    pub data: bool,
}

/// Collects.
struct Checker<'a> {
    report: Report,
    pool: &'a BufPool,
    options: CheckOptions,
}

/// Checks a cache device, a backing device, or both as a pair.
pub async fn check<S: BlockDevice, B: BlockDevice>(
    ssd: Option<&S>,
    hdd: Option<&B>,
    options: CheckOptions,
) -> Report {
    let pool = BufPool::new(8 << 20);
    let mut checker = Checker { report: Report::default(), pool: &pool, options };
    if let Some(hdd) = hdd {
        checker.backing(&Loader::new(hdd, &pool)).await;
    }
    if let Some(ssd) = ssd {
        let loader = Loader::new(ssd, &pool);
        checker.cache(&loader).await;
        checker.pair(&loader.dev());
        if let Some(sb) = checker.report.cache.clone().filter(CacheSuper::sync) {
            checker.content(&loader, sb, hdd).await;
        }
    }
    checker.report
}

impl Checker<'_> {
    fn add(&mut self, dev: &DevId, corrupt: Corrupt) {
        let row = match corrupt.rule {
            Rule::Row(row) => row,
            // Our own checks of the write path; a reader meets only the first, a merge gone wrong.
            Rule::Online(_) => 39,
        };
        let severity = rows::severity(row);
        self.add_as(severity, dev, row, corrupt);
    }

    /// A rule whose breach is no harm in this case.
    fn note(&mut self, dev: &DevId, corrupt: Corrupt) {
        if let Rule::Row(row) = corrupt.rule {
            self.add_as(Severity::Note, dev, row, corrupt);
        }
    }

    fn add_as(&mut self, severity: Severity, dev: &DevId, row: u8, corrupt: Corrupt) {
        if self.report.findings.len() >= FINDINGS_MAX {
            self.report.suppressed += 1;
            return;
        }
        let corrupt = match &self.report.cache {
            Some(sb) => corrupt.in_set(sb.set_uuid),
            None => corrupt,
        };
        self.report.findings.push(Finding { row, severity, dev: dev.clone(), corrupt });
    }

    /// A structure that could not be read; `row` and `what` are its own.
    fn add_load(
        &mut self,
        dev: &DevId,
        row: u8,
        what: &'static str,
        place: Place,
        error: LoadError,
    ) {
        let corrupt = match error {
            LoadError::Corrupt(corrupt) => corrupt,
            LoadError::Device(failed) => Corrupt::row(
                row,
                what,
                place,
                "read",
                varve_block::chain(&failed),
                "readable sectors",
            ),
        };
        self.add(dev, corrupt);
    }

    async fn superblock<D: BlockDevice>(
        &mut self,
        loader: &Loader<'_, D>,
        cache: bool,
    ) -> Option<Superblock> {
        let dev = loader.dev();
        let place = Place::sector(SUPERBLOCK_SECTOR);
        let (version, expected) = match loader.superblock().await {
            Ok(Superblock::Cache(sb)) if !cache => (sb.version, "a backing device: 1, 4 or 6"),
            Ok(Superblock::Backing(sb)) if cache => (sb.version, "a cache device: 0, 3 or 5"),
            Ok(superblock) => return Some(superblock),
            Err(error) => {
                self.add_load(&dev, 1, "superblock", place, error);
                return None;
            }
        };
        self.add(&dev, Corrupt::row(3, "superblock", place, "version", version, expected));
        None
    }

    /// Checks 1 to 5, 11 and 13 of a backing device.
    async fn backing<D: BlockDevice>(&mut self, loader: &Loader<'_, D>) {
        let Some(Superblock::Backing(sb)) = self.superblock(loader, false).await else { return };
        self.odd_flags(&loader.dev(), sb.odd_flags());
        self.report.backing = Some(sb);
    }

    /// Checks 1 to 12 of a cache device.
    async fn cache<D: BlockDevice>(&mut self, loader: &Loader<'_, D>) {
        let Some(Superblock::Cache(sb)) = self.superblock(loader, true).await else { return };
        let dev = loader.dev();
        let place = Place::sector(SUPERBLOCK_SECTOR);
        self.report.cache = Some(sb.clone());
        self.odd_flags(&dev, sb.odd_flags());
        if !sb.sync() {
            let found = "clear: formatted, no content; the first start erases";
            self.add(
                &dev,
                Corrupt::row(12, "superblock", place, "SYNC", found, "set once started"),
            );
        } else if sb.journal_buckets != sb.layout.njournal() {
            let expected = sb.layout.njournal();
            let found = sb.journal_buckets;
            self.note(&dev, Corrupt::row(10, "superblock", place, "keys", found, expected));
        }
    }

    fn odd_flags(&mut self, dev: &DevId, odd: Option<u64>) {
        if let Some(flags) = odd {
            let place = Place::sector(SUPERBLOCK_SECTOR);
            let found = crate::error::Hex(flags);
            let corrupt = Corrupt::row(11, "superblock", place, "flags", found, "known bits");
            self.add(dev, corrupt);
        }
    }

    /// Check 53: both devices mean the same set.
    fn pair(&mut self, dev: &DevId) {
        let (Some(cache), Some(backing)) = (&self.report.cache, &self.report.backing) else {
            return;
        };
        let bound = matches!(backing.state(), BackingState::Clean | BackingState::Dirty);
        if bound && cache.set_uuid != backing.set_uuid {
            let place = Place::sector(SUPERBLOCK_SECTOR);
            let (found, expected) = (cache.set_uuid, backing.set_uuid);
            self.add(dev, Corrupt::row(53, "superblock", place, "set_uuid", found, expected));
        }
    }

    /// Whether the backing device says that it belongs to this very set.
    fn attached(&self) -> Option<&BackingSuper> {
        let (cache, backing) = (self.report.cache.as_ref()?, self.report.backing.as_ref()?);
        let bound = matches!(backing.state(), BackingState::Clean | BackingState::Dirty);
        (bound && cache.set_uuid == backing.set_uuid).then_some(backing)
    }

    /// Check 27: the volume has its slot. Returns its inode.
    fn slot_of_backing(&mut self, dev: &DevId, uuids: &UuidTable) -> Option<u32> {
        let backing = self.attached()?.uuid;
        let found: Vec<u32> = uuids
            .numbered()
            .filter(|(_, slot)| slot.in_use() && slot.uuid == backing)
            .map(|(inode, _)| inode)
            .collect();
        if found.len() != 1 {
            let expected = format!("one slot of volume {backing}");
            let place = Place::default();
            self.add(dev, Corrupt::row(27, "uuid table", place, "slots", found.len(), expected));
        }
        found.first().copied()
    }
}

#[cfg(test)]
mod tests;
