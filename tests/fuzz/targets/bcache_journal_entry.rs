//! Entries of the cache's journal under a good checksum.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| varve_cache::fuzz::journal_entry(data));
