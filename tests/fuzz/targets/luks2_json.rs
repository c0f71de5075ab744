//! The JSON of a LUKS2 header, in both copies and under good checksums; then what the commands do with one
//! that was accepted.
#![no_main]

use libfuzzer_sys::fuzz_target;
use varve_fuzz::luks;

fuzz_target!(|data: &[u8]| {
    let head = luks::head(data);
    luks::look(&head, 8 << 20);
    luks::unlock(&head);
});
