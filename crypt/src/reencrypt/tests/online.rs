//! Re-encryption under clients: what they read is what they wrote, and a cut at any moment leaves what a
//! flush covered, or later versions of it, under one key or the other.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use super::two::{Event, Logged, each_cut_at, two};
use super::*;
use crate::device::{Crypt, CryptOptions, VolumeHandle};
use crate::format::metadata::SegmentKind;
use varve_block::sync::RangeLock;
use varve_block::{BufPool, Data, Durability, Sector, Sectors};

/// In blocks of 4096; zones of three blocks cut through what clients write at once.
const BLOCK: usize = 4096;
const ZONE: u64 = 12 << 10;
const CLIENTS: usize = 3;

/// A write of a version to a block, in the time of the log: before it began, and when it was answered.
#[derive(Clone, Copy, Debug)]
struct Write {
    block: usize,
    version: u64,
    began: usize,
    ended: usize,
}

#[derive(Default)]
struct Story {
    writes: Vec<Write>,
    /// Began, and answered.
    flushes: Vec<(usize, usize)>,
}

impl Story {
    /// The versions of a block that a cut after `at` events may leave.
    fn allowed(&self, block: usize, at: usize) -> Vec<u64> {
        let covered = self.flushes.iter().filter(|f| f.1 <= at).map(|f| f.0).max().unwrap_or(0);
        let of_block = || self.writes.iter().filter(|w| w.block == block && w.began <= at);
        let least = of_block().filter(|w| w.ended <= covered).map(|w| w.version).max().unwrap_or(0);
        let mut all = vec![least];
        all.extend(of_block().map(|w| w.version).filter(|v| *v > least));
        all
    }
}

/// What a version of a block holds; version 0 is what was there before.
fn pattern(block: usize, version: u64) -> Vec<u8> {
    let mut bytes = vec![u8::try_from(block % 251).unwrap(); BLOCK];
    for chunk in bytes.chunks_mut(16) {
        chunk[..8].copy_from_slice(&version.to_le_bytes());
    }
    bytes
}

/// What is in all blocks at that version.
fn filled(blocks: usize, version: u64) -> Vec<u8> {
    (0..blocks).flat_map(|block| pattern(block, version)).collect()
}

type Top = Crypt<Logged>;

/// Reads and writes blocks of its own, in runs that zones cut.
async fn client(
    rt: Rt,
    top: Rc<Top>,
    me: usize,
    log: Logged,
    story: Rc<RefCell<Story>>,
    blocks: usize,
) {
    let pool = BufPool::new(1 << 20);
    let mine: Vec<usize> = (0..blocks).filter(|b| b / 4 % CLIENTS == me).collect();
    let mut held = vec![0u64; blocks];
    for version in 1..=120 {
        let prng = rt.prng();
        let first = mine[usize::try_from(prng.below(mine.len() as u64)).unwrap()];
        let room = 4 - first % 4;
        let count = 1 + usize::try_from(prng.below(room as u64)).unwrap();
        let at = Sector((first * BLOCK / 512) as u64);
        let sectors = Sectors((count * BLOCK / 512) as u64);
        match prng.below(8) {
            0 => {
                let began = log.now();
                top.flush().await.unwrap();
                story.borrow_mut().flushes.push((began, log.now()));
            }
            1..=3 => {
                let read = top.read(at, pool.take(sectors).await).await.unwrap();
                for n in 0..count {
                    let expected = pattern(first + n, held[first + n]);
                    assert!(read[n * BLOCK..(n + 1) * BLOCK] == expected, "block {}", first + n);
                }
            }
            kind => {
                let bytes: Vec<u8> = (0..count).flat_map(|n| pattern(first + n, version)).collect();
                let mut buf = pool.take(sectors).await;
                buf.copy_from_slice(&bytes);
                let data =
                    if kind % 2 == 0 { Data::Owned(buf) } else { Data::Shared(buf.freeze()) };
                let began = log.now();
                // Until it is answered it may come to pass at any time, or never.
                let index = story.borrow().writes.len();
                story.borrow_mut().writes.extend((0..count).map(|n| Write {
                    block: first + n,
                    version,
                    began,
                    ended: usize::MAX,
                }));
                top.write(at, data, Durability::Cached).await.unwrap();
                let ended = log.now();
                for write in &mut story.borrow_mut().writes[index..index + count] {
                    write.ended = ended;
                }
                held[first..first + count].fill(version);
            }
        }
        rt.sleep(Duration::from_nanos(rt.prng().below(60_000))).await;
    }
}

/// What becomes of the volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// It gets another key; the header is on the disk.
    Key,
    /// The same with a header of its own.
    KeyDetached,
    /// A plain disk gets a key, and a header of its own.
    Encrypt,
    /// A disk with a header of its own becomes plain.
    Decrypt,
    /// A plain disk gets its header before its data.
    EncryptShift,
    /// A volume loses its header, and its data move back.
    DecryptShift,
}

impl Kind {
    fn detached(self) -> bool {
        !matches!(self, Kind::Key | Kind::EncryptShift)
    }

    fn keeps_its_key(self) -> bool {
        !matches!(self, Kind::Key | Kind::KeyDetached)
    }
}

/// By how much a payload moves.
const SHIFT: usize = 384 << 10;

/// One world: what is done with the volume while clients are at it.
struct World {
    kind: Kind,
    protect: Protect,
    direction: Direction,
    sizes: (u64, u64),
    /// The defect that the test has to notice.
    without_lock: bool,
}

impl World {
    fn blocks(&self) -> usize {
        let bytes = match self.kind {
            // No shorter than what the payload gives up; longer than what the area protects.
            Kind::EncryptShift | Kind::DecryptShift => SHIFT + (96 << 10),
            _ => 192 << 10,
        };
        bytes / BLOCK
    }

    fn plan(&self) -> Start {
        let mode = match self.kind {
            Kind::Key | Kind::KeyDetached => Mode::Reencrypt,
            Kind::Encrypt | Kind::EncryptShift => Mode::Encrypt,
            Kind::Decrypt | Kind::DecryptShift => Mode::Decrypt,
        };
        Start {
            mode,
            direction: self.direction,
            protect: self.protect,
            sector_size: SectorSize::new(self.sizes.1),
            reduce: (self.kind == Kind::EncryptShift).then_some(2 * SHIFT as u64),
            ..plan()
        }
    }

    /// Header and data before the server starts. What changes between plain and encrypted has begun by then.
    fn images(&self) -> [Vec<u8>; 2] {
        let plain = filled(self.blocks(), 0);
        let disk = volume(&plain, self.sizes.0);
        let mut images = match self.kind {
            Kind::Key => [vec![0; 512], disk],
            Kind::KeyDetached | Kind::Decrypt => [disk[..BASE].to_vec(), disk],
            Kind::Encrypt => [vec![0; 16 << 20], plain],
            Kind::EncryptShift => [vec![0; 512], [plain, vec![0xee; 2 * SHIFT]].concat()],
            Kind::DecryptShift => {
                let held = Mem::from_bytes(&disk);
                let file = Sim::new(1).run(|_| async move { export_header(&held).await });
                [file.unwrap().to_vec(), disk]
            }
        };
        if self.kind.keeps_its_key() {
            let pair = two(&images);
            let (devices, plan) = (self.devices(&pair), self.plan());
            let begun = Sim::new(2)
                .run(|rt| async move { start(&rt, &devices, &options(), &plan).await.map(drop) });
            begun.unwrap();
            images = [pair[0].image(), pair[1].image()];
        }
        images
    }

    fn devices(&self, pair: &[Logged; 2]) -> Devices<Logged> {
        let [header, data] = pair.clone();
        let detached = self.kind.detached();
        let header = if detached { header } else { data.clone() };
        Devices { header, data, detached }
    }

    /// What the operator says: begin, or go on.
    async fn work(&self, rt: &Rt, devices: &Devices<Logged>) -> Reencryption<Logged> {
        let work = match self.kind.keeps_its_key() {
            true => Reencryption::resume(rt, devices, &options(), &[key(SECRET)]).await,
            false => start(rt, devices, &options(), &self.plan()).await,
        };
        work.unwrap().with_zone(ZONE).unwrap()
    }

    async fn open(&self, rt: &Rt, devices: &Devices<Logged>) -> Result<crate::Volume> {
        let options = UnlockOptions { under_way: true, ..options() };
        let len = devices.data.geometry().len;
        match self.kind.detached() {
            true => crate::unlock_detached(rt, &devices.header, len, &options, &key(SECRET)).await,
            false => unlock(rt, &devices.data, &options, &key(SECRET)).await,
        }
    }

    /// Serves and re-encrypts, with clients, to the end of all of them. Gives the story and the log.
    fn run(self: &Rc<Self>, seed: u64) -> (Story, Vec<(usize, Event)>, [Vec<u8>; 2]) {
        let images = self.images();
        let pair = two(&images);
        let (held, world) = (pair.clone(), Rc::clone(self));
        let story = Sim::new(seed).run(|rt| async move {
            let pair = held.map(|device| device.with_delay(&rt));
            let devices = world.devices(&pair);
            let handle = VolumeHandle::new(world.open(&rt, &devices).await.unwrap());
            let ranges = RangeLock::new();
            let locked = (!world.without_lock).then(|| ranges.clone());
            let how = CryptOptions { ranges: locked, ..CryptOptions::default() };
            let pool = BufPool::new(1 << 20);
            let top = Crypt::new(&rt, devices.data.clone(), handle.clone(), pool, &how).unwrap();
            let (top, story) = (Rc::new(top), Rc::new(RefCell::new(Story::default())));
            let blocks = world.blocks();
            let clients: Vec<_> = (0..CLIENTS)
                .map(|me| {
                    let (top, story) = (Rc::clone(&top), Rc::clone(&story));
                    rt.spawn(client(rt.clone(), top, me, pair[1].clone(), story, blocks))
                })
                .collect();
            let work = world.work(&rt, &devices).await.online(handle, ranges).unwrap();
            let zones = Rc::new(Cell::new(0));
            let seen = Rc::clone(&zones);
            let ended = work
                .run(&rt, Some(4 << 20), &mut |_| {
                    seen.set(seen.get() + 1);
                    ControlFlow::Continue(())
                })
                .await
                .unwrap();
            assert_eq!(ended, Ended::Finished);
            // The first part of a payload that moves is one zone.
            assert!(zones.get() >= 8, "{}", zones.get());
            for client in clients {
                client.await;
            }
            drop(top);
            Rc::try_unwrap(story).ok().expect("all clients are done").into_inner()
        });
        let events = pair[0].take();
        (story, events, images)
    }

    /// What is in a volume as it was left: recovered, opened, read.
    fn contents(
        self: &Rc<Self>,
        cut: &[Vec<u8>; 2],
        finish: bool,
        in_memory: bool,
    ) -> Result<Vec<u8>> {
        let pair = two(cut);
        let (held, world) = (pair.clone(), Rc::clone(self));
        Sim::new(5).run(|rt| async move {
            let devices = world.devices(&held);
            let resume =
                async || Reencryption::resume(&rt, &devices, &options(), &[key(SECRET)]).await;
            let mut volume = world.open(&rt, &devices).await;
            if matches!(volume, Err(Error::HotZone)) {
                let mut work = resume().await?;
                match in_memory {
                    true => work.settle_in_memory().await?,
                    false => work.settle().await?,
                }
                volume = work.volume();
            }
            if finish && status(&devices.header, &options()).await?.is_some() {
                resume().await?.run(&mut |_| ControlFlow::Continue(())).await?;
                volume = world.open(&rt, &devices).await;
            }
            let pool = BufPool::new(1 << 20);
            let buf = pool.take(Sectors((world.blocks() * BLOCK / 512) as u64)).await;
            if let Some(at) = plain_at(&devices.header).await {
                return Ok(devices.data.read(at, buf).await?.to_vec());
            }
            let (how, handle) = (CryptOptions::default(), VolumeHandle::new(volume?));
            let top = Crypt::new(&rt, devices.data.clone(), handle, pool.clone(), &how)?;
            Ok(top.read(Sector(0), buf).await?.to_vec())
        })
    }

    /// Cuts a run at random moments. Says what was wrong first.
    fn explore(self: &Rc<Self>, seed: u64, cuts: usize) -> std::result::Result<usize, String> {
        let (story, events, before) = self.run(seed);
        let every = (events.len() / cuts).max(1);
        let (mut looked, mut wrong) = (0, None);
        each_cut_at(&before, &events, every, seed, |at, cut| {
            if wrong.is_some() {
                return;
            }
            looked += 1;
            let data = match self.contents(cut, looked % 3 == 0, looked % 3 == 1) {
                Ok(data) => data,
                Err(e) => {
                    wrong = Some(format!("seed {seed}, cut after {at} events: {e}"));
                    return;
                }
            };
            for (block, found) in data.chunks(BLOCK).enumerate() {
                let allowed = story.allowed(block, at);
                // A client's write of several sectors may be torn where no flush covers it.
                let fits = found.chunks(512).enumerate().all(|(n, sector)| {
                    allowed.iter().any(|v| pattern(block, *v)[n * 512..(n + 1) * 512] == *sector)
                });
                if !fits {
                    let version = u64::from_le_bytes(found[..8].try_into().unwrap());
                    wrong = Some(format!(
                        "seed {seed}, cut after {at} events: block {block} holds {version}, not one of \
                         {allowed:?}"
                    ));
                    return;
                }
            }
        });
        wrong.map_or(Ok(looked), Err)
    }
}

/// Where the payload of a volume lies that was decrypted.
async fn plain_at(header: &Logged) -> Option<Sector> {
    let Ok(Header::Luks2(h)) = Header::read(header, None).await else { return None };
    let done = h.metadata.config.requirements.is_empty();
    let (_, segment) = h.metadata.regular_segments().next()?;
    (done && segment.kind == SegmentKind::Linear).then_some(Sector(segment.offset / 512))
}

fn world(n: u64) -> World {
    World {
        kind: if n % 2 == 1 { Kind::KeyDetached } else { Kind::Key },
        protect: if n % 3 == 2 { Protect::Journal } else { Protect::Checksum(Hash::Sha256) },
        direction: if n % 4 < 2 { Direction::Forward } else { Direction::Backward },
        sizes: if n.is_multiple_of(5) { (512, 512) } else { (4096, 4096) },
        without_lock: false,
    }
}

#[test]
fn clients_lose_nothing_while_their_volume_gets_another_key() {
    let mut looked = 0;
    for seed in 1..=12 {
        looked += Rc::new(world(seed)).explore(seed, 40).unwrap_or_else(|e| panic!("{e}"));
    }
    assert!(looked > 300, "{looked}");
}

/// Plain disks that become encrypted under their clients, and the way back.
#[test]
fn clients_lose_nothing_while_their_disk_gets_a_key_or_loses_it() {
    let mut looked = 0;
    for (seed, kind) in (1..).zip([
        Kind::Encrypt,
        Kind::Decrypt,
        Kind::EncryptShift,
        Kind::DecryptShift,
        Kind::Encrypt,
        Kind::Decrypt,
        Kind::EncryptShift,
        Kind::DecryptShift,
    ]) {
        // The area holds the hashes of all of it, and a journal of three blocks.
        let protect =
            if kind == Kind::DecryptShift { Protect::Journal } else { world(seed).protect };
        let world = World { kind, protect, sizes: (4096, 4096), ..world(seed) };
        looked += Rc::new(world).explore(seed, 40).unwrap_or_else(|e| panic!("{kind:?}: {e}"));
    }
    assert!(looked > 200, "{looked}");
}

/// The tests above can fail: requests that do not wait for the zone lose data.
#[test]
fn requests_that_ignore_the_zone_are_noticed() {
    let caught = (1..=12).any(|seed| {
        let blind = Rc::new(World { without_lock: true, ..world(seed) });
        let tried =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| blind.explore(seed, 40)));
        !matches!(tried, Ok(Ok(_)))
    });
    assert!(caught);
}

/// A volume that was left in the middle opens and is written to, and the work goes on afterwards.
#[test]
fn a_half_done_volume_is_served_without_going_on() {
    let kinds = [Kind::Encrypt, Kind::Decrypt, Kind::EncryptShift, Kind::DecryptShift];
    let protect = Protect::Journal;
    let others = kinds.map(|kind| World { kind, protect, sizes: (4096, 4096), ..world(1) });
    for (n, world) in (0..4).map(world).chain(others).enumerate() {
        let world = Rc::new(world);
        let pair = two(&world.images());
        let (held, this) = (pair.clone(), Rc::clone(&world));
        Sim::new(3).run(|rt| async move {
            let devices = this.devices(&held);
            let work = this.work(&rt, &devices).await;
            let mut zones = 0;
            let mut watch = |_| {
                zones += 1;
                if zones == 7 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            let half = work.run(&mut watch).await;
            assert!(matches!(half.unwrap(), Ended::Interrupted(_)));
            let closed = unlock(&rt, &devices.header, &options(), &key(SECRET)).await;
            assert!(closed.unwrap_err().to_string().contains("--resume-only"), "unless asked for");
            let volume = this.open(&rt, &devices).await.unwrap();
            // A first part that moves is a segment of its own.
            assert!(matches!(volume.segments.len(), 2 | 3), "{:?}", volume.segments);
            let pool = BufPool::new(1 << 20);
            let handle = VolumeHandle::new(volume);
            let how = CryptOptions::default();
            let top = Crypt::new(&rt, devices.data.clone(), handle, pool.clone(), &how).unwrap();
            let mut buf = pool.take(Sectors((this.blocks() * BLOCK / 512) as u64)).await;
            buf.copy_from_slice(&filled(this.blocks(), 9));
            top.write(Sector(0), Data::Owned(buf), Durability::Cached).await.unwrap();
            top.flush().await.unwrap();
        });
        let expected = filled(world.blocks(), 9);
        let images = [pair[0].image(), pair[1].image()];
        for finish in [false, true] {
            assert!(world.contents(&images, finish, false).unwrap() == expected, "{n} {finish}");
        }
    }
}
