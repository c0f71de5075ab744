//! Data and tags on the device below, as runs that lie in one area each.

use std::rc::Rc;

use varve_block::sync::RangeLock;
use varve_block::{
    BlockDevice, BufPool, Data, DevId, Durability, Error as BlockError, ErrorKind, Extent,
    Geometry, IoBuf, IoView, Op, Sector, Sectors, Zero,
};

use super::Layout;
use crate::error::{Error, Result};

/// Sectors below that a request above may lie on.
const BLOCK_MAX: Sectors = Sectors(8);

pub(super) type Io<T> = varve_block::Result<T>;

/// The device below, seen through the layout.
pub(super) struct Base<D> {
    pub(super) below: Rc<D>,
    pub(super) layout: Layout,
    /// The name in errors.
    pub(super) dev: DevId,
    /// Held only while the device below works: nobody who has a buffer of it waits for anything else.
    pub(super) pool: BufPool,
    /// Sectors of tags that are being read and put back; in the device's own sectors.
    tags: RangeLock,
    max_request: Sectors,
    block: Sectors,
}

impl<D: BlockDevice> Base<D> {
    pub(super) fn new(below: D, layout: Layout, dev: DevId) -> Base<D> {
        let geometry = below.geometry();
        Base {
            below: Rc::new(below),
            layout,
            dev,
            pool: BufPool::new(varve_block::MAX_LEN * 2),
            tags: RangeLock::new(),
            max_request: geometry.max_request,
            block: geometry.block,
        }
    }

    /// Reads the device below into a buffer that may be longer than its requests.
    pub(super) async fn read_below(&self, at: Sector, buf: IoBuf) -> Io<IoBuf> {
        let range = Extent::new(at, buf.sectors());
        let (mut done, mut rest) = (None, Some(buf));
        for piece in range.pieces(self.max_request) {
            let buf = rest.take().expect("as long as the pieces");
            let (head, tail) = match piece.end() == range.end() {
                true => (buf, None),
                false => {
                    let (head, tail) = buf.split_at(piece.len);
                    (head, Some(tail))
                }
            };
            let head = self.below.read(piece.start, head).await?;
            done = Some(match done {
                None => head,
                Some(before) => IoBuf::join(before, head),
            });
            rest = tail;
        }
        Ok(done.expect("a buffer has a sector"))
    }

    /// The data of a run in one area, which may begin and end inside of blocks of the device below.
    pub(super) async fn read_run(&self, run: Extent, pool: &BufPool) -> Io<IoView> {
        let at = self.layout.data(run.start);
        let skip = Sectors(at.0 % self.block.0);
        let len = Sectors((skip + run.len).0.next_multiple_of(self.block.0));
        let buf = self.read_below(at - skip, pool.take(len).await).await?;
        Ok(buf.freeze().slice(skip.byte_len()..(skip + run.len).byte_len()))
    }

    /// Writes a buffer that may be longer than the requests of the device below.
    pub(super) async fn write_below(&self, at: Sector, data: Data, how: Durability) -> Io<()> {
        let range = Extent::new(at, data.sectors());
        let mut rest = Some(data);
        for piece in range.pieces(self.max_request) {
            let data = rest.take().expect("as long as the pieces");
            let (head, tail) = match piece.end() == range.end() {
                true => (data, None),
                false => {
                    let (head, tail) = data.split_at(piece.len);
                    (head, Some(tail))
                }
            };
            self.below.write(piece.start, head, how).await?;
            rest = tail;
        }
        Ok(())
    }

    /// The sectors below that hold the tags of a run in one area, and where in them they begin.
    fn tags_at(&self, run: Extent) -> (Extent, std::ops::Range<usize>) {
        let from = self.layout.tag_byte(run.start);
        let len = self.layout.blocks(run.len) * self.layout.tag;
        let block = self.block.bytes();
        let start = from - from % block;
        let end = (from + len as u64).next_multiple_of(block);
        let skip = usize::try_from(from - start).expect("below a block");
        (Extent::between(Sector(start / 512), Sector(end / 512)), skip..skip + len)
    }

    /// The tags of a run in one area.
    pub(super) async fn read_tags(&self, run: Extent) -> Io<Vec<u8>> {
        let (place, bytes) = self.tags_at(run);
        let buf = self.pool.take(place.len).await;
        Ok(self.read_below(place.start, buf).await?[bytes].to_vec())
    }

    /// Puts the tags of a run in one area among those of its neighbours.
    pub(super) async fn write_tags(&self, run: Extent, tags: &[u8], how: Durability) -> Io<()> {
        let (place, bytes) = self.tags_at(run);
        assert_eq!(tags.len(), bytes.len(), "one tag to a block");
        let _alone = self.tags.write(place).await;
        let mut buf = self.pool.take(place.len).await;
        if bytes != (0..buf.len()) {
            buf = self.read_below(place.start, buf).await?;
        }
        buf[bytes].copy_from_slice(tags);
        self.write_below(place.start, Data::Owned(buf), how).await
    }
}

/// The geometry above, where what is written may wait in memory (`volatile`): blocks of whole sectors of the format that are whole blocks below, too.
pub(super) fn geometry(
    below: &Geometry,
    layout: &Layout,
    volatile: bool,
    name: &str,
) -> Result<Geometry> {
    if below.block > BLOCK_MAX || !layout.start.is_aligned(below.block) {
        return Err(Error::Options(format!(
            "integrity at sector {} does not fit the blocks of {} sectors of {}",
            layout.start, below.block, below.dev
        )));
    }
    let block = below.block.max(layout.block);
    Ok(Geometry {
        dev: DevId::new(format!("{name} on {}", below.dev)),
        len: Sectors(layout.provided.0 - layout.provided.0 % block.0),
        block,
        preferred: below.preferred.max(block),
        max_request: Geometry::MAX_REQUEST,
        volatile_cache: below.volatile_cache || volatile,
        can_discard: false,
        fast_zero: false,
        cheap_fua: false,
        ..below.clone()
    })
}

/// Zeroes are data like any other: they need their tags. `write` writes a piece of them, whose place and
/// length are in order.
pub(super) async fn write_zeroes(
    geometry: &Geometry,
    pool: &BufPool,
    range: Extent,
    how: Zero,
    write: impl AsyncFn(Extent, IoBuf) -> Io<()>,
) -> Io<()> {
    geometry.admit(Op::WriteZeroes, range)?;
    if how.only_if_fast {
        let kind = ErrorKind::Unsupported;
        return Err(BlockError::new(kind, Op::WriteZeroes, range, &geometry.dev));
    }
    for piece in range.pieces(geometry.max_request) {
        write(piece, pool.take_zeroed(piece.len).await).await?;
    }
    Ok(())
}
