use super::super::model::{NeverStale, apply, frame, layout};
use super::super::{DirtyDelta, InsertCtx, Inserted};
use super::*;
use crate::error::Rule;
use crate::format::{Ptr, bset};

fn extent(start: u64, end: u64, sector: u64) -> Key {
    Key::extent(1, start, end, false, Ptr::new(sector, 0))
}

/// Writes `sets` one after the other and reads the node.
fn read(level: u8, sets: &[&[Key]]) -> Result<Node, Corrupt> {
    let frame = frame(64, 8, level);
    let mut image = Vec::new();
    for keys in sets {
        image.extend(BsetWriter { frame: &frame, seq: 9 }.encode(keys));
    }
    image.resize(frame.bytes(), 0);
    Node::parse(frame, &image, &layout(), Guards::all())
}

fn refused(level: u8, sets: &[&[Key]]) -> (Rule, &'static str, Option<usize>, Option<usize>) {
    let broken = read(level, sets).unwrap_err();
    assert_eq!(broken.place.level, Some(level));
    (broken.rule, broken.field, broken.place.bset, broken.place.index)
}

fn child(offset: u64, bucket: u64) -> Key {
    Key::node(Pos::new(1, offset), 64, Ptr::new(bucket * 64, 0))
}

#[test]
fn disorder_under_a_perfect_checksum_is_refused_by_name() {
    let fine = [extent(0, 8, 6400)];
    assert_eq!(
        refused(0, &[&fine, &[extent(16, 24, 6464), extent(8, 16, 6528)]]),
        (Rule::Row(37), verify::SKIPPED_BACKWARDS, Some(1), Some(1))
    );
    assert_eq!(
        refused(0, &[&[extent(0, 16, 6464), extent(8, 24, 6528)]]),
        (Rule::Row(37), verify::SKIPPED_BACKWARDS, Some(0), Some(1))
    );
    assert_eq!(
        refused(1, &[&[child(16, 100), child(16, 101)]]),
        (Rule::Row(38), verify::SKIPPED_BACKWARDS, Some(0), Some(1))
    );
    let out_of_bounds = Key::extent(1, 0, 8, false, Ptr::new(8, 0));
    assert_eq!(refused(0, &[&[out_of_bounds]]), (Rule::Row(35), "ptr", Some(0), Some(0)));
    assert_eq!(refused(1, &[&[extent(0, 8, 12)]]), (Rule::Row(36), "ptr", Some(0), Some(0)));
    assert_eq!(
        refused(1, &[&[Key::invalidation(1, 0, 8)]]),
        (Rule::Row(36), "ptrs", Some(0), Some(0))
    );
}

#[test]
fn keys_behind_the_bound_are_refused() {
    let mut frame = frame(64, 8, 0);
    frame.key = frame.key.with_pos(Pos::new(1, 20));
    let mut image = BsetWriter { frame: &frame, seq: 9 }.encode(&[extent(16, 24, 6400)]);
    image.resize(frame.bytes(), 0);
    let broken = Node::parse(frame, &image, &layout(), Guards::all()).unwrap_err();
    assert_eq!((broken.rule, broken.field), (Rule::Row(41), verify::SHORT_BTREE_KEY));
    assert!(broken.to_string().contains("short btree key"), "{broken}");
}

#[test]
fn two_live_children_with_one_bound_are_refused_and_a_replaced_one_is_not() {
    let node = read(1, &[&[child(16, 100)], &[child(16, 101)]]).unwrap();
    let broken = node.verify_live(&layout(), &NeverStale).unwrap_err();
    assert_eq!((broken.rule, broken.field), (Rule::Row(40), verify::DUPLICATE));
    let mut gens = vec![0u8; 200];
    gens[100] = 1;
    node.verify_live(&layout(), &gens).unwrap();
    let found = node.child_for(Pos::new(1, 3), &layout(), &gens).unwrap().unwrap();
    assert_eq!(found, child(16, 101));
    assert_eq!(node.child_for(Pos::new(1, 16), &layout(), &gens).unwrap(), None);
    assert_eq!(node.usable_keys(&layout(), &gens), [child(16, 101)]);
}

#[test]
fn keys_before_the_previous_bound_are_refused() {
    let leaf = read(0, &[&[extent(8, 16, 6400)]]).unwrap();
    leaf.verify_above(Pos::new(1, 8)).unwrap();
    assert_eq!(leaf.verify_above(Pos::new(1, 9)).unwrap_err().rule, Rule::Row(42));
    let interior = read(1, &[&[Key::freeing(child(4, 99), 1), child(16, 100)]]).unwrap();
    interior.verify_above(Pos::new(1, 15)).unwrap();
    assert_eq!(interior.verify_above(Pos::new(1, 16)).unwrap_err().rule, Rule::Row(42));
}

#[test]
fn a_node_grows_by_whole_blocks_until_it_is_full() {
    let layout = layout();
    let ctx = InsertCtx::new(&layout);
    let mut node = Node::fresh(frame(64, 3, 0), 9, Guards::all());
    let mut image = vec![0; node.frame().bytes()];
    assert!(node.has_unwritten(), "a new node is written although it is empty");
    assert_eq!(node.room(), (3 * 4096 - 32) / 8 - 8);
    for round in 0..3u64 {
        let before = node.room();
        let _ = node.insert(
            &ctx,
            extent(round * 8, round * 8 + 8, 6400 + 64 * round),
            None,
            &mut Vec::new(),
        );
        assert_eq!(node.room(), before - 3);
        let write = node.seal(&layout, &NeverStale).unwrap();
        assert_eq!((write.sector, write.bytes.len()), (4096 + 8 * round, 4096));
        apply(&mut image, &node, &write);
        let again = Node::parse(*node.frame(), &image, &layout, Guards::all()).unwrap();
        assert_eq!(again.iter().collect::<Vec<_>>(), node.iter().collect::<Vec<_>>());
        assert_eq!((again.room(), again.seq()), (node.room(), 9));
    }
    assert_eq!(node.room(), 0);
    assert!(!node.has_unwritten());
}

#[test]
fn dirty_data_of_another_life_of_the_bucket_is_not_written_into_a_set() {
    let layout = layout();
    let mut node = Node::fresh(frame(64, 3, 0), 9, Guards::all());
    let key = extent(0, 8, 6400).with_dirty(true);
    let _ = node.insert(&InsertCtx::new(&layout), key, None, &mut Vec::new()).unwrap();
    let mut gens = vec![0u8; 200];
    gens[100] = 1;
    let broken = node.seal(&layout, &gens).unwrap_err();
    assert_eq!(broken.rule, Rule::Online(7));
    assert_eq!(node.poison(), Some(&broken));
    assert!(node.seal(&layout, &NeverStale).is_err(), "a poisoned node stays so");
}

/// What the kernel's node of the golden vectors went through, insertion by insertion.
#[test]
fn the_golden_set_grows_from_its_history() {
    let image = bset::tests::golden_node();
    let layout = Layout { bucket_size: 256, nbuckets: 1024, ..layout() };
    let magic = uuid::Uuid::parse_str("14a6efd5-c5c2-422c-9a1f-fa464c344d33").unwrap();
    let root = Key::node(Pos::MAX, 256, Ptr::from_word(0x0015_0001));
    let frame = NodeFrame::new(root, 0, crate::format::SetMagic::of(magic), &layout);
    let kernel = Node::parse(frame, &image, &layout, Guards::all()).unwrap();

    let mut node = Node::fresh(frame, kernel.seq(), Guards::all());
    let gens = vec![1u8; 1024];
    let first = node.seal(&layout, &gens).unwrap();
    assert_eq!(first.bytes, image[..4096]);
    let ctx = InsertCtx::new(&layout);
    let mut deltas = Vec::new();
    for (start, end, word) in [
        (1016, 1080, 0x1b_0001),
        (1032, 1040, 0x1b_4001),
        (1072, 1088, 0x1b_4801),
        (16, 24, 0x1b_5801),
    ] {
        let key = Key::extent(0, start, end, true, Ptr::from_word(word));
        let _ = node.insert(&ctx, key, None, &mut deltas).unwrap();
    }
    let mut check = Key::check(0, 5016, 5032, 0);
    let words = [0x9000_0000_0100_0000, 5032, 0x7ffb_cf74_d75e_21cf];
    assert_eq!(Key::read(&words).unwrap().1, 3);
    check = Key::read(&words).map_or(check, |(key, _)| key);
    let _ = node.insert(&ctx, check, None, &mut deltas).unwrap();
    let fill = Key::extent(0, 5016, 5032, false, Ptr::from_word(0x1a_0001));
    let done = node.insert(&ctx, fill, Some(&check), &mut deltas).unwrap();
    assert_eq!(done, Inserted::Done { sectors: 16 });
    let write = node.seal(&layout, &gens).unwrap();
    let ours = bset::read_words(&write.bytes[24..200]);
    let theirs = bset::read_words(&image[4096 + 24..4096 + 200]);
    // The check key is zeroed in both; which random pointer is left in it does not matter.
    let differing: Vec<usize> = (0..ours.len()).filter(|i| ours[*i] != theirs[*i]).collect();
    assert_eq!(differing, [18], "{ours:x?} {theirs:x?}");
    let total: i64 = deltas.iter().map(|delta| delta.sectors).sum();
    assert_eq!(total, (1088 - 1016) + 8);
    assert!(deltas.contains(&DirtyDelta { inode: 0, start: 1072, sectors: -8 }));
}
