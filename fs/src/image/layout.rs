//! The device that a dump stands for: which logical address is at which byte of it.
//!
//! # One device out of several
//!
//! A dump of a file system on several devices is laid out on one, device behind device by their ids.
//! A stripe `(device, byte)` becomes `(first device, base of its device + byte)`, and so does each
//! device extent; as the bases rise with the ids, every tree keeps its order and every item its
//! size. Profiles stay: a RAID1 chunk then has both its copies on one device, which the format allows
//! and readers do not mind.
//!
//! ```text
//! devid 1             devid 2             devid 3
//! |0 ... total_bytes  |base 2 ...         |base 3 ...        | the device's new size
//! ```

use super::container::Container;
use super::raw::{repack, walk_blocks};
use crate::chunk::ChunkMap;
use crate::error::{Error, Result};
use crate::format::block::{self, HEADER_SIZE, Header, ITEM_HEAD_SIZE, POINTER_SIZE};
use crate::format::chunk::{Chunk, DevItem, Profile, RESERVED, STRIPE_LEN, Stripe};
use crate::format::key::{ItemType, Key, objectid};
use crate::format::root::Root;
use crate::format::superblock::{
    RootPointer, SUPER_OFFSETS, SUPER_SIZE, SuperFlags, Superblock, copies_on,
};
use crate::tree::build::{TreeBlocks, seal};
use crate::units::{Logical, to_usize};
use crate::verify::{self, Rules};
use std::collections::{BTreeMap, BTreeSet};
use varve_block::BlockDevice;

/// One stripe of one chunk, at its place.
#[derive(Clone, Copy, Debug)]
struct Segment {
    len: u64,
    chunk: Logical,
    stripe: usize,
}

pub(crate) struct Layout {
    pub(crate) total_bytes: u64,
    /// Sealed copies by their place.
    pub(crate) supers: Vec<(u64, Box<[u8]>)>,
    pub(crate) chunks: ChunkMap,
    /// Blocks that differ from the dump's, by logical address.
    pub(crate) patched: TreeBlocks,
    segments: BTreeMap<u64, Segment>,
}

/// What is at a byte, and for how long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Located {
    Metadata(Logical, u64),
    Gap(u64),
}

impl Layout {
    /// From the dump's superblock and chunk tree. A superblock that breaks the rules is shown as it
    /// is, on a device that holds nothing else: whoever opens it is told what is wrong.
    pub(crate) async fn of<D: BlockDevice>(dump: &Container<D>) -> Result<Layout> {
        let bytes = dump.superblock().await?;
        let at = SUPER_OFFSETS[0];
        let Ok(mut sb) = verify::superblock(&bytes, at) else {
            let mut shown = bytes.to_vec();
            shown.resize(SUPER_SIZE, 0);
            return Ok(Layout {
                total_bytes: at + 2 * SUPER_SIZE as u64,
                supers: vec![(at, shown.into())],
                chunks: ChunkMap::default(),
                patched: TreeBlocks::new(),
                segments: BTreeMap::new(),
            });
        };
        let mut found = Found::read(dump, &sb).await?;
        let mut patched = TreeBlocks::new();
        if found.devids(&sb).len() > 1 {
            let merge = Merge::plan(&found, &sb)?;
            merge.rewrite(dump, &mut sb, &mut found, &mut patched).await?;
        }
        sb.flags |= SuperFlags::METADUMP_V2;
        let total_bytes = sb.dev_item.total_bytes.max(at + 2 * SUPER_SIZE as u64);
        let supers = copies_on(total_bytes).map(|at| (at, sb.seal(at).to_vec().into())).collect();
        let segments = segments(&found.chunks);
        Ok(Layout { total_bytes, supers, chunks: found.chunks, patched, segments })
    }

    /// What is at `byte` of the device.
    pub(crate) fn locate(&self, byte: u64) -> Located {
        let gap = |until: u64| Located::Gap(until.saturating_sub(byte).max(1));
        let next = self.segments.range(byte.saturating_add(1)..).next();
        let next = next.map_or(u64::MAX, |(start, _)| *start);
        let Some((start, segment)) = self.segments.range(..=byte).next_back() else {
            return gap(next);
        };
        let off = byte - start;
        let Some(left) = segment.len.checked_sub(off).filter(|left| *left > 0) else {
            return gap(next);
        };
        let left = left.min(next - byte);
        let Some((at, chunk)) = self.chunks.find(segment.chunk) else { return gap(next) };
        match logical_in(chunk, segment.stripe, off) {
            Some((within, run)) => Located::Metadata(Logical(at.0 + within), run.min(left)),
            // A row of parity.
            None => Located::Gap((STRIPE_LEN - off % STRIPE_LEN).min(left)),
        }
    }
}

fn segments(chunks: &ChunkMap) -> BTreeMap<u64, Segment> {
    let mut segments = BTreeMap::new();
    for (start, chunk) in chunks.iter() {
        let Some(len) = chunk.stripe_size() else { continue };
        for (stripe, place) in chunk.stripes.iter().enumerate() {
            segments.insert(place.offset, Segment { len, chunk: start, stripe });
        }
    }
    segments
}

/// Which byte of a chunk is at byte `off` of its stripe `index`, and how many follow it there. `None`
/// where parity is. The inverse of the chunk map's arithmetic.
pub(crate) fn logical_in(chunk: &Chunk, index: usize, off: u64) -> Option<(u64, u64)> {
    let profile = chunk.flags.profile()?;
    let count = chunk.stripes.len() as u64;
    let data: u64 = profile.data_stripes(u16::try_from(count).ok()?)?.into();
    let (row, within) = (off / STRIPE_LEN, off % STRIPE_LEN);
    let index = index as u64;
    let column = match profile {
        Profile::Single | Profile::Dup | Profile::Raid1 | Profile::Raid1c3 | Profile::Raid1c4 => {
            return Some((off, chunk.length.checked_sub(off)?));
        }
        Profile::Raid0 => index,
        Profile::Raid10 => index / 2,
        Profile::Raid5 | Profile::Raid6 => (index + count - row % count) % count,
    };
    if column >= data {
        return None;
    }
    let at = row.checked_mul(data)?.checked_add(column)?.checked_mul(STRIPE_LEN)?;
    Some((at.checked_add(within)?, STRIPE_LEN - within))
}

/// What the chunk tree says.
struct Found {
    chunks: ChunkMap,
    devices: BTreeMap<u64, DevItem>,
}

impl Found {
    /// From what can be read of the chunk tree. What cannot is left for whoever opens the file
    /// system to stumble over, who will say it better.
    async fn read<D: BlockDevice>(dump: &Container<D>, sb: &Superblock) -> Result<Found> {
        let mut found = Found { chunks: ChunkMap::default(), devices: BTreeMap::new() };
        let Some(rules) = Rules::of(sb) else { return Ok(found) };
        for (start, chunk) in sb.sys_chunks().unwrap_or_default() {
            found.take(&rules, start, chunk);
        }
        walk_blocks(dump, sb.nodesize, sb.chunk_tree_root(), |_, block| {
            for (key, data) in block::items(block) {
                match key.kind {
                    ItemType::CHUNK_ITEM => {
                        if let Ok(chunk) = Chunk::parse(data) {
                            found.take(&rules, Logical(key.offset), chunk);
                        }
                    }
                    ItemType::DEV_ITEM => {
                        if let Ok(device) = DevItem::parse(data) {
                            found.devices.insert(device.devid, device);
                        }
                    }
                    _ => (),
                }
            }
        })
        .await?;
        Ok(found)
    }

    fn take(&mut self, rules: &Rules, start: Logical, chunk: Chunk) {
        let sane = verify::chunk_rules(rules, start, &chunk).is_ok()
            && chunk.stripe_size().is_some_and(|len| {
                chunk.stripes.iter().all(|stripe| stripe.offset.checked_add(len).is_some())
            });
        if !sane {
            return;
        }
        if let Err(error) = self.chunks.insert(start, chunk) {
            tracing::warn!(%error, "a chunk of the dump is left out");
        }
    }

    fn devids(&self, sb: &Superblock) -> BTreeSet<u64> {
        let stripes = self.chunks.iter().flat_map(|(_, chunk)| &chunk.stripes);
        let mut ids: BTreeSet<u64> = stripes.map(|stripe| stripe.devid).collect();
        ids.insert(sb.dev_item.devid);
        ids.extend(self.devices.keys());
        ids
    }
}

/// Several devices, laid end to end.
struct Merge {
    bases: BTreeMap<u64, u64>,
    /// What stands for all of them.
    device: DevItem,
}

impl Merge {
    fn plan(found: &Found, sb: &Superblock) -> Result<Merge> {
        let too_large =
            || Error::corrupt("metadata dump: its devices together are above 2^63 bytes");
        let mut ends: BTreeMap<u64, u64> =
            found.devids(sb).into_iter().map(|devid| (devid, RESERVED)).collect();
        for device in found.devices.values() {
            ends.entry(device.devid).and_modify(|end| *end = device.total_bytes.max(*end));
        }
        for (_, chunk) in found.chunks.iter() {
            let len = chunk.stripe_size().unwrap_or(0);
            for stripe in &chunk.stripes {
                let reach = stripe.offset.saturating_add(len);
                ends.entry(stripe.devid).and_modify(|end| *end = reach.max(*end));
            }
        }
        let mut bases = BTreeMap::new();
        let mut end: u64 = 0;
        for (devid, len) in &ends {
            let mut base = end.next_multiple_of(RESERVED);
            // The first device has no chunks where superblocks are. The others may, once they lie
            // behind it: each of them then begins behind the copy.
            if end > 0 {
                for at in SUPER_OFFSETS {
                    let hit = base <= at && at < base.checked_add(*len).ok_or_else(too_large)?;
                    base = if hit { at + RESERVED } else { base };
                }
            }
            bases.insert(*devid, base);
            end = base.checked_add(*len).filter(|end| *end < 1 << 63).ok_or_else(too_large)?;
        }
        let first = *ends.keys().next().unwrap_or(&sb.dev_item.devid);
        let mut device = found.devices.get(&first).copied().unwrap_or(sb.dev_item);
        device.devid = first;
        device.fsid = sb.tree_fsid();
        device.total_bytes = end - end % u64::from(sb.sectorsize);
        device.bytes_used =
            found.devices.values().map(|d| d.bytes_used).fold(0, u64::saturating_add);
        Ok(Merge { bases, device })
    }

    fn chunk(&self, chunk: &Chunk) -> Chunk {
        let place = |stripe: &Stripe| Stripe {
            devid: self.device.devid,
            offset: self.base(stripe.devid).saturating_add(stripe.offset),
            dev_uuid: self.device.uuid,
        };
        Chunk { stripes: chunk.stripes.iter().map(place).collect(), ..chunk.clone() }
    }

    fn base(&self, devid: u64) -> u64 {
        self.bases.get(&devid).copied().unwrap_or(0)
    }

    async fn rewrite<D: BlockDevice>(
        &self,
        dump: &Container<D>,
        sb: &mut Superblock,
        found: &mut Found,
        patched: &mut TreeBlocks,
    ) -> Result<()> {
        let Some(csum) = sb.csum() else { return Ok(()) };
        let mut chunks = ChunkMap::default();
        for (start, chunk) in found.chunks.iter() {
            chunks.insert(start, self.chunk(chunk))?;
        }
        found.chunks = chunks;
        walk_blocks(dump, sb.nodesize, sb.chunk_tree_root(), |at, block| {
            if let Some(mut new) = repack(block, |key, data| self.chunk_item(key, data)) {
                seal(&mut new, csum);
                patched.insert(at, new);
            }
        })
        .await?;
        if let Some(root) = dev_root(dump, sb).await? {
            walk_blocks(dump, sb.nodesize, root, |at, block| {
                let mut new = block.to_vec();
                self.move_keys(&mut new);
                seal(&mut new, csum);
                patched.insert(at, new);
            })
            .await?;
        }
        let system: Vec<_> = sb.sys_chunks().unwrap_or_default();
        let system: Vec<_> = system.iter().map(|(at, chunk)| (*at, self.chunk(chunk))).collect();
        sb.set_sys_chunks(&system);
        sb.dev_item = self.device;
        sb.num_devices = 1;
        sb.total_bytes = self.device.total_bytes;
        Ok(())
    }

    /// An item of the chunk tree as it is with one device; `None` for a device that is no more.
    fn chunk_item(&self, key: Key, data: &[u8]) -> Option<(Key, Vec<u8>)> {
        match key.kind {
            ItemType::CHUNK_ITEM => match Chunk::parse(data) {
                Ok(chunk) => Some((key, self.chunk(&chunk).encode())),
                Err(_) => Some((key, data.to_vec())),
            },
            ItemType::DEV_ITEM if key.offset == self.device.devid => {
                Some((key, self.device.encode().to_vec()))
            }
            ItemType::DEV_ITEM => None,
            _ => Some((key, data.to_vec())),
        }
    }

    /// Device extents and the pointers to them, in place: only keys change.
    fn move_keys(&self, block: &mut [u8]) {
        let Ok(header) = Header::parse(block) else { return };
        let unit = if header.level == 0 { ITEM_HEAD_SIZE } else { POINTER_SIZE };
        let body = block.get_mut(HEADER_SIZE..).unwrap_or(&mut []);
        for slot in body.chunks_exact_mut(unit).take(header.nritems as usize) {
            let key = Key::read(slot).filter(|key| key.kind == ItemType::DEV_EXTENT);
            if let Some(key) = key {
                let offset = self.base(key.objectid).saturating_add(key.offset);
                Key::new(self.device.devid, key.kind, offset).write(slot);
            }
        }
    }
}

/// The device tree's root, by a walk over the root tree.
async fn dev_root<D: BlockDevice>(
    dump: &Container<D>,
    sb: &Superblock,
) -> Result<Option<RootPointer>> {
    let mut root = None;
    walk_blocks(dump, sb.nodesize, sb.tree_root(), |_, block| {
        for (key, data) in block::items(block) {
            if (key.objectid, key.kind) == (objectid::DEV_TREE, ItemType::ROOT_ITEM)
                && let Ok(item) = Root::parse(data)
            {
                root = Some(RootPointer {
                    block: item.bytenr,
                    generation: item.generation,
                    level: item.level,
                });
            }
        }
    })
    .await?;
    Ok(root)
}

impl Layout {
    /// The patched block that holds `at`, if one does.
    pub(crate) fn patch_at(&self, at: Logical) -> Option<(&[u8], usize)> {
        let (start, bytes) = self.patched.range(..=at).next_back()?;
        let off = to_usize(at.0 - start.0);
        (off < bytes.len()).then_some((bytes.as_slice(), off))
    }
}
