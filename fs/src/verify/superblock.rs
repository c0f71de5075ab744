//! The superblock's rules (format: btrfs appendix B). All of them are tested and all that are broken
//! reported: a user who repairs by hand wants the list, not its first line.

use super::{Rules, space::chunk_rules};
use crate::csum::{CsumType, Found};
use crate::format::Uuid;
use crate::format::superblock::{CompatRo, Incompat, SuperFlags, Superblock};

/// Why a superblock was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("superblock at byte {at}: {}", problems.join("; "))]
pub struct SuperFault {
    pub at: u64,
    pub problems: Vec<String>,
}

/// Decodes and judges the copy read from byte `at`. What is odd and survivable is logged.
pub fn superblock(bytes: &[u8], at: u64) -> Result<Superblock, SuperFault> {
    let refuse = |problem: String| SuperFault { at, problems: vec![problem] };
    let sb = Superblock::parse(bytes).map_err(|_| refuse("no valid FS found".into()))?;
    let Some(csum) = CsumType::from_disk(sb.csum_type) else {
        return Err(refuse(format!("unsupported checksum algorithm: {}", sb.csum_type)));
    };
    let (field, rest) = bytes.split_at(32);
    let computed = csum.digest(rest);
    if !computed.is_in(field) {
        let found = Found(field, csum);
        return Err(refuse(format!("superblock checksum mismatch: {found} != {computed}")));
    }
    let mut problems = Vec::new();
    flags_and_levels(&sb, &mut problems);
    sizes(&sb, &mut problems);
    identity(&sb, at, &mut problems);
    features(&sb, &mut problems);
    if problems.is_empty() {
        system_chunks(&sb, &mut problems);
    }
    if !problems.is_empty() {
        return Err(SuperFault { at, problems });
    }
    for (name, generation) in
        [("chunk_root", sb.chunk_root_generation), ("cache", sb.cache_generation)]
    {
        if generation != u64::MAX && generation > sb.generation {
            let newest = sb.generation;
            tracing::warn!(generation, newest, "{name} generation is above the superblock's");
        }
    }
    Ok(sb)
}

/// Rules 2 to 5.
fn flags_and_levels(sb: &Superblock, problems: &mut Vec<String>) {
    let unknown = sb.flags.difference(SuperFlags::ACCEPTED);
    if !unknown.is_empty() {
        let bits = unknown.bits();
        problems.push(format!("unrecognized or unsupported super flag 0x{bits:x}"));
    }
    for (name, level) in sb.levels() {
        if !Superblock::level_ok(level) {
            problems.push(format!("{name} level too big: {level} >= 8"));
        }
    }
}

/// Rules 6 to 12, 17 and 18, and what the tools add.
fn sizes(sb: &Superblock, problems: &mut Vec<String>) {
    let Superblock { sectorsize, nodesize, leafsize, stripesize, .. } = *sb;
    let legal = |size: u32, least| size.is_power_of_two() && (least..=65536).contains(&size);
    let sector_ok = legal(sectorsize, 4096);
    if !sector_ok {
        problems.push(format!("invalid sectorsize {sectorsize}"));
    }
    if !legal(nodesize, sectorsize.max(4096)) {
        problems.push(format!("invalid nodesize {nodesize}"));
    }
    if leafsize != nodesize {
        problems.push(format!("invalid leafsize {leafsize}, should be {nodesize}"));
    }
    let roots = [("tree_root", sb.root), ("chunk_root", sb.chunk_root), ("log_root", sb.log_root)];
    for (name, at) in roots {
        if sector_ok && !at.0.is_multiple_of(sectorsize.into()) {
            problems.push(format!("{name} block unaligned: {at}"));
        }
    }
    if sb.bytes_used < 6 * u64::from(nodesize) {
        problems.push(format!("bytes_used is too small {}", sb.bytes_used));
    }
    if !stripesize.is_power_of_two() {
        problems.push(format!("invalid stripesize {stripesize}"));
    }
    if sb.total_bytes == 0 {
        problems.push("invalid total_bytes 0".into());
    }
}

/// Rules 15, 19 to 21 and 23.
fn identity(sb: &Superblock, at: u64, problems: &mut Vec<String>) {
    let (have, want): (Uuid, Uuid) = (sb.dev_item.fsid, sb.tree_fsid());
    if have != want {
        problems.push(format!("dev_item UUID does not match metadata fsid: {want} != {have}"));
    }
    if sb.num_devices == 0 {
        problems.push("number of devices is 0".into());
    }
    if sb.bytenr != at {
        problems.push(format!("super offset mismatch {} != {at}", sb.bytenr));
    }
    let array = sb.sys_chunk_array_size;
    if array > 2048 {
        problems.push(format!("system chunk array too big {array} > 2048"));
    }
    if array < 97 {
        problems.push(format!("system chunk array too small {array} < 97"));
    }
    if sb.root.0 == 0 {
        problems.push("invalid superblock tree root bytenr".into());
    }
}

/// Rule 16, and mixed groups. Features this engine lacks are not the superblock's fault; `open` judges
/// them.
fn features(sb: &Superblock, problems: &mut Vec<String>) {
    let tree = CompatRo::FREE_SPACE_TREE | CompatRo::FREE_SPACE_TREE_VALID;
    if sb.compat_ro.contains(CompatRo::BLOCK_GROUP_TREE)
        && !(sb.compat_ro.contains(tree) && sb.incompat.contains(Incompat::NO_HOLES))
    {
        let text = "block-group-tree feature requires free-space-tree and no-holes";
        problems.push(text.into());
    }
    if sb.incompat.contains(Incompat::MIXED_GROUPS) && sb.nodesize != sb.sectorsize {
        let (node, sector) = (sb.nodesize, sb.sectorsize);
        problems.push(format!(
            "mixed block groups need equal sector and node sizes: {sector} != {node}"
        ));
    }
}

/// The array of system chunks, by the rules of chunk items.
fn system_chunks(sb: &Superblock, problems: &mut Vec<String>) {
    let Some(rules) = Rules::of(sb) else { return };
    match sb.sys_chunks() {
        Err(wrong) => problems.push(wrong.to_string()),
        Ok(chunks) => {
            for (start, chunk) in chunks {
                if let Err((_, text)) = chunk_rules(&rules, start, &chunk) {
                    problems.push(format!(
                        "corrupt superblock syschunk array: chunk_start={start}, {text}"
                    ));
                }
            }
        }
    }
}
