//! [`Sealed`]: an authenticated volume in clear.
//!
//! A write is sealed in memory that this layer owns, whether the caller gave its buffer away or shares a
//! frozen one, so that what is encrypted, what is authenticated and what is stored are the same bytes. A
//! read is checked and decrypted in the caller's private buffer before the caller can see it. A sector
//! whose tag does not match is an error that names it, and no byte of the request is returned.
//!
//! What was never written, on a volume that was not wiped when it was made, is such an error, too.

use std::sync::Arc;

use varve_block::{
    BlockDevice, BufPool, Data, DevId, Durability, Error as BlockError, ErrorKind, Extent,
    Geometry, IoBuf, Op, Rt, Sector, Zero,
};

use super::aead::Aead;
use super::base::{Base, Io, geometry, write_zeroes};
use super::device::{Found, Integrity, Journaling};
use super::hooks::Hooks;
use super::replay::Replayed;
use super::{Layout, read_superblock};
use crate::device::VolumeHandle;
use crate::error::{Corrupt, Error, Result};
use crate::volume::Volume;
use crate::xts::SectorSize;

/// Bytes that are sealed or opened before other tasks of the lane get their turn.
const TURN_BYTES: usize = 64 << 10;

/// What a volume with integrity has in place of segments.
#[derive(Clone, Debug)]
pub struct Seal {
    pub(crate) aead: Arc<Aead>,
    /// First sector of dm-integrity's part of the data device.
    pub(crate) start: Sector,
    pub(crate) sector_size: SectorSize,
    pub(crate) journaling: Journaling,
}

/// An authenticated device in clear.
pub struct Sealed<D> {
    rt: Rt,
    integrity: Integrity<D>,
    volume: VolumeHandle,
    pool: BufPool,
    geometry: Geometry,
    replayed: Replayed,
    hooks: Hooks,
}

impl<D: BlockDevice> Sealed<D> {
    /// Stands a volume on its data device. A journal that a crash left is replayed: to its places, or in
    /// memory when the device is read-only. `pool` is this layer's own.
    ///
    /// # Errors
    /// When the superblock is damaged, or is not the one that the volume's header asks for; when the
    /// volume has no integrity.
    pub async fn open(rt: &Rt, below: D, volume: VolumeHandle, pool: BufPool) -> Result<Sealed<D>> {
        let seal = volume.get().seal.clone();
        let Some(seal) = seal else {
            return Err(Error::Options("the volume has no integrity protection".into()));
        };
        let beneath = below.geometry();
        let sb = read_superblock(&below, seal.start).await?;
        let layout = Layout::new(&sb, seal.start, beneath.len)?;
        let wrong = |field: &str, found: u64, expected: u64| {
            Err(Error::Corrupt(Corrupt {
                what: "dm-integrity superblock",
                check: 44,
                field: field.into(),
                found: found.to_string(),
                expected: format!("{expected}, as the LUKS header says"),
            }))
        };
        if layout.tag != seal.aead.tuple_len() {
            return wrong("tag size", layout.tag as u64, seal.aead.tuple_len() as u64);
        }
        if layout.block.0 != seal.sector_size.sectors() {
            return wrong("sectors per block", layout.block.0, seal.sector_size.sectors());
        }
        if sb.recalculating.is_some() || sb.dirty_bitmap {
            return Err(Error::unsupported(
                "dm-integrity with tags of its own below an authenticated cipher",
            ));
        }
        let volatile = seal.journaling == Journaling::Journal;
        let geometry = geometry(&beneath, &layout, volatile, "crypt")?;
        let base = Base::new(below, layout, DevId::new(format!("integrity on {}", beneath.dev)));
        let integrity = Integrity::new(base, seal.journaling);
        let replayed = integrity.recover(!beneath.read_only).await?;
        if replayed.blocks > 0 {
            tracing::info!(
                dev = %beneath.dev, sections = replayed.sections, blocks = replayed.blocks,
                "integrity journal replayed"
            );
        }
        let (rt, hooks) = (rt.clone(), Hooks::none());
        Ok(Sealed { rt, integrity, volume, pool, geometry, replayed, hooks })
    }

    /// A layer with a known defect, for tests that must catch it.
    #[cfg(test)]
    #[must_use]
    pub(super) fn with_mutation(mut self, mutation: super::hooks::Mutation) -> Sealed<D> {
        self.hooks = Hooks::with(mutation);
        self
    }

    /// The volume, to be shared or replaced.
    pub fn volume(&self) -> &VolumeHandle {
        &self.volume
    }

    /// What the start found in the journal.
    pub fn replayed(&self) -> Replayed {
        self.replayed
    }

    /// Leaves everything in its place and the journal empty. A volume that is not closed is a crash,
    /// which the journal survives.
    pub async fn close(&self) -> Io<()> {
        match self.geometry.read_only {
            true => Ok(()),
            false => self.integrity.close().await,
        }
    }

    fn error(&self, kind: ErrorKind, op: Op, range: Extent) -> BlockError {
        BlockError::new(kind, op, range, &self.geometry.dev)
    }

    fn unlocked(&self, op: Op, range: Extent) -> Io<(Arc<Volume>, Arc<Aead>)> {
        let volume = self.volume.get();
        match volume.seal.as_ref().map(|s| Arc::clone(&s.aead)) {
            Some(aead) => Ok((volume, aead)),
            None => Err(self.error(ErrorKind::Stopped, op, range)),
        }
    }

    /// The sectors of one turn, with their numbers.
    fn unit(&self) -> usize {
        self.integrity.base.layout.block.byte_len()
    }

    async fn seal(&self, range: Extent, mut buf: IoBuf, how: Durability) -> Io<Data> {
        let (volume, aead) = self.unlocked(Op::Write, range)?;
        let mut tuples = vec![0; buf.len() / self.unit() * aead.tuple_len()];
        aead.draw_ivs(&mut tuples)
            .map_err(|e| self.error(ErrorKind::Io, Op::Write, range).with(e))?;
        self.seal_each(&aead, range.start, &mut buf, &mut tuples).await;
        if self.hooks.taken_again(&self.rt, &mut buf).await {
            self.seal_each(&aead, range.start, &mut buf, &mut tuples.clone()).await;
        }
        // The key may be wiped from here on.
        drop((volume, aead));
        let view = buf.freeze();
        self.integrity.write(range.start, view.clone(), &tuples, how).await?;
        Ok(Data::Shared(view))
    }

    /// Encrypts each sector of a buffer, and makes its tag.
    async fn seal_each(&self, aead: &Aead, at: Sector, buf: &mut IoBuf, tuples: &mut [u8]) {
        let (unit, tag) = (self.unit(), aead.tuple_len());
        let mut n = at.0;
        let per_turn = TURN_BYTES / unit;
        let turns = buf.chunks_mut(per_turn * unit).zip(tuples.chunks_mut(per_turn * tag));
        for (i, (data, tuples)) in turns.enumerate() {
            if i > 0 {
                self.rt.yield_now().await;
            }
            for (data, tuple) in data.chunks_exact_mut(unit).zip(tuples.chunks_exact_mut(tag)) {
                aead.seal(n, data, tuple);
                n += self.integrity.base.layout.block.0;
            }
        }
    }
}

impl<D: BlockDevice> BlockDevice for Sealed<D> {
    fn geometry(&self) -> Geometry {
        self.geometry.clone()
    }

    async fn read(&self, at: Sector, buf: IoBuf) -> Io<IoBuf> {
        let range = Extent::new(at, buf.sectors());
        self.geometry.admit(Op::Read, range)?;
        let Found { data: mut buf, tags: tuples, .. } = self.integrity.read(at, buf).await?;
        self.hooks.arrived(&self.rt, &mut buf).await;
        let (_volume, aead) = self.unlocked(Op::Read, range)?;
        let (unit, tag) = (self.unit(), aead.tuple_len());
        let mut n = at;
        let per_turn = TURN_BYTES / unit;
        let turns = buf.chunks_mut(per_turn * unit).zip(tuples.chunks(per_turn * tag));
        for (i, (data, tuples)) in turns.enumerate() {
            if i > 0 {
                self.rt.yield_now().await;
            }
            for (data, tuple) in data.chunks_exact_mut(unit).zip(tuples.chunks_exact(tag)) {
                let block = Extent::new(n, self.integrity.base.layout.block);
                if !aead.open(n.0, data, tuple) {
                    let why = "the integrity tag does not match";
                    return Err(self.error(ErrorKind::Corrupt, Op::Read, block).with(why));
                }
                n = block.end();
            }
        }
        Ok(buf)
    }

    async fn write(&self, at: Sector, data: Data, how: Durability) -> Io<Data> {
        let range = Extent::new(at, data.sectors());
        self.geometry.admit(Op::Write, range)?;
        match data {
            Data::Owned(buf) => self.seal(range, buf, how).await,
            Data::Shared(view) => {
                let buf = self.pool.take_copy(&view).await;
                self.seal(range, buf, how).await?;
                Ok(Data::Shared(view))
            }
        }
    }

    async fn flush(&self) -> Io<()> {
        match self.geometry.read_only {
            true => Ok(()),
            false => self.integrity.flush().await,
        }
    }

    /// A discarded sector would have no valid tag: dm-crypt passes none on, either.
    async fn discard(&self, range: Extent) -> Io<()> {
        self.geometry.admit(Op::Discard, range)?;
        Err(self.error(ErrorKind::Unsupported, Op::Discard, range))
    }

    async fn write_zeroes(&self, range: Extent, how: Zero) -> Io<()> {
        let write = async |piece, zeroes| self.seal(piece, zeroes, how.durability).await.map(drop);
        write_zeroes(&self.geometry, &self.pool, range, how, write).await
    }
}
