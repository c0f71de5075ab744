//! The work itself: zone after zone, from wherever the header says it stands.

use std::ops::ControlFlow;
use std::sync::Arc;

use serde_json::Value;
use varve_block::{BlockDevice, Rt};

use super::convert::{Codec, Payload};
use super::position::{Position, extent};
use super::state::{Mode, Operation, Resilience, Status, describe, reencrypt_slot};
use super::{digest, keys, segments};
use crate::error::{Error, Result};
use crate::header::Header;
use crate::io::Fill;
use crate::key::Key;
use crate::manage::{MetadataEditor, destroy, tree};
use crate::unlock::UnlockOptions;

/// Bytes in memory at once, unless the operator says otherwise: a zone costs two commits of the header.
const ZONE_WANTED: u64 = 64 << 20;

/// Where header and payload lie. The same device twice, or a detached header.
#[derive(Clone)]
pub struct Devices<D> {
    pub header: D,
    pub data: D,
    pub detached: bool,
}

/// How far the work is, in bytes of payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Progress {
    pub done: u64,
    pub total: u64,
}

/// How [`Reencryption::run`] ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// The volume is an ordinary one again.
    Finished,
    /// Somebody asked to stop; what is done is durable and the header says so.
    Interrupted(Progress),
}

/// An operation whose metadata were verified with all keys.
pub struct Reencryption<D> {
    pub(super) editor: MetadataEditor<D>,
    pub(super) payload: Payload<D>,
    pub(super) op: Operation,
    pub(super) codec: Codec,
    pub(super) accept_damage: bool,
    /// The digest was verified with all keys.
    proven: bool,
    pub(super) zone: u64,
}

/// What the header says about a re-encryption under way, without believing it.
pub async fn status<D: BlockDevice>(device: &D, options: &UnlockOptions) -> Result<Option<Status>> {
    match Header::read(device, options.header_copy).await? {
        Header::Luks1(_) => Ok(None),
        Header::Luks2(h) => Ok(describe(&h.metadata)),
    }
}

impl<D: BlockDevice + Clone> Reencryption<D> {
    /// Takes up an operation that the header describes. `secrets` must open the old key and the new one.
    ///
    /// # Errors
    /// [`Error::WrongKey`] when they do not; [`Error::Corrupt`] (check 42) when the metadata are not those
    /// that the holder of these keys wrote. Nothing is written here.
    pub async fn resume(
        rt: &Rt,
        devices: &Devices<D>,
        options: &UnlockOptions,
        secrets: &[Arc<Key>],
    ) -> Result<Reencryption<D>> {
        let editor = MetadataEditor::open(devices.header.clone(), options.header_copy).await?;
        let h = editor.header();
        let op = Operation::parse(h, devices.data.geometry().len.bytes())?;
        let keys = keys::of_operation(rt, &devices.header, h, &op, options, secrets).await?;
        let keys: Vec<&Key> = keys.iter().collect();
        Reencryption::with_keys(rt, devices, options, editor, op, &keys)
    }

    /// The same with the keys at hand, old one first.
    pub(super) fn with_keys(
        rt: &Rt,
        devices: &Devices<D>,
        options: &UnlockOptions,
        editor: MetadataEditor<D>,
        op: Operation,
        keys: &[&Key],
    ) -> Result<Reencryption<D>> {
        let h = editor.header();
        if !devices.detached && op.last.offset < h.metadata.areas_end(h.hdr_size) {
            return Err(super::state::wrong(
                "segments",
                op.last.offset,
                "a payload behind the header",
            ));
        }
        let complete = keys.len() == op.digests().len();
        if complete {
            digest::verify(h, &op, keys, &options.limits)?;
        }
        let codec = Codec::new(&op, keys)?;
        let block = devices.data.geometry().block.bytes();
        let mut unit = op.sector_size().max(block);
        if !op.position.total.is_multiple_of(unit) {
            return Err(Error::Options(format!(
                "the payload has {} bytes, which is not a multiple of {unit}",
                op.position.total
            )));
        }
        if let Resilience::Checksum { block, .. } = op.resilience {
            unit = unit.max(block);
        }
        let mut zone = op.zone_max().min(ZONE_WANTED);
        zone -= zone % unit;
        if zone == 0 {
            return Err(super::state::wrong("area.size", op.area_size, "room for one block"));
        }
        let mut most = zone;
        if let Some(shift) = &op.shift {
            let places = [shift.offset, shift.len, op.previous.offset];
            if let Some(place) = places.iter().find(|p| !p.is_multiple_of(unit)) {
                return Err(super::state::wrong("segments", place, format!("multiples of {unit}")));
            }
            most = most.max(shift.len);
        }
        let payload = Payload::new(rt, devices.data.clone(), op.last.offset, unit, most)?;
        Ok(Reencryption {
            editor,
            payload,
            op,
            codec,
            accept_damage: false,
            proven: complete,
            zone,
        })
    }

    /// Goes on although an interrupted zone holds blocks that cannot be told apart.
    #[must_use]
    pub fn accepting_damage(mut self, accept: bool) -> Reencryption<D> {
        self.accept_damage = accept;
        self
    }

    /// The header is done.
    fn is_ordinary(&self) -> bool {
        reencrypt_slot(&self.editor.header().metadata).is_none()
    }

    /// At most so many bytes are hot at once.
    ///
    /// # Errors
    /// [`Error::Options`] when that is less than a block.
    pub fn with_zone(mut self, most: u64) -> Result<Reencryption<D>> {
        let mut unit = self.op.sector_size().max(self.payload.device.geometry().block.bytes());
        if let Resilience::Checksum { block, .. } = self.op.resilience {
            unit = unit.max(block);
        }
        let zone = self.zone.min(most - most % unit);
        if zone == 0 {
            return Err(Error::Options(format!("a hot zone of {most} bytes: at least {unit}")));
        }
        self.zone = zone;
        Ok(self)
    }

    pub fn progress(&self) -> Progress {
        let p = self.op.position;
        Progress { done: p.done, total: p.total }
    }

    /// Works until all is done or `watch`, which is asked between zones, says stop. A first zone that was
    /// interrupted by a cut is finished before anything else.
    ///
    /// # Errors
    /// After any error the header describes what is on the device, and the work can be resumed.
    pub async fn run(
        mut self,
        watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Ended> {
        self.settle().await?;
        if self.is_ordinary() {
            return Ok(Ended::Finished);
        }
        loop {
            let progress = self.progress();
            if watch(progress).is_break() && !self.op.position.is_finished() {
                return Ok(Ended::Interrupted(progress));
            }
            if self.op.position.is_finished() {
                self.finish().await?;
                return Ok(Ended::Finished);
            }
            self.step().await?;
        }
    }

    /// Finishes a zone that a cut interrupted, and nothing else: the volume can be opened then. Behind the last
    /// zone of a payload that moves nothing else is left, and the header becomes an ordinary one.
    ///
    /// # Errors
    /// As [`Reencryption::run`].
    pub async fn settle(&mut self) -> Result<()> {
        if self.op.position.hot == 0 {
            return Ok(());
        }
        self.recover().await?;
        self.commit_done(self.op.position).await?;
        if self.op.position.is_finished() && self.op.shift.is_some() {
            self.finish().await?;
        }
        Ok(())
    }

    /// The same for a data device that forgets what is written to it: the zone is recovered there, and the header
    /// is left as it is. [`Reencryption::volume`] is over that device.
    ///
    /// # Errors
    /// As [`Reencryption::run`].
    pub async fn settle_in_memory(&mut self) -> Result<()> {
        if self.op.position.hot > 0 {
            self.recover().await?;
            self.op.position = self.op.position.advance();
        }
        Ok(())
    }

    /// One zone.
    async fn step(&mut self) -> Result<()> {
        let next = self.op.position.heat(self.zone);
        let parts = self.prepare(next).await?;
        self.carry_out(next, parts).await
    }

    /// The old bytes of the zone that `hot` has, and durable what recovery will need of them.
    pub(super) async fn prepare(&mut self, hot: Position) -> Result<Vec<super::convert::Part>> {
        let (start, len) = hot.zone(self.op.direction);
        let parts = self.payload.read_from(self.op.old_base(start), start, len).await?;
        match self.op.keeps_old(start) {
            true => Ok(parts),
            false => self.protect(parts).await,
        }
    }

    /// The header says that the zone is hot, it is converted, and the header has it behind.
    pub(super) async fn carry_out(
        &mut self,
        hot: Position,
        parts: Vec<super::convert::Part>,
    ) -> Result<()> {
        self.commit(hot).await?;
        self.convert(parts).await?;
        self.commit_done(hot).await
    }

    /// The header says that the hot zone is done; of the last one of a payload that moves, [`Self::finish`]
    /// says so. The reference takes a header that has nothing left to do and is still under way for one whose
    /// first part is to be converted, and would convert it twice.
    async fn commit_done(&mut self, hot: Position) -> Result<()> {
        let next = hot.advance();
        if next.is_finished() && self.op.shift.is_some() {
            self.op.position = next;
            return Ok(());
        }
        self.commit(next).await
    }

    /// Old bytes to new ones, durably in their place.
    pub(super) async fn convert(&self, parts: Vec<super::convert::Part>) -> Result<()> {
        let codec = self.codec.clone();
        let work = move |at: u64, buf: &mut varve_block::IoBuf| codec.convert(at, buf);
        let parts = self.payload.each(parts, work).await?;
        self.payload.write(parts.into_iter().map(|(part, ())| part).collect()).await?;
        Ok(self.payload.device.flush().await?)
    }

    /// Puts into the area what recovery will need, durably.
    async fn protect(
        &mut self,
        parts: Vec<super::convert::Part>,
    ) -> Result<Vec<super::convert::Part>> {
        let device = self.editor.device();
        let parts = match self.op.resilience {
            Resilience::None => return Ok(parts),
            Resilience::Journal => {
                let mut at = self.op.area_offset;
                for part in &parts {
                    crate::io::write_bytes(device, at, &part.buf).await?;
                    at += part.buf.len() as u64;
                }
                parts
            }
            Resilience::Checksum { hash, block } => {
                let block = usize::try_from(block).expect("at most 1 MiB");
                let work = move |_: u64, buf: &mut varve_block::IoBuf| {
                    let mut sums = Vec::with_capacity(buf.len() / block * hash.size());
                    for data in buf.chunks(block) {
                        sums.extend_from_slice(&hash.digest(&[data])[..hash.size()]);
                    }
                    sums
                };
                let done = self.payload.each(parts, work).await?;
                let (parts, sums): (Vec<_>, Vec<Vec<u8>>) = done.into_iter().unzip();
                crate::io::write_bytes(device, self.op.area_offset, &sums.concat()).await?;
                parts
            }
        };
        device.flush().await?;
        Ok(parts)
    }

    /// The header says `position`, durably.
    async fn commit(&mut self, position: Position) -> Result<()> {
        let op = &self.op;
        self.editor
            .update(|draft| {
                let backups = segments::backups(&draft.json, op);
                op.layout().put(&mut draft.json, position, backups)
            })
            .await?;
        let data_len = self.payload.device.geometry().len.bytes();
        // As the next program would read it: the ids of the backup segments have moved.
        self.op = Operation::parse(self.editor.header(), data_len)?;
        assert_eq!(self.op.position, position, "what was written is what is read");
        Ok(())
    }

    /// All data are under the new key: the header becomes an ordinary one, and then what the payload has left
    /// behind is wiped and the old key goes. A cut in between leaves slots that belong to no segment, or those
    /// leftovers: as long as the header calls for them, the next program may need them.
    pub(super) async fn finish(&mut self) -> Result<()> {
        let op = &self.op;
        let old = op.previous.cipher.as_ref().map(|c| c.digest);
        let new = op.last.cipher.as_ref().map(|c| c.digest);
        self.editor
            .update(|draft| {
                let json = &mut draft.json;
                let position = Position { fixed: false, ..op.position };
                op.layout().put(json, position, Vec::new())?;
                tree::remove_keyslot(json, op.slot);
                drop_requirement(json);
                Ok(())
            })
            .await?;
        self.wipe_leftovers().await?;
        let Some(old) = old.filter(|old| Some(*old) != new) else { return Ok(()) };
        if !self.proven && new.is_none() {
            // No key has shown that this header is true: none is destroyed on its word.
            return Ok(());
        }
        let m = &self.editor.header().metadata;
        let slots = m.digests.get(&old).map(|d| d.keyslots.clone()).unwrap_or_default();
        for slot in &slots {
            let area = &m.keyslots[slot];
            destroy(self.editor.device(), area.area_offset, area.area_size).await?;
        }
        self.editor
            .update(|draft| {
                slots.iter().for_each(|&slot| tree::remove_keyslot(&mut draft.json, slot));
                if let Some(digests) = draft.json["digests"].as_object_mut() {
                    digests.shift_remove(&old.to_string());
                }
                Ok(())
            })
            .await?;
        assert!(reencrypt_slot(&self.editor.header().metadata).is_none(), "the slot is gone");
        Ok(())
    }
}

impl<D: BlockDevice> Reencryption<D> {
    /// What a payload that moved leaves behind it: the plain copy of its first part, or the old ciphertext
    /// at the end. Nothing needs it any more, and the plain copy nobody should read.
    async fn wipe_leftovers(&self) -> Result<()> {
        // Without the old key this header is not proven, and whoever took it away had wiped first.
        let Some(shift) = self.op.shift.as_ref().filter(|_| self.proven) else { return Ok(()) };
        let device = &self.payload.device;
        let (at, len) = match self.op.mode {
            Mode::Decrypt => {
                let end = device.geometry().len.bytes();
                (end.saturating_sub(shift.size), shift.size.min(end))
            }
            _ => (shift.offset, shift.len),
        };
        crate::io::fill(device, extent(0, at, len), Fill::Random).await?;
        Ok(device.flush().await?)
    }
}

/// Takes the requirement out, and the object around it when nothing else is in it.
fn drop_requirement(json: &mut Value) {
    let config = &mut json["config"];
    if let Some(list) = config["requirements"]["mandatory"].as_array_mut() {
        list.retain(|r| !r.as_str().is_some_and(|r| r.starts_with("online-reencrypt")));
        if list.is_empty()
            && let Some(config) = config.as_object_mut()
        {
            config.shift_remove("requirements");
        }
    }
}
