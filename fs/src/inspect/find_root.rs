//! Older roots of a tree: every block that once was one, as far as nobody wrote over it.

use super::reader::Inspector;
use crate::format::chunk::GroupFlags;
use crate::units::Logical;
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
        let chunks = self.volume.chunks().borrow().clone();
        let trees = GroupFlags::METADATA | GroupFlags::SYSTEM;
        let chunks: Vec<_> = chunks.iter().filter(|(_, c)| c.flags.intersects(trees)).collect();
        let total = chunks.iter().map(|(_, chunk)| chunk.length).sum();
        let nodesize = u64::from(self.volume.rules.nodesize);
        let mut found: BTreeMap<u64, Vec<Candidate>> = BTreeMap::new();
        let mut done = 0;
        for (start, chunk) in chunks {
            for n in 0..chunk.length / nodesize {
                let at = Logical(start.0.saturating_add(n * nodesize));
                done += nodesize;
                progress(done, total);
                let Ok(block) = self.block(at).await else { continue };
                let header = &block.header;
                let ours = self.volume.rules.fsids.contains(&header.fsid);
                if block.problem.is_some() || header.owner != id || !ours {
                    continue;
                }
                let (generation, level) = (header.generation, header.level);
                let same = found.entry(generation).or_default();
                match same.first().map(|known| known.level) {
                    Some(known) if known > level => continue,
                    Some(known) if known < level => same.clear(),
                    _ => {}
                }
                same.push(Candidate { generation, at, level });
            }
        }
        found.into_values().rev().flat_map(|same| same.into_iter().rev()).collect()
    }
}
