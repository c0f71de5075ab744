//! Superblocks: which copies a device has, and which devices belong together (format: btrfs 1).

use crate::error::{Error, ErrorKind, Result};
use crate::format::chunk::DevItem;
use crate::format::superblock::{SUPER_OFFSETS, SuperFlags, Superblock};
use crate::verify::{self, SuperFault};
use crate::volume::{Member, read_super};
use varve_block::BlockDevice;

/// What one of a device's three places for a superblock holds.
#[derive(Debug)]
pub enum SuperCopy {
    /// The device ends before it.
    Absent,
    Whole(Box<Superblock>),
    Bad(SuperFault),
    /// The device could not read it.
    Unreadable(varve_block::Error),
}

/// Every superblock copy of a device, in order. Of the whole ones the newest is the best.
pub async fn super_copies<D: BlockDevice>(device: &D) -> [SuperCopy; 3] {
    let [a, b, c] = SUPER_OFFSETS;
    [super_copy(device, a).await, super_copy(device, b).await, super_copy(device, c).await]
}

async fn super_copy<D: BlockDevice>(device: &D, at: u64) -> SuperCopy {
    match read_super(device, at).await {
        Ok(None) => SuperCopy::Absent,
        Err(error) => SuperCopy::Unreadable(error),
        Ok(Some(bytes)) => match verify::superblock(&bytes, at) {
            Ok(sb) => SuperCopy::Whole(Box::new(sb)),
            Err(fault) => SuperCopy::Bad(fault),
        },
    }
}

/// Reads every device's superblock, and keeps those that belong to the newest state of one file
/// system. Devices of its seeds come last; which ones they are, the chunk tree says
/// ([`crate::seeds`]).
pub(crate) async fn gather<D: BlockDevice>(
    devices: Vec<D>,
    copy: usize,
    warnings: &mut Vec<String>,
) -> Result<(Vec<Member<D>>, Superblock)> {
    let mut found = Vec::new();
    for device in devices {
        let sb = superblock_of(&device, copy).await?;
        found.push((device, sb));
    }
    // A sprout goes on counting where its seed stopped, so that of a chain of seeds the newest is the
    // one that stands on the others.
    let newest = found.iter().map(|(_, sb)| sb).max_by_key(|sb| (!is_seed(sb), sb.generation));
    let Some(newest) = newest.cloned() else {
        return Err(Error::new(ErrorKind::Invalid, "no device was given"));
    };
    found.sort_by_key(|(_, sb)| !one_set(sb, &newest));
    let mut members: Vec<Member<D>> = Vec::new();
    for (device, sb) in found {
        let geometry = device.geometry();
        let seed = !one_set(&sb, &newest);
        if seed && !is_seed(&sb) {
            let message = format!(
                "{} belongs to another file system: {}, not {}",
                geometry.dev, sb.fsid, newest.fsid
            );
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        if !seed && sb.generation < newest.generation {
            warnings.push(format!(
                "{} is left out: its generation is {}, the file system's {}",
                geometry.dev, sb.generation, newest.generation
            ));
            continue;
        }
        let DevItem { devid, uuid, total_bytes, .. } = sb.dev_item;
        if geometry.len.bytes() < total_bytes {
            warnings.push(format!(
                "{} has {} bytes of {total_bytes}: the end is missing",
                geometry.dev,
                geometry.len.bytes()
            ));
        }
        if members.iter().any(|other| other.devid == devid && one_set(&other.sb, &sb)) {
            let message = format!("{}: device {devid} was given twice", geometry.dev);
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        members.push(Member { devid, uuid, sb, device, geometry });
    }
    Ok((members, newest))
}

/// Whether a file system is read-only for ever, so that others can grow on it.
fn is_seed(sb: &Superblock) -> bool {
    sb.flags.contains(SuperFlags::SEEDING)
}

fn is_changing(sb: &Superblock) -> bool {
    sb.flags.contains(SuperFlags::CHANGING_FSID_V2)
}

/// Whether two superblocks are of one file system: also if the uuid that users see was being changed,
/// and has been on one device only. What the trees carry stays the same then (format: btrfs 1.1).
fn one_set(a: &Superblock, b: &Superblock) -> bool {
    let changing = is_changing(a) || is_changing(b);
    a.fsid == b.fsid || (changing && a.tree_fsid() == b.tree_fsid())
}

/// The copy that was asked for. Where it is bad, the error says which other one would do: choosing
/// it is up to people, because it may be older.
async fn superblock_of<D: BlockDevice>(device: &D, copy: usize) -> Result<Superblock> {
    let Some(&at) = SUPER_OFFSETS.get(copy) else {
        return Err(Error::new(ErrorKind::Invalid, "superblock copies are 0, 1 and 2"));
    };
    let dev = device.geometry().dev;
    let failure = match super_copy(device, at).await {
        SuperCopy::Whole(sb) => return Ok(*sb),
        SuperCopy::Absent => {
            Error::corrupt(format!("{dev}: too small to hold superblock copy {copy}"))
        }
        SuperCopy::Unreadable(error) => Error::from(error),
        SuperCopy::Bad(fault) => Error::corrupt(format!("{dev}: {fault}")).because(fault),
    };
    let others = super_copies(device).await;
    let whole = others.iter().enumerate().filter_map(|(n, other)| match other {
        SuperCopy::Whole(sb) if n != copy => Some((n, sb.generation)),
        _ => None,
    });
    let Some((n, generation)) = whole.max_by_key(|(_, generation)| *generation) else {
        return Err(failure);
    };
    let message = format!("{failure}; copy {n} is whole (generation {generation}, --super {n})");
    Err(Error { message, ..failure })
}
