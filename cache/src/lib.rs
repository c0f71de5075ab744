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

mod alloc;
mod attach;
mod bypass;
pub mod device;
mod fills;
mod journal;
pub mod make;
mod mode;
pub mod open;
mod read;
mod recover;
mod register;
mod set;
pub mod status;
mod tasks;
mod volume;
mod writeback;

pub use device::Cache;
pub use make::{Made, MakeError, MakeOptions, make};
pub use open::{OpenError, OpenOptions, WritebackOptions};
pub use reader::CacheView;
pub use status::Status;
