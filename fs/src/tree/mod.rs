//! Copy-on-write B-trees.

pub(crate) mod build;
