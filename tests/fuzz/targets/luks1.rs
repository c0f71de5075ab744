//! LUKS1 headers: whatever stands behind magic and version, on devices of several lengths, and what a
//! passphrase would be tried on.
#![no_main]

use libfuzzer_sys::fuzz_target;
use varve_fuzz::luks;

fuzz_target!(|data: &[u8]| {
    let mut head = vec![0; 64 << 10];
    let n = data.len().min(head.len() - 8);
    head[8..8 + n].copy_from_slice(&data[..n]);
    head[..8].copy_from_slice(b"LUKS\xba\xbe\x00\x01");
    for device in [64 << 10, 2 << 20, u64::MAX >> 9 << 9] {
        luks::look(&head, device);
    }
    luks::unlock(&head);
});
