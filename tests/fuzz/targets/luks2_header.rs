//! LUKS2 binary headers under a good checksum: the first copy's fields are the input's, the second copy is
//! right, so the choice between the two is met as well.
#![no_main]

use libfuzzer_sys::fuzz_target;
use varve_fuzz::luks;

fuzz_target!(|data: &[u8]| {
    let mut head = luks::head(luks::JSON.as_bytes());
    let n = data.len().min(448);
    head[..n].copy_from_slice(&data[..n]);
    head[..8].copy_from_slice(b"LUKS\xba\xbe\x00\x02");
    luks::seal(&mut head, 0);
    luks::look(&head, 8 << 20);
});
