//! Directories and paths (format: btrfs 10.3).

use crate::csum::name_hash;
use crate::error::{Error, ErrorKind, Place, Result};
use crate::format::dir::DirItem;
use crate::format::inode::{FileType, InodeRef};
use crate::format::key::{ItemType, Key, objectid};
use crate::fs::Fs;
use crate::inode::InodeId;
use crate::tree::cursor::{Cursor, find};
use varve_block::BlockDevice;

/// As many symbolic links as the kernel follows in one path.
const LINKS_MAX: usize = 40;
/// As long a path as the kernel takes, after links were followed.
const PATH_MAX: usize = 4096;

/// One name in a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirEntry {
    pub name: Vec<u8>,
    pub id: InodeId,
    /// As the entry has it; the inode's mode decides.
    pub kind: FileType,
    /// Position in the directory: pass it to [`Fs::read_dir`] to go on behind this entry.
    pub index: u64,
}

impl<D: BlockDevice> Fs<D> {
    /// The directory that `/` is.
    pub fn top(&self) -> InodeId {
        InodeId::root_of(self.top)
    }

    /// Up to `limit` names of a directory behind position `after` (0: from the start), in the order
    /// they were made, without `.` and `..`.
    pub async fn read_dir(&self, dir: InodeId, after: u64, limit: usize) -> Result<Vec<DirEntry>> {
        self.require_dir(dir).await?;
        let mut entries = Vec::new();
        if dir.is_placeholder() {
            return Ok(entries);
        }
        let subvolume = self.subvolume(dir.root).await?;
        let key = |index| Key::new(dir.ino, ItemType::DIR_INDEX, index);
        let mut cursor =
            Cursor::seek(&self.volume, &subvolume.tree, key(after.saturating_add(1))).await?;
        while entries.len() < limit
            && let Some(item) = cursor.next_to(key(u64::MAX)).await?
        {
            for entry in DirItem::each(item.data()) {
                let entry = entry.map_err(|wrong| damaged(dir, &wrong))?;
                let kind = FileType::from_dir_type(entry.kind);
                let name = entry.name.to_vec();
                let id = self.target(dir, &entry).await?;
                entries.push(DirEntry { name, id, kind, index: item.key().offset });
            }
        }
        Ok(entries)
    }

    /// The inode called `name` in `dir`.
    pub async fn entry(&self, dir: InodeId, name: &[u8]) -> Result<Option<InodeId>> {
        self.require_dir(dir).await?;
        match name {
            b"." => return Ok(Some(dir)),
            b".." => return self.parent(dir).await.map(Some),
            _ if dir.is_placeholder() => return Ok(None),
            _ => (),
        }
        let subvolume = self.subvolume(dir.root).await?;
        let key = Key::new(dir.ino, ItemType::DIR_ITEM, name_hash(name));
        let Some(item) = find(&self.volume, &subvolume.tree, key).await? else {
            return Ok(None);
        };
        for entry in DirItem::each(item.data()) {
            let entry = entry.map_err(|wrong| damaged(dir, &wrong))?;
            if entry.name == name {
                return self.target(dir, &entry).await.map(Some);
            }
        }
        Ok(None)
    }

    async fn require_dir(&self, id: InodeId) -> Result<()> {
        if self.inode(id).await?.file_type() == FileType::Directory {
            return Ok(());
        }
        Err(Error::new(ErrorKind::NotADirectory, format!("{id} is not a directory")))
    }

    /// Where an entry leads. Into another subvolume only if that one hangs here: a snapshot copies
    /// the entries of subvolumes nested in its source, but not the subvolumes.
    async fn target(&self, dir: InodeId, entry: &DirItem<'_>) -> Result<InodeId> {
        if !entry.is_subvolume() {
            return Ok(InodeId { root: dir.root, ino: entry.location.objectid });
        }
        let child = entry.location.objectid;
        let key = Key::new(dir.root, ItemType::ROOT_REF, child);
        match find(&self.volume, &self.root_tree(), key).await? {
            Some(_) => Ok(InodeId::root_of(child)),
            None => Ok(InodeId::placeholder(dir.root)),
        }
    }

    /// The directory that holds `dir`; the top is its own parent.
    pub(crate) async fn parent(&self, dir: InodeId) -> Result<InodeId> {
        if dir == self.top() || dir.is_placeholder() {
            return Ok(self.top());
        }
        if dir.ino == objectid::FIRST_FREE {
            return self.parent_of_subvolume(dir.root).await;
        }
        let subvolume = self.subvolume(dir.root).await?;
        let key = |offset| Key::new(dir.ino, ItemType::INODE_REF, offset);
        let mut cursor = Cursor::seek(&self.volume, &subvolume.tree, key(0)).await?;
        match cursor.next_to(key(u64::MAX)).await? {
            Some(item) => Ok(InodeId { root: dir.root, ino: item.key().offset }),
            None => Err(Error::corrupt(format!("{dir}: a directory without a parent"))),
        }
    }

    async fn parent_of_subvolume(&self, id: u64) -> Result<InodeId> {
        let key = |offset| Key::new(id, ItemType::ROOT_BACKREF, offset);
        let root_tree = self.root_tree();
        let mut cursor = Cursor::seek(&self.volume, &root_tree, key(0)).await?;
        let Some(item) = cursor.next_to(key(u64::MAX)).await? else {
            return Ok(self.top()); // the top level, or one that hangs nowhere
        };
        let back = crate::format::root::RootRef::parse(item.data())
            .map_err(|wrong| Error::corrupt(format!("root reference {}: {wrong}", item.key())))?;
        Ok(InodeId { root: item.key().offset, ino: back.dirid })
    }

    /// The inode at `path`, from `/` on. Symbolic links on the way are followed, a last one is not.
    pub async fn lookup(&self, path: impl AsRef<[u8]>) -> Result<InodeId> {
        self.walk(path.as_ref(), false).await
    }

    /// As [`Fs::lookup`], and a last symbolic link is followed too.
    pub async fn resolve(&self, path: impl AsRef<[u8]>) -> Result<InodeId> {
        self.walk(path.as_ref(), true).await
    }

    async fn walk(&self, path: &[u8], follow_last: bool) -> Result<InodeId> {
        let shown = || path.escape_ascii().to_string();
        let fail = |kind, why| Err(Error::new(kind, format!("{}: {why}", shown())));
        let mut here = self.top();
        let mut links = 0;
        // Components still to go, the next one last.
        let mut rest: Vec<Vec<u8>> = components(path);
        while let Some(name) = rest.pop() {
            let next = match self.entry(here, &name).await {
                Ok(Some(next)) => next,
                Ok(None) => return fail(ErrorKind::NotFound, "no such file or directory"),
                Err(error) if error.kind == ErrorKind::NotADirectory => {
                    return fail(ErrorKind::NotADirectory, "not a directory");
                }
                Err(error) => return Err(error),
            };
            let follow = follow_last || !rest.is_empty();
            if !follow || self.inode(next).await?.file_type() != FileType::Symlink {
                here = next;
                continue;
            }
            links += 1;
            if links > LINKS_MAX {
                return fail(ErrorKind::Loop, "too many symbolic links");
            }
            let target = self.read_link(next).await?;
            if target.starts_with(b"/") {
                here = self.top();
            }
            rest.extend(components(&target));
            if rest.iter().map(Vec::len).sum::<usize>() > PATH_MAX {
                return fail(ErrorKind::Loop, "path too long");
            }
        }
        Ok(here)
    }

    /// Every name of an inode in its own tree: (parent directory, index, name).
    pub async fn names(&self, id: InodeId) -> Result<Vec<(u64, u64, Vec<u8>)>> {
        let subvolume = self.subvolume(id.root).await?;
        let key = |kind, offset| Key::new(id.ino, kind, offset);
        let mut cursor =
            Cursor::seek(&self.volume, &subvolume.tree, key(ItemType::INODE_REF, 0)).await?;
        let mut names = Vec::new();
        while let Some(item) = cursor.next_to(key(ItemType::INODE_EXTREF, u64::MAX)).await? {
            let mut take = |entry: Result<InodeRef<'_>, _>| -> Result<()> {
                let entry = entry.map_err(|wrong| damaged(id, &wrong))?;
                names.push((entry.parent, entry.index, entry.name.to_vec()));
                Ok(())
            };
            if item.key().kind == ItemType::INODE_REF {
                InodeRef::each(item.data(), item.key().offset).try_for_each(&mut take)?;
            } else {
                InodeRef::each_ext(item.data()).try_for_each(&mut take)?;
            }
        }
        Ok(names)
    }
}

/// The parts of a path, the first one last.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|&byte| byte == b'/').filter(|part| !part.is_empty());
    let mut parts: Vec<_> = parts.map(<[u8]>::to_vec).collect();
    parts.reverse();
    parts
}

fn damaged(id: InodeId, wrong: &crate::format::Wrong) -> Error {
    let place = Place { root: Some(id.root), inode: Some(id.ino), ..Place::default() };
    Error::corrupt(format!("{id}: {wrong}")).at(place)
}
