//! Where things go: folders below the destination, as names from the root down, and the sets that keep
//! a walk from going in circles.

use super::sink::enter;
use rustix::io::Errno;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

/// A folder below the destination. The destination itself has neither parent nor name.
#[derive(Debug)]
pub(crate) struct Folder {
    parent: Option<Rc<Folder>>,
    name: Vec<u8>,
    /// Names in it that look like those of damaged copies, and are not.
    lookalikes: RefCell<BTreeSet<Vec<u8>>>,
}

/// Behind the name of a copy that is not whole.
const DAMAGED: &[u8] = b".damaged";

impl Folder {
    pub(crate) fn root() -> Rc<Folder> {
        Rc::new(Folder { parent: None, name: Vec::new(), lookalikes: RefCell::default() })
    }

    pub(crate) fn child(self: &Rc<Folder>, name: &[u8]) -> Rc<Folder> {
        let (parent, lookalikes) = (Some(Rc::clone(self)), RefCell::default());
        Rc::new(Folder { parent, name: name.to_vec(), lookalikes })
    }

    /// The names from the destination down.
    fn names(&self) -> Vec<&[u8]> {
        let mut names = Vec::new();
        let mut here = self;
        while let Some(parent) = &here.parent {
            names.push(here.name.as_slice());
            here = parent;
        }
        names.reverse();
        names
    }

    pub(crate) fn path(&self) -> Vec<u8> {
        self.names().join(&b'/')
    }

    pub(crate) fn path_of(&self, name: &[u8]) -> Vec<u8> {
        let mut path = self.path();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        path
    }

    /// Tells of a name that the folder has on the disk.
    pub(crate) fn has(&self, name: &[u8]) {
        if name.windows(DAMAGED.len()).any(|part| part == DAMAGED) {
            self.lookalikes.borrow_mut().insert(name.to_vec());
        }
    }

    /// The name of a copy that is not whole, also where the name is as long as names may be: one that
    /// nothing on the disk has.
    pub(crate) fn damaged_name(&self, name: &[u8]) -> Vec<u8> {
        let lookalikes = self.lookalikes.borrow();
        let mut suffix = DAMAGED.to_vec();
        let mut n = 1;
        loop {
            let keep = name.len().min(255 - suffix.len());
            let damaged = [name.get(..keep).unwrap_or(name), &suffix].concat();
            if !lookalikes.contains(&damaged) {
                return damaged;
            }
            n += 1;
            suffix = [DAMAGED, format!("-{n}").as_bytes()].concat();
        }
    }

    /// Opens the folder, making what is absent on the way; and whether it was there before.
    pub(crate) fn open(&self, dest: &Arc<OwnedFd>) -> Result<(Arc<OwnedFd>, bool), Errno> {
        let mut here = Arc::clone(dest);
        let mut was_there = true;
        for name in self.names() {
            let (dir, there) = enter(&here, name)?;
            here = Arc::new(dir);
            was_there = there;
        }
        Ok((here, was_there))
    }
}

/// A name that may be used on the host: one component, and not a step upwards.
pub(crate) fn is_one_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && name != b"."
        && name != b".."
        && !name.contains(&b'/')
        && !name.contains(&0)
}

/// Numbers of inodes, in a bit each: file systems have millions, mostly in runs.
#[derive(Debug, Default)]
pub(crate) struct InodeSet(BTreeMap<(u64, u64), u64>);

impl InodeSet {
    fn bit(ino: u64) -> (u64, u64) {
        (ino / 64, 1 << (ino % 64))
    }

    /// `true` when it was not in yet.
    pub(crate) fn insert(&mut self, root: u64, ino: u64) -> bool {
        let (word, bit) = Self::bit(ino);
        let bits = self.0.entry((root, word)).or_default();
        let fresh = *bits & bit == 0;
        *bits |= bit;
        fresh
    }

    pub(crate) fn contains(&self, root: u64, ino: u64) -> bool {
        let (word, bit) = Self::bit(ino);
        self.0.get(&(root, word)).is_some_and(|bits| bits & bit != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_no_names() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0b", &[b'x'; 256]] {
            assert!(!is_one_name(bad), "{}", bad.escape_ascii());
        }
        for good in [&b"a"[..], b"...", b" ", b"\xff\n", &[b'x'; 255]] {
            assert!(is_one_name(good));
        }
    }

    #[test]
    fn a_damaged_copy_takes_no_name_that_the_disk_has() {
        let root = Folder::root();
        assert_eq!(root.damaged_name(b"x"), b"x.damaged");
        for name in [&b"x"[..], b"x.damaged", b"x.damaged-2", &[b'y'; 255]] {
            root.has(name);
        }
        assert_eq!(root.damaged_name(b"x"), b"x.damaged-3");
        assert_eq!(root.damaged_name(b"x.damaged"), b"x.damaged.damaged");
        let long = root.damaged_name(&[b'y'; 255]);
        assert!(long.len() == 255 && long.ends_with(b"y.damaged"));
        root.has(&long);
        assert!(root.damaged_name(&[b'y'; 255]).ends_with(b"y.damaged-2"));
    }

    #[test]
    fn a_folder_knows_its_path() {
        let root = Folder::root();
        let inner = root.child(b"a").child(b"b");
        assert_eq!(inner.path(), b"a/b");
        assert_eq!(inner.path_of(b"c"), b"a/b/c");
        assert_eq!(root.path_of(b"c"), b"c");
    }

    #[test]
    fn numbers_are_in_the_set_once_they_were_put_there() {
        let mut set = InodeSet::default();
        assert!(set.insert(5, 257));
        assert!(!set.insert(5, 257));
        assert!(set.insert(6, 257));
        assert!(set.contains(5, 257));
        assert!(!set.contains(5, 258));
    }

    #[test]
    fn a_link_in_the_place_of_a_folder_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        let dest = dir.path().join("dest");
        std::fs::create_dir(&outside).unwrap();
        std::fs::create_dir(&dest).unwrap();
        std::os::unix::fs::symlink(&outside, dest.join("a")).unwrap();
        let fd = std::fs::File::open(&dest).unwrap();
        let fd: Arc<OwnedFd> = Arc::new(fd.into());
        assert!(Folder::root().child(b"a").child(b"b").open(&fd).is_err());
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
        let (_, there) = Folder::root().child(b"c").child(b"d").open(&fd).unwrap();
        assert!(!there);
        assert!(dest.join("c/d").is_dir());
    }
}
