//! Seeds: a file system that stands on others, which are read-only for ever (format: btrfs 18).
//!
//! ```text
//! sprout   what changed since      superblock, DEV_ITEM and new blocks carry its own uuid
//!   |
//! seed     what it began with      flag SEEDING; its DEV_ITEMs are in the sprout's chunk tree too,
//!   |                              its blocks carry the uuid of the seed
//! seed     of the seed, and so on
//! ```
//!
//! Device numbers are unique over all of them, so a stripe needs no more than its number. A seed that was
//! changed after all is no longer what the sprout knows: its generation tells.

use crate::error::{Error, ErrorKind, Result};
use crate::format::chunk::DevItem;
use crate::volume::{Member, Volume};
use varve_block::BlockDevice;

/// Keeps of the members those that the chunk tree's `devices` name. What is missing or does not fit is
/// said in `warnings`.
///
/// # Errors
/// When a device that was given is no part of the file system.
pub(crate) fn settle<D: BlockDevice>(
    volume: &mut Volume<D>,
    devices: &[DevItem],
    warnings: &mut Vec<String>,
) -> Result<()> {
    learn(volume, devices);
    let own = volume.sb.tree_fsid();
    let mut members = std::mem::take(&mut volume.members);
    for member in members.iter().filter(|member| member.sb.tree_fsid() != own) {
        if !devices.iter().any(|device| device.fsid == member.sb.tree_fsid()) {
            let message = format!(
                "{} belongs to another file system: {}, a seed of which {} knows nothing",
                member.geometry.dev, member.sb.fsid, volume.sb.fsid
            );
            return Err(Error::new(ErrorKind::Invalid, message));
        }
    }
    members.retain(|member| {
        let left_out = why_left_out(member, devices, member.sb.tree_fsid() != own);
        warnings.extend(left_out.iter().cloned());
        left_out.is_none()
    });
    volume.members = members;
    for DevItem { devid, uuid, .. } in devices {
        match volume.members.iter().find(|member| member.devid == *devid) {
            None => warnings.push(volume.missing(*devid)),
            Some(member) if member.uuid != *uuid => {
                let message = format!(
                    "{} says it is device {devid}, but has uuid {} where {uuid} belongs",
                    member.geometry.dev, member.uuid
                );
                return Err(Error::new(ErrorKind::Invalid, message));
            }
            Some(_) => (),
        }
    }
    Ok(())
}

/// Which devices are of seeds, and which uuids blocks may carry.
pub(crate) fn learn<D>(volume: &mut Volume<D>, devices: &[DevItem]) {
    let own = volume.sb.tree_fsid();
    volume.seeds = devices
        .iter()
        .filter(|device| device.fsid != own)
        .map(|device| (device.devid, device.fsid))
        .collect();
    volume.rules.fsids = [own].into_iter().chain(volume.seeds.values().copied()).collect();
    volume.rules.fsids.dedup();
}

/// A device of a seed must be in the state that the sprout was made on.
fn why_left_out<D>(member: &Member<D>, devices: &[DevItem], seed: bool) -> Option<String> {
    if !seed {
        return None;
    }
    let (dev, fsid) = (&member.geometry.dev, member.sb.tree_fsid());
    let item = devices.iter().find(|d| (d.devid, d.fsid) == (member.devid, fsid));
    match item {
        None => Some(format!("{dev} is left out: the file system has let go of it")),
        Some(item) if item.generation != member.sb.generation => Some(format!(
            "{dev} is left out: its generation is {}, the seed's was {} when it was grown upon",
            member.sb.generation, item.generation
        )),
        Some(_) => None,
    }
}
