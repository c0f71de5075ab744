//! varve-fs.
