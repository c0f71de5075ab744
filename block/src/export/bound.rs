//! One device under an export, with what of its geometry every request asks for.

use crate::device::{BlockDevice, Geometry};
use crate::error::{DevId, Error, ErrorKind, Op, Result};
use crate::units::{Extent, SECTOR_SIZE, Sector, Sectors};

/// The bytes a request names: `[start, end)`, checked against the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Span {
    pub(super) fn is_empty(self) -> bool {
        self.start == self.end
    }
}

pub(super) struct Bound<D> {
    pub(super) device: D,
    pub(super) dev: DevId,
    /// Whole blocks of the device, in bytes. A ragged tail is not served.
    pub(super) size: u64,
    pub(super) block: Sectors,
    /// Longest request the device takes, in whole blocks.
    pub(super) piece: Sectors,
    pub(super) read_only: bool,
    pub(super) can_discard: bool,
    pub(super) fast_zero: bool,
}

impl<D: BlockDevice> Bound<D> {
    pub(super) fn new(device: D) -> Bound<D> {
        let geometry = device.geometry();
        let block = geometry.block;
        assert!(block.0 > 0, "a device has a block");
        let largest = geometry.max_request.min(Geometry::MAX_REQUEST);
        let piece = Sectors(largest.0 - largest.0 % block.0);
        assert!(piece >= block, "a device takes at least one block");
        Bound {
            size: Sectors(geometry.len.0 - geometry.len.0 % block.0).bytes(),
            dev: geometry.dev,
            block,
            piece,
            read_only: geometry.read_only,
            can_discard: geometry.can_discard,
            fast_zero: geometry.fast_zero,
            device,
        }
    }

    pub(super) fn error(&self, kind: ErrorKind, op: Op, offset: u64, len: u64) -> Error {
        let start = Sector::containing(offset);
        let end = offset.saturating_add(len).div_ceil(SECTOR_SIZE as u64);
        let at = Extent::new(start, Sectors(end.saturating_sub(start.0)));
        Error::new(kind, op, at, &self.dev)
    }

    pub(super) fn span(&self, op: Op, offset: u64, len: u64) -> Result<Span> {
        if offset > self.size || len > self.size - offset {
            return Err(self.error(ErrorKind::OutOfRange, op, offset, len));
        }
        Ok(Span { start: offset, end: offset + len })
    }

    /// The blocks a span touches.
    pub(super) fn outward(&self, span: Span) -> Extent {
        let block = self.block.bytes();
        let start = span.start - span.start % block;
        let end = span.end.next_multiple_of(block);
        Extent::between(Sector::containing(start), Sector::containing(end))
    }

    /// The blocks that lie wholly inside a span, if there are any.
    pub(super) fn inward(&self, span: Span) -> Option<Extent> {
        let block = self.block.bytes();
        let start = span.start.next_multiple_of(block);
        let end = span.end - span.end % block;
        (start < end).then(|| Extent::between(Sector::containing(start), Sector::containing(end)))
    }

    /// Whether a span of these blocks is all of them, and one request below.
    pub(super) fn is_direct(&self, span: Span, blocks: Extent) -> bool {
        span.start == blocks.start.byte()
            && span.end == blocks.end().byte()
            && blocks.len <= self.piece
    }

    /// Whether a span and each buffer of it are whole blocks (and some), so that none must be
    /// copied.
    pub(super) fn is_whole(&self, span: Span, mut lens: impl Iterator<Item = usize>) -> bool {
        let block = self.block.bytes();
        span.start.is_multiple_of(block)
            && lens.all(|len| len > 0 && (len as u64).is_multiple_of(block))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::Mem;

    #[test]
    fn ranges_round_outward_for_writes_and_inward_for_discards() {
        let geometry =
            Geometry { block: Sectors(8), ..Geometry::new(DevId::new("m"), Sectors(100)) };
        let bound = Bound::new(Mem::with_geometry(geometry));
        assert_eq!(bound.size, 96 * 512, "the ragged tail is not served");
        let run = |a, b| Extent::between(Sector(a), Sector(b));
        let span = |start, end| Span { start, end };
        assert_eq!(bound.outward(span(4095, 4097)), run(0, 16));
        assert_eq!(bound.inward(span(4095, 4097)), None);
        assert_eq!(bound.inward(span(1, 12289)), Some(run(8, 24)));
        let over = bound.span(Op::Read, 96 * 512 - 1, 2).unwrap_err();
        assert_eq!(over.kind, ErrorKind::OutOfRange);
        assert!(bound.span(Op::Read, u64::MAX, u64::MAX).is_err());
        assert!(bound.span(Op::Read, 96 * 512, 0).is_ok());
    }
}
