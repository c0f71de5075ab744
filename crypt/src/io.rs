//! Whole byte ranges from and to a device, cut into requests that it takes.

use varve_block::{BlockDevice, BufPool, Data, Durability, Extent, Sector, Sectors};
use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// Memory for header work: a few requests of the longest length.
const POOL_BYTES: usize = 4 << 20;

/// The run of whole device blocks around some bytes, or an error when it leaves the device.
fn around<D: BlockDevice>(device: &D, offset: u64, len: u64) -> Result<(Extent, usize)> {
    let geometry = device.geometry();
    let block = geometry.block.bytes();
    let outside = || {
        Error::Options(format!(
            "bytes {offset}+{len} are outside of {}, which has {}",
            geometry.dev,
            geometry.len.bytes()
        ))
    };
    let end = offset.checked_add(len).filter(|&e| e <= geometry.len.bytes()).ok_or_else(outside)?;
    let start = offset - offset % block;
    let end = end.checked_next_multiple_of(block).ok_or_else(outside)?;
    let end = end.min(geometry.len.bytes());
    let skip = usize::try_from(offset - start).expect("less than a block");
    Ok((Extent::between(Sector(start / 512), Sector(end / 512)), skip))
}

/// Reads `len` bytes at `offset`. The buffer is zeroised on drop: it may hold key material.
pub(crate) async fn read_bytes<D: BlockDevice>(
    device: &D,
    offset: u64,
    len: u64,
) -> Result<Zeroizing<Vec<u8>>> {
    let pool = BufPool::new(POOL_BYTES);
    let (range, skip) = around(device, offset, len)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(range.len.byte_len()));
    for piece in range.pieces(device.geometry().max_request) {
        let buf = device.read(piece.start, pool.take(piece.len).await).await?;
        bytes.extend_from_slice(&buf);
    }
    bytes.drain(..skip);
    bytes.truncate(usize::try_from(len).expect("bounded by its callers"));
    Ok(bytes)
}

/// Writes bytes at `offset`. Where they do not fill the device's blocks, the rest is read and put back.
pub(crate) async fn write_bytes<D: BlockDevice>(
    device: &D,
    offset: u64,
    bytes: &[u8],
) -> Result<()> {
    let pool = BufPool::new(POOL_BYTES);
    let (range, skip) = around(device, offset, bytes.len() as u64)?;
    let mut rest = bytes;
    let mut skip = skip;
    for piece in range.pieces(device.geometry().max_request) {
        let mut buf = pool.take(piece.len).await;
        let here = rest.len().min(piece.len.byte_len() - skip);
        if here < piece.len.byte_len() {
            buf = device.read(piece.start, buf).await?;
        }
        let (now, later) = rest.split_at(here);
        buf[skip..skip + here].copy_from_slice(now);
        device.write(piece.start, Data::Owned(buf), Durability::Cached).await?;
        (rest, skip) = (later, 0);
    }
    Ok(())
}

/// How a region without content is filled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fill {
    Zero,
    Random,
}

/// Fills whole device blocks; `range` must be aligned to them.
pub(crate) async fn fill<D: BlockDevice>(device: &D, range: Extent, how: Fill) -> Result<()> {
    let pool = BufPool::new(POOL_BYTES);
    let step = device.geometry().max_request.min(Sectors(2048));
    for piece in range.pieces(step) {
        let mut buf = pool.take(piece.len).await;
        match how {
            Fill::Zero => buf.fill(0),
            Fill::Random => crate::key::fill_random(&mut buf)?,
        }
        device.write(piece.start, Data::Owned(buf), Durability::Cached).await?;
    }
    Ok(())
}
