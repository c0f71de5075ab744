//! Requests that do not start and end on the device's blocks: read, modify, write.
//!
//! The caller holds the range lock over the rounded range, so that the unchanged bytes of an edge
//! block are still what was read when they are written back. A piece takes one buffer of the
//! export's pool and holds nothing else while it waits for it.

use super::bound::{Bound, Span};
use super::pieces::{TURN_BYTES, bounded};
use crate::buf::{BufPool, Data, IoBuf};
use crate::device::{BlockDevice, Durability};
use crate::error::Result;
use crate::units::{Extent, Sectors};
use std::cell::RefCell;

/// Bounced pieces of one request at a time: what one request may take from the pool is 4 MiB.
const WIDTH: usize = 4;

/// Where a piece and the caller's bytes meet: `(offset in the piece, offset in the request, len)`.
fn meet(span: Span, piece: Extent) -> (usize, usize, usize) {
    let start = span.start.max(piece.start.byte());
    let end = span.end.min(piece.end().byte());
    let int = |n| usize::try_from(n).expect("within a request");
    (int(start - piece.start.byte()), int(start - span.start), int(end - start))
}

/// Calls `f` with each part of `lens` that `[from, from + len)` touches: which buffer, where in it,
/// where in the run, how long.
fn parts(
    lens: impl Iterator<Item = usize>,
    from: usize,
    len: usize,
    mut f: impl FnMut(usize, usize, usize, usize),
) {
    let (mut base, end) = (0, from + len);
    for (index, n) in lens.enumerate() {
        let (start, stop) = (from.max(base), end.min(base + n));
        if start < stop {
            f(index, start - base, start - from, stop - start);
        }
        base += n;
    }
}

pub(super) async fn read<D: BlockDevice>(
    bound: &Bound<D>,
    pool: &BufPool,
    span: Span,
    range: Extent,
    out: Vec<IoBuf>,
) -> Result<Vec<IoBuf>> {
    let out = RefCell::new(out);
    let jobs = range.pieces(bound.piece).map(|piece| {
        let out = &out;
        let job = async move {
            let buf = pool.take(piece.len).await;
            let buf = bound.device.read(piece.start, buf).await?;
            let (skip, from, len) = meet(span, piece);
            let bytes = &buf[skip..skip + len];
            let mut out = out.borrow_mut();
            let lens: Vec<usize> = out.iter().map(|b| b.len()).collect();
            parts(lens.into_iter(), from, len, |index, at, source, n| {
                out[index][at..at + n].copy_from_slice(&bytes[source..source + n]);
            });
            Ok(())
        };
        (piece.len.byte_len(), job)
    });
    bounded(jobs, WIDTH, TURN_BYTES).await?;
    Ok(out.into_inner())
}

/// What a write puts into the bytes it names.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    Bytes(&'a [Data]),
    Zeroes,
}

impl Source<'_> {
    fn fill(self, from: usize, out: &mut [u8]) {
        match self {
            Source::Zeroes => out.fill(0),
            Source::Bytes(list) => {
                let len = out.len();
                parts(list.iter().map(|d| d.len()), from, len, |index, at, to, n| {
                    out[to..to + n].copy_from_slice(&list[index][at..at + n]);
                });
            }
        }
    }
}

pub(super) async fn write<D: BlockDevice>(
    bound: &Bound<D>,
    pool: &BufPool,
    span: Span,
    range: Extent,
    source: Source<'_>,
    how: Durability,
) -> Result<()> {
    let jobs = range.pieces(bound.piece).map(|piece| {
        let job = async move {
            let mut buf = pool.take(piece.len).await;
            let (skip, from, len) = meet(span, piece);
            let block = bound.block.byte_len();
            let last = piece.len.byte_len() - block;
            if skip != 0 || skip + len < block {
                buf = read_block(bound, piece, buf, Sectors(0)).await?;
            }
            if skip + len != piece.len.byte_len() && last != 0 {
                buf = read_block(bound, piece, buf, piece.len - bound.block).await?;
            }
            source.fill(from, &mut buf[skip..skip + len]);
            bound.device.write(piece.start, buf.into(), how).await?;
            Ok(())
        };
        (piece.len.byte_len(), job)
    });
    bounded(jobs, WIDTH, TURN_BYTES).await?;
    Ok(())
}

/// Reads the block at `skip` of the piece into its place in the piece's buffer.
async fn read_block<D: BlockDevice>(
    bound: &Bound<D>,
    piece: Extent,
    buf: IoBuf,
    skip: Sectors,
) -> Result<IoBuf> {
    let (head, rest) = buf.split_at(skip);
    let (block, tail) = rest.split_at(bound.block);
    let block = bound.device.read(piece.start + skip, block).await?;
    Ok(IoBuf::join(IoBuf::join(head, block), tail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Sector;

    #[test]
    fn a_run_is_cut_at_every_buffer_it_touches() {
        let mut seen = Vec::new();
        parts([3, 0, 5, 4].into_iter(), 2, 8, |i, at, to, n| {
            seen.push((i, at, to, n));
        });
        assert_eq!(seen, [(0, 2, 0, 1), (2, 0, 1, 5), (3, 0, 6, 2)]);
    }

    #[test]
    fn a_piece_knows_its_share_of_the_request() {
        let span = Span { start: 1000, end: 9000 };
        let piece = |start, len| Extent::new(Sector(start), Sectors(len));
        assert_eq!(meet(span, piece(0, 8)), (1000, 0, 3096));
        assert_eq!(meet(span, piece(8, 8)), (0, 3096, 4096));
        assert_eq!(meet(span, piece(16, 8)), (0, 7192, 808));
    }
}
