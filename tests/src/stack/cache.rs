//! A cache over both disks, and encryption over that.

use super::{Disks, Failed, Opened, Running, Stack, crypt, geometry, undressed};
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;
use varve_block::dev::SimDisk;
use varve_block::{BlockDevice, Dyn, Geometry, Rt};
use varve_cache::format::CacheMode;
use varve_cache::{Cache, MakeOptions, OpenOptions, WritebackOptions, make};

/// Buckets of 8 KiB: nodes of the index fill and split after a few dozen keys.
const BUCKET: u32 = 16;
/// Little more than the fewest that a cache may have.
const BUCKETS: u64 = 560;

/// A cache, with encryption over it or without.
#[derive(Clone, Copy)]
pub struct Cached {
    pub mode: CacheMode,
    /// The volume's length in sectors.
    pub volume: u64,
    /// The encryption sector in bytes.
    pub encrypted: Option<u64>,
}

/// A volume of 2 MiB: all of it fits the cache.
pub fn cached(mode: CacheMode) -> Cached {
    Cached { mode, volume: 4096, encrypted: None }
}

impl Cached {
    /// A volume of 12 MiB behind a cache of 4: buckets are reused all the time.
    pub fn larger_than_the_cache(self) -> Cached {
        Cached { volume: 24 << 10, ..self }
    }

    /// The default order: both disks hold nothing but ciphertext.
    pub fn encrypted(self, sector: u64) -> Cached {
        Cached { encrypted: Some(sector), ..self }
    }

    fn options(&self, rt: &Rt) -> OpenOptions {
        // Times as short as the worlds are, and never twice the same.
        let micros = |max: u64| Duration::from_micros(rt.prng().below(max));
        OpenOptions {
            mode: Some(self.mode),
            journal_delay: micros(2000),
            writeback: WritebackOptions {
                running: rt.prng().chance(3, 4),
                delay: micros(5000),
                look_again: Duration::from_micros(500) + micros(1500),
                // Mostly without a rate: a world is over before it would move much.
                percent: if rt.prng().chance(1, 4) { 10 } else { 0 },
                ..WritebackOptions::default()
            },
            ..OpenOptions::default()
        }
    }
}

type Both = Cache<SimDisk, SimDisk>;

fn failed(error: impl std::error::Error + 'static) -> Failed {
    Box::new(error)
}

impl Stack for Cached {
    fn backing(&self) -> Geometry {
        geometry("backing", self.volume + 32)
    }

    fn cache(&self) -> Geometry {
        geometry("cache", BUCKETS * u64::from(BUCKET))
    }

    async fn format(&self, rt: &Rt, disks: &Disks) -> Result<(), Failed> {
        // The world's chance names them: a seed is one world to the last byte.
        let name = || Uuid::from_u128(u128::from(rt.prng().next_u64()));
        let options = MakeOptions {
            bucket_size: BUCKET,
            block_size: Some(1),
            mode: self.mode,
            set_uuid: Some(name()),
            device_uuids: Some([name(), name()]),
            ..MakeOptions::default()
        };
        make(Some(&disks.cache), Some(&disks.backing), &options).await.map_err(failed)?;
        Ok(())
    }

    async fn open(&self, rt: &Rt, disks: &Disks) -> Opened {
        let (ssd, hdd) = (disks.cache.clone(), disks.backing.clone());
        let cache = Cache::open(rt, ssd, hdd, self.options(rt)).await.map_err(failed)?;
        let cache: Rc<Both> = Rc::new(cache);
        let dress = self.encrypted.map_or_else(undressed, crypt::dress);
        let device = Dyn::new(Rc::clone(&cache));
        Ok(Running { device, dress, stop: Box::new(move || Box::pin(stop(cache))) })
    }
}

async fn stop(cache: Rc<Both>) -> Result<(), Failed> {
    BlockDevice::flush(&cache).await.map_err(failed)?;
    cache.stop().await.map_err(failed)
}
