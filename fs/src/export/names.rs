//! Names in folders: by the index, by their hashes where that has gaps, and from older states where both
//! have.

use super::older::Age;
use super::place::Folder;
use super::report::ProblemKind;
use super::scan::Scan;
use super::walk::Walk;
use crate::format::dir::DirItem;
use crate::format::inode::{FileType, InodeRef};
use crate::format::key::{ItemType, Key};
use crate::inode::InodeId;
use crate::tree::cursor::Tree;
use std::collections::BTreeSet;
use std::rc::Rc;
use varve_block::BlockDevice;

/// A name in a folder, before it is known what it leads to.
pub(crate) struct Name {
    pub(crate) name: Vec<u8>,
    pub(crate) target: InodeId,
    pub(crate) kind: FileType,
    pub(crate) subvolume: bool,
    /// What today's tree says of it is lost.
    pub(crate) age: Option<Age>,
}

/// The names of one kind of item, and what was lost on the way.
#[derive(Default)]
struct Listed {
    names: Vec<Name>,
    lost: Option<String>,
}

impl<D: BlockDevice> Walk<'_, D> {
    /// The names in a folder. The hashes of names stand elsewhere in the tree than the index.
    pub(crate) async fn names(
        &mut self,
        tree: &Tree,
        id: InodeId,
        folder: &Rc<Folder>,
    ) -> Vec<Name> {
        let index = self.names_in(tree, id, ItemType::DIR_INDEX).await;
        let Some(why) = index.lost else { return index.names };
        let hashes = self.names_in(tree, id, ItemType::DIR_ITEM).await;
        let whole = hashes.lost.is_none();
        let all = index.names.into_iter().chain(hashes.names);
        let (then, mut names): (Vec<Name>, Vec<Name>) = all.partition(|name| name.age.is_some());
        let mut known = BTreeSet::new();
        names.retain(|name| known.insert(name.name.clone()));
        if whole {
            // What the other list does not have was removed since.
            return names;
        }
        self.incomplete.insert((id.root, id.ino));
        names.extend(then.into_iter().filter(|name| known.insert(name.name.clone())));
        let kind = ProblemKind::Directory;
        self.problem(folder.path(), kind, format!("names may be missing: {why}"));
        names
    }

    async fn names_in(&self, tree: &Tree, id: InodeId, kind: ItemType) -> Listed {
        let (first, last) = (Key::new(id.ino, kind, 0), Key::new(id.ino, kind, u64::MAX));
        let mut scan = Scan::seek(&self.fs.volume, self.bad, tree, first).await;
        let mut listed = Listed::default();
        while let Some(item) = scan.next_to(last).await {
            if (item.key().objectid, item.key().kind) != (id.ino, kind) {
                continue; // out of order, in a block that broke a rule
            }
            for entry in DirItem::each(item.data()) {
                match entry {
                    Ok(entry) => listed.names.push(named(id, &entry, item.age)),
                    Err(wrong) => listed.lost = Some(wrong.to_string()),
                }
            }
        }
        let met = scan.gaps.iter().find(|met| met.gap.touches(first, last));
        listed.lost = listed.lost.or_else(|| met.map(|met| met.gap.why.clone()));
        listed
    }

    /// What today's tree says of a name that an older state has, by the inode that it led to.
    pub(crate) async fn today(&self, tree: &Tree, dir: u64, name: &Name) -> Today {
        let key = |kind, offset| Key::new(name.target.ino, kind, offset);
        let first = key(ItemType::INODE_ITEM, 0);
        let last = key(ItemType::INODE_EXTREF, u64::MAX);
        let mut scan = Scan::seek(&self.fs.volume, self.bad, tree, first).await;
        let is_it = |entry: &InodeRef<'_>| entry.parent == dir && entry.name == name.name;
        while let Some(item) = scan.next_to(last).await {
            let data = item.data();
            let has = match item.key().kind {
                ItemType::INODE_REF => {
                    InodeRef::each(data, item.key().offset).flatten().any(|entry| is_it(&entry))
                }
                ItemType::INODE_EXTREF => {
                    InodeRef::each_ext(data).flatten().any(|entry| is_it(&entry))
                }
                _ => false,
            };
            if has && item.age.is_none() {
                return Today::There;
            }
        }
        match scan.gaps.iter().any(|met| met.gap.touches(first, last)) {
            true => Today::Unknown,
            false => Today::Gone,
        }
    }
}

/// Whether a name is still there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Today {
    /// The inode has it.
    There,
    /// There is no such inode, or it has other names.
    Gone,
    /// What would tell is lost, too.
    Unknown,
}

fn named(dir: InodeId, entry: &DirItem<'_>, age: Option<Age>) -> Name {
    let subvolume = entry.is_subvolume();
    let target = match subvolume {
        true => InodeId::root_of(entry.location.objectid),
        false => InodeId { root: dir.root, ino: entry.location.objectid },
    };
    let kind = FileType::from_dir_type(entry.kind);
    Name { name: entry.name.to_vec(), target, kind, subvolume, age }
}
