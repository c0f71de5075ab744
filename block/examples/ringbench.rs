//! What one 4 KiB read costs through the runtime: `ringbench FILE [ring|threads] [reads]`.
//!
//! Reads FILE at random at depth 1 and 32 and prints nanoseconds per read, five times each, sorted.
//! On tmpfs that is the price of the loop and of one copy, not of a disk.

use varve_block::dev::{FileDevice, FileOptions};
use varve_block::rt::{Config, Engine, run};
use varve_block::{BlockDevice, BufPool, Prng, Sector, Sectors};

const BLOCK: Sectors = Sectors(8);

async fn reads(device: FileDevice, pool: BufPool, count: u64, seed: u64) {
    let blocks = device.geometry().len.0 / BLOCK.0;
    let chance = Prng::new(seed);
    let mut buf = pool.take(BLOCK).await;
    for _ in 0..count {
        let at = Sector(chance.below(blocks) * BLOCK.0);
        buf = device.read(at, buf).await.expect("the file reads");
    }
}

fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1);
    let path = args.next().expect("usage: ringbench FILE [ring|threads] [reads]");
    let engine = match args.next().as_deref() {
        Some("threads") => Engine::Threads,
        _ => Engine::Ring,
    };
    let total: u64 = args.next().map_or(1_000_000, |n| n.parse().expect("a number"));
    run(Config { engine, lanes: 1 }, move |rt| async move {
        let options = FileOptions { read_only: true, ..FileOptions::default() };
        let device = FileDevice::open(&rt, path, options).await.expect("the file opens");
        let pool = BufPool::new(64 << 20);
        let mode = if device.is_direct() { "direct" } else { "buffered" };
        for depth in [1, 32] {
            let mut ns: Vec<u128> = Vec::new();
            for round in 0..5 {
                let start = rt.now();
                let tasks: Vec<_> = (0..depth)
                    .map(|n| {
                        let (device, pool) = (device.clone(), pool.clone());
                        rt.spawn(reads(device, pool, total / depth, round * 100 + n))
                    })
                    .collect();
                for task in tasks {
                    task.await;
                }
                ns.push((rt.now() - start).as_nanos() / u128::from(total));
            }
            ns.sort_unstable();
            println!("{engine:?} {mode} depth {depth}: {ns:?} ns per read");
        }
    })
}
