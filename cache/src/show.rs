//! What `varve cache show` tells: superblocks, and what the set holds.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;
use varve_block::{BlockDevice, BufPool, DevId};

use crate::effective::{Effective, ExtentMap, Mapped, Seen};
use crate::error::LoadError;
use crate::format::{
    BackingSuper, Bucket, CacheSuper, JournalEntry, Layout, Superblock, UuidTable,
};
use crate::load::Loader;

/// Everything that is known of one or two devices.
#[derive(Debug, Default)]
pub struct Show {
    pub cache: Option<(DevId, CacheSuper)>,
    pub backing: Option<(DevId, BackingSuper)>,
    /// None: there is no cache device, or it has no content yet.
    pub content: Option<Result<Content, LoadError>>,
}

/// What a started set holds, its journal replayed in memory.
#[derive(Clone, Debug)]
pub struct Content {
    pub journal: JournalShow,
    pub tree: TreeShow,
    pub buckets: BucketShow,
    /// Volumes with a slot, and inodes that have extents without one; by inode.
    pub volumes: Vec<VolumeShow>,
}

/// The log.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct JournalShow {
    pub buckets: u16,
    /// Newest entry, and the oldest one that a start would replay.
    pub seq: u64,
    pub last_seq: u64,
    pub entries: u64,
    pub keys: u64,
}

/// The index.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct TreeShow {
    /// Levels, 1 = the root is a leaf.
    pub depth: u8,
    pub root: Option<Bucket>,
    pub nodes: u64,
    pub keys: u64,
}

/// Buckets by what they hold.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct BucketShow {
    pub total: u64,
    pub metadata: u64,
    pub dirty: u64,
    pub clean: u64,
    /// Nothing live.
    pub unused: u64,
}

/// One volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeShow {
    pub inode: u32,
    /// None: keys of a volume that has no slot (orphan data).
    pub uuid: Option<Uuid>,
    pub label: String,
    pub flash_only: bool,
    /// Size of a flash-only volume in sectors.
    pub sectors: u64,
    pub cached_extents: u64,
    pub cached_sectors: u64,
    pub dirty_extents: u64,
    pub dirty_sectors: u64,
    /// Dirty data whose bucket was reused: gone.
    pub lost_sectors: u64,
}

/// A label without its padding.
pub fn label_text(label: &[u8; 32]) -> String {
    let end = label.iter().position(|byte| *byte == 0).unwrap_or(label.len());
    String::from_utf8_lossy(&label[..end]).into_owned()
}

/// Looks at the devices; a superblock that is refused is an error, damage behind it is part of the
/// answer.
pub async fn show<S: BlockDevice, B: BlockDevice>(
    ssd: Option<&S>,
    hdd: Option<&B>,
) -> Result<Show, LoadError> {
    let pool = BufPool::new(4 << 20);
    let mut show = Show::default();
    if let Some(hdd) = hdd {
        let loader = Loader::new(hdd, &pool);
        show.place(loader.dev(), loader.superblock().await?);
    }
    let Some(ssd) = ssd else { return Ok(show) };
    let loader = Loader::new(ssd, &pool);
    show.place(loader.dev(), loader.superblock().await?);
    let Some((_, sb)) = show.cache.clone() else { return Ok(show) };
    if sb.sync() {
        let loaded = Effective::load(&loader, sb).await;
        show.content = Some(loaded.map(|(held, seen)| content(&held, seen)));
    }
    Ok(show)
}

impl Show {
    fn place(&mut self, dev: DevId, superblock: Superblock) {
        match superblock {
            Superblock::Cache(cache) => self.cache = Some((dev, cache)),
            Superblock::Backing(backing) => self.backing = Some((dev, backing)),
        }
    }
}

fn content(held: &Effective, seen: Seen) -> Content {
    let sb = &held.superblock;
    Content {
        journal: JournalShow {
            buckets: sb.journal_buckets,
            seq: held.entry.seq,
            last_seq: held.entry.last_seq,
            entries: seen.journal_entries,
            keys: seen.journal_keys,
        },
        tree: tree(&sb.layout, &held.entry, seen),
        buckets: buckets(&sb.layout, &held.metadata, &held.extents),
        volumes: volumes(&held.uuids, &held.extents, &held.lost),
    }
}

pub(crate) fn tree(layout: &Layout, entry: &JournalEntry, seen: Seen) -> TreeShow {
    TreeShow {
        depth: entry.btree_level + 1,
        root: entry.btree_root.ptr().map(|ptr| layout.bucket_of(ptr.offset())),
        nodes: seen.nodes,
        keys: seen.tree_keys,
    }
}

/// Counts buckets by what lies in them.
pub(crate) fn buckets(
    layout: &Layout,
    metadata: &BTreeSet<Bucket>,
    extents: &ExtentMap,
) -> BucketShow {
    let mut holds: BTreeMap<Bucket, bool> = BTreeMap::new();
    for (_, mapped) in extents.iter() {
        *holds.entry(layout.bucket_of(mapped.ptr.offset())).or_default() |= mapped.dirty;
    }
    holds.retain(|bucket, _| !metadata.contains(bucket));
    let dirty = holds.values().filter(|dirty| **dirty).count() as u64;
    let clean = holds.len() as u64 - dirty;
    let metadata = metadata.len() as u64;
    let total = layout.nbuckets.saturating_sub(layout.first_bucket);
    let unused = total.saturating_sub(metadata + dirty + clean);
    BucketShow { total, metadata, dirty, clean, unused }
}

/// Sums extents by volume.
pub(crate) fn volumes(
    uuids: &UuidTable,
    extents: &ExtentMap,
    lost: &[(u32, Mapped)],
) -> Vec<VolumeShow> {
    let mut volumes: BTreeMap<u32, VolumeShow> = BTreeMap::new();
    let slots = uuids.numbered().filter(|(_, slot)| slot.in_use()).map(|(inode, _)| inode);
    let used = extents.iter().map(|(inode, _)| inode);
    for inode in slots.chain(used).chain(lost.iter().map(|(inode, _)| *inode)) {
        volumes.entry(inode).or_insert_with(|| volume(uuids, inode));
    }
    for (inode, mapped) in extents.iter() {
        if let Some(volume) = volumes.get_mut(&inode) {
            volume.cached_extents += 1;
            volume.cached_sectors += mapped.sectors();
            if mapped.dirty {
                volume.dirty_extents += 1;
                volume.dirty_sectors += mapped.sectors();
            }
        }
    }
    for (inode, mapped) in lost {
        if let Some(volume) = volumes.get_mut(inode) {
            volume.lost_sectors += mapped.sectors();
        }
    }
    volumes.into_values().collect()
}

fn volume(uuids: &UuidTable, inode: u32) -> VolumeShow {
    let slot = uuids.get(inode).filter(|slot| slot.in_use());
    VolumeShow {
        inode,
        uuid: slot.map(|slot| slot.uuid),
        label: slot.map(|slot| label_text(&slot.label)).unwrap_or_default(),
        flash_only: slot.is_some_and(|slot| slot.flash_only()),
        sectors: slot.map_or(0, |slot| slot.sectors),
        cached_extents: 0,
        cached_sectors: 0,
        dirty_extents: 0,
        dirty_sectors: 0,
        lost_sectors: 0,
    }
}
