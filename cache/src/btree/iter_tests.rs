use super::super::model::{NeverStale, frame, layout};
use super::super::{InsertCtx, Node};
use super::*;
use crate::format::Ptr;

fn extent(start: u64, end: u64, sector: u64) -> Key {
    Key::extent(1, start, end, false, Ptr::new(sector, 0))
}

/// Bug 2: a writer that did not store the upper part again is no excuse for losing it.
#[test]
fn a_hole_in_an_older_extent_leaves_both_its_ends() {
    let old = [extent(0, 60, 6400)];
    let new = [extent(16, 24, 12_800)];
    assert_eq!(
        fixup_merge(&[&old, &new], &layout()),
        [extent(0, 16, 6400), extent(16, 24, 12_800), extent(24, 60, 6424)]
    );
}

/// Bug 3: of extents with equal starts the newest must come first.
#[test]
fn of_equal_starts_the_newest_wins_whatever_its_length() {
    let short = [extent(8, 16, 6400)];
    let long = [extent(8, 32, 12_800)];
    assert_eq!(fixup_merge(&[&short, &long], &layout()), [extent(8, 32, 12_800)]);
    assert_eq!(
        fixup_merge(&[&long, &short], &layout()),
        [extent(8, 16, 6400), extent(16, 32, 12_808)]
    );
    let third = [extent(8, 12, 19_200)];
    assert_eq!(
        fixup_merge(&[&long, &short, &third], &layout()),
        [extent(8, 12, 19_200), extent(12, 16, 6404), extent(16, 32, 12_808)]
    );
}

#[test]
fn a_newer_invalidation_removes_and_a_newer_zeroed_key_does_not() {
    let old = [extent(0, 32, 6400)];
    let mut zeroed = extent(8, 16, 12_800);
    zeroed.empty_in_place();
    assert_eq!(fixup_merge(&[&old, &[zeroed]], &layout()), [extent(0, 32, 6400)]);
    assert_eq!(
        fixup_merge(&[&old, &[Key::invalidation(1, 8, 40)]], &layout()),
        [extent(0, 8, 6400), Key::invalidation(1, 8, 40)]
    );
}

/// Bug 33: the kernel's iterator had room for four sets, nodes on disk have one per block.
#[test]
fn a_node_with_as_many_sets_as_blocks_is_read() {
    let frame = frame(64, 8, 0);
    let wide = crate::format::NodeFrame { blocks: 512, ..frame };
    let mut image = Vec::new();
    for n in 0..512u64 {
        // Each set covers the upper half of the one before.
        let keys = [extent(n * 8, n * 8 + 16, (1 << 20) + n * 64)];
        image.extend(crate::format::BsetWriter { frame: &wide, seq: 9 }.encode(&keys));
    }
    let node = Node::parse(wide, &image, &layout(), Guards::all()).unwrap();
    assert_eq!(node.room(), 0, "no block is left");
    assert!(!node.has_unwritten());
    let keys: Vec<Key> = node.iter().collect();
    assert_eq!(keys.len(), 512);
    for (n, key) in (0u64..).zip(&keys[..511]) {
        assert_eq!(*key, extent(n * 8, n * 8 + 8, (1 << 20) + n * 64));
    }
    assert_eq!(keys[511].size(), 16);
}

#[test]
fn pieces_end_where_the_leaf_ends_and_know_nothing_of_other_volumes() {
    let layout = layout();
    let mut node = Node::fresh(frame(64, 4, 0), 9, Guards::all());
    let ctx = InsertCtx::new(&layout);
    let mut put = |key| {
        let _ = node.insert(&ctx, key, None, &mut Vec::new()).unwrap();
    };
    put(extent(8, 16, 6400));
    put(extent(24, 32, 12_800));
    put(Key::extent(2, 0, 8, true, Ptr::new(19_200, 0)));
    let pieces = |start, end| -> Vec<Piece> {
        node.pieces(1, start, end, &layout, &NeverStale).unwrap().collect()
    };
    assert_eq!(
        pieces(10, 28),
        [
            Piece::Hit { start: 10, end: 16, sector: 6402, key: extent(8, 16, 6400) },
            Piece::Gap { start: 16, end: 24 },
            Piece::Hit { start: 24, end: 28, sector: 12_800, key: extent(24, 32, 12_800) },
        ]
    );
    assert_eq!(pieces(32, 100), [Piece::Gap { start: 32, end: 100 }]);
    assert_eq!(pieces(5, 5), []);

    let bound = crate::format::Pos::new(1, 30);
    let left = crate::format::NodeFrame { key: node.key().with_pos(bound), ..*node.frame() };
    let keys = vec![extent(24, 30, 12_800)];
    let left = Node::with_keys(left, 9, keys, Guards::all()).unwrap();
    let ends = |inode, start, end| {
        left.pieces(inode, start, end, &layout, &NeverStale).unwrap().collect::<Vec<_>>()
    };
    assert_eq!(ends(1, 28, 100).len(), 1, "the rest is in the next leaf");
    assert_eq!(ends(1, 30, 100), []);
    assert_eq!(ends(2, 0, 100), []);
    assert_eq!(ends(0, 0, 100), [Piece::Gap { start: 0, end: 100 }]);
}
