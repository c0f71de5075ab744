//! Whose data it is: from bad addresses to every file of every subvolume that reads them.
//!
//! A walk over all file trees, made only when there is something to look for. References in the
//! extent tree would name the files without one, but not where the tree itself is what is broken.

use super::FileAt;
use super::data::{self, Bad};
use super::roots::Roots;
use super::run::Run;
use super::walk::{Step, Walk};
use crate::format::file_extent::{Body, FileExtent};
use crate::format::key::ItemType;
use crate::tree::node::TreeBlock;
use std::collections::BTreeMap;
use varve_block::BlockDevice;

/// Files named for one run of bad sectors.
const FILES_MAX: usize = 64;

/// What is known of one stretch of bad addresses.
#[derive(Default)]
struct Known {
    files: Vec<FileAt>,
    more: u64,
    /// A file holds the extent, though it reads another part of it.
    kept_by: Vec<FileAt>,
}

pub(super) async fn tell<D: BlockDevice>(run: &Run<'_, '_, D>, roots: &Roots, bad: Vec<Bad>) {
    if bad.is_empty() {
        return;
    }
    let mut known: BTreeMap<(u64, u64), Known> =
        bad.iter().map(|bad| ((bad.start, bad.end), Known::default())).collect();
    let widest = bad.iter().map(|bad| bad.end - bad.start).max().unwrap_or(0);
    for job in roots.file_jobs().into_iter().filter(|job| job.alive) {
        let mut walk = Walk::new(run.reader, job.tree, job.dropped);
        while let Some(step) = walk.next().await {
            if let Step::Block(block) = step
                && block.level() == 0
            {
                leaf(&block, job.tree.id, &mut known, widest);
            }
        }
        run.reader.forget();
    }
    let sector = run.sb().sectorsize.into();
    for bad in &bad {
        let Some(known) = known.get(&(bad.start, bad.end)) else { continue };
        let mut files = known.files.clone();
        let note = if files.is_empty() && known.kept_by.is_empty() {
            "; no file holds it".to_owned()
        } else if files.is_empty() {
            files.extend(known.kept_by.iter().copied());
            "; no file reads it any more: it is the unused part of an extent".to_owned()
        } else if known.more > 0 {
            format!("; read by {} files and {} more", files.len(), known.more)
        } else {
            String::new()
        };
        data::tell(run.findings, bad, files, &note, sector);
    }
}

fn leaf(block: &TreeBlock, root: u64, known: &mut BTreeMap<(u64, u64), Known>, widest: u64) {
    for slot in 0..block.len() {
        let Some((key, bytes)) = block.item(slot) else { continue };
        if key.kind != ItemType::EXTENT_DATA {
            continue;
        }
        let Ok(extent) = FileExtent::parse(bytes) else { continue };
        let Body::Regular(place) = extent.body else { continue };
        let start = place.disk_bytenr.0;
        if place.is_hole() {
            continue;
        }
        let end = start.saturating_add(place.disk_num_bytes);
        let packed = extent.compression.to_disk() != 0;
        // All of a compressed extent is needed for any part of it.
        let read = match packed {
            true => start..end,
            false => {
                let from = start.saturating_add(place.offset);
                from..from.saturating_add(place.num_bytes)
            }
        };
        let near = (start.saturating_sub(widest), 0)..(end, 0);
        for (&(from, to), known) in known.range_mut(near).filter(|((_, to), _)| *to > start) {
            let inode = key.objectid;
            if from < read.end && to > read.start {
                let into = if packed { 0 } else { from.max(read.start) - read.start };
                let offset = key.offset.saturating_add(into);
                put(&mut known.files, &mut known.more, FileAt { root, inode, offset });
            } else {
                let file = FileAt { root, inode, offset: key.offset };
                put(&mut known.kept_by, &mut known.more, file);
            }
        }
    }
}

/// A file that reads a run in several pieces is named once, by the first.
fn put(files: &mut Vec<FileAt>, more: &mut u64, file: FileAt) {
    if files.iter().any(|f| (f.root, f.inode) == (file.root, file.inode)) {
        return;
    }
    if files.len() < FILES_MAX {
        files.push(file);
    } else {
        *more += 1;
    }
}
