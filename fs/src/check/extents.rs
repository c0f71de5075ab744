//! The extent tree: every record by itself, and what all of them together say about space.

use super::bitmap::Bitmap;
use super::finding::{Code, Findings};
use super::refs::{By, Ref, Refs};
use super::runs::Runs;
use crate::chunk::ChunkMap;
use crate::error::Place;
use crate::format::chunk::{BlockGroup, GroupFlags, STRIPE_LEN};
use crate::format::extent::{DataRef, Extent, ExtentFlags, Reference, parse_shared_count};
use crate::format::key::{ItemType, Key, objectid};
use crate::tree::node::TreeBlock;
use crate::units::Logical;
use std::collections::BTreeMap;

/// What the extent tree says, gathered in the first pass and used by all that follow.
pub(crate) struct Space {
    /// Everything allocated.
    pub(crate) allocated: Runs,
    pub(crate) data: Runs,
    /// Blocks whose own references are keyed by their address.
    pub(crate) full_backref: Bitmap,
    /// Blocks that have a record.
    pub(crate) recorded: Bitmap,
    /// Bytes allocated in each chunk, by its start.
    pub(crate) used: BTreeMap<u64, u64>,
    pub(crate) groups: BTreeMap<u64, (u64, BlockGroup)>,
    pub(crate) bytes: u64,
}

impl Space {
    pub(crate) fn new(sectorsize: u32) -> Space {
        Space {
            allocated: Runs::new(sectorsize),
            data: Runs::new(sectorsize),
            full_backref: Bitmap::new(sectorsize),
            recorded: Bitmap::new(sectorsize),
            used: BTreeMap::new(),
            groups: BTreeMap::new(),
            bytes: 0,
        }
    }

    pub(crate) fn group_item(&mut self, key: Key, data: &[u8], findings: &Findings) {
        let Ok(group) = BlockGroup::parse(data) else { return };
        if let Some((length, _)) = self.groups.insert(key.objectid, (key.offset, group)) {
            let at = Logical(key.objectid);
            let text = format!("block group {at} has two items, of {length} and {}", key.offset);
            findings.add(Code::BlockGroupChunk, logical(at.0), text);
        }
    }
}

pub(crate) fn logical(at: u64) -> Place {
    Place { logical: Some(Logical(at)), ..Place::default() }
}

/// What the measures are.
#[derive(Clone, Copy)]
pub(crate) struct Measures {
    pub(crate) nodesize: u64,
    pub(crate) generation: u64,
    pub(crate) groups_here: bool,
}

/// The record under examination: its keyed references follow it.
struct Current {
    start: u64,
    len: u64,
    /// A data extent's length, a block's level: what references are told with.
    size: u64,
    data: bool,
    refs: u64,
    counted: u64,
}

pub(crate) struct ExtentPass<'a> {
    findings: &'a Findings,
    chunks: &'a ChunkMap,
    measures: Measures,
    current: Option<Current>,
    end: u64,
    /// Judging, rather than only listing references once more.
    first: bool,
}

impl<'a> ExtentPass<'a> {
    pub(crate) fn new(
        findings: &'a Findings,
        chunks: &'a ChunkMap,
        measures: Measures,
        first: bool,
    ) -> ExtentPass<'a> {
        ExtentPass { findings, chunks, measures, current: None, end: 0, first }
    }

    pub(crate) fn leaf(&mut self, block: &TreeBlock, space: &mut Space, refs: &mut Refs) {
        for slot in 0..block.len() {
            let Some((key, data)) = block.item(slot) else { continue };
            match key.kind {
                ItemType::EXTENT_ITEM | ItemType::METADATA_ITEM => {
                    self.finish();
                    self.extent(key, data, slot > 0, space, refs);
                }
                ItemType::TREE_BLOCK_REF
                | ItemType::EXTENT_DATA_REF
                | ItemType::SHARED_BLOCK_REF
                | ItemType::SHARED_DATA_REF => self.keyed(key, data, refs),
                ItemType::BLOCK_GROUP_ITEM if self.measures.groups_here => {
                    if self.first {
                        space.group_item(key, data, self.findings);
                    }
                }
                _ => self.add(Code::UnknownKey, key.objectid, || {
                    format!("unknown key {key} in the extent tree")
                }),
            }
        }
    }

    fn add(&self, code: Code, at: u64, text: impl FnOnce() -> String) {
        if self.first {
            self.findings.add(code, logical(at), text());
        }
    }

    fn extent(&mut self, key: Key, data: &[u8], same: bool, space: &mut Space, refs: &mut Refs) {
        let start = key.objectid;
        let Ok(extent) = Extent::parse(key.kind, data) else {
            self.current = None;
            return;
        };
        let is_data = extent.flags.contains(ExtentFlags::DATA);
        let skinny = key.kind == ItemType::METADATA_ITEM;
        let len = if skinny { self.measures.nodesize } else { key.offset };
        let level = match extent.tree_block {
            Some((_, level)) => u64::from(level),
            None => key.offset,
        };
        let size = if is_data { len } else { level };
        if start < self.end && !same {
            let end = self.end;
            self.add(Code::ExtentOverlap, start, || {
                format!("extent {key} overlaps the one before, which ends at {end}")
            });
        }
        self.end = self.end.max(start.saturating_add(len));
        self.current =
            Some(Current { start, len, size, data: is_data, refs: extent.refs, counted: 0 });
        for reference in &extent.inline {
            self.reference(reference, refs);
        }
        if self.first {
            self.alone(key, &extent, start, len);
            note(space, &extent, start, len);
            self.place(start, len, is_data, space);
        }
    }

    /// What one record says by itself, beyond the rules of its item.
    fn alone(&self, key: Key, extent: &Extent, start: u64, len: u64) {
        let newest = self.measures.generation;
        if extent.generation > newest {
            let text = format!(
                "extent {key} has generation {} above the superblock's {newest}",
                extent.generation
            );
            self.findings.add(Code::ExtentRecord, logical(start), text);
        }
        if extent.refs == 0 {
            self.findings.add(
                Code::ExtentRecord,
                logical(start),
                format!("extent {key} has no refs"),
            );
        }
        if extent.flags.contains(ExtentFlags::TREE_BLOCK) {
            if start % STRIPE_LEN + len > STRIPE_LEN {
                let end = start.saturating_add(len);
                let text = format!("bad metadata [{start}, {end}) crossing stripe boundary");
                self.findings.add(Code::ExtentRecord, logical(start), text);
            } else if !start.is_multiple_of(len.max(1)) {
                let text = format!("tree block [{start}, {len}] is not nodesize aligned");
                self.findings.add(Code::BlockAlignment, logical(start), text);
            }
        }
    }

    fn place(&self, start: u64, len: u64, is_data: bool, space: &mut Space) {
        let Some((at, chunk)) = self.chunks.find(Logical(start)) else {
            let text = format!("extent [{start} {len}] lies in no block group");
            self.findings.add(Code::ExtentRecord, logical(start), text);
            return;
        };
        *space.used.entry(at.0).or_insert(0) += len;
        if (start - at.0).checked_add(len).is_none_or(|end| end > chunk.length) {
            let text = format!("extent [{start} {len}] crosses the end of its block group {at}");
            self.findings.add(Code::ExtentRecord, logical(start), text);
        }
        let wanted = match is_data {
            true => GroupFlags::DATA,
            false => GroupFlags::METADATA | GroupFlags::SYSTEM,
        };
        if !chunk.flags.intersects(wanted) {
            let text = format!(
                "bad extent [{start}, {}), type mismatch with chunk: {} in {}",
                start.saturating_add(len),
                if is_data { "data" } else { "a tree block" },
                chunk.flags
            );
            self.findings.add(Code::ExtentType, logical(start), text);
        }
    }

    fn reference(&mut self, reference: &Reference, refs: &mut Refs) {
        let Some(current) = &mut self.current else { return };
        let (by, times) = match *reference {
            Reference::Owner { .. } => return,
            Reference::TreeBlock { root } => (By::Tree { root }, 1),
            Reference::SharedBlock { parent } => (By::Node { parent }, 1),
            Reference::Data(DataRef { root, inode, offset, count }) => {
                (By::File { root, inode, offset }, u64::from(count))
            }
            Reference::SharedData { parent, count } => (By::Leaf { parent }, u64::from(count)),
        };
        current.counted = current.counted.saturating_add(times);
        let what = Ref { extent: current.start, size: current.size, by };
        let (fits, start) = (by.is_data() == current.data, current.start);
        refs.record(what, times);
        if !fits {
            self.add(Code::ExtentRecord, start, || {
                format!("extent {start} has a reference of the wrong kind: {by:?}")
            });
        }
    }

    fn keyed(&mut self, key: Key, data: &[u8], refs: &mut Refs) {
        if self.current.as_ref().is_none_or(|current| current.start != key.objectid) {
            let at = key.objectid;
            self.finish();
            self.add(Code::ExtentMissing, at, || format!("reference {key} without an extent item"));
            return;
        }
        let number = key.offset;
        let reference = match key.kind {
            ItemType::TREE_BLOCK_REF => Some(Reference::TreeBlock { root: number }),
            ItemType::SHARED_BLOCK_REF => Some(Reference::SharedBlock { parent: Logical(number) }),
            ItemType::SHARED_DATA_REF => parse_shared_count(data)
                .ok()
                .map(|count| Reference::SharedData { parent: Logical(number), count }),
            _ => DataRef::parse(data).ok().map(Reference::Data),
        };
        if let Some(reference) = reference {
            self.reference(&reference, refs);
        }
    }

    /// The record's references have all been seen.
    pub(crate) fn finish(&mut self) {
        let Some(Current { start, len, refs, counted, .. }) = self.current.take() else { return };
        if refs != counted {
            self.add(Code::ExtentRecord, start, || {
                format!(
                    "extent item [{start} {len}] has refs {refs}, its references count {counted}"
                )
            });
        }
    }
}

fn note(space: &mut Space, extent: &Extent, start: u64, len: u64) {
    space.allocated.add(start, len);
    space.bytes = space.bytes.saturating_add(len);
    if extent.flags.contains(ExtentFlags::DATA) {
        space.data.add(start, len);
    } else {
        space.recorded.insert(start);
        if extent.flags.contains(ExtentFlags::FULL_BACKREF) {
            space.full_backref.insert(start);
        }
    }
}

/// Whether a tree's leaves refer to data: file trees, and the root tree for the old space cache.
pub(crate) fn holds_data(tree: u64) -> bool {
    objectid::is_file_tree(tree)
        || [objectid::ROOT_TREE, objectid::DATA_RELOC_TREE, objectid::TREE_RELOC].contains(&tree)
}
