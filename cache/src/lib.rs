//! varve-cache: bcache.
#![forbid(unsafe_code)]

mod btree;
pub mod effective;
pub mod error;
pub mod format;
mod load;
pub mod reader;
mod ring;
mod walk;

pub mod device;
pub mod make;
pub mod open;
pub mod status;

pub use device::Cache;
pub use make::{Made, MakeError, MakeOptions, make};
pub use open::{OpenError, OpenOptions, WritebackOptions};
pub use reader::CacheView;
pub use status::Status;
