//! One file tree, inode after inode: an inode's items stand together, so each is judged as soon as
//! the next begins, with nothing kept of it but its names' sums.

use super::finding::{Code, Findings};
use super::inode::{InodeState, Surroundings, error};
use super::names::{Entry, Names};
use super::runs::Runs;
use crate::csum::extref_hash;
use crate::error::Place;
use crate::format::dir::DirItem;
use crate::format::file_extent::{Body, FileExtent};
use crate::format::inode::{Inode, InodeFlags, InodeRef};
use crate::format::key::{ItemType, Key, objectid};
use crate::tree::node::TreeBlock;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// An entry that leads into another file tree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct SubvolumeEntry {
    pub(crate) root: u64,
    pub(crate) dir: u64,
    pub(crate) index: u64,
    pub(crate) name: Vec<u8>,
    pub(crate) child: u64,
}

/// A preallocated extent under which there are checksums: fine if another file has written it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Prealloc {
    pub(crate) root: u64,
    pub(crate) inode: u64,
    pub(crate) extent: Range<u64>,
}

/// What file trees leave for the phases that compare trees.
pub(crate) struct FromFiles {
    pub(crate) subvolumes: Vec<SubvolumeEntry>,
    pub(crate) prealloc: Vec<Prealloc>,
    /// Space that some file has written.
    pub(crate) written: Runs,
    pub(crate) inodes: u64,
}

impl FromFiles {
    pub(crate) fn new(sectorsize: u32) -> FromFiles {
        FromFiles {
            subvolumes: Vec::new(),
            prealloc: Vec::new(),
            written: Runs::new(sectorsize),
            inodes: 0,
        }
    }
}

pub(crate) struct FilePass<'a> {
    root: u64,
    findings: &'a Findings,
    around: &'a Surroundings,
    csums: &'a Runs,
    out: &'a mut FromFiles,
    pub(crate) names: Names,
    current: Option<InodeState>,
    has_top: bool,
    orphans: BTreeSet<u64>,
    /// Unlinked inodes, with the errors that an orphan item would excuse.
    unlinked: BTreeMap<u64, u32>,
    /// Judging; a second pass only lists names.
    first: bool,
}

impl<'a> FilePass<'a> {
    pub(crate) fn new(
        root: u64,
        findings: &'a Findings,
        around: &'a Surroundings,
        csums: &'a Runs,
        out: &'a mut FromFiles,
        names: Names,
    ) -> FilePass<'a> {
        let first = matches!(names, Names::Sum(_));
        FilePass {
            root,
            findings,
            around,
            csums,
            out,
            names,
            current: None,
            has_top: false,
            orphans: BTreeSet::new(),
            unlinked: BTreeMap::new(),
            first,
        }
    }

    fn place(&self, inode: u64) -> Place {
        Place { root: Some(self.root), inode: Some(inode), ..Place::default() }
    }

    fn tell(&self, code: Code, inode: u64, text: impl FnOnce() -> String) {
        if self.first {
            self.findings.add(code, self.place(inode), text());
        }
    }

    pub(crate) fn leaf(&mut self, block: &TreeBlock) {
        for slot in 0..block.len() {
            let Some((key, data)) = block.item(slot) else { continue };
            if key.objectid == objectid::ORPHAN {
                self.orphan(key);
                continue;
            }
            if self.current.as_ref().is_none_or(|state| state.ino != key.objectid) {
                self.close();
                self.current = Some(InodeState::new(key.objectid));
            }
            self.item(key, data);
        }
    }

    fn orphan(&mut self, key: Key) {
        self.close();
        if key.kind == ItemType::ORPHAN_ITEM {
            self.orphans.insert(key.offset);
        } else {
            let root = self.root;
            self.tell(Code::UnknownKey, key.objectid, || {
                format!("unknown key {key} in root {root}")
            });
        }
    }

    fn item(&mut self, key: Key, data: &[u8]) {
        let Some(state) = &mut self.current else { return };
        let ino = key.objectid;
        match key.kind {
            ItemType::INODE_ITEM => {
                state.item = Inode::parse(data).ok();
                self.has_top |= ino == objectid::FIRST_FREE;
            }
            ItemType::INODE_REF => {
                for name in InodeRef::each(data, key.offset).flatten() {
                    state.names += 1;
                    let dotdot = ino == objectid::FIRST_FREE && name.parent == ino;
                    if dotdot && (name.index, name.name) != (0, b"..") {
                        state.errors |= error::ODD_DIR_ITEM;
                    }
                    if !dotdot {
                        self.names.inode_ref(ino, name.parent, name.index, name.name);
                    }
                }
            }
            ItemType::INODE_EXTREF => {
                for name in InodeRef::each_ext(data).flatten() {
                    state.names += 1;
                    if extref_hash(name.parent, name.name) != key.offset {
                        state.errors |= error::DIR_HASH;
                    }
                    self.names.inode_ref(ino, name.parent, name.index, name.name);
                }
            }
            ItemType::DIR_ITEM => self.dir_item(key, data),
            ItemType::DIR_INDEX => self.dir_index(key, data),
            ItemType::EXTENT_DATA => self.extent(key, data),
            ItemType::XATTR_ITEM => state.xattrs(data),
            ItemType::VERITY_DESC_ITEM | ItemType::VERITY_MERKLE_ITEM => {}
            _ => {
                let root = self.root;
                self.tell(Code::UnknownKey, ino, || format!("unknown key {key} in root {root}"));
            }
        }
    }

    /// A directory that was deleted while it was in use keeps entries of what was deleted with it.
    fn in_deleted_dir(&self) -> bool {
        let inode = self.current.as_ref().and_then(|state| state.item);
        inode.is_some_and(|inode| inode.nlink == 0)
    }

    fn dir_item(&mut self, key: Key, data: &[u8]) {
        if self.in_deleted_dir() {
            return;
        }
        let mut seen: Vec<&[u8]> = Vec::new();
        for entry in DirItem::each(data).flatten() {
            if seen.contains(&entry.name)
                && let Some(state) = &mut self.current
            {
                state.errors |= error::DUP_FILENAME;
            }
            seen.push(entry.name);
            let DirItem { name, location, kind, .. } = entry;
            if !leads_somewhere(location) {
                self.odd_entry();
                continue;
            }
            self.names.entry(&Entry { parent: key.objectid, name, location, kind }, None);
        }
        if let Some(state) = &mut self.current {
            state.has_entries = true;
        }
    }

    fn dir_index(&mut self, key: Key, data: &[u8]) {
        if self.in_deleted_dir() {
            return;
        }
        let mut count = 0u32;
        for entry in DirItem::each(data).flatten() {
            count += 1;
            let DirItem { name, location, kind, .. } = entry;
            if !leads_somewhere(location) {
                self.odd_entry();
                continue;
            }
            if let Some(state) = &mut self.current {
                state.has_entries = true;
                state.dir_bytes += 2 * name.len() as u64;
            }
            let parent = key.objectid;
            self.names.entry(&Entry { parent, name, location, kind }, Some(key.offset));
            if self.first && entry.is_subvolume() {
                self.out.subvolumes.push(SubvolumeEntry {
                    root: self.root,
                    dir: key.objectid,
                    index: key.offset,
                    name: name.to_vec(),
                    child: location.objectid,
                });
            }
        }
        if let Some(state) = &mut self.current
            && (count != 1 || key.offset < 2)
        {
            state.errors |= error::DUP_DIR_INDEX;
        }
    }

    fn odd_entry(&mut self) {
        if let Some(state) = &mut self.current {
            state.errors |= error::ODD_DIR_ITEM;
        }
    }

    fn extent(&mut self, key: Key, data: &[u8]) {
        let Some(state) = &mut self.current else { return };
        let Ok(extent) = FileExtent::parse(data) else {
            state.errors |= error::BAD_FILE_EXTENT;
            return;
        };
        // What encoding of preallocated space could mean, nobody knows.
        let encoding = data.get(0x12..0x14).is_some_and(|bytes| bytes != [0, 0]);
        if encoding && matches!(extent.body, Body::Prealloc(_)) {
            state.errors |= error::BAD_FILE_EXTENT;
        }
        let future = extent.generation > self.around.generation;
        if future && extent.covered().is_some() {
            state.errors |= error::BAD_FILE_EXTENT;
        }
        state.extent(key.offset, &extent, self.around);
        if !self.first || self.root == objectid::DATA_RELOC_TREE {
            return;
        }
        let covered = extent.covered();
        let Some((range, whole)) = covered else { return };
        let found = self.csums.bytes_in(range.clone());
        match extent.body {
            Body::Prealloc(_) => {
                if found > 0 {
                    let (root, inode) = (self.root, key.objectid);
                    self.out.prealloc.push(Prealloc { root, inode, extent: whole });
                }
            }
            _ => {
                state.found_csum |= found > 0;
                state.missing_csum |= found < range.end - range.start;
                let packed = extent.compression.to_disk() != 0;
                state.packed_without_csum |= packed && found < range.end - range.start;
                self.out.written.add(range.start, range.end - range.start);
            }
        }
    }

    /// The inode's items are all here.
    fn close(&mut self) {
        let Some(state) = self.current.take() else { return };
        self.names.inode_type(state.ino, state.dir_type(), state.entry_names());
        if !self.first {
            return;
        }
        self.out.inodes += 1;
        let errors = state.verdict(self.around);
        if state.is_unlinked() {
            self.unlinked.insert(state.ino, errors);
        } else if errors != 0 {
            self.say(state.ino, errors);
        }
    }

    fn say(&self, ino: u64, errors: u32) {
        let texts = error::texts(errors);
        let root = self.root;
        self.tell(Code::Inode, ino, || {
            format!("root {root} inode {ino} errors {errors:x}, {texts}")
        });
    }

    /// The tree is at its end.
    pub(crate) fn finish(mut self) -> Names {
        self.close();
        let unlinked = std::mem::take(&mut self.unlinked);
        for (ino, errors) in unlinked {
            if !self.orphans.contains(&ino) {
                self.say(ino, errors | error::NO_ORPHAN_ITEM);
            }
        }
        if self.first && !self.has_top {
            let root = self.root;
            self.tell(Code::Inode, objectid::FIRST_FREE, || {
                format!("root {root} root dir {} not found", objectid::FIRST_FREE)
            });
        }
        self.names
    }
}

/// Entries lead to inodes and to subvolumes. The kernel's rules let one pass that has no type at all,
/// which no lookup follows.
fn leads_somewhere(location: Key) -> bool {
    [ItemType::INODE_ITEM, ItemType::ROOT_ITEM].contains(&location.kind)
}

impl FileExtent<'_> {
    /// The allocated bytes whose checksums cover what a file reads through this item, and the whole
    /// extent; `None` for holes and inline data.
    pub(crate) fn covered(&self) -> Option<(Range<u64>, Range<u64>)> {
        let (Body::Regular(place) | Body::Prealloc(place)) = self.body else { return None };
        if place.is_hole() {
            return None;
        }
        let start = place.disk_bytenr.0;
        let whole = start..start.checked_add(place.disk_num_bytes)?;
        if self.compression.to_disk() != 0 {
            return Some((whole.clone(), whole));
        }
        let from = start.checked_add(place.offset)?;
        Some((from..from.checked_add(place.num_bytes)?, whole))
    }
}

/// Whether an inode's data has checksums.
pub(crate) fn has_csums(inode: &Inode) -> bool {
    !inode.flags.contains(InodeFlags::NODATASUM)
}

/// What a finished preallocation check says.
pub(crate) fn prealloc_with_csums(out: &mut FromFiles, findings: &Findings) {
    for Prealloc { root, inode, extent } in std::mem::take(&mut out.prealloc) {
        if out.written.bytes_in(extent.clone()) > 0 {
            continue;
        }
        let errors = error::ODD_CSUM_ITEM;
        let text = format!("root {root} inode {inode} errors {errors:x}, {}", error::texts(errors));
        let place = Place { root: Some(root), inode: Some(inode), ..Place::default() };
        findings.add(Code::Inode, place, text);
    }
}
