//! Large requests whose parts are computed on several threads: the bytes and the order of those that
//! stay on their lane.

use super::*;
use varve_block::dev::sim::Image;

/// A clean layer with so many threads, or one with a defect.
fn spread<D: BlockDevice>(
    rt: &Rt,
    below: D,
    threads: usize,
    mutation: Option<Mutation>,
) -> Crypt<D> {
    let spec = format!("aes-xts-plain64,sector=512,offset={OFFSET}");
    let volume = VolumeHandle::new(volume_of(&spec, below.geometry().len));
    let workers = Workers::Up(threads);
    let options =
        CryptOptions { read_workers: workers, write_workers: workers, ..CryptOptions::default() };
    let c = Crypt::new(rt, below, volume, BufPool::new(8 << 20), &options).unwrap();
    match mutation {
        Some(mutation) => c.with_mutation(mutation),
        None => c,
    }
}

#[test]
fn flags_keep_their_direction_on_the_lane() {
    let flags = |words: &[&str]| {
        let kept: Vec<_> = words.iter().map(|w| (*w).to_owned()).collect();
        let o = CryptOptions::new(&Activation::default().over(&kept), Workers::Up(3));
        (o.read_workers, o.write_workers, o.allow_discards)
    };
    let (on, off) = (Workers::Up(3), Workers::Up(0));
    assert_eq!(flags(&[]), (on, on, false));
    assert_eq!(flags(&["no-read-workqueue"]), (off, on, false));
    assert_eq!(flags(&["no-write-workqueue"]), (on, off, false));
    assert_eq!(flags(&["same-cpu-crypt"]), (off, off, false));
    assert_eq!(flags(&["submit-from-crypt-cpus", "allow-discards"]), (on, on, true));
}

/// C05: the threads run dry after `k` parts of a request, for every `k`. What is left is done on the
/// lane, from where the threads stopped.
#[test]
fn c05_a_request_goes_on_where_the_threads_ran_dry() {
    const THREADS: usize = 8;
    let clear = pattern(0, 900 << 10);
    let n = Sectors::of_slice(&clear).0;
    // (ciphertext of an owned and of a shared write, and what a read gives) with `k` free threads.
    let run = |k: usize, mutation: Option<Mutation>| {
        let clear = clear.clone();
        Sim::new(3).run(move |rt| async move {
            let (one, two) = (Mem::new(DISK), Mem::new(DISK));
            let a = spread(&rt, one.clone(), THREADS, mutation.clone());
            let b = spread(&rt, two.clone(), THREADS, mutation);
            for side in [&a.reads, &a.writes, &b.reads, &b.writes] {
                assert_eq!(side.free.available(), THREADS);
            }
            let held: Vec<_> = [&a.reads, &a.writes, &b.writes]
                .map(|s| s.free.try_acquire(THREADS - k).expect("all are free"))
                .into();
            write(&a, 40, &clear).await;
            let view = BufPool::new(8 << 20).take_copy(&clear).await.freeze();
            b.write(Sector(40), Data::Shared(view.clone()), Durability::Cached).await.unwrap();
            assert_eq!(&view[..], &clear[..], "shared bytes stay");
            let back = read(&a, 40, n).await;
            drop(held);
            assert_eq!(a.writes.free.available(), THREADS, "every thread came back");
            (one.to_vec(), two.to_vec(), back)
        })
    };
    let (whole, _, _) = run(0, None);
    for k in 0..=THREADS {
        let (owned, shared, back) = run(k, None);
        assert!(owned == whole && shared == whole && back == clear, "{k} threads");
        // Alone on the lane there is no position to lose, and with threads to spare none is left over.
        let (owned, shared, _) = run(k, Some(Mutation::ForgetPosition));
        assert_eq!((owned == whole, shared == whole), (k == 0, k == 0), "{k} threads, mutated");
    }
}

/// C15: every request chooses anew where it is computed. Same bytes, same order.
#[test]
fn c15_a_change_of_mode_changes_neither_bytes_nor_order() {
    const HALF: u64 = 2016;
    let run = |seed, mutation: Option<Mutation>| {
        let (model, seen, image) = Sim::new(seed).run(|rt| async move {
            let geometry = Geometry::new(DevId::new("disk"), DISK);
            let below = SimDisk::new(&rt, geometry, Image::new(DISK), Plan::default());
            // One volume, four ways to compute; only the one with many threads may have the defect.
            let ways: Rc<Vec<_>> = Rc::new(
                [0, 1, 2, 3]
                    .map(|n| spread(&rt, below.clone(), n, mutation.clone().filter(|_| n == 3)))
                    .into(),
            );
            let clients: Vec<_> = (0..2u64)
                .map(|half| {
                    let (rt, ways) = (rt.clone(), Rc::clone(&ways));
                    rt.clone().spawn(async move { client(&rt, &ways, half * HALF, HALF).await })
                })
                .collect();
            let mut model = Vec::new();
            let mut wrong = 0;
            for one in clients {
                let (bytes, n) = one.await;
                model.extend(bytes);
                wrong += n;
            }
            ways[0].flush().await.unwrap();
            (model, wrong, below.cut(rt.prng()))
        });
        if seen > 0 {
            return Err(format!("{seen} reads gave other bytes"));
        }
        let after = Sim::new(0).run(move |rt| async move {
            let geometry = Geometry::new(DevId::new("disk"), DISK);
            let below = SimDisk::new(&rt, geometry, image, Plan::instant());
            let c = spread(&rt, below, 0, None);
            [read(&c, 0, HALF).await, read(&c, HALF, HALF).await].concat()
        });
        if after == model { Ok(()) } else { Err("other bytes after the cut".to_owned()) }
    };
    for seed in 0..10 {
        if let Err(e) = run(seed, None) {
            panic!("C15, seed {seed}: {e}");
        }
    }
    let caught = (0..10).filter(|&s| run(s, Some(Mutation::AnswerWhenQueued)).is_err()).count();
    assert!(caught > 0, "C15: an order that depends on the mode went unnoticed");
}

/// Writes and reads its own part in requests of all sizes, one after the other, each another way. Gives
/// the content that the part must have, and how many reads gave something else.
async fn client(rt: &Rt, ways: &[Crypt<SimDisk>], start: u64, len: u64) -> (Vec<u8>, usize) {
    let bytes = |sectors: u64| usize::try_from(sectors * 512).unwrap();
    let mut model = pattern(start, bytes(len));
    let mut wrong = 0;
    write(&ways[0], start, &model).await;
    for round in 0..16 {
        let below = |n: u64| rt.prng().below(n);
        let way = &ways[usize::try_from(below(4)).unwrap()];
        let n = 1 + below(if below(2) == 0 { 64 } else { len });
        let at = below(len - n + 1);
        let part = bytes(at)..bytes(at + n);
        if below(3) == 0 {
            wrong += usize::from(read(way, start + at, n).await != model[part]);
        } else {
            let new = pattern(start + at * 31 + round, bytes(n));
            write(way, start + at, &new).await;
            model[part].copy_from_slice(&new);
        }
    }
    (model, wrong)
}
