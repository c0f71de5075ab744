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
//! header says so. Parts that are not encrypted yet, or not any more, are segments like the others, without
//! a cipher. When a step fails behind "hot", nobody may write to the zone under either key: the volume
//! stops, and the next open recovers it.

use std::ops::ControlFlow;
use std::sync::Arc;

use varve_block::sync::RangeLock;
use varve_block::{BlockDevice, Extent, Rt, Sector, Sectors};

use super::convert::Codec;
use super::digest;
use super::keys;
use super::position::{Part, Place};
use super::run::{Ended, Progress, Reencryption};
use super::state::{Operation, Resilience, wrong};
use crate::device::VolumeHandle;
use crate::error::{Error, Result};
use crate::format::luks2::Luks2;
use crate::key::Key;
use crate::unlock::UnlockOptions;
use crate::volume::{Mapping, Volume, VolumeKind};
use crate::xts::{SectorSize, Xts};

/// The segments of a volume under way, in the order of the payload. No zone is hot.
fn mappings(op: &Operation, codec: &Codec) -> Result<Vec<Mapping>> {
    let unit = op.sector_size();
    let clear = Xts::clear(SectorSize::new(unit).expect("one of the four"));
    let clear = (Arc::new(clear), 0);
    let mut mappings = Vec::new();
    for Place { piece, offset, .. } in op.layout().places(op.position) {
        if !piece.start.is_multiple_of(unit) || !piece.len.is_multiple_of(unit) {
            let found = format!("{}+{}", piece.start, piece.len);
            return Err(wrong("segments", found, format!("multiples of {unit}")));
        }
        let (side, of) = match piece.part {
            Part::New => (codec.new_side(), &op.last),
            Part::Old | Part::Hot => (codec.old_side(), &op.previous),
        };
        assert_eq!(
            side.is_some(),
            of.cipher.is_some(),
            "what is encrypted is never shown as it is"
        );
        let (xts, tweak) = side.unwrap_or(&clear);
        mappings.push(Mapping {
            range: Extent::new(Sector(piece.start / 512), Sectors(piece.len / 512)),
            below: Sector(offset / 512),
            iv_offset: tweak.wrapping_add(piece.start / 512),
            xts: Arc::clone(xts),
        });
    }
    Ok(mappings)
}

/// Opens a volume in the middle of a re-encryption, once its metadata were proven with all keys.
///
/// # Errors
/// [`Error::HotZone`] when they were, and a cut left a hot zone.
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
    let end = h.metadata.areas_end(h.hdr_size);
    let places = op.layout().places(op.position).into_iter().map(|place| place.offset);
    if let Some(over) = places.chain([op.last.offset]).find(|at| !detached && *at < end) {
        return Err(wrong("segments", over, "a payload behind the header"));
    }
    let secrets = [Arc::clone(secret)];
    let options = UnlockOptions { slot: None, ..options.clone() };
    let keys = keys::of_operation(rt, header_device, h, &op, &options, &secrets).await?;
    let keys: Vec<&Key> = keys.iter().collect();
    // Without the old key it is the volume that it will be, of which the new key is the proof.
    if keys.len() == op.digests().len() {
        digest::verify(h, &op, &keys, &options.limits)?;
    } else if keys.is_empty() {
        return Err(Error::unsupported(
            "the data are decrypted and only the header is left to do: varve crypt reencrypt --resume-only",
        ));
    }
    if op.position.hot > 0 {
        return Err(Error::HotZone);
    }
    volume(h, &op, &Codec::new(&op, &keys)?)
}

/// The volume as the operation has it now.
fn volume(h: &Luks2, op: &Operation, codec: &Codec) -> Result<Volume> {
    let cipher = op.last.cipher.as_ref().or(op.previous.cipher.as_ref());
    let cipher = cipher.expect("one side is encrypted");
    let (done, total) = (op.position.done, op.position.total);
    Ok(Volume {
        kind: VolumeKind::Luks2,
        uuid: h.uuid.clone(),
        label: h.label.clone(),
        cipher: cipher.spec.clone(),
        sector_size: SectorSize::new(op.sector_size()).expect("one of the four"),
        segments: mappings(op, codec)?,
        seal: None,
        flags: h.metadata.config.flags.clone(),
        slot: None,
        // Up to two of them are in use; they are in the segments.
        key: Key::zeroed(0),
        notes: vec![format!("a re-encryption is under way: {done} of {total} bytes are done")],
    })
}

/// A re-encryption of a volume that is served.
pub struct Online<D> {
    work: Reencryption<D>,
    volume: VolumeHandle,
    ranges: RangeLock,
    /// The header is an ordinary one again.
    finished: bool,
}

impl<D: BlockDevice + Clone> Reencryption<D> {
    /// The volume as it is. No zone is hot.
    ///
    /// # Errors
    /// [`Error::HotZone`], and [`Error::Corrupt`] when its parts are no whole sectors.
    pub fn volume(&self) -> Result<Volume> {
        if self.op.position.hot > 0 {
            return Err(Error::HotZone);
        }
        volume(self.editor.header(), &self.op, &self.codec)
    }

    /// Goes on under `volume`, whose requests take `ranges` for reading.
    ///
    /// # Errors
    /// [`Error::Options`] when the volume is another one, has smaller blocks than the new key's sectors, or
    /// when nothing protects the zones. The volume is as it was.
    pub fn online(self, volume: VolumeHandle, ranges: RangeLock) -> Result<Online<D>> {
        if self.op.resilience == Resilience::None && self.op.shift.is_none() {
            return Err(Error::unsupported("resilience none while the volume is served"));
        }
        if self.op.position.hot > 0 {
            return Err(Error::Options("a zone is hot while the volume is served".into()));
        }
        let online = Online { work: self, volume, ranges, finished: false };
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
            if self.finished {
                return Ok(Ended::Finished);
            }
            if watch(progress).is_break() && !self.work.op.position.is_finished() {
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

    /// One zone, or what is left to do behind the last one.
    async fn step(&mut self) -> Result<u64> {
        if self.work.op.position.is_finished() {
            self.work.finish().await?;
            self.finished = true;
            return Ok(0);
        }
        let next = self.work.op.position.heat(self.work.zone);
        let (start, len) = next.zone(self.work.op.direction);
        let zone = Extent::new(Sector(start / 512), Sectors(len / 512));
        let _zone = self.ranges.write(zone).await;
        self.work.payload.device.flush().await?;
        let parts = self.work.prepare(next).await?;
        let done = async {
            self.work.carry_out(next, parts).await?;
            // The header still calls the last zone of a payload that moves a hot one, and a recovery would
            // take back what is written to it from now on.
            if self.work.op.position.is_finished() && self.work.op.shift.is_some() {
                self.work.finish().await?;
                self.finished = true;
            }
            self.show()
        }
        .await;
        // The zone is neither old nor new, and its next open must find no bytes that it does not expect.
        if done.is_err() {
            self.volume.stop();
        }
        done.map(|()| len)
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
