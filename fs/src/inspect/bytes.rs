//! Any bytes of a device, whatever its block size.

use crate::error::{Error, ErrorKind, Result};
use crate::units::to_usize;
use varve_block::{BlockDevice, BufPool, Extent, Sector, Sectors};

/// Fills `out` from byte `at` on.
///
/// # Errors
/// When the device fails, or ends before.
pub(crate) async fn read_bytes<D: BlockDevice>(device: &D, at: u64, out: &mut [u8]) -> Result<()> {
    let geometry = device.geometry();
    let block = geometry.block.bytes();
    let most = geometry.max_request.bytes();
    let most = (most - most % block).max(block);
    let pool = BufPool::new(0);
    let mut byte = at;
    let mut rest = out;
    while !rest.is_empty() {
        let skip = byte % block;
        let start = byte - skip;
        let want = (skip + rest.len() as u64).next_multiple_of(block).min(most);
        let range = Extent::new(Sector::containing(start), Sectors(want >> 9));
        if !range.fits(geometry.len) {
            let message = format!("byte {byte} is behind the end of {}", geometry.dev);
            return Err(Error::new(ErrorKind::Io, message));
        }
        let buf = device.read(range.start, pool.take(range.len).await).await?;
        let got = buf.get(to_usize(skip)..).unwrap_or(&[]);
        let len = got.len().min(rest.len());
        let (head, tail) = rest.split_at_mut(len);
        head.copy_from_slice(&got[..len]);
        rest = tail;
        byte += len as u64;
    }
    Ok(())
}
