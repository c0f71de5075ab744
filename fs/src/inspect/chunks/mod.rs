//! Chunks without the chunk tree: what blocks all over the devices say of them.
//!
//! Three kinds of word, the best first:
//!
//! * chunk items: in leaves of the chunk tree, current or old, and in the superblock's array;
//! * a block group (how long, what kind, which profile) together with the device extents that name its
//!   address (which runs of which devices). They lack one thing, the order of stripes, which matters
//!   to striped profiles only. There, tree blocks tell it: each says which address it has, so that
//!   its place on a device gives that device's turn away. Chunks of data have no such blocks.
//!
//! Old leaves also tell of chunks that are long gone. A word that is not of the newest leaf for its key
//! is overruled; and what only an old leaf has, must be confirmed by device extents.

mod scan;
#[cfg(test)]
mod tests;

use crate::chunk::ChunkMap;
use crate::error::{Error, Result};
use crate::format::chunk::{BlockGroup, Chunk, DevExtent, DevItem, Profile, STRIPE_LEN, Stripe};
use crate::format::key::{ItemType, Key, objectid};
use crate::format::superblock::Superblock;
use crate::fs::{features, load_chunks};
use crate::seeds;
use crate::supers::gather;
use crate::units::{Logical, Physical};
use crate::verify::{Rules, chunk_rules};
use crate::volume::Volume;
use scan::Seen;
use std::collections::{BTreeMap, BTreeSet};
use varve_block::{BlockDevice, chain};

/// Where a chunk is known from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChunkSource {
    /// An item in a leaf of the chunk tree.
    Item,
    /// The superblock's array of system chunks.
    Superblock,
    /// Its block group and device extents.
    Extents,
}

/// How a chunk compares with the chunk tree as it is now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Agreement {
    Same,
    Differs,
    /// The chunk tree can be read, and has no such chunk.
    Absent,
    /// The chunk tree cannot be read.
    Unknown,
}

/// A chunk that could be written into a new chunk tree.
#[derive(Clone, Debug)]
pub struct FoundChunk {
    pub start: Logical,
    pub chunk: Chunk,
    /// Of the block that says so.
    pub generation: u64,
    pub source: ChunkSource,
    /// Whether the stripes are in their order; where they hold the same bytes there is none.
    pub ordered: bool,
    /// Whether a block group confirms it.
    pub block_group: bool,
    /// Stripes that a device extent confirms.
    pub extents: usize,
    /// Tree blocks that lie where this chunk says, and those that say they are of it but lie elsewhere.
    pub blocks: u64,
    pub strays: u64,
    pub now: Agreement,
}

/// What a scan of the devices has found.
#[derive(Debug)]
pub struct ChunkScan {
    /// In the order of addresses.
    pub chunks: Vec<FoundChunk>,
    /// Chunks of the current tree of which nothing was found.
    pub not_found: Vec<Logical>,
    /// Why the current chunk tree cannot be read.
    pub unreadable: Option<String>,
    /// The newest word on each device.
    pub devices: Vec<DevItem>,
    /// Tree blocks, copies counted.
    pub blocks: u64,
    /// Block groups without a chunk, places that could not be read.
    pub problems: Vec<String>,
}

impl ChunkScan {
    /// Whether the current tree is readable, and what was found.
    pub fn agrees(&self) -> bool {
        let same = self.chunks.iter().all(|found| found.now == Agreement::Same);
        same && self.not_found.is_empty() && self.unreadable.is_none() && self.problems.is_empty()
    }

    /// Reads a volume by these chunks from now on; what was done, in sentences.
    pub(crate) fn put<D: BlockDevice>(&self, volume: &mut Volume<D>) -> Vec<String> {
        let mut taken = 0;
        let mut notes = Vec::new();
        for FoundChunk { start, chunk, ordered, .. } in &self.chunks {
            if !ordered {
                // Data without checksums would come out in a wrong order, and nobody would know.
                let why = "the order of its stripes is not known";
                notes.push(format!("chunk {start} is left out: {why}"));
            } else if volume.chunks().borrow_mut().insert(*start, chunk.clone()).is_ok() {
                taken += 1;
            }
        }
        notes.insert(0, format!("{taken} chunks were taken from a scan of the devices"));
        seeds::learn(volume, &self.devices);
        notes
    }
}

/// Scans all of the devices, of which the superblocks of copy `copy` must be whole. `progress` is told
/// how many bytes are done, and of how many.
///
/// # Errors
/// When a superblock is not whole, or the devices do not belong together.
pub async fn scan_chunks<D: BlockDevice>(
    devices: Vec<D>,
    copy: usize,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<ChunkScan> {
    let mut warnings = Vec::new();
    let (members, sb) = gather(devices, copy, &mut warnings).await?;
    features(&sb)?;
    let mut rules = Rules::of(&sb).ok_or_else(|| Error::unsupported("unknown checksum type"))?;
    rules.fsids.push(sb.fsid);
    let total = members.iter().map(|member| member.geometry.len.bytes()).sum();
    let mut seen = Seen::default();
    let mut done = 0;
    for member in &members {
        let mut reached = |byte| progress(done + byte, total);
        seen.device(&rules, member.devid, &member.device, &mut reached).await;
        done += member.geometry.len.bytes();
    }
    let mut volume = Volume::new(members, sb, rules, 1 << 20);
    let loaded = load_chunks(&mut volume, &mut warnings).await;
    let unreadable = loaded.err().map(|error| chain(&error));
    let now = volume.chunks().borrow().clone();
    let now = unreadable.is_none().then_some(&now);
    Ok(Evidence::new(&seen, &volume.sb, &volume.rules).judge(now, unreadable.clone()))
}

/// Everything that was seen, by chunk.
struct Evidence<'a> {
    seen: &'a Seen,
    sb: &'a Superblock,
    rules: &'a Rules,
    /// Length and content.
    groups: BTreeMap<Logical, (u64, BlockGroup, u64)>,
    /// `(device, byte, length, generation)`.
    extents: BTreeMap<Logical, Vec<(u64, u64, u64, u64)>>,
    devices: BTreeMap<u64, DevItem>,
}

impl<'a> Evidence<'a> {
    fn new(seen: &'a Seen, sb: &'a Superblock, rules: &'a Rules) -> Evidence<'a> {
        let mut groups = BTreeMap::new();
        for tree in [objectid::EXTENT_TREE, objectid::BLOCK_GROUP_TREE] {
            for (key, (generation, data)) in seen.newest(tree) {
                if let Ok(group) = BlockGroup::parse(data) {
                    groups.insert(Logical(key.objectid), (key.offset, group, generation));
                }
            }
        }
        let mut extents: BTreeMap<Logical, Vec<_>> = BTreeMap::new();
        for (key, (generation, data)) in seen.newest(objectid::DEV_TREE) {
            if let Ok(extent) = DevExtent::parse(data) {
                let of = extents.entry(extent.chunk_offset).or_default();
                of.push((key.objectid, key.offset, extent.length, generation));
            }
        }
        let mut devices = BTreeMap::from([(sb.dev_item.devid, sb.dev_item)]);
        for (key, (_, data)) in seen.newest(objectid::CHUNK_TREE) {
            if key.kind == ItemType::DEV_ITEM
                && let Ok(device) = DevItem::parse(data)
            {
                devices.insert(device.devid, device);
            }
        }
        Evidence { seen, sb, rules, groups, extents, devices }
    }

    fn judge(&self, now: Option<&ChunkMap>, unreadable: Option<String>) -> ChunkScan {
        let mut problems = self.seen.problems.clone();
        let (mut found, whole) = self.items();
        // Where the tree was found whole, block groups add nothing but memories.
        for (start, (length, group, generation)) in self.groups.iter().filter(|_| !whole) {
            if found.contains_key(start) {
                continue;
            }
            match self.rebuilt(*start, *length, group, *generation) {
                Ok(chunk) => drop(found.insert(*start, chunk)),
                Err(why) => problems.push(format!("block group {start}: {why}")),
            }
        }
        let mut chunks: Vec<FoundChunk> = Vec::new();
        for (_, mut chunk) in found {
            let end =
                chunks.last().map_or(0, |last| last.start.0.saturating_add(last.chunk.length));
            if chunk.start.0 < end {
                let last = chunks.pop().expect("it has an end");
                // One of the two is gone: the newer one is there.
                let older = if last.generation < chunk.generation { &last } else { &chunk };
                problems.push(format!("chunk {} overlaps a newer one: left out", older.start));
                if last.generation >= chunk.generation {
                    chunk = last;
                }
            }
            chunks.push(chunk);
        }
        for found in &mut chunks {
            self.confirm(found);
            found.now = match now {
                None => Agreement::Unknown,
                Some(now) => match now.find(found.start) {
                    Some((start, chunk)) if start == found.start => {
                        if same(chunk, found) {
                            Agreement::Same
                        } else {
                            Agreement::Differs
                        }
                    }
                    Some(_) => Agreement::Differs,
                    None => Agreement::Absent,
                },
            };
        }
        let known: BTreeSet<_> = chunks.iter().map(|found| found.start).collect();
        let current = now.into_iter().flat_map(ChunkMap::iter).map(|(start, _)| start);
        let not_found = current.filter(|start| !known.contains(start)).collect();
        let devices = self.devices.values().copied().collect();
        ChunkScan { chunks, not_found, unreadable, devices, blocks: self.seen.blocks, problems }
    }

    /// Chunk items that nothing overrules, and whether they are all there are.
    fn items(&self) -> (BTreeMap<Logical, FoundChunk>, bool) {
        let mut found = BTreeMap::new();
        let mut add = |key: Key, data: &[u8], generation, source, certain: bool| {
            let start = Logical(key.offset);
            let chunk = Chunk::parse(data).ok().filter(|_| key.kind == ItemType::CHUNK_ITEM);
            let chunk = chunk.filter(|chunk| chunk_rules(self.rules, start, chunk).is_ok());
            if let Some(chunk) = chunk.filter(|c| certain || self.has_extents(start, c)) {
                found.insert(start, candidate(start, chunk, generation, source));
            }
        };
        let (leaves, whole) = self.seen.chunk_leaves(self.sb.chunk_tree_root());
        for (start, chunk) in self.sb.sys_chunks().unwrap_or_default() {
            let key = Key::new(objectid::FIRST_CHUNK_TREE, ItemType::CHUNK_ITEM, start.0);
            let generation = self.sb.chunk_root_generation;
            add(key, &chunk.encode(), generation, ChunkSource::Superblock, true);
        }
        if !whole {
            for (key, (generation, data)) in self.seen.newest(objectid::CHUNK_TREE) {
                add(key, data, generation, ChunkSource::Item, false);
            }
        }
        for leaf in leaves {
            for (key, data) in &leaf.items {
                add(*key, data, leaf.generation, ChunkSource::Item, true);
            }
        }
        (found, whole)
    }

    /// Whether each stripe has its device extent.
    fn has_extents(&self, start: Logical, chunk: &Chunk) -> bool {
        self.confirmed(start, chunk) == chunk.stripes.len()
    }

    fn confirmed(&self, start: Logical, chunk: &Chunk) -> usize {
        let extents = self.extents.get(&start).map_or(&[][..], Vec::as_slice);
        let size = chunk.stripe_size();
        let has = |stripe: &&Stripe| {
            extents.iter().any(|(devid, byte, len, _)| {
                (*devid, *byte, Some(*len)) == (stripe.devid, stripe.offset, size)
            })
        };
        chunk.stripes.iter().filter(has).count()
    }

    /// A chunk from its block group and device extents, or what is missing.
    fn rebuilt(
        &self,
        start: Logical,
        length: u64,
        group: &BlockGroup,
        generation: u64,
    ) -> std::result::Result<FoundChunk, String> {
        let extents = self.extents.get(&start).ok_or("no device extent names it")?;
        let profile = group.flags.profile().ok_or("it has several profiles")?;
        let stripe = |(devid, offset, ..): &(u64, u64, u64, u64)| Stripe {
            devid: *devid,
            offset: *offset,
            dev_uuid: self.devices.get(devid).map(|device| device.uuid).unwrap_or_default(),
        };
        let mut chunk = Chunk {
            length,
            owner: objectid::EXTENT_TREE,
            stripe_len: STRIPE_LEN,
            flags: group.flags,
            io_align: 65536,
            io_width: 65536,
            sector_size: self.rules.sectorsize,
            sub_stripes: if profile == Profile::Raid10 { 2 } else { 1 },
            stripes: extents.iter().map(stripe).collect(),
        };
        chunk_rules(self.rules, start, &chunk).map_err(|(_, why)| why)?;
        if !self.has_extents(start, &chunk) {
            return Err("its device extents are of other lengths".into());
        }
        let ordered = self.order(start, &mut chunk, profile);
        let extent = extents.iter().map(|extent| extent.3).max().unwrap_or(0);
        let generation = generation.max(extent);
        let found = candidate(start, chunk, generation, ChunkSource::Extents);
        Ok(FoundChunk { ordered, ..found })
    }

    /// Puts stripes in order, by the tree blocks on them; whether that could be done.
    fn order(&self, start: Logical, chunk: &mut Chunk, profile: Profile) -> bool {
        let count = chunk.stripes.len() as u64;
        let data = u16::try_from(count).ok().and_then(|count| profile.data_stripes(count));
        let data = u64::from(data.unwrap_or(1));
        let copies = match profile {
            Profile::Raid0 | Profile::Raid5 | Profile::Raid6 => 1,
            Profile::Raid10 => 2,
            _ => return true,
        };
        let size = chunk.stripe_size().unwrap_or(0);
        let mut turns: BTreeMap<u64, BTreeSet<usize>> = BTreeMap::new();
        for (at, place) in &self.seen.places {
            let Some(off) = at.0.checked_sub(start.0).filter(|off| *off < chunk.length) else {
                continue;
            };
            let on = |stripe: &Stripe| {
                stripe.devid == place.devid
                    && (stripe.offset..stripe.offset.saturating_add(size)).contains(&place.byte)
            };
            let Some(which) = chunk.stripes.iter().position(on) else { continue };
            let (row, column) = (off / STRIPE_LEN / data, off / STRIPE_LEN % data);
            let parity = matches!(profile, Profile::Raid5 | Profile::Raid6);
            // Which of the stripes, mirrors being one, is at this column of this row.
            let turn = if parity { (column + row) % count } else { column };
            turns.entry(turn).or_default().insert(which);
        }
        let wanted = if copies == 2 { data } else { count };
        let each = turns.values().all(|which| which.len() == copies);
        if turns.len() as u64 != wanted || !each {
            return false;
        }
        let order: Vec<usize> = turns.into_values().flatten().collect();
        let unique: BTreeSet<_> = order.iter().collect();
        if unique.len() != chunk.stripes.len() {
            return false;
        }
        chunk.stripes = order.iter().map(|which| chunk.stripes[*which]).collect();
        true
    }

    /// Counts what speaks for a chunk, and against it.
    fn confirm(&self, found: &mut FoundChunk) {
        let group = self.groups.get(&found.start);
        found.block_group = group.is_some_and(|(length, group, _)| {
            *length == found.chunk.length && group.flags == found.chunk.flags
        });
        found.extents = self.confirmed(found.start, &found.chunk);
        let mut map = ChunkMap::default();
        if map.insert(found.start, found.chunk.clone()).is_err() {
            return;
        }
        let end = found.start.0.saturating_add(found.chunk.length);
        for (at, place) in &self.seen.places {
            if (found.start.0..end).contains(&at.0) {
                let here = map.map(*at, 1).is_ok_and(|piece| on_copy(&piece.copies, *place));
                *(if here { &mut found.blocks } else { &mut found.strays }) += 1;
            }
        }
    }
}

fn on_copy(copies: &[Physical], place: Physical) -> bool {
    copies.contains(&place)
}

fn candidate(start: Logical, chunk: Chunk, generation: u64, source: ChunkSource) -> FoundChunk {
    FoundChunk {
        start,
        chunk,
        generation,
        source,
        ordered: true,
        block_group: false,
        extents: 0,
        blocks: 0,
        strays: 0,
        now: Agreement::Unknown,
    }
}

/// Whether both map the same addresses to the same places: copies may be in any order.
fn same(chunk: &Chunk, found: &FoundChunk) -> bool {
    let places = |chunk: &Chunk| -> Vec<(u64, u64)> {
        chunk.stripes.iter().map(|stripe| (stripe.devid, stripe.offset)).collect()
    };
    let (mut one, mut other) = (places(chunk), places(&found.chunk));
    let alike = match chunk.flags.profile() {
        Some(Profile::Raid0 | Profile::Raid5 | Profile::Raid6) => 1,
        Some(Profile::Raid10) => 2,
        _ => one.len().max(1),
    };
    for places in [&mut one, &mut other] {
        places.chunks_mut(alike).for_each(<[_]>::sort_unstable);
    }
    (chunk.length, chunk.flags) == (found.chunk.length, found.chunk.flags) && one == other
}
