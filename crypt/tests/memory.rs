//! C17: the disk below may be swap, so when the host has no memory left, this layer must still finish what was
//! handed to it. Its buffers come from a pool that was filled at the start, and nothing else is asked for. (A
//! part of a large request that goes to another thread takes a little; here all stays on the lane.)

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use allocation_counter::{AllocationInfo, measure};
use varve_block::dev::Mem;
use varve_block::{BlockDevice, BufPool, Data, Durability, Rt, Sector, Sectors, Sim};
use varve_crypt::{Crypt, CryptOptions, Engine, Key, MapOptions, PlainSpec, VolumeHandle, Workers};

const DISK: Sectors = Sectors(8192);

/// What `future` asks the allocator for, all its turns together.
async fn counted<T>(future: impl Future<Output = T>) -> (T, u64) {
    let mut future = pin!(future);
    let mut count = 0;
    let value = poll_fn(|cx| {
        let mut poll = Poll::Pending;
        let AllocationInfo { count_total, .. } = measure(|| poll = future.as_mut().poll(cx));
        count += count_total;
        poll
    })
    .await;
    (value, count)
}

fn crypt(rt: &Rt, engine: Engine, sector_size: u64) -> Crypt<Mem> {
    let options = MapOptions { data_len: DISK, detached: true, allow_weak_key: false, engine };
    let spec = format!("aes-xts-plain64,sector={sector_size}");
    let key = Key::random(64).expect("the host has random numbers");
    let volume = PlainSpec::parse(&spec).expect("a mapping").open(key, &options).expect("a volume");
    let (handle, pool) = (VolumeHandle::new(volume), BufPool::new(8 << 20));
    let lane = Workers::Up(0);
    let options =
        CryptOptions { read_workers: lane, write_workers: lane, ..CryptOptions::default() };
    Crypt::new(rt, Mem::new(DISK), handle, pool, &options).expect("it fits")
}

/// Allocations of a write that gives its buffer away, of one that keeps it, and of a read.
async fn rounds(c: &Crypt<Mem>, pool: &BufPool, len: Sectors) -> [u64; 3] {
    let (at, how) = (Sector(64), Durability::Cached);
    let owned = Data::Owned(pool.take_zeroed(len).await);
    let (done, gives) = counted(c.write(at, owned, how)).await;
    done.expect("a write");
    let shared = Data::Shared(pool.take_zeroed(len).await.freeze());
    let (done, keeps) = counted(c.write(at, shared, how)).await;
    done.expect("a write");
    let (done, reads) = counted(c.read(at, pool.take(len).await)).await;
    assert!(done.expect("a read").iter().all(|b| *b == 0));
    [gives, keeps, reads]
}

#[test]
fn c17_what_was_handed_over_ends_without_memory() {
    for engine in Engine::available() {
        for sector_size in [512, 4096] {
            for len in [8, 256, 2048].map(Sectors) {
                let [gives, keeps, reads] = Sim::new(1).run(move |rt| async move {
                    let c = crypt(&rt, engine, sector_size);
                    let pool = BufPool::new(8 << 20);
                    rounds(&c, &pool, len).await;
                    rounds(&c, &pool, len).await
                });
                let what = format!("{}, sectors of {sector_size}, {len:?}", engine.name());
                assert_eq!((gives, reads), (0, 0), "{what}");
                // The handle of a buffer, which is also what shows that something is counted.
                assert_eq!(keeps, 1, "{what}");
            }
        }
    }
}
