//! An open volume: which sectors lie where, under which key.

use std::sync::Arc;

use varve_block::{Extent, Geometry, Sector, Sectors};

use crate::cipher::CipherSpec;
use crate::error::{Corrupt, Error, Result};
use crate::format::metadata::{Segment, SegmentIntegrity, SegmentKind};
use crate::header::Header;
use crate::integrity::{Aead, Journaling, Seal};
use crate::key::Key;
use crate::keyslot::Verified;
use crate::xts::{Engine, SectorSize, Xts, XtsParams};

/// What kind of header, if any, described the volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VolumeKind {
    Plain,
    Luks1,
    Luks2,
}

/// Everything the request path needs. Shared by all lanes, replaced as a whole, never changed.
pub struct Volume {
    pub kind: VolumeKind,
    /// Empty for plain mappings.
    pub uuid: String,
    pub label: String,
    pub cipher: CipherSpec,
    /// The largest encryption sector of the segments: the block size of the volume.
    pub sector_size: SectorSize,
    /// Adjacent runs from sector 0 to the end. None where every sector is authenticated.
    pub segments: Vec<Mapping>,
    /// What authenticates every sector, in place of segments: [`Sealed`](crate::Sealed) stands on it, and
    /// its device says how long the volume is.
    pub seal: Option<Seal>,
    /// Flags stored in the header, as `allow-discards`. Defaults; the operator's word wins.
    pub flags: Vec<String>,
    /// The keyslot that opened it.
    pub slot: Option<u32>,
    /// The volume key.
    pub key: Key,
    /// What the operator should know.
    pub notes: Vec<String>,
}

/// A run of the volume and where it lies below.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// First sector and length on the volume.
    pub range: Extent,
    /// First sector on the device below.
    pub below: Sector,
    /// Added to a sector's distance from `range.start` before the IV is made.
    pub iv_offset: u64,
    pub xts: Arc<Xts>,
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Volume")
            .field("kind", &self.kind)
            .field("uuid", &self.uuid)
            .field("cipher", &self.cipher.text())
            .field("sector_size", &self.sector_size)
            .field("segments", &self.segments)
            .field("seal", &self.seal)
            .finish_non_exhaustive()
    }
}

/// How a volume is laid over its data device.
#[derive(Clone, Copy, Debug)]
pub struct MapOptions {
    /// Length of the data device.
    pub data_len: Sectors,
    /// The header lies elsewhere, so the payload may start at sector 0 (check 37).
    pub detached: bool,
    /// Accept a key with equal halves (check 22).
    pub allow_weak_key: bool,
    pub engine: Engine,
}

impl Volume {
    /// Length in sectors.
    pub fn len(&self) -> Sectors {
        self.segments.last().map_or(Sectors(0), |s| s.range.end() - Sector(0))
    }

    /// Never true: a volume without a sector is refused when it is opened.
    pub fn is_empty(&self) -> bool {
        self.len() == Sectors(0)
    }

    /// What the operator should know about this volume over that data device: [`Volume::notes`], and what
    /// a torn write would do.
    pub fn notes_over(&self, data: &Geometry) -> Vec<String> {
        let mut notes = self.notes.clone();
        let (whole, size) = (data.preferred.max(data.block), self.sector_size.sectors());
        if whole.0 < size {
            notes.push(format!(
                "{} writes {} bytes whole, an encryption sector has {}: a power cut can leave one that is \
                 half old and half new",
                data.dev,
                whole.bytes(),
                self.sector_size.bytes()
            ));
        }
        notes
    }

    /// The same volume, laid out anew. The key stays where it is: in the segments.
    pub(crate) fn with_segments(&self, segments: Vec<Mapping>) -> Volume {
        Volume {
            kind: self.kind,
            uuid: self.uuid.clone(),
            label: self.label.clone(),
            cipher: self.cipher.clone(),
            sector_size: self.sector_size,
            segments,
            seal: None,
            flags: self.flags.clone(),
            slot: None,
            key: Key::zeroed(0),
            notes: self.notes.clone(),
        }
    }

    /// The segment that holds the whole of `range`, which is the usual case.
    #[inline]
    pub(crate) fn whole(&self, range: Extent) -> Option<&Mapping> {
        self.segments.iter().find(|m| m.range.contains(range))
    }

    /// The parts of `range` that lie in one segment each.
    pub(crate) fn pieces(&self, range: Extent) -> impl Iterator<Item = (&Mapping, Extent)> {
        self.segments.iter().filter_map(move |m| Some((m, m.range.intersect(range)?)))
    }
}

impl Mapping {
    /// Where a sector of the volume lies below.
    pub(crate) fn below(&self, at: Sector) -> Sector {
        self.below + (at - self.range.start)
    }

    /// The number that a sector's IV is made from. The kernel's arithmetic wraps; ranges that would
    /// were refused when the volume was opened, except where the mode counts in 32 bits anyway.
    pub(crate) fn iv_number(&self, at: Sector) -> u64 {
        (at - self.range.start).0.wrapping_add(self.iv_offset)
    }
}

/// A segment as the header or the command line gives it, before it met the device.
pub(crate) struct Wanted {
    pub(crate) name: String,
    /// First sector on the data device.
    pub(crate) below: u64,
    /// Sectors, or to the end.
    pub(crate) len: Option<u64>,
    pub(crate) iv_offset: u64,
    pub(crate) sector_size: u64,
    pub(crate) iv_large_sectors: bool,
    pub(crate) spec: CipherSpec,
}

impl Header {
    /// Lays the volume over its data device with a key that was proven.
    pub(crate) fn map(&self, verified: Verified, options: &MapOptions) -> Result<Volume> {
        self.check_activatable()?;
        let wanted = match self {
            Header::Luks1(h) => {
                let start = u64::from(h.payload_offset);
                if start == 0 && !options.detached {
                    return Err(covers_header("payload offset"));
                }
                vec![Wanted {
                    name: "payload".into(),
                    below: start,
                    len: None,
                    iv_offset: 0,
                    sector_size: 512,
                    iv_large_sectors: false,
                    spec: h.cipher_spec()?,
                }]
            }
            Header::Luks2(h) => {
                if !options.detached {
                    let end = h.metadata.areas_end(h.hdr_size);
                    for (id, s) in h.metadata.regular_segments() {
                        if s.offset < end {
                            return Err(covers_header(&format!("segments.{id}.offset")));
                        }
                    }
                }
                self.wanted_segments(verified.digest)?
            }
        };
        let mut volume = match self.sealed_segment() {
            Some((segment, integrity)) => {
                sealed(wanted, &segment, &integrity, verified.key, options)?
            }
            None => lay(wanted, verified.key, options)?,
        };
        volume.slot = verified.slot;
        volume.uuid = self.uuid().to_owned();
        volume.notes.splice(0..0, self.notes().iter().cloned());
        if options.detached {
            volume.notes.push(
                "nothing in a detached header says which device it belongs to: another one reads as noise, \
                 and is destroyed by writing"
                    .into(),
            );
        }
        match self {
            Header::Luks1(_) => volume.kind = VolumeKind::Luks1,
            Header::Luks2(h) => {
                volume.kind = VolumeKind::Luks2;
                volume.label = h.label.clone();
                volume.flags = h.metadata.config.flags.clone();
                if let Some(seal) = volume.seal.as_mut()
                    && volume.flags.iter().any(|f| f == "no-journal")
                {
                    seal.journaling = Journaling::Direct;
                }
            }
        }
        Ok(volume)
    }

    /// The only segment, when its sectors are authenticated.
    fn sealed_segment(&self) -> Option<(Segment, SegmentIntegrity)> {
        let Header::Luks2(h) = self else { return None };
        let (_, segment) = h.metadata.regular_segments().next()?;
        match &segment.kind {
            SegmentKind::Crypt { integrity: Some(integrity), .. } => {
                Some((segment.clone(), integrity.clone()))
            }
            _ => None,
        }
    }

    /// The regular segments, all of which the digest that proved the key must name (check 21).
    fn wanted_segments(&self, digest: Option<u32>) -> Result<Vec<Wanted>> {
        let Header::Luks2(h) = self else { return Ok(Vec::new()) };
        let named = digest.and_then(|d| h.metadata.digests.get(&d)).map(|d| &d.segments);
        let mut wanted = Vec::new();
        for (id, segment) in h.metadata.regular_segments() {
            if !named.is_some_and(|n| n.contains(&id)) {
                return Err(Error::refused(
                    21,
                    format!("the secret opens a key that does not belong to segment {id}"),
                ));
            }
            let SegmentKind::Crypt { encryption, iv_tweak, sector_size, .. } = &segment.kind else {
                return Err(Error::unsupported(format!("segment {id} is not a crypt segment")));
            };
            wanted.push(Wanted {
                name: format!("segments.{id}"),
                below: segment.offset / 512,
                len: segment.size.map(|n| n / 512),
                iv_offset: *iv_tweak,
                sector_size: *sector_size,
                iv_large_sectors: false,
                spec: CipherSpec::parse(encryption)?,
            });
        }
        Ok(wanted)
    }
}

/// A volume of one authenticated segment. Its length is known when its device is opened.
fn sealed(
    wanted: Vec<Wanted>,
    segment: &Segment,
    integrity: &SegmentIntegrity,
    key: Key,
    options: &MapOptions,
) -> Result<Volume> {
    let [w] = <[Wanted; 1]>::try_from(wanted)
        .map_err(|_| Error::unsupported("integrity protection beside another segment"))?;
    let spec = crate::integrity::check_segment(0, w.spec.text(), integrity, segment.size)?;
    let sector_size = check_sector_size(&w)?;
    if w.below >= options.data_len.0 {
        let expected = format!("inside the device's {} sectors", options.data_len);
        return Err(wrong(&w, 36, "offset", w.below, expected));
    }
    check_iv(&w, sector_size, options.data_len, &mut Vec::new())?;
    let (engine, weak) = (options.engine, options.allow_weak_key);
    let aead = Aead::new(&spec, &key, sector_size, w.iv_offset, engine, weak)?;
    Ok(Volume {
        kind: VolumeKind::Luks2,
        uuid: String::new(),
        label: String::new(),
        cipher: w.spec,
        sector_size,
        segments: Vec::new(),
        seal: Some(Seal {
            aead: Arc::new(aead),
            start: Sector(w.below),
            sector_size,
            journaling: Journaling::Journal,
        }),
        flags: Vec::new(),
        slot: None,
        key,
        notes: Vec::new(),
    })
}

fn covers_header(field: &str) -> Error {
    Error::Corrupt(Corrupt {
        what: "LUKS header",
        check: 37,
        field: field.into(),
        found: "a payload over the header itself".into(),
        expected: "a payload behind it, or the header on another device".into(),
    })
}

/// Checks the segments against the device and expands the key (checks 35, 36, 38).
pub(crate) fn lay(wanted: Vec<Wanted>, key: Key, options: &MapOptions) -> Result<Volume> {
    let mut segments = Vec::new();
    let (mut at, mut largest, mut spec) = (Sector(0), SectorSize::S512, None);
    let mut notes = Vec::new();
    for w in wanted {
        let size = check_sector_size(&w)?;
        let len = check_length(&w, size, options.data_len)?;
        check_iv(&w, size, len, &mut notes)?;
        let params = XtsParams {
            spec: w.spec.clone(),
            sector_size: size,
            iv_large_sectors: w.iv_large_sectors,
            engine: options.engine,
            allow_weak_key: options.allow_weak_key,
        };
        segments.push(Mapping {
            range: Extent::new(at, len),
            below: Sector(w.below),
            iv_offset: w.iv_offset,
            xts: Arc::new(Xts::new(&params, &key)?),
        });
        at += len;
        largest = largest.max(size);
        spec.get_or_insert(w.spec);
    }
    let cipher = spec.ok_or_else(|| Error::unsupported("a volume without segments"))?;
    Ok(Volume {
        kind: VolumeKind::Plain,
        uuid: String::new(),
        label: String::new(),
        cipher,
        sector_size: largest,
        segments,
        seal: None,
        flags: Vec::new(),
        slot: None,
        key,
        notes,
    })
}

fn wrong(w: &Wanted, check: u8, field: &str, found: u64, expected: impl Into<String>) -> Error {
    Error::Corrupt(Corrupt {
        what: "volume",
        check,
        field: format!("{}.{field}", w.name),
        found: found.to_string(),
        expected: expected.into(),
    })
}

fn check_sector_size(w: &Wanted) -> Result<SectorSize> {
    let size = SectorSize::new(w.sector_size)
        .ok_or_else(|| wrong(w, 35, "sector_size", w.sector_size, "512, 1024, 2048 or 4096"))?;
    if !w.iv_offset.is_multiple_of(size.sectors()) {
        return Err(wrong(w, 35, "iv_tweak", w.iv_offset, "a multiple of the sector size"));
    }
    Ok(size)
}

fn check_length(w: &Wanted, size: SectorSize, device: Sectors) -> Result<Sectors> {
    let len = match w.len {
        Some(len) if !len.is_multiple_of(size.sectors()) => {
            return Err(wrong(w, 35, "size", len, "a multiple of the sector size"));
        }
        Some(len) => len,
        None => {
            let rest = device.0.saturating_sub(w.below);
            rest - rest % size.sectors()
        }
    };
    let expected = || format!("a segment inside the device's {device} sectors");
    match w.below.checked_add(len) {
        Some(end) if end <= device.0 && len > 0 => Ok(Sectors(len)),
        Some(end) => Err(wrong(w, 36, "end", end, expected())),
        None => Err(wrong(w, 36, "size", len, expected())),
    }
}

fn check_iv(w: &Wanted, size: SectorSize, len: Sectors, notes: &mut Vec<String>) -> Result<()> {
    let end = w.iv_offset.checked_add(len.0);
    if end.is_none() && w.spec.iv != crate::cipher::IvMode::Plain {
        return Err(wrong(w, 38, "iv_tweak", w.iv_offset, "sector numbers that do not wrap"));
    }
    let unit = if w.iv_large_sectors { size.sectors() } else { 1 };
    if w.spec.iv.repeats_before(end.unwrap_or(u64::MAX) / unit) {
        notes.push(format!("sectors of {} share an IV: {} repeats", w.name, w.spec));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
