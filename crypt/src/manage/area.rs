//! Keyslot areas: a new one written and proven, an old one destroyed.

use varve_block::BlockDevice;
use zeroize::Zeroizing;

use crate::af;
use crate::cipher::CipherSpec;
use crate::create::wall_clock;
use crate::error::{Error, Result};
use crate::hash::Hash;
use crate::kdf::{self, Cost, Kdf, Limits, Pbkdf};
use crate::key::{self, Key};
use crate::keyslot::{area_xts, fill_area};

/// How a new keyslot protects its key.
#[derive(Clone, Copy, Debug)]
pub struct Protection {
    pub pbkdf: Pbkdf,
    pub cost: Cost,
    /// Hash of the splitter.
    pub hash: Hash,
}

/// Cipher and derived key length of an area.
#[derive(Clone, Debug)]
pub(crate) struct AreaCipher {
    pub(crate) spec: CipherSpec,
    pub(crate) key_len: usize,
}

impl Default for AreaCipher {
    /// What the reference gives every new LUKS2 keyslot.
    fn default() -> AreaCipher {
        let spec = CipherSpec::parse("aes-xts-plain64").expect("a well-formed cipher");
        AreaCipher { spec, key_len: 64 }
    }
}

/// An area in memory.
pub(crate) struct Fresh {
    pub(crate) kdf: Kdf,
    bytes: Zeroizing<Vec<u8>>,
    derived: Key,
    cipher: AreaCipher,
    hash: Hash,
}

impl Fresh {
    /// Benchmarks, derives, splits, encrypts: work for a worker thread.
    pub(crate) fn make(
        how: Protection,
        cipher: AreaCipher,
        volume_key: &Key,
        secret: &Key,
    ) -> Result<Fresh> {
        let clock = wall_clock();
        let kdf = kdf::choose(how.pbkdf, how.cost, cipher.key_len, &clock)?;
        let derived = kdf.derive(secret, cipher.key_len, &Limits::format_maximum())?;
        let random = &mut key::fill_random;
        let bytes = fill_area(&cipher.spec, how.hash, volume_key, &derived, random)?;
        Ok(Fresh { kdf, bytes, derived, cipher, hash: how.hash })
    }

    /// Writes the area, makes it durable, and proves that the key comes back out of what is stored.
    /// Only then may a header name it.
    pub(crate) async fn store<D: BlockDevice>(
        &self,
        device: &D,
        at: u64,
        volume_key: &Key,
    ) -> Result<()> {
        crate::io::write_bytes(device, at, &self.bytes).await?;
        device.flush().await?;
        let mut stored = crate::io::read_bytes(device, at, self.bytes.len() as u64).await?;
        area_xts(&self.cipher.spec, &self.derived)?.decrypt(0, &mut stored);
        if af::merge(self.hash, &stored, volume_key.len(), af::STRIPES) != *volume_key {
            let dev = device.geometry().dev;
            return Err(Error::NotStored { dev, what: "keyslot area" });
        }
        Ok(())
    }
}

/// Overwrites an area with noise, durably. One pass: flash keeps spare copies whatever is written, and
/// on everything else one is enough.
pub(crate) async fn destroy<D: BlockDevice>(device: &D, at: u64, len: u64) -> Result<()> {
    const PIECE: u64 = 256 << 10;
    let mut noise = vec![0; usize::try_from(PIECE.min(len)).expect("at most 256 KiB")];
    let mut done = 0;
    while done < len {
        let now = usize::try_from(PIECE.min(len - done)).expect("at most 256 KiB");
        key::fill_random(&mut noise[..now])?;
        crate::io::write_bytes(device, at + done, &noise[..now]).await?;
        done += now as u64;
    }
    device.flush().await?;
    Ok(())
}
