//! The stacks that a world may run: how to make one, and how to open what a cut left of it.

pub mod cache;
pub mod crypt;
pub mod exported;
pub mod mutant;

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use varve_block::dev::{Remote, SimDisk};
use varve_block::{BlockDevice, DevId, Dyn, Geometry, Rt, Sectors};

pub type Failed = Box<dyn Error>;
pub type Opened = Result<Running, Failed>;

/// The two disks of a world.
#[derive(Clone)]
pub struct Disks {
    pub backing: SimDisk,
    pub cache: SimDisk,
}

type Stop = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = Result<(), Failed>>>>>;

/// Puts the layers that run on the client's lane over the way to the device.
pub type Dress = Arc<dyn Fn(&Rt, Remote<Dyn>) -> Dyn + Send + Sync>;

/// A stack that serves.
pub struct Running {
    /// What the first lane owns.
    pub device: Dyn,
    /// What every lane adds.
    pub dress: Dress,
    /// Ends it in order. Whatever was written is durable afterwards.
    pub stop: Stop,
}

impl Running {
    /// A stack that ends in order with a flush.
    pub fn plain(device: impl BlockDevice) -> Running {
        let device = Dyn::new(device);
        let last = device.clone();
        Running {
            device,
            dress: undressed(),
            stop: Box::new(|| {
                Box::pin(async move { last.flush().await.map_err(|e| Box::new(e) as Failed) })
            }),
        }
    }
}

/// Nothing runs on the client's lane.
pub fn undressed() -> Dress {
    Arc::new(|_, device| Dyn::new(device))
}

/// A way to stack devices over two disks.
pub trait Stack: 'static {
    fn backing(&self) -> Geometry {
        geometry("backing", 2048)
    }

    /// The caching disk. Of no use, it is small.
    fn cache(&self) -> Geometry {
        geometry("cache", 8)
    }

    /// Whether what is read after a crash stays as it was read, also where no flush had covered it.
    /// A disk settles; two disks of which one may hold an older copy than the other need not.
    fn settles(&self) -> bool {
        true
    }

    /// Writes what must be on the disks before the first opening.
    fn format(&self, rt: &Rt, disks: &Disks) -> impl Future<Output = Result<(), Failed>> {
        let _ = (rt, disks);
        async { Ok(()) }
    }

    fn open(&self, rt: &Rt, disks: &Disks) -> impl Future<Output = Opened>;
}

/// A disk of so many sectors that does everything a disk can.
pub fn geometry(name: &str, sectors: u64) -> Geometry {
    Geometry {
        can_discard: true,
        fast_zero: true,
        ..Geometry::new(DevId::new(name), Sectors(sectors))
    }
}

/// The backing disk alone.
pub struct Bare {
    pub backing: Geometry,
}

/// A disk alone, with blocks of one sector.
pub fn bare() -> Bare {
    Bare { backing: geometry("backing", 2048) }
}

/// A disk alone, with blocks of 4096 bytes over sectors that tear: the export must read, modify and
/// write.
pub fn blocks_of_4096() -> Bare {
    let backing =
        Geometry { block: Sectors(8), max_request: Sectors(64), ..geometry("backing", 2048) };
    Bare { backing }
}

impl Stack for Bare {
    fn backing(&self) -> Geometry {
        self.backing.clone()
    }

    async fn open(&self, _rt: &Rt, disks: &Disks) -> Opened {
        Ok(Running::plain(disks.backing.clone()))
    }
}
