//! From a draft to a tree: leaves with changes are packed anew, and so are the nodes above them, up to
//! the root. All other blocks stay where they are and are shared with the tree on disk.

use super::draft::{Draft, Owned};
use crate::error::{Error, Result};
use crate::format::block::{ITEM_HEAD_SIZE, Pointer, leaf_space, node_capacity};
use crate::format::key::Key;
use crate::format::superblock::RootPointer;
use crate::tree::build::{self, Stamp};
use crate::tree::cursor::Tree;
use crate::tree::node::TreeBlock;
use crate::units::{Logical, round_up};
use crate::verify::Expect;
use crate::volume::Volume;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use varve_block::BlockDevice;

type Changes = BTreeMap<Key, Option<Vec<u8>>>;

pub(super) struct Weaver<'a, D: BlockDevice> {
    volume: &'a Volume<D>,
    /// Where the next block goes: behind all chunks, so that nothing on a device has this address.
    next: Logical,
    made: BTreeMap<Logical, Arc<TreeBlock>>,
}

impl<'a, D: BlockDevice> Weaver<'a, D> {
    pub(super) fn new(volume: &'a Volume<D>) -> Result<Weaver<'a, D>> {
        let end = volume.chunks().borrow().end();
        let next = round_up(end.0, volume.rules.nodesize.into()).map(Logical);
        let next =
            next.ok_or_else(|| Error::corrupt("chunks reach to the end of all addresses"))?;
        Ok(Weaver { volume, next, made: BTreeMap::new() })
    }

    /// What new blocks carry: the transaction that would commit the replay.
    pub(super) fn generation(&self) -> u64 {
        self.volume.sb.generation.saturating_add(1)
    }

    pub(super) fn finish(self) -> BTreeMap<Logical, Arc<TreeBlock>> {
        self.made
    }

    /// The tree that the draft describes.
    pub(super) async fn weave(&mut self, draft: &Draft<'_, D>) -> Result<Tree> {
        let tree = draft.tree;
        if !draft.is_changed() {
            return Ok(tree);
        }
        let top = self.volume.block(&tree.expect_root()).await?;
        let span = (Key::MIN, None);
        let mut level = top.level();
        let mut row = self.block(&tree, top, span, &draft.changes).await?;
        if row.is_empty() {
            level = 0;
            row.push(self.leaf(tree.id, &[])?);
        }
        while row.len() > 1 {
            level += 1;
            row = self.nodes(tree.id, level, &row)?;
        }
        let Some(root) = row.first() else { return Ok(tree) };
        let generation = root.generation;
        Ok(Tree::new(tree.id, RootPointer { block: root.block, generation, level }))
    }

    /// What takes the place of `block`, which holds the keys from `span.0` to before `span.1`. As deep
    /// as a tree is.
    fn block<'f>(
        &'f mut self,
        tree: &'f Tree,
        block: Arc<TreeBlock>,
        span: (Key, Option<Key>),
        changes: &'f Changes,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<Pointer>>> + 'f>> {
        Box::pin(async move {
            if block.level() == 0 {
                return self.leaves(tree.id, merged(&block, span, changes));
            }
            let mut row = Vec::new();
            for slot in 0..block.len() {
                let Some(pointer) = block.pointer(slot) else { continue };
                let from = if slot == 0 { span.0 } else { pointer.key };
                let to = block.key(slot + 1).or(span.1);
                if within(changes, (from, to)).next().is_none() {
                    row.push(pointer);
                    continue;
                }
                let expect = block
                    .expect_child(slot, tree.id)
                    .ok_or_else(|| Error::corrupt("a node has fewer pointers than it said"))?;
                let child = self.volume.block(&expect).await?;
                row.extend(self.block(tree, child, (from, to), changes).await?);
            }
            self.nodes(tree.id, block.level(), &row)
        })
    }

    /// Leaves filled from the left.
    fn leaves(&mut self, tree: u64, items: Vec<Owned>) -> Result<Vec<Pointer>> {
        let space = leaf_space(self.volume.rules.nodesize) as usize;
        let mut row = Vec::new();
        let (mut here, mut used) = (Vec::new(), 0);
        for item in items {
            let size = ITEM_HEAD_SIZE + item.1.len();
            if size > space {
                let message = format!("item {} of {} bytes fits no leaf", item.0, item.1.len());
                return Err(Error::corrupt(message));
            }
            if used + size > space {
                row.push(self.leaf(tree, &std::mem::take(&mut here))?);
                used = 0;
            }
            used += size;
            here.push(item);
        }
        if !here.is_empty() {
            row.push(self.leaf(tree, &here)?);
        }
        Ok(row)
    }

    fn leaf(&mut self, tree: u64, items: &[Owned]) -> Result<Pointer> {
        let (stamp, nodesize) = (self.stamp(tree)?, self.volume.rules.nodesize);
        let first = items.first().map(|(key, _)| *key);
        self.publish(&stamp, 0, first, build::leaf(&stamp, nodesize, items))
    }

    fn nodes(&mut self, tree: u64, level: u8, row: &[Pointer]) -> Result<Vec<Pointer>> {
        let nodesize = self.volume.rules.nodesize;
        let capacity = node_capacity(nodesize).max(1) as usize;
        let mut above = Vec::new();
        for here in row.chunks(capacity) {
            let stamp = self.stamp(tree)?;
            let bytes = build::node(&stamp, nodesize, level, here);
            above.push(self.publish(&stamp, level, here.first().map(|p| p.key), bytes)?);
        }
        Ok(above)
    }

    fn stamp(&mut self, owner: u64) -> Result<Stamp> {
        let bytenr = self.next;
        let next = bytenr.checked_add(self.volume.rules.nodesize.into());
        self.next = next.ok_or_else(|| Error::corrupt("no addresses are left for new blocks"))?;
        Ok(Stamp {
            fsid: self.volume.sb.tree_fsid(),
            chunk_tree_uuid: crate::format::Uuid::nil(),
            bytenr,
            generation: self.generation(),
            owner,
        })
    }

    /// Through the same door as a block that was read: what the log said is not trusted either.
    fn publish(
        &mut self,
        stamp: &Stamp,
        level: u8,
        first_key: Option<Key>,
        mut bytes: Vec<u8>,
    ) -> Result<Pointer> {
        build::seal(&mut bytes, self.volume.rules.csum);
        let (logical, generation) = (stamp.bytenr, stamp.generation);
        let expect = Expect {
            logical,
            level,
            generation: Some(generation),
            first_key,
            owner: Some(stamp.owner),
        };
        let block = TreeBlock::check(&self.volume.rules, bytes, &expect, 0)?;
        self.made.insert(logical, Arc::new(block));
        Ok(Pointer { key: first_key.unwrap_or(Key::MIN), block: logical, generation })
    }
}

fn within(
    changes: &Changes,
    (from, to): (Key, Option<Key>),
) -> impl Iterator<Item = (&Key, &Option<Vec<u8>>)> {
    changes.range(from..).take_while(move |(key, _)| to.is_none_or(|to| **key < to))
}

/// The items of a leaf as they will be, in order.
fn merged(leaf: &TreeBlock, span: (Key, Option<Key>), changes: &Changes) -> Vec<Owned> {
    let old = (0..leaf.len()).filter_map(|slot| leaf.item(slot));
    let mut items: BTreeMap<Key, &[u8]> = old.collect();
    for (key, change) in within(changes, span) {
        match change {
            Some(data) => items.insert(*key, data),
            None => items.remove(key),
        };
    }
    items.into_iter().map(|(key, data)| (key, data.to_vec())).collect()
}
