//! From one side's bytes to the other's, and reading and writing long runs of the payload.

use std::sync::Arc;

use varve_block::sync::try_join_all;
use varve_block::{BlockDevice, BufPool, Data, Durability, Extent, IoBuf, Rt, Sectors};

use super::position::extent;
use super::state::{Operation, Side, SideCipher};
use crate::error::{Error, Result};
use crate::key::Key;
use crate::xts::{Engine, Xts, XtsParams};

/// Requests in flight at once.
const DEPTH: usize = 8;

/// One side's cipher, expanded. `None`: plain.
type Expanded = Option<(Arc<Xts>, u64)>;

/// Both sides' ciphers.
#[derive(Clone)]
pub(super) struct Codec {
    old: Expanded,
    new: Expanded,
}

impl Codec {
    /// `keys` are those of [`Operation::digests`], in order; without the first of them nothing can be read as it
    /// was.
    pub(super) fn new(op: &Operation, keys: &[&Key]) -> Result<Codec> {
        let ids = op.digests();
        let known = &ids[ids.len() - keys.len()..];
        let expand = |side: &Side, weak: bool| -> Result<Expanded> {
            let Some(c) = &side.cipher else { return Ok(None) };
            let Some(at) = known.iter().position(|id| *id == c.digest) else { return Ok(None) };
            Ok(Some((Arc::new(Codec::xts(c, keys[at], weak)?), c.iv_tweak)))
        };
        // To get away from a weak key is a reason to be here.
        Ok(Codec { old: expand(&op.previous, true)?, new: expand(&op.last, false)? })
    }

    /// Schedule of the old side's key, and what is added to its sectors.
    pub(super) fn old_side(&self) -> Option<&(Arc<Xts>, u64)> {
        self.old.as_ref()
    }

    pub(super) fn new_side(&self) -> Option<&(Arc<Xts>, u64)> {
        self.new.as_ref()
    }

    fn xts(c: &SideCipher, key: &Key, allow_weak_key: bool) -> Result<Xts> {
        let params = XtsParams {
            engine: Engine::Auto,
            allow_weak_key,
            ..XtsParams::new(c.spec.clone(), c.sector_size)
        };
        Xts::new(&params, key)
    }

    fn decrypt(side: &Expanded, at: u64, data: &mut [u8]) {
        if let Some((xts, tweak)) = side {
            xts.decrypt(at / 512 + tweak, data);
        }
    }

    fn encrypt(side: &Expanded, at: u64, data: &mut [u8]) {
        if let Some((xts, tweak)) = side {
            xts.encrypt(at / 512 + tweak, data);
        }
    }

    /// What was there as plain data. `at`: bytes from the start of the payload.
    pub(super) fn open_old(&self, at: u64, data: &mut [u8]) {
        Codec::decrypt(&self.old, at, data);
    }

    pub(super) fn open_new(&self, at: u64, data: &mut [u8]) {
        Codec::decrypt(&self.new, at, data);
    }

    pub(super) fn seal_old(&self, at: u64, data: &mut [u8]) {
        Codec::encrypt(&self.old, at, data);
    }

    pub(super) fn seal_new(&self, at: u64, data: &mut [u8]) {
        Codec::encrypt(&self.new, at, data);
    }

    /// Old bytes to new ones.
    pub(super) fn convert(&self, at: u64, data: &mut [u8]) {
        self.open_old(at, data);
        self.seal_new(at, data);
    }
}

/// The payload's device. New bytes lie from `base` on.
pub(super) struct Payload<D> {
    pub(super) rt: Rt,
    pub(super) device: D,
    pub(super) base: u64,
    /// Longest request, in whole units of the operation.
    pub(super) step: u64,
    pub(super) pool: BufPool,
}

/// A run of payload in memory.
pub(super) struct Part {
    /// Bytes from the start of the payload.
    pub(super) at: u64,
    pub(super) buf: IoBuf,
}

impl<D: BlockDevice> Payload<D> {
    /// `unit`: bytes that must not be cut; `zone`: bytes that are in memory at once.
    pub(super) fn new(rt: &Rt, device: D, base: u64, unit: u64, zone: u64) -> Result<Payload<D>> {
        let geometry = device.geometry();
        let block = geometry.block.bytes();
        if !base.is_multiple_of(block) || !unit.is_multiple_of(block) {
            return Err(Error::Options(format!(
                "the payload at byte {base} does not lie on the {block}-byte blocks of {}",
                geometry.dev
            )));
        }
        let longest = geometry.max_request.bytes().min(1 << 20);
        let step = longest - longest % unit;
        if step == 0 {
            return Err(Error::unsupported(format!("units of {unit} bytes on {}", geometry.dev)));
        }
        // Buffers come in powers of two.
        let budget = usize::try_from(2 * zone + 2 * step).expect("at most a few GiB");
        Ok(Payload { rt: rt.clone(), device, base, step, pool: BufPool::new(budget) })
    }

    /// Reads a run, all of it into memory, from where it would lie if the payload began at `base`.
    pub(super) async fn read_from(&self, base: u64, start: u64, len: u64) -> Result<Vec<Part>> {
        let mut parts = Vec::new();
        let requests: Vec<Extent> =
            extent(base, start, len).pieces(Sectors(self.step / 512)).collect();
        for group in requests.chunks(DEPTH) {
            let reads = group.iter().map(|piece| async {
                let buf = self.pool.take(piece.len).await;
                let at = piece.start.byte() - base;
                Ok::<_, Error>(Part { at, buf: self.device.read(piece.start, buf).await? })
            });
            parts.extend(try_join_all(reads).await?);
        }
        Ok(parts)
    }

    /// Reads a run where the new bytes go.
    pub(super) async fn read(&self, start: u64, len: u64) -> Result<Vec<Part>> {
        self.read_from(self.base, start, len).await
    }

    /// Does `work` on all parts, off the lane and several at once, and gives them back in order.
    pub(super) async fn each<T: Send + 'static>(
        &self,
        parts: Vec<Part>,
        work: impl Fn(u64, &mut IoBuf) -> T + Clone + Send + 'static,
    ) -> Result<Vec<(Part, T)>> {
        let mut done = Vec::with_capacity(parts.len());
        let mut parts = parts.into_iter().peekable();
        while parts.peek().is_some() {
            let jobs: Vec<_> = parts
                .by_ref()
                .take(DEPTH)
                .map(|mut part| {
                    let (rt, work) = (self.rt.clone(), work.clone());
                    async move {
                        let job = move || {
                            let out = work(part.at, &mut part.buf);
                            (part, out)
                        };
                        Ok::<_, Error>(rt.offload(job).await)
                    }
                })
                .collect();
            done.extend(try_join_all(jobs).await?);
        }
        Ok(done)
    }

    /// Writes parts; durable after the next flush.
    pub(super) async fn write(&self, parts: Vec<Part>) -> Result<()> {
        let mut parts = parts.into_iter().peekable();
        while parts.peek().is_some() {
            let writes: Vec<_> = parts
                .by_ref()
                .take(DEPTH)
                .map(|part| async move {
                    let at = extent(self.base, part.at, part.buf.len() as u64).start;
                    self.device.write(at, Data::Owned(part.buf), Durability::Cached).await?;
                    Ok::<_, Error>(())
                })
                .collect();
            try_join_all(writes).await?;
        }
        Ok(())
    }
}
