//! Nodes of the cache's index: several sets under good checksums, as a leaf and above the leaves.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| varve_cache::fuzz::node(data));
