//! Bringing the receiver's names from the old tree to the new one: steps 1 to 5 of the module's picture.

use super::wire::{Attr, Command};
use super::{Changed, Sender, failed};
use crate::error::{Error, ErrorKind, Result};
use crate::format::inode::{FileType, Inode};
use crate::format::key::objectid::FIRST_FREE as TOP;
use crate::inode::InodeId;
use std::collections::{BTreeMap, BTreeSet};
use varve_block::BlockDevice;

/// Longest path that a receiver takes.
const PATH_MAX: usize = 4095;
/// Deeper trees have no paths that fit.
const DEPTH_MAX: usize = 2048;

/// An access control list without entries: setting it takes away what a new inode inherited.
const NO_ACL: [u8; 4] = [2, 0, 0, 0];
const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

/// Where the receiver is on its way.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Folders whose number was used again: another folder.
    renewed: BTreeSet<u64>,
    /// Inodes that wait in the root, and under which name.
    waiting: BTreeMap<u64, Vec<u8>>,
    /// Names of inodes that are in their final place.
    placed: BTreeMap<u64, Vec<u8>>,
    /// Folders whose times the moving has touched.
    pub(super) touched: BTreeSet<u64>,
}

impl Names {
    pub(super) fn is_renewed(&self, ino: u64) -> bool {
        self.renewed.contains(&ino)
    }

    pub(super) fn renew(&mut self, ino: u64) {
        self.renewed.insert(ino);
    }
}

/// A name that goes or comes: inode, folder, name.
type Name = (u64, u64, Vec<u8>);

impl<D: BlockDevice> Sender<'_, '_, D> {
    pub(super) async fn move_names(&mut self) -> Result<()> {
        let (gone, come) = self.gone_and_come();
        self.detach_folders(&gone).await?;
        self.detach_others(&gone).await?;
        self.remove_folders()?;
        self.place_folders(&come).await?;
        self.place_others(&come).await
    }

    /// Names of the old tree that are not in the new one, and the other way round. A name in a folder
    /// whose number was used again is not the same name.
    fn gone_and_come(&self) -> (Vec<Name>, Vec<Name>) {
        let (mut gone, mut come) = (Vec::new(), Vec::new());
        for (ino, changed) in &self.changes {
            let kept = changed.kept().is_some();
            let stays = |name: &(u64, Vec<u8>)| {
                kept && changed.old_names.contains(name)
                    && changed.new_names.contains(name)
                    && !self.names.is_renewed(name.0)
            };
            let named = |name: &(u64, Vec<u8>)| (*ino, name.0, name.1.clone());
            gone.extend(changed.old_names.iter().filter(|name| !stays(name)).map(named));
            come.extend(changed.new_names.iter().filter(|name| !stays(name)).map(named));
        }
        (gone, come)
    }

    fn changed(&self, ino: u64) -> Result<&Changed> {
        self.changes.get(&ino).ok_or_else(|| {
            Error::corrupt(format!("inode {ino} is the same on both sides, but its names are not"))
        })
    }

    fn was_folder(&self, ino: u64) -> bool {
        let old = self.changes.get(&ino).and_then(|changed| changed.old.as_ref());
        old.is_some_and(|old| old.file_type() == FileType::Directory)
    }

    fn is_folder(&self, ino: u64) -> bool {
        let new = self.changes.get(&ino).and_then(|changed| changed.new.as_ref());
        new.is_some_and(|new| new.file_type() == FileType::Directory)
    }

    /// A name in the root that neither tree has there.
    async fn free_name(&self, ino: u64, generation: u64) -> Result<Vec<u8>> {
        for n in 0u32.. {
            let name = format!("o{ino}-{generation}-{n}").into_bytes();
            let mut taken =
                self.fs.entry(InodeId::root_of(self.new.subvolume.id), &name).await?.is_some();
            if let Some(old) = &self.old {
                let top = InodeId::root_of(old.subvolume.id);
                taken |= self.fs.entry(top, &name).await?.is_some();
            }
            if !taken {
                return Ok(name);
            }
        }
        unreachable!("a folder holds fewer names than there are numbers")
    }

    async fn park(&mut self, ino: u64, from: &[u8]) -> Result<()> {
        let generation = self.changed(ino)?.old.as_ref().map_or(0, |old| old.generation);
        let name = self.free_name(ino, generation).await?;
        self.rename(from, &name)?;
        self.names.touched.insert(TOP);
        self.names.waiting.insert(ino, name);
        Ok(())
    }

    fn rename(&mut self, from: &[u8], to: &[u8]) -> Result<()> {
        let command = self.out.command(Command::Rename).path(from);
        command.bytes(Attr::PathTo, to).send().map_err(failed)
    }

    async fn detach_folders(&mut self, gone: &[Name]) -> Result<()> {
        for (ino, dir, name) in gone {
            if self.was_folder(*ino) {
                let from = self.old_path(*dir, name).await?;
                self.names.touched.insert(*dir);
                self.park(*ino, &from).await?;
            }
        }
        Ok(())
    }

    async fn detach_others(&mut self, gone: &[Name]) -> Result<()> {
        for (ino, dir, name) in gone {
            if self.was_folder(*ino) {
                continue;
            }
            let path = self.old_path(*dir, name).await?;
            self.names.touched.insert(*dir);
            let changed = self.changed(*ino)?;
            let keeps_one = changed
                .old_names
                .iter()
                .any(|name| changed.new_names.contains(name) && !self.names.is_renewed(name.0));
            let wanted = changed.kept().is_some() && !keeps_one;
            if wanted && !self.names.waiting.contains_key(ino) {
                self.park(*ino, &path).await?;
            } else {
                self.out.command(Command::Unlink).path(&path).send().map_err(failed)?;
            }
        }
        Ok(())
    }

    /// What waits in the root and is not in the new tree: folders only, and empty.
    fn remove_folders(&mut self) -> Result<()> {
        let over: Vec<u64> = self.names.waiting.keys().copied().collect();
        for ino in over {
            if self.changed(ino)?.kept().is_none()
                && let Some(name) = self.names.waiting.remove(&ino)
            {
                self.out.command(Command::RmDir).path(&name).send().map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Parents first: each folder's ancestors that are not in place yet are dealt with before it.
    async fn place_folders(&mut self, come: &[Name]) -> Result<()> {
        let mut todo: BTreeMap<u64, (u64, Vec<u8>)> = BTreeMap::new();
        for (ino, dir, name) in come {
            if self.is_folder(*ino) {
                todo.insert(*ino, (*dir, name.clone()));
            }
        }
        while let Some(ino) = todo.keys().next().copied() {
            let mut chain = vec![ino];
            let mut here = ino;
            while here != TOP && chain.len() < DEPTH_MAX {
                let parent = match todo.get(&here) {
                    Some((dir, _)) => *dir,
                    None => self.folder(self.new.subvolume.id, here).await?.0,
                };
                chain.push(parent);
                here = parent;
            }
            if here != TOP {
                return Err(Error::corrupt(format!("inode {ino}: its folders lead in a circle")));
            }
            while let Some(ino) = chain.pop() {
                if let Some((dir, name)) = todo.remove(&ino) {
                    let path = self.new_path(dir, &name).await?;
                    self.names.touched.insert(dir);
                    self.place(ino, dir, path).await?;
                }
            }
        }
        Ok(())
    }

    async fn place_others(&mut self, come: &[Name]) -> Result<()> {
        for (ino, dir, name) in come {
            if !self.is_folder(*ino) {
                let path = self.new_path(*dir, name).await?;
                self.names.touched.insert(*dir);
                self.place(*ino, *dir, path).await?;
            }
        }
        Ok(())
    }

    /// One name that came: of an inode that waits, one that has a name already, or a new one.
    async fn place(&mut self, ino: u64, dir: u64, path: Vec<u8>) -> Result<()> {
        if let Some(from) = self.names.waiting.remove(&ino) {
            self.rename(&from, &path)?;
        } else if let Some(other) = self.placed_name(ino).await? {
            let link = self.out.command(Command::Link).path(&path);
            link.bytes(Attr::PathLink, &other).send().map_err(failed)?;
        } else {
            self.create(ino, dir, &path).await?;
        }
        self.names.placed.entry(ino).or_insert(path);
        Ok(())
    }

    /// A path by which the inode can be reached now.
    async fn placed_name(&mut self, ino: u64) -> Result<Option<Vec<u8>>> {
        if let Some(path) = self.names.placed.get(&ino) {
            return Ok(Some(path.clone()));
        }
        let changed = self.changed(ino)?;
        if changed.kept().is_none() {
            return Ok(None);
        }
        let stays = changed
            .old_names
            .iter()
            .find(|name| changed.new_names.contains(name) && !self.names.is_renewed(name.0));
        match stays.cloned() {
            Some((dir, name)) => self.new_path(dir, &name).await.map(Some),
            None => Ok(None),
        }
    }

    async fn create(&mut self, ino: u64, dir: u64, path: &[u8]) -> Result<()> {
        let Some(inode) = self.changed(ino)?.new else {
            return Err(Error::corrupt(format!("inode {ino} has names, and is not there")));
        };
        let kind = inode.file_type();
        let command = match kind {
            FileType::Regular => Command::MkFile,
            FileType::Directory => Command::MkDir,
            FileType::Symlink => Command::Symlink,
            FileType::CharDevice | FileType::BlockDevice => Command::MkNod,
            FileType::Fifo => Command::MkFifo,
            FileType::Socket => Command::MkSock,
            FileType::Unknown => {
                let message =
                    format!("inode {ino} has mode 0{:o}, which is of no kind", inode.mode);
                return Err(Error::corrupt(message));
            }
        };
        let target = match kind {
            FileType::Symlink => {
                Some(self.fs.read_link(InodeId { root: self.new.subvolume.id, ino }).await?)
            }
            _ => None,
        };
        let mut building = self.out.command(command).path(path).u64(Attr::Ino, ino);
        if let Some(target) = &target {
            building = building.bytes(Attr::PathLink, target);
        } else if !matches!(kind, FileType::Regular | FileType::Directory) {
            building = building.u64(Attr::Rdev, wire_device(&inode));
            building = building.u64(Attr::Mode, inode.mode.into());
        }
        building.send().map_err(failed)?;
        if kind != FileType::Symlink && self.hands_down_an_acl(dir).await? {
            self.no_acl(path, ACL_ACCESS)?;
            if kind == FileType::Directory {
                self.no_acl(path, ACL_DEFAULT)?;
            }
        }
        Ok(())
    }

    /// Whether the receiver's folder gives new inodes a list of its own: it does if it was there
    /// before, for attributes are set after all names.
    async fn hands_down_an_acl(&self, dir: u64) -> Result<bool> {
        let Some(old) = &self.old else { return Ok(false) };
        if self.names.is_renewed(dir) {
            return Ok(false);
        }
        let id = InodeId { root: old.subvolume.id, ino: dir };
        match self.changes.get(&dir) {
            Some(changed) if changed.kept().is_none() => Ok(false),
            _ => Ok(self.fs.xattrs(id).await?.iter().any(|(name, _)| name == ACL_DEFAULT)),
        }
    }

    fn no_acl(&mut self, path: &[u8], name: &[u8]) -> Result<()> {
        let set = self.out.command(Command::SetXattr).path(path).bytes(Attr::XattrName, name);
        set.bytes(Attr::XattrData, &NO_ACL).send().map_err(failed)
    }

    /// The one name of a folder in a tree, and the folder that it is in.
    async fn folder(&mut self, root: u64, ino: u64) -> Result<(u64, Vec<u8>)> {
        if let Some(known) = self.folders.get(&(root, ino)) {
            return Ok(known.clone());
        }
        let names = self.fs.names(InodeId { root, ino }).await?;
        let Some((dir, _, name)) = names.into_iter().next() else {
            return Err(Error::corrupt(format!(
                "root {root} inode {ino}: a folder without a name"
            )));
        };
        self.folders.insert((root, ino), (dir, name.clone()));
        Ok((dir, name))
    }

    /// Where the receiver has a name of the old tree now: folders on the way may wait in the root.
    async fn old_path(&mut self, dir: u64, name: &[u8]) -> Result<Vec<u8>> {
        let root = self.old.as_ref().map_or(0, |old| old.subvolume.id);
        self.path(root, dir, name, true).await
    }

    /// The path of a name of the new tree, once everything on the way is in its place.
    pub(super) async fn new_path(&mut self, dir: u64, name: &[u8]) -> Result<Vec<u8>> {
        self.path(self.new.subvolume.id, dir, name, false).await
    }

    pub(super) async fn path(
        &mut self,
        root: u64,
        dir: u64,
        name: &[u8],
        may_wait: bool,
    ) -> Result<Vec<u8>> {
        let mut parts = vec![name.to_vec()];
        let mut here = dir;
        while here != TOP {
            if may_wait && let Some(name) = self.names.waiting.get(&here) {
                parts.push(name.clone());
                break;
            }
            let (parent, name) = self.folder(root, here).await?;
            parts.push(name);
            here = parent;
            if parts.len() > DEPTH_MAX {
                let message = format!("root {root} inode {dir}: its folders lead in a circle");
                return Err(Error::corrupt(message));
            }
        }
        parts.reverse();
        let path = parts.join(&b'/');
        if path.len() > PATH_MAX {
            let message = format!("a path of {} bytes: no receiver takes it", path.len());
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        Ok(path)
    }
}

/// Device numbers as the stream has them: the low byte of the minor number first, its rest on top.
fn wire_device(inode: &Inode) -> u64 {
    let (major, minor) = inode.device();
    let (major, minor) = (u64::from(major), u64::from(minor));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}
