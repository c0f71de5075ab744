//! Reading whole devices for tree blocks: those whose file system and checksum are right.

use crate::format::block::{self, Header, MAX_LEVEL, Pointer};
use crate::format::key::{ItemType, Key, objectid};
use crate::format::superblock::RootPointer;
use crate::inspect::bytes::read_bytes;
use crate::units::{Logical, Physical, to_usize};
use crate::verify::{Rules, once_written};
use std::collections::BTreeMap;
use varve_block::{BlockDevice, Extent, Sector, chain};

/// What is read at a time, and the step where a read fails.
const READ: u64 = 1 << 20;
/// Tree blocks whose place is remembered: 1 TiB of metadata in blocks of 16 KiB.
const PLACES_MAX: usize = 1 << 26;

/// A leaf of one of the trees that know of chunks, or a node above such leaves.
pub(super) struct Leaf {
    pub generation: u64,
    pub first: Key,
    /// The last key that is certainly in no other leaf of this generation.
    pub last: Key,
    /// Of the kinds that are asked for.
    pub items: Vec<(Key, Vec<u8>)>,
}

/// What a scan has seen.
#[derive(Default)]
pub(super) struct Seen {
    /// Leaves by tree, and by address and generation: copies are one.
    pub leaves: BTreeMap<u64, BTreeMap<(Logical, u64), Leaf>>,
    /// Generation of the newest parent of the block at an address and of a generation, and the key before
    /// which it says that the block ends.
    pub ends: BTreeMap<(Logical, u64), (u64, Key)>,
    /// Inner nodes of the chunk tree, by address and generation.
    pub nodes: BTreeMap<(Logical, u64), Vec<Pointer>>,
    /// Tree blocks and where they were found.
    pub places: Vec<(Logical, Physical)>,
    /// Blocks, copies counted.
    pub blocks: u64,
    pub problems: Vec<String>,
}

/// What is kept of a tree's leaves; `None`: nothing.
fn wanted(owner: u64) -> Option<&'static [ItemType]> {
    match owner {
        objectid::CHUNK_TREE => Some(&[ItemType::CHUNK_ITEM, ItemType::DEV_ITEM]),
        objectid::DEV_TREE => Some(&[ItemType::DEV_EXTENT]),
        objectid::EXTENT_TREE | objectid::BLOCK_GROUP_TREE => Some(&[ItemType::BLOCK_GROUP_ITEM]),
        _ => None,
    }
}

impl Seen {
    /// Reads all of a device. Blocks may begin at any sector: old file systems align no better.
    /// `progress` is told the byte that was reached.
    pub(super) async fn device<D: BlockDevice>(
        &mut self,
        rules: &Rules,
        devid: u64,
        device: &D,
        progress: &mut dyn FnMut(u64),
    ) {
        let len = device.geometry().len.bytes();
        let nodesize = u64::from(rules.nodesize);
        let mut at = 0;
        while at + nodesize <= len {
            if let Some(next) = hole_end(device, at).await {
                progress(next.min(len));
                at = next;
                continue;
            }
            let want = READ.min(len - at);
            let mut bytes = vec![0; to_usize(want)];
            if let Err(error) = read_bytes(device, at, &mut bytes).await {
                self.problems.push(format!("device {devid} byte {at}: {}", chain(&error)));
                at += want;
                progress(at);
                continue;
            }
            progress(at + want);
            let next = self.blocks_in(rules, devid, at, &bytes);
            // What is left of the buffer is shorter than a block, and read again with what follows.
            at += if at + want == len { want } else { next };
        }
    }

    /// Takes the blocks of a buffer; where the next one begins that it does not hold whole.
    fn blocks_in(&mut self, rules: &Rules, devid: u64, at: u64, bytes: &[u8]) -> u64 {
        let (sector, node) = (rules.sectorsize as usize, rules.nodesize as usize);
        let mut offset = 0;
        while let Some(block) = bytes.get(offset..offset + node) {
            let place = Physical { devid, byte: at + offset as u64 };
            offset += if self.block(rules, place, block) { node } else { sector };
        }
        offset as u64
    }

    fn block(&mut self, rules: &Rules, place: Physical, bytes: &[u8]) -> bool {
        let Some(header) = once_written(rules, bytes) else { return false };
        self.blocks += 1;
        if self.places.len() < PLACES_MAX {
            self.places.push((header.bytenr, place));
        }
        if let Some(kinds) = wanted(header.owner) {
            match header.level {
                0 => self.leaf(&header, kinds, bytes),
                _ => self.node(&header, bytes),
            }
        }
        true
    }

    fn leaf(&mut self, header: &Header, kinds: &[ItemType], bytes: &[u8]) {
        let slots = header.nritems as usize;
        let keys = |slot| block::item_head(bytes, slot).map(|item| item.key);
        let Some((first, last)) = keys(0).zip(slots.checked_sub(1).and_then(keys)) else { return };
        let items = block::items(bytes)
            .filter(|(key, _)| kinds.contains(&key.kind))
            .map(|(key, data)| (key, data.to_vec()))
            .collect();
        let leaf = Leaf { generation: header.generation, first, last, items };
        let known = self.leaves.entry(header.owner).or_default();
        known.insert((header.bytenr, header.generation), leaf);
    }

    fn node(&mut self, header: &Header, bytes: &[u8]) {
        let pointers: Vec<_> =
            (0..header.nritems as usize).map_while(|slot| block::pointer(bytes, slot)).collect();
        for pair in pointers.windows(2) {
            let said = (header.generation, pair[1].key);
            let known = self.ends.entry((pair[0].block, pair[0].generation)).or_insert(said);
            // Of two parents in one commit, one was there before the other's further block was.
            if said.0 > known.0 || said.0 == known.0 && said.1 < known.1 {
                *known = said;
            }
        }
        if header.owner == objectid::CHUNK_TREE {
            self.nodes.insert((header.bytenr, header.generation), pointers);
        }
    }

    /// The newest word on every key of a tree: a newer leaf overrules older ones for all keys from its
    /// first to where it ends, also where it says nothing.
    pub(super) fn newest(&self, owner: u64) -> BTreeMap<Key, (u64, &[u8])> {
        let mut leaves: Vec<_> = self.leaves.get(&owner).into_iter().flatten().collect();
        leaves.sort_by_key(|((at, generation), _)| (std::cmp::Reverse(*generation), *at));
        let mut covered: Vec<(Key, Key)> = Vec::new();
        let mut found = BTreeMap::new();
        for (at, leaf) in leaves {
            for (key, data) in &leaf.items {
                if !covered.iter().any(|(first, end)| (first..end).contains(&key)) {
                    found.entry(*key).or_insert((leaf.generation, data.as_slice()));
                }
            }
            let behind = leaf.last.next();
            covered
                .push((leaf.first, self.ends.get(at).map_or(behind, |(_, end)| behind.max(*end))));
        }
        found
    }
}

impl Seen {
    /// The leaves of the chunk tree whose root is at `root`, as far as they were seen, and whether that is
    /// all of them.
    pub(super) fn chunk_leaves(&self, root: RootPointer) -> (Vec<&Leaf>, bool) {
        let mut level = vec![(root.block, root.generation)];
        let mut whole = root.level < MAX_LEVEL;
        for _ in 0..root.level.min(MAX_LEVEL) {
            let nodes: Vec<_> = level.iter().map(|at| self.nodes.get(at)).collect();
            whole &= nodes.iter().all(Option::is_some);
            let pointers = nodes.into_iter().flatten().flatten();
            level = pointers.map(|pointer| (pointer.block, pointer.generation)).collect();
        }
        let leaves = self.leaves.get(&objectid::CHUNK_TREE);
        let found: Vec<_> = level.iter().filter_map(|at| leaves?.get(at)).collect();
        whole &= found.len() == level.len();
        (found, whole)
    }
}

/// Where data begins again, if `at` is in a hole. A device that does not know has none.
async fn hole_end<D: BlockDevice>(device: &D, at: u64) -> Option<u64> {
    let geometry = device.geometry();
    let start = Sector::containing(at);
    let start = Sector(start.0 - start.0 % geometry.block.0.max(1));
    let rest = Extent::between(start, Sector(geometry.len.0));
    let run = device.extents(rest, 1).await.ok()?.into_iter().next()?;
    (run.hole && run.range.end().byte() > at).then(|| run.range.end().byte())
}
