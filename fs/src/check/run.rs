//! The phases, one after the other.

use super::belonging::{self, Strange};
use super::bitmap::Bitmap;
use super::data;
use super::devices::{self, DeviceTrees};
use super::extents::{ExtentPass, Measures, Space, holds_data};
use super::files::{FilePass, FromFiles, prealloc_with_csums};
use super::finding::{Code, Findings};
use super::free_space::{self, FreeSpace};
use super::inode::Surroundings;
use super::log;
use super::names::Names;
use super::open;
use super::paths;
use super::quota;
use super::reader::Reader;
use super::refs::{By, Ref, Refs};
use super::roots::{Roots, judge_ties};
use super::runs::Runs;
use super::space_cache;
use super::unbalanced;
use super::uuids;
use super::walk::{Dropped, Step, Walk};
use super::{CheckOptions, Checked};
use crate::chunk::ChunkMap;
use crate::error::{Error, Place, Result};
use crate::format::block::leaf_space;
use crate::format::file_extent::{Body, FileExtent};
use crate::format::key::{ItemType, objectid};
use crate::format::superblock::{CompatRo, Incompat};
use crate::tree::cursor::Tree;
use crate::tree::node::TreeBlock;
use crate::volume::Volume;
use varve_block::BlockDevice;

/// The backref revision of every block written since 2009: the top byte of its flags.
const BACKREF_MIXED: u64 = 1;

/// A tree to walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Job {
    pub(super) tree: Tree,
    /// The tree's id in references to its root: for a relocation tree, its own address counts.
    pub(super) last_snapshot: u64,
    pub(super) dropped: Option<Dropped>,
    /// Its inodes can be judged: nobody is deleting it.
    pub(super) alive: bool,
}

impl Job {
    pub(super) fn plain(tree: Tree) -> Job {
        Job { tree, last_snapshot: 0, dropped: None, alive: true }
    }
}

pub(super) struct Run<'r, 'a, D: BlockDevice> {
    pub(super) reader: &'r Reader<'a, D>,
    pub(super) findings: &'a Findings,
    pub(super) chunks: ChunkMap,
    pub(super) space: Space,
    pub(super) refs: Refs,
    /// Blocks whose references were counted in this pass.
    seen: Bitmap,
    /// Blocks whose header names another tree than their parent's.
    pub(super) strange: Vec<Strange>,
    /// Judging: the first pass. Later ones only list references.
    pub(super) first: bool,
    progress: Option<&'r dyn Fn(&'static str, u64, u64)>,
    phase: &'static str,
    /// Blocks that the whole walk is expected to read.
    expected: u64,
}

pub(super) async fn run<D: BlockDevice>(
    volume: &Volume<D>,
    findings: &Findings,
    options: &CheckOptions<'_>,
) -> Result<Checked> {
    let reader = Reader::new(volume, findings, options.all_copies);
    let sector = volume.rules.sectorsize;
    let chunks = volume.chunks().borrow().clone();
    let mut run = Run {
        reader: &reader,
        findings,
        chunks,
        space: Space::new(sector),
        refs: Refs::summing(),
        seen: Bitmap::new(sector),
        strange: Vec::new(),
        first: true,
        progress: options.progress,
        phase: "trees",
        expected: 0,
    };
    open::super_copies(volume, findings).await;
    let (roots, csums, from_files) = run.first_pass().await?;
    unbalanced::explain(&mut run, &roots).await;
    let data = match options.data {
        true => Some(data::verify(&mut run, &roots, &csums, options.rt).await),
        false => None,
    };
    run.tell(run.phase);
    let mut found = findings.take();
    paths::fill(volume, &roots, &mut found).await;
    Ok(Checked {
        fsid: volume.sb.fsid,
        findings: found,
        counts: findings.counts(),
        tree_blocks: reader.blocks_read.get(),
        inodes: from_files.inodes,
        bytes_used: run.space.bytes,
        data,
    })
}

impl<D: BlockDevice> Run<'_, '_, D> {
    pub(super) fn sb(&self) -> &crate::format::superblock::Superblock {
        &self.reader.volume.sb
    }

    fn tell(&self, phase: &'static str) {
        if let Some(progress) = self.progress {
            progress(phase, self.reader.blocks_read.get(), self.expected);
        }
    }

    pub(super) fn tell_data(&self, verified: u64, expected: u64) {
        if let Some(progress) = self.progress {
            progress("data", verified >> 20, expected >> 20);
        }
    }

    /// Walks one tree: counts the references of each block that is new in this pass, and shows
    /// every block to `visit`. Blocks seen before are passed over unless `again`.
    pub(super) async fn tree(
        &mut self,
        job: &Job,
        again: bool,
        mut visit: impl FnMut(&TreeBlock, &mut Space, &mut Refs),
    ) {
        let reader = self.reader;
        self.root_reference(job);
        let mut walk = Walk::new(reader, job.tree, job.dropped);
        while let Some(step) = walk.next().await {
            let Step::Block(block) = step else { continue };
            let fresh = self.seen.insert(block.bytenr().0);
            if fresh {
                if self.first {
                    belonging::note(&mut self.strange, job.tree.id, &block, walk.above(&block));
                }
                self.references(job, &block);
            } else if !again {
                walk.skip(&block);
                continue;
            }
            visit(&block, &mut self.space, &mut self.refs);
            self.tell(self.phase);
        }
        reader.forget();
    }

    /// A root is referred to by its root item, or by the superblock.
    fn root_reference(&mut self, job: &Job) {
        let at = job.tree.root.block;
        let by = match job.tree.id {
            objectid::TREE_RELOC => By::Node { parent: at },
            root => By::Tree { root },
        };
        self.refs.find(Ref { extent: at.0, size: job.tree.root.level.into(), by });
    }

    /// What a block refers to, keyed as its own record says.
    fn references(&mut self, job: &Job, block: &TreeBlock) {
        let at = block.bytenr();
        let header = *block.header();
        let full = self.full_backref(job, block);
        let file_tree = holds_data(header.owner) || holds_data(job.tree.id);
        for slot in 0..block.len() {
            if block.level() > 0 {
                let Some(pointer) = block.pointer(slot) else { continue };
                if job.dropped.is_some_and(|dropped| dropped.has(block, slot)) {
                    continue;
                }
                let by = match full {
                    true => By::Node { parent: at },
                    false => By::Tree { root: header.owner },
                };
                let size = u64::from(block.level().saturating_sub(1));
                self.refs.find(Ref { extent: pointer.block.0, size, by });
                continue;
            }
            let Some((key, data)) = block.item(slot) else { continue };
            if key.kind != ItemType::EXTENT_DATA || !file_tree {
                continue;
            }
            let Ok(extent) = FileExtent::parse(data) else { continue };
            let (Body::Regular(place) | Body::Prealloc(place)) = extent.body else { continue };
            if place.is_hole() {
                continue;
            }
            let by = match full {
                true => By::Leaf { parent: at },
                false => By::File {
                    root: header.owner,
                    inode: key.objectid,
                    offset: key.offset.wrapping_sub(place.offset),
                },
            };
            let size = place.disk_num_bytes;
            self.refs.find(Ref { extent: place.disk_bytenr.0, size, by });
        }
    }

    /// How the references of a block are keyed. The record says it; where it cannot be right, that
    /// is told, and what would be right assumed.
    fn full_backref(&mut self, job: &Job, block: &TreeBlock) -> bool {
        let at = block.bytenr();
        let header = block.header();
        let place = Place { root: Some(job.tree.id), logical: Some(at), ..Place::default() };
        if self.first && header.flags >> 56 != BACKREF_MIXED && self.keyed_by_flag() {
            let text = format!("bad backref revision {}, on [{at}]", header.flags >> 56);
            self.findings.add(Code::FullBackref, place, text);
        }
        // A root belongs to one tree; what is below may come from the tree it was copied from.
        let own_root = at == job.tree.root.block && objectid::is_file_tree(job.tree.id);
        if self.first && own_root && header.owner != job.tree.id {
            let text = format!(
                "owner ref check failed [{at} {}]: root {} has a root block of tree {}",
                block.size(),
                job.tree.id,
                header.owner
            );
            self.findings.add(Code::BlockParent, place, text);
        }
        let says = self.space.full_backref.has(at.0);
        let id = job.tree.id;
        let reloc = id == objectid::TREE_RELOC || header.is_reloc();
        let shareable = holds_data(id) && id != objectid::ROOT_TREE;
        let right = if !shareable {
            false
        } else if says {
            let own = id != objectid::TREE_RELOC && id == header.owner && !header.is_reloc();
            !(own && header.generation > job.last_snapshot)
        } else if !self.space.recorded.has(at.0) {
            reloc || id != header.owner
        } else {
            reloc
        };
        if self.first && right != says && self.space.recorded.has(at.0) {
            let word = if says { "set" } else { "not set" };
            let text = format!("bad full backref, on [{at}]: it is {word} in the block's record");
            self.findings.add(Code::FullBackref, place, text);
        }
        right
    }

    /// Whether the file system is of this millennium: before, other rules held for references.
    fn keyed_by_flag(&self) -> bool {
        self.sb().incompat.contains(Incompat::MIXED_BACKREF)
    }

    /// The extent tree, whose records all other phases measure by.
    pub(super) async fn extent_tree(&mut self, roots: &Roots) {
        let measures = Measures {
            nodesize: self.sb().nodesize.into(),
            generation: self.sb().generation,
            groups_here: !self.sb().compat_ro.contains(CompatRo::BLOCK_GROUP_TREE),
        };
        let chunks = self.chunks.clone();
        let mut pass = ExtentPass::new(self.findings, &chunks, measures, self.first);
        let Some(tree) = roots.tree(objectid::EXTENT_TREE) else { return };
        let visit = |block: &TreeBlock, space: &mut Space, refs: &mut Refs| {
            if block.level() == 0 {
                pass.leaf(block, space, refs);
            }
        };
        self.tree(&Job::plain(tree), false, visit).await;
        pass.finish();
    }

    async fn root_tree(&mut self) -> Roots {
        let tree = Tree { id: objectid::ROOT_TREE, root: self.sb().tree_root() };
        let mut roots = Roots::default();
        let (findings, newest) = (self.findings, self.sb().generation);
        self.tree(&Job::plain(tree), false, |block, _, _| {
            if block.level() == 0 {
                roots.leaf(block, newest, findings);
            }
        })
        .await;
        roots
    }

    async fn first_pass(&mut self) -> Result<(Roots, Runs, FromFiles)> {
        let root_tree = Tree { id: objectid::ROOT_TREE, root: self.sb().tree_root() };
        if !open::has_root(self.reader, &root_tree).await {
            return Err(self.refusal("the root tree cannot be read"));
        }
        let roots = self.root_tree().await;
        for id in open::essential(self.sb()) {
            let root = match roots.tree(id) {
                Some(tree) => open::has_root(self.reader, &tree).await,
                None => false,
            };
            if !root && roots.tree(id).is_none_or(|tree| !self.lost_one_leaf(&tree)) {
                let name = objectid::tree_name(id);
                return Err(self.refusal(&format!("the root of tree {name} is gone")));
            }
        }
        self.phase = "extents";
        self.extent_tree(&roots).await;
        if let Some(tree) = roots.tree(objectid::BLOCK_GROUP_TREE) {
            let findings = self.findings;
            self.tree(&Job::plain(tree), false, |block, space, _| {
                for slot in 0..block.len() {
                    if let Some((key, data)) = block.item(slot)
                        && key.kind == ItemType::BLOCK_GROUP_ITEM
                    {
                        space.group_item(key, data, findings);
                    }
                }
            })
            .await;
        }
        self.expected = self.metadata_blocks();
        let device_trees = self.device_trees(&roots).await;
        devices::judge(self, &device_trees);
        self.phase = "free space";
        let free = self.free_space(&roots).await;
        free_space::judge(self, &free);
        space_cache::check(self, &roots).await;
        self.phase = "checksums";
        let csums = self.csum_tree(&roots).await;
        self.other_trees(&roots).await;
        uuids::check(self, &roots).await;
        self.phase = "files";
        let mut out = FromFiles::new(self.sb().sectorsize);
        self.file_trees(&roots, &csums, &mut out).await;
        belonging::judge(self, &roots).await;
        self.phase = "log";
        log::check(self, &roots, &csums).await;
        self.phase = "quota";
        quota::check(self, &roots).await;
        self.phase = "references";
        prealloc_with_csums(&mut out, self.findings);
        judge_ties(&roots, &out.subvolumes, self.findings);
        Ok((roots, csums, out))
    }

    /// Whether a tree is a single leaf that is lost: then nothing else of it is, and the rest of the
    /// file system can be judged.
    fn lost_one_leaf(&self, tree: &Tree) -> bool {
        tree.root.level == 0
            && self.findings.last().is_some_and(|finding| {
                finding.code == Code::BlockLayout && finding.place.logical == Some(tree.root.block)
            })
    }

    /// An error that carries what was found so far: why nothing can be checked.
    fn refusal(&self, what: &str) -> Error {
        let first = self.findings.take().into_iter().find(|f| f.severity == super::Severity::Error);
        match first {
            Some(finding) => Error::corrupt(format!("{what}: {}", finding.message)),
            None => Error::corrupt(what),
        }
    }

    fn metadata_blocks(&self) -> u64 {
        let data: u64 = self.space.data.iter().map(|run| run.end - run.start).sum();
        self.space.bytes.saturating_sub(data) / u64::from(self.sb().nodesize)
    }

    async fn device_trees(&mut self, roots: &Roots) -> DeviceTrees {
        let mut trees = DeviceTrees::default();
        let chunk_tree = Tree { id: objectid::CHUNK_TREE, root: self.sb().chunk_tree_root() };
        self.tree(&Job::plain(chunk_tree), false, |block, _, _| trees.chunk_leaf(block)).await;
        let findings = self.findings;
        if let Some(tree) = roots.tree(objectid::DEV_TREE) {
            let visit = |block: &TreeBlock, _: &mut Space, _: &mut Refs| {
                trees.dev_leaf(block, findings);
            };
            self.tree(&Job::plain(tree), false, visit).await;
        }
        trees
    }

    async fn free_space(&mut self, roots: &Roots) -> Option<FreeSpace> {
        let tree = roots.tree(objectid::FREE_SPACE_TREE)?;
        let mut free = FreeSpace::new(self.sb().sectorsize);
        let findings = self.findings;
        self.tree(&Job::plain(tree), false, |block, _, _| {
            if block.level() == 0 {
                free.leaf(block, findings);
            }
        })
        .await;
        Some(free)
    }

    /// Which sectors have checksums.
    async fn csum_tree(&mut self, roots: &Roots) -> Runs {
        let mut runs = Runs::new(self.sb().sectorsize);
        let Some(tree) = roots.tree(objectid::CSUM_TREE) else { return runs };
        let (each, sector) =
            (self.reader.volume.rules.csum.size() as u64, u64::from(self.sb().sectorsize));
        let (findings, mut end) = (self.findings, 0);
        self.tree(&Job::plain(tree), false, |block, _, _| {
            for slot in 0..block.len() {
                let Some((key, data)) = block.item(slot) else { continue };
                if key.kind != ItemType::EXTENT_CSUM {
                    let text = format!("unknown key {key} in the checksum tree");
                    findings.add(Code::UnknownKey, super::extents::logical(key.offset), text);
                    continue;
                }
                let len = data.len() as u64 / each * sector;
                if key.offset < end && slot == 0 {
                    let text = format!(
                        "csum items overlap: one ends at {end}, the next begins at {}",
                        key.offset
                    );
                    findings.add(Code::CsumOverlap, super::extents::logical(key.offset), text);
                }
                end = end.max(key.offset.saturating_add(len));
                runs.add(key.offset, len);
            }
        })
        .await;
        for run in runs.iter() {
            for gap in self.space.data.gaps_in(run) {
                let text = format!(
                    "csum exists for {}-{} but there is no extent record",
                    gap.start, gap.end
                );
                findings.add(Code::CsumStray, super::extents::logical(gap.start), text);
            }
        }
        runs
    }

    /// Trees that hold nothing to compare here, walked for their blocks and references.
    pub(super) async fn other_trees(&mut self, roots: &Roots) {
        for job in roots.other_jobs() {
            self.tree(&job, false, |_, _, _| {}).await;
        }
    }

    async fn file_trees(&mut self, roots: &Roots, csums: &Runs, out: &mut FromFiles) {
        let sb = self.sb();
        let around = Surroundings {
            sectorsize: sb.sectorsize.into(),
            leaf_space: leaf_space(sb.nodesize).into(),
            no_holes: sb.incompat.contains(Incompat::NO_HOLES),
            generation: sb.generation + u64::from(sb.log_root.0 != 0),
            csums: true,
        };
        for job in roots.file_jobs() {
            if !job.alive {
                self.tree(&job, false, |_, _, _| {}).await;
                continue;
            }
            let names = self.file_tree(&job, &around, csums, out, Names::summing()).await;
            let mut names = names;
            if let Some(listing) = names.settle() {
                let listed = self.file_tree(&job, &around, csums, out, listing).await;
                listed.report(job.tree.id, self.findings);
            }
        }
    }

    async fn file_tree(
        &mut self,
        job: &Job,
        around: &Surroundings,
        csums: &Runs,
        out: &mut FromFiles,
        names: Names,
    ) -> Names {
        let listing = matches!(names, Names::List { .. });
        let mut pass = FilePass::new(job.tree.id, self.findings, around, csums, out, names);
        if listing {
            let mut walk = Walk::new(self.reader, job.tree, job.dropped);
            while let Some(step) = walk.next().await {
                if let Step::Block(block) = step
                    && block.level() == 0
                {
                    pass.leaf(&block);
                }
            }
            self.reader.forget();
            return pass.finish();
        }
        self.tree(job, true, |block, _, _| {
            if block.level() == 0 {
                pass.leaf(block);
            }
        })
        .await;
        pass.finish()
    }

    /// Once more over all trees, for the references alone.
    pub(super) async fn again(&mut self, roots: &Roots, refs: Refs) -> Refs {
        self.first = false;
        self.refs = refs;
        self.seen = Bitmap::new(self.sb().sectorsize);
        let root_tree = Tree { id: objectid::ROOT_TREE, root: self.sb().tree_root() };
        let chunk_tree = Tree { id: objectid::CHUNK_TREE, root: self.sb().chunk_tree_root() };
        for tree in [root_tree, chunk_tree] {
            self.tree(&Job::plain(tree), false, |_, _, _| {}).await;
        }
        self.extent_tree(roots).await;
        let plain = [
            objectid::BLOCK_GROUP_TREE,
            objectid::DEV_TREE,
            objectid::FREE_SPACE_TREE,
            objectid::CSUM_TREE,
        ];
        for tree in plain.into_iter().filter_map(|id| roots.tree(id)) {
            self.tree(&Job::plain(tree), false, |_, _, _| {}).await;
        }
        self.other_trees(roots).await;
        for job in roots.file_jobs() {
            self.tree(&job, false, |_, _, _| {}).await;
        }
        std::mem::replace(&mut self.refs, Refs::summing())
    }
}
