//! AES-XTS: every engine, at both sector sizes that volumes have, in small and in large requests.
//!
//! First a table of ratios to AWS-LC, all engines in turn so that what else the machine does hits them
//! alike; then criterion's own figures, one engine after the other.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::time::Instant;
use varve_crypt::{CipherSpec, Engine, Key, SectorSize, Xts, XtsParams, speed};

const REQUESTS: [usize; 2] = [4 << 10, 1 << 20];
const SECTORS: [SectorSize; 2] = [SectorSize::S512, SectorSize::S4096];

fn spec() -> CipherSpec {
    CipherSpec::parse("aes-xts-plain64").expect("the usual cipher")
}

fn ratios(_: &mut Criterion) {
    #[expect(clippy::disallowed_methods, reason = "a benchmark measures the world's time")]
    let start = Instant::now();
    let clock = || start.elapsed();
    println!("AES-256-XTS, encrypt and decrypt in MiB/s and as multiples of aws-lc");
    for request in REQUESTS {
        for sector in SECTORS {
            let all = speed::ciphers(&spec(), 512, sector, request, 200, &clock)
                .expect("every engine does AES-256-XTS");
            let base = all.iter().find(|s| s.engine == "aws-lc").expect("always built in");
            for s in &all {
                println!(
                    "request {:>7} sector {:>4} {:<8} {:>7.0} {:>7.0}   x{:.2} x{:.2}",
                    request,
                    s.sector_size,
                    s.engine,
                    s.encrypt_mib_s,
                    s.decrypt_mib_s,
                    s.encrypt_mib_s / base.encrypt_mib_s,
                    s.decrypt_mib_s / base.decrypt_mib_s,
                );
            }
        }
    }
}

fn xts(c: &mut Criterion) {
    let key = Key::random(64).expect("the host has random numbers");
    for request in REQUESTS {
        let mut group = c.benchmark_group(format!("xts {request}"));
        group.throughput(Throughput::Bytes(request as u64));
        for sector in SECTORS {
            for engine in Engine::available() {
                let params = XtsParams { engine, ..XtsParams::new(spec(), sector) };
                let xts = Xts::new(&params, &key).expect("a random key is not weak");
                let (mut data, mut to) = (vec![0x5a; request], vec![0; request]);
                let id =
                    |what| BenchmarkId::new(format!("{what} {}", engine.name()), sector.bytes());
                group.bench_function(id("encrypt"), |b| {
                    b.iter(|| xts.encrypt(black_box(7), black_box(&mut data)));
                });
                group.bench_function(id("decrypt"), |b| {
                    b.iter(|| xts.decrypt(black_box(7), black_box(&mut data)));
                });
                group.bench_function(id("encrypt_into"), |b| {
                    b.iter(|| xts.encrypt_into(black_box(7), black_box(&data), black_box(&mut to)));
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, ratios, xts);
criterion_main!(benches);
