use super::gate::Gate;
use super::*;
use crate::buf::BufPool;
use crate::dev::Mem;
use crate::device::{ExtentStatus, Geometry, Zero};
use crate::error::{DevId, Error};
use crate::rt::Sim;
use crate::sync::{join_all, poll_once};
use crate::units::Sectors;
use proptest::prelude::*;
use std::cell::Cell;
use std::task::Poll;
use std::time::Duration;

/// Memory behind random delays, with an account of its flushes.
#[derive(Clone)]
struct Slow {
    rt: Rt,
    mem: Mem,
    /// (begun, ended) in nanoseconds.
    flushes: Rc<RefCell<Vec<(u64, u64)>>>,
    fail_flush: Rc<Cell<bool>>,
    hang: Rc<Cell<bool>>,
    zeroes: bool,
}

impl Slow {
    fn new(rt: &Rt, block: u64) -> Slow {
        let geometry = Geometry {
            block: Sectors(block),
            max_request: Sectors(16),
            can_discard: true,
            ..Geometry::new(DevId::new("slow"), Sectors(256))
        };
        Slow {
            rt: rt.clone(),
            mem: Mem::with_geometry(geometry),
            flushes: Rc::default(),
            fail_flush: Rc::default(),
            hang: Rc::default(),
            zeroes: true,
        }
    }

    async fn delay(&self) {
        if self.hang.get() {
            std::future::pending::<()>().await;
        }
        let ns = self.rt.prng().below(1000);
        self.rt.sleep(Duration::from_nanos(ns)).await;
    }
}

impl BlockDevice for Slow {
    fn geometry(&self) -> Geometry {
        BlockDevice::geometry(&self.mem)
    }
    async fn read(&self, at: Sector, buf: IoBuf) -> Result<IoBuf> {
        self.delay().await;
        self.mem.read(at, buf).await
    }
    async fn write(&self, at: Sector, data: Data, how: Durability) -> Result<Data> {
        self.delay().await;
        self.mem.write(at, data, how).await
    }
    async fn flush(&self) -> Result<()> {
        let begun = self.rt.now().0;
        self.rt.sleep(Duration::from_micros(10)).await;
        self.delay().await;
        self.flushes.borrow_mut().push((begun, self.rt.now().0));
        if self.fail_flush.get() {
            let dev = DevId::new("slow");
            return Err(Error::new(ErrorKind::Io, Op::Flush, Extent::default(), &dev));
        }
        Ok(())
    }
    async fn discard(&self, range: Extent) -> Result<()> {
        self.mem.discard(range).await
    }
    async fn write_zeroes(&self, range: Extent, how: Zero) -> Result<()> {
        if self.zeroes && !how.only_if_fast {
            return self.mem.write_zeroes(range, how).await;
        }
        let dev = DevId::new("slow");
        Err(Error::new(ErrorKind::Unsupported, Op::WriteZeroes, range, &dev))
    }
    async fn extents(&self, range: Extent, limit: usize) -> Result<Vec<ExtentStatus>> {
        self.mem.extents(range, limit).await
    }
}

fn export(rt: &Rt, slow: &Slow) -> Export<Slow> {
    let shared = ExportShared::new(ExportOptions::default());
    Export::new(rt.clone(), shared, slow.clone())
}

async fn bytes(pool: &BufPool, bytes: &[u8]) -> IoBuf {
    let mut buf = pool.take_bytes(bytes.len()).await;
    buf.copy_from_slice(bytes);
    buf
}

#[derive(Clone, Debug)]
enum Action {
    Read(u64, Vec<usize>),
    Write(u64, Vec<usize>, u8),
    Zero(u64, u64),
}

fn action() -> impl Strategy<Value = Action> {
    let at = prop_oneof![0..131_072u64, (0..256u64).prop_map(|s| s * 512)];
    let lens = prop_oneof![
        prop::collection::vec(0..9_000usize, 1..4),
        prop::collection::vec((0..40usize).prop_map(|s| s * 512), 1..4),
    ];
    prop_oneof![
        (at.clone(), lens.clone()).prop_map(|(at, l)| Action::Read(at, l)),
        (at.clone(), lens, any::<u8>()).prop_map(|(at, l, b)| Action::Write(at, l, b)),
        (at, 0..20_000u64).prop_map(|(at, len)| Action::Zero(at, len)),
    ]
}

async fn act(export: &Export<Slow>, pool: &BufPool, model: &mut [u8], action: Action) {
    let end = |at: u64, len: usize| usize::try_from(at).unwrap() + len;
    match action {
        Action::Read(at, lens) => {
            let (mut list, len) = (Vec::new(), lens.iter().sum());
            for len in lens {
                list.push(pool.take_bytes(len).await);
            }
            let single = list.len() == 1;
            let got = if single {
                let buf = list.pop().unwrap();
                export.read(at, buf).await.map(|buf| vec![buf])
            } else {
                export.read_list(at, list).await
            };
            let end = end(at, len);
            if end > model.len() {
                assert_eq!(got.unwrap_err().kind, ErrorKind::OutOfRange);
            } else {
                let got: Vec<u8> = got.unwrap().iter().flat_map(|b| b.to_vec()).collect();
                let want: Vec<u8> = model[end - len..end].to_vec();
                assert!(want == got, "read {at}+{len}");
            }
        }
        Action::Write(at, lens, tag) => {
            let len: usize = lens.iter().sum();
            let content: Vec<u8> = (0..len).map(|i| u8::try_from(i % 251).unwrap() ^ tag).collect();
            let (mut list, mut rest) = (Vec::<Data>::new(), content.as_slice());
            for (index, len) in lens.into_iter().enumerate() {
                let (head, tail) = rest.split_at(len);
                let buf = bytes(pool, head).await;
                list.push(match index {
                    1 => buf.freeze().into(),
                    _ => buf.into(),
                });
                rest = tail;
            }
            let done = match list.len() {
                1 => export.write(at, list.pop().unwrap(), tag & 1 == 1).await,
                _ => export.write_list(at, list, tag & 1 == 1).await,
            };
            let end = end(at, len);
            if end > model.len() {
                assert_eq!(done.unwrap_err().kind, ErrorKind::OutOfRange);
            } else {
                done.unwrap();
                model[end - len..end].copy_from_slice(&content);
            }
        }
        Action::Zero(at, len) => {
            let done = export.write_zeroes(at, len, Zero::default()).await;
            let len = usize::try_from(len).unwrap();
            let end = end(at, len);
            match done {
                Ok(()) => model[end - len..end].fill(0),
                Err(e) => assert!(end > model.len() && e.kind == ErrorKind::OutOfRange),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_byte_range_works_on_any_block_size(
        block in prop_oneof![Just(1u64), Just(8)],
        zeroes: bool,
        actions in prop::collection::vec(action(), 1..40),
    ) {
        Sim::new(block).run(move |rt| async move {
            let mut slow = Slow::new(&rt, block);
            slow.zeroes = zeroes;
            let (export, pool) = (export(&rt, &slow), BufPool::new(0));
            let mut model = vec![0; 256 * 512];
            for action in actions {
                act(&export, &pool, &mut model, action).await;
            }
            assert!(slow.mem.to_vec() == model);
            assert_eq!(export.shared().pool.lent(), 0);
            assert_eq!(export.shared().locks.in_flight(), 0);
        });
    }
}

#[test]
fn neighbours_within_one_block_do_not_undo_each_other() {
    for seed in 0..20 {
        Sim::new(seed).run(|rt| async move {
            let slow = Slow::new(&rt, 8);
            let export = export(&rt, &slow);
            let pool = BufPool::new(0);
            join_all((0..64u64).map(|n| {
                let (export, pool) = (export.clone(), pool.clone());
                rt.spawn(async move {
                    let tag = u8::try_from(n).unwrap() + 1;
                    let data = bytes(&pool, &[tag; 64]).await;
                    export.write(n * 64, data, false).await.unwrap();
                })
            }))
            .await;
            let all = slow.mem.to_vec();
            for n in 0..64usize {
                let tag = u8::try_from(n).unwrap() + 1;
                assert!(all[n * 64..n * 64 + 64].iter().all(|&b| b == tag), "{n}");
            }
        });
    }
}

#[test]
fn flushes_are_shared_but_only_with_those_that_start_later() {
    for seed in 0..50 {
        Sim::new(seed).run(|rt| async move {
            let slow = Slow::new(&rt, 1);
            let shared = ExportShared::new(ExportOptions::default());
            let asked: Vec<_> = (0..40)
                .map(|_| {
                    // Two handles: the group spans connections and lanes.
                    let export = Export::new(rt.clone(), Arc::clone(&shared), slow.clone());
                    let rt2 = rt.clone();
                    rt.spawn(async move {
                        let ns = rt2.prng().below(30_000);
                        rt2.sleep(Duration::from_nanos(ns)).await;
                        let asked = rt2.now().0;
                        export.flush().await.unwrap();
                        (asked, rt2.now().0)
                    })
                })
                .collect();
            let asked = join_all(asked).await;
            let flushes = slow.flushes.borrow();
            for (ask, answer) in asked {
                let covered = |&(begun, ended): &(u64, u64)| begun >= ask && ended <= answer;
                assert!(flushes.iter().any(covered), "asked at {ask}");
            }
            assert!(flushes.len() < 10, "{} device flushes", flushes.len());
            assert!(flushes.windows(2).all(|w| w[0].1 <= w[1].0), "one at a time");
            assert_eq!(shared.stats().of(Op::Flush).count(), 40);
        });
    }
}

#[test]
fn a_failed_flush_latches_and_reads_go_on() {
    Sim::new(3).run(|rt| async move {
        let slow = Slow::new(&rt, 1);
        let (export, pool) = (export(&rt, &slow), BufPool::new(0));
        let data = bytes(&pool, &[9; 512]).await;
        export.write(0, data, false).await.unwrap();
        slow.fail_flush.set(true);
        assert_eq!(export.flush().await.unwrap_err().kind, ErrorKind::Io);
        slow.fail_flush.set(false);
        let again = export.flush().await.unwrap_err();
        assert_eq!(again.kind, ErrorKind::Poisoned);
        assert!(export.shared().is_poisoned());
        let data = bytes(&pool, &[8; 512]).await;
        let write = export.write(0, data, false).await.unwrap_err();
        assert_eq!(write.kind, ErrorKind::Poisoned);
        let trim = export.trim(0, 512, false).await.unwrap_err();
        assert_eq!(trim.kind, ErrorKind::Poisoned);
        let zero = export.write_zeroes(0, 512, Zero::default()).await;
        assert_eq!(zero.unwrap_err().kind, ErrorKind::Poisoned);
        let back = export.read(0, pool.take_bytes(512).await).await.unwrap();
        assert!(back.iter().all(|&b| b == 9));
        assert_eq!(slow.flushes.borrow().len(), 1, "never asked again");
    });
}

#[test]
fn a_flush_whose_asker_has_gone_is_still_heard() {
    Sim::new(4).run(|rt| async move {
        let slow = Slow::new(&rt, 1);
        let export = export(&rt, &slow);
        slow.fail_flush.set(true);
        let mut asker = Box::pin(export.flush());
        assert!(poll_once(asker.as_mut()).is_pending());
        drop(asker);
        rt.sleep(Duration::from_millis(1)).await;
        assert!(export.shared().is_poisoned());
        assert_eq!(export.shared().in_flight(), 0);
    });
}

#[test]
fn quiesce_holds_requests_and_swap_changes_what_is_below() {
    Sim::new(5).run(|rt| async move {
        let (old, new) = (Slow::new(&rt, 1), Slow::new(&rt, 8));
        let (export, pool) = (export(&rt, &old), BufPool::new(0));
        new.mem.poke(0, &[7; 4096]);
        let writer = {
            let (export, data) = (export.clone(), bytes(&pool, &[1; 8192]).await);
            rt.spawn(async move { export.write(0, data, false).await })
        };
        let mut flusher = Box::pin(export.flush());
        assert!(poll_once(flusher.as_mut()).is_pending());
        drop(flusher); // its device flush runs on, and must have ended before the swap
        rt.yield_now().await;
        let quiet = export.shared().quiesce().await;
        assert_eq!(old.flushes.borrow().len(), 1);
        assert_eq!(export.shared().in_flight(), 0);
        let mut held = Box::pin(export.read(3, pool.take_bytes(100).await));
        assert!(poll_once(held.as_mut()).is_pending());
        rt.sleep(Duration::from_secs(1)).await;
        assert!(poll_once(held.as_mut()).is_pending(), "held, not failed");
        let back = export.swap(&quiet, new.clone()).unwrap();
        assert!(Rc::ptr_eq(&back.flushes, &old.flushes));
        let small = Mem::new(Sectors(8));
        assert!(small.geometry().len < new.geometry().len);
        quiet.resume();
        let got = held.await.unwrap();
        assert!(got.iter().all(|&b| b == 7));
        // It was inside before the gate closed, or it was held and went to the new device.
        writer.await.unwrap();
        let (a, b) = (old.mem.to_vec()[0], new.mem.to_vec()[0]);
        assert!((a == 1) ^ (b == 1), "written once: {a} {b}");
    });
}

#[test]
fn a_smaller_device_is_not_swapped_in() {
    Sim::new(6).run(|rt| async move {
        let shared = ExportShared::new(ExportOptions::default());
        let export = Export::new(rt, Arc::clone(&shared), Mem::new(Sectors(64)));
        let quiet = shared.quiesce().await;
        let refused = export.swap(&quiet, Mem::new(Sectors(63)));
        assert_eq!(refused.err().unwrap().kind, ErrorKind::OutOfRange);
        drop(quiet);
        assert!(!shared.is_quiet());
    });
}

#[test]
fn zeroes_are_fast_written_or_refused() {
    Sim::new(7).run(|rt| async move {
        let mut slow = Slow::new(&rt, 8);
        slow.zeroes = false;
        slow.mem.poke(0, &[5; 16384]);
        let export = export(&rt, &slow);
        let fast = Zero { only_if_fast: true, ..Zero::default() };
        let refused = export.write_zeroes(100, 9000, fast).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Unsupported);
        assert!(slow.mem.to_vec()[..16384].iter().all(|&b| b == 5));
        let zeroed = export.write_zeroes(100, 9000, Zero::default()).await;
        zeroed.unwrap();
        let all = slow.mem.to_vec();
        assert!(all[..100].iter().all(|&b| b == 5));
        assert!(all[100..9100].iter().all(|&b| b == 0));
        assert!(all[9100..16384].iter().all(|&b| b == 5));
    });
}

#[test]
fn trim_gives_up_whole_blocks_only() {
    Sim::new(8).run(|rt| async move {
        let slow = Slow::new(&rt, 8);
        slow.mem.poke(0, &[5; 16384]);
        let export = export(&rt, &slow);
        export.trim(1, 12287, true).await.unwrap();
        let all = slow.mem.to_vec();
        assert!(all[..4096].iter().all(|&b| b == 5));
        assert!(all[4096..12288].iter().all(|&b| b == 0));
        assert!(all[12288..16384].iter().all(|&b| b == 5));
        assert_eq!(slow.flushes.borrow().len(), 1, "fua");
        export.trim(1, 4000, true).await.unwrap();
        assert_eq!(slow.flushes.borrow().len(), 1, "nothing changed");
    });
}

#[test]
fn a_read_only_export_changes_nothing() {
    Sim::new(9).run(|rt| async move {
        let slow = Slow::new(&rt, 1);
        let options = ExportOptions { read_only: true, ..ExportOptions::default() };
        let export = Export::new(rt, ExportShared::new(options), slow.clone());
        let pool = BufPool::new(0);
        let kind = |r: Result<()>| r.unwrap_err().kind;
        let data = pool.take_bytes(512).await;
        assert_eq!(kind(export.write(0, data, true).await), ErrorKind::ReadOnly);
        assert_eq!(kind(export.trim(0, 512, true).await), ErrorKind::ReadOnly);
        let zero = export.write_zeroes(0, 512, Zero::default()).await;
        assert_eq!(kind(zero), ErrorKind::ReadOnly);
        export.flush().await.unwrap();
        assert!(slow.flushes.borrow().is_empty());
        assert!(BlockDevice::geometry(&export).read_only);
    });
}

#[test]
fn an_answer_that_does_not_come_ends_the_request_and_fences_changes() {
    Sim::new(10).run(|rt| async move {
        let slow = Slow::new(&rt, 1);
        let device = Deadline::new(rt.clone(), slow.clone(), Duration::from_secs(30));
        let shared = ExportShared::new(ExportOptions::default());
        let export = Export::new(rt.clone(), shared, device);
        let pool = BufPool::new(0);
        slow.hang.set(true);
        let read = export.read(0, pool.take_bytes(512).await).await;
        let text = crate::error::chain(&read.unwrap_err());
        assert_eq!(text, "read sector 0+1 on slow: I/O error: no answer in 30000 ms");
        let (data, other) = (pool.take_bytes(512).await, pool.take_bytes(512).await);
        let write = export.write(512, data, false).await.unwrap_err();
        assert_eq!((write.kind, write.at.start), (ErrorKind::Io, Sector(1)));
        slow.hang.set(false);
        let later = export.write(0, other, false).await.unwrap_err();
        assert_eq!(later.kind, ErrorKind::Poisoned);
        assert_eq!(export.flush().await.unwrap_err().kind, ErrorKind::Poisoned);
        export.read(0, pool.take_bytes(512).await).await.unwrap();
        assert_eq!(export.shared().in_flight(), 0);
    });
}

#[test]
fn figures_tell_what_happened() {
    Sim::new(11).run(|rt| async move {
        let slow = Slow::new(&rt, 1);
        let probe = Probe::new(rt.clone(), slow);
        let counters = probe.counters();
        let shared = ExportShared::new(ExportOptions::default());
        let export = Export::new(rt, Arc::clone(&shared), probe);
        let pool = BufPool::new(0);
        for n in 0..10 {
            let data = pool.take_bytes(16 * 1024).await;
            export.write(n * 4096, data, false).await.unwrap();
        }
        let far = export.read(u64::MAX, pool.take_bytes(1).await).await;
        far.unwrap_err();
        let report = shared.stats().report();
        assert_eq!((report.write.count, report.write.bytes), (10, 163_840));
        assert_eq!((report.read.count, report.read.errors), (1, 1));
        assert!(report.write.p50_ns > 0 && report.write.in_flight == 0);
        // Cut at the device's 16 sectors: two requests below for each above.
        assert_eq!(counters.stats().of(Op::Write).count(), 20);
    });
}

#[test]
fn an_aligned_request_is_ready_at_once_with_the_same_memory() {
    Sim::new(12).run(|rt| async move {
        let mem = Mem::new(Sectors(64));
        let shared = ExportShared::new(ExportOptions::default());
        let export = Export::new(rt, shared, mem);
        let buf = BufPool::new(0).take(Sectors(8)).await;
        let place = buf.as_ptr();
        let Poll::Ready(buf) = poll_once(Box::pin(export.read(4096, buf)).as_mut()) else {
            panic!("nothing to wait for")
        };
        assert_eq!(buf.unwrap().as_ptr(), place);
    });
}

#[test]
fn closing_waits_for_those_inside_and_holds_those_outside() {
    let gate = Gate::default();
    let Poll::Ready(inside) = poll_once(Box::pin(gate.enter()).as_mut()) else { panic!("open") };
    let mut closed = false;
    let mut close = Box::pin(gate.close(&mut closed));
    assert!(poll_once(close.as_mut()).is_pending());
    let mut late = Box::pin(gate.enter());
    assert!(poll_once(late.as_mut()).is_pending(), "held");
    drop(inside);
    assert!(poll_once(close.as_mut()).is_ready());
    assert!(poll_once(late.as_mut()).is_pending(), "still held");
    gate.open();
    assert!(poll_once(late.as_mut()).is_ready());
}

#[test]
fn two_closers_take_turns() {
    let gate = Gate::default();
    let (mut first, mut second) = (false, false);
    assert!(poll_once(Box::pin(gate.close(&mut first)).as_mut()).is_ready());
    let mut other = Box::pin(gate.close(&mut second));
    assert!(poll_once(other.as_mut()).is_pending());
    gate.open();
    assert!(poll_once(other.as_mut()).is_ready());
    assert!(gate.is_closed());
}
