//! varve-block.
