//! The state of a re-encryption as the header has it, every part looked at (check 42).

use std::fmt;

use crate::cipher::CipherSpec;
use crate::error::{Corrupt, Error, Result, printable};
use crate::format::luks2::Luks2;
use crate::format::metadata::{Keyslot, KeyslotKind, Metadata, Segment, SegmentKind};
use crate::hash::Hash;
use crate::reencrypt::position::Position;
use crate::reencrypt::shift::{self, Shift};
use crate::xts::SectorSize;

/// Longest hot zone (check 31).
pub(super) const ZONE_MAX: u64 = 1 << 30;

/// What becomes of the data.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Another key.
    Reencrypt,
    /// Plain data get a key.
    Encrypt,
    /// The data become plain.
    Decrypt,
}

/// From which end the work goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    Forward,
    Backward,
}

/// How a hot zone survives a cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Resilience {
    None,
    /// A hash of every block of so many bytes.
    Checksum {
        hash: Hash,
        block: u64,
    },
    Journal,
}

/// A cipher over a side of the operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct SideCipher {
    pub(super) spec: CipherSpec,
    pub(super) sector_size: SectorSize,
    pub(super) iv_tweak: u64,
    pub(super) digest: u32,
}

/// What the volume was, or will be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Side {
    /// Segment that remembers it.
    pub(super) segment: u32,
    /// First byte on the data device.
    pub(super) offset: u64,
    /// Bytes, or to the end of the device.
    pub(super) size: Option<u64>,
    /// `None`: plain data.
    pub(super) cipher: Option<SideCipher>,
}

/// An operation that a header describes.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub(super) slot: u32,
    /// Of the requirement: 2 or 3. It is a part of what the digest covers.
    pub(super) version: u8,
    pub(super) mode: Mode,
    pub(super) direction: Direction,
    /// Of every zone; when the payload moves, of its first part.
    pub(super) resilience: Resilience,
    /// The payload moves.
    pub(super) shift: Option<Shift>,
    pub(super) area_offset: u64,
    pub(super) area_size: u64,
    pub(super) previous: Side,
    pub(super) last: Side,
    pub(super) position: Position,
}

/// An operation for the operator's eyes.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Status {
    pub mode: String,
    pub direction: String,
    pub resilience: String,
    /// Interrupted inside of a hot zone.
    pub crashed: bool,
}

impl Mode {
    pub(super) fn name(self) -> &'static str {
        match self {
            Mode::Reencrypt => "reencrypt",
            Mode::Encrypt => "encrypt",
            Mode::Decrypt => "decrypt",
        }
    }
}

impl Direction {
    pub(super) fn name(self) -> &'static str {
        match self {
            Direction::Forward => "forward",
            Direction::Backward => "backward",
        }
    }
}

impl Resilience {
    pub(super) fn name(self) -> &'static str {
        match self {
            Resilience::None => "none",
            Resilience::Checksum { .. } => "checksum",
            Resilience::Journal => "journal",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let crashed = if self.crashed { ", interrupted inside of a zone" } else { "" };
        write!(f, "mode {}, {}, resilience {}{crashed}", self.mode, self.direction, self.resilience)
    }
}

/// What a header says about a re-encryption, without believing it.
pub(crate) fn describe(metadata: &Metadata) -> Option<Status> {
    metadata.keyslots.values().find_map(|s| match &s.kind {
        KeyslotKind::Reencrypt { mode, direction, resilience } => Some(Status {
            mode: mode.clone(),
            direction: direction.clone(),
            resilience: printable(resilience),
            crashed: metadata.regular_segments().any(|(_, s)| is_hot(s)),
        }),
        _ => None,
    })
}

pub(super) fn is_hot(segment: &Segment) -> bool {
    segment.flags.iter().any(|f| f == "in-reencryption")
}

/// A part of the metadata that no correct run leaves.
pub(super) fn wrong(
    field: impl Into<String>,
    found: impl fmt::Display,
    expected: impl Into<String>,
) -> Error {
    Error::Corrupt(Corrupt {
        what: "LUKS2 re-encryption",
        check: 42,
        field: field.into(),
        found: printable(&found.to_string()),
        expected: expected.into(),
    })
}

impl Operation {
    /// Reads the operation of a header whose payload device has `data_len` bytes.
    ///
    /// # Errors
    /// [`Error::Options`] when none is under way, [`Error::Unsupported`] for what we do not do,
    /// [`Error::Corrupt`] for what no program would write, [`Error::Refused`] without a digest (check 43).
    pub(super) fn parse(h: &Luks2, data_len: u64) -> Result<Operation> {
        let m = &h.metadata;
        let Some((slot, keyslot)) = reencrypt_slot(m) else {
            return Err(Error::Options("no re-encryption of this volume is under way".into()));
        };
        let KeyslotKind::Reencrypt { mode, direction, .. } = &keyslot.kind else {
            unreachable!("found by its kind")
        };
        let version = version(m)?;
        let mode = match mode.as_str() {
            "encrypt" => Mode::Encrypt,
            "decrypt" => Mode::Decrypt,
            _ => Mode::Reencrypt,
        };
        let direction = match direction.as_str() {
            "forward" => Direction::Forward,
            _ => Direction::Backward,
        };
        let needed = |flag: &str| -> Result<Side> {
            let found = backup(m, flag)?;
            let (id, segment) =
                found.ok_or_else(|| wrong("segments", "none", format!("one {flag}")))?;
            side(m, id, segment)
        };
        let (previous, last) = (needed("backup-previous")?, needed("backup-final")?);
        let resilience = resilience(m, slot, keyslot)?;
        check_sides(mode, &previous, &last)?;
        let sides = [&previous, &last];
        let moves = is_shifted(keyslot);
        let (shift, position) = match (moves, backup(m, "backup-moved-segment")?) {
            (true, Some(moved)) => {
                let how = (mode, direction);
                let shift = Shift::parse(m, (slot, keyslot), how, sides, moved, data_len)?;
                (Some(shift), Position::find_shifted(m, &shift, mode, sides, data_len)?)
            }
            (false, None) => {
                check_places(sides)?;
                (None, Position::find(m, direction, mode, sides, data_len)?)
            }
            (true, None) => {
                return Err(Error::unsupported(
                    "a re-encryption that moves the payload without a moved segment; finish it with \
                     cryptsetup reencrypt --resume-only",
                ));
            }
            (false, Some((id, _))) => {
                return Err(wrong(format!("segments.{id}"), "moved", "no part of its own"));
            }
        };
        let op = Operation {
            slot,
            version,
            mode,
            direction,
            resilience,
            shift,
            area_offset: keyslot.area_offset,
            area_size: keyslot.area_size,
            previous,
            last,
            position,
        };
        op.check_zone()?;
        Ok(op)
    }

    /// A hot zone that the area can protect (check 31).
    fn check_zone(&self) -> Result<()> {
        let hot = self.position.hot;
        let most = match (self.resilience, &self.shift) {
            (Resilience::None, None) => ZONE_MAX,
            // The first part of a decryption is the one zone that the area protects.
            (_, Some(shift)) if self.mode == Mode::Decrypt => {
                let room = self.area_room();
                if shift.len > room {
                    return Err(wrong("moved segment", shift.len, format!("at most {room}")));
                }
                self.zone_max()
            }
            _ => self.zone_max(),
        };
        if hot > most {
            return Err(wrong("hot segment", format!("{hot} bytes"), format!("at most {most}")));
        }
        Ok(())
    }

    /// Most bytes that are hot at once.
    pub(super) fn zone_max(&self) -> u64 {
        let most = match (&self.shift, self.resilience) {
            (Some(shift), _) => shift.size,
            (None, Resilience::None) => 20 << 20,
            (None, _) => self.area_room(),
        };
        most.min(ZONE_MAX)
    }

    /// Bytes that the area protects; none when it protects nothing.
    fn area_room(&self) -> u64 {
        room(self.resilience, self.area_size)
    }

    /// Where byte 0 of the payload would lie on the device if all of it lay as the old bytes of the zone at
    /// `start` do.
    pub(super) fn old_base(&self, start: u64) -> u64 {
        match &self.shift {
            Some(shift) if start < shift.len => shift.offset,
            _ => self.previous.offset,
        }
    }

    /// The old bytes of the zone at `start` stay where they are while it is converted.
    pub(super) fn keeps_old(&self, start: u64) -> bool {
        let Some(shift) = &self.shift else { return false };
        start >= shift.len || self.mode == Mode::Encrypt
    }

    /// The type of the area, as the header and the digest have it.
    pub(super) fn area_type(&self) -> &'static str {
        match self.shift {
            Some(_) => shift::area_type(self.resilience),
            None => self.resilience.name(),
        }
    }

    /// The larger encryption sector of both sides.
    pub(super) fn sector_size(&self) -> u64 {
        let size = |s: &Side| s.cipher.as_ref().map_or(512, |c| c.sector_size.bytes() as u64);
        size(&self.previous).max(size(&self.last))
    }

    /// Digests whose keys are needed, the old one's first.
    pub(super) fn digests(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = [&self.previous, &self.last]
            .into_iter()
            .filter_map(|s| s.cipher.as_ref())
            .map(|c| c.digest)
            .collect();
        ids.dedup();
        ids
    }
}

/// Bytes of payload that an area of `size` bytes protects.
pub(super) fn room(resilience: Resilience, size: u64) -> u64 {
    match resilience {
        Resilience::None => 0,
        Resilience::Journal => size,
        Resilience::Checksum { hash, block } => (size / hash.size() as u64).saturating_mul(block),
    }
}

pub(super) fn reencrypt_slot(m: &Metadata) -> Option<(u32, &Keyslot)> {
    m.keyslots
        .iter()
        .find(|(_, s)| matches!(s.kind, KeyslotKind::Reencrypt { .. }))
        .map(|(id, s)| (*id, s))
}

/// The one requirement, and nothing beside it.
fn version(m: &Metadata) -> Result<u8> {
    let mut version = None;
    for requirement in &m.config.requirements {
        version = Some(match requirement.as_str() {
            "online-reencrypt-v2" => 2,
            "online-reencrypt-v3" => 3,
            "online-reencrypt" => {
                return Err(Error::refused(
                    43,
                    "this re-encryption was begun by a program that did not sign its parameters; let \
                     cryptsetup repair look at it, and finish it there",
                ));
            }
            other => {
                return Err(Error::unsupported(format!(
                    "the volume requires \"{}\", nothing is written to it (check 13)",
                    printable(other)
                )));
            }
        });
    }
    version.ok_or_else(|| wrong("config.requirements", "none", "online-reencrypt-v2"))
}

/// The backup segment of that flag, of which there is one at most.
fn backup<'a>(m: &'a Metadata, flag: &str) -> Result<Option<(u32, &'a Segment)>> {
    let mut found = m.segments.iter().filter(|(_, s)| s.flags.iter().any(|f| f == flag));
    let one = found.next().map(|(id, s)| (*id, s));
    match found.next() {
        Some((id, _)) => Err(wrong(format!("segments.{id}"), flag, "one segment of this flag")),
        None => Ok(one),
    }
}

fn side(m: &Metadata, id: u32, segment: &Segment) -> Result<Side> {
    let cipher = match &segment.kind {
        SegmentKind::Linear => None,
        SegmentKind::Crypt { integrity: Some(_), .. } => {
            return Err(Error::unsupported("re-encryption of a volume with integrity protection"));
        }
        SegmentKind::Crypt { encryption, iv_tweak, sector_size, .. } => {
            let field = format!("segments.{id}.sector_size");
            let size = SectorSize::new(*sector_size)
                .ok_or_else(|| wrong(field, sector_size, "512, 1024, 2048 or 4096"))?;
            let mut named = m.digests.iter().filter(|(_, d)| d.segments.contains(&id));
            let digest = match (named.next(), named.next()) {
                (Some((digest, _)), None) => *digest,
                _ => {
                    return Err(wrong(
                        format!("segments.{id}"),
                        "several",
                        "one digest that names it",
                    ));
                }
            };
            let spec = CipherSpec::parse(encryption)?;
            spec.check_supported()?;
            Some(SideCipher { spec, sector_size: size, iv_tweak: *iv_tweak, digest })
        }
        SegmentKind::Unknown(kind) => {
            return Err(Error::unsupported(format!(
                "segment {id} has the unknown type \"{}\"",
                printable(kind)
            )));
        }
    };
    Ok(Side { segment: id, offset: segment.offset, size: segment.size, cipher })
}

/// The mode says which side is plain.
fn check_sides(mode: Mode, previous: &Side, last: &Side) -> Result<()> {
    let kinds = (previous.cipher.is_some(), last.cipher.is_some());
    let expected = match mode {
        Mode::Reencrypt => (true, true),
        Mode::Encrypt => (false, true),
        Mode::Decrypt => (true, false),
    };
    if kinds != expected {
        return Err(wrong("segments", "other types", format!("those of mode {}", mode.name())));
    }
    if let (Some(a), Some(b)) = (&previous.cipher, &last.cipher)
        && a.iv_tweak != b.iv_tweak
    {
        return Err(wrong("iv_tweak", b.iv_tweak, format!("{}, as before", a.iv_tweak)));
    }
    Ok(())
}

/// Without a shift both sides lie at the same place and go to the end of the device.
fn check_places([previous, last]: [&Side; 2]) -> Result<()> {
    for side in [previous, last] {
        if side.size.is_some() {
            return Err(Error::unsupported(format!(
                "a volume of fixed size (segment {}); finish it with cryptsetup reencrypt",
                side.segment
            )));
        }
    }
    if previous.offset != last.offset {
        return Err(wrong("segments", last.offset, format!("a payload at {}", previous.offset)));
    }
    Ok(())
}

/// The area's type says that the payload moves.
fn is_shifted(keyslot: &Keyslot) -> bool {
    matches!(&keyslot.kind, KeyslotKind::Reencrypt { resilience, .. }
        if resilience.starts_with("datashift"))
}

fn resilience(m: &Metadata, slot: u32, keyslot: &Keyslot) -> Result<Resilience> {
    let KeyslotKind::Reencrypt { resilience, .. } = &keyslot.kind else {
        unreachable!("found by its kind")
    };
    let area = &m.json["keyslots"][slot.to_string()]["area"];
    let field = |name: &str| format!("keyslots.{slot}.area.{name}");
    match resilience.as_str() {
        "none" | "datashift" => Ok(Resilience::None),
        "journal" | "datashift-journal" => Ok(Resilience::Journal),
        "checksum" | "datashift-checksum" => {
            let name = area["hash"].as_str().unwrap_or_default();
            let hash = Hash::named(name)
                .ok_or_else(|| wrong(field("hash"), name, "a hash that is implemented"))?;
            let block = area["sector_size"].as_u64().unwrap_or(0);
            if !(512..=1 << 20).contains(&block) || !block.is_power_of_two() {
                return Err(wrong(field("sector_size"), block, "a power of two, 512 to 1 MiB"));
            }
            Ok(Resilience::Checksum { hash, block })
        }
        other => Err(Error::unsupported(format!(
            "re-encryption with resilience {}; finish it with cryptsetup reencrypt",
            printable(other)
        ))),
    }
}
