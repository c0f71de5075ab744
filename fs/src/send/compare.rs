//! Two trees side by side: which inodes differ, and in what. Blocks that both share are passed over
//! whole, so the cost is that of the difference.

use crate::error::{Error, Result};
use crate::format::key::{ItemType, Key, objectid};
use crate::tree::cursor::Tree;
use crate::tree::node::TreeBlock;
use crate::verify::Expect;
use crate::volume::Volume;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;
use varve_block::BlockDevice;

bitflags::bitflags! {
    /// Which kinds of an inode's items are not the same on both sides.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub(crate) struct Differs: u8 {
        const INODE = 1;
        const NAMES = 2;
        const XATTRS = 4;
        const EXTENTS = 8;
    }
}

pub(crate) type Changes = BTreeMap<u64, Differs>;

/// Level, key, and for a node the child's address and generation.
type Here = (u8, Key, Option<(u64, u64)>);

/// One side: the blocks from the root down to where it stands, which may be a node.
struct Side<'a, D: BlockDevice> {
    volume: &'a Volume<D>,
    tree: Tree,
    path: Vec<(Arc<TreeBlock>, usize)>,
}

impl<'a, D: BlockDevice> Side<'a, D> {
    async fn start(volume: &'a Volume<D>, tree: &Tree) -> Result<Side<'a, D>> {
        let root = volume.block(&tree.expect_root()).await?;
        let path = if root.len() == 0 { Vec::new() } else { vec![(root, 0)] };
        Ok(Side { volume, tree: *tree, path })
    }

    fn here(&self) -> Option<Here> {
        let (block, slot) = self.path.last()?;
        let child = block.pointer(*slot).map(|pointer| (pointer.block.0, pointer.generation));
        Some((block.level(), block.key(*slot)?, child))
    }

    fn data(&self) -> &[u8] {
        let Some((block, slot)) = self.path.last() else { return &[] };
        block.item(*slot).map_or(&[], |(_, data)| data)
    }

    /// Past the item or child.
    fn next(&mut self) {
        while let Some((block, slot)) = self.path.last_mut() {
            *slot += 1;
            if *slot < block.len() {
                return;
            }
            self.path.pop();
        }
    }

    /// Into the child.
    async fn down(&mut self) -> Result<()> {
        let Some((block, slot)) = self.path.last() else { return Ok(()) };
        let pointer = block
            .pointer(*slot)
            .ok_or_else(|| Error::corrupt("a node has fewer pointers than it said"))?;
        let expect = Expect {
            logical: pointer.block,
            level: block.level().saturating_sub(1),
            generation: Some(pointer.generation),
            first_key: Some(pointer.key),
            owner: Some(self.tree.id),
        };
        let child = self.volume.block(&expect).await?;
        self.path.push((child, 0));
        Ok(())
    }
}

/// Everything in `new` counts as changed when there is no `old`.
pub(crate) async fn compare<D: BlockDevice>(
    volume: &Volume<D>,
    old: Option<&Tree>,
    new: &Tree,
) -> Result<Changes> {
    let mut changes = Changes::new();
    if old.is_some_and(|old| old.root == new.root) {
        return Ok(changes);
    }
    let mut right = Side::start(volume, new).await?;
    let mut left = match old {
        Some(old) => Side::start(volume, old).await?,
        None => Side { volume, tree: *new, path: Vec::new() },
    };
    loop {
        match (left.here(), right.here()) {
            (None, None) => return Ok(changes),
            (Some((0, key, _)), None) => {
                note(&mut changes, key);
                left.next();
            }
            (Some(_), None) => left.down().await?,
            (None, Some((0, key, _))) => {
                note(&mut changes, key);
                right.next();
            }
            (None, Some(_)) => right.down().await?,
            (Some((0, a, _)), Some((0, b, _))) => match a.cmp(&b) {
                Ordering::Less => {
                    note(&mut changes, a);
                    left.next();
                }
                Ordering::Greater => {
                    note(&mut changes, b);
                    right.next();
                }
                Ordering::Equal => {
                    if left.data() != right.data() {
                        note(&mut changes, a);
                    }
                    left.next();
                    right.next();
                }
            },
            (Some((level, _, child)), Some((other, _, other_child))) => {
                if child.is_some() && child == other_child {
                    left.next();
                    right.next();
                } else if level > other {
                    left.down().await?;
                } else if level < other {
                    right.down().await?;
                } else {
                    step(&mut left, &mut right).await?;
                }
            }
        }
    }
}

/// Two different nodes of one level: the one that begins first is entered; both where they begin
/// alike.
async fn step<D: BlockDevice>(left: &mut Side<'_, D>, right: &mut Side<'_, D>) -> Result<()> {
    let (Some((_, a, _)), Some((_, b, _))) = (left.here(), right.here()) else { return Ok(()) };
    if a <= b {
        left.down().await?;
    }
    if b <= a {
        right.down().await?;
    }
    Ok(())
}

fn note(changes: &mut Changes, key: Key) {
    if !(objectid::FIRST_FREE..=objectid::LAST_FREE).contains(&key.objectid) {
        return;
    }
    let what = match key.kind {
        ItemType::INODE_ITEM => Differs::INODE,
        ItemType::INODE_REF | ItemType::INODE_EXTREF => Differs::NAMES,
        ItemType::XATTR_ITEM => Differs::XATTRS,
        ItemType::EXTENT_DATA => Differs::EXTENTS,
        // Folder entries are told by the inodes they lead to.
        _ => return,
    };
    *changes.entry(key.objectid).or_default() |= what;
}
