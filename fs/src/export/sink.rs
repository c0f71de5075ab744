//! The writing half of an export: what is done to the host's file system, in order, away from the lane.
//!
//! # What can go wrong here
//! *Names from a hostile disk.* Nothing is ever opened by a path: a folder is opened from its parent's
//! descriptor, component by component, without following links, and every name was checked to be one
//! component. So nothing is written outside the destination, whatever links lie in it.
//!
//! *Being killed half-way.* A file is written under a temporary name of its own, gets its owner, mode
//! and times, and takes its name last: what has its name is whole.
//!
//! *A full disk.* The first "no space" ends the export; the temporary file is taken away.

use crate::compress::unpack;
use crate::format::file_extent::Compression;
use crate::format::inode::{FileType, Inode, Time};
use crate::units::to_usize;
use rustix::fs::{self, AtFlags, FileType as HostType, Gid, Mode, OFlags, RenameFlags, Uid};
use rustix::fs::{Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

/// A whole copy's status and attributes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meta {
    pub(crate) inode: Inode,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Where something goes: an open folder and a name in it; the whole path for messages.
#[derive(Clone, Debug)]
pub(crate) struct Spot {
    pub(crate) dir: Arc<OwnedFd>,
    pub(crate) name: Vec<u8>,
    /// The name of a copy that is not whole.
    pub(crate) damaged: Vec<u8>,
    pub(crate) path: Vec<u8>,
    /// The folder may hold what an earlier run made.
    pub(crate) was_there: bool,
}

/// A part of a file.
#[derive(Debug)]
pub(crate) enum Part {
    Plain {
        at: u64,
        bytes: Vec<u8>,
    },
    /// `len` bytes from `skip` on of what `bytes` unpack to.
    Packed {
        at: u64,
        how: Compression,
        bytes: Vec<u8>,
        unpacked: usize,
        skip: usize,
        len: usize,
    },
}

impl Part {
    pub(crate) fn weight(&self) -> usize {
        match self {
            Part::Plain { bytes, .. } => bytes.len(),
            Part::Packed { unpacked, .. } => *unpacked,
        }
    }
}

#[derive(Debug)]
pub(crate) enum Op {
    /// Opens a temporary file; what follows up to [`Op::Close`] is about it.
    Create {
        spot: Spot,
        temp: Vec<u8>,
    },
    Write(Part),
    /// `damaged`: the copy takes another name, so that nobody mistakes it for a whole one.
    Close {
        meta: Meta,
        size: u64,
        damaged: bool,
    },
    /// The same file under another name.
    Link {
        spot: Spot,
        from_dir: Arc<OwnedFd>,
        from: Vec<u8>,
    },
    Symlink {
        spot: Spot,
        target: Vec<u8>,
        meta: Meta,
    },
    Special {
        spot: Spot,
        meta: Meta,
    },
    /// A folder's own status, when everything in it was written.
    Leave {
        dir: Arc<OwnedFd>,
        path: Vec<u8>,
        meta: Meta,
    },
}

/// How the writing is done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    pub(crate) overwrite: bool,
    /// Give files to their owners: only root may.
    pub(crate) owners: bool,
    pub(crate) sectorsize: usize,
}

/// What became of the operations.
#[derive(Debug)]
pub(crate) enum Outcome {
    File {
        bytes: u64,
        damaged: bool,
    },
    Link,
    Symlink,
    Special,
    /// It was not written, or not wholly.
    Failed {
        path: Vec<u8>,
        what: String,
    },
    /// A packed extent could not be unpacked: these bytes are missing.
    BadRange {
        path: Vec<u8>,
        at: u64,
        len: u64,
        what: String,
    },
    /// Attributes that the destination does not take, or not from this user.
    Attributes(u64),
    /// Nothing can be written any more.
    Full {
        path: Vec<u8>,
        what: String,
    },
}

struct Current {
    spot: Spot,
    temp: Vec<u8>,
    file: OwnedFd,
    /// Where the file ends so far.
    end: u64,
    damaged: bool,
    failed: bool,
}

impl Current {
    fn write_at(&mut self, at: u64, bytes: &[u8]) -> Result<(), Errno> {
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            match rustix::io::pwrite(&self.file, rest, at + done as u64) {
                Ok(0) => return Err(Errno::IO),
                Ok(n) => done += n,
                Err(Errno::INTR) => (),
                Err(errno) => return Err(errno),
            }
        }
        if done > 0 {
            self.end = self.end.max(at + done as u64);
        }
        Ok(())
    }
}

/// The state between two batches.
pub(crate) struct Sink {
    manner: Manner,
    current: Option<Current>,
    outcomes: Vec<Outcome>,
    full: bool,
    unpacked: Vec<u8>,
}

impl Sink {
    pub(crate) fn new(manner: Manner) -> Sink {
        Sink { manner, current: None, outcomes: Vec::new(), full: false, unpacked: Vec::new() }
    }

    pub(crate) fn take_outcomes(&mut self) -> Vec<Outcome> {
        std::mem::take(&mut self.outcomes)
    }

    pub(crate) fn run(&mut self, ops: Vec<Op>) {
        for op in ops {
            if self.full {
                break;
            }
            self.step(op);
        }
        if self.full {
            self.give_up();
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.full
    }

    /// Writes nothing any more, and leaves nothing that was begun.
    pub(crate) fn give_up(&mut self) {
        self.full = true;
        if let Some(current) = self.current.take() {
            let _ = fs::unlinkat(&*current.spot.dir, &current.temp, AtFlags::empty());
        }
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Create { spot, temp } => self.create(spot, temp),
            Op::Write(part) => self.write(part),
            Op::Close { meta, size, damaged } => self.close(&meta, size, damaged),
            Op::Link { spot, from_dir, from } => {
                let made = self.in_the_way(&spot).and_then(|()| {
                    fs::linkat(&*from_dir, &from, &*spot.dir, &spot.name, AtFlags::empty())
                });
                self.settle(made, &spot, Outcome::Link);
            }
            Op::Symlink { spot, target, meta } => {
                let made = self
                    .in_the_way(&spot)
                    .and_then(|()| fs::symlinkat(target, &*spot.dir, &spot.name))
                    .and_then(|()| self.dress_at(&spot, &meta));
                self.settle(made, &spot, Outcome::Symlink);
            }
            Op::Special { spot, meta } => {
                let made = self.in_the_way(&spot).and_then(|()| self.make_special(&spot, &meta));
                self.settle(made, &spot, Outcome::Special);
            }
            Op::Leave { dir, path, meta } => {
                if let Err(errno) = self.dress(&dir, &meta) {
                    self.fail(path, errno);
                }
            }
        }
    }

    fn settle(&mut self, made: Result<(), Errno>, spot: &Spot, outcome: Outcome) {
        match made {
            Ok(()) => self.outcomes.push(outcome),
            Err(errno) => self.fail(spot.path.clone(), errno),
        }
    }

    fn fail(&mut self, path: Vec<u8>, errno: Errno) {
        let what = std::io::Error::from(errno).to_string();
        if matches!(errno, Errno::NOSPC | Errno::DQUOT | Errno::ROFS) {
            self.full = true;
            self.outcomes.push(Outcome::Full { path, what });
            return;
        }
        let what = match errno {
            Errno::EXIST => "something else has this name already, and is left alone".to_owned(),
            _ => what,
        };
        self.outcomes.push(Outcome::Failed { path, what });
    }

    /// Takes away what has the name, where that was asked for. Folders stay.
    fn in_the_way(&self, spot: &Spot) -> Result<(), Errno> {
        if !self.manner.overwrite {
            return Ok(());
        }
        match fs::unlinkat(&*spot.dir, &spot.name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    fn create(&mut self, spot: Spot, temp: Vec<u8>) {
        // What an interrupted run left under this name is begun anew.
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW;
        let open =
            || fs::openat(&*spot.dir, &temp, flags | OFlags::CLOEXEC, Mode::from_raw_mode(0o600));
        let file = match open() {
            Err(Errno::EXIST) => {
                fs::unlinkat(&*spot.dir, &temp, AtFlags::empty()).and_then(|()| open())
            }
            other => other,
        };
        match file {
            Ok(file) => {
                let (end, damaged, failed) = (0, false, false);
                self.current = Some(Current { spot, temp, file, end, damaged, failed });
            }
            Err(errno) => self.fail(spot.path, errno),
        }
    }

    fn write(&mut self, part: Part) {
        let Some(mut current) = self.current.take() else { return };
        if !current.failed {
            let done = match part {
                Part::Plain { at, bytes } => current.write_at(at, &bytes),
                Part::Packed { at, how, bytes, unpacked, skip, len } => {
                    self.write_packed(&mut current, (at, skip, len), how, &bytes, unpacked)
                }
            };
            if let Err(errno) = done {
                current.failed = true;
                self.fail(current.spot.path.clone(), errno);
            }
        }
        self.current = Some(current);
    }

    fn write_packed(
        &mut self,
        current: &mut Current,
        (at, skip, len): (u64, usize, usize),
        how: Compression,
        bytes: &[u8],
        unpacked: usize,
    ) -> Result<(), Errno> {
        self.unpacked.clear();
        self.unpacked.resize(unpacked, 0);
        match unpack(how, bytes, &mut self.unpacked, self.manner.sectorsize) {
            Ok(()) => {
                let plain = self.unpacked.get(skip..skip.saturating_add(len)).unwrap_or(&[]);
                current.write_at(at, plain)
            }
            Err(damaged) => {
                current.damaged = true;
                let path = current.spot.path.clone();
                let what = damaged.to_string();
                self.outcomes.push(Outcome::BadRange { path, at, len: len as u64, what });
                Ok(())
            }
        }
    }

    fn close(&mut self, meta: &Meta, size: u64, damaged: bool) {
        let Some(current) = self.current.take() else { return };
        let Current { spot, temp, file, end, damaged: found_damaged, failed } = current;
        let damaged = damaged || found_damaged;
        let done = match failed {
            true => Err(None),
            false => (if end == size { Ok(()) } else { fs::ftruncate(&file, size) })
                .and_then(|()| self.dress(&file, meta))
                .and_then(|()| self.take_name(&spot, &temp, damaged))
                .map_err(Some),
        };
        match done {
            Ok(()) => self.outcomes.push(Outcome::File { bytes: size, damaged }),
            Err(errno) => {
                let _ = fs::unlinkat(&*spot.dir, &temp, AtFlags::empty());
                if let Some(errno) = errno {
                    self.fail(spot.path, errno);
                }
            }
        }
    }

    /// The last step of a file. A damaged copy that an earlier run made gives way to a newer one, and
    /// to a whole one.
    fn take_name(&self, spot: &Spot, temp: &[u8], damaged: bool) -> Result<(), Errno> {
        if damaged {
            return fs::renameat(&*spot.dir, temp, &*spot.dir, &spot.damaged);
        }
        if self.manner.overwrite {
            self.in_the_way(spot)?;
        }
        let flags = RenameFlags::NOREPLACE;
        match fs::renameat_with(&*spot.dir, temp, &*spot.dir, &spot.name, flags) {
            // Not every file system knows how to rename without replacing.
            Err(Errno::INVAL | Errno::NOSYS) => {
                match fs::statat(&*spot.dir, &spot.name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(_) => Err(Errno::EXIST),
                    Err(Errno::NOENT) => fs::renameat(&*spot.dir, temp, &*spot.dir, &spot.name),
                    Err(errno) => Err(errno),
                }
            }
            other => other,
        }?;
        if spot.was_there {
            let _ = fs::unlinkat(&*spot.dir, &spot.damaged, AtFlags::empty());
        }
        Ok(())
    }

    fn make_special(&mut self, spot: &Spot, meta: &Meta) -> Result<(), Errno> {
        let kind = match meta.inode.file_type() {
            FileType::CharDevice => HostType::CharacterDevice,
            FileType::BlockDevice => HostType::BlockDevice,
            FileType::Fifo => HostType::Fifo,
            FileType::Socket => HostType::Socket,
            _ => return Err(Errno::INVAL),
        };
        let (major, minor) = meta.inode.device();
        let device = fs::makedev(major, minor);
        fs::mknodat(&*spot.dir, &spot.name, kind, Mode::from_raw_mode(0o600), device)?;
        fs::chmodat(&*spot.dir, &spot.name, mode_of(&meta.inode), AtFlags::empty())?;
        self.dress_at(spot, meta)
    }

    /// Owner, mode, attributes and times of an open file or folder: in this order, because a change of
    /// owner drops set-user-id bits and capabilities.
    fn dress(&mut self, file: &OwnedFd, meta: &Meta) -> Result<(), Errno> {
        if self.manner.owners {
            let (uid, gid) = owner_of(&meta.inode);
            fs::fchown(file, Some(uid), Some(gid))?;
        }
        fs::fchmod(file, mode_of(&meta.inode))?;
        for (name, value) in &meta.xattrs {
            let set = fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty());
            self.attribute(set)?;
        }
        fs::futimens(file, &times_of(&meta.inode))
    }

    /// The same without mode for what cannot be opened: links, devices, pipes.
    fn dress_at(&mut self, spot: &Spot, meta: &Meta) -> Result<(), Errno> {
        if self.manner.owners {
            let (uid, gid) = owner_of(&meta.inode);
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            fs::chownat(&*spot.dir, &spot.name, Some(uid), Some(gid), flags)?;
        }
        let mut path = format!("/proc/self/fd/{}/", spot.dir.as_raw_fd()).into_bytes();
        path.extend_from_slice(&spot.name);
        for (name, value) in &meta.xattrs {
            let set = fs::lsetxattr(&path, name.as_slice(), value, XattrFlags::empty());
            self.attribute(set)?;
        }
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        fs::utimensat(&*spot.dir, &spot.name, &times_of(&meta.inode), flags)
    }

    fn attribute(&mut self, set: Result<(), Errno>) -> Result<(), Errno> {
        match set {
            Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS | Errno::INVAL | Errno::NOENT) => {
                match self.outcomes.last_mut() {
                    Some(Outcome::Attributes(n)) => *n += 1,
                    _ => self.outcomes.push(Outcome::Attributes(1)),
                }
                Ok(())
            }
            other => other,
        }
    }
}

fn mode_of(inode: &Inode) -> Mode {
    Mode::from_raw_mode(inode.mode & 0o7777)
}

fn owner_of(inode: &Inode) -> (Uid, Gid) {
    (Uid::from_raw(inode.uid), Gid::from_raw(inode.gid))
}

pub(crate) fn times_of(inode: &Inode) -> Timestamps {
    let of = |time: Time| Timespec {
        tv_sec: time.seconds,
        // Nobody checks this field on disk; the host does.
        tv_nsec: i64::from(time.nanos.min(999_999_999)),
    };
    Timestamps { last_access: of(inode.atime), last_modification: of(inode.mtime) }
}

/// Opens the folder `name` in `dir`, making it where it is absent: the descriptor, and whether it was
/// there before.
pub(crate) fn enter(dir: &OwnedFd, name: &[u8]) -> Result<(OwnedFd, bool), Errno> {
    let made = fs::mkdirat(dir, name, Mode::from_raw_mode(0o700));
    let was_there = match made {
        Ok(()) => false,
        Err(Errno::EXIST) => true,
        Err(errno) => return Err(errno),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok((fs::openat(dir, name, flags, Mode::empty())?, was_there))
}

/// Whether a whole copy of the file is there already: of its size, and of its time as far as the
/// destination keeps times.
pub(crate) fn is_whole(dir: &OwnedFd, name: &[u8], inode: &Inode) -> bool {
    let Ok(stat) = fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) else { return false };
    let kind = HostType::from_raw_mode(stat.st_mode);
    let wanted = HostType::from_raw_mode(inode.mode);
    if kind != wanted {
        return false;
    }
    if kind != HostType::RegularFile {
        return true;
    }
    let nanos = stat.st_mtime_nsec;
    u64::try_from(stat.st_size) == Ok(inode.size)
        && stat.st_mtime == inode.mtime.seconds
        && (nanos == 0 || nanos == u64::from(inode.mtime.nanos))
}

/// As many bytes as a part may hold, as a length in memory.
pub(crate) fn bounded(len: u64, most: u64) -> usize {
    to_usize(len.min(most))
}
