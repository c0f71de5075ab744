//! From addresses back to files: who uses the bytes at a logical address, in every subvolume and
//! snapshot (format: btrfs 7, 10.5).
//!
//! # Why not follow the back references?
//!
//! They name the tree an extent was written for; which snapshots share the leaf that holds it has to be
//! climbed for block by block, and the tree they stand in may be the one that is damaged. Here the
//! file trees are walked instead, each *block* once: what a block holds of interest is remembered, so a
//! hundred snapshots cost little more than one.

mod damage;
mod scan;

pub use damage::{Damage, Place, PlaceKind, Used};
pub use scan::{BadCopy, Scanned};

use crate::error::Result;
use crate::format::file_extent::{Body, Compression, FileExtent};
use crate::format::key::{ItemType, objectid};
use crate::fs::{Fs, root_of};
use crate::tree::cursor::Tree;
use crate::tree::node::TreeBlock;
use crate::units::Logical;
use crate::verify::Expect;
use std::collections::HashMap;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use varve_block::{BlockDevice, chain};

/// A file extent that uses some of the addresses asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner {
    pub inode: u64,
    /// Where in the file it begins.
    pub offset: u64,
    /// Bytes of the file.
    pub len: u64,
    /// The extent on disk.
    pub extent: Logical,
    pub extent_len: u64,
    /// Where in the (unpacked) extent the file's bytes begin.
    pub inside: u64,
    pub compressed: bool,
}

impl Owner {
    /// Whether its extent covers some of the addresses, used by the file or not.
    fn covers(&self, bad: &Range<u64>) -> bool {
        self.extent.0 < bad.end && bad.start < self.extent.0.saturating_add(self.extent_len)
    }

    /// The bytes of the file that are lost with the addresses `bad`: all of a compressed extent.
    /// `None` where the file uses other parts of the extent.
    pub fn lost(&self, bad: &Range<u64>) -> Option<Range<u64>> {
        if !self.covers(bad) {
            return None;
        }
        let start = self.extent.0;
        if self.compressed {
            return Some(self.offset..self.offset.saturating_add(self.len));
        }
        let from = bad.start.max(start.saturating_add(self.inside));
        let to = bad.end.min(start.saturating_add(self.inside).saturating_add(self.len));
        let file = |at: u64| (at - start - self.inside).saturating_add(self.offset);
        (from < to).then(|| file(from)..file(to))
    }
}

/// Who uses what, and what could not be looked at.
#[derive(Debug, Default)]
pub struct Owners {
    /// Tree id and file extent, in the order of trees, inodes and offsets.
    pub found: Vec<(u64, Owner)>,
    /// Trees and blocks that cannot be read: owners may hide there.
    pub unread: Vec<String>,
}

/// What the blocks seen so far hold.
struct Search<'a> {
    /// Sorted, and apart from each other.
    wanted: &'a [Range<u64>],
    blocks: HashMap<Logical, Rc<[Owner]>>,
    unread: Vec<String>,
}

impl Search<'_> {
    fn wants(&self, from: u64, len: u64) -> bool {
        let end = from.saturating_add(len);
        let behind = self.wanted.partition_point(|range| range.end <= from);
        self.wanted.get(behind).is_some_and(|range| range.start < end)
    }

    fn leaf(&self, leaf: &TreeBlock) -> Vec<Owner> {
        let mut found = Vec::new();
        for (key, data) in (0..leaf.len()).filter_map(|slot| leaf.item(slot)) {
            if key.kind != ItemType::EXTENT_DATA {
                continue;
            }
            let Ok(extent) = FileExtent::parse(data) else { continue };
            let (Body::Regular(place) | Body::Prealloc(place)) = extent.body else { continue };
            if place.is_hole() || !self.wants(place.disk_bytenr.0, place.disk_num_bytes) {
                continue;
            }
            found.push(Owner {
                inode: key.objectid,
                offset: key.offset,
                len: place.num_bytes,
                extent: place.disk_bytenr,
                extent_len: place.disk_num_bytes,
                inside: place.offset,
                compressed: extent.compression != Compression::None,
            });
        }
        found
    }
}

impl<D: BlockDevice> Fs<D> {
    /// Every file extent, in every tree that has files, whose extent on disk touches one of the
    /// `wanted` ranges. The root tree counts too: caches of free space are files in it. Trees that are
    /// being deleted are looked at as far as they still stand.
    ///
    /// # Errors
    /// When the list of trees cannot be read; trees that cannot be are named in the answer.
    pub async fn owners(&self, wanted: &[Range<u64>]) -> Result<Owners> {
        let wanted = merged(wanted);
        let mut search = Search { wanted: &wanted, blocks: HashMap::new(), unread: Vec::new() };
        let mut found = Vec::new();
        let mut trees = vec![(objectid::ROOT_TREE, self.root_tree())];
        for subvolume in self.subvolumes().await? {
            if subvolume.being_deleted {
                continue;
            }
            match root_of(&self.volume, subvolume.id).await {
                Ok(Some((tree, _))) => trees.push((subvolume.id, tree)),
                Ok(None) => {}
                Err(error) => {
                    search.unread.push(format!("tree {}: {}", subvolume.id, chain(&error)));
                }
            }
        }
        for (id, tree) in trees {
            let here = self.owners_below(&tree, tree.expect_root(), &mut search).await;
            found.extend(here.iter().map(|owner| (id, *owner)));
        }
        Ok(Owners { found, unread: search.unread })
    }

    /// As deep as a tree is: eight levels at most, and each is checked to be one below the last.
    fn owners_below<'f>(
        &'f self,
        tree: &'f Tree,
        expect: Expect,
        search: &'f mut Search<'_>,
    ) -> Pin<Box<dyn Future<Output = Rc<[Owner]>> + 'f>> {
        Box::pin(async move {
            if let Some(known) = search.blocks.get(&expect.logical) {
                return Rc::clone(known);
            }
            let found: Rc<[Owner]> = match self.volume.block(&expect).await {
                Err(error) => {
                    search.unread.push(format!("tree {}: {}", tree.id, chain(&error)));
                    Rc::from([])
                }
                Ok(block) if block.level() == 0 => search.leaf(&block).into(),
                Ok(node) => {
                    let mut found = Vec::new();
                    for slot in 0..node.len() {
                        let Some(child) = node.expect_child(slot, tree.id) else { continue };
                        let below = self.owners_below(tree, child, search).await;
                        found.extend_from_slice(&below);
                    }
                    found.into()
                }
            };
            search.blocks.insert(expect.logical, Rc::clone(&found));
            found
        })
    }
}

/// Sorted, and joined where they touch.
fn merged(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut sorted: Vec<_> = ranges.iter().filter(|range| !range.is_empty()).cloned().collect();
    sorted.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in sorted {
        match merged.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(compressed: bool) -> Owner {
        Owner {
            inode: 257,
            offset: 1 << 20,
            len: 8192,
            extent: Logical(4096 * 100),
            extent_len: 16384,
            inside: 4096,
            compressed,
        }
    }

    #[test]
    fn only_what_a_file_uses_of_an_extent_is_lost_to_it() {
        let bad = |n: u64| 4096 * n..4096 * (n + 1);
        assert_eq!(owner(false).lost(&bad(100)), None, "before its part");
        assert_eq!(owner(false).lost(&bad(101)), Some(1 << 20..(1 << 20) + 4096));
        assert_eq!(owner(false).lost(&bad(102)), Some((1 << 20) + 4096..(1 << 20) + 8192));
        assert_eq!(owner(false).lost(&bad(103)), None, "behind it");
        assert_eq!(owner(true).lost(&bad(103)), Some(1 << 20..(1 << 20) + 8192));
        assert_eq!(owner(true).lost(&bad(104)), None);
        assert_eq!(owner(true).lost(&bad(99)), None);
    }

    #[test]
    fn ranges_are_joined() {
        assert_eq!(merged(&[8..12, 0..4, 3..5, 5..6, 9..9]), [0..6, 8..12]);
    }
}
