//! Test bench of the btree's pure half: one leaf, the image of its bucket, and a shadow that knows
//! for every sector what the last writer put there.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::error::Corrupt;
use crate::format::{NodeFrame, PageModel, Pos, SetMagic};

pub(crate) const INODES: u32 = 3;
pub(crate) const SECTORS: u64 = 64;

pub(crate) fn layout() -> Layout {
    Layout {
        block_size: 8,
        bucket_size: 64,
        nbuckets: 1 << 30,
        first_bucket: 1,
        pages: PageModel::default(),
    }
}

/// A node of `blocks` blocks at the start of `bucket`.
pub(crate) fn frame(bucket: u64, blocks: u32, level: u8) -> NodeFrame {
    let key = Key::node(Pos::MAX, blocks * 8, Ptr::new(bucket * 64, 1));
    let magic = SetMagic::of(uuid::Uuid::from_u128(0x1234_5678));
    NodeFrame::new(key, level, magic, &layout())
}

/// No bucket was ever reused, and every pointer has generation 0.
pub(crate) struct NeverStale;

impl Generations for NeverStale {
    fn generation(&self, _: Bucket) -> u8 {
        0
    }
}

/// What is known of one sector: the word of the pointer to it, and whether it is dirty.
type Cell = (u64, bool);
pub(crate) type Map = BTreeMap<(u32, u64), Cell>;

/// The effective map of a node. A sector with two live keys fails the test.
pub(crate) fn map(node: &Node) -> Result<Map, String> {
    let mut map = Map::new();
    let mut seen = BTreeMap::new();
    for key in node.iter().filter(|key| key.size() > 0) {
        for sector in key.start()..key.end() {
            if let Some(other) = seen.insert((key.inode(), sector), key) {
                return Err(format!("{other} and {key} both cover {sector}"));
            }
            if let Some(ptr) = key.ptr() {
                let word = ptr.advanced(sector - key.start()).word();
                map.insert((key.inode(), sector), (word, key.dirty()));
            }
        }
    }
    Ok(map)
}

/// What the read path makes of a node: hits only.
pub(crate) fn hits(node: &Node) -> Map {
    let layout = layout();
    let mut map = Map::new();
    for inode in 0..INODES {
        let mut at = 0;
        for piece in node.pieces(inode, 0, SECTORS, &layout, &NeverStale).unwrap() {
            let (start, end) = match piece {
                Piece::Gap { start, end } => (start, end),
                Piece::Hit { start, end, sector, key } => {
                    for n in 0..end - start {
                        let word = key.ptr().unwrap().advanced(start - key.start() + n).word();
                        assert_eq!(word >> 8, sector + n);
                        map.insert((inode, start + n), (word, key.dirty()));
                    }
                    (start, end)
                }
            };
            assert_eq!(start, at, "pieces are adjacent");
            assert!(end > start);
            at = end;
        }
        assert_eq!(at, SECTORS, "pieces cover the request");
    }
    map
}

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Write {
        inode: u32,
        start: u64,
        len: u64,
        dirty: bool,
    },
    Invalidate {
        inode: u32,
        start: u64,
        len: u64,
    },
    /// A read miss leaves a check key.
    Miss {
        inode: u32,
        start: u64,
        len: u64,
    },
    /// The n-th miss gets its data.
    Fill(usize),
    /// Writeback of the n-th dirty key, as it stood some steps ago.
    Remember(usize),
    Clean,
    Seal,
    Compact,
}

pub(crate) fn op() -> impl Strategy<Value = Op> {
    let range = (0..INODES, 0..SECTORS, 1..24u64)
        .prop_map(|(inode, start, len)| (inode, start, len.min(SECTORS - start)));
    prop_oneof![
        8 => (range.clone(), any::<bool>())
            .prop_map(|((inode, start, len), dirty)| Op::Write { inode, start, len, dirty }),
        2 => range.clone().prop_map(|(inode, start, len)| Op::Invalidate { inode, start, len }),
        2 => range.prop_map(|(inode, start, len)| Op::Miss { inode, start, len }),
        2 => (0..4usize).prop_map(Op::Fill),
        1 => (0..8usize).prop_map(Op::Remember),
        1 => Just(Op::Clean),
        2 => Just(Op::Seal),
        1 => Just(Op::Compact),
    ]
}

/// See the module.
pub(crate) struct Bench {
    pub node: Node,
    pub image: Vec<u8>,
    pub shadow: Map,
    pub dirty: BTreeMap<u32, i64>,
    misses: Vec<Key>,
    remembered: Option<Key>,
    /// Next free sector for data, and next free bucket for nodes: far apart.
    data: u64,
    bucket: u64,
}

impl Bench {
    pub(crate) fn new(guards: Guards) -> Bench {
        let frame = frame(5, 4, 0);
        Bench {
            node: Node::fresh(frame, 77, guards),
            image: vec![0; frame.bytes()],
            shadow: Map::new(),
            dirty: BTreeMap::new(),
            misses: Vec::new(),
            remembered: None,
            data: 1 << 30,
            bucket: 6,
        }
    }

    /// Fresh cache sectors, inside one bucket.
    fn allocate(&mut self, len: u64) -> Ptr {
        if self.data % 64 + len > 64 {
            self.data = self.data.next_multiple_of(64);
        }
        self.data += len;
        Ptr::new(self.data - len, 0)
    }

    pub(crate) fn step(&mut self, ctx: &InsertCtx<'_>, op: &Op) -> Result<(), Corrupt> {
        if self.node.room() < 3 {
            self.compact()?;
        }
        match *op {
            Op::Write { inode, start, len, dirty } => {
                let key = Key::extent(inode, start, start + len, dirty, self.allocate(len));
                self.insert(ctx, key, None)?;
            }
            Op::Invalidate { inode, start, len } => {
                self.insert(ctx, Key::invalidation(inode, start, start + len), None)?;
            }
            Op::Miss { inode, start, len } => {
                let key =
                    Key::check(inode, start, start + len, self.data.wrapping_mul(0x9E37_79B9));
                self.insert(ctx, key, None)?;
                self.misses.push(key);
            }
            Op::Fill(n) if !self.misses.is_empty() => {
                let old = self.misses.remove(n % self.misses.len());
                let ptr = self.allocate(u64::from(old.size()));
                let key = Key::extent(old.inode(), old.start(), old.end(), false, ptr);
                self.insert(ctx, key, Some(old))?;
            }
            Op::Remember(n) => {
                let dirty: Vec<Key> =
                    self.node.iter().filter(|key| key.dirty() && key.size() > 0).collect();
                self.remembered = dirty.get(n % dirty.len().max(1)).copied();
            }
            Op::Clean => {
                if let Some(old) = self.remembered.take() {
                    self.insert(ctx, old.with_dirty(false), Some(old))?;
                }
            }
            Op::Seal if self.node.has_unwritten() => self.seal()?,
            Op::Compact => self.compact()?,
            Op::Fill(_) | Op::Seal => {}
        }
        Ok(())
    }

    fn insert(
        &mut self,
        ctx: &InsertCtx<'_>,
        key: Key,
        replace: Option<Key>,
    ) -> Result<(), Corrupt> {
        let exact = replace.is_some_and(|old| self.node.iter().any(|key| key == old));
        let mut deltas = Vec::new();
        let done = self.node.insert(ctx, key, replace.as_ref(), &mut deltas)?;
        for delta in deltas {
            *self.dirty.entry(delta.inode).or_default() += delta.sectors;
        }
        let sectors = match done {
            Inserted::Done { sectors } => sectors,
            Inserted::Collision => 0,
        };
        let honest = ctx.fault.is_none();
        assert!(!honest || !exact || sectors == key.size(), "{key}: a replace that had to succeed");
        assert!(replace.is_some() || sectors == key.size());
        for sector in key.start()..key.start() + u64::from(sectors) {
            let at = (key.inode(), sector);
            if let Some(old) = replace.filter(|_| honest) {
                let word = old.ptr().unwrap().advanced(sector - old.start()).word();
                assert_eq!(self.shadow.get(&at), Some(&(word, old.dirty())), "replaced too much");
            }
            let cell = key.ptr().map(|ptr| ptr.advanced(sector - key.start()).word());
            match cell {
                Some(word) => self.shadow.insert(at, (word, key.dirty())),
                None => self.shadow.remove(&at),
            };
        }
        Ok(())
    }

    fn seal(&mut self) -> Result<(), Corrupt> {
        let write = self.node.seal(&layout(), &NeverStale)?;
        apply(&mut self.image, &self.node, &write);
        Ok(())
    }

    /// What a split does with a node that is not full: a new node with what is usable.
    fn compact(&mut self) -> Result<(), Corrupt> {
        let frame = frame(self.bucket, 4, 0);
        self.bucket += 1;
        let keys = self.node.usable_keys(&layout(), &NeverStale);
        self.node = Node::with_keys(frame, 77 + self.bucket, keys, self.node.guards())?;
        self.image = vec![0; frame.bytes()];
        self.shadow.retain(|_, (word, _)| !Ptr::from_word(*word).is_check());
        self.seal()
    }

    /// The node as the next reader finds it.
    pub(crate) fn reload(&self) -> Result<Node, Corrupt> {
        let mut node = self.node.clone();
        let mut image = self.image.clone();
        if node.has_unwritten() {
            let write = node.seal(&layout(), &NeverStale)?;
            apply(&mut image, &node, &write);
        }
        Node::parse(*node.frame(), &image, &layout(), node.guards())
    }

    /// Memory == disk == shadow.
    pub(crate) fn check(&self) -> Result<(), String> {
        let memory = map(&self.node)?;
        if memory != self.shadow {
            return Err(format!("memory {memory:x?} shadow {:x?}", self.shadow));
        }
        let reloaded = self.reload().map_err(|broken| broken.to_string())?;
        if map(&reloaded)? != self.shadow {
            return Err(format!("disk {:x?} shadow {:x?}", map(&reloaded)?, self.shadow));
        }
        let mut hit = self.shadow.clone();
        hit.retain(|_, (word, _)| !Ptr::from_word(*word).is_check());
        if hits(&self.node) != hit {
            return Err(format!("lookups {:x?} shadow {hit:x?}", hits(&self.node)));
        }
        for inode in 0..INODES {
            let cells = self.shadow.iter().filter(|((i, _), (_, dirty))| *i == inode && *dirty);
            let (want, have) = (cells.count() as i64, self.dirty.get(&inode).copied().unwrap_or(0));
            if want != have {
                return Err(format!("{have} dirty sectors counted for {inode}, there are {want}"));
            }
        }
        Ok(())
    }
}

pub(crate) fn apply(image: &mut [u8], node: &Node, write: &SetWrite) {
    let at = usize::try_from((write.sector - node.frame().sector) * 512).unwrap();
    image[at..at + write.bytes.len()].copy_from_slice(&write.bytes);
}
