//! Blocks whose tags say nothing yet: they are computed from what is there, in ascending order, while the
//! device is used.

use varve_block::{Extent, Sector, Sectors};

use super::bits::Bits;

/// Which blocks. What was computed is no longer among them.
#[derive(Clone, Debug)]
pub(super) enum Stale {
    None,
    /// All from a sector on (`recalc_sector` of the superblock).
    From(Sector),
    /// Those of the bits, but for what lies below the cursor (a bit is computed in several steps).
    Bits {
        bits: Bits,
        cursor: Sector,
    },
}

impl Stale {
    pub(super) fn of_bits(bits: Bits) -> Stale {
        match bits.any() {
            true => Stale::Bits { bits, cursor: Sector(0) },
            false => Stale::None,
        }
    }

    pub(super) fn is_none(&self) -> bool {
        matches!(self, Stale::None)
    }

    pub(super) fn has(&self, at: Sector) -> bool {
        match self {
            Stale::None => false,
            Stale::From(from) => at >= *from,
            Stale::Bits { bits, cursor } => at >= *cursor && bits.has(at),
        }
    }

    /// Whether nothing of a range can be among them: cheap, and sure only when it says so.
    pub(super) fn is_clear_of(&self, range: Extent) -> bool {
        match self {
            Stale::None => true,
            Stale::From(from) => range.end() <= *from,
            Stale::Bits { .. } => false,
        }
    }

    /// The next run of them, of at most `max` sectors. `provided`: sectors of the device.
    pub(super) fn next(&self, provided: Sectors, max: Sectors) -> Option<Extent> {
        let run = match self {
            Stale::None => return None,
            Stale::From(from) if from.0 >= provided.0 => return None,
            Stale::From(from) => Extent::between(*from, Sector(provided.0)),
            Stale::Bits { bits, cursor } => {
                let run = bits.next(*cursor)?;
                Extent::between(run.start.max(*cursor), run.end())
            }
        };
        Some(Extent::new(run.start, run.len.min(max)))
    }

    /// The run that was next has its tags, up to `end`.
    pub(super) fn done(&mut self, end: Sector) {
        match self {
            Stale::None => {}
            Stale::From(from) => *from = end,
            Stale::Bits { bits, cursor } => {
                *cursor = end;
                let last = Sector(end.0 - 1);
                if bits.around(last).end() == end {
                    bits.clear(last);
                }
            }
        }
    }
}
