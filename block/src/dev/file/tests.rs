//! Real files, in both engines, and hosts that fail on purpose.

use super::*;
use crate::rt::fake::Verdict;
use crate::rt::{Config, Engine, probe_ring, run, run_on_fake};
use crate::sync::join_all;
use proptest::prelude::*;
use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;

fn engines() -> Vec<Engine> {
    match probe_ring() {
        Ok(()) => vec![Engine::Ring, Engine::Threads],
        Err(e) => {
            println!("skipped: no ring on this host: {e}");
            vec![Engine::Threads]
        }
    }
}

fn each_engine<F: Future<Output = ()> + 'static>(test: impl Fn(Rt) -> F) {
    for engine in engines() {
        run(Config { engine, lanes: 1 }, &test).unwrap();
    }
}

/// A sparse file of `len` bytes, in a folder that goes away.
fn image(len: u64) -> (tempfile::TempDir, PathBuf) {
    image_in(&std::env::temp_dir(), len)
}

fn image_in(folder: &Path, len: u64) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir_in(folder).unwrap();
    let path = dir.path().join("disk.img");
    std::fs::File::create(&path).unwrap().set_len(len).unwrap();
    (dir, path)
}

fn at_once() -> FileOptions {
    FileOptions { lock_wait: Duration::from_millis(120), ..FileOptions::default() }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[derive(Clone, Debug)]
enum Act {
    Write { at: u64, len: u64, tag: u8, fua: bool, odd_memory: bool },
    Read { at: u64, len: u64, odd_memory: bool },
    Discard { at: u64, len: u64 },
    Zero { at: u64, len: u64, may_unmap: bool, fua: bool },
    Flush,
    Extents,
}

const SECTORS: u64 = 4096;

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let range = (0..SECTORS, 1..=600u64).prop_map(|(at, len)| (at, len.min(SECTORS - at)));
    let act = prop_oneof![
        4 => (range.clone(), any::<u8>(), any::<bool>(), any::<bool>()).prop_map(
            |((at, len), tag, fua, odd_memory)| Act::Write { at, len, tag, fua, odd_memory }
        ),
        3 => (range.clone(), any::<bool>())
            .prop_map(|((at, len), odd_memory)| Act::Read { at, len, odd_memory }),
        1 => range.clone().prop_map(|(at, len)| Act::Discard { at, len }),
        1 => (range, any::<bool>(), any::<bool>())
            .prop_map(|((at, len), may_unmap, fua)| Act::Zero { at, len, may_unmap, fua }),
        1 => Just(Act::Flush),
        1 => Just(Act::Extents),
    ];
    prop::collection::vec(act, 1..25)
}

/// A buffer whose memory no device would take for direct I/O, or a proper one.
async fn buffer(pool: &BufPool, len: Sectors, odd: bool) -> IoBuf {
    match odd {
        true => pool.take_bytes(len.byte_len() + 3).await.split_at_byte(3).1,
        false => pool.take(len).await,
    }
}

/// Does `acts` on the file and on plain memory and compares, step by step.
async fn replay(device: FileDevice, acts: Vec<Act>) {
    let pool = BufPool::new(0);
    let mut model = vec![0u8; Sectors(SECTORS).byte_len()];
    let extent = |at, len| Extent::new(Sector(at), Sectors(len));
    let bytes = |at: u64, len: u64| Sectors(at).byte_len()..Sectors(at + len).byte_len();
    for act in acts {
        match act {
            Act::Write { at, len, tag, fua, odd_memory } => {
                let mut buf = buffer(&pool, Sectors(len), odd_memory).await;
                buf.iter_mut().zip(0u64..).for_each(|(b, n)| *b = tag ^ (n % 251) as u8);
                model[bytes(at, len)].copy_from_slice(&buf);
                let how = if fua { Durability::Fua } else { Durability::Cached };
                let back = device.write(Sector(at), buf.into(), how).await.unwrap();
                assert!(matches!(back, Data::Owned(_)), "what was lent comes back");
            }
            Act::Read { at, len, odd_memory } => {
                let buf = buffer(&pool, Sectors(len), odd_memory).await;
                let buf = device.read(Sector(at), buf).await.unwrap();
                assert!(buf[..] == model[bytes(at, len)], "at {at}+{len}");
            }
            Act::Discard { at, len } => {
                // A hole in a file reads as zeroes, though the trait does not promise it.
                device.discard(extent(at, len)).await.unwrap();
                model[bytes(at, len)].fill(0);
            }
            Act::Zero { at, len, may_unmap, fua } => {
                let durability = if fua { Durability::Fua } else { Durability::Cached };
                let how = Zero { may_unmap, only_if_fast: false, durability };
                device.write_zeroes(extent(at, len), how).await.unwrap();
                model[bytes(at, len)].fill(0);
            }
            Act::Flush => device.flush().await.unwrap(),
            Act::Extents => check_extents(&device, &model).await,
        }
    }
    let all = device.read(Sector::ZERO, pool.take(Sectors(2048)).await).await.unwrap();
    assert!(all[..] == model[bytes(0, 2048)]);
}

async fn check_extents(device: &FileDevice, model: &[u8]) {
    let mut at = Sector::ZERO;
    while at < Sector(SECTORS) {
        let rest = Extent::between(at, Sector(SECTORS));
        let runs = device.extents(rest, 3).await.unwrap();
        assert!((1..=3).contains(&runs.len()));
        for run in runs {
            assert_eq!(run.range.start, at, "runs are adjacent");
            at = run.range.end();
            let bytes = Sectors(run.range.start.0).byte_len()..Sectors(at.0).byte_len();
            assert!(!run.zero || model[bytes].iter().all(|&b| b == 0));
        }
    }
    assert_eq!(at, Sector(SECTORS));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn engines_and_modes_agree_with_plain_memory(acts in acts(), direct in any::<bool>()) {
        let mut contents = Vec::new();
        for engine in engines() {
            for folder in [std::env::temp_dir(), PathBuf::from("/dev/shm")] {
                if !folder.is_dir() {
                    continue;
                }
                let (_dir, path) = image_in(&folder, SECTORS * 512);
                let (acts, opened) = (acts.clone(), path.clone());
                run(Config { engine, lanes: 1 }, |rt| async move {
                    let options = FileOptions { direct, ..FileOptions::default() };
                    replay(FileDevice::open(&rt, opened, options).await.unwrap(), acts).await;
                })
                .unwrap();
                let now = std::fs::read(&path).unwrap();
                prop_assert_eq!(now.len() as u64, SECTORS * 512, "a file never grows");
                contents.push(now);
            }
        }
        prop_assert!(contents.windows(2).all(|two| two[0] == two[1]));
    }
}

#[test]
fn requests_outside_the_device_or_on_a_read_only_one_are_refused() {
    each_engine(|rt| async move {
        let (_dir, path) = image(10 * 512 + 100);
        let device = FileDevice::open(&rt, &path, at_once()).await.unwrap();
        assert_eq!(device.geometry().len, Sectors(10), "the tail is no sector");
        let pool = BufPool::new(0);
        let late = device.read(Sector(9), pool.take(Sectors(2)).await).await.unwrap_err();
        assert_eq!(late.kind, ErrorKind::OutOfRange);
        drop(device);
        let options = FileOptions { read_only: true, block: Sectors(8), ..at_once() };
        let device = FileDevice::open(&rt, &path, options).await.unwrap();
        assert_eq!(device.geometry().len, Sectors(8), "whole blocks only");
        let odd = device.read(Sector(1), pool.take(Sectors(1)).await).await.unwrap_err();
        assert_eq!(odd.kind, ErrorKind::Misaligned);
        let buf = pool.take(Sectors(8)).await;
        let write = device.write(Sector(0), buf.into(), Durability::Fua).await.unwrap_err();
        assert_eq!(write.kind, ErrorKind::ReadOnly);
        device.flush().await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 10 * 512 + 100);
    });
}

#[test]
fn a_lock_is_waited_for_and_then_refused() {
    each_engine(|rt| async move {
        let (_dir, path) = image(1 << 20);
        let reader = FileOptions { read_only: true, ..at_once() };
        let first = FileDevice::open(&rt, &path, at_once()).await.unwrap();
        let start = rt.now();
        for options in [at_once(), reader.clone()] {
            let busy = FileDevice::open(&rt, &path, options).await.map(drop).unwrap_err();
            assert_eq!(busy.kind, ErrorKind::Busy);
            assert!(crate::chain(&busy).contains("disk.img"), "{}", crate::chain(&busy));
        }
        assert!(rt.now() - start >= Duration::from_millis(240), "both have waited");
        // It is free while somebody waits.
        let patient = FileOptions { lock_wait: Duration::from_secs(10), ..reader.clone() };
        let (rt2, path2) = (rt.clone(), path.clone());
        let waiting = rt.spawn(async move { FileDevice::open(&rt2, path2, patient).await });
        rt.sleep(Duration::from_millis(20)).await;
        drop(first);
        let second = waiting.await.unwrap();
        // Readers share.
        let third = FileDevice::open(&rt, &path, reader).await.unwrap();
        let busy = FileDevice::open(&rt, &path, at_once()).await.map(drop).unwrap_err();
        assert_eq!(busy.kind, ErrorKind::Busy);
        drop((second, third));
    });
}

#[test]
fn what_is_no_disk_is_refused_by_name() {
    each_engine(|rt| async move {
        for (path, says) in
            [("/dev/null", "neither"), ("/tmp", "neither"), ("/nonexistent", "No such")]
        {
            let error = FileDevice::open(&rt, path, at_once()).await.map(drop).unwrap_err();
            let line = crate::chain(&error);
            assert!(line.contains(path) && line.contains(says), "{line}");
        }
    });
}

#[test]
fn a_failed_flush_is_final_until_the_device_is_opened_again() {
    let (_dir, path) = image(1 << 20);
    let failing = Rc::new(Cell::new(true));
    let fails = Rc::clone(&failing);
    let judge = move |op: &crate::rt::HostOp| match op {
        crate::rt::HostOp::DataSync { .. } if fails.get() => Verdict::Fail(Errno::IO),
        _ => Verdict::Do,
    };
    run_on_fake(judge, |rt| async move {
        let device = FileDevice::open(&rt, &path, at_once()).await.unwrap();
        let pool = BufPool::new(0);
        let twin = device.handle();
        assert_eq!(device.flush().await.unwrap_err().kind, ErrorKind::Io);
        // The host would call the next one a success.
        failing.set(false);
        let twin = twin.attach(&rt);
        assert_eq!(twin.flush().await.unwrap_err().kind, ErrorKind::Poisoned);
        let buf = pool.take(Sectors(8)).await;
        let write = device.write(Sector(0), buf.into(), Durability::Cached).await.unwrap_err();
        assert_eq!(write.kind, ErrorKind::Poisoned);
        let all = Extent::new(Sector(0), Sectors(8));
        assert_eq!(device.discard(all).await.unwrap_err().kind, ErrorKind::Poisoned);
        let zero = device.write_zeroes(all, Zero::default()).await.unwrap_err();
        assert_eq!(zero.kind, ErrorKind::Poisoned);
        device.read(Sector(0), pool.take(Sectors(8)).await).await.unwrap();
        drop((device, twin));
        let again = FileDevice::open(&rt, &path, at_once()).await.unwrap();
        again.flush().await.unwrap();
    });
}

#[test]
fn a_failed_fua_write_counts_as_a_failed_flush_unless_there_was_no_room() {
    for (errno, full_for_plain, first, then) in [
        (Errno::IO, false, ErrorKind::Io, Some(ErrorKind::Poisoned)),
        // The write itself found no room: nothing that was promised is lost.
        (Errno::NOSPC, true, ErrorKind::NoSpace, None),
        // There was room, so it was the sync that said so.
        (Errno::NOSPC, false, ErrorKind::NoSpace, Some(ErrorKind::Poisoned)),
    ] {
        let (_dir, path) = image(1 << 20);
        let judge = move |op: &crate::rt::HostOp| match op {
            crate::rt::HostOp::Write { dsync, .. } if *dsync || full_for_plain => {
                Verdict::Fail(errno)
            }
            _ => Verdict::Do,
        };
        run_on_fake(judge, |rt| async move {
            let device = FileDevice::open(&rt, &path, at_once()).await.unwrap();
            let buf = BufPool::new(0).take(Sectors(8)).await;
            let fua = device.write(Sector(0), buf.into(), Durability::Fua).await.unwrap_err();
            assert_eq!(fua.kind, first);
            assert_eq!(device.flush().await.err().map(|e| e.kind), then);
        });
    }
}

#[test]
fn large_reads_of_a_file_that_is_only_read_are_copied_aside_and_no_others() {
    let (_dir, path) = image(0);
    let bytes: Vec<u8> = (0..1u32 << 20).flat_map(u32::to_le_bytes).collect();
    std::fs::write(&path, &bytes).unwrap();
    let reading = FileOptions { read_only: true, ..at_once() };
    each_engine(|rt| {
        let (path, bytes, reading) = (path.clone(), bytes.clone(), reading.clone());
        async move {
            let device = FileDevice::open(&rt, &path, reading).await.unwrap();
            let pool = BufPool::new(0);
            let read = async |n: usize| {
                let buf = pool.take(ASIDE_MIN).await;
                let back = device.read(Sector(ASIDE_MIN.0 * n as u64), buf).await.unwrap();
                assert!(back[..] == bytes[n * ASIDE_MIN.byte_len()..][..back.len()], "part {n}");
            };
            join_all((0..16).map(read).collect::<Vec<_>>()).await;
        }
    });
    let small = Sectors(ASIDE_MIN.0 - 8);
    for (options, len, wanted) in
        [(reading.clone(), ASIDE_MIN, true), (reading, small, false), (at_once(), ASIDE_MIN, false)]
    {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let (noted, path) = (Rc::clone(&seen), path.clone());
        let judge = move |op: &crate::rt::HostOp| {
            if let crate::rt::HostOp::Read { aside, .. } = op {
                noted.borrow_mut().push(*aside);
            }
            Verdict::Do
        };
        run_on_fake(judge, move |rt| async move {
            let device = FileDevice::open(&rt, &path, options).await.unwrap();
            let pool = BufPool::new(0);
            device.read(Sector(0), pool.take(len).await).await.unwrap();
        });
        assert_eq!(*seen.borrow(), [wanted], "{len:?}");
    }
}

#[test]
fn short_and_interrupted_transfers_are_finished_or_fail() {
    let (_dir, path) = image(1 << 20);
    let mut n = 0;
    let log = Rc::new(RefCell::new(0));
    let short = Rc::clone(&log);
    let judge = move |op: &crate::rt::HostOp| {
        use crate::rt::HostOp as Op;
        n += 1;
        match (op, n % 4) {
            (Op::Read { .. } | Op::Write { .. }, 1) => Verdict::Fail(Errno::INTR),
            (Op::Read { .. } | Op::Write { .. }, 3) => Verdict::Fail(Errno::AGAIN),
            (Op::Read { .. } | Op::Write { .. }, _) => {
                *short.borrow_mut() += 1;
                Verdict::Short(5000)
            }
            _ => Verdict::Do,
        }
    };
    run_on_fake(judge, |rt| async move {
        // Odd lengths are no business of direct I/O.
        let options = FileOptions { direct: false, ..at_once() };
        let device = FileDevice::open(&rt, &path, options).await.unwrap();
        let pool = BufPool::new(0);
        let mut buf = pool.take(Sectors(100)).await;
        rt.prng().fill(&mut buf);
        let sent = buf.to_vec();
        device.write(Sector(7), buf.into(), Durability::Fua).await.unwrap();
        let back = device.read(Sector(7), pool.take(Sectors(100)).await).await.unwrap();
        assert!(back[..] == sent);
        assert_eq!(*log.borrow(), 2 * 51_200usize.div_ceil(5000));
    });
    // No progress at all is an error, not a loop.
    let (_dir, path) = image(1 << 20);
    run_on_fake(
        |op| match op {
            crate::rt::HostOp::Read { .. } | crate::rt::HostOp::Write { .. } => Verdict::Short(0),
            _ => Verdict::Do,
        },
        |rt| async move {
            let device = FileDevice::open(&rt, &path, at_once()).await.unwrap();
            let pool = BufPool::new(0);
            let read = device.read(Sector(0), pool.take(Sectors(1)).await).await;
            assert_eq!(read.map(drop).unwrap_err().kind, ErrorKind::Io);
            let buf = pool.take(Sectors(1)).await;
            let write = device.write(Sector(0), buf.into(), Durability::Cached).await;
            assert_eq!(write.map(drop).unwrap_err().kind, ErrorKind::Io);
        },
    );
}

#[test]
fn a_host_that_does_not_know_zero_range_gets_written_zeroes() {
    let (_dir, path) = image(4 << 20);
    let asked = Rc::new(Cell::new(0));
    let count = Rc::clone(&asked);
    let judge = move |op: &crate::rt::HostOp| match op {
        crate::rt::HostOp::Fallocate { what: Allocate::ZeroRange, .. } => {
            count.set(count.get() + 1);
            Verdict::Fail(Errno::OPNOTSUPP)
        }
        _ => Verdict::Do,
    };
    run_on_fake(judge, |rt| async move {
        std::fs::write(&path, vec![7; 4 << 20]).unwrap();
        let device = FileDevice::open(&rt, &path, at_once()).await.unwrap();
        let most = Extent::new(Sector(1), Sectors(5000));
        let fast = Zero { only_if_fast: true, ..Zero::default() };
        let refused = device.write_zeroes(most, fast).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Unsupported);
        assert!(std::fs::read(&path).unwrap().iter().all(|&b| b == 7), "nothing has changed");
        device.write_zeroes(most, Zero::default()).await.unwrap();
        assert_eq!(asked.get(), 1, "not asked again");
        let now = std::fs::read(&path).unwrap();
        assert!(now[512..5001 * 512].iter().all(|&b| b == 0));
        assert!(now[..512].iter().chain(&now[5001 * 512..]).all(|&b| b == 7));
        let unmap = Zero { may_unmap: true, ..fast };
        device.write_zeroes(most, unmap).await.unwrap();
    });
}

/// A tmpfs of its own, so that it can be full.
struct SmallMount(tempfile::TempDir);

impl SmallMount {
    fn new(size: &str) -> Option<SmallMount> {
        if !is_root() {
            println!("skipped: a small tmpfs needs root");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={size}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "none"])
            .arg(dir.path())
            .status();
        match mounted {
            Ok(status) if status.success() => Some(SmallMount(dir)),
            other => {
                println!("skipped: cannot mount a tmpfs: {other:?}");
                None
            }
        }
    }
}

impl Drop for SmallMount {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(self.0.path()).status());
    }
}

#[test]
fn a_full_host_is_no_space_and_others_go_on() {
    each_engine(|rt| async move {
        let Some(mount) = SmallMount::new("256k") else { return };
        let path = mount.0.path().join("disk.img");
        std::fs::File::create(&path).unwrap().set_len(4 << 20).unwrap();
        let device = FileDevice::open(&rt, &path, at_once()).await.unwrap();
        let pool = BufPool::new(0);
        let full = |at, fua| {
            let (device, pool) = (device.clone(), pool.clone());
            async move {
                let mut buf = pool.take(Sectors(1024)).await;
                buf.fill(9);
                let how = if fua { Durability::Fua } else { Durability::Cached };
                device.write(Sector(at), buf.into(), how).await.map(drop)
            }
        };
        for result in join_all([full(0, false), full(1024, true), full(2048, false)]).await {
            assert_eq!(result.unwrap_err().kind, ErrorKind::NoSpace);
        }
        device.flush().await.unwrap();
        // What there is can be read, changed, given up, and used anew.
        let all = Extent::new(Sector(0), Sectors(4096));
        device.discard(all).await.unwrap();
        let mut buf = pool.take(Sectors(8)).await;
        buf.fill(3);
        device.write(Sector(4000), buf.into(), Durability::Fua).await.unwrap();
        let back = device.read(Sector(4000), pool.take(Sectors(8)).await).await.unwrap();
        assert!(back.iter().all(|&b| b == 3));
    });
}

/// A loop device over a file, for as long as this lives.
struct Loop(PathBuf);

impl Loop {
    fn new(file: &Path) -> Option<Loop> {
        if !is_root() {
            println!("skipped: a loop device needs root");
            return None;
        }
        let made = Command::new("losetup").args(["-f", "--show"]).arg(file).output();
        match made {
            Ok(out) if out.status.success() => {
                Some(Loop(String::from_utf8(out.stdout).unwrap().trim().into()))
            }
            other => {
                println!("skipped: cannot make a loop device: {other:?}");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        drop(Command::new("losetup").arg("-d").arg(&self.0).status());
    }
}

#[test]
fn a_file_behind_a_loop_device_is_refused_and_the_device_itself_works() {
    each_engine(|rt| async move {
        let (dir, path) = image(8 << 20);
        let Some(device) = Loop::new(&path) else { return };
        // Also by another name of the same file.
        let link = dir.path().join("other-name");
        std::fs::hard_link(&path, &link).unwrap();
        for name in [&path, &link] {
            let busy = FileDevice::open(&rt, name, at_once()).await.map(drop).unwrap_err();
            assert_eq!(busy.kind, ErrorKind::Busy);
            assert!(crate::chain(&busy).contains("loop device"), "{}", crate::chain(&busy));
        }
        let disk = FileDevice::open(&rt, &device.0, at_once()).await.unwrap();
        assert_eq!(disk.geometry().len, Sectors(16384));
        let busy = FileDevice::open(&rt, &device.0, at_once()).await.map(drop).unwrap_err();
        assert_eq!(busy.kind, ErrorKind::Busy);
        let pool = BufPool::new(0);
        let mut buf = pool.take(Sectors(64)).await;
        rt.prng().fill(&mut buf);
        let sent = buf.to_vec();
        disk.write(Sector(8), buf.into(), Durability::Fua).await.unwrap();
        disk.flush().await.unwrap();
        let back = disk.read(Sector(8), pool.take(Sectors(64)).await).await.unwrap();
        assert!(back[..] == sent);
        let part = Extent::new(Sector(8), Sectors(16));
        disk.discard(part).await.unwrap();
        for may_unmap in [true, false] {
            let how = Zero { may_unmap, ..Zero::default() };
            disk.write_zeroes(part, how).await.unwrap();
            let back = disk.read(Sector(8), pool.take(Sectors(64)).await).await.unwrap();
            assert!(back[..8192].iter().all(|&b| b == 0));
            assert!(back[8192..] == sent[8192..]);
        }
        let runs = disk.extents(part, 4).await.unwrap();
        assert_eq!(runs, [ExtentStatus::data(part)]);
        drop(disk);
        let reader = FileOptions { read_only: true, ..at_once() };
        let one = FileDevice::open(&rt, &device.0, reader.clone()).await.unwrap();
        let two = FileDevice::open(&rt, &device.0, reader).await.unwrap();
        drop((one, two, device));
    });
}
