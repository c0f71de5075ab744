//! Opening a file system that does not open: another superblock copy, an older root, half a chunk tree.
//!
//! ```text
//! superblock 0, 1, 2 -> its root tree, or the one named, or its four backups, newest first
//!                    -> the first whose root tree leads to a file tree that can be read
//! ```
//!
//! The chunks come first, as nothing can be read without them. Where no superblock leads to a whole chunk
//! tree, all devices are read for what tells of chunks, and the same ways are tried once more.

use super::chunks;
use super::scan::{BadBlocks, Scan};
use crate::error::{Error, Result};
use crate::format::block::Header;
use crate::format::key::{Key, objectid};
use crate::format::superblock::{Backup, RootPointer, SUPER_OFFSETS, Superblock};
use crate::fs::{Fs, LOG_IGNORED, OpenOptions};
use crate::inspect::{ChunkScan, scan_chunks};
use crate::replay::replay;
use crate::supers::gather;
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
    /// Take the chunks from a scan of the devices, whatever the chunk tree says. Where the chunk tree
    /// cannot be read that is done in any case.
    pub scan_chunks: bool,
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

/// Opens as a mount would; and if that fails, in every other way there is. `scanning` is told how many
/// bytes were read for chunks, and of how many.
///
/// # Errors
/// The one of the ordinary way, when no way leads to a file tree.
pub async fn open_rescue<D: BlockDevice + Clone>(
    devices: Vec<D>,
    options: &RescueOptions,
    scanning: &mut dyn FnMut(u64, u64),
) -> Result<Rescued<D>> {
    let mut ways = Ways { devices, options, first_error: None, chunks_lost: false };
    if !options.scan_chunks
        && let Some(rescued) = ways.each(Chunks::Tree).await
    {
        return Ok(rescued);
    }
    if ways.chunks_lost || options.scan_chunks {
        let scan = ways.scan(scanning).await;
        if let Some(scan) = scan
            && let Some(rescued) = ways.each(Chunks::Scan(&scan)).await
        {
            return Ok(rescued);
        }
        if let Some(rescued) = ways.each(Chunks::OlderTree).await {
            return Ok(rescued);
        }
    }
    let none = || Error::corrupt("superblock copies are 0, 1 and 2");
    Err(ways.first_error.unwrap_or_else(none))
}

/// Where chunks come from.
#[derive(Clone, Copy)]
enum Chunks<'s> {
    Tree,
    Scan(&'s ChunkScan),
    /// A chunk tree that the superblock remembers, which knows nothing of newer chunks.
    OlderTree,
}

/// All there is to try.
struct Ways<'o, D> {
    devices: Vec<D>,
    options: &'o RescueOptions,
    first_error: Option<Error>,
    /// Some way ended at the chunk tree.
    chunks_lost: bool,
}

impl<D: BlockDevice + Clone> Ways<'_, D> {
    fn copies(&self) -> impl Iterator<Item = usize> + use<D> {
        let only = self.options.super_copy;
        (0..SUPER_OFFSETS.len()).filter(move |copy| only.is_none_or(|only| only == *copy))
    }

    async fn scan(&mut self, told: &mut dyn FnMut(u64, u64)) -> Option<ChunkScan> {
        for copy in self.copies() {
            match scan_chunks(self.devices.clone(), copy, told).await {
                Ok(scan) => return Some(scan),
                Err(error) => drop(self.first_error.get_or_insert(error)),
            }
        }
        None
    }

    /// The first way that leads to files.
    async fn each(&mut self, from: Chunks<'_>) -> Option<Rescued<D>> {
        for copy in self.copies() {
            let sb = match gather(self.devices.clone(), copy, &mut Vec::new()).await {
                Ok((_, sb)) => sb,
                Err(error) => {
                    self.first_error.get_or_insert(error);
                    continue;
                }
            };
            for (sb, how) in roots_of(&sb, self.options, from) {
                match self.attempt(copy, sb, from).await {
                    Ok(mut rescued) => {
                        if copy > 0 {
                            rescued.notes.push(format!("superblock copy {copy} was used"));
                        }
                        rescued.notes.extend(how);
                        let because = self.first_error.take();
                        if let Some(error) = because.filter(|_| !rescued.notes.is_empty()) {
                            rescued.notes.push(format!("because: {}", chain(&error)));
                        }
                        return Some(rescued);
                    }
                    Err(error) => {
                        tracing::info!(copy, error = %chain(&error), "this way does not open it");
                        self.first_error.get_or_insert(error);
                    }
                }
                if self.chunks_lost && matches!(from, Chunks::Tree) {
                    break; // rather all chunks for the last commit than an older one
                }
            }
        }
        None
    }

    async fn attempt(
        &mut self,
        copy: usize,
        sb: Superblock,
        from: Chunks<'_>,
    ) -> Result<Rescued<D>> {
        let options = self.options;
        let mut notes = Vec::new();
        let mut warnings = Vec::new();
        let (members, newest) = gather(self.devices.clone(), copy, &mut warnings).await?;
        let mut rules =
            Rules::of(&sb).ok_or_else(|| Error::unsupported("unknown checksum type"))?;
        // Blocks of commits after an older root are still from this file system.
        rules.generation_max = newest.generation.saturating_add(1);
        let mut volume = Volume::new(members, sb, rules, CACHE_BYTES);
        match from {
            Chunks::Scan(scan) => notes.extend(scan.put(&mut volume)),
            Chunks::Tree | Chunks::OlderTree => {
                let loaded = chunks::from_tree(&mut volume).await;
                self.chunks_lost |= loaded.is_err();
                loaded?;
            }
        }
        if let Some(at) = options.root_block {
            volume.sb = at_root_block(&volume, at).await?;
            notes.push(format!(
                "the root block {at} of generation {} was used",
                volume.sb.generation
            ));
        }
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
}

/// The superblock as it is, and as it was at the last commits.
fn roots_of(
    sb: &Superblock,
    options: &RescueOptions,
    from: Chunks<'_>,
) -> Vec<(Superblock, Option<String>)> {
    let mut ways: Vec<(Superblock, Option<String>)> = match from {
        Chunks::Tree | Chunks::Scan(_) => vec![(sb.clone(), None)],
        Chunks::OlderTree => {
            let other = |backup: &&Backup| {
                let block = backup.chunk_root.block;
                block.0 != 0 && block != sb.chunk_root
            };
            let older = sb.backups.iter().filter(other).map(|backup| {
                let generation = backup.chunk_root.generation;
                let how = format!("the chunk root of generation {generation} was used");
                (with_roots(sb, sb.tree_root(), Some(backup.chunk_root)), Some(how))
            });
            older.collect()
        }
    };
    if options.root_block.is_some() {
        return ways;
    }
    let mut backups: Vec<&Backup> =
        sb.backups.iter().filter(|backup| backup.tree_root.block.0 != 0).collect();
    backups.sort_by_key(|backup| std::cmp::Reverse(backup.tree_root.generation));
    ways.extend(backups.into_iter().filter(|b| b.tree_root.block != sb.root).map(|backup| {
        let generation = backup.tree_root.generation;
        let how = format!(
            "the root of generation {generation} was used, the last commit was {}",
            sb.generation
        );
        (with_roots(sb, backup.tree_root, Some(backup.chunk_root)), Some(how))
    }));
    ways
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
            let why = scan.gaps.first().map(|met| met.gap.why.clone());
            Err(Error::corrupt(why.unwrap_or_else(|| "the file tree is empty".into())))
        }
    }
}
