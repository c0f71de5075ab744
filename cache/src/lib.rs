//! varve-cache: bcache.
#![forbid(unsafe_code)]

pub mod error;
pub mod format;
