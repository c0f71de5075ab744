//! A name stands in three places: DIR_ITEM by its hash, DIR_INDEX by its number, and INODE_REF or
//! INODE_EXTREF with the inode it leads to. A tree's names are sound when the three agree.

use super::finding::{Code, Findings};
use super::sums::{Buckets, Unbalanced, mix, name_word};
use crate::error::Place;
use crate::format::key::{ItemType, Key};
use std::collections::BTreeMap;

/// Error bits of a name, as the reference checker prints them.
mod bit {
    pub(super) const NO_DIR_ITEM: u32 = 0x1;
    pub(super) const NO_DIR_INDEX: u32 = 0x2;
    pub(super) const NO_INODE_REF: u32 = 0x4;
    pub(super) const DUP_DIR_ITEM: u32 = 0x8;
    pub(super) const DUP_DIR_INDEX: u32 = 0x10;
    pub(super) const DUP_INODE_REF: u32 = 0x20;
    pub(super) const INDEX_MISMATCH: u32 = 0x40;
    pub(super) const FILETYPE_MISMATCH: u32 = 0x80;
}

const TEXTS: [(u32, &str); 8] = [
    (bit::NO_DIR_ITEM, "no dir item"),
    (bit::NO_DIR_INDEX, "no dir index"),
    (bit::NO_INODE_REF, "no inode ref"),
    (bit::DUP_DIR_ITEM, "dup dir item"),
    (bit::DUP_DIR_INDEX, "dup dir index"),
    (bit::DUP_INODE_REF, "dup inode ref"),
    (bit::INDEX_MISMATCH, "index mismatch"),
    (bit::FILETYPE_MISMATCH, "filetype mismatch"),
];

/// Where a name was found.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum From {
    Item,
    Index(u64),
    Inode(u64),
}

/// One sighting of a name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Seen {
    parent: u64,
    name: Vec<u8>,
    child: u64,
    subvolume: bool,
    from: From,
    /// Type byte of a directory entry.
    kind: u8,
}

/// Names kept by a listing pass.
const LISTED_MAX: usize = 1 << 20;

pub(crate) enum Names {
    Sum(Box<Buckets>),
    List { bad: Unbalanced, seen: Vec<Seen>, types: BTreeMap<u64, u8> },
}

/// A directory entry on its way in.
pub(crate) struct Entry<'a> {
    pub(crate) parent: u64,
    pub(crate) name: &'a [u8],
    pub(crate) location: Key,
    pub(crate) kind: u8,
}

impl Names {
    pub(crate) fn summing() -> Names {
        Names::Sum(Box::new(Buckets::new()))
    }

    /// The second pass, when the sums of the first did not balance.
    pub(crate) fn settle(&mut self) -> Option<Names> {
        let Names::Sum(sums) = self else { return None };
        let bad = sums.settle()?;
        Some(Names::List { bad, seen: Vec::new(), types: BTreeMap::new() })
    }

    /// An entry of DIR_ITEM, or of DIR_INDEX with its number.
    pub(crate) fn entry(&mut self, entry: &Entry<'_>, index: Option<u64>) {
        let Entry { parent, name, location, kind } = *entry;
        let word = name_word(name);
        let subject = parent ^ word;
        let subvolume = location.kind == ItemType::ROOT_ITEM;
        match self {
            Names::Sum(sums) => {
                let child = location.objectid;
                let as_entry = [1, parent, child, subvolume.into(), word, kind.into()];
                let Some(index) = index else {
                    sums.claim(subject, mix(&as_entry), 1);
                    return;
                };
                sums.find(subject, mix(&as_entry), 1);
                if !subvolume {
                    sums.claim(subject, mix(&[2, parent, child, index, word]), 1);
                    sums.claim(child, mix(&[3, child, kind.into()]), 1);
                }
            }
            Names::List { bad, seen, .. } => {
                let child = location.objectid;
                if seen.len() < LISTED_MAX && (bad.has(subject) || (!subvolume && bad.has(child))) {
                    let from = index.map_or(From::Item, From::Index);
                    seen.push(Seen { parent, name: name.to_vec(), child, subvolume, from, kind });
                }
            }
        }
    }

    /// A name that an inode says it has. A root directory's ".." stands nowhere else.
    pub(crate) fn inode_ref(&mut self, child: u64, parent: u64, index: u64, name: &[u8]) {
        let word = name_word(name);
        let subject = parent ^ word;
        match self {
            Names::Sum(sums) => sums.find(subject, mix(&[2, parent, child, index, word]), 1),
            Names::List { bad, seen, .. } => {
                if seen.len() < LISTED_MAX && (bad.has(subject) || bad.has(child)) {
                    let from = From::Inode(index);
                    let name = name.to_vec();
                    seen.push(Seen { parent, name, child, subvolume: false, from, kind: 0 });
                }
            }
        }
    }

    /// An inode's type, as its entries must have it, once for each of its `names`.
    pub(crate) fn inode_type(&mut self, inode: u64, kind: u8, names: u64) {
        match self {
            Names::Sum(sums) => sums.find(inode, mix(&[3, inode, kind.into()]), names),
            Names::List { bad, types, .. } => {
                if types.len() < LISTED_MAX && bad.has(inode) {
                    types.insert(inode, kind);
                }
            }
        }
    }

    /// Tells what is wrong with each name of the listing.
    pub(crate) fn report(self, root: u64, findings: &Findings) {
        let Names::List { mut seen, types, .. } = self else { return };
        seen.sort_unstable();
        let same = |a: &Seen, b: &Seen| {
            (a.parent, &a.name, a.child, a.subvolume) == (b.parent, &b.name, b.child, b.subvolume)
        };
        for group in seen.chunk_by(same) {
            judge(root, group, &types, findings);
        }
    }
}

fn judge(root: u64, group: &[Seen], types: &BTreeMap<u64, u8>, findings: &Findings) {
    let Some(first) = group.first() else { return };
    let count = |wanted: fn(&From) -> bool| group.iter().filter(|s| wanted(&s.from)).count();
    let items = count(|from| matches!(from, From::Item));
    let indexes = count(|from| matches!(from, From::Index(_)));
    let refs = count(|from| matches!(from, From::Inode(_)));
    let mut errors = 0;
    let mut note = |wrong: bool, bit: u32| {
        if wrong {
            errors |= bit;
        }
    };
    note(items == 0, bit::NO_DIR_ITEM);
    note(indexes == 0, bit::NO_DIR_INDEX);
    note(refs == 0 && !first.subvolume, bit::NO_INODE_REF);
    note(items > 1, bit::DUP_DIR_ITEM);
    note(indexes > 1, bit::DUP_DIR_INDEX);
    note(refs > 1, bit::DUP_INODE_REF);
    let number = |s: &Seen| match s.from {
        From::Item => None,
        From::Index(n) | From::Inode(n) => Some(n),
    };
    let mut numbers = group.iter().filter_map(number);
    let index = numbers.next();
    note(numbers.any(|n| Some(n) != index), bit::INDEX_MISMATCH);
    let kinds: Vec<u8> =
        group.iter().filter(|s| !matches!(s.from, From::Inode(_))).map(|s| s.kind).collect();
    let real = if first.subvolume { Some(2) } else { types.get(&first.child).copied() };
    let kind = kinds.first().copied().or(real);
    note(kinds.iter().any(|k| Some(*k) != kind), bit::FILETYPE_MISMATCH);
    note(real.is_some_and(|real| kinds.iter().any(|k| *k != real)), bit::FILETYPE_MISMATCH);
    if errors == 0 {
        return;
    }
    let texts: Vec<_> =
        TEXTS.iter().filter(|(bit, _)| errors & bit != 0).map(|(_, text)| *text).collect();
    let Seen { parent, name, child, .. } = first;
    let message = format!(
        "root {root} inode {child}: unresolved ref dir {parent} index {} namelen {} name {} \
         filetype {} errors {errors:x}, {}",
        index.unwrap_or(0),
        name.len(),
        name.escape_ascii(),
        kind.unwrap_or(0),
        texts.join(", ")
    );
    // The directory can be found even if the child cannot.
    let inode = if refs > 0 { *child } else { *parent };
    let place = Place { root: Some(root), inode: Some(inode), ..Place::default() };
    findings.add(Code::Name, place, message);
}
