//! Encryption over a disk.

use super::{Disks, Dress, Opened, Running, Stack, geometry};
use std::sync::Arc;
use varve_block::{BlockDevice, BufPool, Dyn, Geometry, Rt};
use varve_crypt::{
    Crypt, CryptOptions, Engine, Key, MapOptions, Mutation, PlainSpec, Volume, VolumeHandle,
};

/// What the layers of a test lend: the least that a pool may have, so that it runs dry.
const POOL_BYTES: usize = 8 << 20;

/// The key of every test volume: 64 bytes, halves not equal.
fn key() -> Key {
    let bytes: Vec<u8> = (0..64u8).map(|n| n.wrapping_mul(37) ^ 0x5A).collect();
    Key::copy_from(&bytes)
}

/// A plain dm-crypt volume that begins at sector 16 of the device.
///
/// # Panics
/// When the device is too small for one: the test is wrong.
pub fn volume(device: &Geometry, sector: u64) -> Volume {
    let spec = format!("aes-xts-plain64,sector={sector},offset=16");
    let spec = PlainSpec::parse(&spec).expect("a well-formed mapping");
    let options = MapOptions {
        data_len: device.len,
        detached: true,
        allow_weak_key: false,
        engine: Engine::Auto,
    };
    spec.open(key(), &options).expect("a device with room for a volume")
}

/// Encrypts with sectors of this many bytes, with a bug or without.
///
/// # Panics
/// When the device cannot carry such a volume: the test is wrong.
pub fn over<D: BlockDevice>(
    rt: &Rt,
    below: D,
    sector: u64,
    mutation: Option<Mutation>,
) -> Crypt<D> {
    let volume = VolumeHandle::new(volume(&below.geometry(), sector));
    let options = CryptOptions { allow_discards: true, ..CryptOptions::default() };
    let crypt = Crypt::new(rt, below, volume, BufPool::new(POOL_BYTES), &options);
    let crypt = crypt.expect("a device that can carry the volume");
    match mutation {
        Some(mutation) => crypt.with_mutation(mutation),
        None => crypt,
    }
}

/// Encryption on the client's lane, wherever the device is.
pub fn dress(sector: u64) -> Dress {
    Arc::new(move |rt, device| Dyn::new(over(rt, device, sector, None)))
}

/// Encryption over the backing disk.
pub struct Encrypted {
    pub sector: u64,
    pub mutation: Option<Mutation>,
}

pub fn encrypted(sector: u64) -> Encrypted {
    Encrypted { sector, mutation: None }
}

impl Encrypted {
    pub fn with(self, mutation: Mutation) -> Encrypted {
        Encrypted { mutation: Some(mutation), ..self }
    }
}

impl Stack for Encrypted {
    fn backing(&self) -> Geometry {
        geometry("backing", 2048 + 16)
    }

    async fn open(&self, rt: &Rt, disks: &Disks) -> Opened {
        let disk = disks.backing.clone();
        let Some(mutation) = self.mutation.clone() else {
            return Ok(Running { dress: dress(self.sector), ..Running::plain(disk) });
        };
        Ok(Running::plain(over(rt, disk, self.sector, Some(mutation))))
    }
}
