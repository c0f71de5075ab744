//! The cache's index: a lookup and an insertion in one leaf, with every check on. What a request costs
//! beside this is its descent (a lookup per level), its journal entry and its I/O.

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use varve_cache::measure::Leaf;

/// Insertions into one copy of a leaf: some hundreds, so that sealing a set has its share.
const INSERTIONS: u64 = 256;

fn index(c: &mut Criterion) {
    let mut group = c.benchmark_group("index");
    for extents in [500, 4000] {
        let leaf = Leaf::with_extents(extents).expect("extents in a leaf");
        let mut block = 0;
        group.bench_function(BenchmarkId::new("lookup", extents), |b| {
            b.iter(|| {
                block = (block + 911) % extents;
                leaf.lookup(black_box(block)).expect("a sound leaf")
            });
        });
        let name = format!("{INSERTIONS} insertions");
        group.bench_function(BenchmarkId::new(name, extents), |b| {
            b.iter_batched_ref(
                || leaf.clone(),
                |leaf| {
                    for n in 0..INSERTIONS {
                        leaf.insert(black_box(n * 911 % extents), extents + n).expect("room");
                    }
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, index);
criterion_main!(benches);
