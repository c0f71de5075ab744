//! The root tree: which trees there are, and how subvolumes hang in each other.

use super::files::SubvolumeEntry;
use super::finding::{Code, Findings};
use super::run::Job;
use super::walk::Dropped;
use crate::error::Place;
use crate::format::Uuid;
use crate::format::free_space::CacheHead;
use crate::format::key::{ItemType, Key, objectid};
use crate::format::root::{Root, RootRef};
use crate::format::superblock::RootPointer;
use crate::tree::cursor::Tree;
use crate::tree::node::TreeBlock;
use std::collections::{BTreeMap, BTreeSet};

/// One end of the tie between a subvolume and its parent.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Tie {
    pub(crate) dir: u64,
    pub(crate) index: u64,
    pub(crate) name: Vec<u8>,
}

#[derive(Default)]
pub(crate) struct Roots {
    pub(crate) items: Vec<(Key, Root)>,
    /// By parent and child.
    pub(crate) refs: BTreeMap<(u64, u64), Tie>,
    /// By parent and child, too.
    pub(crate) backrefs: BTreeMap<(u64, u64), Tie>,
    orphans: BTreeSet<u64>,
    /// The old free space cache, by block group.
    pub(crate) caches: BTreeMap<u64, CacheHead>,
}

impl Roots {
    pub(crate) fn leaf(&mut self, block: &TreeBlock, newest: u64, findings: &Findings) {
        for slot in 0..block.len() {
            let Some((key, data)) = block.item(slot) else { continue };
            match key.kind {
                ItemType::ROOT_ITEM => {
                    let Ok(root) = Root::parse(data) else { continue };
                    judge_item(key, &root, newest, findings);
                    self.items.push((key, root));
                }
                ItemType::ROOT_REF => self.tie((key.objectid, key.offset), data, true),
                ItemType::ROOT_BACKREF => self.tie((key.offset, key.objectid), data, false),
                ItemType::UNTYPED if key.objectid == objectid::FREE_SPACE => {
                    if let Ok(head) = CacheHead::parse(data) {
                        self.caches.insert(key.offset, head);
                    }
                }
                ItemType::ORPHAN_ITEM => {
                    self.orphans.insert(key.offset);
                }
                // Chunks live in a tree of their own: here, one is somebody else's block.
                ItemType::CHUNK_ITEM
                | ItemType::DEV_ITEM
                | ItemType::EXTENT_ITEM
                | ItemType::METADATA_ITEM
                | ItemType::BLOCK_GROUP_ITEM
                | ItemType::DEV_EXTENT
                | ItemType::EXTENT_CSUM => {
                    let place = Place { root: Some(objectid::ROOT_TREE), ..Place::default() };
                    let text = format!("unknown key {key} in the root tree");
                    findings.add(Code::UnknownKey, place, text);
                }
                _ => {}
            }
        }
    }

    fn tie(&mut self, at: (u64, u64), data: &[u8], forward: bool) {
        let Ok(RootRef { dirid, sequence, name }) = RootRef::parse(data) else { return };
        let tie = Tie { dir: dirid, index: sequence, name: name.to_vec() };
        let map = if forward { &mut self.refs } else { &mut self.backrefs };
        map.insert(at, tie);
    }

    /// The newest root of tree `id`.
    pub(crate) fn tree(&self, id: u64) -> Option<Tree> {
        let (_, root) = self.items.iter().rev().find(|(key, _)| key.objectid == id)?;
        Some(Tree { id, root: pointer(root) })
    }

    /// Whether there is a root item for `id`, and how often it is referred to.
    pub(crate) fn alive(&self, id: u64) -> Option<bool> {
        let (_, root) = self.items.iter().rev().find(|(key, _)| key.objectid == id)?;
        Some(root.refs > 0)
    }

    /// File trees, relocation trees, and last those that are being deleted: a shared block must be
    /// met first through a tree that still has all of it.
    pub(crate) fn file_jobs(&self) -> Vec<Job> {
        let mut jobs: Vec<Job> = self
            .items
            .iter()
            .filter(|(key, _)| {
                objectid::is_file_tree(key.objectid)
                    || [objectid::DATA_RELOC_TREE, objectid::TREE_RELOC].contains(&key.objectid)
            })
            .map(|(key, root)| job(*key, root))
            .collect();
        jobs.sort_by_key(|job| job.dropped.is_some());
        jobs
    }

    /// Every tree that no other phase knows.
    pub(crate) fn other_jobs(&self) -> Vec<Job> {
        let known = [
            objectid::EXTENT_TREE,
            objectid::DEV_TREE,
            objectid::CSUM_TREE,
            objectid::FREE_SPACE_TREE,
            objectid::BLOCK_GROUP_TREE,
            objectid::DATA_RELOC_TREE,
            objectid::TREE_RELOC,
        ];
        self.items
            .iter()
            .filter(|(key, _)| {
                !objectid::is_file_tree(key.objectid) && !known.contains(&key.objectid)
            })
            .map(|(key, root)| Job::plain(Tree { id: key.objectid, root: pointer(root) }))
            .collect()
    }
}

pub(crate) fn pointer(root: &Root) -> RootPointer {
    RootPointer { block: root.bytenr, generation: root.generation, level: root.level }
}

fn job(key: Key, root: &Root) -> Job {
    let dropping = root.refs == 0 && root.drop_progress.objectid != 0;
    let dropped = Dropped { key: root.drop_progress, level: root.drop_level };
    Job {
        tree: Tree { id: key.objectid, root: pointer(root) },
        last_snapshot: root.last_snapshot,
        dropped: dropping.then_some(dropped),
        alive: root.refs > 0 && key.objectid != objectid::TREE_RELOC,
    }
}

/// What one root item says by itself, beyond the rules of its leaf.
fn judge_item(key: Key, root: &Root, newest: u64, findings: &Findings) {
    let place = Place { root: Some(key.objectid), ..Place::default() };
    let id = key.objectid;
    for (what, have) in [("generation", root.generation), ("last_snapshot", root.last_snapshot)] {
        if have > newest {
            let text = format!("invalid root {what}: root {id} has {have}, expect (0, {newest}]");
            findings.add(Code::RootItem, place, text);
        }
    }
    // Others than these are looked up under 0 alone (format: btrfs 12.1).
    if !objectid::is_file_tree(id) && id != objectid::TREE_RELOC && key.offset != 0 {
        let text = format!("invalid root key offset: root {id} has {}, expect 0", key.offset);
        findings.add(Code::RootItem, place, text);
    }
    if objectid::is_file_tree(id) && root.root_dirid != objectid::FIRST_FREE && root.refs > 0 {
        let text = format!("root {id} has root dir {}, expect 256", root.root_dirid);
        findings.add(Code::RootItem, place, text);
    }
    let received = root.is_v2() && root.received_uuid != Uuid::nil();
    if objectid::is_file_tree(id) && root.refs > 0 && received && !root.is_read_only() {
        let text = format!(
            "subvolume {id} is writable and has received_uuid {}: what was received may have \
             changed since",
            root.received_uuid
        );
        findings.add(Code::ReceivedUuid, place, text);
    }
}

/// How subvolumes are tied into the directories of other trees.
pub(crate) fn judge_ties(roots: &Roots, entries: &[SubvolumeEntry], findings: &Findings) {
    let mut named: BTreeMap<(u64, u64), Vec<&SubvolumeEntry>> = BTreeMap::new();
    for entry in entries {
        named.entry((entry.root, entry.child)).or_default().push(entry);
    }
    let all: BTreeSet<_> = roots.refs.keys().chain(roots.backrefs.keys()).copied().collect();
    let tied: BTreeSet<u64> = all.iter().map(|(_, child)| *child).collect();
    for (key, root) in &roots.items {
        let id = key.objectid;
        if !objectid::is_file_tree(id) || id == objectid::FS_TREE {
            continue;
        }
        if root.refs == 0 && !roots.orphans.contains(&id) {
            let place = Place { root: Some(id), ..Place::default() };
            let text = format!("fs tree {id} has 0 refs and no orphan item");
            findings.add(Code::RootOrphan, place, text);
        }
        if root.refs > 0 && !tied.contains(&id) {
            tell(findings, id, format!("fs tree {id} not referenced"));
        }
    }
    for (parent, child) in all {
        let here = named.get(&(parent, child)).map_or(&[][..], Vec::as_slice);
        judge_tie(roots, parent, child, here, findings);
    }
}

fn tell(findings: &Findings, id: u64, text: String) {
    findings.add(Code::RootRef, Place { root: Some(id), ..Place::default() }, text);
}

fn judge_tie(
    roots: &Roots,
    parent: u64,
    child: u64,
    here: &[&SubvolumeEntry],
    findings: &Findings,
) {
    let (forward, back) = (roots.refs.get(&(parent, child)), roots.backrefs.get(&(parent, child)));
    let Some(tie) = forward.or(back) else { return };
    let mut errors = 0;
    let mut texts = Vec::new();
    let mut note = |wrong: bool, bit: u32, text: &'static str| {
        if wrong {
            errors |= bit;
            texts.push(text);
        }
    };
    let entry = here.iter().find(|e| e.dir == tie.dir && e.name == tie.name);
    note(forward.is_none(), 0x200, "no root ref");
    note(back.is_none(), 0x400, "no root backref");
    let differ = forward.is_some() && back.is_some() && forward != back;
    let index = entry.is_some_and(|entry| entry.index != tie.index);
    note(differ || index, 0x40, "index mismatch");
    // A parent that is itself being deleted was not walked for its names.
    if roots.alive(parent) != Some(false) {
        note(entry.is_none(), 0x1 | 0x2, "no dir item, no dir index");
    }
    if roots.alive(child).is_none() {
        let text = format!("fs tree {child} not found, referenced by root {parent}");
        tell(findings, child, text);
    }
    if errors != 0 {
        let text = format!(
            "fs tree {child}: unresolved ref root {parent} dir {} index {} namelen {} name {} \
             errors {errors:x}, {}",
            tie.dir,
            tie.index,
            tie.name.len(),
            tie.name.escape_ascii(),
            texts.join(", ")
        );
        tell(findings, child, text);
    }
}
