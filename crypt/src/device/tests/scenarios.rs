//! The corruption stories of encryption layers.

use super::*;
use crate::testing::story::{SEEDS, proven};
use std::cell::RefCell;
use std::time::Duration;

const UNIT: u64 = 8;

fn disk(rt: &Rt, image: Image, plan: Plan) -> SimDisk {
    let geometry = Geometry { block: image.unit(), ..Geometry::new(DevId::new("disk"), DISK) };
    SimDisk::new(rt, geometry, image, plan)
}

fn blank() -> Image {
    Image::with_unit(DISK, Sectors(UNIT))
}

fn with(c: Crypt<SimDisk>, mutation: Option<Mutation>) -> Rc<Crypt<SimDisk>> {
    Rc::new(match mutation {
        Some(m) => c.with_mutation(m),
        None => c,
    })
}

/// The content of version `v` of a unit.
fn version(v: u64) -> Vec<u8> {
    let mut bytes = pattern(v * 7919, 4096);
    bytes[..8].copy_from_slice(&v.to_le_bytes());
    bytes
}

/// The medium after a cut, seen through a clean layer.
fn after_cut(image: Image, at: u64) -> Vec<u8> {
    Sim::new(0).run(move |rt| async move {
        let c = crypt(&rt, disk(&rt, image, Plan::instant()), 4096);
        read(&c, at, UNIT).await
    })
}

/// C02: a page that two readers fill. Each tests "up to date" before it claims the page, as the file
/// system of the report did; a third party looks at the page whenever it is up to date. With a layer
/// that decrypts in the published page, it sees ciphertext.
#[test]
fn c02_a_published_page_never_shows_ciphertext() {
    struct Page {
        bytes: Vec<u8>,
        up_to_date: bool,
    }
    let run = |seed, mutation: Option<Mutation>| {
        Sim::new(seed).run(|rt| async move {
            let clean = crypt(&rt, disk(&rt, blank(), Plan::default()), 4096);
            let clear = version(1);
            write(&clean, 0, &clear).await;
            let page = Rc::new(RefCell::new(Page { bytes: vec![0; 4096], up_to_date: false }));
            let shown = Rc::clone(&page);
            // The defect: "the caller's memory" is the page itself.
            let mutation = mutation.map(|_| {
                Mutation::VisibleBeforeDecryption(Rc::new(move |_, cipher: &[u8]| {
                    shown.borrow_mut().bytes.copy_from_slice(cipher);
                }))
            });
            let c = with(clean, mutation);
            let readers: Vec<_> = (0..2)
                .map(|_| {
                    let (c, rt, page) = (Rc::clone(&c), rt.clone(), Rc::clone(&page));
                    rt.clone().spawn(async move {
                        if page.borrow().up_to_date {
                            return;
                        }
                        rt.yield_now().await;
                        let bytes = read(&*c, 0, UNIT).await;
                        let mut page = page.borrow_mut();
                        page.bytes = bytes;
                        page.up_to_date = true;
                    })
                })
                .collect();
            for step in 0.. {
                rt.sleep(Duration::from_nanos(500)).await;
                let page = page.borrow();
                if page.up_to_date && page.bytes != clear {
                    let at = (0..4096).find(|&i| page.bytes[i] != clear[i]).unwrap() / 16 * 16;
                    let seen = crate::testing::to_hex(&page.bytes[at..at + 16]);
                    return Err(format!("step {step}, byte {at}: {seen} is ciphertext"));
                }
                if readers.iter().all(|r| r.is_finished()) {
                    return Ok(());
                }
            }
            unreachable!()
        })
    };
    let mutation = || Mutation::VisibleBeforeDecryption(Rc::new(|_, _| {}));
    proven("C02", run, mutation);
}

/// C07: the write below fails after the encryption; the caller tries again. The type gives it no way
/// to send the same buffer: it must send its plaintext.
#[test]
fn c07_a_retried_write_is_encrypted_once() {
    let kept = Rc::new(RefCell::new(None));
    let run = |seed, mutation: Option<Mutation>| {
        let kept = Rc::clone(&kept);
        Sim::new(seed).run(move |rt| async move {
            let plan = Plan::default().with(Fault::new(
                Op::Write,
                When::Nth(1),
                Effect::Fail(ErrorKind::Io),
            ));
            let c = with(crypt(&rt, disk(&rt, blank(), plan), 4096), mutation);
            let clear = version(seed);
            let pool = BufPool::new(0);
            let buf = pool.take_copy(&clear).await;
            if c.write(Sector(8), Data::Owned(buf), Durability::Cached).await.is_ok() {
                return Err("the fault did not happen".into());
            }
            let again: Option<Vec<u8>> = kept.borrow_mut().take();
            write(&*c, 8, &again.unwrap_or_else(|| clear.clone())).await;
            if read(&*c, 8, UNIT).await == clear { Ok(()) } else { Err("encrypted twice".into()) }
        })
    };
    proven("C07", run, || Mutation::BufferKeptAfterError(Rc::clone(&kept)));
}

/// C08: no part of a read is decrypted twice.
#[test]
fn c08_a_read_is_decrypted_once() {
    let run = |seed, mutation| {
        Sim::new(seed).run(|rt| async move {
            let c = with(crypt(&rt, disk(&rt, blank(), Plan::default()), 4096), mutation);
            write(&*c, 0, &version(3)).await;
            if read(&*c, 0, UNIT).await == version(3) { Ok(()) } else { Err("twice".into()) }
        })
    };
    proven("C08", run, || Mutation::DecryptTwice);
}

/// C09: what was answered before a flush began is on the medium after it.
#[test]
fn c09_a_flush_covers_every_answered_write() {
    let run = |seed, mutation| {
        let image = Sim::new(seed).run(|rt| async move {
            let below = disk(&rt, blank(), Plan::default());
            let c = with(crypt(&rt, below.clone(), 4096), mutation);
            write(&*c, 0, &version(1)).await;
            c.flush().await.unwrap();
            write(&*c, 0, &version(2)).await;
            c.flush().await.unwrap();
            below.cut(rt.prng())
        });
        if after_cut(image, 0) == version(2) {
            Ok(())
        } else {
            Err("a flushed write is gone".into())
        }
    };
    proven("C09", run, || Mutation::AnswerWhenQueued);
}

/// C10: a FUA write is durable when it is answered, whatever is queued before it.
#[test]
fn c10_fua_reaches_the_medium() {
    let run = |seed, mutation| {
        let image = Sim::new(seed).run(|rt| async move {
            let below = disk(&rt, blank(), Plan::default());
            let c = with(crypt(&rt, below.clone(), 4096), mutation);
            let others = Rc::clone(&c);
            drop(rt.spawn(async move {
                for v in 0..20 {
                    write(&*others, 80 + v * UNIT, &version(v)).await;
                }
            }));
            let buf = BufPool::new(0).take_copy(&version(9)).await;
            c.write(Sector(0), Data::Owned(buf), Durability::Fua).await.unwrap();
            below.cut(rt.prng())
        });
        if after_cut(image, 0) == version(9) { Ok(()) } else { Err("FUA was lost".into()) }
    };
    proven("C10", run, || Mutation::LoseFua);
}

/// C11: of two writes, one issued after the other's answer, the later one stays, also after a cut.
#[test]
fn c11_an_older_write_never_overtakes_a_newer_one() {
    let run = |seed, mutation| {
        let image = Sim::new(seed).run(|rt| async move {
            let below = disk(&rt, blank(), Plan::default());
            let c = with(crypt(&rt, below.clone(), 4096), mutation);
            for v in 1..=4 {
                write(&*c, 0, &version(v)).await;
            }
            rt.sleep(Duration::from_millis(1)).await;
            c.flush().await.unwrap();
            let now = read(&*c, 0, UNIT).await;
            (now, below.cut(rt.prng()))
        });
        let (now, image) = image;
        match (now == version(4), after_cut(image, 0) == version(4)) {
            (true, true) => Ok(()),
            (now, cut) => Err(format!("newest before the cut: {now}, after it: {cut}")),
        }
    };
    proven("C11", run, || Mutation::AnswerWhenQueued);
}

/// C12: a read beside a write sees the old or the new version of an encryption sector, never
/// ciphertext, never a mix within it.
#[test]
fn c12_a_read_beside_a_write_sees_old_or_new() {
    let run = |seed, mutation: Option<Mutation>| {
        Sim::new(seed).run(|rt| async move {
            // The mutated layer needs a disk that takes half sectors; the clean one gets a disk that
            // writes them whole, as the contract says of a block.
            let image = match mutation {
                Some(_) => Image::new(DISK),
                None => blank(),
            };
            let c = with(crypt(&rt, disk(&rt, image, Plan::default()), 4096), mutation);
            write(&*c, 0, &version(1)).await;
            let writer = Rc::clone(&c);
            let writing = rt.spawn(async move { write(&*writer, 0, &version(2)).await });
            while !writing.is_finished() {
                let seen = read(&*c, 0, UNIT).await;
                if seen != version(1) && seen != version(2) {
                    return Err("neither old nor new".into());
                }
            }
            Ok(())
        })
    };
    proven("C12", run, || Mutation::SplitSectors);
}

/// C31: a disk that tears at 512 bytes under a 4096-byte encryption sector damages that sector only.
#[test]
fn c31_a_torn_sector_stays_one_sector() {
    for seed in SEEDS {
        let image = Sim::new(seed).run(|rt| async move {
            let below = disk(&rt, Image::new(DISK), Plan::default());
            let c = Rc::new(crypt(&rt, below.clone(), 4096));
            for unit in 0..3 {
                write(&*c, unit * UNIT, &version(unit)).await;
            }
            c.flush().await.unwrap();
            let writer = Rc::clone(&c);
            drop(rt.spawn(async move { write(&*writer, UNIT, &version(77)).await }));
            rt.sleep(Duration::from_nanos(rt.prng().below(60_000))).await;
            below.cut(rt.prng())
        });
        for unit in [0, 2] {
            assert_eq!(after_torn_cut(image.clone(), unit * UNIT), version(unit), "seed {seed}");
        }
    }
}

fn after_torn_cut(image: Image, at: u64) -> Vec<u8> {
    Sim::new(0).run(move |rt| async move {
        let geometry = Geometry::new(DevId::new("disk"), DISK);
        let below = SimDisk::new(&rt, geometry, image, Plan::instant());
        read(&crypt(&rt, below, 4096), at, UNIT).await
    })
}

/// C30 as far as it concerns this layer: a request whose answer is lost below holds nobody else up.
#[test]
fn c30_a_lost_answer_stops_only_its_own_request() {
    Sim::new(1).run(|rt| async move {
        let lost = Extent::new(Sector(OFFSET), Sectors(UNIT));
        let plan = Plan::default()
            .with(Fault::new(Op::Write, When::Nth(1), Effect::NoAnswer).within(lost));
        let c = Rc::new(crypt(&rt, disk(&rt, blank(), plan), 4096));
        let writer = Rc::clone(&c);
        let stuck = rt.spawn(async move { write(&*writer, 0, &version(1)).await });
        rt.sleep(Duration::from_millis(1)).await;
        write(&*c, 64, &version(2)).await;
        assert_eq!(read(&*c, 64, UNIT).await, version(2));
        assert!(!stuck.is_finished());
    });
}
