//! varve-bench.
