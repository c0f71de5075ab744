//! A btrfs superblock under a good checksum, and its array of system chunks.
#![no_main]

use libfuzzer_sys::fuzz_target;
use varve_fs::csum::CsumType;
use varve_fs::format::chunk::parse_sys_array;
use varve_fs::verify::superblock;

const LEN: usize = 4096;
const AT: u64 = 64 << 10;

fuzz_target!(|data: &[u8]| {
    let _ = parse_sys_array(data);
    let mut block = vec![0; LEN];
    let n = data.len().min(LEN - 32);
    block[32..32 + n].copy_from_slice(&data[..n]);
    block[48..56].copy_from_slice(&AT.to_le_bytes());
    block[64..72].copy_from_slice(b"_BHRfS_M");
    let sum = CsumType::Crc32c.digest(&block[32..]);
    block[..32].copy_from_slice(sum.field());
    let _ = superblock(&block, AT);
});
