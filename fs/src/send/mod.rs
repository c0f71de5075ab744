//! Send streams: a read-only snapshot, or what changed from one to another, as commands that
//! `btrfs receive` carries out.
//!
//! # How an incremental stream is made
//! The two trees are compared block by block (`compare`); what is known then is a set of inodes, and
//! what of each is different. The names are brought into order in steps that are simple because each
//! leaves nothing in the way of the next ([`names`]):
//!
//! ```text
//! 1 folders that moved or went:  RENAME to a name of their own in the root     (no circles can arise)
//! 2 other names that went:       UNLINK, or RENAME to the root for an inode's last one
//! 3 folders that went:           RMDIR, empty now
//! 4 folders that came or moved:  MKDIR or RENAME, parents first               (every name is free now)
//! 5 other names that came:       create, RENAME or LINK
//! ```
//! Then, inode by inode: contents ([`data`]), owner, mode, attributes, times.
//!
//! Why not in one pass, as the kernel does? Its pass has to delay moves, orphans and removals against
//! each other, and most of its bugs of ten years were there. The price is a rename more for each folder
//! that moved; the result is the same.
//!
//! The stream depends on the trees' contents alone, not on where blocks lie: the same snapshots make
//! the same bytes.

mod compare;
mod data;
mod inodes;
mod names;
mod wire;

pub use wire::{Attr, Command, Reader, Received, StreamError};

use crate::error::{Error, ErrorKind, Result};
use crate::format::Uuid;
use crate::format::inode::{FileType, Inode};
use crate::format::key::objectid;
use crate::fs::{Fs, Subvolume};
use crate::inode::InodeId;
use compare::{Changes, Differs, compare};
use data::Extents;
use names::Names;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use varve_block::BlockDevice;
use wire::Writer;

/// What to send, by tree ids.
#[derive(Clone, Debug, Default)]
pub struct SendOptions {
    /// The snapshot that the receiver has already; absent: everything is sent.
    pub parent: Option<u64>,
    /// More snapshots that the receiver has, whose data may be referred to.
    pub clone_sources: Vec<u64>,
    /// Protocol version: 1 or 2.
    pub version: u32,
    /// Compressed extents as they are on disk: version 2.
    pub compressed_data: bool,
}

/// What was sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sent {
    pub inodes: u64,
    pub bytes: u64,
}

/// A snapshot that takes part in the stream.
#[derive(Clone, Debug)]
struct Snapshot {
    subvolume: Rc<Subvolume>,
    /// By which the receiver knows it.
    uuid: Uuid,
    ctransid: u64,
}

/// What a changed inode was, and is; an inode without a name is none.
#[derive(Clone, Debug)]
struct Changed {
    differs: Differs,
    old: Option<Inode>,
    new: Option<Inode>,
    old_names: BTreeSet<(u64, Vec<u8>)>,
    new_names: BTreeSet<(u64, Vec<u8>)>,
}

impl Changed {
    /// The same inode on both sides, and not one number used twice.
    fn kept(&self) -> Option<(&Inode, &Inode)> {
        let (old, new) = (self.old.as_ref()?, self.new.as_ref()?);
        let same = old.generation == new.generation && old.file_type() == new.file_type();
        same.then_some((old, new))
    }
}

struct Sender<'a, 'o, D: BlockDevice> {
    fs: &'a Fs<D>,
    options: &'a SendOptions,
    out: Writer<'o>,
    new: Snapshot,
    old: Option<Snapshot>,
    changes: BTreeMap<u64, Changed>,
    names: Names,
    extents: Extents,
    /// Names of folders in the old and the new tree, as they are asked for.
    folders: BTreeMap<(u64, u64), (u64, Vec<u8>)>,
}

/// Writes the stream of subvolume `id` to `out`.
///
/// # Errors
/// `Invalid` for what cannot be sent, before anything was written: a subvolume that is not read-only,
/// or that is being deleted. A damaged tree or unreadable data end the stream without its END command,
/// and the receiver throws away what it has.
pub async fn send<D: BlockDevice>(
    fs: &Fs<D>,
    id: u64,
    options: &SendOptions,
    out: &mut dyn std::io::Write,
) -> Result<Sent> {
    if !(1..=2).contains(&options.version) {
        return Err(Error::unsupported(format!("send protocol {}: 1 or 2", options.version)));
    }
    if options.compressed_data && options.version < 2 {
        return Err(Error::new(ErrorKind::Invalid, "compressed data needs protocol 2"));
    }
    let new = snapshot(fs, id).await?;
    let old = match options.parent {
        Some(parent) => Some(snapshot(fs, parent).await?),
        None => None,
    };
    let mut sources = Vec::new();
    for source in &options.clone_sources {
        sources.push(snapshot(fs, *source).await?);
    }
    let name = name_of(fs, id).await?;
    let volume = &fs.volume;
    let old_tree = old.as_ref().map(|old| old.subvolume.tree);
    let found = compare(volume, old_tree.as_ref(), &new.subvolume.tree).await?;
    let out = Writer::start(out, options.version).map_err(failed)?;
    let extents = Extents::new(fs, old.clone().into_iter().chain(sources).collect()).await?;
    let mut sender = Sender {
        fs,
        options,
        out,
        new,
        old,
        changes: BTreeMap::new(),
        names: Names::default(),
        extents,
        folders: BTreeMap::new(),
    };
    sender.learn(found).await?;
    sender.head(&name)?;
    sender.move_names().await?;
    sender.contents().await?;
    sender.out.command(Command::End).send().map_err(failed)?;
    let inodes = sender.changes.len() as u64;
    Ok(Sent { inodes, bytes: sender.out.written() })
}

/// The receiver's end of the stream went away, or its disk is full.
fn failed(error: std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::StorageFull => ErrorKind::NoSpace,
        std::io::ErrorKind::InvalidInput => ErrorKind::Unsupported,
        _ => ErrorKind::Io,
    };
    Error::new(kind, "the stream cannot be written").because(error)
}

async fn snapshot<D: BlockDevice>(fs: &Fs<D>, id: u64) -> Result<Snapshot> {
    let subvolume = fs.subvolume(id).await?;
    let root = &subvolume.root;
    let refuse = |why: &str| {
        Err(Error::new(ErrorKind::Invalid, format!("subvolume {id} {why}: it cannot be sent")))
    };
    if root.refs == 0 {
        return refuse("is being deleted");
    }
    if !root.is_read_only() {
        return refuse("is not read-only");
    }
    if !root.is_v2() || root.uuid.is_nil() {
        return refuse("has no uuid that a receiver could know it by");
    }
    let received = !root.received_uuid.is_nil();
    let uuid = if received { root.received_uuid } else { root.uuid };
    let ctransid = root.ctransid;
    Ok(Snapshot { subvolume, uuid, ctransid })
}

/// The last component of its path.
async fn name_of<D: BlockDevice>(fs: &Fs<D>, id: u64) -> Result<Vec<u8>> {
    let all = fs.subvolumes().await?;
    let name = all.into_iter().find(|subvolume| subvolume.id == id).and_then(|s| s.parent);
    match name {
        Some((_, _, name)) => Ok(name),
        None => Err(Error::new(ErrorKind::Invalid, format!("subvolume {id} has no name"))),
    }
}

impl<D: BlockDevice> Sender<'_, '_, D> {
    /// Both sides of every inode that differs.
    async fn learn(&mut self, found: Changes) -> Result<()> {
        let mut todo = found;
        while let Some((ino, mut differs)) = todo.pop_first() {
            if let Some(known) = self.changes.get(&ino) {
                differs |= known.differs;
            }
            let changed = self.both_sides(ino, differs).await?;
            // A folder whose number was used again is another folder: what is in it has moved there,
            // also where its name and its folder's number say the same as before.
            let renewed = changed.kept().is_none()
                && changed.old.is_some()
                && changed.new.as_ref().is_some_and(|new| new.file_type() == FileType::Directory);
            if renewed && !self.names.is_renewed(ino) {
                self.names.renew(ino);
                let dir = InodeId { root: self.new.subvolume.id, ino };
                let entries = self.fs.read_dir(dir, 0, usize::MAX).await?;
                for entry in entries.iter().filter(|entry| entry.id.root == dir.root) {
                    *todo.entry(entry.id.ino).or_default() |= Differs::NAMES;
                }
            }
            if changed.old.is_some() || changed.new.is_some() {
                self.changes.insert(ino, changed);
            }
        }
        Ok(())
    }

    async fn both_sides(&self, ino: u64, differs: Differs) -> Result<Changed> {
        let (mut old, mut old_names) = (None, BTreeSet::new());
        if let Some(tree) = &self.old {
            (old, old_names) = self.side(tree.subvolume.id, ino).await?;
        }
        let (new, new_names) = self.side(self.new.subvolume.id, ino).await?;
        if ino == objectid::FIRST_FREE
            && let (Some(old), Some(new)) = (&mut old, &new)
        {
            // The top is the top, also of a parent that the snapshot does not descend from.
            old.generation = new.generation;
        }
        Ok(Changed { differs, old, new, old_names, new_names })
    }

    /// Inode and names; nothing for one that is not there, or was unlinked while in use.
    async fn side(&self, root: u64, ino: u64) -> Result<(Option<Inode>, BTreeSet<(u64, Vec<u8>)>)> {
        let id = InodeId { root, ino };
        let inode = match self.fs.inode(id).await {
            Ok(inode) => inode,
            Err(error) if error.kind == ErrorKind::NotFound => return Ok((None, BTreeSet::new())),
            Err(error) => return Err(error),
        };
        if ino == objectid::FIRST_FREE {
            return Ok((Some(inode), BTreeSet::new()));
        }
        let names = self.fs.names(id).await?;
        let names: BTreeSet<_> = names.into_iter().map(|(dir, _, name)| (dir, name)).collect();
        let inode = (!names.is_empty()).then_some(inode);
        Ok((inode, names))
    }

    fn head(&mut self, name: &[u8]) -> Result<()> {
        let (uuid, ctransid) = (self.new.uuid, self.new.ctransid);
        let command = match self.old {
            None => Command::Subvol,
            Some(_) => Command::Snapshot,
        };
        let mut head = self.out.command(command).path(name);
        head = head.uuid(Attr::Uuid, uuid).u64(Attr::Ctransid, ctransid);
        if let Some(old) = &self.old {
            head = head.uuid(Attr::CloneUuid, old.uuid).u64(Attr::CloneCtransid, old.ctransid);
        }
        head.send().map_err(failed)
    }
}
