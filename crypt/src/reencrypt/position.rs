//! How far an operation is: read out of the regular segments, and turned into segments again.

use varve_block::Extent;

use super::shift::Shift;
use super::state::{Direction, Mode, Side, is_hot, wrong};
use crate::error::Result;
use crate::format::metadata::{Metadata, Segment, SegmentKind};

/// Progress in bytes of payload. `done + hot <= total`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Position {
    /// Bytes under the new key, from the end at which the work began.
    pub(super) done: u64,
    /// Bytes after them that were being written; 0: none.
    pub(super) hot: u64,
    /// Bytes of payload.
    pub(super) total: u64,
    /// The payload has a size of its own and does not end where its device ends.
    pub(super) fixed: bool,
    /// Bytes of the first part of a payload that moves, which are done last; 0: nothing moves.
    pub(super) moved: u64,
}

/// What a run of the payload is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Part {
    Old,
    Hot,
    New,
}

/// A run of the payload in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    pub(super) part: Part,
    pub(super) start: u64,
    pub(super) len: u64,
}

/// Where a run of the payload lies, as a segment says it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) piece: Piece,
    /// First byte on the data device.
    pub(super) offset: u64,
    /// `None`: to the end of the device.
    pub(super) size: Option<u64>,
}

impl Position {
    pub(super) fn is_finished(&self) -> bool {
        self.done == self.total
    }

    /// Where the hot zone lies, as bytes from the start of the payload.
    pub(super) fn zone(&self, direction: Direction) -> (u64, u64) {
        let start = match direction {
            _ if self.is_in_first_part() => 0,
            Direction::Forward => self.moved + self.done,
            Direction::Backward => self.total - self.done - self.hot,
        };
        (start, self.hot)
    }

    /// Only the first part of a payload that moves is left.
    pub(super) fn is_in_first_part(&self) -> bool {
        self.moved > 0 && self.done == self.total - self.moved
    }

    /// The next zone, of at most `most` bytes, is hot. A first part that moved is one zone.
    pub(super) fn heat(self, most: u64) -> Position {
        let hot = match self.is_in_first_part() {
            true => self.moved,
            false => most.min(self.total - self.moved - self.done),
        };
        Position { hot, ..self }
    }

    /// The hot zone is done.
    pub(super) fn advance(self) -> Position {
        Position { done: self.done + self.hot, hot: 0, ..self }
    }

    /// The parts in the order of the device; none is empty.
    pub(super) fn pieces(&self, direction: Direction) -> Vec<Piece> {
        let rest = self.total - self.done - self.hot;
        let mut parts = [(Part::New, self.done), (Part::Hot, self.hot), (Part::Old, rest)];
        if direction == Direction::Backward {
            parts.reverse();
        }
        let mut at = 0;
        let mut pieces = Vec::new();
        for (part, len) in parts.into_iter().filter(|(_, len)| *len > 0) {
            pieces.push(Piece { part, start: at, len });
            at += len;
        }
        pieces
    }

    /// Reads the regular segments, each of which must be a piece of `sides` (what was, what will be) in its
    /// right place, and named by just the right digests.
    pub(super) fn find(
        m: &Metadata,
        direction: Direction,
        mode: Mode,
        sides: [&Side; 2],
        data_len: u64,
    ) -> Result<Position> {
        let [previous, last] = sides;
        let base = last.offset;
        let room = data_len.saturating_sub(base);
        let regular: Vec<(u32, &Segment)> = m.regular_segments().collect();
        let mut at = 0u64;
        let (mut found, mut fixed) = (Vec::new(), false);
        for (id, segment) in &regular {
            let field = |name: &str| format!("segments.{id}.{name}");
            if segment.offset.checked_sub(base) != Some(at) {
                return Err(wrong(field("offset"), segment.offset, format!("{at} behind {base}")));
            }
            let len = match segment.size {
                Some(len) => {
                    fixed = true;
                    len
                }
                None => {
                    fixed = false;
                    room.saturating_sub(at)
                }
            };
            let end = at.checked_add(len).filter(|&e| e <= room && len > 0);
            let Some(end) = end else {
                return Err(wrong(field("size"), len, format!("an end inside {room} bytes")));
            };
            let part = part_of(m, *id, segment, mode, sides)?;
            let side = if part == Part::Old { previous } else { last };
            check_cipher(&field, segment, side, at)?;
            found.push((part, len));
            at = end;
        }
        let sum = |part| found.iter().filter(|(p, _)| *p == part).map(|(_, len)| len).sum::<u64>();
        let position = Position {
            done: sum(Part::New),
            hot: sum(Part::Hot),
            total: at,
            fixed: fixed && at != room,
            moved: 0,
        };
        let expected: Vec<(Part, u64)> =
            position.pieces(direction).into_iter().map(|p| (p.part, p.len)).collect();
        if found != expected {
            let found = format!("{found:?}");
            return Err(wrong(
                "segments",
                found,
                format!("the order of direction {}", direction.name()),
            ));
        }
        Ok(position)
    }
}

impl Position {
    /// The same for a payload that moves: what the segments say, and that they are just the ones that we
    /// would write for it.
    pub(super) fn find_shifted(
        m: &Metadata,
        shift: &Shift,
        mode: Mode,
        sides: [&Side; 2],
        data_len: u64,
    ) -> Result<Position> {
        let [previous, last] = sides;
        let total = match previous.size {
            Some(size) => size,
            None => data_len.saturating_sub(previous.offset),
        };
        let position = shift.derive(m, mode, total)?;
        let places = shift.places(position, mode, sides);
        let regular: Vec<(u32, &Segment)> = m.regular_segments().collect();
        if regular.len() != places.len() {
            return Err(wrong("segments", regular.len(), format!("{} of them", places.len())));
        }
        for ((id, segment), place) in regular.into_iter().zip(&places) {
            let field = |name: &str| format!("segments.{id}.{name}");
            let part = place.piece.part;
            if segment.offset != place.offset {
                return Err(wrong(field("offset"), segment.offset, place.offset.to_string()));
            }
            // What goes to the end of the device may say how far that is: cryptsetup does under a mapping.
            if segment.size != place.size && segment.size != Some(place.piece.len) {
                let expected = format!("{:?}", place.size);
                return Err(wrong(field("size"), format!("{:?}", segment.size), expected));
            }
            if is_hot(segment) != (part == Part::Hot) {
                return Err(wrong(field("flags"), "others", "in-reencryption at the hot zone"));
            }
            let side = if part == Part::Old { previous } else { last };
            check_cipher(&field, segment, side, place.piece.start)?;
            check_digests(m, id, part, mode, sides)?;
        }
        Ok(position)
    }
}

/// Which part a segment is, told by the digests that name it, or by its type where one side is plain.
fn part_of(
    m: &Metadata,
    id: u32,
    segment: &Segment,
    mode: Mode,
    sides: [&Side; 2],
) -> Result<Part> {
    let [previous, last] = sides;
    let crypt = matches!(segment.kind, SegmentKind::Crypt { .. });
    let part = match mode {
        _ if is_hot(segment) => Part::Hot,
        Mode::Encrypt => {
            if crypt {
                Part::New
            } else {
                Part::Old
            }
        }
        Mode::Decrypt => {
            if crypt {
                Part::Old
            } else {
                Part::New
            }
        }
        Mode::Reencrypt => {
            let names = |side: &Side| {
                let digest = side.cipher.as_ref().and_then(|c| m.digests.get(&c.digest));
                digest.is_some_and(|d| d.segments.contains(&id))
            };
            match (names(previous), names(last)) {
                (true, false) => Part::Old,
                (false, true) => Part::New,
                // One key for both sides: the cipher tells.
                (true, true) if is_like(segment, last) != is_like(segment, previous) => {
                    if is_like(segment, last) { Part::New } else { Part::Old }
                }
                _ => {
                    let expected = "the digest of one side";
                    return Err(wrong(format!("segments.{id}"), "other digests", expected));
                }
            }
        }
    };
    check_digests(m, id, part, mode, sides)?;
    Ok(part)
}

fn check_digests(m: &Metadata, id: u32, part: Part, mode: Mode, sides: [&Side; 2]) -> Result<()> {
    let expected = part_digests(part, mode, sides);
    let mut named: Vec<u32> =
        m.digests.iter().filter(|(_, d)| d.segments.contains(&id)).map(|(id, _)| *id).collect();
    named.sort_unstable();
    if named != expected {
        return Err(wrong(
            format!("segments.{id}"),
            format!("named by digests {named:?}"),
            format!("by {expected:?}"),
        ));
    }
    Ok(())
}

/// The digests that name a part, in order.
pub(super) fn part_digests(part: Part, mode: Mode, sides: [&Side; 2]) -> Vec<u32> {
    let [old, new] = sides.map(|s| s.cipher.as_ref().map(|c| c.digest));
    let ids = match (part, mode) {
        (Part::Old, _) => [old, None],
        (Part::New, _) => [new, None],
        (Part::Hot, Mode::Reencrypt) => [old, new],
        // A part that is being encrypted has its future type, one that is being decrypted is plain.
        (Part::Hot, _) => [new, None],
    };
    let mut ids: Vec<u32> = ids.into_iter().flatten().collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Type, cipher and sector size are those of a side.
pub(super) fn is_like(segment: &Segment, side: &Side) -> bool {
    match (&segment.kind, &side.cipher) {
        (SegmentKind::Linear, None) => true,
        (SegmentKind::Crypt { encryption, sector_size, integrity: None, .. }, Some(c)) => {
            encryption == c.spec.text() && *sector_size == c.sector_size.bytes() as u64
        }
        _ => false,
    }
}

fn check_cipher(
    field: &impl Fn(&str) -> String,
    segment: &Segment,
    side: &Side,
    at: u64,
) -> Result<()> {
    if !is_like(segment, side) {
        return Err(wrong(field("type"), "another mapping", "that of its backup segment"));
    }
    if let (SegmentKind::Crypt { iv_tweak, .. }, Some(c)) = (&segment.kind, &side.cipher) {
        let expected = c.iv_tweak.checked_add(at / 512);
        if Some(*iv_tweak) != expected {
            return Err(wrong(field("iv_tweak"), iv_tweak, format!("{expected:?}")));
        }
    }
    Ok(())
}

/// A run of the payload on its device.
pub(super) fn extent(base: u64, start: u64, len: u64) -> Extent {
    let sector = |byte: u64| varve_block::Sector(byte / 512);
    Extent::between(sector(base + start), sector(base + start + len))
}
