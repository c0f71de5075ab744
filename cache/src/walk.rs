//! Walking the whole tree, and the true generations of buckets.
//!
//! The prio chain on disk lags behind: the generation of a freed node is bumped in memory and
//! recorded only in the freeing key that its parent got. So every node's pointers are applied to the
//! generations *first* (freeing keys included), and only then are its children followed. A checker
//! that compares with the prio chain alone reports damage where there is none.

use std::collections::{BTreeMap, BTreeSet};

use varve_block::BlockDevice;

use crate::btree::{Generations, Guards, Node, usable_interior, verify};
use crate::error::{Corrupt, LoadError};
use crate::format::{Bucket, Key, Layout, NodeFrame, Pos, Prio, SetMagic, generation_after};
use crate::load::Loader;

/// Recovered generations.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gens {
    known: Vec<u8>,
    /// Without a prio chain: what the pointers themselves said.
    learnt: BTreeMap<Bucket, u8>,
}

impl Gens {
    pub(crate) fn new(prios: &[Prio]) -> Gens {
        let known = prios.iter().map(|prio| prio.generation).collect();
        Gens { known, learnt: BTreeMap::new() }
    }

    /// A pointer as new as its bucket or newer is the bucket's generation.
    pub(crate) fn apply(&mut self, key: &Key, layout: &Layout) {
        let Some(ptr) = key.ptr().filter(|ptr| ptr.available()) else { return };
        let bucket = layout.bucket_of(ptr.offset());
        let known = if self.known.is_empty() {
            self.learnt.entry(bucket).or_insert_with(|| ptr.generation())
        } else {
            let index = usize::try_from(bucket.0).unwrap_or(usize::MAX);
            let Some(known) = self.known.get_mut(index) else { return };
            known
        };
        if generation_after(*known, ptr.generation()) == 0 {
            *known = ptr.generation();
        }
    }
}

impl Generations for Gens {
    fn generation(&self, bucket: Bucket) -> u8 {
        match self.learnt.get(&bucket) {
            Some(learnt) => *learnt,
            None => self.known.as_slice().generation(bucket),
        }
    }
}

/// One node of the walk.
pub(crate) struct Step {
    pub frame: NodeFrame,
    /// The previous sibling's bound: no key of this node lies before it.
    pub lower: Pos,
    pub node: Result<Node, LoadError>,
    /// The node's bytes, when the device gave them.
    pub bytes: Vec<u8>,
}

/// A walk from the root, parents before children, children in key order. Every node is visited once.
pub(crate) struct Walk<'a, 'l, D> {
    loader: &'a Loader<'l, D>,
    layout: Layout,
    magic: SetMagic,
    pub gens: Gens,
    /// Nodes to visit; the next one is the last.
    todo: Vec<(Key, u8, Pos)>,
    guards: Guards,
    seen: BTreeSet<Bucket>,
}

impl<'a, 'l, D: BlockDevice> Walk<'a, 'l, D> {
    /// `root` has been checked by the journal's reader.
    pub(crate) fn new(
        loader: &'a Loader<'l, D>,
        layout: Layout,
        magic: SetMagic,
        gens: Gens,
        (root, level): (Key, u8),
    ) -> Walk<'a, 'l, D> {
        let mut gens = gens;
        gens.apply(&root, &layout);
        let todo = vec![(root, level, Pos::ZERO)];
        let guards = Guards::all();
        Walk { loader, layout, magic, gens, todo, guards, seen: BTreeSet::new() }
    }

    /// Nodes are merged as they are, in whatever order: for the checker, which looks itself.
    pub(crate) fn unguarded(self) -> Walk<'a, 'l, D> {
        Walk { guards: Guards::empty(), ..self }
    }

    /// Buckets of the nodes visited so far.
    pub(crate) fn node_buckets(&self) -> &BTreeSet<Bucket> {
        &self.seen
    }

    /// The next node, its keys applied to the generations and its children noted. A node that
    /// cannot be read comes as an error, and the walk goes on without its children.
    pub(crate) async fn next(&mut self) -> Option<Step> {
        let (key, level, lower) = self.todo.pop()?;
        let frame = NodeFrame::new(key, level, self.magic, &self.layout);
        let mut step =
            Step { frame, lower, node: Err(twice(&frame, &self.layout).into()), bytes: Vec::new() };
        if !self.seen.insert(self.layout.bucket_of(frame.sector)) {
            return Some(step);
        }
        if let Some(broken) = verify::child(&frame, &self.layout, &key) {
            step.node = Err(broken.into());
            return Some(step);
        }
        match self.loader.node_bytes(&frame).await {
            Ok(bytes) => step.bytes = bytes,
            Err(failed) => {
                step.node = Err(failed.into());
                return Some(step);
            }
        }
        step.node =
            Node::parse(frame, &step.bytes, &self.layout, self.guards).map_err(LoadError::from);
        if let Ok(node) = &step.node {
            self.enter(node, lower);
        }
        Some(step)
    }

    fn enter(&mut self, node: &Node, lower: Pos) {
        for key in node.iter() {
            self.gens.apply(&key, &self.layout);
        }
        if node.level() == 0 {
            return;
        }
        let mut lower = lower;
        let mut children = Vec::new();
        for key in node.iter().filter(|key| usable_interior(key, &self.layout, &self.gens)) {
            children.push((key, node.level() - 1, lower));
            lower = key.pos();
        }
        self.todo.extend(children.into_iter().rev());
    }
}

fn twice(frame: &NodeFrame, layout: &Layout) -> Corrupt {
    let bucket = layout.bucket_of(frame.sector);
    let found = format!("a second pointer to {bucket}");
    Corrupt::row(44, frame.what(), frame.place(0), "ptr", found, "one parent for each node")
}

/// What must hold between a node and its children once generations are known: rows 40, 42, 43.
pub(crate) fn verify_node(
    node: &Node,
    lower: Pos,
    layout: &Layout,
    gens: &Gens,
) -> Result<(), Corrupt> {
    node.verify_above(lower)?;
    node.verify_live(layout, gens)?;
    last_child(node, layout, gens)
}

/// Row 43: the last live child ends where its parent ends.
pub(crate) fn last_child(node: &Node, layout: &Layout, gens: &Gens) -> Result<(), Corrupt> {
    if node.level() == 0 {
        return Ok(());
    }
    let last = node.iter().filter(|key| usable_interior(key, layout, gens)).last();
    let bound = node.frame().bound();
    if last.is_some_and(|key| key.pos() == bound) {
        return Ok(());
    }
    let found = last.map_or_else(|| "no live child".to_owned(), |key| key.pos().to_string());
    let place = node.frame().place(0);
    Err(Corrupt::row(43, node.frame().what(), place, "last child", found, bound))
}
