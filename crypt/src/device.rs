//! [`Crypt`]: the block device above, in clear; the one below, in cipher.
//!
//! The life of a write: the range is checked, `Owned` bytes are encrypted where they lie (the caller
//! gave them away), `Shared` ones are encrypted into a buffer of this layer's own pool (somebody else
//! reads them), and the ciphertext goes down. The life of a read: the caller's buffer comes back from
//! below whole, and is decrypted before anybody can look at it; a buffer has one owner.
//!
//! # Order
//! There is no queue here. Encryption happens inside the caller's future, before the write below
//! begins, so a flush can overtake nothing, no container is sorted, and no request of two that one
//! client ordered can pass the other. The parts of a large request may be computed on other threads
//! ([`spread`]); the request waits for all of them. What the kernel's flags switch off beyond that, the
//! thread that sorts writes, this layer does not have.
//!
//! # Partial sectors
//! The geometry reports the encryption sector as the block. Requests that are not whole blocks are
//! refused; reading, changing and writing back is the export's work, under its range lock.
//!
//! # Zeroes and holes
//! What was never written, or discarded, reads as noise. `write_zeroes` writes encrypted zeroes, and no
//! range is ever reported as a hole.

mod hooks;
mod spread;
mod suspend;
#[cfg(test)]
mod tests;

use std::rc::Rc;
use std::sync::Arc;

use arc_swap::ArcSwap;
use varve_block::sync::{RangeGuard, RangeLock};
use varve_block::{
    BlockDevice, BufPool, Data, DevId, Durability, ErrorKind, Extent, Geometry, IoBuf, IoView, Op,
    Rt, Sector, Sectors, Zero,
};

use crate::activation::Activation;
use crate::error::{Error, Result};
use crate::volume::{Mapping, Volume};
use hooks::Hooks;
use spread::{Spread, Work};

#[cfg(any(test, feature = "mutations"))]
pub use hooks::{Mutation, Observer};
pub use spread::{WORKERS_MAX, Workers};
pub use suspend::Suspended;

/// Bytes that are encrypted or decrypted before other tasks of the lane get their turn: a request of
/// a megabyte must not stall 4 KiB ones.
const TURN_BYTES: usize = 256 << 10;

/// The open volume, shared by all lanes: key and segments can be replaced under running requests,
/// each of which keeps the state it began with.
#[derive(Clone)]
pub struct VolumeHandle(Arc<ArcSwap<Volume>>);

impl VolumeHandle {
    /// Shares a volume.
    pub fn new(volume: Volume) -> VolumeHandle {
        VolumeHandle(Arc::new(ArcSwap::from_pointee(volume)))
    }

    /// The volume as requests that begin now see it.
    pub fn get(&self) -> Arc<Volume> {
        self.0.load_full()
    }

    /// Another key or other segments for the same range of sectors.
    pub fn replace(&self, volume: Volume) -> Result<()> {
        let now = self.get();
        if volume.len() != now.len() || volume.sector_size > now.sector_size {
            return Err(Error::Options(
                "a volume keeps its length and block while it is open".into(),
            ));
        }
        self.0.store(Arc::new(volume));
        Ok(())
    }
}

/// What the operator decided for one export.
#[derive(Clone, Default)]
pub struct CryptOptions {
    /// Pass discards on: shows an observer of the device which parts are free.
    pub allow_discards: bool,
    /// Threads that large reads may be decrypted on.
    pub read_workers: Workers,
    /// Threads that large writes may be encrypted on.
    pub write_workers: Workers,
    /// Taken for reading by every request; re-encryption takes it for writing.
    pub ranges: Option<RangeLock>,
}

impl CryptOptions {
    /// What the flags that hold mean here. `workers` are for the directions that no flag keeps on the lane.
    pub fn new(flags: &Activation<bool>, workers: Workers) -> CryptOptions {
        let unless = |lane: bool| if lane { Workers::Up(0) } else { workers };
        CryptOptions {
            allow_discards: flags.allow_discards,
            read_workers: unless(flags.same_cpu_crypt || flags.no_read_workqueue),
            write_workers: unless(flags.same_cpu_crypt || flags.no_write_workqueue),
            ranges: None,
        }
    }
}

/// An encrypted device in clear. One handle per lane; they share the [`VolumeHandle`].
pub struct Crypt<D> {
    rt: Rt,
    below: Rc<D>,
    volume: VolumeHandle,
    pool: BufPool,
    geometry: Geometry,
    ranges: Option<RangeLock>,
    reads: Spread,
    writes: Spread,
    hooks: Hooks,
}

type Io<T> = varve_block::Result<T>;

impl<D: BlockDevice> Crypt<D> {
    /// Stands a volume on its data device. `pool` is this layer's own.
    pub fn new(
        rt: &Rt,
        below: D,
        volume: VolumeHandle,
        pool: BufPool,
        options: &CryptOptions,
    ) -> Result<Crypt<D>> {
        let geometry = geometry(&below.geometry(), &volume.get(), options)?;
        Ok(Crypt {
            rt: rt.clone(),
            below: Rc::new(below),
            volume,
            pool,
            geometry,
            ranges: options.ranges.clone(),
            reads: Spread::new(options.read_workers),
            writes: Spread::new(options.write_workers),
            hooks: Hooks::none(),
        })
    }

    /// The volume, to be shared with other lanes or replaced.
    pub fn volume(&self) -> &VolumeHandle {
        &self.volume
    }

    /// The device below.
    pub fn below(&self) -> &D {
        &self.below
    }

    /// A layer with a known defect, for tests that must catch it.
    #[cfg(any(test, feature = "mutations"))]
    #[must_use]
    pub fn with_mutation(mut self, mutation: Mutation) -> Crypt<D> {
        self.hooks = Hooks::with(mutation);
        self
    }

    fn admit(&self, op: Op, range: Extent) -> Io<()> {
        self.geometry.admit(op, range)
    }

    async fn lock(&self, range: Extent) -> Option<RangeGuard> {
        match &self.ranges {
            Some(lock) => Some(lock.read(range).await),
            None => None,
        }
    }

    /// Reads a range that lies in one segment.
    async fn read_piece(&self, m: &Mapping, at: Sector, buf: IoBuf) -> Io<IoBuf> {
        let buf = self.below.read(m.below(at), buf).await?;
        self.hooks.arrived(&self.rt, at, &buf).await;
        let mut buf = self.reads.run(&self.rt, &self.hooks, m, at, Work::Decrypt, buf).await;
        self.hooks.decrypted(m, at, &mut buf);
        Ok(buf)
    }

    /// Writes a range that lies in one segment and may be scribbled on.
    async fn write_owned(&self, m: &Mapping, at: Sector, buf: IoBuf, how: Durability) -> Io<Data> {
        let buf = self.writes.run(&self.rt, &self.hooks, m, at, Work::Encrypt, buf).await;
        self.send(m, at, buf, how).await
    }

    /// Writes a range that lies in one segment and that somebody else reads, too.
    async fn write_shared(
        &self,
        m: &Mapping,
        at: Sector,
        from: &IoView,
        how: Durability,
    ) -> Io<()> {
        let buf = self.pool.take(from.sectors()).await;
        let work = Work::EncryptFrom(from.clone());
        let buf = self.writes.run(&self.rt, &self.hooks, m, at, work, buf).await;
        self.send(m, at, buf, how).await.map(drop)
    }

    /// Ciphertext goes down.
    async fn send(&self, m: &Mapping, at: Sector, buf: IoBuf, how: Durability) -> Io<Data> {
        self.hooks.write(&self.rt, &self.below, m.below(at), buf, how).await
    }
}

impl<D: BlockDevice> BlockDevice for Crypt<D> {
    fn geometry(&self) -> Geometry {
        self.geometry.clone()
    }

    async fn read(&self, at: Sector, buf: IoBuf) -> Io<IoBuf> {
        let range = Extent::new(at, buf.sectors());
        self.admit(Op::Read, range)?;
        let _range = self.lock(range).await;
        let volume = self.unlocked(Op::Read, range)?;
        if let Some(m) = volume.whole(range) {
            return self.read_piece(m, at, buf).await;
        }
        let (mut done, mut rest) = (None, buf);
        for (m, piece) in volume.pieces(range) {
            let (head, tail) = if piece.end() == range.end() {
                (rest, None)
            } else {
                let (head, tail) = rest.split_at(piece.len);
                (head, Some(tail))
            };
            let head = self.read_piece(m, piece.start, head).await?;
            done = Some(match done {
                None => head,
                Some(before) => IoBuf::join(before, head),
            });
            match tail {
                Some(tail) => rest = tail,
                None => break,
            }
        }
        Ok(done.expect("segments cover the volume"))
    }

    async fn write(&self, at: Sector, data: Data, how: Durability) -> Io<Data> {
        let range = Extent::new(at, data.sectors());
        self.admit(Op::Write, range)?;
        let _range = self.lock(range).await;
        let volume = self.unlocked(Op::Write, range)?;
        match (volume.whole(range), data) {
            (Some(m), Data::Owned(buf)) => self.write_owned(m, at, buf, how).await,
            (Some(m), Data::Shared(view)) => {
                self.write_shared(m, at, &view, how).await?;
                Ok(Data::Shared(view))
            }
            (None, data) => {
                let view = data.freeze();
                let mut from = 0;
                for (m, piece) in volume.pieces(range) {
                    let to = from + piece.len.byte_len();
                    self.write_shared(m, piece.start, &view.slice(from..to), how).await?;
                    from = to;
                }
                Ok(Data::Shared(view))
            }
        }
    }

    async fn flush(&self) -> Io<()> {
        self.below.flush().await
    }

    async fn discard(&self, range: Extent) -> Io<()> {
        self.admit(Op::Discard, range)?;
        if !self.geometry.can_discard {
            let kind = ErrorKind::Unsupported;
            return Err(varve_block::Error::new(kind, Op::Discard, range, &self.geometry.dev));
        }
        let _range = self.lock(range).await;
        for (m, piece) in self.unlocked(Op::Discard, range)?.pieces(range) {
            self.below.discard(Extent::new(m.below(piece.start), piece.len)).await?;
        }
        Ok(())
    }

    async fn write_zeroes(&self, range: Extent, how: Zero) -> Io<()> {
        self.admit(Op::WriteZeroes, range)?;
        if how.only_if_fast {
            let kind = ErrorKind::Unsupported;
            return Err(varve_block::Error::new(kind, Op::WriteZeroes, range, &self.geometry.dev));
        }
        let _range = self.lock(range).await;
        let volume = self.unlocked(Op::WriteZeroes, range)?;
        for (m, part) in volume.pieces(range) {
            for piece in part.pieces(self.geometry.max_request) {
                let zeroes = self.pool.take_zeroed(piece.len).await;
                self.write_owned(m, piece.start, zeroes, how.durability).await?;
            }
        }
        Ok(())
    }

    async fn prefetch(&self, range: Extent) -> Io<()> {
        self.admit(Op::Prefetch, range)?;
        for (m, piece) in self.unlocked(Op::Prefetch, range)?.pieces(range) {
            self.below.prefetch(Extent::new(m.below(piece.start), piece.len)).await?;
        }
        Ok(())
    }
}

/// The geometry above: blocks of whole encryption sectors that are whole blocks below, too.
fn geometry(below: &Geometry, volume: &Volume, options: &CryptOptions) -> Result<Geometry> {
    let block = below.block.max(Sectors(volume.sector_size.sectors()));
    for m in &volume.segments {
        let end = m.below + m.range.len;
        let inside = Extent::new(m.below, m.range.len).fits(below.len);
        if !inside || !m.below.is_aligned(below.block) || !m.range.start.is_aligned(block) {
            return Err(Error::Options(format!(
                "the payload at sectors {} to {end} does not fit the {} sectors of {} in blocks of {}",
                m.below, below.len, below.dev, below.block
            )));
        }
    }
    let max_request = below.max_request.0 - below.max_request.0 % block.0;
    let len = volume.len().0;
    Ok(Geometry {
        dev: DevId::new(format!("crypt on {}", below.dev)),
        len: Sectors(len - len % block.0),
        block,
        preferred: below.preferred.max(block),
        max_request: Sectors(max_request.max(block.0)),
        can_discard: below.can_discard && options.allow_discards,
        fast_zero: false,
        ..below.clone()
    })
}
