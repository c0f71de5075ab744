//! A walk over one tree, block by block from the left, parents first.

use super::finding::Code;
use super::reader::{AHEAD_BLOCKS, Reader};
use crate::error::Place;
use crate::format::key::Key;
use crate::tree::cursor::Tree;
use crate::tree::node::TreeBlock;
use crate::verify::Expect;
use std::rc::Rc;
use varve_block::BlockDevice;

/// Where the deletion of a tree has got to: what is left of it is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Dropped {
    pub(crate) key: Key,
    pub(crate) level: u8,
}

impl Dropped {
    /// Whether child `slot` of `node` was deleted. At the level where the deletion stopped, all
    /// pointers before the key are; above it, all but the one that leads to the key.
    pub(crate) fn has(&self, node: &TreeBlock, slot: usize) -> bool {
        match node.level() {
            level if level < self.level => false,
            level if level == self.level => node.key(slot).is_some_and(|key| key < self.key),
            _ => node.key(slot + 1).is_some_and(|next| next <= self.key),
        }
    }
}

pub(crate) enum Step {
    /// A block; for a node, `skip` now leaves out what is below.
    Block(Rc<TreeBlock>),
    /// A pointer to nothing that can be read; the reason has been told.
    Lost,
}

pub(crate) struct Walk<'r, 'a, D: BlockDevice> {
    reader: &'r Reader<'a, D>,
    tree: Tree,
    dropped: Option<Dropped>,
    /// Nodes on the way, and the next slot to take in each.
    path: Vec<(Rc<TreeBlock>, usize)>,
    started: bool,
    /// Last key of the leaf before.
    last: Option<Key>,
}

impl<'r, 'a, D: BlockDevice> Walk<'r, 'a, D> {
    pub(crate) fn new(reader: &'r Reader<'a, D>, tree: Tree, dropped: Option<Dropped>) -> Self {
        Walk { reader, tree, dropped, path: Vec::new(), started: false, last: None }
    }

    /// The next block; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Step> {
        if !self.started {
            self.started = true;
            let expect = self.tree.expect_root();
            return Some(match self.reader.block(&expect).await {
                Some(block) => self.enter(block),
                None => Step::Lost,
            });
        }
        loop {
            let (node, slot) = self.path.last_mut()?;
            let (node, at) = (Rc::clone(node), *slot);
            *slot += 1;
            let Some(pointer) = node.pointer(at) else {
                self.path.pop();
                continue;
            };
            if at.is_multiple_of(AHEAD_BLOCKS) {
                let soon = at..(at + AHEAD_BLOCKS).min(node.len());
                let children = soon.filter_map(|slot| node.pointer(slot));
                self.reader.ahead(children.map(|pointer| pointer.block)).await;
            }
            if self.dropped.is_some_and(|dropped| dropped.has(&node, at)) {
                continue;
            }
            let expect = Expect {
                logical: pointer.block,
                level: node.level().saturating_sub(1),
                generation: Some(pointer.generation),
                first_key: Some(pointer.key),
                owner: Some(self.tree.id),
            };
            let block = self.reader.block(&expect).await;
            return Some(match block {
                Some(block) => self.enter(block),
                None => Step::Lost,
            });
        }
    }

    /// The tree that the parent of the block that came last names in its header.
    pub(crate) fn above(&self, block: &TreeBlock) -> Option<u64> {
        let parent = self.path.iter().rev().find(|(node, _)| node.level() > block.level())?;
        Some(parent.0.header().owner)
    }

    /// Leaves out what is below the node that came last.
    pub(crate) fn skip(&mut self, block: &TreeBlock) {
        if block.level() > 0 {
            self.path.pop();
        }
    }

    fn enter(&mut self, block: Rc<TreeBlock>) -> Step {
        self.in_order(&block);
        if block.level() > 0 {
            self.path.push((Rc::clone(&block), 0));
        }
        Step::Block(block)
    }

    /// Keys ascend across blocks too: each parent vouches for the first key of a child, nobody for
    /// the last.
    fn in_order(&mut self, block: &TreeBlock) {
        if block.level() > 0 {
            return;
        }
        let (first, last) = (block.key(0), block.len().checked_sub(1).and_then(|n| block.key(n)));
        if let (Some(before), Some(first)) = (self.last, first)
            && before >= first
        {
            let at = block.bytenr();
            let place = Place { root: Some(self.tree.id), logical: Some(at), ..Place::default() };
            let text = format!(
                "corrupt leaf: root={} block={at} slot=0, bad key order, prev {before} current \
                 {first}",
                self.tree.id
            );
            self.reader.findings.add(Code::BlockLayout, place, text);
        }
        self.last = last.or(self.last);
    }
}
