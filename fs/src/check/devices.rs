//! Chunks, device extents, devices and block groups: four views of the same space.

use super::extents::{Space, logical};
use super::finding::{Code, Findings};
use super::run::Run;
use crate::chunk::ChunkMap;
use crate::error::Place;
use crate::format::chunk::{DevExtent, DevItem, RESERVED, Stripe};
use crate::format::key::{ItemType, objectid};
use crate::format::superblock::Superblock;
use crate::tree::node::TreeBlock;
use crate::units::Logical;
use std::collections::{BTreeMap, BTreeSet};
use varve_block::BlockDevice;

/// Devices beyond this are suspicious to the kernel; a count that is merely wrong it corrects by itself
/// (format: btrfs, appendix B 19).
const DEVICES_MAX: u64 = 1 << 31;

#[derive(Default)]
pub(crate) struct DeviceTrees {
    devices: BTreeMap<u64, DevItem>,
    /// By device and physical start.
    extents: BTreeMap<(u64, u64), DevExtent>,
    has_dev_tree: bool,
}

impl DeviceTrees {
    pub(crate) fn chunk_leaf(&mut self, block: &TreeBlock) {
        for slot in 0..block.len() {
            if let Some((key, data)) = block.item(slot)
                && key.kind == ItemType::DEV_ITEM
                && let Ok(device) = DevItem::parse(data)
            {
                self.devices.insert(device.devid, device);
            }
        }
    }

    pub(crate) fn dev_leaf(&mut self, block: &TreeBlock, findings: &Findings) {
        self.has_dev_tree = true;
        for slot in 0..block.len() {
            let Some((key, data)) = block.item(slot) else { continue };
            match key.kind {
                ItemType::DEV_EXTENT => {
                    if let Ok(extent) = DevExtent::parse(data) {
                        self.extents.insert((key.objectid, key.offset), extent);
                    }
                }
                ItemType::PERSISTENT_ITEM | ItemType::DEV_REPLACE | ItemType::STRING_ITEM => {}
                _ => {
                    let place = Place { root: Some(objectid::DEV_TREE), ..Place::default() };
                    let text = format!("unknown key {key} in the device tree");
                    findings.add(Code::UnknownKey, place, text);
                }
            }
        }
    }
}

pub(crate) fn judge<D: BlockDevice>(run: &Run<'_, '_, D>, trees: &DeviceTrees) {
    let findings = run.findings;
    dev_extents(&run.chunks, trees, findings);
    groups(&run.chunks, &run.space, findings);
    devices(run.sb(), trees, findings);
    identities(run.sb(), &run.chunks, trees, findings);
    for member in run.reader.volume.members() {
        let Some(item) = trees.devices.get(&member.devid) else { continue };
        let (real, total) = (member.geometry.len.bytes(), item.total_bytes);
        if real < total {
            let text = format!(
                "device {}: {total} bytes by its item, but only {real} on {}",
                item.devid, member.geometry.dev
            );
            findings.add(Code::DevItem, Place::default(), text);
        }
        // The kernel looks for a seed of that file system then, and mounts nothing without it.
        let (said, own) = (item.fsid, member.sb.tree_fsid());
        if said != own {
            let (devid, dev) = (item.devid, &member.geometry.dev);
            let text =
                format!("device {devid}: of file system {said} by its item, but {dev} is of {own}");
            findings.add(Code::DevItem, Place::default(), text);
        }
    }
    let used = run.space.bytes;
    if run.sb().bytes_used != used {
        let text =
            format!("super bytes used {} mismatches actual used {used}", run.sb().bytes_used);
        findings.add(Code::SuperTotals, Place::default(), text);
    }
}

/// Each stripe names its device by number and by uuid; and the superblock's few chunks are those of the
/// chunk tree. Where they are not, the kernel looks for a device that nobody has.
fn identities(sb: &Superblock, chunks: &ChunkMap, trees: &DeviceTrees, findings: &Findings) {
    let unknown = |stripe: &Stripe| {
        let device = trees.devices.get(&stripe.devid)?;
        (device.uuid != stripe.dev_uuid).then_some(device.uuid)
    };
    for (start, chunk) in chunks.iter() {
        for stripe in &chunk.stripes {
            if let Some(uuid) = unknown(stripe) {
                let text = format!(
                    "chunk {start}: a stripe is on device {} with uuid {}, but the device has {uuid}",
                    stripe.devid, stripe.dev_uuid
                );
                findings.add(Code::DevItem, logical(start.0), text);
            }
        }
    }
    for (start, chunk) in sb.sys_chunks().unwrap_or_default() {
        let here = chunks.find(start).filter(|(at, _)| *at == start);
        if here.is_none_or(|(_, other)| *other != chunk) {
            let text = format!("chunk {start} in the superblock is not the one in the chunk tree");
            findings.add(Code::BlockGroupChunk, logical(start.0), text);
        }
    }
}

/// Each device extent is a stripe of a chunk, and each stripe has one.
fn dev_extents(chunks: &ChunkMap, trees: &DeviceTrees, findings: &Findings) {
    let mut claimed: BTreeSet<(u64, u64)> = BTreeSet::new();
    for (start, chunk) in chunks.iter() {
        for stripe in &chunk.stripes {
            let at = (stripe.devid, stripe.offset);
            let here = trees.extents.get(&at);
            let size = chunk.stripe_size();
            let fits = here
                .is_some_and(|extent| extent.chunk_offset == start && Some(extent.length) == size);
            claimed.insert(at);
            if !fits && trees.has_dev_tree {
                let text = format!(
                    "chunk[{start} {}] stripe (devid {}, offset {}) is not found in dev extents",
                    start.0.saturating_add(chunk.length),
                    stripe.devid,
                    stripe.offset
                );
                findings.add(Code::DevExtent, logical(start.0), text);
            }
        }
    }
    let mut last: Option<(u64, u64)> = None;
    for (&(devid, offset), extent) in &trees.extents {
        let tell = |text: String| findings.add(Code::DevExtent, Place::default(), text);
        let end = offset.saturating_add(extent.length);
        if !claimed.contains(&(devid, offset)) {
            tell(format!(
                "device extent[{devid}, {offset}, {}] did not find the related chunk",
                extent.length
            ));
        }
        if let Some((before, before_end)) = last
            && before == devid
            && before_end > offset
        {
            tell(format!(
                "dev extent overlap, devid {devid} offset {offset}, the one before ends at {before_end}"
            ));
        }
        last = Some((devid, end));
        match trees.devices.get(&devid) {
            None => tell(format!("device extent[{devid}, {offset}] is of a device without item")),
            Some(device) if end > device.total_bytes => tell(format!(
                "dev extent devid {devid} physical offset {offset} len {} is beyond device boundary {}",
                extent.length, device.total_bytes
            )),
            Some(_) => {}
        }
        if offset < RESERVED {
            let text =
                format!("dev extent devid {devid} offset {offset} is in the reserved first MiB");
            findings.warn(Code::DevExtent, Place::default(), text);
        }
    }
}

/// Chunks and block groups are one to one, and a group's `used` is what its extents add up to.
fn groups(chunks: &ChunkMap, space: &Space, findings: &Findings) {
    for (start, chunk) in chunks.iter() {
        match space.groups.get(&start.0) {
            None => {
                let text = format!(
                    "chunk[{start} {}] does not have a corresponding block group",
                    start.0.saturating_add(chunk.length)
                );
                findings.add(Code::BlockGroupChunk, logical(start.0), text);
            }
            Some((length, group)) if *length != chunk.length || group.flags != chunk.flags => {
                let text = format!(
                    "chunk start={start} len={} flags={:#x} doesn't match block group len={length} flags={:#x}",
                    chunk.length,
                    chunk.flags.bits(),
                    group.flags.bits()
                );
                findings.add(Code::BlockGroupChunk, logical(start.0), text);
            }
            Some(_) => {}
        }
    }
    for (&at, (length, group)) in &space.groups {
        let here = chunks.find(Logical(at)).filter(|(start, _)| start.0 == at);
        if here.is_none() {
            let text = format!("block group[{at} {length}] has no chunk");
            findings.add(Code::BlockGroupChunk, logical(at), text);
            continue;
        }
        let used = space.used.get(&at).copied().unwrap_or(0);
        if group.used != used {
            let text = format!(
                "block group [{at} {length}] used {} but extent items used {used}",
                group.used
            );
            findings.add(Code::BlockGroupUsed, logical(at), text);
        }
    }
}

/// Each device's item against its extents, and the superblock against all of them.
fn devices(sb: &Superblock, trees: &DeviceTrees, findings: &Findings) {
    let mut used: BTreeMap<u64, u64> = BTreeMap::new();
    for (&(devid, _), extent) in &trees.extents {
        let sum = used.entry(devid).or_insert(0);
        *sum = sum.saturating_add(extent.length);
    }
    let tell = |code: Code, text: String| findings.add(code, Place::default(), text);
    let mut total = 0u64;
    for device in trees.devices.values() {
        let DevItem { devid, total_bytes, bytes_used, .. } = *device;
        total = total.saturating_add(total_bytes);
        let found = used.get(&devid).copied().unwrap_or(0);
        if trees.has_dev_tree && bytes_used != found {
            tell(
                Code::DevItem,
                format!(
                    "device {devid}'s bytes_used was {bytes_used} but its dev extents add up to {found}"
                ),
            );
        }
        if !total_bytes.is_multiple_of(sb.sectorsize.into()) {
            tell(
                Code::DevItem,
                format!(
                    "device {devid}: unaligned total_bytes {total_bytes}, should be aligned to {}",
                    sb.sectorsize
                ),
            );
        }
    }
    if let Some(own) = trees.devices.get(&sb.dev_item.devid)
        && (own.total_bytes != sb.dev_item.total_bytes || own.uuid != sb.dev_item.uuid)
    {
        tell(
            Code::DevItem,
            format!(
                "device {}: its item has {} bytes, its superblock {}",
                own.devid, own.total_bytes, sb.dev_item.total_bytes
            ),
        );
    }
    if sb.total_bytes < total || !sb.total_bytes.is_multiple_of(sb.sectorsize.into()) {
        tell(
            Code::SuperTotals,
            format!("super total bytes {} mismatch with the devices' {total}", sb.total_bytes),
        );
    }
    if sb.num_devices != trees.devices.len() as u64 {
        let text = format!(
            "super block num_devices {} mismatch with DEV_ITEM count {}",
            sb.num_devices,
            trees.devices.len()
        );
        match sb.num_devices > DEVICES_MAX {
            true => findings.add(Code::SuperTotals, Place::default(), text),
            false => findings.warn(Code::SuperTotals, Place::default(), text),
        }
    }
}
