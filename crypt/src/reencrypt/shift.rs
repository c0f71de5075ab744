//! Operations that move the payload, because a header comes before it or goes away.
//!
//! ```text
//! encrypt, backward    | header, S | payload, one S further on ....... | moved |
//!                        ^ here the payload began; its first part is the last to be done
//! decrypt, forward     | moved     | payload, one S further back ...... | S    |
//!                        ^ here the header was; the first part lies over it, still in cipher
//! ```
//!
//! All but the first part of the payload is written S bytes from where it is read. What is read stays as
//! it is until the header has the zone behind it: the old bytes are the journal, and a zone of at most S
//! bytes can be converted again at any time. The first part has no such distance. Encryption reads it from
//! a copy at the end of the device; decryption converts it where it lies, last of all, under checksums or
//! a journal.

use super::position::{Part, Piece, Place, Position};
use super::state::{Direction, Mode, Resilience, Side, SideCipher, wrong};
use crate::error::{Error, Result};
use crate::format::metadata::{Keyslot, Metadata, Segment, SegmentKind};

/// By how much the payload moves, and where its first part is meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Shift {
    /// Bytes between the old and the new place.
    pub(super) size: u64,
    /// Segment that remembers the first part.
    pub(super) segment: u32,
    /// Its first byte on the data device.
    pub(super) offset: u64,
    /// Its bytes: the first ones of the payload.
    pub(super) len: u64,
}

/// The area's type when the payload moves. The first part of an encryption needs no protection: it has a copy.
pub(super) fn area_type(resilience: Resilience) -> &'static str {
    match resilience {
        Resilience::None => "datashift",
        Resilience::Checksum { .. } => "datashift-checksum",
        Resilience::Journal => "datashift-journal",
    }
}

impl Shift {
    /// Reads the shift of an operation, and sees that all its parts fit each other and the device.
    pub(super) fn parse(
        m: &Metadata,
        (slot, keyslot): (u32, &Keyslot),
        (mode, direction): (Mode, Direction),
        [previous, last]: [&Side; 2],
        (id, segment): (u32, &Segment),
        data_len: u64,
    ) -> Result<Shift> {
        let field = format!("keyslots.{slot}.area.shift_size");
        let stored = &m.json["keyslots"][slot.to_string()]["area"]["shift_size"];
        let size = stored.as_str().and_then(|s| s.parse::<u64>().ok()).unwrap_or(0);
        if size == 0 || !size.is_multiple_of(4096) {
            return Err(wrong(field, stored, "bytes, a multiple of 4096"));
        }
        let name = |part: &str| format!("segments.{id}.{part}");
        let Some(len) = segment.size.filter(|&len| len > 0 && len <= size) else {
            return Err(wrong(
                name("size"),
                format!("{:?}", segment.size),
                "a size up to the shift",
            ));
        };
        let shift = Shift { size, segment: id, offset: segment.offset, len };
        let (from, to, way) = match mode {
            Mode::Encrypt => (previous.offset, last.offset, Direction::Backward),
            Mode::Decrypt => (last.offset, previous.offset, Direction::Forward),
            Mode::Reencrypt => {
                return Err(Error::unsupported(
                    "a re-encryption that moves the payload; finish it with cryptsetup reencrypt",
                ));
            }
        };
        if to.checked_sub(from) != Some(size) || direction != way {
            return Err(wrong(field, size, format!("the way from {from} to {to}, {}", way.name())));
        }
        let sized = match mode {
            Mode::Encrypt => previous.size.is_some() && last.size.is_none(),
            _ => previous.size.is_none() && last.size.is_none(),
        };
        if !sized {
            return Err(wrong("segments", "other sizes", "those of a payload that moves"));
        }
        if mode == Mode::Decrypt && shift.offset != last.offset {
            return Err(wrong(name("offset"), shift.offset, last.offset.to_string()));
        }
        if mode == Mode::Encrypt {
            let payload_end = last.offset.checked_add(previous.size.unwrap_or(0));
            let end = shift.offset.checked_add(len).filter(|&e| e <= data_len);
            if end.is_none() || payload_end.is_none_or(|e| e > shift.offset) {
                return Err(wrong(
                    name("offset"),
                    shift.offset,
                    "behind the payload, on the device",
                ));
            }
        }
        shift.check_kind(m, segment, previous)?;
        if keyslot.area_size == 0 {
            return Err(wrong(format!("keyslots.{slot}.area.size"), 0, "an area"));
        }
        Ok(shift)
    }

    /// The first part is mapped as the payload was.
    fn check_kind(&self, m: &Metadata, segment: &Segment, previous: &Side) -> Result<()> {
        let id = self.segment;
        let named: Vec<u32> =
            m.digests.iter().filter(|(_, d)| d.segments.contains(&id)).map(|(d, _)| *d).collect();
        let fits = match (&segment.kind, &previous.cipher) {
            (SegmentKind::Linear, None) => named.is_empty(),
            (
                SegmentKind::Crypt { encryption, iv_tweak, sector_size, integrity: None },
                Some(c),
            ) => {
                encryption == c.spec.text()
                    && *iv_tweak == c.iv_tweak
                    && *sector_size == c.sector_size.bytes() as u64
                    && named == [c.digest]
            }
            _ => false,
        };
        match fits {
            true => Ok(()),
            false => {
                Err(wrong(format!("segments.{id}"), "another mapping", "that of backup-previous"))
            }
        }
    }

    /// How far the regular segments say the work is. Whether they are all in their places is for the
    /// caller to compare.
    pub(super) fn derive(&self, m: &Metadata, mode: Mode, total: u64) -> Result<Position> {
        let main = total.checked_sub(self.len).ok_or_else(|| {
            wrong(format!("segments.{}.size", self.segment), self.len, format!("at most {total}"))
        })?;
        let (mut hot, mut new, mut old) = (0, None, false);
        for (_, s) in m.regular_segments() {
            let crypt = matches!(s.kind, SegmentKind::Crypt { .. });
            if super::state::is_hot(s) {
                hot = s.size.unwrap_or(0);
            } else if crypt == (mode == Mode::Encrypt) {
                new = Some(s.size);
            } else {
                old = true;
            }
        }
        let done = match new {
            None => 0,
            Some(_) if !old && hot == 0 => total,
            Some(None) => main,
            Some(Some(done)) => done,
        };
        let fits = match done {
            done if done < main => hot <= self.size.min(main - done),
            done if done == main => hot == 0 || hot == self.len,
            done => done == total && hot == 0,
        };
        match fits {
            true => Ok(Position { done, hot, total, fixed: false, moved: self.len }),
            false => {
                let found = format!("{done} bytes done and {hot} hot");
                Err(wrong("segments", found, format!("zones of {main} bytes and the first part")))
            }
        }
    }

    /// The regular segments of a position, in the order of their ids.
    pub(super) fn places(&self, p: Position, mode: Mode, sides: [&Side; 2]) -> Vec<Place> {
        let [previous, last] = sides;
        if p.is_finished() {
            let piece = Piece { part: Part::New, start: 0, len: p.total };
            return vec![Place { piece, offset: last.offset, size: None }];
        }
        let place = |part, start: u64, len: u64, from: u64| Place {
            piece: Piece { part, start, len },
            offset: from + start,
            size: Some(len),
        };
        let main = p.total - p.moved;
        let first = Place { offset: self.offset, ..place(Part::Old, 0, self.len, previous.offset) };
        let of_first = p.done == main && p.hot > 0;
        let mut places = match of_first {
            true => vec![place(Part::Hot, 0, p.hot, last.offset)],
            false => vec![first],
        };
        let (hot, rest) = match of_first {
            true => (0, 0),
            false => (p.hot, main - p.done - p.hot),
        };
        let mut at = self.len;
        let mut push = |part, len, from: u64| {
            if len > 0 {
                places.push(place(part, at, len, from));
                at += len;
            }
        };
        if mode == Mode::Encrypt {
            push(Part::Old, rest, previous.offset);
            push(Part::Hot, hot, last.offset);
            push(Part::New, p.done, last.offset);
            return places;
        }
        push(Part::New, p.done, last.offset);
        push(Part::Hot, hot, last.offset);
        push(Part::Old, rest, previous.offset);
        // What goes to the end of the device says so, but for a hot zone.
        if let Some(end) = places.last_mut()
            && main > 0
            && end.piece.part != Part::Hot
        {
            end.size = None;
        }
        places
    }
}

/// A side without its own place: what is at `offset` is mapped as that side is.
pub(super) fn cipher_of(part: Part, sides: [&Side; 2]) -> Option<&SideCipher> {
    let [previous, last] = sides;
    let side = if part == Part::Old { previous } else { last };
    side.cipher.as_ref()
}
