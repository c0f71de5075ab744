//! Blocks and trees, read without the tree checker.

use super::ChunkScan;
use crate::error::{Error, Result};
use crate::format::block::{self, CSUM_SIZE, Header, MAX_LEVEL};
use crate::format::key::{ItemType, Key, objectid};
use crate::format::root::Root;
use crate::format::superblock::{RootPointer, Superblock};
use crate::fs::{features, load_chunks};
use crate::supers::gather;
use crate::units::Logical;
use crate::verify::Rules;
use crate::volume::Volume;
use std::collections::BTreeSet;
use varve_block::{BlockDevice, chain};

/// Blocks that one walk visits at most: 64 GiB of tree.
const BLOCKS_MAX: usize = 1 << 22;

/// A file system of which only the superblock and the chunks are known to make sense.
pub struct Inspector<D: BlockDevice> {
    pub(crate) volume: Volume<D>,
    warnings: Vec<String>,
}

/// A tree block, as it was found.
pub struct Block {
    pub at: Logical,
    pub bytes: Vec<u8>,
    pub header: Header,
    /// Why no copy of it is right; the one shown is the last.
    pub problem: Option<String>,
}

/// A tree and where its root is, as some item says.
#[derive(Clone, Debug)]
pub struct RootEntry {
    pub id: u64,
    /// The offset of the ROOT_ITEM's key.
    pub offset: u64,
    pub root: RootPointer,
    /// `None` for the trees that the superblock names.
    pub item: Option<Root>,
}

impl<D: BlockDevice> Inspector<D> {
    /// Reads the superblock of copy `copy`, and the chunks as far as they can be read.
    ///
    /// # Errors
    /// When there is no valid superblock at that place.
    pub async fn open(device: D, copy: usize) -> Result<Inspector<D>> {
        Inspector::open_devices(vec![device], copy).await
    }

    /// As [`Inspector::open`], over several devices, in any order.
    ///
    /// # Errors
    /// When there is no valid superblock at that place, or the devices do not belong together.
    pub async fn open_devices(devices: Vec<D>, copy: usize) -> Result<Inspector<D>> {
        let mut warnings = Vec::new();
        let (members, sb) = gather(devices, copy, &mut warnings).await?;
        features(&sb)?;
        let rules = Rules::of(&sb).ok_or_else(|| Error::unsupported("unknown checksum type"))?;
        let mut volume = Volume::new(members, sb, rules, 16 << 20);
        if let Err(error) = load_chunks(&mut volume, &mut warnings).await {
            warnings.push(format!("the chunk tree cannot be read whole: {}", chain(&error)));
        }
        Ok(Inspector { volume, warnings })
    }

    /// Reads by the chunks that a scan has found; what was done is in the warnings.
    pub fn take_chunks(&mut self, scan: &ChunkScan) {
        let notes = scan.put(&mut self.volume);
        self.warnings.extend(notes);
    }

    pub fn superblock(&self) -> &Superblock {
        &self.volume.sb
    }

    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The block at `at`: the first copy whose checksum and address are right, or the last one with
    /// what is wrong.
    ///
    /// # Errors
    /// When no copy can be read at all.
    pub async fn block(&self, at: Logical) -> Result<Block> {
        let mut last = None;
        let mut failure = None;
        for mirror in 1..=self.volume.mirrors(at)? {
            let mut bytes = vec![0; self.volume.rules.nodesize as usize];
            if let Err(error) = self.volume.read_mirror(at, mirror, &mut bytes).await {
                failure.get_or_insert(error);
                continue;
            }
            let header =
                Header::parse(&bytes).map_err(|wrong| Error::corrupt(wrong.to_string()))?;
            let problem = self.problem(at, &bytes, &header);
            let good = problem.is_none();
            last = Some(Block { at, bytes, header, problem });
            if good {
                break;
            }
        }
        match (last, failure) {
            (Some(block), _) => Ok(block),
            (None, Some(error)) => Err(error),
            (None, None) => Err(Error::corrupt(format!("logical {at} has no copies"))),
        }
    }

    fn problem(&self, at: Logical, bytes: &[u8], header: &Header) -> Option<String> {
        let (field, rest) = bytes.split_at_checked(CSUM_SIZE)?;
        if !self.volume.rules.csum.digest(rest).is_in(field) {
            return Some("checksum mismatch".into());
        }
        if header.bytenr != at {
            return Some(format!("it says it belongs at {}", header.bytenr));
        }
        if header.level >= MAX_LEVEL {
            return Some(format!("level {} is above 7", header.level));
        }
        None
    }

    /// Every tree that something names: those of the superblock, those of the root tree, and logs.
    pub async fn roots(&self) -> Vec<RootEntry> {
        let sb = &self.volume.sb;
        let named = |id, root| RootEntry { id, offset: 0, root, item: None };
        let mut roots = vec![
            named(objectid::ROOT_TREE, sb.tree_root()),
            named(objectid::CHUNK_TREE, sb.chunk_tree_root()),
        ];
        self.root_items(sb.tree_root(), &mut roots).await;
        if let Some(log) = self.log_root() {
            roots.push(named(objectid::TREE_LOG, log));
        }
        roots
    }

    /// The root of the tree of log trees. Its generation is the one that the next commit will have.
    pub(crate) fn log_root(&self) -> Option<RootPointer> {
        let sb = &self.volume.sb;
        (sb.log_root.0 != 0).then(|| RootPointer {
            block: sb.log_root,
            generation: sb.generation.saturating_add(1),
            level: sb.log_root_level,
        })
    }

    /// The log trees, one for each file tree that has one.
    pub async fn log_roots(&self) -> Vec<RootEntry> {
        let mut roots = Vec::new();
        if let Some(log) = self.log_root() {
            self.root_items(log, &mut roots).await;
        }
        roots
    }

    /// Adds the trees that the ROOT_ITEMs of a tree name.
    pub(crate) async fn root_items(&self, tree: RootPointer, roots: &mut Vec<RootEntry>) {
        let mut walk = Walk::new(tree);
        while let Some(step) = walk.next(self).await {
            let Step::Block(block) = step else { continue };
            for (key, data) in block::items(&block.bytes) {
                if key.kind != ItemType::ROOT_ITEM {
                    continue;
                }
                let Ok(item) = Root::parse(data) else { continue };
                let root = RootPointer {
                    block: item.bytenr,
                    generation: item.generation,
                    level: item.level,
                };
                let (id, offset) = (key.objectid, key.offset);
                roots.push(RootEntry { id, offset, root, item: Some(item) });
            }
        }
    }

    /// Every item of a tree that can be reached, in the order of the tree.
    pub(crate) async fn items(&self, root: RootPointer) -> Vec<(Key, Vec<u8>)> {
        let mut found = Vec::new();
        let mut walk = Walk::new(root);
        while let Some(step) = walk.next(self).await {
            if let Step::Block(block) = step {
                found.extend(block::items(&block.bytes).map(|(key, data)| (key, data.to_vec())));
            }
        }
        found
    }
}

/// A walk over the blocks of a tree: parents before children, from left to right.
pub struct Walk {
    todo: Vec<(Logical, u8)>,
    seen: BTreeSet<Logical>,
}

/// What the walk came to.
pub enum Step {
    Block(Block),
    /// A block that is no part of this tree, or cannot be read.
    Lost {
        at: Logical,
        why: String,
    },
}

impl Walk {
    pub fn new(root: RootPointer) -> Walk {
        Walk { todo: vec![(root.block, root.level)], seen: BTreeSet::new() }
    }

    /// The same walk over another tree: blocks that both have are not visited again.
    #[must_use]
    pub fn onward(mut self, root: RootPointer) -> Walk {
        self.todo.push((root.block, root.level));
        self
    }

    /// The next block; what is below a lost or broken one is not visited.
    pub async fn next<D: BlockDevice>(&mut self, of: &Inspector<D>) -> Option<Step> {
        loop {
            let (at, level) = self.todo.pop()?;
            if self.seen.len() == BLOCKS_MAX || !self.seen.insert(at) {
                continue;
            }
            let block = match of.block(at).await {
                Ok(block) => block,
                Err(error) => return Some(Step::Lost { at, why: chain(&error) }),
            };
            if block.problem.is_none() && block.header.level != level {
                let why = format!("level {} where {level} belongs", block.header.level);
                return Some(Step::Lost { at, why });
            }
            if block.problem.is_none()
                && let Some(below) = level.checked_sub(1)
            {
                let pointers: Vec<_> = pointers(&block).map(|p| (p.block, below)).collect();
                self.todo.extend(pointers.into_iter().rev());
            }
            return Some(Step::Block(block));
        }
    }
}

/// The pointers of a node that are inside the block.
pub(crate) fn pointers(block: &Block) -> impl Iterator<Item = block::Pointer> {
    let count = if block.header.level == 0 { 0 } else { block.header.nritems as usize };
    (0..count).map_while(|slot| block::pointer(&block.bytes, slot))
}
