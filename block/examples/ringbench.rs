//! What one 4 KiB read costs through the runtime: `ringbench FILE [ring|threads] [reads]`.
//!
//! Reads FILE (at least 1 MiB of it, best on tmpfs or in the page cache) at random at depth 1 and 32
//! and prints nanoseconds per read, five times each: the price of the loop, not of a disk.

use std::os::unix::fs::OpenOptionsExt;
use varve_block::rt::{Config, Engine, File, run};
use varve_block::{BufPool, Prng, Rt, Sectors};

const LEN: u64 = 4096;

async fn reads(rt: Rt, file: File, pool: BufPool, blocks: u64, count: u64, seed: u64) {
    let chance = Prng::new(seed);
    let mut buf = pool.take(Sectors(LEN / 512)).await;
    for _ in 0..count {
        buf = file.read_at(chance.below(blocks) * LEN, buf).await.expect("the file reads");
    }
    drop(rt);
}

fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1);
    let path = args.next().expect("usage: ringbench FILE [ring|threads] [reads]");
    let engine = match args.next().as_deref() {
        Some("threads") => Engine::Threads,
        _ => Engine::Ring,
    };
    let total: u64 = args.next().map_or(1_000_000, |n| n.parse().expect("a number"));
    let flags = args.next().map_or(0, |n| n.parse().expect("open flags"));
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(&path)?;
    let blocks = file.metadata()?.len() / LEN;
    assert!(blocks > 0, "the file has at least one block");
    run(Config { engine, lanes: 1 }, move |rt| async move {
        let file = File::new(&rt, file);
        let pool = BufPool::new(64 << 20);
        for depth in [1, 32] {
            let mut ns: Vec<u128> = Vec::new();
            for round in 0..5 {
                let start = rt.now();
                let tasks: Vec<_> = (0..depth)
                    .map(|n| {
                        let (rt, file, pool) = (rt.clone(), file.clone(), pool.clone());
                        let seed = round * 100 + n;
                        rt.clone().spawn(reads(rt, file, pool, blocks, total / depth, seed))
                    })
                    .collect();
                for task in tasks {
                    task.await;
                }
                ns.push((rt.now() - start).as_nanos() / u128::from(total));
            }
            ns.sort_unstable();
            println!("{engine:?} depth {depth}: {ns:?} ns per read");
        }
    })
}
