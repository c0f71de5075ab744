//! The living half under simulation: a shadow array says what may be read, two simulated disks do
//! what disks may do, and the offline checker looks at what every power cut leaves.

mod crash;
mod endless;
mod faults;
mod model;
mod modes;
mod open;

use std::rc::Rc;

use varve_block::dev::SimDisk;
use varve_block::dev::sim::{Image, Plan};
use varve_block::{BlockDevice, BufPool, DevId, Geometry, Prng, Rt, Sectors, Sim};

use crate::format::CacheMode;
use crate::{Cache, MakeOptions, OpenOptions, make};

/// How a test set is shaped. The numbers are small, so that everything runs over soon.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub bucket: u32,
    pub block: u32,
    pub nbuckets: u64,
    /// Sectors of the volume.
    pub volume: u64,
    pub mode: CacheMode,
}

impl Shape {
    /// The smallest set there is.
    pub(super) fn tiny(mode: CacheMode) -> Shape {
        Shape { bucket: 8, block: 1, nbuckets: 513, volume: 1 << 14, mode }
    }

    /// Nodes and journal buckets of several blocks of 4 KiB.
    pub(super) fn small(mode: CacheMode) -> Shape {
        Shape { bucket: 64, block: 8, nbuckets: 520, volume: 1 << 16, mode }
    }
}

/// The two media.
#[derive(Clone)]
pub(super) struct Media {
    pub ssd: Image,
    pub hdd: Image,
}

pub(super) fn geometry(name: &'static str, len: Sectors, block: Sectors) -> Geometry {
    Geometry {
        block,
        can_discard: true,
        max_request: Sectors(256),
        ..Geometry::new(DevId::new(name), len)
    }
}

impl Media {
    /// Freshly formatted.
    pub(super) fn make(shape: Shape) -> Media {
        let ssd = Sectors(u64::from(shape.bucket) * shape.nbuckets);
        let hdd = Sectors(shape.volume + 16);
        Sim::new(1).run(move |rt| async move {
            // The cache device keeps less whole than the set's block; nothing may depend on more.
            let block = Sectors(shape.block.into());
            let media = Media { ssd: Image::new(ssd), hdd: Image::with_unit(hdd, block) };
            let (ssd, hdd) = media.disks(&rt, Plan::instant());
            let options = MakeOptions {
                bucket_size: shape.bucket,
                block_size: Some(shape.block),
                mode: shape.mode,
                ..MakeOptions::default()
            };
            make(Some(&ssd), Some(&hdd), &options).await.expect("the shape is legal");
            Media { ssd: ssd.settled(), hdd: hdd.settled() }
        })
    }

    pub(super) fn disks(&self, rt: &Rt, plan: Plan) -> (SimDisk, SimDisk) {
        let disk = |name, image: &Image| {
            let geometry = geometry(name, image.len(), image.unit());
            SimDisk::new(rt, geometry, image.clone(), plan.clone())
        };
        (disk("ssd", &self.ssd), disk("hdd", &self.hdd))
    }

    /// What the offline checker has to say. After a stop, clean data are compared with the backing
    /// device too. After a cut, a journal entry may be torn: the one that was being written.
    pub(super) fn check(&self, stopped: bool) -> Vec<String> {
        let media = self.clone();
        Sim::new(2).run(move |rt| async move {
            let (ssd, hdd) = media.disks(&rt, Plan::instant());
            let options = crate::check::CheckOptions { data: stopped };
            let report = crate::check::check(Some(&ssd), Some(&hdd), options).await;
            let bad = report.findings.iter().filter(|f| f.severity > crate::check::Severity::Note);
            let bad = bad.filter(|f| stopped || f.row != 15);
            bad.map(ToString::to_string).collect()
        })
    }
}

pub(super) type SimCache = Cache<SimDisk, SimDisk>;

/// Options for tests: little memory, quick background.
pub(super) fn options() -> OpenOptions {
    let mut options = OpenOptions { node_cache: 64 << 10, ..OpenOptions::default() };
    options.writeback.delay = std::time::Duration::from_millis(20);
    options
}

pub(super) async fn open(rt: &Rt, ssd: &SimDisk, hdd: &SimDisk) -> Rc<SimCache> {
    let opened = Cache::open(rt, ssd.clone(), hdd.clone(), options()).await;
    Rc::new(opened.unwrap_or_else(|e| panic!("{}", varve_block::chain(&e))))
}

/// Reads all of the volume in pieces of random length.
pub(super) async fn read_all(cache: &impl BlockDevice, pool: &BufPool, chance: &Prng) -> Vec<u8> {
    let geometry = cache.geometry();
    let mut all = Vec::new();
    let mut at = 0;
    while at < geometry.len.0 {
        let blocks = 1 + chance.below(geometry.max_request.0 / geometry.block.0);
        let len = Sectors(blocks * geometry.block.0).min(Sectors(geometry.len.0 - at));
        let buf = cache.read(varve_block::Sector(at), pool.take(len).await).await;
        all.extend_from_slice(&buf.unwrap_or_else(|e| panic!("{}", varve_block::chain(&e))));
        at += len.0;
    }
    all
}

/// Seeds to run: `VARVE_SEEDS=17,99` replays.
pub(super) fn seeds(n: u64) -> Vec<u64> {
    match std::env::var("VARVE_SEEDS") {
        Ok(list) => list.split(',').filter_map(|s| s.trim().parse().ok()).collect(),
        Err(_) => (1..=n).collect(),
    }
}
