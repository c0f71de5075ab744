//! Walking a tree: a cursor holds the blocks from the root to one leaf, and stands on an item or
//! behind the last one. Everything above reads trees through it; a writer will descend the same path.

use super::node::TreeBlock;
use crate::error::{Error, Result};
use crate::format::key::Key;
use crate::format::superblock::RootPointer;
use crate::units::Logical;
use crate::verify::Expect;
use crate::volume::Volume;
use std::sync::Arc;
use varve_block::BlockDevice;

/// A tree: its id, and where its root is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tree {
    pub id: u64,
    pub root: RootPointer,
}

impl Tree {
    pub fn new(id: u64, root: RootPointer) -> Tree {
        Tree { id, root }
    }

    /// What is known of the root block before it is read.
    pub fn expect_root(&self) -> Expect {
        Expect {
            logical: self.root.block,
            level: self.root.level,
            generation: Some(self.root.generation),
            first_key: None,
            owner: Some(self.id),
        }
    }
}

/// An item, and the leaf that keeps it alive.
#[derive(Clone, Debug)]
pub struct Item {
    leaf: Arc<TreeBlock>,
    slot: usize,
    key: Key,
}

impl Item {
    pub fn key(&self) -> Key {
        self.key
    }

    pub fn data(&self) -> &[u8] {
        self.leaf.item(self.slot).map_or(&[], |(_, data)| data)
    }

    /// The leaf it stands in, and its slot there.
    pub fn place(&self) -> (Logical, usize) {
        (self.leaf.header().bytenr, self.slot)
    }
}

/// A position in a tree. Each step may read blocks; what it returns stays valid when it moves on.
pub struct Cursor<'a, D: BlockDevice> {
    volume: &'a Volume<D>,
    tree: Tree,
    /// From the root down; the slot that was taken in each. The last is a leaf, whose slot may be
    /// one behind its last item.
    path: Vec<(Arc<TreeBlock>, usize)>,
}

impl<'a, D: BlockDevice> Cursor<'a, D> {
    /// At the first item that is not below `key`.
    pub(crate) async fn seek(
        volume: &'a Volume<D>,
        tree: &Tree,
        key: Key,
    ) -> Result<Cursor<'a, D>> {
        let mut cursor = Cursor { volume, tree: *tree, path: Vec::new() };
        cursor.descend(key).await?;
        if let Some((leaf, slot)) = cursor.path.last_mut() {
            *slot = leaf.lower_bound(key);
        }
        Ok(cursor)
    }

    /// At the last item that is not above `key`, or at the first of all if there is none.
    pub(crate) async fn seek_back(
        volume: &'a Volume<D>,
        tree: &Tree,
        key: Key,
    ) -> Result<Cursor<'a, D>> {
        let mut cursor = Cursor { volume, tree: *tree, path: Vec::new() };
        cursor.descend(key).await?;
        if let Some((leaf, slot)) = cursor.path.last_mut() {
            // A leaf's first key equals its pointer's, so an item that is not above `key` is in
            // this leaf or nowhere.
            *slot = leaf.last_not_above(key).unwrap_or(0);
        }
        Ok(cursor)
    }

    /// Fills the path from the root to the leaf where `key` is or would be.
    async fn descend(&mut self, key: Key) -> Result<()> {
        let mut block = self.volume.block(&self.tree.expect_root()).await?;
        loop {
            let slot = match block.level() {
                0 => 0,
                _ => block.last_not_above(key).unwrap_or(0),
            };
            self.path.push((Arc::clone(&block), slot));
            if block.level() == 0 {
                return Ok(());
            }
            block = self.child(&block, slot).await?;
        }
    }

    /// Levels fall by one with each step, which the checker proves: a loop of pointers cannot hold
    /// us.
    async fn child(&self, parent: &TreeBlock, slot: usize) -> Result<Arc<TreeBlock>> {
        let expect = parent
            .expect_child(slot, self.tree.id)
            .ok_or_else(|| Error::corrupt("a node has fewer pointers than it said"))?;
        self.volume.block(&expect).await
    }

    /// The item under the cursor, which moves on. `None` behind the last.
    pub async fn next(&mut self) -> Result<Option<Item>> {
        loop {
            let Some((leaf, slot)) = self.path.last_mut() else { return Ok(None) };
            if let Some(key) = leaf.key(*slot) {
                let item = Item { leaf: Arc::clone(leaf), slot: *slot, key };
                *slot += 1;
                return Ok(Some(item));
            }
            if !self.next_leaf().await? {
                return Ok(None);
            }
        }
    }

    /// The item under the cursor, if its key is not above `last`; the cursor moves on.
    pub async fn next_to(&mut self, last: Key) -> Result<Option<Item>> {
        Ok(self.next().await?.filter(|item| item.key() <= last))
    }

    /// Moves to the leaf on the right; `false` when there is none.
    async fn next_leaf(&mut self) -> Result<bool> {
        let mut depth = self.path.len().saturating_sub(1);
        loop {
            let Some(up) = depth.checked_sub(1) else { return Ok(false) };
            depth = up;
            let Some((node, slot)) = self.path.get_mut(depth) else { return Ok(false) };
            if *slot + 1 < node.len() {
                *slot += 1;
                break;
            }
        }
        self.path.truncate(depth + 1);
        loop {
            let Some((parent, slot)) = self.path.last().cloned() else { return Ok(false) };
            if parent.level() == 0 {
                return Ok(true);
            }
            let block = self.child(&parent, slot).await?;
            self.path.push((block, 0));
        }
    }
}

/// The item with exactly this key.
pub(crate) async fn find<D: BlockDevice>(
    volume: &Volume<D>,
    tree: &Tree,
    key: Key,
) -> Result<Option<Item>> {
    let item = Cursor::seek(volume, tree, key).await?.next().await?;
    Ok(item.filter(|item| item.key() == key))
}

/// The last item whose key is not above `key`.
pub(crate) async fn find_last<D: BlockDevice>(
    volume: &Volume<D>,
    tree: &Tree,
    key: Key,
) -> Result<Option<Item>> {
    let item = Cursor::seek_back(volume, tree, key).await?.next().await?;
    Ok(item.filter(|item| item.key() <= key))
}
