//! Looking at a file system without believing in it: what repairers and the curious want to see.

pub(crate) mod bytes;
pub(crate) mod raw;
