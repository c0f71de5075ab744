//! Damage under a good checksum: what hostile images and flipped memory bits look like. Whatever it
//! is, the walk ends, with values.

use crate::image::{golden, in_sim, open, walk};
use varve_block::dev::{Mem, Window};
use varve_block::{Extent, Prng, Rt, Sector, Sectors, Sim};
use varve_fs::csum::CsumType;
use varve_fs::format::block::Header;
use varve_fs::format::chunk::GroupFlags;
use varve_fs::{Fs, OpenOptions};

const NODE: usize = 16384;

/// Both places of every tree block in use.
async fn tree_blocks(device: &Mem) -> Vec<[u64; 2]> {
    let fs = open(device.clone()).await;
    let mut blocks = Vec::new();
    for (start, chunk) in fs.chunks().iter() {
        if chunk.flags.contains(GroupFlags::DATA) {
            continue;
        }
        for off in (0..chunk.length).step_by(NODE) {
            let places = [chunk.stripes[0].offset + off, chunk.stripes[1].offset + off];
            let mut block = vec![0; 101];
            device.peek(places[0], &mut block);
            if Header::parse(&block).expect("101 bytes").bytenr.0 == start.0 + off {
                blocks.push(places);
            }
        }
    }
    blocks
}

/// Changes a few bytes, near the head as often as anywhere, and seals the block again.
fn mutate(device: &Mem, places: [u64; 2], chance: &Prng) {
    let mut block = vec![0; NODE];
    device.peek(places[0], &mut block);
    for _ in 0..=chance.below(4) {
        let room = if chance.below(2) == 0 { 400 } else { NODE };
        // The address stays: a wrong one would be refused at once.
        let at = 0x38 + chance.index(room - 0x38);
        let bit = 1u8 << chance.below(8);
        block[at] = match chance.below(3) {
            0 => block[at] ^ bit,
            1 => chance.next_u64().to_le_bytes()[0],
            _ => [0, 0xFF][chance.index(2)],
        };
    }
    let sum = CsumType::Crc32c.digest(&block[32..]);
    block[..32].copy_from_slice(sum.field());
    places.iter().for_each(|at| device.poke(*at, &block));
}

fn rounds() -> u64 {
    std::env::var("VARVE_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(120)
}

#[test]
fn no_sealed_damage_to_metadata_panics_or_hangs() {
    in_sim(|_| async {
        let device = golden();
        let blocks = tree_blocks(&device).await;
        assert!(blocks.len() > 10);
        let (mut refused, mut partial, mut whole) = (0, 0, 0);
        for seed in 0..rounds() {
            let chance = Prng::new(seed);
            let victim = blocks[chance.index(blocks.len())];
            let mut saved = vec![0; NODE];
            device.peek(victim[0], &mut saved);
            mutate(&device, victim, &chance);
            match Fs::open(device.clone(), OpenOptions::default()).await {
                Err(_) => refused += 1,
                Ok(fs) => match walk(&fs).await.failed {
                    0 => whole += 1,
                    _ => partial += 1,
                },
            }
            victim.iter().for_each(|at| device.poke(*at, &saved));
        }
        assert!(refused > 0 && partial > 0 && whole > 0, "{refused} {partial} {whole}");
    });
}

#[test]
fn no_sealed_damage_to_the_superblock_panics_or_hangs() {
    in_sim(|_| async {
        let device = golden();
        let mut saved = vec![0; 4096];
        device.peek(65536, &mut saved);
        let mut opened = 0;
        for seed in 0..rounds() {
            let chance = Prng::new(seed);
            let mut sb = saved.clone();
            for _ in 0..=chance.below(3) {
                let at = 0x20 + chance.index(0x3c0);
                sb[at] = chance.next_u64().to_le_bytes()[0];
            }
            let sum = CsumType::Crc32c.digest(&sb[32..]);
            sb[..32].copy_from_slice(sum.field());
            device.poke(65536, &sb);
            if let Ok(fs) = Fs::open(device.clone(), OpenOptions::default()).await {
                opened += 1;
                walk(&fs).await;
            }
        }
        assert!(opened > 0 && opened < rounds());
    });
}

#[test]
fn a_truncated_device_is_an_error() {
    for len in [0u64, 512, 65536, 69632, 70144, 1 << 20, 30 << 20, 80 << 20] {
        let part = Extent::new(Sector(0), Sectors(len >> 9));
        let device = Window::new(golden(), part).expect("a part of the image");
        Sim::new(1).run(|_: Rt| async move {
            match Fs::open(device, OpenOptions::default()).await {
                Err(error) => assert!(len < 80 << 20, "{len}: {error}"),
                Ok(fs) => {
                    assert!(fs.warnings()[0].ends_with("the end is missing"));
                    // The second copies of metadata are behind 80 MiB, and no data.
                    assert_eq!(walk(&fs).await.failed > 0, len < 80 << 20, "{len}");
                }
            }
        });
    }
}
