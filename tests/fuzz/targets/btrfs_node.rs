//! A tree block under a good checksum: every rule of the tree checker meets every byte.
#![no_main]

use libfuzzer_sys::fuzz_target;
use varve_fs::csum::CsumType;
use varve_fs::format::block::Header;
use varve_fs::format::superblock::Incompat;
use varve_fs::verify::{Expect, Rules, examine_block, read_block};

const NODE: usize = 4096;

fuzz_target!(|data: &[u8]| {
    let mut block = vec![0; NODE];
    let n = data.len().min(NODE - 32);
    block[32..32 + n].copy_from_slice(&data[..n]);
    let sum = CsumType::Crc32c.digest(&block[32..]);
    block[..32].copy_from_slice(sum.field());
    let header = Header::parse(&block).expect("a whole block");
    let rules = Rules {
        sectorsize: 4096,
        nodesize: 4096,
        csum: CsumType::Crc32c,
        incompat: Incompat::all(),
        generation_max: u64::MAX,
        fsids: vec![header.fsid],
        writable: data.first().is_some_and(|b| b & 1 == 1),
        changing_csums: false,
    };
    // As its parent would expect it, so that the rules behind the header are reached.
    let expect = Expect {
        logical: header.bytenr,
        level: header.level,
        generation: Some(header.generation),
        first_key: None,
        owner: Some(header.owner),
    };
    let first = read_block(&rules, &block, &expect, 1);
    let all = examine_block(&rules, &block, &expect, 1);
    assert_eq!(first.is_ok(), all.is_empty(), "the first fault and all faults disagree");
});
