use proptest::prelude::*;

use super::super::PageModel;
use super::*;

fn layout() -> Layout {
    Layout {
        block_size: 8,
        bucket_size: 128,
        nbuckets: 1024,
        first_bucket: 1,
        pages: PageModel::default(),
    }
}

fn words(key: Key) -> Vec<u64> {
    write_keys(&[key])
}

#[test]
fn words_are_those_the_kernel_writes() {
    let clean = Key::extent(0, 1000, 1064, false, Ptr::new(5376, 1));
    assert_eq!(words(clean), [0x9000_0000_0400_0000, 1064, 0x0015_0001]);
    let dirty = Key::extent(0, 1000, 1064, true, Ptr::new(5376, 1));
    assert_eq!(words(dirty), [0x9000_0010_0400_0000, 1064, 0x0015_0001]);
    let hole = Key::invalidation(0, 8, 16);
    assert_eq!(words(hole), [0x8000_0000_0080_0000, 16]);
    let root = Key::node(Pos::MAX, 512, Ptr::new(5376, 1));
    assert_eq!(words(root), [0x9000_0000_200F_FFFF, 0x7FFF_FFFF_FFFF_FFFF, 0x0015_0001]);
    assert_eq!(words(Key::ZERO), [0x8000_0000_0000_0000, 0]);
}

#[test]
fn a_check_key_points_nowhere_and_advances_within_its_offset() {
    let key = Key::check(3, 0, 64, u64::MAX);
    assert!(key.is_check());
    let ptr = key.ptr().unwrap();
    assert!(!ptr.available());
    assert_eq!(ptr.advanced(63).word(), ptr.word() + (63 << 8));
}

#[test]
fn a_freeing_key_sorts_first_and_carries_the_new_generation() {
    let node = Key::node(Pos::new(3, 77), 256, Ptr::new(512, 255));
    let freeing = Key::freeing(node, 0);
    assert!(freeing.is_freeing());
    assert_eq!(freeing.ptr(), Some(Ptr::new(512, 0)));
    assert_eq!(freeing.size(), 256);
}

#[test]
fn the_position_before_the_start_of_a_volume_is_the_end_of_the_one_before() {
    assert_eq!(Pos::new(4, 10).before(), Some(Pos::new(4, 9)));
    assert_eq!(Pos::new(4, 0).before(), Some(Pos::new(3, (1 << 63) - 1)));
    assert_eq!(Pos::ZERO.before(), None);
}

#[test]
fn trimming_keeps_the_pointer_on_the_same_data() {
    let mut key = Key::extent(1, 100, 150, true, Ptr::new(1000, 7));
    key.trim_front(110);
    assert_eq!(key, Key::extent(1, 110, 150, true, Ptr::new(1010, 7)));
    key.trim_back(140);
    assert_eq!(key, Key::extent(1, 110, 140, true, Ptr::new(1010, 7)));
    let mut behind = key;
    behind.trim_front(160);
    assert_eq!((behind.start(), behind.end(), behind.size()), (160, 160, 0));
    let mut before = key;
    before.trim_back(90);
    assert_eq!((before.end(), before.size()), (90, 0));
    let mut emptied = key;
    emptied.empty_in_place();
    assert_eq!((emptied.end(), emptied.size()), (140, 0));
    assert_eq!(emptied.ptr(), Some(Ptr::new(1040, 7)));
}

#[test]
fn neighbours_merge_only_when_their_data_are_neighbours_in_one_bucket() {
    let left = Key::extent(1, 0, 8, true, Ptr::new(1000, 7));
    let right = |ptr, dirty| Key::extent(1, 8, 16, dirty, ptr);
    assert_eq!(
        left.merge(&right(Ptr::new(1008, 7), true), &layout()),
        Merge::Whole(Key::extent(1, 0, 16, true, Ptr::new(1000, 7)))
    );
    assert_eq!(left.merge(&right(Ptr::new(1009, 7), true), &layout()), Merge::No);
    assert_eq!(left.merge(&right(Ptr::new(1008, 8), true), &layout()), Merge::No);
    assert_eq!(left.merge(&right(Ptr::new(1008, 7), false), &layout()), Merge::No);
    assert_eq!(left.merge(&Key::extent(2, 8, 16, true, Ptr::new(1008, 7)), &layout()), Merge::No);
    assert_eq!(left.merge(&Key::invalidation(1, 8, 16), &layout()), Merge::No);
    // 1016 is the last block of its bucket, 1024 the first of the next one.
    let last = Key::extent(1, 0, 8, true, Ptr::new(1016, 7));
    assert_eq!(last.merge(&right(Ptr::new(1024, 7), true), &layout()), Merge::No);
}

#[test]
fn a_merge_stops_at_the_largest_size_a_key_can_hold() {
    let left = Key::invalidation(0, 0, 65_000);
    let right = Key::invalidation(0, 65_000, 66_000);
    assert_eq!(
        left.merge(&right, &layout()),
        Merge::Partly(Key::invalidation(0, 0, 65_535), Key::invalidation(0, 65_535, 66_000))
    );
}

#[test]
fn a_key_with_several_pointers_covers_its_range_and_yields_nothing() {
    let list = [0xA000_0000_0080_0001, 16, 1, 2, 0x8000_0000_0080_0001, 32];
    let keys = read_keys(&list).unwrap();
    assert_eq!(keys, [Key::invalidation(1, 8, 16), Key::invalidation(1, 24, 32)]);
}

#[test]
fn a_cut_key_list_names_the_key_that_does_not_fit() {
    let mut list =
        write_keys(&[Key::invalidation(0, 0, 8), Key::extent(0, 8, 16, false, Ptr::new(8, 0))]);
    list.pop();
    let cut = read_keys(&list).unwrap_err();
    assert_eq!(cut.index, 1);
}

proptest! {
    #[test]
    fn any_words_are_read_without_panic_and_single_pointer_lists_survive(
        list in prop::collection::vec(any::<u64>(), 0..40)
    ) {
        if let Ok(keys) = read_keys(&list) {
            for mut key in keys.iter().copied() {
                let _ = (key.to_string(), key.start(), key.is_check(), key.reserved_bits_clean());
                key.trim_back(key.start().saturating_add(3));
                key.trim_front(key.start().saturating_add(1));
            }
            if words_of(&keys) == list.len() {
                prop_assert_eq!(write_keys(&keys), list);
            }
        }
    }

    #[test]
    fn trimming_in_two_steps_equals_trimming_at_once(start in 0u64..500, size in 1u64..500, a in 0u64..1100, b in 0u64..1100) {
        let key = Key::extent(0, start, start + size, false, Ptr::new(4096, 0));
        let (lo, hi) = (a.min(b), a.max(b));
        let mut twice = key;
        twice.trim_front(lo.min(twice.end()));
        twice.trim_front(hi.min(twice.end()));
        let mut once = key;
        once.trim_front(hi.min(once.end()));
        prop_assert_eq!(once, twice);
        prop_assert_eq!(once.ptr().unwrap().offset() - 4096, u64::from(key.size() - once.size()));
    }
}
