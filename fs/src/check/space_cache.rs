//! The old free space cache, a file for each block group (format: btrfs 9.1). One that says itself that it
//! is stale harms nobody, since the kernel builds it anew; one that claims to be valid and is wrong
//! makes the kernel overwrite data.

use super::extents::logical;
use super::finding::Code;
use super::roots::Roots;
use super::run::Run;
use super::runs::Runs;
use crate::chunk::super_ranges;
use crate::csum::CsumType;
use crate::error::Result;
use crate::format::chunk::{Chunk, Profile};
use crate::format::file_extent::{Body, FileExtent};
use crate::format::free_space::CacheHead;
use crate::format::inode::Inode;
use crate::format::key::{ItemType, Key, objectid};
use crate::format::superblock::CompatRo;
use crate::tree::cursor::{Cursor, Tree};
use crate::units::{Logical, to_usize};
use crate::volume::Volume;
use varve_block::BlockDevice;

const PAGE: usize = 4096;
const ENTRY: usize = 17;
/// No group's cache is larger.
const FILE_MAX: u64 = 64 << 20;

pub(super) async fn check<D: BlockDevice>(run: &Run<'_, '_, D>, roots: &Roots) {
    let sb = run.sb();
    if sb.compat_ro.contains(CompatRo::FREE_SPACE_TREE) || sb.cache_generation != sb.generation {
        return;
    }
    for (group, head) in &roots.caches {
        let Some((length, _)) = run.space.groups.get(group) else {
            let text = format!("space cache of {group}, which is no block group");
            run.findings.warn(Code::SpaceCache, logical(*group), text);
            continue;
        };
        match load(run.reader.volume, head).await {
            Ok(Loaded::Free(free)) => compare(run, *group, *length, &free),
            Ok(Loaded::Stale(why)) => {
                let text =
                    format!("{why}: cache of block group {group} is rebuilt at the next mount");
                run.findings.warn(Code::SpaceCache, logical(*group), text);
            }
            Err(error) => {
                let text =
                    format!("failed to load free space cache for block group {group}: {error}");
                run.findings.warn(Code::SpaceCache, logical(*group), text);
            }
        }
    }
}

enum Loaded {
    Free(Runs),
    Stale(String),
}

async fn load<D: BlockDevice>(volume: &Volume<D>, head: &CacheHead) -> Result<Loaded> {
    let tree = Tree::new(objectid::ROOT_TREE, volume.sb.tree_root());
    let ino = head.location.objectid;
    let first = Key::new(ino, ItemType::INODE_ITEM, 0);
    let last = Key::new(ino, ItemType::EXTENT_DATA, u64::MAX);
    let mut cursor = Cursor::seek(volume, &tree, first).await?;
    let mut inode = None;
    let mut places = Vec::new();
    while let Some(item) = cursor.next_to(last).await? {
        match item.key().kind {
            ItemType::INODE_ITEM => inode = Inode::parse(item.data()).ok(),
            ItemType::EXTENT_DATA => {
                if let Ok(FileExtent { body: Body::Regular(place), .. }) =
                    FileExtent::parse(item.data())
                    && !place.is_hole()
                {
                    places.push((item.key().offset, place));
                }
            }
            _ => {}
        }
    }
    let Some(inode) = inode else { return Ok(Loaded::Stale(format!("no inode {ino}"))) };
    if inode.generation != head.generation || head.generation == 0 {
        return Ok(Loaded::Stale(format!(
            "free space inode generation ({}) did not match free space cache generation ({})",
            inode.generation, head.generation
        )));
    }
    if inode.size == 0 || inode.size > FILE_MAX || inode.size % PAGE as u64 != 0 {
        return Ok(Loaded::Stale(format!("free space inode {ino} has size {}", inode.size)));
    }
    let mut file = vec![0; to_usize(inode.size)];
    for (offset, place) in places {
        let start = to_usize(offset);
        let end = start.saturating_add(to_usize(place.num_bytes)).min(file.len());
        let (Some(part), Some(at)) =
            (file.get_mut(start..end), place.disk_bytenr.checked_add(place.offset))
        else {
            continue;
        };
        fill(volume, at, part).await?;
    }
    Ok(understand(&file, head, volume.sb.sectorsize))
}

/// The cache has no checksums but its own: any copy that can be read will do.
async fn fill<D: BlockDevice>(volume: &Volume<D>, at: Logical, part: &mut [u8]) -> Result<()> {
    let mut last = Ok(());
    for mirror in 1..=volume.mirrors(at)? {
        last = volume.read_mirror(at, mirror, part).await;
        if last.is_ok() {
            break;
        }
    }
    last
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    let word = bytes.get(at..at + 8).and_then(|word| word.try_into().ok());
    word.map_or(0, u64::from_le_bytes)
}

fn understand(file: &[u8], head: &CacheHead, sectorsize: u32) -> Loaded {
    let stale = |why: String| Loaded::Stale(why);
    let pages = file.len() / PAGE;
    let first = pages * 4;
    if first + 8 > PAGE {
        return stale(format!("free space cache of {pages} pages"));
    }
    for (n, page) in file.chunks_exact(PAGE).enumerate() {
        let skip = if n == 0 { first } else { 0 };
        let digest = CsumType::Crc32c.digest(page.get(skip..).unwrap_or(&[]));
        if file.get(n * 4..n * 4 + 4) != Some(digest.bytes()) {
            return stale(format!("csum mismatch on free space cache page {n}"));
        }
    }
    let generation = le64(file, first);
    if generation != head.generation {
        return stale(format!(
            "space cache generation ({generation}) does not match inode ({})",
            head.generation
        ));
    }
    let (mut free, sector) = (Runs::new(sectorsize), u64::from(sectorsize));
    let mut bitmaps = Vec::new();
    let mut at = first + 8;
    let (mut extents, mut left) = (0, head.num_entries);
    while left > 0 {
        if at % PAGE + ENTRY > PAGE {
            at = at.next_multiple_of(PAGE);
        }
        let Some(entry) = file.get(at..at + ENTRY) else {
            return stale("free space cache ends before its last entry".into());
        };
        let (start, length) = (le64(entry, 0), le64(entry, 8));
        if length == 0 || start.checked_add(length).is_none() {
            return stale(format!("free space cache entry [{start} {length}]"));
        }
        match entry.get(16) {
            Some(1) => {
                free.add(start, length);
                extents += 1;
            }
            Some(2) => bitmaps.push(start),
            _ => return stale("free space cache entry of an unknown type".into()),
        }
        at += ENTRY;
        left -= 1;
    }
    if bitmaps.len() as u64 != head.num_bitmaps {
        return stale(format!(
            "free space cache has {extents} entries and {} bitmaps, its item says {} bitmaps",
            bitmaps.len(),
            head.num_bitmaps
        ));
    }
    let mut at = at.next_multiple_of(PAGE);
    for start in bitmaps {
        let Some(page) = file.get(at..at + PAGE) else {
            return stale("free space cache ends before its last bitmap".into());
        };
        for (byte, bits) in (0u64..).zip(page) {
            for bit in (0..8).filter(|bit| bits & (1 << bit) != 0) {
                free.add(start.saturating_add((byte * 8 + bit) * sector), sector);
            }
        }
        at += PAGE;
    }
    Loaded::Free(free)
}

/// What the cache calls free against what the extent tree leaves.
fn compare<D: BlockDevice>(run: &Run<'_, '_, D>, group: u64, length: u64, free: &Runs) {
    let end = group.saturating_add(length);
    let tell = |at: u64, text: String| run.findings.add(Code::SpaceCache, logical(at), text);
    for entry in free.iter() {
        if entry.start < group || entry.end > end {
            let text = format!(
                "free space cache of block group {group} has {}-{}, outside of it",
                entry.start, entry.end
            );
            tell(entry.start, text);
        }
        for taken in run.space.allocated.within(entry.clone()) {
            let text = format!(
                "free space cache of block group {group} calls allocated space {}-{} free",
                taken.start, taken.end
            );
            tell(taken.start, text);
        }
    }
    // Where superblocks lie in a striped group is not worked out here.
    let Some((_, chunk)) = run.chunks.find(Logical(group)).filter(|(_, chunk)| plain(chunk)) else {
        return;
    };
    let mut known = Runs::new(run.sb().sectorsize);
    for range in super_ranges(Logical(group), chunk) {
        known.add(range.start, range.end - range.start);
    }
    for gap in run.space.allocated.gaps_in(group..end) {
        for missing in free.gaps_in(gap) {
            for part in known.gaps_in(missing) {
                let text = format!(
                    "block group {group} has wrong amount of free space: its cache lacks {}-{}",
                    part.start, part.end
                );
                tell(part.start, text);
            }
        }
    }
}

fn plain(chunk: &Chunk) -> bool {
    use Profile::{Dup, Raid1, Raid1c3, Raid1c4, Single};
    chunk.flags.profile().is_some_and(|p| [Single, Dup, Raid1, Raid1c3, Raid1c4].contains(&p))
}
