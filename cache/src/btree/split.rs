//! Replacing nodes: compaction, splits, merges, a new root.
//!
//! All of them are one operation: some neighbours under one parent are replaced by new nodes that
//! hold the same keys. One at a time in the whole tree; lookups go on throughout, insertions into the
//! nodes concerned wait.
//!
//! ```text
//! freeze the old nodes, write what is unwritten of them (so they pin no journal entry)
//! write the new nodes                                                   durable   W6, W14
//! parent gets their keys and a freeing key for each old one             durable   W6
//!    or: the new root's key goes to the journal                         durable   W7
//! release the old buckets; the new nodes take insertions
//! ```
//!
//! New nodes take no insertions before their parent is durable: an insertion's leaf write would let
//! go of its journal entry while no crash could find the leaf.
//!
//! Buckets are taken before the turn is: who waits for buckets holds nothing that gc or writeback
//! need to free some.

use std::rc::Rc;

use varve_block::sync::LocalSemaphore;
use varve_block::{BlockDevice, ErrorKind, Op, Result};

use super::cache::{Freeze, NodeCell, NodeRef};
use super::{Generations, Guards, InsertCtx, Inserted, Node, usable_interior};
use crate::alloc::{Class, Durable, Grant};
use crate::error::{Corrupt, Place};
use crate::format::bkey::words_of;
use crate::format::{Bucket, Key, NodeFrame, Pos, Ptr};
use crate::journal::KEY_WORDS;
use crate::set::Set;

/// What a new node will hold.
pub(crate) struct Content {
    pub keys: Vec<Key>,
    pub bound: Pos,
}

/// Words that replacing one node by two adds to its parent: two keys and a freeing key.
const PARENT_WORDS: usize = 9;

impl<S: BlockDevice> Set<S> {
    /// Makes room in a leaf: writes it, and if its blocks are used up replaces it by new nodes.
    pub(crate) async fn make_room(self: &Rc<Self>, leaf: &NodeRef) -> Result<()> {
        self.write_node(leaf).await?;
        if leaf.node.borrow().room() >= KEY_WORDS {
            return Ok(());
        }
        let depth = usize::from(self.nodes.root().level) + 1;
        let mut grant = self.grant(2 * depth + 1, Class::Node).await?;
        let _turn = self.structure().acquire(1).await;
        self.writable()?;
        let stale = leaf.dead.get() || leaf.node.borrow().room() >= KEY_WORDS;
        if stale || grant.len() < 2 * (usize::from(self.nodes.root().level) + 1) + 1 {
            return Ok(());
        }
        self.rework(leaf, &mut grant).await
    }

    /// Replaces one node by one or two that have room. The caller has the turn.
    pub(crate) async fn rework(
        self: &Rc<Self>,
        node: &NodeRef,
        grant: &mut Grant<S>,
    ) -> Result<()> {
        let parent = self.parent_with_room(node, PARENT_WORDS, grant).await?;
        let _frozen = Freeze::new(node);
        self.write_node(node).await?;
        let contents = self.divide(node);
        self.replace(parent, std::slice::from_ref(node), contents, grant).await
    }

    /// The parent of a node (none: it is the root) with room for `words` more.
    pub(crate) async fn parent_with_room(
        self: &Rc<Self>,
        node: &NodeRef,
        words: usize,
        grant: &mut Grant<S>,
    ) -> Result<Option<NodeRef>> {
        loop {
            let Some(parent) = self.parent(node).await? else { return Ok(None) };
            if parent.node.borrow().room() >= words {
                return Ok(Some(parent));
            }
            Box::pin(self.rework(&parent, grant)).await?;
        }
    }

    /// The parent of a node that is in the tree.
    async fn parent(self: &Rc<Self>, node: &NodeRef) -> Result<Option<NodeRef>> {
        if Rc::ptr_eq(&self.nodes.root(), node) {
            return Ok(None);
        }
        let inside = node.bound().before().expect("a node has a bound behind the first position");
        let parent = self.node_at(inside, node.level + 1).await?;
        let child = {
            let buckets = self.buckets.borrow();
            parent.node.borrow().child_for(inside, &self.layout, &*buckets)
        };
        if child.as_ref().is_ok_and(|child| *child == Some(node.key)) {
            return Ok(Some(parent));
        }
        let place = Place { key: Some(node.key), ..Self::place_of(&parent) };
        let found = format!("{child:?}");
        Err(self.broken(Corrupt::online(9, "interior node", place, "child", found, node.key)))
    }

    /// What the successors of a node hold: its usable keys in one node, or in several when that one
    /// would be full again soon.
    fn divide(&self, node: &NodeRef) -> Vec<Content> {
        let buckets = self.buckets.borrow();
        let node = node.node.borrow();
        let keys = if node.level() == 0 {
            // What is stale in memory only could come back in a crash: keep it, so that who
            // overwrites the range knows.
            node.usable_keys(&self.layout, &Durable(&buckets))
        } else {
            node.usable_keys(&self.layout, &*buckets)
        };
        divide_keys(keys, node.frame().bound(), &self.new_frame_size())
    }

    /// Whoever changes the structure of the tree.
    pub(crate) fn structure(&self) -> &LocalSemaphore {
        &self.nodes.structure
    }

    fn new_frame_size(&self) -> NodeSize {
        let block = self.layout.block_bytes();
        let bytes = usize::try_from(self.layout.node_sectors()).unwrap_or(0) * 512;
        NodeSize { block, blocks: bytes / block }
    }

    /// Words of keys that a node may hold and still take more.
    pub(crate) fn node_words(&self) -> usize {
        let size = self.new_frame_size();
        (size.block * size.blocks - crate::format::bset::BSET_HEADER) / 8
    }

    /// See the module. `old` are neighbours in order, frozen, all written; `parent` has room.
    pub(crate) async fn replace(
        self: &Rc<Self>,
        parent: Option<NodeRef>,
        old: &[NodeRef],
        contents: Vec<Content>,
        grant: &mut Grant<S>,
    ) -> Result<()> {
        let level = old.first().map_or(0, |node| node.level);
        self.verify_range(old, &contents).map_err(|c| self.broken(c))?;
        if grant.len() <= contents.len() {
            let e = self.error(ErrorKind::NoSpace, Op::Write);
            return Err(e.with(format!("{} nodes need more buckets", contents.len())));
        }
        let mut new = Vec::new();
        for content in contents {
            new.push(self.new_node(content, level, grant).await?);
        }
        let frozen: Vec<Freeze> = new.iter().map(Freeze::new).collect();
        match parent {
            Some(parent) => self.swap_children(&parent, old, &new).await?,
            None => self.swap_root(old, &new, grant).await?,
        }
        for node in old {
            self.nodes.remove(node);
            self.release(self.layout.bucket_of(node.key.pointer().offset()));
        }
        drop(frozen);
        let total = self.nodes.total.get() + new.len() as u64;
        self.nodes.total.set(total - old.len() as u64);
        old.iter().for_each(|node| node.changed.notify_all());
        Ok(())
    }

    /// O9: the new nodes cover exactly what the old ones did.
    fn verify_range(&self, old: &[NodeRef], contents: &[Content]) -> Result<(), Corrupt> {
        let ascending = contents.windows(2).all(|pair| pair[0].bound < pair[1].bound);
        let last = contents.last().map(|content| content.bound);
        let written = old.iter().all(|node| !node.node.borrow().has_unwritten());
        let want = old.last().map(|node| node.bound());
        if ascending && last == want && written {
            return Ok(());
        }
        let place = old.last().map_or_else(Place::default, Self::place_of);
        let found = format!("bounds ascending {ascending}, old written {written}, last {last:?}");
        Err(Corrupt::online(9, "node", place, "children", found, format!("{want:?}")))
    }

    /// Writes a node with these keys; nobody knows it yet.
    async fn new_node(
        self: &Rc<Self>,
        content: Content,
        level: u8,
        grant: &mut Grant<S>,
    ) -> Result<NodeRef> {
        let Some(bucket) = grant.take() else {
            return Err(self.error(ErrorKind::NoSpace, Op::Write).with("no bucket for a node"));
        };
        let cell = self.make_node(bucket, content, level).map_err(|c| self.broken(c))?;
        self.write_node(&cell).await?;
        Ok(cell)
    }

    fn make_node(&self, bucket: Bucket, content: Content, level: u8) -> Result<NodeRef, Corrupt> {
        let generation = self.buckets.borrow().generation(bucket);
        let ptr = Ptr::new(self.layout.bucket_start(bucket), generation);
        let key = Key::node(content.bound, self.layout.node_sectors(), ptr);
        let frame = NodeFrame::new(key, level, self.magic, &self.layout);
        let seq = self.rt.prng().next_u64() | 1;
        Ok(NodeCell::new(Node::with_keys(frame, seq, content.keys, Guards::all())?))
    }

    /// A root without keys, for a set that starts for the first time.
    pub(crate) async fn plant(self: &Rc<Self>, bucket: Bucket) -> Result<()> {
        let content = Content { keys: Vec::new(), bound: Pos::MAX };
        let root = self.make_node(bucket, content, 0).map_err(|c| self.broken(c))?;
        self.write_node(&root).await?;
        self.nodes.insert(&root);
        self.nodes.set_root(&root);
        self.nodes.total.set(1);
        Ok(())
    }

    /// The parent learns of the new children and forgets the old ones.
    async fn swap_children(
        self: &Rc<Self>,
        parent: &NodeRef,
        old: &[NodeRef],
        new: &[NodeRef],
    ) -> Result<()> {
        {
            let mut buckets = self.buckets.borrow_mut();
            let mut node = parent.node.borrow_mut();
            let mut keys: Vec<Key> = new.iter().map(|node| node.key).collect();
            for node in old {
                let bucket = self.layout.bucket_of(node.key.pointer().offset());
                keys.push(Key::freeing(node.key, buckets.free_node(bucket)));
            }
            let ctx = InsertCtx::new(&self.layout);
            for key in keys {
                let done = node.insert(&ctx, key, None, &mut Vec::new());
                let done = done.map_err(|c| self.broken(c))?;
                debug_assert!(matches!(done, Inserted::Done { .. }));
            }
            node.verify_live(&self.layout, &*buckets).map_err(|c| self.broken(c))?;
        }
        // From here on lookups find the new nodes, which are durable.
        new.iter().for_each(|node| self.nodes.insert(node));
        self.write_node(parent).await
    }

    /// The tree gets another root: the one new node, or a new one above several.
    async fn swap_root(
        self: &Rc<Self>,
        old: &[NodeRef],
        new: &[NodeRef],
        grant: &mut Grant<S>,
    ) -> Result<()> {
        let root = match new {
            [root] => Rc::clone(root),
            children => {
                let level = old.first().map_or(0, |node| node.level) + 1;
                let keys = children.iter().map(|node| node.key).collect();
                let content = Content { keys, bound: Pos::MAX };
                let root = self.new_node(content, level, grant).await?;
                self.nodes.total.set(self.nodes.total.get() + 1);
                root
            }
        };
        new.iter().for_each(|node| self.nodes.insert(node));
        self.nodes.insert(&root);
        self.nodes.set_root(&root);
        self.commit_root().await
    }

    /// A root with a single child is not needed. The caller has the turn.
    pub(crate) async fn collapse_root(self: &Rc<Self>) -> Result<()> {
        loop {
            let root = self.nodes.root();
            if root.level == 0 {
                return Ok(());
            }
            let children = self.live_children(&root);
            let [only] = children.as_slice() else { return Ok(()) };
            let inside =
                only.pos().before().expect("a child has a bound behind the first position");
            let child = self.node_at(inside, root.level - 1).await?;
            let _frozen = Freeze::new(&root);
            self.nodes.set_root(&child);
            self.commit_root().await?;
            self.nodes.remove(&root);
            self.release(self.layout.bucket_of(root.key.pointer().offset()));
            self.nodes.total.set(self.nodes.total.get() - 1);
        }
    }

    pub(crate) fn live_children(&self, parent: &NodeRef) -> Vec<Key> {
        let buckets = self.buckets.borrow();
        let node = parent.node.borrow();
        node.iter().filter(|key| usable_interior(key, &self.layout, &*buckets)).collect()
    }
}

/// How large new nodes are.
pub(crate) struct NodeSize {
    block: usize,
    blocks: usize,
}

impl NodeSize {
    fn blocks_for(&self, words: usize) -> usize {
        crate::format::bset::bset_bytes(words).div_ceil(self.block)
    }

    /// Whether a node with so many words still has room for some time: four fifths at most.
    fn has_room(&self, words: usize) -> bool {
        let blocks = self.blocks_for(words);
        blocks * 5 <= self.blocks * 4 && blocks < self.blocks
    }
}

/// Cuts a sorted list into as few nodes as have room, of about equal size.
fn divide_keys(keys: Vec<Key>, bound: Pos, size: &NodeSize) -> Vec<Content> {
    let words = words_of(&keys);
    let mut parts = 1;
    while parts < keys.len() && !size.has_room(words.div_ceil(parts) + KEY_WORDS) {
        parts += 1;
    }
    if size.has_room(words) {
        parts = 1;
    }
    let mut contents = Vec::new();
    let mut part = Vec::new();
    let mut used = 0;
    let count = keys.len();
    for (n, key) in keys.into_iter().enumerate() {
        used += key.words();
        part.push(key);
        let full = used * parts >= words * (contents.len() + 1);
        if full && contents.len() + 1 < parts && n + 1 < count {
            contents.push(Content { keys: std::mem::take(&mut part), bound: key.pos() });
        }
    }
    contents.push(Content { keys: part, bound });
    contents
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn divided_keys_stay_in_order_and_every_part_has_room(
            n in 0usize..800, block in prop::sample::select(vec![512usize, 1024, 4096]),
            blocks in 2usize..40,
        ) {
            let keys: Vec<Key> = (0..n as u64)
                .map(|i| Key::extent(3, i * 8, i * 8 + 8, false, Ptr::new(i * 8, 1)))
                .collect();
            let size = NodeSize { block, blocks };
            let bound = Pos::new(3, 1 << 40);
            let contents = divide_keys(keys.clone(), bound, &size);
            let all: Vec<Key> = contents.iter().flat_map(|c| c.keys.clone()).collect();
            prop_assert_eq!(all, keys);
            prop_assert_eq!(contents.last().unwrap().bound, bound);
            for pair in contents.windows(2) {
                prop_assert!(pair[0].bound < pair[1].bound);
                prop_assert_eq!(pair[0].keys.last().unwrap().pos(), pair[0].bound);
            }
            for content in &contents {
                prop_assert!(size.has_room(words_of(&content.keys)), "{} words", words_of(&content.keys));
            }
        }
    }
}
