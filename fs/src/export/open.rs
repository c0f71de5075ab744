//! Opening a file system that does not open: another superblock copy, an older root, half a chunk tree.
//!
//! ```text
//! superblock 0, 1, 2 -> its root tree, or the one named, or its four backups, newest first
//!                    -> the first whose root tree leads to a file tree that can be read
//! ```

use super::scan::{BadBlocks, Scan};
use crate::error::{Error, Result};
use crate::format::block::Header;
use crate::format::chunk::{Chunk, DevItem};
use crate::format::key::{ItemType, Key, objectid};
use crate::format::superblock::{Backup, RootPointer, SUPER_OFFSETS, Superblock};
use crate::fs::{Fs, LOG_IGNORED, OpenOptions};
use crate::replay::replay;
use crate::seeds;
use crate::supers::gather;
use crate::tree::cursor::Tree;
use crate::units::Logical;
use crate::verify::Rules;
use crate::volume::Volume;
use varve_block::{BlockDevice, chain};

/// Memory for tree blocks: a walk needs each of them once, and its path and the checksums' more often.
const CACHE_BYTES: usize = 4 << 20;

/// What to believe.
#[derive(Clone, Debug, Default)]
pub struct RescueOptions {
    /// Only this superblock copy.
    pub super_copy: Option<usize>,
    /// The root tree's root, at this logical address.
    pub root_block: Option<Logical>,
    /// This and the rest as in [`OpenOptions`].
    pub subvolume: Option<u64>,
    pub ignore_data_csums: bool,
    pub ignore_log: bool,
}

/// What could be opened, and in which way.
pub struct Rescued<D: BlockDevice> {
    pub fs: Fs<D>,
    /// What had to be done for it, in sentences; nothing when it opened as it should.
    pub notes: Vec<String>,
}

/// Opens as a mount would; and if that fails, in every other way there is.
///
/// # Errors
/// The one of the ordinary way, when no way leads to a file tree.
pub async fn open_rescue<D: BlockDevice + Clone>(
    devices: Vec<D>,
    options: &RescueOptions,
) -> Result<Rescued<D>> {
    let mut first_error = None;
    let only = options.super_copy;
    for copy in (0..SUPER_OFFSETS.len()).filter(|copy| only.is_none_or(|only| only == *copy)) {
        let sb = match gather(devices.clone(), copy, &mut Vec::new()).await {
            Ok((_, sb)) => sb,
            Err(error) => {
                first_error.get_or_insert(error);
                continue;
            }
        };
        for (sb, how) in roots_of(&sb, options) {
            match attempt(devices.clone(), copy, sb, options).await {
                Ok(mut rescued) => {
                    if copy > 0 {
                        rescued.notes.push(format!("superblock copy {copy} was used"));
                    }
                    rescued.notes.extend(how);
                    if let Some(error) = first_error.filter(|_| !rescued.notes.is_empty()) {
                        rescued.notes.push(format!("because: {}", chain(&error)));
                    }
                    return Ok(rescued);
                }
                Err(error) => {
                    tracing::info!(copy, error = %chain(&error), "this way does not open it");
                    first_error.get_or_insert(error);
                }
            }
        }
    }
    Err(first_error.unwrap_or_else(|| Error::corrupt("superblock copies are 0, 1 and 2")))
}

/// The superblock as it is, and as it was at the last commits.
fn roots_of(sb: &Superblock, options: &RescueOptions) -> Vec<(Superblock, Option<String>)> {
    if options.root_block.is_some() {
        return vec![(sb.clone(), None)];
    }
    let mut backups: Vec<&Backup> =
        sb.backups.iter().filter(|backup| backup.tree_root.block.0 != 0).collect();
    backups.sort_by_key(|backup| std::cmp::Reverse(backup.tree_root.generation));
    let older = backups.into_iter().filter(|b| b.tree_root.block != sb.root).map(|backup| {
        let generation = backup.tree_root.generation;
        let how = format!(
            "the root of generation {generation} was used, the last commit was {}",
            sb.generation
        );
        (with_roots(sb, backup.tree_root, Some(backup.chunk_root)), Some(how))
    });
    let current_with_old_chunks = sb.backups.iter().filter(|backup| {
        let block = backup.chunk_root.block;
        block.0 != 0 && block != sb.chunk_root
    });
    let with_old_chunks = current_with_old_chunks.map(|backup| {
        let how = format!("the chunk root of generation {} was used", backup.chunk_root.generation);
        (with_roots(sb, sb.tree_root(), Some(backup.chunk_root)), Some(how))
    });
    std::iter::once((sb.clone(), None)).chain(with_old_chunks).chain(older).collect()
}

fn with_roots(sb: &Superblock, root: RootPointer, chunks: Option<RootPointer>) -> Superblock {
    let mut sb = sb.clone();
    sb.root = root.block;
    sb.root_level = root.level;
    sb.generation = root.generation;
    if let Some(chunks) = chunks.filter(|chunks| chunks.block.0 != 0) {
        sb.chunk_root = chunks.block;
        sb.chunk_root_level = chunks.level;
        sb.chunk_root_generation = chunks.generation;
    }
    sb
}

async fn attempt<D: BlockDevice>(
    devices: Vec<D>,
    copy: usize,
    sb: Superblock,
    options: &RescueOptions,
) -> Result<Rescued<D>> {
    let mut notes = Vec::new();
    let mut warnings = Vec::new();
    let (members, newest) = gather(devices, copy, &mut warnings).await?;
    let mut rules = Rules::of(&sb).ok_or_else(|| Error::unsupported("unknown checksum type"))?;
    // Blocks of commits after an older root are still from this file system.
    rules.generation_max = newest.generation.saturating_add(1);
    let mut volume = Volume::new(members, sb, rules, CACHE_BYTES);
    let bad = BadBlocks::default();
    load_chunks(&mut volume, &bad).await?;
    if let Some(at) = options.root_block {
        volume.sb = at_root_block(&volume, at).await?;
        notes.push(format!("the root block {at} of generation {} was used", volume.sb.generation));
    }
    notes.extend(bad.gaps().iter().map(|gap| format!("a block of the chunk tree: {}", gap.why)));
    let current = volume.sb.tree_root() == newest.tree_root();
    if volume.sb.log_root.0 != 0 && (!current || options.ignore_log) {
        // It belongs to the last commit and to no other.
        warnings.push(LOG_IGNORED.into());
    } else if volume.sb.log_root.0 != 0 {
        match replay(&volume).await {
            Ok(replayed) => volume.wear(replayed),
            Err(error) => notes.push(format!("the last commit is shown: {}", chain(&error))),
        }
    }
    let open = OpenOptions {
        super_copy: copy,
        ignore_data_csums: options.ignore_data_csums,
        subvolume: options.subvolume,
        ignore_log: options.ignore_log,
        ..OpenOptions::default()
    };
    let fs = Fs::over(volume, open, warnings).await?;
    leads_to_files(&fs).await?;
    Ok(Rescued { fs, notes })
}

/// From the superblock's chunks to all that can be read.
async fn load_chunks<D: BlockDevice>(volume: &mut Volume<D>, bad: &BadBlocks) -> Result<()> {
    let system = volume.sb.sys_chunks().map_err(|wrong| Error::corrupt(wrong.to_string()))?;
    for (start, chunk) in system {
        volume.chunks().borrow_mut().insert(start, chunk)?;
    }
    let tree = Tree { id: objectid::CHUNK_TREE, root: volume.sb.chunk_tree_root() };
    let mut scan = Scan::seek(volume, bad, &tree, Key::MIN).await;
    let (mut found, mut devices) = (0, Vec::new());
    while let Some(item) = scan.next_to(Key::MAX).await {
        if item.key().kind == ItemType::DEV_ITEM {
            devices.extend(DevItem::parse(item.data()));
        }
        if item.key().kind == ItemType::CHUNK_ITEM
            && let Ok(chunk) = Chunk::parse(item.data())
        {
            // One that overlaps another is left out: the first word counts.
            let inserted = volume.chunks().borrow_mut().insert(Logical(item.key().offset), chunk);
            found += usize::from(inserted.is_ok());
        }
    }
    if let Some(gap) = scan.gaps.first().filter(|_| found == 0) {
        return Err(Error::corrupt(format!("the chunk tree: {}", gap.why)));
    }
    drop(scan);
    seeds::learn(volume, &devices);
    Ok(())
}

/// The superblock as if the root tree's root were at `at`: level and generation are what that block
/// says.
async fn at_root_block<D: BlockDevice>(volume: &Volume<D>, at: Logical) -> Result<Superblock> {
    let mut first = None;
    for mirror in 1..=volume.mirrors(at)? {
        let mut bytes = vec![0; volume.rules.nodesize as usize];
        if let Err(error) = volume.read_mirror(at, mirror, &mut bytes).await {
            first.get_or_insert(error);
            continue;
        }
        match Header::parse(&bytes) {
            Ok(header) if header.bytenr == at && header.owner == objectid::ROOT_TREE => {
                let Header { generation, level, .. } = header;
                let root = RootPointer { block: at, generation, level };
                return Ok(with_roots(&volume.sb, root, None));
            }
            Ok(header) => {
                let message =
                    format!("block {at} is no root tree block: its owner is {}", header.owner);
                first.get_or_insert(Error::corrupt(message));
            }
            Err(wrong) => {
                first.get_or_insert(Error::corrupt(wrong.to_string()));
            }
        }
    }
    Err(first.unwrap_or_else(|| Error::corrupt(format!("logical {at} has no copies"))))
}

/// An older root is only worth something if a file tree hangs from it.
async fn leads_to_files<D: BlockDevice>(fs: &Fs<D>) -> Result<()> {
    let bad = BadBlocks::default();
    let trees = super::roots::FileTrees::read(fs, &bad).await;
    let wanted = trees.by_id.get(&fs.top).or_else(|| trees.by_id.values().next());
    let Some(tree) = wanted else {
        let why = bad.gaps().into_iter().next().map(|gap| gap.why);
        let why = why.unwrap_or_else(|| "the root tree names no file tree".into());
        return Err(Error::corrupt(why));
    };
    let mut scan = Scan::seek(&fs.volume, &bad, &tree.tree, Key::MIN).await;
    match scan.next_to(Key::MAX).await {
        Some(_) => Ok(()),
        None => {
            let why = scan.gaps.first().map(|gap| gap.why.clone());
            Err(Error::corrupt(why.unwrap_or_else(|| "the file tree is empty".into())))
        }
    }
}
