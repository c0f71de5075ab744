//! Where the references found differ from those recorded: which, and how.

use super::extents::logical;
use super::finding::Code;
use super::refs::{By, Counted, Refs};
use super::roots::Roots;
use super::run::Run;
use varve_block::BlockDevice;

/// Passes over the trees at most; each lists 128 MiB of references.
const PASSES_MAX: usize = 16;

/// Walks again, for the extents whose references did not balance, and tells what is wrong with them.
pub(super) async fn explain<D: BlockDevice>(run: &mut Run<'_, '_, D>, roots: &Roots) {
    let mut bad = match &mut run.refs {
        Refs::Sum(sums) => sums.settle(),
        Refs::List(_) => None,
    };
    let mut from = 0;
    for _ in 0..PASSES_MAX {
        let Some(buckets) = bad.take() else { return };
        let Refs::List(listing) = run.again(roots, Refs::listing(buckets, from)).await else {
            return;
        };
        let until = listing.until;
        let (records, buckets) = listing.into_parts();
        for extent in records.chunk_by(|a, b| a.what.extent == b.what.extent) {
            judge(run, extent);
        }
        if until == u64::MAX {
            return;
        }
        from = until;
        bad = Some(buckets);
    }
    let text = format!("references of extents from {from} on differ too and are not listed");
    run.findings.add(Code::ExtentRefs, logical(from), text);
}

fn judge<D: BlockDevice>(run: &Run<'_, '_, D>, extent: &[Counted]) {
    if extent.iter().all(|one| one.recorded == one.found) {
        return;
    }
    let Some(first) = extent.first() else { return };
    let at = first.what.extent;
    let data = first.what.by.is_data();
    let nodesize = u64::from(run.sb().nodesize);
    let len = if data { first.what.size } else { nodesize };
    let recorded: u64 = extent.iter().map(|one| one.recorded).fold(0, u64::saturating_add);
    let found: u64 = extent.iter().map(|one| one.found).fold(0, u64::saturating_add);
    let mut parts =
        vec![format!("ref mismatch on [{at} {len}] extent item {recorded}, found {found}")];
    for one in extent.iter().filter(|one| one.recorded != one.found) {
        parts.push(difference(one));
    }
    let code = match (recorded, found) {
        (0, _) if !has_record(run, at) => Code::ExtentMissing,
        (_, 0) => Code::ExtentUnused,
        _ => Code::ExtentRefs,
    };
    run.findings.add(code, logical(at), parts.join("; "));
}

fn has_record<D: BlockDevice>(run: &Run<'_, '_, D>, at: u64) -> bool {
    run.space.allocated.bytes_in(at..at.saturating_add(1)) > 0
}

fn difference(one: &Counted) -> String {
    let Counted { what, recorded, found } = *one;
    let at = what.extent;
    let (kind, who) = match what.by {
        By::Tree { root } => ("tree block", format!("root {root} level {}", what.size)),
        By::Node { parent } => ("tree block", format!("parent {parent} level {}", what.size)),
        By::File { root, inode, offset } => (
            "data extent",
            format!("root {root} owner {inode} offset {offset} length {}", what.size),
        ),
        By::Leaf { parent } => ("data extent", format!("parent {parent} length {}", what.size)),
    };
    match (recorded, found) {
        (0, found) => format!("{kind} backref {at} {who} not found in extent tree, {found} found"),
        (recorded, 0) => {
            format!("{kind} backref {at} {who} not referenced back, {recorded} recorded")
        }
        _ => {
            format!("incorrect {kind} backref count on {at} {who} found {found} wanted {recorded}")
        }
    }
}
