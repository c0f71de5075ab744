use super::*;
use crate::buf::BufPool;
use crate::error::DevId;
use crate::rt::Sim;
use crate::sync::{join_all, poll_once};
use crate::units::Sectors;
use std::collections::BTreeSet;

fn geometry(len: u64) -> Geometry {
    Geometry { can_discard: true, ..Geometry::new(DevId::new("sim"), Sectors(len)) }
}

fn disk(rt: &Rt, len: u64, plan: Plan) -> SimDisk {
    SimDisk::new(rt, geometry(len), Image::new(Sectors(len)), plan)
}

async fn fill(disk: &SimDisk, pool: &BufPool, at: u64, len: u64, byte: u8, how: Durability) {
    let mut buf = pool.take(Sectors(len)).await;
    buf.fill(byte);
    disk.write(Sector(at), buf.into(), how).await.unwrap();
}

/// The byte each sector is filled with.
fn sectors(image: &Image) -> Vec<u8> {
    let all = image.to_vec();
    let whole = |s: &[u8]| {
        assert!(s.iter().all(|b| *b == s[0]), "a unit is torn");
        s[0]
    };
    all.chunks(512).map(whole).collect()
}

#[test]
fn a_cut_takes_what_no_flush_covered_in_any_combination() {
    Sim::new(1).run(|rt| async move {
        let (disk, pool) = (disk(&rt, 4, Plan::default()), BufPool::new(0));
        fill(&disk, &pool, 0, 4, 1, Durability::Cached).await;
        disk.flush().await.unwrap();
        fill(&disk, &pool, 0, 2, 2, Durability::Cached).await;
        fill(&disk, &pool, 1, 1, 3, Durability::Cached).await;
        fill(&disk, &pool, 2, 1, 4, Durability::Fua).await;
        let chance = Prng::new(9);
        let seen: BTreeSet<Vec<u8>> = (0..300).map(|_| sectors(&disk.snapshot(&chance))).collect();
        let all: BTreeSet<Vec<u8>> =
            [1, 2].into_iter().flat_map(|a| [1, 2, 3].map(|b| vec![a, b, 4, 1])).collect();
        assert_eq!(seen, all);
        assert_eq!(sectors(&disk.settled()), [2, 3, 4, 1]);
    });
}

#[test]
fn a_flush_covers_what_finished_before_it_began_and_no_more() {
    // Among many seeds, a write that overlaps the flush in time is once kept and once lost.
    let mut kept = BTreeSet::new();
    for seed in 0..100 {
        let after = Sim::new(seed).run(|rt| async move {
            let (disk, pool) = (disk(&rt, 2, Plan::default()), BufPool::new(0));
            fill(&disk, &pool, 0, 1, 1, Durability::Cached).await;
            let beside = {
                let (disk, pool) = (disk.clone(), pool.clone());
                rt.spawn(async move { fill(&disk, &pool, 1, 1, 1, Durability::Cached).await })
            };
            disk.flush().await.unwrap();
            let image = disk.cut(&rt.prng().fork());
            drop(beside);
            sectors(&image)
        });
        assert_eq!(after[0], 1, "seed {seed}");
        kept.insert(after[1]);
    }
    assert_eq!(kept, BTreeSet::from([0, 1]));
}

#[test]
fn a_write_in_flight_may_be_torn_but_only_between_units() {
    let mut mixed = 0;
    for seed in 0..200 {
        let after = Sim::new(seed).run(|rt| async move {
            let (disk, pool) = (disk(&rt, 8, Plan::default()), BufPool::new(0));
            let mut write = Box::pin(fill(&disk, &pool, 0, 8, 7, Durability::Fua));
            if poll_once(write.as_mut()).is_ready() {
                return vec![7]; // it was answered within its submission
            }
            rt.sleep(Duration::from_nanos(rt.prng().below(3000))).await;
            sectors(&disk.cut(&rt.prng().fork()))
        });
        mixed += usize::from(after.contains(&0) && after.contains(&7));
    }
    assert!(mixed > 10, "{mixed} torn writes in 200");
}

#[test]
fn a_lie_about_flush_loses_data() {
    let lost = (0..50).any(|seed| {
        Sim::new(seed).run(|rt| async move {
            let plan = Plan { lies_about_flush: true, ..Plan::default() };
            let (disk, pool) = (disk(&rt, 1, plan), BufPool::new(0));
            fill(&disk, &pool, 0, 1, 1, Durability::Cached).await;
            disk.flush().await.unwrap();
            sectors(&disk.cut(&rt.prng().fork())) == [0]
        })
    });
    assert!(lost);
}

#[test]
fn faults_pick_what_they_were_told_and_leave_the_medium_alone() {
    Sim::new(3).run(|rt| async move {
        let bad = Extent::new(Sector(4), Sectors(1));
        let nth = Fault::new(Op::Write, When::Nth(2), Effect::Fail(ErrorKind::NoSpace));
        let always = Fault::new(Op::Read, When::From(1), Effect::Fail(ErrorKind::Io));
        let plan = Plan::default().with(nth).with(always.within(bad));
        let (disk, pool) = (disk(&rt, 8, plan), BufPool::new(0));
        fill(&disk, &pool, 0, 8, 1, Durability::Fua).await;
        let buf = pool.take(Sectors(1)).await;
        let second = disk.write(Sector(0), buf.into(), Durability::Cached).await;
        assert_eq!(second.unwrap_err().kind, ErrorKind::NoSpace);
        fill(&disk, &pool, 0, 1, 1, Durability::Fua).await;
        let read = disk.read(Sector(3), pool.take(Sectors(2)).await).await;
        assert_eq!(read.unwrap_err().kind, ErrorKind::Io);
        disk.read(Sector(3), pool.take(Sectors(1)).await).await.unwrap();
        disk.flip(700, 0x80);
        let read = disk.read(Sector(1), pool.take(Sectors(1)).await).await;
        assert_eq!(read.unwrap()[188], 0x81);
        assert_eq!(sectors(&disk.settled()), [1; 8], "the medium is pristine");
        fill(&disk, &pool, 1, 1, 1, Durability::Cached).await;
        let read = disk.read(Sector(1), pool.take(Sectors(1)).await).await;
        assert_eq!(read.unwrap()[188], 1, "writing heals");
    });
}

#[test]
fn a_failed_flush_poisons_and_a_dead_disk_answers_nothing_else() {
    Sim::new(4).run(|rt| async move {
        let plan =
            Plan::default().with(Fault::new(Op::Flush, When::Nth(1), Effect::Fail(ErrorKind::Io)));
        let (disk, pool) = (disk(&rt, 8, plan), BufPool::new(0));
        fill(&disk, &pool, 0, 8, 1, Durability::Cached).await;
        assert_eq!(disk.flush().await.unwrap_err().kind, ErrorKind::Io);
        assert_eq!(disk.flush().await.unwrap_err().kind, ErrorKind::Poisoned);
        disk.read(Sector(3), pool.take(Sectors(1)).await).await.unwrap();
        disk.die();
        let read = disk.read(Sector(3), pool.take(Sectors(1)).await).await;
        assert_eq!(read.unwrap_err().kind, ErrorKind::Io);
    });
}

#[test]
fn torn_units_may_be_unreadable_until_they_are_written() {
    let mut lost = 0;
    for seed in 0..100 {
        lost += usize::from(Sim::new(seed).run(|rt| async move {
            let plan = Plan { torn_units_unreadable: true, inline_permille: 0, ..Plan::default() };
            let (disk, pool) = (disk(&rt, 1, plan), BufPool::new(0));
            let mut write = Box::pin(fill(&disk, &pool, 0, 1, 7, Durability::Fua));
            assert!(poll_once(write.as_mut()).is_pending());
            rt.yield_now().await;
            let image = disk.cut(&rt.prng().fork());
            let again = SimDisk::new(&rt, geometry(1), image, Plan::default());
            let read = again.read(Sector(0), pool.take(Sectors(1)).await).await;
            fill(&again, &pool, 0, 1, 3, Durability::Cached).await;
            let healed = again.read(Sector(0), pool.take(Sectors(1)).await).await;
            assert_eq!(healed.unwrap()[0], 3);
            read.is_err()
        }));
    }
    assert!((5..60).contains(&lost), "{lost}");
}

fn history(seed: u64) -> (u64, u64) {
    Sim::new(seed).run(|rt| async move {
        let (disk, pool) = (disk(&rt, 64, Plan::default()), BufPool::new(0));
        join_all((0..8u8).map(|client| {
            let (disk, pool, task_rt) = (disk.clone(), pool.clone(), rt.clone());
            rt.spawn(async move {
                for _ in 0..20 {
                    let at = task_rt.prng().below(60);
                    fill(&disk, &pool, at, 4, client, Durability::Cached).await;
                    disk.discard(Extent::new(Sector(at), Sectors(1))).await.unwrap();
                }
            })
        }))
        .await;
        assert_eq!(disk.operations(), 320);
        assert!(disk.log().iter().all(|r| r.outcome == Outcome::Done));
        (disk.digest(), disk.settled().digest())
    })
}

#[test]
fn a_seed_is_one_history() {
    assert_eq!(history(7), history(7));
    assert_ne!(history(7), history(8));
}
