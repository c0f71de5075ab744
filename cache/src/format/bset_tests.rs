use proptest::prelude::*;

use super::super::{PageModel, Ptr};
use super::*;
use crate::error::Rule;

pub(super) const SET: &str = "14a6efd5-c5c2-422c-9a1f-fa464c344d33";

fn frame() -> NodeFrame {
    let layout = Layout {
        block_size: 8,
        bucket_size: 256,
        nbuckets: 1024,
        first_bucket: 1,
        pages: PageModel::default(),
    };
    let root = Key::node(Pos::MAX, 256, Ptr::from_word(0x0015_0001));
    let magic = SetMagic::of(::uuid::Uuid::parse_str(SET).unwrap());
    NodeFrame::new(root, 0, magic, &layout)
}

/// Golden vector (c): the first two blocks of a root node written by the kernel.
pub(crate) fn golden_node() -> Vec<u8> {
    let empty: [u64; 4] = [0xeb5c98aeb87ed763, 0xbc519ebd6c71a1e1, 0x583cf7ed9518f488, 1];
    let filled: [u64; 25] = [
        0x66344c0d2fd5f5ab,
        0xbc519ebd6c71a1e1,
        0x583cf7ed9518f488,
        0x0000001500000001,
        0x9000001000800000,
        0x18,
        0x001b5801,
        0x9000001001000000,
        0x408,
        0x001b0001,
        0x9000001000800000,
        0x410,
        0x001b4001,
        0x9000001002000000,
        0x430,
        0x001b1801,
        0x9000001001000000,
        0x440,
        0x001b4801,
        0x9000000000000000,
        0x1398,
        0x7ffbcf74d75e31cf,
        0x9000000001000000,
        0x13a8,
        0x001a0001,
    ];
    let mut node = vec![0; 256 * 512];
    for (block, words) in [(0, &empty[..]), (1, &filled[..])] {
        for (at, word) in words.iter().enumerate() {
            let from = block * 4096 + at * 8;
            node[from..from + 8].copy_from_slice(&word.to_le_bytes());
        }
    }
    node
}

fn row(bytes: &[u8]) -> u8 {
    match frame().parse(bytes).unwrap_err().rule {
        Rule::Row(row) => row,
        Rule::Online(_) => unreachable!(),
    }
}

#[test]
fn the_golden_node_parses_and_encodes_to_the_same_bytes() {
    let node = golden_node();
    let sets = frame().parse(&node).unwrap();
    assert_eq!(sets.len(), 2);
    assert_eq!((sets[0].keys.len(), sets[0].block, sets[0].blocks), (0, 0, 1));
    assert_eq!((sets[1].keys.len(), sets[1].block, sets[1].blocks), (7, 1, 1));
    let zeroed = sets[1].keys[5];
    assert!(zeroed.is_check() && zeroed.size() == 0);
    for set in &sets {
        let bytes = BsetWriter { frame: &frame(), seq: set.seq }.encode(&set.keys);
        assert_eq!(bytes, node[set.block * 4096..][..4096]);
    }
}

#[test]
fn a_set_copied_to_another_bucket_or_generation_no_longer_checks() {
    let node = golden_node();
    for word in [0x0015_0002, 0x0015_0101] {
        let moved = NodeFrame { key: Key::node(Pos::MAX, 256, Ptr::from_word(word)), ..frame() };
        assert_eq!(moved.parse(&node).unwrap_err().field, "csum");
    }
}

#[test]
fn version_0_sets_use_the_plain_sum() {
    let mut node = golden_node();
    node[24] = 0;
    let sum = sum::bcache_crc64(&node[8..32]);
    node[..8].copy_from_slice(&sum.to_le_bytes());
    assert_eq!(frame().parse(&node).unwrap().len(), 2);
}

#[test]
fn damage_is_named_by_its_row() {
    let damaged = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut node = golden_node();
        change(&mut node);
        row(&node)
    };
    assert_eq!(damaged(&|n| n[8] ^= 1), 29, "magic");
    assert_eq!(damaged(&|n| n[0] ^= 1), 29, "csum");
    assert_eq!(damaged(&|n| n[4096] ^= 1), 30, "csum of a later set");
    assert_eq!(damaged(&|n| n[4096 + 100] ^= 1), 30, "a key of a later set");
    assert_eq!(damaged(&|n| edit(&frame(), n, 0, |raw, _| raw.version = 2.into())), 29);
    assert_eq!(damaged(&|n| edit(&frame(), n, 1, |raw, _| raw.keys = 0.into())), 30);
    assert_eq!(damaged(&|n| edit(&frame(), n, 1, |raw, _| raw.keys = 20.into())), 32);
    assert_eq!(damaged(&|n| n[28..32].fill(0xFF)), 29, "more keys than room");
    assert_eq!(
        damaged(&|n| {
            n[16..24].fill(0);
            edit(&frame(), n, 0, |raw, _| raw.seq = 0.into());
        }),
        29
    );
    // The second set is gone, the third is still there: something in the middle was lost.
    assert_eq!(
        damaged(&|n| {
            let second = n[4096..8192].to_vec();
            n[8192..12_288].copy_from_slice(&second);
            n[4096..8192].fill(0);
        }),
        31
    );
    assert_eq!(row(&golden_node()[..4096 * 3][..31]), 29, "a node that could not be read whole");
}

#[test]
fn a_node_may_be_filled_to_its_last_block_with_one_set_per_block() {
    let frame = frame();
    let mut node = Vec::new();
    for block in 0..32u64 {
        let keys = [Key::extent(0, block * 8, block * 8 + 8, false, Ptr::new(4096, 0))];
        node.extend(BsetWriter { frame: &frame, seq: 77 }.encode(&keys));
    }
    let sets = frame.parse(&node).unwrap();
    assert_eq!(sets.len(), 32);
    assert_eq!(sets[31].block, 31);
}

proptest! {
    #[test]
    fn any_bytes_behind_a_good_magic_are_read_without_panic(
        tail in prop::collection::vec(any::<u8>(), 0..600), at in 0usize..8300, flip in any::<u8>()
    ) {
        let mut node = golden_node();
        node[at] ^= flip;
        let end = (4096 + 32 + tail.len()).min(node.len());
        node[4096 + 32..end].copy_from_slice(&tail);
        edit(&frame(), &mut node, 1, |raw, _| {
            let words = raw.keys.get() % 100;
            raw.keys = words.into();
        });
        if let Ok(sets) = frame().parse(&node) {
            prop_assert!(!sets.is_empty());
        }
    }
}
