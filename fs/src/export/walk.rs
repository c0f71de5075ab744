//! The reading half of an export: from folder to folder, and what hangs nowhere at the end.

use super::data::DataReader;
use super::file::{Copying, Said};
use super::names::{Name, Today};
use super::older::Age;
use super::pipe::Pipe;
use super::place::{Folder, InodeSet, is_one_name};
use super::report::{Problem, ProblemKind, Report};
use super::roots::FileTrees;
use super::scan::{BadBlocks, Scan};
use super::sink::{Meta, Op, Outcome, Spot};
use super::{Options, Progress};
use crate::error::{Error, ErrorKind, Result};
use crate::format::dir::DirItem;
use crate::format::inode::{FileType, Inode, InodeRef};
use crate::format::key::{ItemType, Key, objectid};
use crate::fs::Fs;
use crate::inode::InodeId;
use crate::tree::cursor::Tree;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use varve_block::BlockDevice;

/// Where files go whose folder was lost.
const LOST_AND_FOUND: &[u8] = b"varve-lost+found";

enum Step {
    Enter(Rc<Folder>, InodeId),
    /// Everything in the folder was written: now its own status.
    Leave(Rc<Folder>, Meta),
}

/// The folder that was opened last.
struct Open {
    folder: Rc<Folder>,
    dir: Arc<OwnedFd>,
    was_there: bool,
}

pub(crate) struct Walk<'a, D: BlockDevice> {
    pub(crate) fs: &'a Fs<D>,
    pub(crate) bad: &'a BadBlocks,
    pub(crate) options: &'a Options,
    pub(crate) trees: FileTrees,
    pub(crate) report: Report,
    pub(crate) pipe: Pipe,
    pub(crate) data: DataReader,
    /// Where files with several names were written first.
    pub(crate) links: BTreeMap<InodeId, (Rc<Folder>, Vec<u8>)>,
    /// Where the top of each tree went.
    tops: BTreeMap<u64, Rc<Folder>>,
    dest: Arc<OwnedFd>,
    open: Option<Open>,
    /// Folders some of whose names are lost.
    pub(crate) incomplete: BTreeSet<(u64, u64)>,
    /// The extent tree, once it was asked for.
    pub(crate) extents: Option<Option<Tree>>,
    seen: InodeSet,
    steps: Vec<Step>,
    progress: Progress<'a>,
    full: Option<Error>,
}

impl<'a, D: BlockDevice> Walk<'a, D> {
    pub(crate) fn new(
        (fs, bad, options): (&'a Fs<D>, &'a BadBlocks, &'a Options),
        trees: FileTrees,
        pipe: Pipe,
        dest: OwnedFd,
        progress: Progress<'a>,
    ) -> Walk<'a, D> {
        Walk {
            fs,
            bad,
            options,
            trees,
            report: Report::default(),
            pipe,
            data: DataReader::default(),
            links: BTreeMap::new(),
            tops: BTreeMap::new(),
            dest: Arc::new(dest),
            open: None,
            incomplete: BTreeSet::new(),
            extents: None,
            seen: InodeSet::default(),
            steps: Vec::new(),
            progress,
            full: None,
        }
    }

    pub(crate) fn tree(&self, id: u64) -> Option<Tree> {
        self.trees.by_id.get(&id).map(|tree| tree.tree)
    }

    pub(crate) fn problem(&mut self, path: Vec<u8>, kind: ProblemKind, why: impl Into<String>) {
        let why = why.into();
        self.report.problems.push(Problem { path, kind, ranges: Vec::new(), why });
    }

    /// Everything below `start`, and what hangs nowhere in the trees that were met.
    pub(crate) async fn all(mut self, start: InodeId) -> Result<Report> {
        self.steps.push(Step::Enter(Folder::root(), start));
        self.run_steps().await;
        // Files whose names were lost with a block: only where the whole tree was asked for.
        if start.ino == objectid::FIRST_FREE {
            let damaged: Vec<u64> =
                self.trees.by_id.keys().copied().filter(|id| self.bad.any_in(*id)).collect();
            for id in damaged {
                if self.tops.contains_key(&id) {
                    self.reattach(id).await;
                    self.run_steps().await;
                }
            }
        }
        if !self.options.dry_run {
            self.pipe.finish().await;
            self.take_outcomes();
        }
        self.report.lost_blocks = self.bad.gaps();
        self.report.suspicious = self.bad.suspicious();
        match self.full {
            Some(error) => Err(error),
            None => Ok(self.report),
        }
    }

    async fn run_steps(&mut self) {
        while let Some(step) = self.steps.pop()
            && self.full.is_none()
        {
            match step {
                Step::Enter(folder, id) => self.enter(folder, id).await,
                Step::Leave(folder, meta) => self.leave(&folder, meta).await,
            }
        }
    }

    pub(crate) async fn push(&mut self, op: Op) {
        self.pipe.push(op).await;
        self.take_outcomes();
    }

    fn take_outcomes(&mut self) {
        for outcome in self.pipe.outcomes() {
            match outcome {
                Outcome::File { bytes, damaged } => {
                    self.report.files += u64::from(!damaged);
                    self.report.bytes += bytes;
                }
                Outcome::Link => self.report.links += 1,
                Outcome::Symlink => self.report.symlinks += 1,
                Outcome::Special => self.report.special += 1,
                Outcome::Failed { path, what } => {
                    self.problem(path, ProblemKind::NotWritten, what);
                }
                Outcome::BadRange { path, at, len, what } => {
                    let range = super::report::Range { at, len, why: what };
                    self.damaged_range(path, range);
                }
                Outcome::Attributes(n) => self.report.attributes_not_set += n,
                Outcome::Full { path, what } => {
                    let message = format!("{}: {what}", path.escape_ascii());
                    self.full.get_or_insert(Error::new(ErrorKind::NoSpace, message));
                }
            }
        }
        (self.progress)(&self.report);
    }

    pub(crate) fn damaged_range(&mut self, path: Vec<u8>, range: super::report::Range) {
        match self.report.problems.last_mut() {
            Some(last) if last.kind == ProblemKind::Damaged && last.path == path => {
                last.ranges.push(range);
            }
            _ => self.report.problems.push(Problem {
                path,
                kind: ProblemKind::Damaged,
                why: range.why.clone(),
                ranges: vec![range],
            }),
        }
    }

    /// The folder's descriptor; `None` (and a problem) when it cannot be opened.
    fn open_folder(&mut self, folder: &Rc<Folder>) -> Option<(Arc<OwnedFd>, bool)> {
        if let Some(open) = &self.open
            && Rc::ptr_eq(&open.folder, folder)
        {
            return Some((Arc::clone(&open.dir), open.was_there));
        }
        match folder.open(&self.dest) {
            Ok((dir, was_there)) => {
                let open = Open { folder: Rc::clone(folder), dir: Arc::clone(&dir), was_there };
                self.open = Some(open);
                Some((dir, was_there))
            }
            Err(errno) => {
                let why = std::io::Error::from(errno).to_string();
                self.problem(folder.path(), ProblemKind::NotWritten, why);
                None
            }
        }
    }

    /// Where `name` goes, and whether its folder may hold something already.
    pub(crate) fn spot(&mut self, folder: &Rc<Folder>, name: &[u8]) -> Option<(Spot, bool)> {
        let (dir, was_there) = self.open_folder(folder)?;
        let (damaged, path) = (folder.damaged_name(name), folder.path_of(name));
        let spot = Spot { dir, name: name.to_vec(), damaged, path, was_there };
        Some((spot, was_there))
    }

    async fn enter(&mut self, folder: Rc<Folder>, id: InodeId) {
        if !self.seen.insert(id.root, id.ino) {
            let why = format!("{id} is reached a second time: a folder has one place");
            self.problem(folder.path(), ProblemKind::NotWritten, why);
            return;
        }
        let Some(tree) = self.tree(id.root) else {
            let why = format!("the root of tree {} is lost", id.root);
            self.problem(folder.path(), ProblemKind::Directory, why);
            return;
        };
        let on_demand = self.options.dry_run || self.options.filter.is_some();
        if !on_demand && self.open_folder(&folder).is_none() {
            return;
        }
        self.report.directories += 1;
        if id.ino == objectid::FIRST_FREE {
            self.tops.insert(id.root, Rc::clone(&folder));
        }
        let (meta, age) = self.status(&tree, id).await;
        if let Some(age) = age.or_else(|| self.bad.stale(id.root)) {
            self.older(folder.path(), age.generation);
        }
        match meta {
            Some(meta) if meta.inode.file_type() == FileType::Directory => {
                self.steps.push(Step::Leave(Rc::clone(&folder), meta));
            }
            _ => {
                let why =
                    format!("the inode item of {id} is lost: mode, owner and times are not set");
                self.problem(folder.path(), ProblemKind::Directory, why);
            }
        }
        let mut below = Vec::new();
        let names = self.names(&tree, id, &folder).await;
        for name in &names {
            folder.has(&name.name);
        }
        for name in names {
            if self.full.is_some() {
                return;
            }
            if let Some(step) = self.name(&folder, id, name).await {
                below.push(step);
            }
        }
        below.reverse();
        self.steps.append(&mut below);
    }

    async fn leave(&mut self, folder: &Rc<Folder>, meta: Meta) {
        if self.options.dry_run {
            return;
        }
        // With filters a folder exists only if something went into it.
        if self.options.filter.is_some() && !folder_exists(folder, &self.dest) {
            return;
        }
        if let Some((dir, _)) = self.open_folder(folder) {
            self.push(Op::Leave { dir, path: folder.path(), meta }).await;
        }
    }

    /// Inode item and attributes, `None` when the item is lost; and how old the item is.
    async fn status(&self, tree: &Tree, id: InodeId) -> (Option<Meta>, Option<Age>) {
        let key = |kind, offset| Key::new(id.ino, kind, offset);
        let first = key(ItemType::INODE_ITEM, 0);
        let mut scan = Scan::seek(&self.fs.volume, self.bad, tree, first).await;
        let (mut meta, mut age) = (None, None);
        let mut xattrs = Vec::new();
        while let Some(item) = scan.next_to(key(ItemType::XATTR_ITEM, u64::MAX)).await {
            match item.key().kind {
                ItemType::INODE_ITEM => {
                    meta = Inode::parse(item.data()).ok();
                    age = item.age;
                }
                ItemType::XATTR_ITEM => add_xattrs(&mut xattrs, item.data()),
                _ => (),
            }
        }
        (meta.map(|inode| Meta { inode, xattrs }), age)
    }

    /// Deals with one name; a folder is returned as a step for later.
    async fn name(&mut self, folder: &Rc<Folder>, dir: InodeId, name: Name) -> Option<Step> {
        if !is_one_name(&name.name) {
            let why = format!("{} is a name that leads elsewhere", name.target);
            self.problem(folder.path_of(&name.name), ProblemKind::NotWritten, why);
            return None;
        }
        if name.subvolume {
            return self.subvolume(folder, dir, &name);
        }
        // Of a subvolume that is all of an older state, so is every name.
        let mut then = name.age.filter(|_| self.bad.stale(dir.root).is_none());
        if then.is_some()
            && let Some(tree) = self.tree(dir.root)
        {
            match self.today(&tree, dir.ino, &name).await {
                Today::There => then = None,
                Today::Unknown => (),
                Today::Gone => {
                    self.report.removed_since += 1;
                    return None;
                }
            }
        }
        if name.kind == FileType::Directory {
            return Some(Step::Enter(folder.child(&name.name), name.target));
        }
        let said = Said { kind: name.kind, age: then };
        match self.copy(folder, &name.name, name.target, said).await {
            Copying::Done => {
                self.seen.insert(name.target.root, name.target.ino);
                None
            }
            // The entry says one thing and the inode another: the inode is right.
            Copying::IsDirectory => Some(Step::Enter(folder.child(&name.name), name.target)),
        }
    }

    fn subvolume(&mut self, folder: &Rc<Folder>, dir: InodeId, name: &Name) -> Option<Step> {
        let id = name.target.root;
        if !self.trees.hangs_in(id, dir.root) {
            // A snapshot shows what was nested in its source as an empty folder.
            if self.trees.by_id.contains_key(&id) || !self.bad.any_in(objectid::ROOT_TREE) {
                if !self.options.dry_run && self.options.filter.is_none() {
                    self.open_folder(&folder.child(&name.name));
                }
                return None;
            }
            let why = format!("the root of subvolume {id} is lost");
            self.problem(folder.path_of(&name.name), ProblemKind::NotWritten, why);
            return None;
        }
        if self.trees.is_snapshot(id) && !self.options.snapshots {
            self.report.snapshots_left_out.push(folder.path_of(&name.name));
            return None;
        }
        Some(Step::Enter(folder.child(&name.name), name.target))
    }

    /// What was not reached in a damaged tree, under the names that the inodes themselves have.
    async fn reattach(&mut self, id: u64) {
        let Some(tree) = self.tree(id) else { return };
        let mut scan = Scan::seek(&self.fs.volume, self.bad, &tree, Key::MIN).await;
        // And whether anything of it is of today.
        let mut unreached: BTreeMap<u64, bool> = BTreeMap::new();
        let last = Key::new(objectid::LAST_FREE, ItemType::EXTENT_DATA, u64::MAX);
        while let Some(item) = scan.next_to(last).await {
            let Key { objectid: ino, kind, .. } = item.key();
            if ino <= objectid::FIRST_FREE || self.seen.contains(id, ino) {
                continue;
            }
            match kind {
                // Nothing but what is being deleted has no links.
                ItemType::INODE_ITEM if Inode::parse(item.data()).is_ok_and(|i| i.nlink == 0) => {
                    self.seen.insert(id, ino);
                }
                ItemType::INODE_ITEM | ItemType::EXTENT_DATA | ItemType::DIR_INDEX => {
                    *unreached.entry(ino).or_default() |= item.age.is_none();
                }
                _ => (),
            }
        }
        let stale = self.bad.stale(id).is_some();
        for (ino, today) in unreached {
            if self.full.is_some() || self.seen.contains(id, ino) {
                continue;
            }
            if !today && !stale && self.has_left(&tree, ino).await {
                self.report.removed_since += 1;
                continue;
            }
            let target = InodeId { root: id, ino };
            let (folder, name) = self.place_of(&tree, ino).await;
            self.report.reattached += 1;
            if self.copy(&folder, &name, target, Said::NOTHING).await == Copying::IsDirectory {
                self.steps.push(Step::Enter(folder.child(&name), target));
                self.run_steps().await;
            } else {
                self.seen.insert(id, ino);
            }
        }
    }

    /// Whether an inode that only an older state has is gone since: its folder is whole, and was walked
    /// without coming to it.
    async fn has_left(&self, tree: &Tree, ino: u64) -> bool {
        let Some((parent, _)) = self.own_name(tree, ino).await else { return false };
        self.seen.contains(tree.id, parent) && !self.incomplete.contains(&(tree.id, parent))
    }

    /// The place of an inode by the names that it and its parents have of themselves; where that
    /// breaks off, below [`LOST_AND_FOUND`].
    async fn place_of(&self, tree: &Tree, ino: u64) -> (Rc<Folder>, Vec<u8>) {
        let mut chain = Vec::new();
        let mut here = ino;
        let base = loop {
            let Some((parent, name)) = self.own_name(tree, here).await else {
                chain.push(format!("inode-{here}").into_bytes());
                break None;
            };
            chain.push(name);
            if parent == objectid::FIRST_FREE {
                break self.tops.get(&tree.id).cloned();
            }
            here = parent;
            // Deeper than any path that was made by its name; a circle ends here too.
            if chain.len() > 2048 {
                chain.truncate(1);
                break None;
            }
        };
        let lost = || Folder::root().child(LOST_AND_FOUND).child(tree.id.to_string().as_bytes());
        let mut folder = base.unwrap_or_else(lost);
        let name = chain.remove(0);
        for parent in chain.iter().rev() {
            folder = folder.child(parent);
        }
        (folder, name)
    }

    /// The first usable name of an inode, and the folder it is in.
    async fn own_name(&self, tree: &Tree, ino: u64) -> Option<(u64, Vec<u8>)> {
        let key = |kind, offset| Key::new(ino, kind, offset);
        let (first, last) = (key(ItemType::INODE_REF, 0), key(ItemType::INODE_EXTREF, u64::MAX));
        let mut scan = Scan::seek(&self.fs.volume, self.bad, tree, first).await;
        while let Some(item) = scan.next_to(last).await {
            let entry = match item.key().kind {
                ItemType::INODE_REF => InodeRef::each(item.data(), item.key().offset).next(),
                ItemType::INODE_EXTREF => InodeRef::each_ext(item.data()).next(),
                _ => None,
            };
            if let Some(Ok(entry)) = entry
                && is_one_name(entry.name)
            {
                return Some((entry.parent, entry.name.to_vec()));
            }
        }
        None
    }
}

pub(crate) fn add_xattrs(to: &mut Vec<(Vec<u8>, Vec<u8>)>, item: &[u8]) {
    let entries = DirItem::each(item).filter_map(std::result::Result::ok);
    to.extend(entries.map(|entry| (entry.name.to_vec(), entry.data.to_vec())));
}

/// Whether a folder is there, without making it.
fn folder_exists(folder: &Folder, dest: &Arc<OwnedFd>) -> bool {
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    let path = folder.path();
    path.is_empty() || rustix::fs::statat(&**dest, path, flags).is_ok()
}
