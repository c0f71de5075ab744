//! The journal ring: which of the entries in it count.
//!
//! ```text
//! ring bucket   0            1            2 (newest)        3
//!             | 17 18 19   | 20 21 22   | 23 24 | 7 8 ..  | 11 12 13 14 |
//!                                               ^ the lap before: perfect sums, never needed again
//! newest = 24, its last_seq = 19: entries 19 to 24 are replayed, in that order
//! ```
//!
//! Only `seq` tells what counts. A bucket that holds anything has an entry at its start, so the
//! first entries of all buckets order the ring; it is read backwards from the newest bucket until
//! everything down to `last_seq` is there.

use varve_block::BlockDevice;

use crate::error::{Corrupt, LoadError, Place};
use crate::format::journal::{AtBlock, JSET_BYTES_MAX};
use crate::format::{Bucket, CacheSuper, JournalEntry, Layout, SECTOR_BYTES, SetMagic};
use crate::load::Loader;

/// An entry and where it was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Located {
    pub entry: JournalEntry,
    /// Number in the ring, 0 for `first_bucket`.
    pub ring: usize,
    /// Sector on the device.
    pub sector: u64,
}

impl Located {
    pub(crate) fn place(&self) -> Place {
        Place { seq: Some(self.entry.seq), ..Place::sector(self.sector) }
    }
}

/// Every entry that was found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ring {
    /// In no particular order.
    pub entries: Vec<Located>,
    /// Entries behind the lap boundary of their bucket.
    pub previous_lap: Vec<Located>,
    /// Entries that break off a bucket (15): torn writes, harmless unless they were needed.
    pub broken: Vec<Corrupt>,
}

/// What recovery needs of the journal.
#[derive(Clone, Debug)]
pub(crate) struct Selected {
    /// Without gaps, oldest first; never empty. The last one names the roots of everything.
    pub entries: Vec<Located>,
}

impl Selected {
    pub(crate) fn newest(&self) -> &Located {
        self.entries.last().expect("a selection holds its newest entry")
    }

    /// The keys to replay, oldest first, with the entry they come from.
    pub(crate) fn keys(&self) -> impl Iterator<Item = (&Located, &crate::format::Key)> {
        self.entries.iter().flat_map(|at| at.entry.keys.iter().map(move |key| (at, key)))
    }
}

/// All entries of one ring bucket, up to the first that does not check.
/// `bytes` is the bucket, or its beginning.
pub(crate) fn bucket_entries(
    bytes: &[u8],
    ring: usize,
    bucket: Bucket,
    magic: SetMagic,
    layout: &Layout,
) -> Ring {
    let mut found = Ring::default();
    let block = layout.block_bytes();
    let mut at = 0;
    let mut last = None;
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        let sector = layout.bucket_start(bucket) + (at / SECTOR_BYTES) as u64;
        let place = Place { bucket: Some(bucket), ..Place::sector(sector) };
        match JournalEntry::parse(rest, magic, layout, place) {
            AtBlock::Entry(entry, blocks) => {
                at += blocks * block;
                let located = Located { entry: *entry, ring, sector };
                if last.is_some_and(|last| located.entry.seq < last) {
                    found.previous_lap.push(located);
                } else if found.previous_lap.is_empty() {
                    last = Some(located.entry.seq);
                    found.entries.push(located);
                } else {
                    found.previous_lap.push(located);
                }
            }
            AtBlock::Nothing => break,
            AtBlock::Broken(corrupt) => {
                found.broken.push(corrupt);
                break;
            }
        }
    }
    found
}

/// Checks 14, 16, 17 and 18: the entries from `last_seq` of the newest one on.
pub(crate) fn select(ring: &Ring, discard: bool) -> Result<Selected, Corrupt> {
    let Some(mut entries) = live(ring) else {
        let place = Place::default();
        return Err(Corrupt::row(14, "journal", place, "entries", 0, "at least one valid entry"));
    };
    let last_seq = entries.last().map_or(0, |newest| newest.entry.last_seq);
    if let Some(newest) = entries.last() {
        newest.entry.check_seq()?;
    }
    order_findings(&entries, &ring.previous_lap, last_seq)
        .into_iter()
        .next()
        .map_or(Ok(()), Err)?;
    entries.dedup_by_key(|at| at.entry.seq);
    gap(&entries, last_seq, discard).map_or(Ok(Selected { entries }), Err)
}

/// The entries that count, sorted by seq: those from the newest one's `last_seq` on. None when there
/// is no entry at all.
pub(crate) fn live(ring: &Ring) -> Option<Vec<Located>> {
    let mut entries: Vec<Located> = ring.entries.clone();
    entries.sort_by_key(|at| at.entry.seq);
    let newest = &entries.last()?.entry;
    let last_seq = newest.last_seq.min(newest.seq);
    entries.retain(|at| at.entry.seq >= last_seq);
    Some(entries)
}

/// Check 18: every seq from `last_seq` on is there.
pub(crate) fn gap(entries: &[Located], last_seq: u64, discard: bool) -> Option<Corrupt> {
    let mut want = last_seq;
    for (index, at) in entries.iter().enumerate() {
        let seq = at.entry.seq;
        // With discard on, leading buckets of the live range may have been discarded already.
        let discarded = discard && index == 0;
        if seq > want && !discarded {
            let found = format!("entries {want} to {} missing", seq - 1);
            let expected = format!("every entry from {last_seq} on");
            return Some(Corrupt::row(18, "journal", at.place(), "seq", found, expected));
        }
        want = seq.saturating_add(1);
    }
    None
}

/// Checks 16 and 17 over entries sorted by seq, of which those from `last_seq` on count.
pub(crate) fn order_findings(
    entries: &[Located],
    previous_lap: &[Located],
    last_seq: u64,
) -> Vec<Corrupt> {
    let wrong = |row, at: &Located, field, found: &dyn std::fmt::Display, expected: &str| {
        Corrupt::row(row, "journal", at.place(), field, found, expected)
    };
    let mut findings = Vec::new();
    for pair in entries.windows(2) {
        let [a, b] = pair else { continue };
        if a.entry.seq == b.entry.seq && a.entry != b.entry {
            let found = format!("another entry at sector {}", a.sector);
            findings.push(wrong(16, b, "seq", &found, "one entry of this seq"));
        }
        if b.entry.last_seq < a.entry.last_seq {
            let expected = format!("at least {}", a.entry.last_seq);
            findings.push(wrong(17, b, "last_seq", &b.entry.last_seq, &expected));
        }
    }
    for at in previous_lap.iter().filter(|at| at.entry.seq >= last_seq) {
        let expected = format!("entries before {last_seq} behind the lap boundary");
        findings.push(wrong(16, at, "seq", &at.entry.seq, &expected));
    }
    findings
}

impl<D: BlockDevice> Loader<'_, D> {
    /// Reads the ring. `whole`: all of every bucket (for the checker); otherwise as much as the
    /// newest entry asks for.
    pub(crate) async fn ring(&self, sb: &CacheSuper, whole: bool) -> Result<Ring, LoadError> {
        let layout = &sb.layout;
        let magic = sb.set_magic();
        let head = (JSET_BYTES_MAX / SECTOR_BYTES) as u64;
        let head = head.min(layout.bucket_size.into());
        let mut firsts = Vec::new();
        let mut all = Ring::default();
        for (ring, bucket) in sb.journal().enumerate() {
            let bytes = self.read(layout.bucket_start(bucket), head).await?;
            let found = bucket_entries(&bytes, ring, bucket, magic, layout);
            match found.entries.first() {
                Some(first) => firsts.push((first.entry.seq, ring, bucket)),
                None => all.broken.extend(found.broken),
            }
        }
        firsts.sort_unstable();
        let mut oldest = None;
        for (first_seq, ring, bucket) in firsts.into_iter().rev() {
            let start = layout.bucket_start(bucket);
            let bytes = self.read(start, layout.bucket_size.into()).await?;
            let found = bucket_entries(&bytes, ring, bucket, magic, layout);
            let newest = found.entries.last();
            let oldest = *oldest.get_or_insert(newest.map_or(0, |at| at.entry.last_seq));
            all.broken.extend(found.broken);
            all.entries.extend(found.entries);
            all.previous_lap.extend(found.previous_lap);
            if first_seq <= oldest && !whole {
                break;
            }
        }
        Ok(all)
    }

    /// The entries that recovery replays, each of them sound in itself.
    pub(crate) async fn journal(&self, sb: &CacheSuper) -> Result<Selected, LoadError> {
        let selected = select(&self.ring(sb, false).await?, sb.discard())?;
        let newest = &selected.newest().entry;
        newest.check(&sb.layout)?;
        for at in &selected.entries {
            at.entry.check_keys(&sb.layout)?;
        }
        Ok(selected)
    }
}
