//! A hot zone after a cut: which of its blocks are old, which are new, and the rest of the work.

use varve_block::BlockDevice;
use zeroize::{Zeroize, Zeroizing};

use super::convert::{Codec, Part};
use super::run::Reencryption;
use super::state::Resilience;
use crate::error::{Error, Result};
use crate::hash::Hash;

/// Sectors that a device writes as one, whatever else it says.
const ATOM: usize = 512;
/// Sectors of a block of which each may be old or new: beyond this many the ways to mix them are too many.
const ATOMS_MAX: usize = 8;

/// What a block was found to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Found {
    Old,
    New,
    Mixed,
    Neither,
}

impl<D: BlockDevice + Clone> Reencryption<D> {
    /// Finishes the hot zone on the device, durably. The header is moved on by the caller.
    pub(super) async fn recover(&mut self) -> Result<()> {
        let (start, len) = self.op.position.zone(self.op.direction);
        if self.op.keeps_old(start) {
            let base = self.op.old_base(start);
            let parts = self.payload.read_from(base, start, len).await?;
            return self.convert(parts).await;
        }
        match self.op.resilience {
            Resilience::None => self.give_up(),
            Resilience::Journal => self.replay().await,
            Resilience::Checksum { hash, block } => self.sort_out(hash, block).await,
        }
    }

    /// Nothing tells the old blocks of the zone from the new.
    fn give_up(&self) -> Result<()> {
        let (start, len) = self.op.position.zone(self.op.direction);
        if self.accept_damage {
            tracing::warn!(start, len, "the contents of the interrupted zone are unknown");
            return Ok(());
        }
        Err(Error::refused(
            42,
            format!(
                "the work was cut inside of a zone that nothing protected (resilience none): bytes \
                 {start}+{len} of the volume hold old and new blocks that nobody can tell apart; \
                 --accept-damage goes on without them"
            ),
        ))
    }

    /// The whole zone again, from the old ciphertext that the area holds.
    async fn replay(&mut self) -> Result<()> {
        let (start, len) = self.op.position.zone(self.op.direction);
        let step = self.payload.step;
        let mut done = 0;
        while done < len {
            let now = step.min(len - done);
            let at = start + done;
            let from = self.op.area_offset + done;
            let mut bytes = crate::io::read_bytes(self.editor.device(), from, now).await?;
            self.codec.convert(at, &mut bytes);
            let buf = self.payload.pool.take_copy(&bytes).await;
            self.payload.write(vec![Part { at, buf }]).await?;
            done += now;
        }
        Ok(self.payload.device.flush().await?)
    }

    /// Block by block, with the hashes of what was there.
    async fn sort_out(&mut self, hash: Hash, block: u64) -> Result<()> {
        let (start, len) = self.op.position.zone(self.op.direction);
        let size = hash.size() as u64;
        let need = len.div_ceil(block) * size;
        let sums = crate::io::read_bytes(self.editor.device(), self.op.area_offset, need).await?;
        let sums = std::sync::Arc::new(sums);
        let mut done = 0;
        while done < len {
            let now = self.payload.step.min(len - done);
            let at = start + done;
            let parts = self.payload.read(at, now).await?;
            let (codec, sums) = (self.codec.clone(), std::sync::Arc::clone(&sums));
            let work = move |at: u64, buf: &mut varve_block::IoBuf| {
                let first = (at - start) / block;
                let blocks = (first..).zip(buf.chunks_mut(usize_of(block)));
                blocks
                    .map(|(n, data)| {
                        let from = usize_of(n * size);
                        let sum = &sums[from..from + hash.size()];
                        let at = start + n * block;
                        (at, settle(&codec, hash, sum, at, data))
                    })
                    .collect::<Vec<_>>()
            };
            let mut changed = Vec::new();
            for (part, found) in self.payload.each(parts, work).await? {
                self.judge(&found)?;
                // A part that is new already is written again: it has to become durable.
                changed.push(part);
            }
            self.payload.write(changed).await?;
            done += now;
        }
        Ok(self.payload.device.flush().await?)
    }

    fn judge(&self, found: &[(u64, Found)]) -> Result<()> {
        let Some((at, _)) = found.iter().find(|(_, f)| *f == Found::Neither) else { return Ok(()) };
        if self.accept_damage {
            tracing::warn!(byte = at, "a block of the interrupted zone is neither old nor new");
            return Ok(());
        }
        Err(Error::refused(
            42,
            format!(
                "the block at byte {at} of the volume is neither what was there before the \
                 interruption nor what was being written: it is damaged; --accept-damage leaves it \
                 as it is and goes on"
            ),
        ))
    }
}

fn usize_of(n: u64) -> usize {
    usize::try_from(n).expect("bounded by the zone")
}

/// Makes a block new, whatever it is: the hash of the old ciphertext is the judge.
fn settle(codec: &Codec, hash: Hash, sum: &[u8], at: u64, data: &mut [u8]) -> Found {
    let is = |bytes: &[u8]| hash.digest(&[bytes])[..hash.size()] == *sum;
    if is(data) {
        codec.convert(at, data);
        return Found::Old;
    }
    let mut as_old = Zeroizing::new(data.to_vec());
    let mut as_new = Zeroizing::new(data.to_vec());
    codec.open_old(at, &mut as_old);
    codec.open_new(at, &mut as_new);
    let mut plain = as_new.clone();
    if is(&sealed(codec, at, &plain)) {
        return Found::New;
    }
    let atoms = data.len() / ATOM;
    if !(2..=ATOMS_MAX).contains(&atoms) {
        return Found::Neither;
    }
    // Decryption is local to 16 bytes (XTS) or nearly so: each sector is right in one of the two.
    for mask in 1..(1u32 << atoms) - 1 {
        for (i, to) in plain.chunks_mut(ATOM).enumerate() {
            let from = if mask >> i & 1 == 1 { &as_old } else { &as_new };
            to.copy_from_slice(&from[i * ATOM..(i + 1) * ATOM]);
        }
        if is(&sealed(codec, at, &plain)) {
            data.copy_from_slice(&plain);
            codec.seal_new(at, data);
            plain.zeroize();
            return Found::Mixed;
        }
    }
    Found::Neither
}

/// What this plain data were under the old key.
fn sealed(codec: &Codec, at: u64, plain: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut bytes = Zeroizing::new(plain.to_vec());
    codec.seal_old(at, &mut bytes);
    bytes
}
