//! Block status, as the server says it, in the device's units.

use crate::nbd::wire::{AllocationFlags, StatusExtent};
use varve_block::{Extent, ExtentStatus, Sector, Sectors};

/// The server's extents, in bytes, as runs of whole blocks: a block that is partly data is data.
pub(super) fn runs(range: Extent, block: Sectors, extents: &[StatusExtent]) -> Vec<ExtentStatus> {
    let unit = block.bytes();
    let end = range.end().byte();
    let mut runs: Vec<ExtentStatus> = Vec::with_capacity(extents.len());
    let mut push = |from: u64, to: u64, flags: AllocationFlags| {
        if from < to {
            let range = Extent::between(Sector::containing(from), Sector::containing(to));
            let (hole, zero) = (AllocationFlags::HOLE, AllocationFlags::ZERO);
            let (hole, zero) = (flags.contains(hole), flags.contains(zero));
            runs.push(ExtentStatus { range, hole, zero });
        }
    };
    // `at`: where the server's extents are; `done`: where ours are.
    let (mut at, mut done) = (range.start.byte(), range.start.byte());
    for extent in extents {
        let from = at.next_multiple_of(unit).max(done);
        at = at.saturating_add(extent.length.get().into()).min(end);
        let flags = AllocationFlags::from_bits_truncate(extent.flags.get());
        let special = !flags.is_empty() && at / unit * unit > from;
        let (from, to) = match special {
            true => (from, at / unit * unit),
            false => (done, at.next_multiple_of(unit).min(end)),
        };
        push(done, from, AllocationFlags::empty());
        push(from, to, if special { flags } else { AllocationFlags::empty() });
        done = to.max(done);
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Our runs are adjacent, begin where the range does, go on as long as whole blocks are
        /// known, and promise nothing of a byte that the server did not promise.
        #[test]
        fn runs_say_what_the_server_said_and_no_more(
            start in 0_u64..4, len in 1_u64..40, block in 0_u32..4,
            said in proptest::collection::vec((1_u32..3000, 0_u32..4), 1..20),
        ) {
            let block = Sectors(1 << block);
            let range = Extent::new(Sector(start * block.0), block * len);
            let flags_at = |byte: u64| {
                let mut at = range.start.byte();
                said.iter().find_map(|(n, flags)| {
                    at += u64::from(*n);
                    (byte < at).then_some(*flags)
                })
            };
            let raw: Vec<_> = said
                .iter()
                .map(|(n, flags)| StatusExtent { length: (*n).into(), flags: (*flags).into() })
                .collect();
            let mut at = range.start;
            for run in runs(range, block, &raw) {
                prop_assert_eq!(run.range.start, at);
                prop_assert!(run.range.len.is_multiple_of(block) && !run.range.is_empty());
                for byte in run.range.start.byte()..run.range.end().byte() {
                    let told = flags_at(byte).unwrap_or(0);
                    prop_assert!(!run.hole || told & 1 != 0, "byte {byte}");
                    prop_assert!(!run.zero || told & 2 != 0, "byte {byte}");
                }
                at = run.range.end();
            }
            prop_assert!(at > range.start && at <= range.end());
            let known = said.iter().map(|(n, _)| u64::from(*n)).sum::<u64>();
            let known = (range.start.byte() + known).min(range.end().byte());
            prop_assert!(at.byte() + block.bytes() > known, "{at:?} of {known}");
        }
    }
}
