//! Suspending a volume: its keys leave memory while it stays open, and come back by the same secret.
//!
//! Whoever suspends holds the requests first ([`varve_block::ExportShared::quiesce`]) and makes what was
//! written durable. Then [`VolumeHandle::suspend`] puts a volume without key and segments in place and
//! waits until nobody has the old one any more, so that key and schedules have been overwritten when it
//! returns. A request that arrives all the same gets an error ([`ErrorKind::Stopped`]), never ciphertext.
//!
//! What stays is a fingerprint: hashes of what the keys make of known bytes, and of the places of the
//! segments. [`VolumeHandle::resume`] takes only a volume with the same one, so that a header which was
//! replaced meanwhile does not turn the payload into noise, or the noise into a payload.

use std::sync::{Arc, Weak};
use std::time::Duration;

use varve_block::{ErrorKind, Extent, Op, Rt};

use super::{Crypt, Io, VolumeHandle};
use crate::error::{Error, Result};
use crate::hash::Hash;
use crate::volume::Volume;
use crate::xts::Xts;

/// How often is looked whether the last request has let go.
const LOOK: Duration = Duration::from_micros(500);

/// What a suspended volume must be like to go on.
#[derive(Clone, PartialEq, Eq)]
pub struct Suspended {
    uuid: String,
    /// Of the segments: where they lie, and what their keys make of zeroes.
    fingerprint: [u8; 64],
}

impl std::fmt::Debug for Suspended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Suspended").field("uuid", &self.uuid).finish_non_exhaustive()
    }
}

impl Suspended {
    fn of(volume: &Volume) -> Suspended {
        let mut facts = Vec::new();
        for m in &volume.segments {
            let size = m.xts.sector_size().bytes();
            let numbers = [m.range.start.0, m.range.len.0, m.below.0, m.iv_offset, size as u64];
            facts.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
            // Two data units, so that the way in which IVs are counted shows, too.
            let mut zeroes = vec![0; 2 * size];
            m.xts.encrypt(0, &mut zeroes);
            facts.extend(zeroes);
        }
        if let Some(seal) = &volume.seal {
            facts.extend(seal.start.0.to_le_bytes());
            facts.extend((seal.sector_size.bytes() as u64).to_le_bytes());
            facts.extend(seal.aead.fingerprint());
        }
        Suspended { uuid: volume.uuid.clone(), fingerprint: Hash::Sha512.digest(&[&facts]) }
    }
}

impl Volume {
    /// The key is not in memory.
    pub fn is_suspended(&self) -> bool {
        self.segments.is_empty() && self.seal.is_none()
    }

    /// What everybody may know of a volume.
    fn without_key(&self) -> Volume {
        self.with_segments(Vec::new())
    }
}

impl VolumeHandle {
    /// Takes the keys out of memory. Returns when they have been overwritten, which is when the last
    /// request that began before has ended.
    ///
    /// # Errors
    /// When it is suspended already.
    pub async fn suspend(&self, rt: &Rt) -> Result<Suspended> {
        let now = self.get();
        if now.is_suspended() {
            return Err(Error::Options("the volume is suspended already".into()));
        }
        let suspended = Suspended::of(&now);
        let schedules: Vec<Weak<Xts>> =
            now.segments.iter().map(|m| Arc::downgrade(&m.xts)).collect();
        let locked = Arc::new(now.without_key());
        let seals = now.seal.as_ref().map(|s| Arc::downgrade(&s.aead));
        drop(now);
        let volume = Arc::downgrade(&self.0.swap(locked));
        while volume.strong_count() > 0
            || schedules.iter().any(|s| s.strong_count() > 0)
            || seals.iter().any(|s| s.strong_count() > 0)
        {
            rt.sleep(LOOK).await;
        }
        Ok(suspended)
    }

    /// Answers every request with an error from now on: what is below cannot be trusted with more.
    pub(crate) fn stop(&self) {
        self.0.store(Arc::new(self.get().without_key()));
    }

    /// Puts the keys back.
    ///
    /// # Errors
    /// When it is not suspended, and when `volume` is not the one that was: another UUID, another key,
    /// other places. It stays suspended then.
    pub fn resume(&self, suspended: &Suspended, volume: Volume) -> Result<()> {
        if !self.get().is_suspended() {
            return Err(Error::Options("the volume is not suspended".into()));
        }
        let found = Suspended::of(&volume);
        if found.uuid != suspended.uuid {
            return Err(Error::Options(format!(
                "the header has UUID {}, the suspended volume had {}",
                found.uuid, suspended.uuid
            )));
        }
        if found != *suspended {
            return Err(Error::Options(
                "the header has another key or other segments than the suspended volume".into(),
            ));
        }
        self.0.store(Arc::new(volume));
        Ok(())
    }
}

impl<D: varve_block::BlockDevice> Crypt<D> {
    /// The volume, with its keys.
    pub(super) fn unlocked(&self, op: Op, range: Extent) -> Io<Arc<Volume>> {
        let volume = self.volume.get();
        if volume.is_suspended() {
            let dev = &self.geometry.dev;
            return Err(varve_block::Error::new(ErrorKind::Stopped, op, range, dev));
        }
        Ok(volume)
    }
}
