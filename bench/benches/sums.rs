//! The checksums of the formats, over a small and a large structure.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use varve_block::sum;

fn sums(c: &mut Criterion) {
    let mut group = c.benchmark_group("sums");
    for len in [4 << 10, 256 << 10] {
        let data = vec![0x5a; len];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(BenchmarkId::new("crc32c", len), |b| {
            b.iter(|| sum::crc32c(black_box(&data)));
        });
        group.bench_function(BenchmarkId::new("bcache crc64, seeded", len), |b| {
            b.iter(|| sum::bcache_crc64_seeded(black_box(7), black_box(&data)));
        });
        group.bench_function(BenchmarkId::new("xxhash64", len), |b| {
            b.iter(|| sum::xxhash64(black_box(&data)));
        });
    }
    group.finish();
}

criterion_group!(benches, sums);
criterion_main!(benches);
