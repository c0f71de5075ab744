//! varve-fs.
#![forbid(unsafe_code)]

mod chunk;
mod compress;
pub mod csum;
mod dir;
mod error;
mod file;
pub mod format;
mod fs;
mod inode;
mod mkfs;
mod subvol;
mod tree;
mod units;
pub mod verify;
mod volume;

pub use chunk::{ChunkMap, Piece};
pub use dir::DirEntry;
pub use error::{Error, ErrorKind, Place, Result};
pub use fs::{Fs, OpenOptions, Subvolume};
pub use inode::InodeId;
pub use mkfs::{Existing, Identity, MkfsOptions, Plan, Step, detect, mkfs, plan};
pub use subvol::SubvolumeInfo;
pub use units::{Logical, Physical};
pub use volume::Counters;
