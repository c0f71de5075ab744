//! Opening for a check: less strict than for reading, since what is wrong is to be told. Refused is
//! only what leaves nothing to walk: no superblock, no chunks, no root tree, no root of a tree that
//! everything hangs on.

use super::finding::{Code, Findings};
use super::reader::Reader;
use crate::error::{Error, Place, Result};
use crate::format::key::objectid;
use crate::format::superblock::{CompatRo, SUPER_OFFSETS, Superblock};
use crate::fs::{LOG_IGNORED, features, load_chunks, note_state};
use crate::supers::gather;
use crate::tree::cursor::Tree;
use crate::units::Logical;
use crate::verify::{self, Rules};
use crate::volume::{Volume, read_super};
use varve_block::BlockDevice;

/// The checker keeps blocks itself.
const VOLUME_CACHE: usize = 1 << 20;

pub(super) async fn open<D: BlockDevice>(
    devices: Vec<D>,
    findings: &Findings,
) -> Result<Volume<D>> {
    let mut warnings = Vec::new();
    let (members, sb) = gather(devices, 0, &mut warnings).await?;
    features(&sb)?;
    let rules = Rules::of(&sb).ok_or_else(|| Error::unsupported("unknown checksum type"))?;
    note_state(&sb, &mut warnings);
    if sb.log_root.0 != 0 {
        warnings.push(LOG_IGNORED.into());
    }
    let mut volume = Volume::new(members, sb, rules, VOLUME_CACHE);
    load_chunks(&mut volume, &mut warnings).await?;
    agreed(&volume).await?;
    for warning in warnings {
        findings.add(Code::DeviceState, Place::default(), warning);
    }
    Ok(volume)
}

/// Each copy of a block of the chunk tree that has its checksum must hold chunks that can be. Where one
/// does not, somebody wrote it so, and nobody can tell which copy leads to the file system: refused,
/// as the reference tool does.
async fn agreed<D: BlockDevice>(volume: &Volume<D>) -> Result<()> {
    let tree = Tree::new(objectid::CHUNK_TREE, volume.sb.chunk_tree_root());
    let mut todo = vec![tree.expect_root()];
    while let Some(expect) = todo.pop() {
        let block = volume.block(&expect).await?;
        todo.extend((0..block.len()).filter_map(|slot| block.expect_child(slot, tree.id)));
        for mirror in 1..=volume.mirrors(expect.logical)? {
            let mut bytes = vec![0; volume.rules.nodesize as usize];
            if volume.read_mirror(expect.logical, mirror, &mut bytes).await.is_err() {
                continue;
            }
            if let Err(corrupt) = verify::read_block(&volume.rules, &bytes, &expect, mirror)
                && CHUNK_RULES.contains(&corrupt.rule)
            {
                let text = format!("mirror {mirror} of the chunk tree, whose checksum is right");
                return Err(Error::corrupt(text).because(corrupt));
            }
        }
    }
    Ok(())
}

/// The rules of chunk items (format: btrfs A.8).
const CHUNK_RULES: std::ops::RangeInclusive<u8> = 68..=84;

/// The trees without whose roots the reference tool opens nothing.
pub(super) fn essential(sb: &Superblock) -> Vec<u64> {
    let mut ids =
        vec![objectid::EXTENT_TREE, objectid::DEV_TREE, objectid::CSUM_TREE, objectid::FS_TREE];
    if sb.compat_ro.contains(CompatRo::BLOCK_GROUP_TREE) {
        ids.push(objectid::BLOCK_GROUP_TREE);
    }
    ids
}

/// Whether a tree's root block can be walked. What is wrong with it is told in any case.
pub(super) async fn has_root<D: BlockDevice>(reader: &Reader<'_, D>, tree: &Tree) -> bool {
    reader.block(&tree.expect_root()).await.is_some()
}

/// The other copies of each member's superblock. A crash may leave them one commit behind, and a
/// device that grew may lack one: that is told, and harms nobody.
pub(super) async fn super_copies<D: BlockDevice>(volume: &Volume<D>, findings: &Findings) {
    for member in volume.members() {
        let devid = member.devid;
        let first = &member.sb;
        let total = first.dev_item.total_bytes;
        for at in SUPER_OFFSETS.into_iter().skip(1).filter(|at| at + 4096 < total) {
            let Ok(Some(bytes)) = read_super(&member.device, at).await else { continue };
            let place = Place { logical: Some(Logical(at)), ..Place::default() };
            match verify::superblock(&bytes, at) {
                Err(fault) => {
                    findings.add(Code::SuperCopy, place, format!("device {devid}: {fault}"));
                }
                Ok(copy) if copy.fsid != first.fsid => {
                    let text = format!(
                        "device {devid}: superblock at byte {at} is of another file system, {}",
                        copy.fsid
                    );
                    findings.add(Code::SuperCopy, place, text);
                }
                Ok(copy) if copy.generation != first.generation => {
                    let text = format!(
                        "device {devid}: superblock at byte {at} has generation {}, the first {}",
                        copy.generation, first.generation
                    );
                    findings.add(Code::SuperCopy, place, text);
                }
                Ok(_) => {}
            }
        }
    }
}
