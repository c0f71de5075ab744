//! Looking at a file system without believing in it: what repairers and the curious want to see.
//!
//! [`Inspector`] needs a superblock and the chunks; nothing else has to be whole. Blocks that do not
//! check out are shown with what is wrong about them, and every walk visits a block once: damaged
//! pointers cannot make it long.

pub(crate) mod bytes;
mod chunks;
mod describe;
mod find_root;
mod log;
mod reader;
mod supers;
#[cfg(test)]
mod tests;
mod zero_log;

pub use chunks::{Agreement, ChunkScan, ChunkSource, FoundChunk, scan_chunks};
pub use describe::{Fields, Value, describe};
pub use find_root::Candidate;
pub(crate) use find_root::find_roots;
pub use log::{LogEntry, LogTree};
pub use reader::{Block, Inspector, RootEntry, Step, Walk};
pub use supers::{SuperCopy, super_copies};
pub use zero_log::{SuperWrite, ZeroLog};
