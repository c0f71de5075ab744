//! B-trees: blocks as they stand in memory, the cache they live in, cursors over them, and the making
//! of new ones.

pub(crate) mod build;
pub(crate) mod cache;
pub(crate) mod cursor;
pub(crate) mod node;
