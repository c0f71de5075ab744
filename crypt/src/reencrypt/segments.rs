//! The segments object of a position, and who names which segment.

use serde_json::{Map, Value, json};

use super::position::{Part, Piece, Place, Position, part_digests};
use super::shift::{Shift, cipher_of};
use super::state::{Direction, Mode, Operation, Side, SideCipher};
use crate::error::{Error, Result};

/// What the segments of an operation are made from.
pub(super) struct Layout<'a> {
    pub(super) mode: Mode,
    pub(super) direction: Direction,
    pub(super) previous: &'a Side,
    pub(super) last: &'a Side,
    pub(super) shift: Option<&'a Shift>,
}

impl Operation {
    pub(super) fn layout(&self) -> Layout<'_> {
        Layout {
            mode: self.mode,
            direction: self.direction,
            previous: &self.previous,
            last: &self.last,
            shift: self.shift.as_ref(),
        }
    }
}

impl Layout<'_> {
    /// Puts the regular segments of `position` and the backup segments into the tree, and names them in
    /// the digests. `backups`: objects with their digest, in the order in which they follow.
    pub(super) fn put(
        &self,
        tree: &mut Value,
        position: Position,
        backups: Vec<(Value, Option<u32>)>,
    ) -> Result<()> {
        let sides = [self.previous, self.last];
        let mut objects: Vec<(Value, Vec<u32>)> = Vec::new();
        for place in self.places(position) {
            let Piece { part, start, .. } = place.piece;
            let flag = (part == Part::Hot).then_some("in-reencryption");
            let value = mapped(cipher_of(part, sides), place.offset, start, place.size, flag);
            objects.push((value, part_digests(part, self.mode, sides)));
        }
        objects.extend(
            backups.into_iter().map(|(value, digest)| (value, digest.into_iter().collect())),
        );
        let lost = || Error::Options("the header has no segments or digests".into());
        let digests = tree.get_mut("digests").and_then(Value::as_object_mut).ok_or_else(lost)?;
        for (id, digest) in digests.iter_mut() {
            let ids: Vec<Value> = (0u32..)
                .zip(&objects)
                .filter(|(_, (_, named))| named.iter().any(|n| n.to_string() == *id))
                .map(|(segment, _)| segment.to_string().into())
                .collect();
            digest["segments"] = ids.into();
        }
        let segments: Map<String, Value> =
            (0u32..).zip(objects).map(|(id, (value, _))| (id.to_string(), value)).collect();
        tree["segments"] = Value::Object(segments);
        Ok(())
    }

    /// The regular segments of a position.
    pub(super) fn places(&self, position: Position) -> Vec<Place> {
        if let Some(shift) = self.shift {
            return shift.places(position, self.mode, [self.previous, self.last]);
        }
        let place = |piece: Piece| {
            let to_the_end = piece.start + piece.len == position.total && !position.fixed;
            // A hot zone has always a size of its own.
            let size = (!to_the_end || piece.part == Part::Hot).then_some(piece.len);
            Place { piece, offset: self.last.offset + piece.start, size }
        };
        position.pieces(self.direction).into_iter().map(place).collect()
    }
}

/// All of one side. Without a size of its own it goes to the device's end.
pub(super) fn whole(side: &Side, flag: &str) -> Value {
    mapped(side.cipher.as_ref(), side.offset, 0, side.size, Some(flag))
}

/// The run of the payload from byte `start` on, which lies at `offset` of the device.
pub(super) fn mapped(
    cipher: Option<&SideCipher>,
    offset: u64,
    start: u64,
    len: Option<u64>,
    flag: Option<&str>,
) -> Value {
    let size = len.map_or_else(|| "dynamic".to_owned(), |n| n.to_string());
    let offset = offset.to_string();
    let mut value = match cipher {
        None => json!({ "type": "linear", "offset": offset, "size": size }),
        Some(c) => json!({
            "type": "crypt",
            "offset": offset,
            "size": size,
            "iv_tweak": (c.iv_tweak + start / 512).to_string(),
            "encryption": c.spec.text(),
            "sector_size": c.sector_size.bytes(),
        }),
    };
    if let Some(flag) = flag {
        value["flags"] = json!([flag]);
    }
    value
}

/// The backup segments as they are in the tree, each with the digest of its side.
pub(super) fn backups(tree: &Value, op: &Operation) -> Vec<(Value, Option<u32>)> {
    let one = |id: u32, side: &Side| {
        let value = tree["segments"][id.to_string()].clone();
        (value, side.cipher.as_ref().map(|c| c.digest))
    };
    let mut all = vec![one(op.previous.segment, &op.previous), one(op.last.segment, &op.last)];
    all.extend(op.shift.iter().map(|shift| one(shift.segment, &op.previous)));
    all
}
