use super::*;
use crate::format::PageModel;

fn layout() -> Layout {
    Layout {
        block_size: 1,
        bucket_size: 8,
        nbuckets: 520,
        first_bucket: 3,
        pages: PageModel::default(),
    }
}

fn buckets() -> Buckets {
    Buckets::new(&layout(), &[])
}

fn ptr(bucket: u64, generation: u8) -> Ptr {
    Ptr::new(bucket * 8, generation)
}

/// Through the whole life: unused, invalid, free.
fn free(buckets: &mut Buckets, bucket: u64) {
    assert!(buckets.invalidate(Bucket(bucket)));
    let prios = buckets.prios();
    buckets.made_durable(&prios);
    buckets.push_free(Bucket(bucket));
}

#[test]
fn a_bucket_is_had_again_the_moment_its_last_dirty_sector_is_gone() {
    let mut b = buckets();
    free(&mut b, 100);
    assert_eq!(b.take_free(0, Role::Data), Some(Bucket(100)));
    b.add(ptr(100, 1), 8, true);
    assert!(!b.invalidate(Bucket(100)), "dirty");
    b.sub(ptr(100, 1), 5, true);
    assert!(!b.invalidate(Bucket(100)), "still dirty");
    b.sub(ptr(100, 1), 3, true);
    b.add(ptr(100, 1), 3, false);
    b.pin(Bucket(100));
    assert!(!b.invalidate(Bucket(100)), "somebody reads it");
    b.unpin(Bucket(100));
    assert!(b.invalidate(Bucket(100)));
    assert_eq!(b.sectors(Bucket(100)), (0, 0));
    assert_eq!(b.generation(Bucket(100)), 2);
    b.add(ptr(100, 1), 3, false);
    assert_eq!(b.sectors(Bucket(100)), (0, 0), "of an older life");
}

#[test]
#[should_panic(expected = "not invalid on disk yet")]
fn a_bucket_is_not_handed_out_before_a_crash_would_find_it_invalid() {
    let mut b = buckets();
    assert!(b.invalidate(Bucket(100)));
    b.push_free(Bucket(100));
}

#[test]
fn a_freed_node_stays_what_it_was_on_disk_until_its_parent_is_durable() {
    let mut b = buckets();
    b.set_meta(Bucket(50));
    assert_eq!(b.free_node(Bucket(50)), 1);
    assert_eq!(b.generation(Bucket(50)), 1, "in memory its pointers are stale");
    assert_eq!(b.prios()[50].generation, 0, "a chain written now must not say so");
    b.release(Bucket(50));
    assert_eq!(b.prios()[50].generation, 1);
}

#[test]
fn generations_stop_in_front_of_the_oldest_pointer_and_go_on_after_gc() {
    let mut b = buckets();
    for _ in 0..GEN_DISTANCE_MAX {
        free(&mut b, 100);
        b.take_free(0, Role::Data);
    }
    assert!(!b.invalidate(Bucket(100)));
    let prng = Prng::new(1);
    let (some, blocked) = b.candidates(1000, Replacement::Lru, &prng);
    assert!(!some.contains(&Bucket(100)));
    assert_eq!(blocked, 1);
    let mut oldest = b.begin_gc();
    assert_eq!(oldest[100], GEN_DISTANCE_MAX);
    oldest[100] -= 3; // gc found a pointer three lives old
    b.end_gc(&oldest);
    for _ in 0..GEN_DISTANCE_MAX - 3 {
        free(&mut b, 100);
        b.take_free(0, Role::Data);
    }
    assert!(!b.invalidate(Bucket(100)));
}

#[test]
fn the_cheapest_buckets_go_first() {
    let prng = Prng::new(1);
    let mut b = buckets();
    for bucket in 3..520 {
        free(&mut b, bucket);
    }
    while let Some(bucket) = b.take_free(0, Role::Data) {
        // Bucket n was used at time n.
        b.add(ptr(bucket.0, 1), if bucket.0 == 400 { 0 } else { 8 }, false);
        b.age(b.layout.sectors() / 1024 + 1);
    }
    b.touch(Bucket(3));
    let (first, _) = b.candidates(4, Replacement::Lru, &prng);
    assert_eq!(first, [400, 4, 5, 6].map(Bucket), "the empty one, then the oldest");
    let (fifo, _) = b.candidates(4, Replacement::Fifo, &prng);
    assert_eq!(fifo, [3, 4, 5, 6].map(Bucket));
    let (fifo, _) = b.candidates(2, Replacement::Fifo, &prng);
    assert_eq!(fifo, [7, 8].map(Bucket), "on from there");
    let (random, _) = b.candidates(50, Replacement::Random, &prng);
    assert_eq!(random.len(), 50);
    assert!(random.windows(2).all(|pair| pair[0] < pair[1]), "none twice");
}

#[test]
fn recovery_raises_generations_and_notices_when_it_counted_too_early() {
    let mut b = buckets();
    b.recover_pointer(ptr(10, 5));
    b.add(ptr(10, 5), 4, true);
    b.recover_pointer(ptr(10, 3));
    assert!(!b.voided());
    assert!(!b.is_current(ptr(10, 3)));
    assert_eq!(b.sectors(Bucket(10)), (4, 4));
    b.recover_pointer(ptr(10, 6));
    assert!(b.voided(), "what was counted belongs to an older life");
}

#[test]
fn in_use_counts_dirty_metadata_and_what_is_being_written() {
    let mut b = buckets();
    for bucket in 3..3 + 52 {
        free(&mut b, bucket);
        b.take_free(0, Role::Data);
        b.add(ptr(bucket, 1), 1, true);
    }
    assert_eq!(b.in_use_percent(), 10);
    for bucket in 100..152 {
        free(&mut b, bucket);
        b.take_free(0, Role::Data);
        b.add(ptr(bucket, 1), 8, false);
    }
    assert_eq!(b.in_use_percent(), 10, "clean data are not in use");
    for bucket in 100..152 {
        b.pin(Bucket(bucket));
    }
    assert_eq!(b.in_use_percent(), 20);
}
