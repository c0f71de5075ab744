//! What a lost block held, as older states of its tree still have it.
//!
//! A block that changes is written elsewhere, and the one before keeps its bytes until its place is used
//! again. So a tree that was some commits ago is often still there, in the main:
//!
//! ```text
//!            root, generation 9              root, generation 7: a backup in the superblock, or found
//!           /        |        \             /        |        \
//!       leaf 5    (lost: 8)  leaf 9     leaf 5    leaf 6    leaf 3 (used again: not what was meant)
//! ```
//!
//! * Only keys that were lost with a block are looked for: what the tree says today stands.
//! * A state that is not older than the lost block would have led to the same block.
//! * The newest state that still has a key is asked first; for what is lost there too, the one before.
//! * Blocks that were once roots are found by reading all places for tree blocks, if the superblock's
//!   backups do not have everything. They may be parts of trees only, and speak for their own keys alone.

use super::scan::Gap;
use crate::format::key::{ItemType, Key, objectid};
use crate::format::root::Root;
use crate::format::superblock::RootPointer;
use crate::inspect::{Candidate, find_roots};
use crate::tree::cursor::{Tree, find_last};
use crate::tree::node::TreeBlock;
use crate::units::Logical;
use crate::verify::Expect;
use crate::volume::Volume;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use varve_block::BlockDevice;

/// States of one tree that are asked for one lost block.
const STATES_MAX: usize = 256;

/// When something was so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Age {
    /// Of the commit, or of the tree's root where nothing is known of the commit.
    pub(crate) generation: u64,
    /// The checksums of that commit.
    pub(crate) csums: Option<Tree>,
}

/// Keys `from` to before `to`, as the leaf of an older state has them.
#[derive(Clone, Debug)]
pub(crate) struct Patch {
    pub(crate) from: Key,
    pub(crate) to: Key,
    pub(crate) leaf: Expect,
    pub(crate) age: Age,
}

/// What older states have of a gap: patches and holes, each in the order of keys, and nothing else.
#[derive(Debug, Default)]
pub(crate) struct Filled {
    pub(crate) patches: Vec<Patch>,
    pub(crate) holes: Vec<(Key, Key)>,
}

impl Filled {
    fn nothing(gap: &Gap) -> Filled {
        Filled { patches: Vec::new(), holes: vec![(gap.from, gap.to)] }
    }

    /// The patches that have any of the keys `first..=last`.
    pub(crate) fn patches_in(&self, first: Key, last: Key) -> &[Patch] {
        let from = self.patches.partition_point(|patch| patch.to <= first);
        let to = self.patches.partition_point(|patch| patch.from <= last);
        self.patches.get(from..to).unwrap_or(&[])
    }

    /// The holes that have any of the keys `first..=last`.
    pub(crate) fn holes_in(&self, first: Key, last: Key) -> &[(Key, Key)] {
        let from = self.holes.partition_point(|(_, to)| *to <= first);
        let to = self.holes.partition_point(|(from, _)| *from <= last);
        self.holes.get(from..to).unwrap_or(&[])
    }
}

/// A tree as it was, or a part of it.
#[derive(Clone, Copy, Debug)]
struct State {
    root: RootPointer,
    age: Age,
}

/// Blocks that may have been roots, by tree, newest first.
type Found = Rc<BTreeMap<u64, Vec<Candidate>>>;

/// From a key to before another.
type Span = (Key, Key);

/// The older states of a volume's trees, looked for when they are first needed.
#[derive(Debug, Default)]
pub(crate) struct Older {
    backups: RefCell<BTreeMap<u64, Rc<[State]>>>,
    found: RefCell<Option<Found>>,
    /// What those that were asked speak for: by address and generation, since a place is used again.
    spans: RefCell<BTreeMap<(Logical, u64), Option<Span>>>,
    /// Trees whose root item is itself from an older state.
    stale: RefCell<BTreeMap<u64, Age>>,
}

impl Older {
    /// Tells how old the root item of tree `id` is: if it is of an older state, so is all of the tree.
    pub(crate) fn put_stale(&self, id: u64, age: Option<Age>) {
        let mut stale = self.stale.borrow_mut();
        match age {
            Some(age) => drop(stale.insert(id, age)),
            None => drop(stale.remove(&id)),
        }
    }

    pub(crate) fn stale(&self, id: u64) -> Option<Age> {
        self.stale.borrow().get(&id).copied()
    }

    /// What there still is of a gap, which a block of generation `lost` has left.
    pub(crate) async fn fill<D: BlockDevice>(
        &self,
        volume: &Volume<D>,
        gap: &Gap,
        lost: u64,
    ) -> Filled {
        let mut filled = Filled::nothing(gap);
        for state in self.backups(volume, gap.tree).await.iter() {
            filled.ask(volume, gap.tree, state, (Key::MIN, Key::MAX), lost).await;
        }
        if !filled.holes.is_empty() {
            let found = self.found(volume).await;
            let found = found.get(&gap.tree).map_or(&[][..], Vec::as_slice);
            let older = found.iter().filter(|one| one.generation < lost).take(STATES_MAX);
            for one in older {
                let Candidate { generation, at, level } = *one;
                let root = RootPointer { block: at, generation, level };
                let state = State { root, age: Age { generation, csums: None } };
                if let Some(span) = self.span(volume, gap.tree, root).await {
                    filled.ask(volume, gap.tree, &state, span, lost).await;
                }
            }
        }
        filled.patches.sort_by_key(|patch| patch.from);
        filled.holes.sort_unstable();
        filled
    }

    /// The states of a tree that the superblock's backups lead to, newest first.
    async fn backups<D: BlockDevice>(&self, volume: &Volume<D>, id: u64) -> Rc<[State]> {
        if let Some(known) = self.backups.borrow().get(&id) {
            return Rc::clone(known);
        }
        let mut states = Vec::new();
        for backup in &volume.sb.backups {
            let commit = backup.tree_root;
            if commit.block.0 == 0 || commit.block == volume.sb.root {
                continue;
            }
            let named = |id, root: RootPointer| Tree { id, root };
            let csums = root_in(volume, commit, objectid::CSUM_TREE).await;
            let csums = csums.or((backup.csum_root.block.0 != 0).then_some(backup.csum_root));
            let root = match id {
                objectid::ROOT_TREE => Some(commit),
                objectid::FS_TREE => {
                    let root = root_in(volume, commit, id).await;
                    root.or((backup.fs_root.block.0 != 0).then_some(backup.fs_root))
                }
                _ => root_in(volume, commit, id).await,
            };
            let csums = csums.map(|root| named(objectid::CSUM_TREE, root));
            let age = Age { generation: commit.generation, csums };
            states.extend(root.map(|root| State { root, age }));
        }
        states.sort_by_key(|state| std::cmp::Reverse(state.age.generation));
        let states: Rc<[State]> = states.into();
        self.backups.borrow_mut().insert(id, Rc::clone(&states));
        states
    }

    /// The keys that a block and what is below it speak for; `None` when it is not what it should be.
    async fn span<D: BlockDevice>(
        &self,
        volume: &Volume<D>,
        id: u64,
        root: RootPointer,
    ) -> Option<(Key, Key)> {
        let place = (root.block, root.generation);
        if let Some(known) = self.spans.borrow().get(&place) {
            return *known;
        }
        let span = span(volume, &Tree::new(id, root).expect_root()).await;
        self.spans.borrow_mut().insert(place, span);
        span
    }

    async fn found<D: BlockDevice>(&self, volume: &Volume<D>) -> Rc<BTreeMap<u64, Vec<Candidate>>> {
        if let Some(known) = &*self.found.borrow() {
            return Rc::clone(known);
        }
        tracing::info!("reading all tree blocks for older states of the trees");
        let wanted = |id| id == objectid::ROOT_TREE || objectid::is_file_tree(id);
        let found = Rc::new(find_roots(volume, &wanted, &mut |_, _| ()).await);
        *self.found.borrow_mut() = Some(Rc::clone(&found));
        found
    }
}

impl Filled {
    /// Takes from a state, which speaks for keys `first` to before `end`, what is still missing.
    async fn ask<D: BlockDevice>(
        &mut self,
        volume: &Volume<D>,
        id: u64,
        state: &State,
        (first, end): (Key, Key),
        lost: u64,
    ) {
        if self.holes.is_empty() || state.root.generation >= lost {
            return;
        }
        let root = Tree::new(id, state.root).expect_root();
        let mut left = Vec::new();
        for (from, to) in std::mem::take(&mut self.holes) {
            let (low, high) = (from.max(first), to.min(end));
            if low >= high {
                left.push((from, to));
                continue;
            }
            left.extend([(from, low), (high, to)].into_iter().filter(|(a, b)| a < b));
            self.walk(volume, (root, low, high), state.age, &mut left).await;
        }
        self.holes = left;
    }

    /// Leaves below a block become patches; what is lost below it goes to `left`.
    async fn walk<D: BlockDevice>(
        &mut self,
        volume: &Volume<D>,
        top: (Expect, Key, Key),
        age: Age,
        left: &mut Vec<(Key, Key)>,
    ) {
        let mut todo = vec![top];
        while let Some((expect, from, to)) = todo.pop() {
            let Some(block) = block(volume, &expect).await else {
                left.push((from, to));
                continue;
            };
            if block.level() == 0 {
                self.patches.push(Patch { from, to, leaf: expect, age });
                continue;
            }
            for slot in 0..block.len() {
                let Some(child) = child(&block, slot, &expect) else { continue };
                let begins = if slot == 0 { from } else { block.key(slot).unwrap_or(to) };
                let ends = block.key(slot + 1).unwrap_or(to);
                let (low, high) = (from.max(begins), to.min(ends));
                if low < high {
                    todo.push((child, low, high));
                }
            }
        }
    }
}

fn child(block: &TreeBlock, slot: usize, parent: &Expect) -> Option<Expect> {
    block.expect_child(slot, parent.owner?)
}

/// From the first key of a block to behind the last one below it, where the tree may have gone on.
async fn span<D: BlockDevice>(volume: &Volume<D>, root: &Expect) -> Option<(Key, Key)> {
    let mut here = block(volume, root).await?;
    let first = here.key(0)?;
    let mut last = here.key(here.len().checked_sub(1)?)?;
    while here.level() > 0 {
        let Some(next) = child(&here, here.len() - 1, root) else { break };
        let Some(below) = block(volume, &next).await else { break };
        last = below.len().checked_sub(1).and_then(|slot| below.key(slot)).unwrap_or(last);
        here = below;
    }
    Some((first, last.next()))
}

/// As [`Volume::block`], but a copy that is not what was meant is nothing to tell of: places of old
/// blocks are used again.
async fn block<D: BlockDevice>(volume: &Volume<D>, expect: &Expect) -> Option<Arc<TreeBlock>> {
    for mirror in 1..=volume.mirrors(expect.logical).ok()? {
        let mut bytes = vec![0; volume.rules.nodesize as usize];
        if volume.read_mirror(expect.logical, mirror, &mut bytes).await.is_ok()
            && let Ok(block) = TreeBlock::check(&volume.rules, bytes, expect, mirror)
        {
            return Some(Arc::new(block));
        }
    }
    None
}

/// Where tree `id` had its root in the commit whose root tree was at `commit`.
async fn root_in<D: BlockDevice>(
    volume: &Volume<D>,
    commit: RootPointer,
    id: u64,
) -> Option<RootPointer> {
    let tree = Tree::new(objectid::ROOT_TREE, commit);
    // Asked quietly first: a root tree that is gone is nothing to warn of.
    block(volume, &tree.expect_root()).await?;
    let last = Key::new(id, ItemType::ROOT_ITEM, u64::MAX);
    let item = find_last(volume, &tree, last).await.ok().flatten()?;
    let Key { objectid, kind, .. } = item.key();
    let root = Root::parse(item.data()).ok().filter(|_| (objectid, kind) == (id, last.kind))?;
    Some(RootPointer { block: root.bytenr, generation: root.generation, level: root.level })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u64) -> Key {
        Key::new(n, ItemType::INODE_ITEM, 0)
    }

    #[test]
    fn patches_and_holes_are_found_by_the_keys_that_they_have() {
        let age = Age { generation: 7, csums: None };
        let expect = Tree::new(5, RootPointer::default()).expect_root();
        let patch = |from, to| Patch { from: key(from), to: key(to), leaf: expect, age };
        let filled = Filled {
            patches: vec![patch(10, 20), patch(30, 40)],
            holes: vec![(key(20), key(30)), (key(40), key(50))],
        };
        let patches = |first, last| filled.patches_in(key(first), key(last)).len();
        let holes = |first, last| filled.holes_in(key(first), key(last)).len();
        assert_eq!((patches(0, 9), holes(0, 9)), (0, 0));
        assert_eq!((patches(0, 10), holes(0, 10)), (1, 0));
        assert_eq!((patches(19, 20), holes(19, 20)), (1, 1));
        assert_eq!((patches(20, 29), holes(20, 29)), (0, 1));
        assert_eq!((patches(20, 30), holes(20, 30)), (1, 1));
        assert_eq!((patches(0, 99), holes(0, 99)), (2, 2));
    }
}
