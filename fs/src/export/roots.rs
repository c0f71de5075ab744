//! Which file trees there are, as far as the root tree can be read.

use super::scan::{BadBlocks, Scan};
use crate::format::Uuid;
use crate::format::key::{ItemType, Key, objectid};
use crate::format::root::{Root, RootRef};
use crate::format::superblock::RootPointer;
use crate::fs::Fs;
use crate::tree::cursor::Tree;
use std::collections::{BTreeMap, BTreeSet};
use varve_block::BlockDevice;

#[derive(Clone, Debug)]
pub(crate) struct FileTree {
    pub(crate) tree: Tree,
    pub(crate) uuid: Uuid,
    pub(crate) parent_uuid: Uuid,
    /// Tree it hangs in.
    pub(crate) parent: Option<u64>,
}

#[derive(Debug, Default)]
pub(crate) struct FileTrees {
    pub(crate) by_id: BTreeMap<u64, FileTree>,
    uuids: BTreeSet<Uuid>,
}

impl FileTrees {
    pub(crate) async fn read<D: BlockDevice>(fs: &Fs<D>, bad: &BadBlocks) -> FileTrees {
        let mut trees = FileTrees::default();
        let first = Key::new(objectid::FS_TREE, ItemType::UNTYPED, 0);
        let last = Key::new((1 << 48) - 1, ItemType(u8::MAX), u64::MAX);
        let mut scan = Scan::seek(&fs.volume, bad, &fs.root_tree(), first).await;
        while let Some(item) = scan.next_to(last).await {
            let Key { objectid: id, kind, offset } = item.key();
            if !objectid::is_file_tree(id) {
                continue;
            }
            match kind {
                ItemType::ROOT_ITEM => {
                    let Ok(root) = Root::parse(item.data()) else { continue };
                    bad.put_stale(id, item.age);
                    trees.add(id, &root);
                }
                ItemType::ROOT_BACKREF if RootRef::parse(item.data()).is_ok() => {
                    if let Some(tree) = trees.by_id.get_mut(&id) {
                        tree.parent = Some(offset);
                    }
                }
                _ => (),
            }
        }
        trees
    }

    fn add(&mut self, id: u64, root: &Root) {
        let pointer =
            RootPointer { block: root.bytenr, generation: root.generation, level: root.level };
        let if_v2 = |uuid: Uuid| if root.is_v2() { uuid } else { Uuid::nil() };
        let tree = FileTree {
            tree: Tree { id, root: pointer },
            uuid: if_v2(root.uuid),
            parent_uuid: if_v2(root.parent_uuid),
            parent: None,
        };
        self.uuids.insert(tree.uuid);
        self.by_id.insert(id, tree);
    }

    /// A snapshot whose source is here too: most of it would be written twice.
    pub(crate) fn is_snapshot(&self, id: u64) -> bool {
        self.by_id.get(&id).is_some_and(|tree| {
            !tree.parent_uuid.is_nil() && self.uuids.contains(&tree.parent_uuid)
        })
    }

    /// Whether tree `child` hangs in tree `parent`; where that was lost, it does if it exists.
    pub(crate) fn hangs_in(&self, child: u64, parent: u64) -> bool {
        self.by_id.get(&child).is_some_and(|tree| tree.parent.is_none_or(|p| p == parent))
    }
}
