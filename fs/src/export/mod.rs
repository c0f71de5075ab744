//! Getting files out of a file system, whole or damaged, into a folder of the host.
//!
//! ```text
//! lane:    scan tree -> read and verify data -> batch of operations
//! worker:                                       unpack, write, owner, mode, times, take the name
//! ```
//!
//! # What an export promises
//! * A file that has its own name in the destination is whole, and every byte of it was compared with
//!   its checksum; what is not so is listed: with its missing ranges as `NAME.damaged`, with its
//!   missing checksums as *unverified*.
//! * The first bad block is not the last word: the keys it held are noted, and the walk goes on behind
//!   it; names are also looked for by their hashes, and files whose folder entry was lost are put
//!   where their own back reference says they were.
//! * What older states of a tree have of a lost block is taken from there and listed as *older*, with the
//!   generation. Nothing replaces what the tree says today, or brings back what was removed since where
//!   the tree still shows that.
//! * Nothing is written outside the destination, see [`sink`]; nothing at all to the device.
//! * A second run takes up where the first ended: whole files are left alone.

mod chunks;
mod data;
mod file;
mod names;
mod older;
mod open;
mod pipe;
mod place;
mod report;
mod roots;
mod scan;
mod sink;
mod stale;
mod walk;

pub use open::{RescueOptions, Rescued, open_rescue};
pub use report::{Problem, ProblemKind, Range, Report};
pub use scan::Gap;

use crate::error::{Error, ErrorKind, Result};
use crate::fs::Fs;
use crate::inode::InodeId;
use pipe::Pipe;
use roots::FileTrees;
use rustix::fs::{Mode, OFlags};
use scan::BadBlocks;
use sink::Manner;
use std::os::fd::OwnedFd;
use std::path::Path;
use varve_block::{BlockDevice, Rt};
use walk::Walk;

/// Chooses files by their path below the export.
pub type Filter = Box<dyn Fn(&[u8]) -> bool>;

/// Is told of every batch.
pub type Progress<'a> = &'a mut dyn FnMut(&Report);

/// What to export, and how.
#[derive(Default)]
pub struct Options {
    /// Snapshots too whose source is in the same file system.
    pub snapshots: bool,
    /// Replace what is in the way.
    pub overwrite: bool,
    /// Only look.
    pub dry_run: bool,
    /// What the trees say today, and nothing of older states of them.
    pub no_older_roots: bool,
    /// Only files for which this says yes.
    pub filter: Option<Filter>,
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("snapshots", &self.snapshots)
            .field("overwrite", &self.overwrite)
            .field("dry_run", &self.dry_run)
            .field("no_older_roots", &self.no_older_roots)
            .field("filter", &self.filter.is_some())
            .finish()
    }
}

/// Copies everything below the folder `start` into `dest`, which is made if it is absent.
///
/// # Errors
/// `Io` when the destination cannot be made or opened; `NoSpace` when it is full or read-only: what was
/// written until then stays, and a later run goes on from there. Whatever is wrong with the file
/// system itself is no error but a line of the report.
pub async fn export<D: BlockDevice>(
    rt: &Rt,
    fs: &Fs<D>,
    start: InodeId,
    dest: &Path,
    options: &Options,
    progress: Progress<'_>,
) -> Result<Report> {
    let bad = match options.no_older_roots {
        true => BadBlocks::default(),
        false => BadBlocks::asking_older(),
    };
    let trees = FileTrees::read(fs, &bad).await;
    let manner = Manner {
        overwrite: options.overwrite,
        owners: rustix::process::geteuid().is_root(),
        sectorsize: fs.volume.rules.sectorsize as usize,
    };
    let dest = destination(dest, options.dry_run)?;
    let pipe = Pipe::new(rt, manner);
    Walk::new((fs, &bad, options), trees, pipe, dest, progress).all(start).await
}

fn destination(dest: &Path, dry_run: bool) -> Result<OwnedFd> {
    let failed =
        |error: std::io::Error| Error::new(ErrorKind::Io, format!("{}: {error}", dest.display()));
    if dry_run {
        // Nothing is written; any folder will do.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        return rustix::fs::open("/", flags, Mode::empty()).map_err(|errno| failed(errno.into()));
    }
    match std::fs::create_dir(dest) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(failed(error));
        }
        _ => (),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(dest, flags, Mode::empty()).map_err(|errno| failed(errno.into()))
}
