//! Opening a volume on a device: header, keyslots, key, mapping.
//!
//! Opening reads and never writes (check 15). What should be repaired is noted and left to a command
//! that says so.

use std::sync::Arc;

use varve_block::{BlockDevice, Rt, Sectors};

use crate::error::{Error, Result, Skipped};
use crate::format::luks2::HeaderCopy;
use crate::header::Header;
use crate::kdf::Limits;
use crate::key::Key;
use crate::keyslot::{Candidates, Verified};
use crate::volume::{MapOptions, Volume};
use crate::xts::Engine;

/// How to open a volume.
#[derive(Clone, Debug, Default)]
pub struct UnlockOptions {
    /// Try this keyslot only.
    pub slot: Option<u32>,
    /// What a keyslot may cost.
    pub limits: Limits,
    /// Use this copy of a LUKS2 header as it is.
    pub header_copy: Option<HeaderCopy>,
    /// Open a volume whose key has equal halves, to rescue its data.
    pub allow_weak_key: bool,
    /// Which code computes AES.
    pub engine: Engine,
    /// Open a volume in the middle of a re-encryption, too.
    pub under_way: bool,
}

/// What a secret opens, without opening it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct TestReport {
    /// The keyslot that accepted the secret.
    pub slot: u32,
    /// The key belongs to no segment: the secret is valid, and opens no volume.
    pub unbound: bool,
    /// Slots before it that were not tried.
    pub skipped: Vec<Skipped>,
}

/// Opens the LUKS volume on `device` with a passphrase or the content of a key file.
pub async fn unlock<D: BlockDevice>(
    rt: &Rt,
    device: &D,
    options: &UnlockOptions,
    secret: &Arc<Key>,
) -> Result<Volume> {
    let len = device.geometry().len;
    unlock_over(rt, device, len, false, options, secret).await
}

/// Opens a volume of `data_len` sectors whose header lies on another device.
pub async fn unlock_detached<H: BlockDevice>(
    rt: &Rt,
    header_device: &H,
    data_len: Sectors,
    options: &UnlockOptions,
    secret: &Arc<Key>,
) -> Result<Volume> {
    unlock_over(rt, header_device, data_len, true, options, secret).await
}

async fn unlock_over<H: BlockDevice>(
    rt: &Rt,
    header_device: &H,
    data_len: Sectors,
    detached: bool,
    options: &UnlockOptions,
    secret: &Arc<Key>,
) -> Result<Volume> {
    let header = Header::read(header_device, options.header_copy).await?;
    if let (true, Header::Luks2(h)) = (options.under_way, &header)
        && crate::reencrypt::describe(&h.metadata).is_some()
    {
        return crate::reencrypt::open(rt, header_device, h, data_len, detached, options, secret)
            .await;
    }
    header.check_activatable()?;
    let (verified, _) = try_slots(rt, header_device, &header, options, secret).await?;
    header.map(
        verified,
        &MapOptions {
            data_len,
            detached,
            allow_weak_key: options.allow_weak_key,
            engine: options.engine,
        },
    )
}

/// Opens the LUKS volume on `device` with the volume key itself.
pub async fn unlock_with_volume_key<D: BlockDevice>(
    device: &D,
    options: &UnlockOptions,
    key: Key,
) -> Result<Volume> {
    let header = Header::read(device, options.header_copy).await?;
    let verified = header.verify_volume_key(key, &options.limits)?;
    header.map(
        verified,
        &MapOptions {
            data_len: device.geometry().len,
            detached: false,
            allow_weak_key: options.allow_weak_key,
            engine: options.engine,
        },
    )
}

/// Whether the secret opens a keyslot, and which. Works on volumes that cannot be activated, too.
pub async fn test<D: BlockDevice>(
    rt: &Rt,
    device: &D,
    options: &UnlockOptions,
    secret: &Arc<Key>,
) -> Result<TestReport> {
    let header = Header::read(device, options.header_copy).await?;
    let (verified, skipped) = try_slots(rt, device, &header, options, secret).await?;
    let unbound = match (&header, verified.digest) {
        (Header::Luks2(h), Some(id)) => {
            h.metadata.digests.get(&id).is_some_and(|d| d.segments.is_empty())
        }
        _ => false,
    };
    let slot = verified.slot.expect("the key came from a slot");
    Ok(TestReport { slot, unbound, skipped })
}

/// Tries the slots one after the other; each derivation runs off the lane.
pub(crate) async fn try_slots<D: BlockDevice>(
    rt: &Rt,
    device: &D,
    header: &Header,
    options: &UnlockOptions,
    secret: &Arc<Key>,
) -> Result<(Verified, Vec<Skipped>)> {
    let Candidates { list, mut skipped } = header.candidates(options.slot, &options.limits)?;
    let begun = rt.now();
    for candidate in list {
        let slot = candidate.slot;
        let spent = rt.now() - begun;
        if spent > options.limits.total {
            let why = format!("the slots before it took {} s (check 28)", spent.as_secs());
            skipped.push(Skipped { slot, why });
            continue;
        }
        let area = crate::io::read_bytes(device, candidate.area_offset, candidate.area_len).await;
        let area = match area {
            Ok(area) => area,
            Err(e @ Error::Device(_)) => {
                skipped.push(Skipped { slot, why: format!("its area cannot be read: {e}") });
                continue;
            }
            Err(e) => return Err(e),
        };
        let (secret, limits) = (Arc::clone(secret), options.limits.clone());
        let attempt = rt.offload(move || candidate.attempt(&area, &secret, &limits)).await;
        match attempt {
            Ok(Some(verified)) => return Ok((verified, skipped)),
            Ok(None) => {}
            // Not enough memory for this slot's derivation, or the like: the next may do.
            Err(e @ (Error::Refused { .. } | Error::Unsupported(_))) => {
                skipped.push(Skipped { slot, why: e.to_string() });
            }
            Err(e) => return Err(e),
        }
    }
    Err(Error::WrongKey { skipped })
}

#[cfg(test)]
mod tests;
