//! Garbage collection: what old pointers still exist, and nodes that are not worth their bucket.
//!
//! Which buckets can be reused is known at every moment (`alloc/buckets.rs`). Gc is needed for three
//! other things:
//!
//! - A generation may not run more than 96 ahead of the oldest pointer that still stands somewhere.
//!   Gc finds the oldest pointer of each bucket.
//! - Leaves fill up with stale keys, and ranges that were busy once leave nearly empty leaves behind.
//!   Such nodes are rewritten, or merged with their neighbours; a root with one child goes. Two
//!   neighbours under one parent are never both less than a third full afterwards, so the tree does
//!   not outgrow its keys.
//! - It recounts what every bucket holds, and compares (O16).
//!
//! It goes from left to right, one node between two awaits, while everything else goes on. A leaf is
//! written before it is looked at: what a crash could bring back from an older version of it must not
//! be older than what gc has seen.

use std::rc::Rc;

use varve_block::{BlockDevice, Result};

use super::cache::{Freeze, NodeRef};
use super::split::Content;
use super::{staleness, usable_interior, usable_leaf};
use crate::alloc::{Class, Durable, index};
use crate::error::{Corrupt, Place};
use crate::format::bkey::words_of;
use crate::format::{Key, Pos, generation_after};
use crate::set::Set;

/// Neighbours looked at for a merge.
const WINDOW: usize = 4;
/// A node with an older pointer than this is rewritten.
const STALE_MAX: u8 = 10;

/// What gc has seen so far.
struct Marks {
    /// Oldest generation of any pointer, per bucket.
    oldest: Vec<u8>,
    /// Live and dirty sectors.
    sectors: Vec<(u32, u32)>,
}

/// What a look at a node says about it.
struct Worth {
    /// Words of keys that a successor would keep.
    words: usize,
    rewrite: bool,
}

impl<S: BlockDevice> Set<S> {
    /// Collects whenever somebody asks, until the set stops.
    pub(crate) async fn gc_task(self: Rc<Self>) {
        while self.health.running() {
            if !self.alloc.gc_wanted.replace(false) {
                self.alloc.gc_wake.notified().await;
                continue;
            }
            if self.collect().await.is_err() {
                // What can fail here fails the set, or is a read error: try again when asked again.
                self.rt.yield_now().await;
            }
            self.alloc.wanted.notify_one();
        }
    }

    /// `sectors` entered the cache: gc runs after each sixteenth of it.
    pub(crate) fn account_inserted(&self, sectors: u64) {
        let inserted = self.inserted.get() + sectors;
        self.inserted.set(inserted);
        if inserted > self.layout.sectors() / 16 {
            self.inserted.set(0);
            self.request_gc();
        }
    }

    /// One collection.
    pub(crate) async fn collect(self: &Rc<Self>) -> Result<()> {
        let oldest = self.buckets.borrow_mut().begin_gc();
        let sectors = vec![(0, 0); oldest.len()];
        let mut marks = Marks { oldest, sectors };
        let mut level = 0;
        while level <= self.nodes.root().level {
            self.collect_level(level, &mut marks).await?;
            level += 1;
        }
        {
            let _turn = self.structure().acquire(1).await;
            self.writable()?;
            self.collapse_root().await?;
        }
        let wrong = {
            let mut buckets = self.buckets.borrow_mut();
            buckets.end_gc(&marks.oldest);
            buckets.disagreement(&marks.sectors)
        };
        if let Some((bucket, counted)) = wrong {
            let found = format!("{:?} live and dirty sectors", marks.sectors[index(bucket)]);
            let expected = format!("{counted:?}");
            let place = Place { bucket: Some(bucket), ..Place::default() };
            let corrupt = Corrupt::online(16, "bucket", place, "sectors", found, expected);
            return Err(self.broken(corrupt));
        }
        self.alloc.changed.notify_all();
        Ok(())
    }

    async fn collect_level(self: &Rc<Self>, level: u8, marks: &mut Marks) -> Result<()> {
        let mut pos = Pos::ZERO;
        loop {
            let node = self.node_at(pos, level).await?;
            if node.level != level {
                return Ok(()); // the tree got lower
            }
            if level == 0 {
                self.write_node(&node).await?;
            }
            if node.dead.get() {
                continue;
            }
            let worth = self.mark(&node, pos, marks);
            self.tidy(&node, &worth).await?;
            if node.bound() == Pos::MAX {
                return Ok(());
            }
            pos = node.bound();
            self.rt.yield_now().await;
            self.writable()?;
        }
    }

    /// Takes down every pointer of a node behind `pos`.
    fn mark(&self, node: &NodeRef, pos: Pos, marks: &mut Marks) -> Worth {
        let buckets = self.buckets.borrow();
        let node = node.node.borrow();
        let (mut all, mut usable, mut stalest) = (0usize, 0usize, 0);
        for key in node.iter().filter(|key| key.pos() > pos) {
            all += 1;
            let Some(ptr) = key.ptr().filter(|ptr| ptr.available()) else { continue };
            let bucket = index(self.layout.bucket_of(ptr.offset()));
            let Some(oldest) = marks.oldest.get_mut(bucket) else { continue };
            if generation_after(*oldest, ptr.generation()) > 0 {
                *oldest = ptr.generation();
            }
            stalest = stalest.max(staleness(ptr, &self.layout, &*buckets));
            if node.level() > 0 {
                usable += usize::from(usable_interior(&key, &self.layout, &*buckets));
            } else if usable_leaf(&key, &self.layout, &*buckets) {
                usable += 1;
                // Where nodes were merged behind the mark, a key may have been joined across it.
                let seen = if key.inode() == pos.inode { pos.offset } else { 0 };
                let behind = key.end() - key.start().max(seen);
                let sectors = u32::try_from(behind).unwrap_or(u32::MAX);
                marks.sectors[bucket].0 += sectors;
                marks.sectors[bucket].1 += if key.dirty() { sectors } else { 0 };
            }
        }
        let kept = if node.level() == 0 {
            node.usable_keys(&self.layout, &Durable(&buckets))
        } else {
            node.usable_keys(&self.layout, &*buckets)
        };
        let gone = all.saturating_sub(usable.max(kept.len()));
        let rewrite = (stalest > STALE_MAX && kept.len() < all) || (all > 16 && gone * 2 > all);
        Worth { words: words_of(&kept), rewrite }
    }

    /// Merges a node with those to its right, or rewrites it, if it is worth that and there are
    /// buckets to do it with.
    async fn tidy(self: &Rc<Self>, node: &NodeRef, worth: &Worth) -> Result<()> {
        let neighbours = self.mergeable(node, worth.words).await?;
        if neighbours.len() < 2 && !worth.rewrite {
            return Ok(());
        }
        let depth = usize::from(self.nodes.root().level) + 1;
        let Some(mut grant) = self.try_grant(2 * depth + 1, Class::Gc) else { return Ok(()) };
        let _turn = self.structure().acquire(1).await;
        self.writable()?;
        let gone = neighbours.iter().chain([node]).any(|node| node.dead.get());
        if gone || depth != usize::from(self.nodes.root().level) + 1 {
            return Ok(());
        }
        if neighbours.len() < 2 {
            return self.rework(node, &mut grant).await;
        }
        let words = 3 * (1 + neighbours.len());
        let Some(parent) = self.parent_with_room(node, words, &mut grant).await? else {
            return Ok(());
        };
        if grant.len() == 0 || !self.are_neighbours(&parent, &neighbours) {
            return Ok(());
        }
        let _frozen: Vec<Freeze> = neighbours.iter().map(Freeze::new).collect();
        let mut keys = Vec::new();
        for node in &neighbours {
            self.write_node(node).await?;
            keys.extend(self.kept_keys(node));
        }
        if words_of(&keys) > self.merged_words_max() {
            return Ok(()); // they grew meanwhile
        }
        let bound = neighbours.last().map_or(Pos::MAX, |node| node.bound());
        self.replace(Some(parent), &neighbours, vec![Content { keys, bound }], &mut grant).await
    }

    /// The node and as many of its right neighbours under the same parent as fit one node.
    async fn mergeable(self: &Rc<Self>, node: &NodeRef, words: usize) -> Result<Vec<NodeRef>> {
        let mut nodes = vec![Rc::clone(node)];
        let mut words = words;
        if words > self.merged_words_max() || node.level == self.nodes.root().level {
            return Ok(nodes);
        }
        let inside = node.bound().before().expect("a node has a bound behind the first position");
        let parent = self.node_at(inside, node.level + 1).await?;
        let children = self.live_children(&parent);
        let rest = children.iter().skip_while(|key| **key != node.key).skip(1);
        for key in rest.take(WINDOW - 1) {
            let inside = key.pos().before().expect("a node has a bound behind the first position");
            let next = self.node_at(inside, node.level).await?;
            words += words_of(&self.kept_keys(&next));
            if next.key != *key || words > self.merged_words_max() {
                break;
            }
            nodes.push(next);
        }
        Ok(nodes)
    }

    fn kept_keys(&self, node: &NodeRef) -> Vec<Key> {
        let buckets = self.buckets.borrow();
        let node = node.node.borrow();
        if node.level() == 0 {
            node.usable_keys(&self.layout, &Durable(&buckets))
        } else {
            node.usable_keys(&self.layout, &*buckets)
        }
    }

    /// A merged node is two thirds full at most, and has a block left.
    fn merged_words_max(&self) -> usize {
        let block_words = self.layout.block_bytes() / 8;
        (self.node_words() * 2 / 3).min(self.node_words().saturating_sub(block_words))
    }

    fn are_neighbours(&self, parent: &NodeRef, nodes: &[NodeRef]) -> bool {
        let children = self.live_children(parent);
        let want: Vec<Key> = nodes.iter().map(|node| node.key).collect();
        children.windows(want.len()).any(|run| run == want)
    }
}
