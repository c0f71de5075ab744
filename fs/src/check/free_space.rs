//! The free space tree against what the extent tree leaves.

use super::extents::logical;
use super::finding::{Code, Findings};
use super::run::Run;
use super::runs::Runs;
use crate::format::free_space::FreeSpaceInfo;
use crate::format::key::{ItemType, Key};
use crate::tree::node::TreeBlock;
use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use varve_block::BlockDevice;

/// What the tree says.
pub(crate) struct FreeSpace {
    sectorsize: u64,
    infos: BTreeMap<u64, (u64, FreeSpaceInfo)>,
    runs: Runs,
    /// Where the last entry ends.
    end: u64,
}

/// Where mkfs put its temporary groups, of 4, 8 and (with several devices) again 8 MiB, before it made
/// the real ones. Their entries touch, and make one run.
const TEMPORARY: Range<u64> = 1 << 20..21 << 20;

fn is_leftover(at: u64, len: u64) -> bool {
    at >= TEMPORARY.start && at.saturating_add(len) <= TEMPORARY.end
}

impl FreeSpace {
    pub(crate) fn new(sectorsize: u32) -> FreeSpace {
        let runs = Runs::new(sectorsize);
        let sectorsize = u64::from(sectorsize).max(1);
        FreeSpace { sectorsize, infos: BTreeMap::new(), runs, end: 0 }
    }

    pub(crate) fn leaf(&mut self, block: &TreeBlock, findings: &Findings) {
        for slot in 0..block.len() {
            let Some((key, data)) = block.item(slot) else { continue };
            self.item(key, data, findings);
        }
    }

    fn item(&mut self, key: Key, data: &[u8], findings: &Findings) {
        let (at, len) = (key.objectid, key.offset);
        let tell = |text: String| findings.add(Code::FreeSpaceTree, logical(at), text);
        match key.kind {
            ItemType::FREE_SPACE_INFO => match FreeSpaceInfo::parse(data) {
                Ok(info) => {
                    self.infos.insert(at, (len, info));
                }
                Err(wrong) => tell(format!("free space info {key}: {wrong}")),
            },
            ItemType::FREE_SPACE_EXTENT | ItemType::FREE_SPACE_BITMAP => {
                let aligned = at.is_multiple_of(self.sectorsize)
                    && len.is_multiple_of(self.sectorsize)
                    && len > 0;
                let Some(end) = at.checked_add(len).filter(|_| aligned) else {
                    return tell(format!("free space entry {key} is not aligned to sectors"));
                };
                if at < self.end {
                    tell(format!("free space entry {key} overlaps one that ends at {}", self.end));
                }
                self.end = self.end.max(end);
                if key.kind == ItemType::FREE_SPACE_EXTENT {
                    if !data.is_empty() {
                        tell(format!("free space entry {key} has {} bytes, expect 0", data.len()));
                    }
                    self.runs.add(at, len);
                } else {
                    self.bitmap(key, data, tell);
                }
            }
            _ => tell(format!("unknown key {key} in the free space tree")),
        }
    }

    fn bitmap(&mut self, key: Key, data: &[u8], tell: impl Fn(String)) {
        let bits = key.offset / self.sectorsize;
        if data.len() as u64 != bits.div_ceil(8) {
            tell(format!("free space bitmap {key} has {} bytes", data.len()));
        }
        for (byte, bits_here) in (0u64..).zip(data) {
            for bit in (0..8).filter(|bit| bits_here & (1 << bit) != 0) {
                let n = byte * 8 + bit;
                if n >= bits {
                    return tell(format!("free space bitmap {key} has a bit behind its end"));
                }
                self.runs.add(key.objectid + n * self.sectorsize, self.sectorsize);
            }
        }
    }
}

/// Group by group: the same free bytes, in as many runs as the info item says.
pub(crate) fn judge<D: BlockDevice>(run: &Run<'_, '_, D>, free: &Option<FreeSpace>) {
    let Some(free) = free else { return };
    let findings = run.findings;
    for (&start, (length, _)) in &run.space.groups {
        let Some(end) = start.checked_add(*length) else { continue };
        let Some((info_len, info)) = free.infos.get(&start) else {
            let text = format!("missing free space info for block group {start}");
            findings.add(Code::FreeSpaceTree, logical(start), text);
            continue;
        };
        if info_len != length {
            let text = format!(
                "free space info of block group {start} has length {info_len}, expect {length}"
            );
            findings.add(Code::FreeSpaceTree, logical(start), text);
        }
        let have: Vec<_> = free.runs.within(start..end).collect();
        if have.len() as u64 != u64::from(info.extent_count) {
            let text = format!(
                "free space info of block group {start} recorded {} extents, counted {}",
                info.extent_count,
                have.len()
            );
            findings.add(Code::FreeSpaceTree, logical(start), text);
        }
        let want = run.space.allocated.gaps_in(start..end);
        if have == want {
            continue;
        }
        for gap in &want {
            for missing in free.runs.gaps_in(gap.clone()) {
                let text =
                    format!("there is no free space entry for {}-{}", missing.start, missing.end);
                findings.add(Code::FreeSpaceTree, logical(missing.start), text);
            }
        }
        for run_free in have {
            for wrong in run.space.allocated.within(run_free) {
                let text = format!(
                    "free space entry covers allocated space {}-{}",
                    wrong.start, wrong.end
                );
                findings.add(Code::FreeSpaceTree, logical(wrong.start), text);
            }
        }
    }
    for (&start, (length, _)) in &free.infos {
        if !run.space.groups.contains_key(&start) {
            outside(findings, start, *length);
        }
    }
    for entry in free.runs.iter() {
        for part in between_groups(&run.space.groups, entry) {
            outside(findings, part.start, part.end - part.start);
        }
    }
}

/// The parts of `entry` that no block group covers. A group may have any length, none too.
fn between_groups<T>(groups: &BTreeMap<u64, (u64, T)>, entry: Range<u64>) -> Vec<Range<u64>> {
    let mut parts = Vec::new();
    let mut at = entry.start;
    while at < entry.end {
        let group = groups.range(..=at).next_back();
        let end = group.map_or(at, |(start, (length, _))| start.saturating_add(*length));
        if end > at {
            at = end;
            continue;
        }
        let next = groups.range((Bound::Excluded(at), Bound::Unbounded)).next();
        let to = next.map_or(entry.end, |(start, _)| entry.end.min(*start));
        parts.push(at..to);
        at = to;
    }
    parts
}

fn outside(findings: &Findings, at: u64, len: u64) {
    let text = format!("Space key logical {at} length {len} has no corresponding block group");
    let code = if is_leftover(at, len) { Code::FreeSpaceLeftover } else { Code::FreeSpaceTree };
    findings.add(code, logical(at), text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_of_mkfs_are_known_by_their_place() {
        assert!(is_leftover(1 << 20, 4 << 20));
        assert!(is_leftover(1 << 20, 20 << 20), "all groups in one run");
        assert!(!is_leftover(1 << 20, 21 << 20));
        assert!(!is_leftover(30 << 20, 4096));
        assert!(!is_leftover(2 << 20, u64::MAX));
    }

    #[test]
    fn what_lies_between_groups_ends_also_at_a_group_of_no_length() {
        let groups = BTreeMap::from([(10, (10, ())), (30, (0, ())), (40, (5, ()))]);
        assert_eq!(between_groups(&groups, 12..18), []);
        assert_eq!(between_groups(&groups, 15..60), [20..30, 30..40, 45..60]);
        assert_eq!(between_groups(&groups, 5..35), [5..10, 20..30, 30..35]);
    }
}
