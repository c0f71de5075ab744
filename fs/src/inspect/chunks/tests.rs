//! Chunks of a real image, found again with the chunk tree whole, old, and gone.

use super::*;
use crate::{Fs, OpenOptions};
use varve_block::dev::Mem;
use varve_block::{Sectors, Sim};

const PACKED: &[u8] =
    include_bytes!("../../../../tests/images/010-kernel-btrfs-one-of-everything/image.zst");

fn image() -> Mem {
    let bytes = zstd::decode_all(PACKED).expect("a zstd stream");
    let mem = Mem::new(Sectors(bytes.len() as u64 >> 9));
    for (n, part) in (0u64..).zip(bytes.chunks(65536)) {
        if part.iter().any(|byte| *byte != 0) {
            mem.poke(n * 65536, part);
        }
    }
    mem
}

fn scan(mem: &Mem) -> ChunkScan {
    let mem = mem.clone();
    Sim::new(1).run(|_| async move {
        let mut last = 0;
        let mut progress = |done, total| {
            assert!(last <= done && done <= total);
            last = done;
        };
        let found = scan_chunks(vec![mem], 0, &mut progress).await.unwrap();
        assert!(last > 0);
        found
    })
}

/// The chunks, and every place of the chunk tree's root.
fn truth(mem: &Mem) -> (Vec<(Logical, Chunk)>, Vec<Physical>) {
    let mem = mem.clone();
    Sim::new(1).run(|_| async move {
        let fs = Fs::open(mem, OpenOptions::default()).await.unwrap();
        let chunks = fs.chunks();
        let root = chunks.map(fs.superblock().chunk_root, 4096).unwrap().copies;
        (chunks.iter().map(|(at, chunk)| (at, chunk.clone())).collect(), root)
    })
}

fn found(scan: &ChunkScan) -> Vec<(Logical, Chunk)> {
    scan.chunks.iter().map(|found| (found.start, found.chunk.clone())).collect()
}

#[test]
fn a_whole_tree_is_found_as_it_is() {
    let mem = image();
    let (chunks, _) = truth(&mem);
    let scan = scan(&mem);
    assert_eq!(found(&scan), chunks);
    assert!(scan.agrees(), "{scan:?}");
    for chunk in &scan.chunks {
        assert!(chunk.block_group && chunk.extents == chunk.chunk.stripes.len(), "{chunk:?}");
        assert_eq!(chunk.strays, 0, "{chunk:?}");
    }
    let blocks: u64 = scan.chunks.iter().map(|chunk| chunk.blocks).sum();
    assert!(blocks > 20 && blocks <= scan.blocks, "{blocks} of {}", scan.blocks);
}

#[test]
fn chunks_are_rebuilt_when_no_item_of_them_is_left() {
    let mem = image();
    let (chunks, _) = truth(&mem);
    // Every block that says it is of the chunk tree, old ones too.
    let bytes = mem.to_vec();
    let mut wiped = 0;
    for at in (0..bytes.len() - 16384).step_by(4096) {
        let header = crate::format::block::Header::parse(&bytes[at..at + 101]).unwrap();
        let fsid = truth_fsid(&bytes);
        if header.fsid == fsid && header.owner == objectid::CHUNK_TREE && at > 1 << 20 {
            mem.poke(at as u64, &[0xA5; 4096]);
            wiped += 1;
        }
    }
    assert!(wiped >= 2, "{wiped}");
    let scan = scan(&mem);
    assert!(scan.unreadable.is_some());
    let places = |chunk: &Chunk| {
        let mut at: Vec<_> = chunk.stripes.iter().map(|s| (s.devid, s.offset)).collect();
        at.sort_unstable();
        (chunk.length, chunk.flags, at)
    };
    let list = |all: Vec<(Logical, Chunk)>| -> Vec<_> {
        all.into_iter().map(|(at, chunk)| (at, places(&chunk))).collect()
    };
    assert_eq!(list(found(&scan)), list(chunks));
    assert!(scan.chunks.iter().any(|found| found.source == ChunkSource::Extents));
    assert!(scan.chunks.iter().all(|found| found.now == Agreement::Unknown && found.ordered));
}

fn truth_fsid(bytes: &[u8]) -> crate::format::Uuid {
    Superblock::parse(&bytes[65536..65536 + 4096]).unwrap().tree_fsid()
}

#[test]
fn a_damaged_root_changes_the_verdict_and_not_the_list() {
    let mem = image();
    let (chunks, root) = truth(&mem);
    for place in root {
        mem.poke(place.byte + 200, &[0xFF; 64]);
    }
    let scan = scan(&mem);
    assert!(!scan.agrees() && scan.unreadable.is_some());
    let starts = |all: &[(Logical, Chunk)]| -> Vec<_> {
        all.iter().map(|(at, chunk)| (*at, chunk.length, chunk.flags)).collect()
    };
    assert_eq!(starts(&found(&scan)), starts(&chunks));
}

/// Stripes of a chunk that stripes are told apart by the tree blocks on them.
#[test]
fn blocks_tell_the_order_of_stripes() {
    let mem = image();
    let bytes = mem.to_vec();
    let sb = Superblock::parse(&bytes[65536..65536 + 4096]).unwrap();
    let rules = Rules::of(&sb).unwrap();
    let stripe = |devid| Stripe { devid, offset: 1 << 20, dev_uuid: crate::format::Uuid::nil() };
    let chunk = |order: &[u64]| Chunk {
        length: order.len() as u64 * STRIPE_LEN * 4,
        owner: 2,
        stripe_len: STRIPE_LEN,
        flags: crate::format::chunk::GroupFlags::METADATA | Profile::Raid0.flag(),
        io_align: 65536,
        io_width: 65536,
        sector_size: 4096,
        sub_stripes: 1,
        stripes: order.iter().map(|devid| stripe(*devid)).collect(),
    };
    let start = Logical(1 << 30);
    let mut map = ChunkMap::default();
    map.insert(start, chunk(&[3, 1, 2])).unwrap();
    let mut seen = Seen::default();
    for n in 0..3 {
        let at = Logical(start.0 + n * STRIPE_LEN + 16384);
        seen.places.push((at, map.map(at, 1).unwrap().copies[0]));
    }
    let mut shuffled = chunk(&[1, 2, 3]);
    let evidence = Evidence::new(&seen, &sb, &rules);
    assert!(evidence.order(start, &mut shuffled, Profile::Raid0));
    assert_eq!(shuffled, chunk(&[3, 1, 2]));
    // One stripe without any block: nobody knows.
    let mut less = Seen::default();
    less.places.extend_from_slice(&seen.places[..2]);
    assert!(!Evidence::new(&less, &sb, &rules).order(start, &mut shuffled, Profile::Raid0));
}

/// A leaf with one item of one byte, and where a parent says it ends.
fn leaf(seen: &mut Seen, at: u64, generation: u64, keys: (u64, u64), ends: u64) {
    let key = |objectid| Key::new(objectid, ItemType::BLOCK_GROUP_ITEM, 7);
    let items = vec![(key(keys.0), vec![u8::try_from(generation).expect("a small one")])];
    let leaf = scan::Leaf { generation, first: key(keys.0), last: key(keys.1), items };
    let leaves = seen.leaves.entry(objectid::EXTENT_TREE).or_default();
    leaves.insert((Logical(at), generation), leaf);
    seen.ends.insert((Logical(at), generation), (generation, key(ends)));
}

/// The key where a newer leaf ends is the first one of the next leaf: it was taken for overruled.
#[test]
fn a_leaf_overrules_older_ones_up_to_where_the_next_begins() {
    let mut seen = Seen::default();
    leaf(&mut seen, 4096, 9, (10, 19), 30);
    leaf(&mut seen, 8192, 8, (30, 39), 40);
    leaf(&mut seen, 12288, 7, (29, 29), 30);
    leaf(&mut seen, 16384, 7, (30, 35), 40);
    let found = seen.newest(objectid::EXTENT_TREE);
    let words: Vec<_> = found.iter().map(|(key, word)| (key.objectid, word.0)).collect();
    assert_eq!(words, [(10, 9), (30, 8)]);
}
