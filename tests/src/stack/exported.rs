//! A disk that another program exports: our own server on it, and our own client on that.

use super::{Disks, Opened, Running, Stack, geometry};
use varve_block::rt::Stream;
use varve_block::{DevId, Dyn, Export, ExportOptions, ExportShared, Geometry, Rt};
use varve_nbd_server::{Look, NbdDevice, NbdOptions, serve_stream};

/// At most so many bytes fit each way of a connection, and at least one: everything comes in pieces.
const CAPACITY_MAX: usize = 20_000;

/// The backing disk, over NBD.
pub struct Exported;

impl Stack for Exported {
    fn backing(&self) -> Geometry {
        geometry("backing", 2048)
    }

    async fn open(&self, rt: &Rt, disks: &Disks) -> Opened {
        let shared = ExportShared::new(ExportOptions::default());
        let export = Export::new(rt.clone(), shared, Dyn::new(disks.backing.clone()));
        let (near, far) = Stream::pair(1 + rt.prng().index(CAPACITY_MAX));
        let served = rt.clone();
        drop(rt.spawn(async move {
            serve_stream(&served, far, vec![(Look::new("disk"), export)]).await;
        }));
        let dev = DevId::new("nbd://backing/disk");
        let device = NbdDevice::over(rt, near, "disk", &dev, NbdOptions::default()).await?;
        Ok(Running::plain(device))
    }
}
