//! varve-fs.
#![forbid(unsafe_code)]

pub mod csum;
pub mod format;
mod tree;
mod units;
pub mod verify;

pub use units::{Logical, Physical};
