//! Reading a tree that is full of holes.
//!
//! A cursor stops at the first block it cannot trust. A rescue must not: [`Scan`] notes the keys that
//! such a block would have held and goes on behind it, and where a block is only *suspicious* (it is
//! the one that was meant and its checksum is right, but a rule of the tree checker or its generation
//! speaks against it) it takes what can be read of it. What older states of the tree still have of a lost
//! block ([`super::older`]) stands where the block stood, and says how old it is.

use super::older::{Age, Filled, Older, Patch};
use crate::format::block::Header;
use crate::format::key::Key;
use crate::tree::cursor::Tree;
use crate::tree::node::TreeBlock;
use crate::units::Logical;
use crate::verify::Expect;
use crate::volume::Volume;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
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
    /// Generations of older states that had some of these keys.
    pub older: Vec<u64>,
    /// Whether they had all of them, as far as anybody knows.
    pub filled: bool,
}

impl Gap {
    /// Whether any of the keys `first..=last` may have been in the lost block.
    pub(crate) fn touches(&self, first: Key, last: Key) -> bool {
        self.from <= last && self.to > first
    }
}

/// A gap that a scan ran into, and what there is in its place.
#[derive(Clone, Debug)]
pub(crate) struct Met {
    pub(crate) gap: Gap,
    pub(crate) filled: Rc<Filled>,
}

/// What is known of the blocks that did not check out, so that each is tried and told once.
#[derive(Debug, Default)]
pub(crate) struct BadBlocks {
    known: RefCell<BTreeMap<(u64, Logical), Verdict>>,
    /// Where to look for what was lost; `None`: nowhere.
    older: Option<Older>,
    gaps: RefCell<Vec<Gap>>,
    suspicious: RefCell<Vec<String>>,
}

#[derive(Clone, Debug)]
enum Verdict {
    Lost(String, Rc<Filled>),
    Usable(Arc<TreeBlock>),
}

impl BadBlocks {
    /// With older states to ask.
    pub(crate) fn asking_older() -> BadBlocks {
        BadBlocks { older: Some(Older::default()), ..BadBlocks::default() }
    }

    /// Whether all of a tree is of an older state, and of which.
    pub(crate) fn stale(&self, tree: u64) -> Option<Age> {
        self.older.as_ref()?.stale(tree)
    }

    pub(crate) fn put_stale(&self, tree: u64, age: Option<Age>) {
        if let Some(older) = &self.older {
            older.put_stale(tree, age);
        }
    }

    /// Every block that was lost, in the order they were met.
    pub(crate) fn gaps(&self) -> Vec<Gap> {
        self.gaps.borrow().clone()
    }

    /// What was read although a rule speaks against it.
    pub(crate) fn suspicious(&self) -> Vec<String> {
        self.suspicious.borrow().clone()
    }

    fn suspect(&self, what: String) {
        let mut known = self.suspicious.borrow_mut();
        if !known.contains(&what) {
            known.push(what);
        }
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
    /// From an older state, because what the tree had was lost.
    pub(crate) age: Option<Age>,
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

/// A walk over what fills a gap.
struct Detour {
    filled: Rc<Filled>,
    /// The patch to take next, and the key from which on.
    next: usize,
    from: Key,
    leaf: Option<(Arc<TreeBlock>, usize)>,
    end: Key,
}

/// A cursor that does not give up.
pub(crate) struct Scan<'a, D: BlockDevice> {
    volume: &'a Volume<D>,
    bad: &'a BadBlocks,
    tree: Tree,
    path: Vec<Level>,
    /// Instead of the child that the path's last level leads to, or of the root.
    detour: Option<Detour>,
    /// Of the whole tree.
    age: Option<Age>,
    /// What this scan has run into.
    pub(crate) gaps: Vec<Met>,
}

impl<'a, D: BlockDevice> Scan<'a, D> {
    /// At the first item that is not below `key`, of those that can be read.
    pub(crate) async fn seek(
        volume: &'a Volume<D>,
        bad: &'a BadBlocks,
        tree: &Tree,
        key: Key,
    ) -> Scan<'a, D> {
        let (path, gaps, age) = (Vec::new(), Vec::new(), bad.stale(tree.id));
        let mut scan = Scan { volume, bad, tree: *tree, path, detour: None, age, gaps };
        let expect = tree.expect_root();
        if let Some(root) = scan.read(&expect, Key::MIN, Key::MAX).await {
            scan.path.push(Level { block: root, slot: 0, end: Key::MAX });
            scan.descend(Some(key)).await;
        } else {
            scan.go_around(Some(key));
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
                if self.go_around(key) {
                    return;
                }
                // What follows the lost child is all behind `key`.
                key = None;
                if !self.step() {
                    return;
                }
            }
        }
    }

    /// Goes by what fills the gap that was met last, if anything does.
    fn go_around(&mut self, key: Option<Key>) -> bool {
        let Some(Met { gap, filled }) = self.gaps.last() else { return false };
        if filled.patches.is_empty() {
            return false;
        }
        let from = key.map_or(gap.from, |key| key.max(gap.from));
        let (next, end) = (filled.patches.partition_point(|patch| patch.to <= from), gap.to);
        self.detour = Some(Detour { filled: Rc::clone(filled), next, from, leaf: None, end });
        true
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
            if let Some(detour) = &mut self.detour {
                if let Some(found) = detour.next_to(self.volume, last).await {
                    return Some(found);
                }
                if detour.end > last {
                    return None;
                }
                self.detour = None;
                if !self.step() {
                    return None;
                }
                self.descend(None).await;
                continue;
            }
            let level = self.path.last_mut()?;
            if level.block.level() == 0
                && let Some(key) = level.block.key(level.slot)
            {
                if key > last {
                    return None;
                }
                let (leaf, slot) = (Arc::clone(&level.block), level.slot);
                let found = Found { leaf, slot, key, age: self.age };
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
        let place = (self.tree.id, at);
        let known = self.bad.known.borrow().get(&place).cloned();
        let nothing = || Rc::new(Filled { patches: Vec::new(), holes: vec![(from, to)] });
        let (why, filled) = match known {
            Some(Verdict::Usable(block)) if block.level() == expect.level => return Some(block),
            Some(Verdict::Usable(_)) => {
                ("it was found under another parent before".to_owned(), nothing())
            }
            Some(Verdict::Lost(why, filled)) => (why, filled),
            None => match self.volume.block(expect).await {
                Ok(block) => return Some(block),
                Err(error) => {
                    let why = chain(&error);
                    if let Some(block) = self.understand(expect).await {
                        self.bad.suspect(format!("tree block {at}: {why}"));
                        let verdict = Verdict::Usable(Arc::clone(&block));
                        self.bad.known.borrow_mut().insert(place, verdict);
                        return Some(block);
                    }
                    let filled = self.lose(expect, (from, to), why.clone()).await;
                    let verdict = Verdict::Lost(why.clone(), Rc::clone(&filled));
                    self.bad.known.borrow_mut().insert(place, verdict);
                    (why, filled)
                }
            },
        };
        let gap = self.gap(at, (from, to), why);
        self.gaps.push(Met { gap, filled });
        None
    }

    fn gap(&self, block: Logical, (from, to): (Key, Key), why: String) -> Gap {
        Gap { tree: self.tree.id, block, from, to, why, older: Vec::new(), filled: false }
    }

    /// Notes a lost block, and looks for what it held.
    async fn lose(&self, expect: &Expect, keys: (Key, Key), why: String) -> Rc<Filled> {
        let mut gap = self.gap(expect.logical, keys, why);
        let filled = match &self.bad.older {
            Some(older) => {
                // Of a root that nobody can read the root item knows the generation, too.
                let lost = expect.generation.unwrap_or(0);
                older.fill(self.volume, &gap, lost).await
            }
            None => Filled { patches: Vec::new(), holes: vec![keys] },
        };
        gap.older = filled.patches.iter().map(|patch| patch.age.generation).collect();
        gap.older.sort_unstable_by_key(|generation| std::cmp::Reverse(*generation));
        gap.older.dedup();
        gap.filled = filled.holes.is_empty();
        let known = self.bad.gaps.borrow().iter().any(|other| other.block == gap.block);
        if !known {
            self.bad.gaps.borrow_mut().push(gap);
        }
        Rc::new(filled)
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

impl Detour {
    /// The next item of a patch, if its key is not above `last`.
    async fn next_to<D: BlockDevice>(&mut self, volume: &Volume<D>, last: Key) -> Option<Found> {
        loop {
            let filled = Rc::clone(&self.filled);
            let patch: &Patch = filled.patches.get(self.next)?;
            let (leaf, slot) = match &mut self.leaf {
                Some((leaf, slot)) => (leaf, slot),
                None => {
                    if patch.from > last {
                        return None;
                    }
                    let Ok(leaf) = volume.block(&patch.leaf).await else {
                        self.next += 1;
                        continue;
                    };
                    let slot = leaf.lower_bound(self.from.max(patch.from));
                    let (leaf, slot) = self.leaf.insert((leaf, slot));
                    (leaf, slot)
                }
            };
            match leaf.key(*slot).filter(|key| *key < patch.to) {
                Some(key) if key > last => return None,
                Some(key) => {
                    let (leaf, at) = (Arc::clone(leaf), *slot);
                    *slot += 1;
                    return Some(Found { leaf, slot: at, key, age: Some(patch.age) });
                }
                None => {
                    if patch.to > last {
                        return None;
                    }
                    self.leaf = None;
                    self.next += 1;
                }
            }
        }
    }
}
