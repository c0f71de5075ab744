//! Which secret opens which slot of which key.

use std::sync::Arc;

use varve_block::{BlockDevice, Rt};

use super::state::{Mode, Operation};
use crate::error::{Error, Result, Skipped};
use crate::format::luks2::Luks2;
use crate::header::Header;
use crate::key::Key;
use crate::unlock::{UnlockOptions, try_slots};

/// What the secrets opened of one key.
pub(super) struct Opened {
    pub(super) key: Key,
    /// Slot, and which of the secrets opened it.
    pub(super) slots: Vec<(u32, usize)>,
}

/// Tries the secrets on every slot of `digest`: all of them, or until the first that opens one.
pub(super) async fn open<D: BlockDevice>(
    rt: &Rt,
    device: &D,
    h: &Luks2,
    digest: u32,
    options: &UnlockOptions,
    secrets: &[Arc<Key>],
    every: bool,
) -> Result<Opened> {
    let header = Header::Luks2(Box::new(h.clone()));
    let slots = h.metadata.digests.get(&digest).map(|d| d.keyslots.clone()).unwrap_or_default();
    let (mut skipped, mut found) = (Vec::<Skipped>::new(), None::<Opened>);
    for slot in slots {
        if found.is_some() && !every {
            break;
        }
        for (n, secret) in secrets.iter().enumerate() {
            let options = UnlockOptions { slot: Some(slot), ..options.clone() };
            match try_slots(rt, device, &header, &options, secret).await {
                Ok((verified, _)) => {
                    let opened =
                        found.get_or_insert(Opened { key: verified.key, slots: Vec::new() });
                    opened.slots.push((slot, n));
                    break;
                }
                Err(Error::WrongKey { skipped: why }) => {
                    if n == 0 {
                        skipped.extend(why);
                    }
                }
                Err(e) => return Err(e),
            }
        }
    }
    found.ok_or(Error::WrongKey { skipped })
}

/// The keys of an operation, old one first. Where only the header is left to do, the old one may be gone: then
/// without it.
pub(super) async fn of_operation<D: BlockDevice>(
    rt: &Rt,
    device: &D,
    h: &Luks2,
    op: &Operation,
    options: &UnlockOptions,
    secrets: &[Arc<Key>],
) -> Result<Vec<Key>> {
    let ids = op.digests();
    match open_all(rt, device, h, &ids, options, secrets).await {
        Err(Error::WrongKey { .. }) if op.position.is_finished() && op.mode != Mode::Encrypt => {
            open_all(rt, device, h, &ids[1..], options, secrets).await
        }
        keys => keys,
    }
}

/// The keys of all these digests, each of which one of the secrets must open.
async fn open_all<D: BlockDevice>(
    rt: &Rt,
    device: &D,
    h: &Luks2,
    digests: &[u32],
    options: &UnlockOptions,
    secrets: &[Arc<Key>],
) -> Result<Vec<Key>> {
    let mut keys = Vec::new();
    for &digest in digests {
        keys.push(open(rt, device, h, digest, options, secrets, false).await?.key);
    }
    Ok(keys)
}
