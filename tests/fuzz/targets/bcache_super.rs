//! bcache superblocks, of either kind.
#![no_main]

use libfuzzer_sys::fuzz_target;
use varve_cache::format::{DeviceFacts, Superblock};

fuzz_target!(|data: &[u8]| {
    let mut page = vec![0; 4096];
    let n = data.len().min(page.len());
    page[..n].copy_from_slice(&data[..n]);
    for sectors in [0, 1 << 17, 1 << 40] {
        let _ = Superblock::parse(&page, DeviceFacts { sectors, logical_block: 512 });
    }
});
