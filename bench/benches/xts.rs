//! AES-XTS: both engines, at both sector sizes that volumes have, over one request's worth of data.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use varve_crypt::{CipherSpec, Engine, Key, SectorSize, Xts, XtsParams};

const REQUEST: usize = 128 << 10;

fn xts(c: &mut Criterion) {
    let mut group = c.benchmark_group("xts");
    group.throughput(Throughput::Bytes(REQUEST as u64));
    let spec = CipherSpec::parse("aes-xts-plain64").expect("the usual cipher");
    let key = Key::random(64).expect("the host has random numbers");
    for sector in [SectorSize::S512, SectorSize::S4096] {
        for engine in [Engine::AwsLc, Engine::Soft] {
            let params = XtsParams { engine, ..XtsParams::new(spec.clone(), sector) };
            let xts = Xts::new(&params, &key).expect("a random key is not weak");
            let mut data = vec![0x5a; REQUEST];
            let name = format!("{engine:?}");
            group.bench_function(
                BenchmarkId::new(format!("encrypt {name}"), sector.bytes()),
                |b| {
                    b.iter(|| xts.encrypt(black_box(7), black_box(&mut data)));
                },
            );
            group.bench_function(
                BenchmarkId::new(format!("decrypt {name}"), sector.bytes()),
                |b| {
                    b.iter(|| xts.decrypt(black_box(7), black_box(&mut data)));
                },
            );
        }
    }
    group.finish();
}

criterion_group!(benches, xts);
criterion_main!(benches);
