//! varve-cache.
