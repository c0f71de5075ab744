//! A volume between two keys, while it is served.
//!
//! Requests take the volume's range lock for reading; the work takes the zone alone. Requests that overlap
//! it wait, all others run. What the clients of the zone have written by then is flushed before anything
//! that recovery will rely on is made of it: a hash of bytes that a cut takes back would condemn the zone.
//!
//! ```text
//! lock zone --> flush --> protect --> header: hot --> convert, flush --> header: done --> new segments --> unlock
//! ```
//!
//! Requests look at the segments after they have the lock, so a write goes to the new key exactly when the
//! header says so. When a step fails behind "hot", nobody may write to the zone under either key: the volume
//! stops, and the next open recovers it.

use std::ops::ControlFlow;
use std::sync::Arc;

use varve_block::sync::RangeLock;
use varve_block::{BlockDevice, Extent, Rt, Sector, Sectors};

use super::convert::Codec;
use super::digest;
use super::keys;
use super::position::Part;
use super::run::{Ended, Progress, Reencryption};
use super::state::{Mode, Operation, Resilience, wrong};
use crate::device::VolumeHandle;
use crate::error::{Error, Result};
use crate::format::luks2::Luks2;
use crate::header::Header;
use crate::key::Key;
use crate::unlock::UnlockOptions;
use crate::volume::{Mapping, Volume, VolumeKind};
use crate::xts::SectorSize;

/// The segments of a volume under way.
fn mappings(op: &Operation, codec: &Codec) -> Result<Vec<Mapping>> {
    if op.mode != Mode::Reencrypt || op.shift.is_some() {
        return Err(Error::unsupported(format!(
            "serving a volume in the middle of mode {}; finish it with: varve crypt reencrypt \
             --resume-only",
            op.mode.name()
        )));
    }
    let unit = op.sector_size();
    let mut mappings = Vec::new();
    for piece in op.position.pieces(op.direction) {
        if !piece.start.is_multiple_of(unit) || !piece.len.is_multiple_of(unit) {
            let found = format!("{}+{}", piece.start, piece.len);
            return Err(wrong("segments", found, format!("multiples of {unit}")));
        }
        let side = if piece.part == Part::New { codec.new_side() } else { codec.old_side() };
        let (xts, tweak) = side.expect("both sides of this mode are encrypted");
        mappings.push(Mapping {
            range: Extent::new(Sector(piece.start / 512), Sectors(piece.len / 512)),
            below: Sector((op.last.offset + piece.start) / 512),
            iv_offset: tweak.wrapping_add(piece.start / 512),
            xts: Arc::clone(xts),
        });
    }
    Ok(mappings)
}

/// Opens a volume in the middle of a re-encryption, once its metadata were proven with both keys.
///
/// # Errors
/// [`Error::Refused`] when a cut left a hot zone: it has to be settled first ([`Reencryption::settle`]).
pub(crate) async fn open<H: BlockDevice>(
    rt: &Rt,
    header_device: &H,
    h: &Luks2,
    data_len: Sectors,
    detached: bool,
    options: &UnlockOptions,
    secret: &Arc<Key>,
) -> Result<Volume> {
    let op = Operation::parse(h, data_len.bytes())?;
    if op.position.hot > 0 {
        return Err(Error::refused(
            42,
            "the re-encryption was interrupted inside of a zone: opening it for writing recovers it, or \
             varve crypt reencrypt --resume-only",
        ));
    }
    if !detached && op.last.offset < h.metadata.areas_end(h.hdr_size) {
        return Err(wrong("segments", op.last.offset, "a payload behind the header"));
    }
    let ids = op.digests();
    let secrets = [Arc::clone(secret)];
    let options = UnlockOptions { slot: None, ..options.clone() };
    let keys = keys::open_all(rt, header_device, h, &ids, &options, &secrets).await?;
    let keys: Vec<&Key> = ids.iter().map(|id| &keys[id]).collect();
    digest::verify(h, &op, &keys, &options.limits)?;
    let codec = Codec::new(&op, &keys)?;
    let cipher = op.last.cipher.as_ref().expect("the digest names it");
    let (done, total) = (op.position.done, op.position.total);
    Ok(Volume {
        kind: VolumeKind::Luks2,
        uuid: h.uuid.clone(),
        label: h.label.clone(),
        cipher: cipher.spec.clone(),
        sector_size: SectorSize::new(op.sector_size()).expect("one of the four"),
        segments: mappings(&op, &codec)?,
        seal: None,
        flags: h.metadata.config.flags.clone(),
        slot: None,
        // Two of them are in use; they are in the segments.
        key: Key::zeroed(0),
        notes: vec![format!("a re-encryption is under way: {done} of {total} bytes are done")],
    })
}

/// Whether a cut left the volume inside of a zone.
pub async fn is_hot<D: BlockDevice>(device: &D) -> Result<bool> {
    match Header::read(device, None).await? {
        Header::Luks1(_) => Ok(false),
        Header::Luks2(h) => Ok(super::state::describe(&h.metadata).is_some_and(|s| s.crashed)),
    }
}

/// A re-encryption of a volume that is served.
pub struct Online<D> {
    work: Reencryption<D>,
    volume: VolumeHandle,
    ranges: RangeLock,
}

impl<D: BlockDevice + Clone> Reencryption<D> {
    /// Goes on under `volume`, whose requests take `ranges` for reading.
    ///
    /// # Errors
    /// [`Error::Options`] when the volume is another one, has smaller blocks than the new key's sectors, or
    /// when nothing protects the zones. The volume is as it was.
    pub fn online(self, volume: VolumeHandle, ranges: RangeLock) -> Result<Online<D>> {
        if self.op.resilience == Resilience::None {
            return Err(Error::unsupported("resilience none while the volume is served"));
        }
        if self.op.position.hot > 0 {
            return Err(Error::Options("a zone is hot while the volume is served".into()));
        }
        let online = Online { work: self, volume, ranges };
        // Before the first zone, so that what cannot be served is not begun.
        online.show()?;
        Ok(online)
    }
}

impl<D: BlockDevice + Clone> Online<D> {
    pub fn progress(&self) -> Progress {
        self.work.progress()
    }

    /// Works until all is done or `watch`, which is asked between zones, says stop. `rate`: bytes of payload
    /// per second, at most.
    ///
    /// # Errors
    /// After an error inside of a zone the volume answers no request any more; it has to be opened again.
    pub async fn run(
        mut self,
        rt: &Rt,
        rate: Option<u64>,
        watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Ended> {
        loop {
            let progress = self.progress();
            if self.work.op.position.is_finished() {
                self.work.finish().await?;
                return Ok(Ended::Finished);
            }
            if watch(progress).is_break() {
                return Ok(Ended::Interrupted(progress));
            }
            let began = rt.now();
            let len = self.step().await?;
            if let Some(rate) = rate.filter(|&rate| rate > 0) {
                let wanted = std::time::Duration::from_secs_f64(len as f64 / rate as f64);
                rt.sleep(wanted.saturating_sub(rt.now() - began)).await;
            }
        }
    }

    /// One zone.
    async fn step(&mut self) -> Result<u64> {
        let next = self.work.op.position.heat(self.work.zone);
        let (start, len) = next.zone(self.work.op.direction);
        let zone = Extent::new(Sector(start / 512), Sectors(len / 512));
        let _zone = self.ranges.write(zone).await;
        self.work.payload.device.flush().await?;
        let parts = self.work.payload.read(start, len).await?;
        let parts = self.work.protect(parts).await?;
        let done = async {
            self.work.commit(next).await?;
            self.work.convert(parts).await?;
            self.work.commit(next.advance()).await
        }
        .await;
        // The zone is neither old nor new, and its next open must find no bytes that it does not expect.
        let shown = done.and_then(|()| self.show());
        if shown.is_err() {
            self.volume.stop();
        }
        shown.map(|()| len)
    }

    /// Requests that begin now see how far the work is.
    fn show(&self) -> Result<()> {
        let segments = mappings(&self.work.op, &self.work.codec)?;
        let now = self.volume.get();
        if now.is_suspended() {
            return Err(Error::Options("the volume is suspended".into()));
        }
        self.volume.replace(now.with_segments(segments))
    }
}
