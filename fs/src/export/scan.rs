//! Reading a tree that is full of holes.
//!
//! A cursor stops at the first block it cannot trust. A rescue must not: [`Scan`] notes the keys that
//! such a block would have held and goes on behind it, and where a block is only *suspicious* (it is
//! the one that was meant and its checksum is right, but a rule of the tree checker or its generation
//! speaks against it) it takes what can be read of it.

use crate::format::block::Header;
use crate::format::key::Key;
use crate::tree::cursor::Tree;
use crate::tree::node::TreeBlock;
use crate::units::Logical;
use crate::verify::Expect;
use crate::volume::Volume;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use varve_block::{BlockDevice, chain};

/// Keys that were lost with a block: from `from` to before `to`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gap {
    pub tree: u64,
    pub block: Logical,
    pub from: Key,
    pub to: Key,
    pub why: String,
}

impl Gap {
    /// Whether any of the keys `first..=last` may have been in the lost block.
    pub(crate) fn touches(&self, first: Key, last: Key) -> bool {
        self.from <= last && self.to > first
    }
}

/// What is known of the blocks that did not check out, so that each is tried and told once.
#[derive(Debug, Default)]
pub(crate) struct BadBlocks {
    known: RefCell<BTreeMap<Logical, Verdict>>,
    gaps: RefCell<Vec<Gap>>,
    suspicious: RefCell<Vec<String>>,
}

#[derive(Clone, Debug)]
enum Verdict {
    Lost(String),
    Usable(Arc<TreeBlock>),
}

impl BadBlocks {
    /// Every block that was lost, in the order they were met.
    pub(crate) fn gaps(&self) -> Vec<Gap> {
        self.gaps.borrow().clone()
    }

    /// What was read although a rule speaks against it.
    pub(crate) fn suspicious(&self) -> Vec<String> {
        self.suspicious.borrow().clone()
    }

    pub(crate) fn any_in(&self, tree: u64) -> bool {
        self.gaps.borrow().iter().any(|gap| gap.tree == tree)
    }
}

/// An item, and the leaf that keeps it alive.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    leaf: Arc<TreeBlock>,
    slot: usize,
    key: Key,
}

impl Found {
    pub(crate) fn key(&self) -> Key {
        self.key
    }

    pub(crate) fn data(&self) -> &[u8] {
        self.leaf.item(self.slot).map_or(&[], |(_, data)| data)
    }
}

/// One block of the path, the slot taken in it, and the key where its parent says it ends.
struct Level {
    block: Arc<TreeBlock>,
    slot: usize,
    end: Key,
}

/// A cursor that does not give up.
pub(crate) struct Scan<'a, D: BlockDevice> {
    volume: &'a Volume<D>,
    bad: &'a BadBlocks,
    tree: Tree,
    path: Vec<Level>,
    /// What this scan has run into.
    pub(crate) gaps: Vec<Gap>,
}

impl<'a, D: BlockDevice> Scan<'a, D> {
    /// At the first item that is not below `key`, of those that can be read.
    pub(crate) async fn seek(
        volume: &'a Volume<D>,
        bad: &'a BadBlocks,
        tree: &Tree,
        key: Key,
    ) -> Scan<'a, D> {
        let mut scan = Scan { volume, bad, tree: *tree, path: Vec::new(), gaps: Vec::new() };
        let expect = tree.expect_root();
        if let Some(root) = scan.read(&expect, Key::MIN, Key::MAX).await {
            scan.path.push(Level { block: root, slot: 0, end: Key::MAX });
            scan.descend(Some(key)).await;
        }
        scan
    }

    /// From the last block of the path down to a leaf, towards `key` or leftmost. Where a child is
    /// lost the path ends at its parent, which [`Scan::next_to`] goes on from.
    async fn descend(&mut self, key: Option<Key>) {
        let mut key = key;
        while let Some(level) = self.path.last_mut() {
            if level.block.level() == 0 {
                level.slot = key.map_or(0, |key| level.block.lower_bound(key));
                return;
            }
            if let Some(key) = key {
                level.slot = level.block.last_not_above(key).unwrap_or(0);
            }
            if !self.enter().await {
                // What follows the lost child is all behind `key`.
                key = None;
                if !self.step() {
                    return;
                }
            }
        }
    }

    /// Pushes the child under the slot of the last level; `false` when it is lost.
    async fn enter(&mut self) -> bool {
        let Some(Level { block, slot, end }) = self.path.last() else { return false };
        let Some(pointer) = block.pointer(*slot) else { return false };
        let end = block.key(*slot + 1).unwrap_or(*end);
        let expect = Expect {
            logical: pointer.block,
            level: block.level().saturating_sub(1),
            generation: Some(pointer.generation),
            first_key: Some(pointer.key),
            owner: Some(self.tree.id),
        };
        match self.read(&expect, pointer.key, end).await {
            Some(block) => {
                self.path.push(Level { block, slot: 0, end });
                true
            }
            None => false,
        }
    }

    /// Moves the path to the next child to be entered; `false` at the end of the tree, where the path
    /// is empty.
    fn step(&mut self) -> bool {
        while let Some(level) = self.path.last_mut() {
            if level.block.level() > 0 && level.slot + 1 < level.block.len() {
                level.slot += 1;
                return true;
            }
            self.path.pop();
        }
        false
    }

    /// The item under the cursor, if its key is not above `last`; the cursor moves on. Blocks that
    /// begin behind `last` are not read.
    pub(crate) async fn next_to(&mut self, last: Key) -> Option<Found> {
        loop {
            let level = self.path.last_mut()?;
            if level.block.level() == 0
                && let Some(key) = level.block.key(level.slot)
            {
                if key > last {
                    return None;
                }
                let found = Found { leaf: Arc::clone(&level.block), slot: level.slot, key };
                level.slot += 1;
                return Some(found);
            }
            if level.end > last && level.end != Key::MAX {
                return None;
            }
            self.path.pop();
            if !self.step() {
                return None;
            }
            self.descend(None).await;
        }
    }

    /// A block that checks out, or one that can at least be understood.
    async fn read(&mut self, expect: &Expect, from: Key, to: Key) -> Option<Arc<TreeBlock>> {
        let at = expect.logical;
        let known = self.bad.known.borrow().get(&at).cloned();
        let why = match known {
            Some(Verdict::Usable(block)) if block.level() == expect.level => return Some(block),
            Some(Verdict::Usable(_)) => "it was found under another parent before".to_owned(),
            Some(Verdict::Lost(why)) => why,
            None => match self.volume.block(expect).await {
                Ok(block) => return Some(block),
                Err(error) => {
                    let why = chain(&error);
                    if let Some(block) = self.understand(expect).await {
                        self.bad.suspicious.borrow_mut().push(format!("tree block {at}: {why}"));
                        let verdict = Verdict::Usable(Arc::clone(&block));
                        self.bad.known.borrow_mut().insert(at, verdict);
                        return Some(block);
                    }
                    self.bad.known.borrow_mut().insert(at, Verdict::Lost(why.clone()));
                    let gap = Gap { tree: self.tree.id, block: at, from, to, why: why.clone() };
                    self.bad.gaps.borrow_mut().push(gap);
                    why
                }
            },
        };
        self.gaps.push(Gap { tree: self.tree.id, block: at, from, to, why });
        None
    }

    /// The first copy with a right checksum that says it is the block at this address and level.
    async fn understand(&self, expect: &Expect) -> Option<Arc<TreeBlock>> {
        let rules = &self.volume.rules;
        for mirror in 1..=self.volume.mirrors(expect.logical).ok()? {
            let mut bytes = vec![0; rules.nodesize as usize];
            if self.volume.read_mirror(expect.logical, mirror, &mut bytes).await.is_err() {
                continue;
            }
            let Ok(header) = Header::parse(&bytes) else { continue };
            let sealed = bytes.get(32..).is_some_and(|body| {
                let digest = rules.csum.digest(body);
                digest.is_in(&header.csum)
            });
            let meant = header.bytenr == expect.logical && header.level == expect.level;
            if !sealed || !meant || !rules.fsids.contains(&header.fsid) {
                continue;
            }
            let block = Arc::new(TreeBlock::understood(header, bytes));
            if expect.first_key.is_none_or(|first| block.key(0).is_some_and(|key| key >= first)) {
                return Some(block);
            }
        }
        None
    }
}
