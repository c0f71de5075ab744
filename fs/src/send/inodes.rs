//! What an inode is besides its names: contents, owner, mode, attributes, times, in this order: a write
//! drops capabilities and a change of owner drops set-user-id bits, so each comes before what it would
//! undo.

use super::compare::Differs;
use super::wire::{Attr, Command};
use super::{Changed, Sender, failed};
use crate::error::Result;
use crate::format::inode::{FileType, Inode};
use crate::format::key::objectid::FIRST_FREE as TOP;
use crate::inode::InodeId;
use std::collections::BTreeMap;
use varve_block::BlockDevice;

const CAPABILITY: &[u8] = b"security.capability";

impl<D: BlockDevice> Sender<'_, '_, D> {
    pub(super) async fn contents(&mut self) -> Result<()> {
        let touched = std::mem::take(&mut self.names.touched);
        let mut all: std::collections::BTreeSet<u64> = self.changes.keys().copied().collect();
        all.extend(&touched);
        for ino in all {
            let changed = match self.changes.get(&ino) {
                Some(changed) => changed.clone(),
                None => self.both_sides(ino, Differs::empty()).await?,
            };
            let Some(new) = changed.new else { continue };
            let path = match changed.new_names.first() {
                _ if ino == TOP => Vec::new(),
                Some((dir, name)) => self.new_path(*dir, name).await?,
                None => continue,
            };
            self.inode(ino, &path, &changed, &new, touched.contains(&ino)).await?;
        }
        Ok(())
    }

    async fn inode(
        &mut self,
        ino: u64,
        path: &[u8],
        changed: &Changed,
        new: &Inode,
        touched: bool,
    ) -> Result<()> {
        let kind = new.file_type();
        // The root of a new subvolume is made by the receiver, with a status of its own.
        let old = changed.kept().map(|(old, _)| *old);
        let mut wrote = false;
        if kind == FileType::Regular {
            wrote = self.file(ino, path, old.as_ref(), new, changed.differs).await?;
        }
        let owner = old.is_none_or(|old| (old.uid, old.gid) != (new.uid, new.gid));
        if owner {
            let chown = self.out.command(Command::Chown).path(path);
            let chown = chown.u64(Attr::Uid, new.uid.into()).u64(Attr::Gid, new.gid.into());
            chown.send().map_err(failed)?;
        }
        let mode = old.is_none_or(|old| old.mode != new.mode);
        if (owner || mode) && kind != FileType::Symlink {
            let chmod = self.out.command(Command::Chmod).path(path);
            chmod.u64(Attr::Mode, (new.mode & 0o7777).into()).send().map_err(failed)?;
        }
        let attributes = old.is_none() || changed.differs.contains(Differs::XATTRS);
        if attributes || wrote || owner {
            self.attributes(ino, path, old.is_some(), attributes, wrote || owner).await?;
        }
        let times = old.is_none_or(|old| {
            (old.atime, old.mtime, old.ctime) != (new.atime, new.mtime, new.ctime)
        });
        if times || touched || wrote || owner || mode || attributes {
            let mut utimes = self.out.command(Command::Utimes).path(path);
            utimes = utimes.time(Attr::Atime, new.atime).time(Attr::Mtime, new.mtime);
            utimes = utimes.time(Attr::Ctime, new.ctime);
            utimes.send().map_err(failed)?;
        }
        Ok(())
    }

    /// Sets what is new or different, removes what went. What a write or a new owner has taken away is
    /// set again.
    async fn attributes(
        &mut self,
        ino: u64,
        path: &[u8],
        kept: bool,
        differ: bool,
        dropped: bool,
    ) -> Result<()> {
        let new = self.fs.xattrs(InodeId { root: self.new.subvolume.id, ino }).await?;
        let old = match &self.old {
            Some(old) if kept => self.fs.xattrs(InodeId { root: old.subvolume.id, ino }).await?,
            _ => Vec::new(),
        };
        let new: BTreeMap<Vec<u8>, Vec<u8>> = new.into_iter().collect();
        let old: BTreeMap<Vec<u8>, Vec<u8>> = old.into_iter().collect();
        for name in old.keys().filter(|name| differ && !new.contains_key(*name)) {
            if dropped && name == CAPABILITY {
                // The receiver's kernel has removed it, or not: set, it can be removed for sure.
                let value = old.get(name).map_or(&[][..], Vec::as_slice);
                let set = self.out.command(Command::SetXattr).path(path);
                let set = set.bytes(Attr::XattrName, name).bytes(Attr::XattrData, value);
                set.send().map_err(failed)?;
            }
            let remove = self.out.command(Command::RemoveXattr).path(path);
            remove.bytes(Attr::XattrName, name).send().map_err(failed)?;
        }
        for (name, value) in &new {
            let again = dropped && name == CAPABILITY;
            if again || (differ && old.get(name) != Some(value)) {
                let set = self.out.command(Command::SetXattr).path(path);
                let set = set.bytes(Attr::XattrName, name).bytes(Attr::XattrData, value);
                set.send().map_err(failed)?;
            }
        }
        Ok(())
    }
}
