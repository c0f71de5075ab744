//! What a bad address means to people: which files, or why none.

use super::Owner;
use crate::error::Result;
use crate::format::chunk::GroupFlags;
use crate::format::extent::{Extent, ExtentFlags, Reference};
use crate::format::key::{ItemType, Key, objectid};
use crate::fs::{Fs, root_of};
use crate::inode::InodeId;
use crate::paths::joined;
use crate::tree::cursor::{Cursor, find_last};
use crate::units::{Logical, Physical};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;
use varve_block::BlockDevice;

/// What lies at an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PlaceKind {
    /// Data that files use.
    Data,
    /// A part of an extent that no file uses; other parts of the extent are used.
    Bookend,
    /// An extent that no file tree leads to any more.
    Unreferenced,
    /// A tree block.
    Metadata,
    /// Nothing is allocated there.
    Free,
    /// No chunk holds the address.
    Unmapped,
}

impl PlaceKind {
    pub fn words(self) -> &'static str {
        match self {
            PlaceKind::Data => "data",
            PlaceKind::Bookend => "a part of an extent that no file uses",
            PlaceKind::Unreferenced => "an extent that no file uses",
            PlaceKind::Metadata => "a tree block",
            PlaceKind::Free => "free space",
            PlaceKind::Unmapped => "outside of all chunks",
        }
    }
}

/// A file that loses something.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Used {
    pub id: InodeId,
    /// Bytes of the file.
    pub range: Range<u64>,
    /// Paths from the top level, one per hard link, without a first slash; empty for a file that was
    /// deleted while it was open, and for caches.
    pub paths: Vec<Vec<u8>>,
}

/// A bad sector, and what it means.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    pub at: Logical,
    pub len: u64,
    pub kind: PlaceKind,
    /// Where the copies are.
    pub copies: Vec<Physical>,
    /// The files that lose bytes.
    pub used: Vec<Used>,
    /// The files that lose nothing here, but keep the extent allocated with other parts of it that they
    /// use: the bad sector stays until these are gone too, or written anew.
    pub holders: Vec<Used>,
    /// For a tree block: the trees that hold it, as far as the extent tree says.
    pub trees: Vec<u64>,
}

/// All of it.
#[derive(Debug, Default)]
pub struct Damage {
    pub places: Vec<Place>,
    /// Blocks that cannot be read: more files may be concerned.
    pub unread: Vec<String>,
}

impl<D: BlockDevice> Fs<D> {
    /// What the sectors at `bad` mean, one by one.
    ///
    /// # Errors
    /// When the list of subvolumes cannot be read.
    pub async fn damage(&self, bad: &[Logical]) -> Result<Damage> {
        let sector = u64::from(self.volume.rules.sectorsize);
        let range = |at: Logical| at.0..at.0.saturating_add(sector);
        let ranges: Vec<_> = bad.iter().copied().map(range).collect();
        let owners = self.owners(&ranges).await?;
        let roots = self.subvolume_paths().await?;
        let mut named: BTreeMap<InodeId, Vec<Vec<u8>>> = BTreeMap::new();
        for (root, owner) in &owners.found {
            let id = InodeId { root: *root, ino: owner.inode };
            if let Entry::Vacant(new) = named.entry(id) {
                new.insert(self.paths_from_top(id, &roots).await);
            }
        }
        let mut damage = Damage { places: Vec::new(), unread: owners.unread };
        for &at in bad {
            let mut place = self.place(at, sector).await;
            if place.kind == PlaceKind::Metadata || place.kind == PlaceKind::Unmapped {
                damage.places.push(place);
                continue;
            }
            place.give_to(&owners.found, &named);
            damage.places.push(place);
        }
        Ok(damage)
    }

    /// Every path of an inode from the top level. What cannot be read is absent.
    async fn paths_from_top(&self, id: InodeId, roots: &BTreeMap<u64, Vec<u8>>) -> Vec<Vec<u8>> {
        let Some(root) = roots.get(&id.root) else { return Vec::new() };
        let inside = self.paths_in_tree(id).await.unwrap_or_default();
        inside.into_iter().map(|path| joined(root.clone(), &path)).collect()
    }

    /// What the chunks and the extent tree know of an address. An extent counts as unreferenced until
    /// a file was found.
    async fn place(&self, at: Logical, len: u64) -> Place {
        let piece = self.volume.chunks().borrow().map(at, len);
        let flags = self.volume.chunks().borrow().find(at).map(|(_, chunk)| chunk.flags);
        let mut place = Place {
            at,
            len,
            kind: PlaceKind::Unmapped,
            copies: piece.map(|piece| piece.copies).unwrap_or_default(),
            used: Vec::new(),
            holders: Vec::new(),
            trees: Vec::new(),
        };
        let Some(flags) = flags else { return place };
        place.kind = PlaceKind::Free;
        let only_data = !flags.intersects(GroupFlags::METADATA | GroupFlags::SYSTEM);
        match self.extent_at(at).await {
            Ok(Some(extent)) if extent.flags.contains(ExtentFlags::TREE_BLOCK) => {
                place.kind = PlaceKind::Metadata;
                place.trees = extent
                    .inline
                    .iter()
                    .filter_map(|reference| match reference {
                        Reference::TreeBlock { root } => Some(*root),
                        _ => None,
                    })
                    .collect();
            }
            Ok(Some(_)) => place.kind = PlaceKind::Unreferenced,
            Ok(None) => {}
            // The extent tree itself cannot be read there: the kind of the chunk decides.
            Err(_) if only_data => place.kind = PlaceKind::Unreferenced,
            Err(_) => place.kind = PlaceKind::Metadata,
        }
        place
    }

    /// The record of the extent that covers an address.
    async fn extent_at(&self, at: Logical) -> Result<Option<Extent>> {
        let Some((tree, _)) = root_of(&self.volume, objectid::EXTENT_TREE).await? else {
            return Ok(None);
        };
        // Extents do not overlap, so the last one that begins at or before the address is the only
        // one that may cover it. Its keyed references stand behind it.
        let last = Key::new(at.0, ItemType(u8::MAX), u64::MAX);
        let Some(near) = find_last(&self.volume, &tree, last).await? else { return Ok(None) };
        let start = near.key().objectid;
        let mut cursor =
            Cursor::seek(&self.volume, &tree, Key::new(start, ItemType::UNTYPED, 0)).await?;
        let last = Key::new(start, ItemType::METADATA_ITEM, u64::MAX);
        while let Some(item) = cursor.next_to(last).await? {
            let Key { kind, offset, .. } = item.key();
            let len = match kind {
                ItemType::EXTENT_ITEM => offset,
                ItemType::METADATA_ITEM => u64::from(self.volume.rules.nodesize),
                _ => continue,
            };
            if start.saturating_add(len) > at.0 {
                return Ok(Extent::parse(kind, item.data()).ok());
            }
        }
        Ok(None)
    }
}

impl Place {
    /// Finds its files among those that use the extents asked for.
    fn give_to(&mut self, found: &[(u64, Owner)], named: &BTreeMap<InodeId, Vec<Vec<u8>>>) {
        let bad = self.at.0..self.at.0.saturating_add(self.len);
        let mut holders = BTreeMap::new();
        for (root, owner) in found.iter().filter(|(_, owner)| owner.covers(&bad)) {
            let id = InodeId { root: *root, ino: owner.inode };
            let used =
                |range| Used { id, range, paths: named.get(&id).cloned().unwrap_or_default() };
            match owner.lost(&bad) {
                Some(range) => self.used.push(used(range)),
                None => {
                    let range = owner.offset..owner.offset.saturating_add(owner.len);
                    holders.entry(id).or_insert_with(|| used(range));
                }
            }
        }
        holders.retain(|id, _| self.used.iter().all(|used| used.id != *id));
        self.holders = holders.into_values().collect();
        if !self.used.is_empty() {
            self.kind = PlaceKind::Data;
        } else if self.kind == PlaceKind::Unreferenced && !self.holders.is_empty() {
            self.kind = PlaceKind::Bookend;
        }
    }
}
