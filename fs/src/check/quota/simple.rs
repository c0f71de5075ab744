//! Simple quotas: each extent has one owner, who pays for all of it (format: btrfs 17).
//!
//! The owner of data stands in the extent's record, that of a tree block in its header; snapshots do not
//! pay for what they share. What is older than the quotas is nobody's, also where an owner stands: quotas
//! may have been on before. A group above has what its members have.

use super::{Bytes, Quota, ancestors};
use crate::check::bitmap::Bitmap;
use crate::check::roots::Roots;
use crate::check::run::Run;
use crate::check::walk::{Step, Walk};
use crate::format::extent::{Extent, ExtentFlags, InlineRefs, Reference};
use crate::format::key::{ItemType, objectid};
use crate::tree::node::TreeBlock;
use std::collections::BTreeMap;
use varve_block::BlockDevice;

/// What each tree pays for.
#[derive(Default)]
pub(super) struct Owned {
    /// From this transaction on.
    since: u64,
    bytes: BTreeMap<u64, u64>,
    /// A balance has left blocks in file trees that do not say whose they are.
    pub(super) unsure: bool,
}

impl Owned {
    /// `None` when something was lost that may be somebody's.
    pub(super) async fn count<D: BlockDevice>(
        run: &Run<'_, '_, D>,
        roots: &Roots,
        since: u64,
    ) -> Option<Owned> {
        let mut owned = Owned { since, ..Owned::default() };
        let mut walk = Walk::new(run.reader, roots.tree(objectid::EXTENT_TREE)?, None);
        while let Some(step) = walk.next().await {
            let Step::Block(block) = step else { return None };
            if block.level() == 0 {
                owned.records(&block);
            }
        }
        run.reader.forget();
        let mut seen = Bitmap::new(run.sb().sectorsize);
        for job in roots.file_jobs() {
            let mut walk = Walk::new(run.reader, job.tree, job.dropped);
            while let Some(step) = walk.next().await {
                let Step::Block(block) = step else { return None };
                match seen.insert(block.bytenr().0) {
                    true => owned.block(&block),
                    false => walk.skip(&block),
                }
            }
            run.reader.forget();
        }
        Some(owned)
    }

    fn pays(&mut self, root: u64, bytes: u64) {
        let sum = self.bytes.entry(root).or_default();
        *sum = sum.saturating_add(bytes);
    }

    fn records(&mut self, leaf: &TreeBlock) {
        for slot in 0..leaf.len() {
            let Some((key, data)) = leaf.item(slot) else { continue };
            if key.kind != ItemType::EXTENT_ITEM {
                continue;
            }
            let Ok((extent, inline)) = Extent::parse_head(key.kind, data) else { continue };
            if !extent.flags.contains(ExtentFlags::DATA) || extent.generation < self.since {
                continue;
            }
            // It comes first, or not at all.
            if let Some(Ok(Reference::Owner { root })) = InlineRefs::new(inline).next() {
                self.pays(root, key.offset);
            }
        }
    }

    fn block(&mut self, block: &TreeBlock) {
        let header = block.header();
        if header.generation < self.since {
            return;
        }
        // Relocated for a tree that the header does not name.
        self.unsure |= header.is_reloc() || header.owner == objectid::TREE_RELOC;
        self.pays(header.owner, block.size() as u64);
    }

    /// The bytes of each group: a tree's own, and in the groups above the sums of their members.
    pub(super) fn groups(&self, quota: &Quota) -> BTreeMap<u64, Bytes> {
        let mut found: BTreeMap<u64, Bytes> = BTreeMap::new();
        for (tree, bytes) in &self.bytes {
            if !objectid::is_file_tree(*tree) || !quota.groups.contains_key(tree) {
                continue;
            }
            for group in ancestors(quota, *tree) {
                let sums = found.entry(group).or_default();
                sums.referenced = sums.referenced.saturating_add(*bytes);
                sums.exclusive = sums.exclusive.saturating_add(*bytes);
            }
        }
        found
    }
}
