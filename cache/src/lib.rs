//! varve-cache: bcache.
#![forbid(unsafe_code)]

mod btree;
pub mod error;
pub mod format;

pub mod device;
pub mod make;
pub mod open;
pub mod status;

pub use device::Cache;
pub use make::{Made, MakeError, MakeOptions, make};
pub use open::{OpenError, OpenOptions, WritebackOptions};
pub use status::Status;
