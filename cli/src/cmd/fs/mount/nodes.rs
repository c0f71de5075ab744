//! Numbers for inodes. A mount has one number space, a btrfs one in each subvolume.
//!
//! What lies in the subvolume at the top keeps its number. Others are `tree << 47 | inode`, which stays
//! the same from mount to mount; the few that do not fit, and the empty folders that a snapshot shows
//! in place of nested subvolumes, get numbers of their own with the top bit set, in the order seen.

use std::cell::RefCell;
use std::collections::HashMap;
use varve_fs::InodeId;
use varve_fs::format::key::objectid;

/// The kernel's number of the root directory.
pub(super) const ROOT: u64 = 1;
const INODE_BITS: u32 = 47;
const TREE_LIMIT: u64 = 1 << 16;
const SEEN: u64 = 1 << 63;

/// An inode, or one of the empty folders, which all share one inode number and so need the place
/// where they were seen.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Node {
    pub(super) id: InodeId,
    pub(super) place: Option<(InodeId, Vec<u8>)>,
}

impl Node {
    pub(super) fn new(parent: InodeId, name: &[u8], id: InodeId) -> Node {
        let place = id.is_empty_folder().then(|| (parent, name.to_vec()));
        Node { id, place }
    }
}

pub(super) struct Nodes {
    top: InodeId,
    seen: RefCell<Seen>,
}

#[derive(Default)]
struct Seen {
    numbers: HashMap<Node, u64>,
    nodes: Vec<Node>,
}

impl Nodes {
    pub(super) fn new(top: InodeId) -> Nodes {
        Nodes { top, seen: RefCell::default() }
    }

    pub(super) fn number(&self, node: &Node) -> u64 {
        let InodeId { root, ino } = node.id;
        if node.id == self.top {
            return ROOT;
        }
        if node.place.is_none() && ino >= objectid::FIRST_FREE && ino >> INODE_BITS == 0 {
            if root == self.top.root {
                return ino;
            }
            if root < TREE_LIMIT {
                return root << INODE_BITS | ino;
            }
        }
        let mut seen = self.seen.borrow_mut();
        if let Some(number) = seen.numbers.get(node) {
            return *number;
        }
        let number = SEEN | seen.nodes.len() as u64;
        seen.numbers.insert(node.clone(), number);
        seen.nodes.push(node.clone());
        number
    }

    /// The inode that a number was given to.
    pub(super) fn id(&self, number: u64) -> Option<InodeId> {
        if number == ROOT {
            return Some(self.top);
        }
        if number & SEEN != 0 {
            let at = usize::try_from(number & !SEEN).ok()?;
            return self.seen.borrow().nodes.get(at).map(|node| node.id);
        }
        let (root, ino) = (number >> INODE_BITS, number & ((1 << INODE_BITS) - 1));
        Some(InodeId { root: if root == 0 { self.top.root } else { root }, ino })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn numbers_lead_back_and_are_distinct() {
        let top = InodeId::root_of(5);
        let nodes = Nodes::new(top);
        let mut numbers = HashSet::new();
        let ids = [5, 256, 65_535, 65_536, 1 << 47].into_iter().flat_map(|root| {
            [256, 257, (1 << 47) - 1, 1 << 47, u64::MAX - 300]
                .map(|ino| Node { id: InodeId { root, ino }, place: None })
        });
        for node in ids {
            let number = nodes.number(&node);
            assert!(numbers.insert(number), "{node:?} shares {number}");
            assert_eq!(nodes.id(number), Some(node.id));
            assert_eq!(nodes.number(&node), number);
        }
        assert_eq!(nodes.number(&Node { id: top, place: None }), ROOT);
        assert_eq!(nodes.number(&Node { id: InodeId { root: 5, ino: 300 }, place: None }), 300);
    }
}
