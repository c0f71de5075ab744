//! varve-fs.
#![forbid(unsafe_code)]

mod chunk;
pub mod csum;
mod error;
pub mod format;
mod mkfs;
mod tree;
mod units;
pub mod verify;

pub use chunk::{ChunkMap, Piece};
pub use error::{Error, ErrorKind, Place, Result};
pub use mkfs::{Existing, Identity, MkfsOptions, Plan, Step, detect, mkfs, plan};
pub use units::{Logical, Physical};
