//! Older roots of a tree: every block that once was one, as far as nobody wrote over it.

use super::reader::Inspector;
use crate::format::block::Header;
use crate::format::chunk::{Chunk, GroupFlags};
use crate::units::Logical;
use crate::verify::once_written;
use crate::volume::Volume;
use std::collections::BTreeMap;
use varve_block::BlockDevice;

/// A block that may have been the root of a tree.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Candidate {
    pub generation: u64,
    pub at: Logical,
    pub level: u8,
}

impl<D: BlockDevice> Inspector<D> {
    /// Reads every place for a tree block and keeps those of tree `id` whose checksum, address and file
    /// system are right: of each generation the ones at its highest level, since a root has no parent.
    /// The newest come first. `progress` is told the bytes that are done, and of how many.
    pub async fn find_roots(&self, id: u64, progress: &mut dyn FnMut(u64, u64)) -> Vec<Candidate> {
        let found = find_roots(&self.volume, &|owner| owner == id, progress).await;
        found.into_values().next().unwrap_or_default()
    }
}

/// As [`Inspector::find_roots`], of all trees that are `wanted`, by their ids.
pub(crate) async fn find_roots<D: BlockDevice>(
    volume: &Volume<D>,
    wanted: &dyn Fn(u64) -> bool,
    progress: &mut dyn FnMut(u64, u64),
) -> BTreeMap<u64, Vec<Candidate>> {
    let chunks = volume.chunks().borrow().clone();
    let trees = GroupFlags::METADATA | GroupFlags::SYSTEM;
    let chunks: Vec<_> = chunks.iter().filter(|(_, c)| c.flags.intersects(trees)).collect();
    // A stripe ends with its device, whatever the chunk claims.
    let longest = volume.members().iter().map(|member| member.geometry.len.bytes()).max();
    let length = |chunk: &Chunk| {
        let most = longest.unwrap_or(0).saturating_mul(chunk.stripes.len() as u64);
        chunk.length.min(most)
    };
    let total = chunks.iter().map(|(_, chunk)| length(chunk)).fold(0, u64::saturating_add);
    let nodesize = u64::from(volume.rules.nodesize);
    let mut found: BTreeMap<u64, BTreeMap<u64, Vec<Candidate>>> = BTreeMap::new();
    let mut done = 0;
    for (start, chunk) in chunks {
        for n in 0..length(chunk) / nodesize {
            let at = Logical(start.0.saturating_add(n * nodesize));
            done += nodesize;
            progress(done, total);
            let Some(header) = header_at(volume, at).await else { continue };
            let Header { generation, level, owner, .. } = header;
            if !wanted(owner) {
                continue;
            }
            let same = found.entry(owner).or_default().entry(generation).or_default();
            match same.first().map(|known| known.level) {
                Some(known) if known > level => continue,
                Some(known) if known < level => same.clear(),
                _ => {}
            }
            same.push(Candidate { generation, at, level });
        }
    }
    let newest_first = |by_generation: BTreeMap<u64, Vec<Candidate>>| -> Vec<Candidate> {
        by_generation.into_values().rev().flat_map(|same| same.into_iter().rev()).collect()
    };
    found.into_iter().map(|(id, by_generation)| (id, newest_first(by_generation))).collect()
}

/// The header of a block of this file system that stands where it says, by its first good copy.
async fn header_at<D: BlockDevice>(volume: &Volume<D>, at: Logical) -> Option<Header> {
    let mut bytes = vec![0; volume.rules.nodesize as usize];
    for mirror in 1..=volume.mirrors(at).ok()? {
        if volume.read_mirror(at, mirror, &mut bytes).await.is_err() {
            continue;
        }
        let header = once_written(&volume.rules, &bytes).filter(|header| header.bytenr == at);
        if header.is_some() {
            return header;
        }
    }
    None
}
