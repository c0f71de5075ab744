//! Bytes without a copy of them: what lies in one piece is handed out in the memory that it was read to.

use super::{Member, Volume};
use crate::error::Result;
use crate::units::{Logical, Physical};
use std::ops::Deref;
use varve_block::{BlockDevice, Extent, IoBuf, Sector, Sectors};

/// Bytes of one copy.
pub(crate) enum Fetched {
    /// The pool's, which gets them back when this is dropped: whoever keeps many holds up reads.
    Lent(IoBuf),
    Own(Vec<u8>),
}

impl Deref for Fetched {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Fetched::Lent(buf) => buf,
            Fetched::Own(bytes) => bytes,
        }
    }
}

impl<D: BlockDevice> Volume<D> {
    /// As [`Volume::read_mirror`], of `len` bytes.
    pub(crate) async fn fetch_mirror(
        &self,
        at: Logical,
        mirror: usize,
        len: usize,
    ) -> Result<Fetched> {
        if let Some(buf) = self.lend_mirror(at, mirror, len).await? {
            return Ok(Fetched::Lent(buf));
        }
        let mut bytes = vec![0; len];
        self.read_mirror(at, mirror, &mut bytes).await?;
        Ok(Fetched::Own(bytes))
    }

    /// The same in the pool's memory; `None` where one request cannot read exactly that.
    pub(crate) async fn lend_mirror(
        &self,
        at: Logical,
        mirror: usize,
        len: usize,
    ) -> Result<Option<IoBuf>> {
        let Some((device, range)) = self.in_one_piece(at, mirror, len)? else { return Ok(None) };
        Ok(Some(device.read(range.start, self.pool.take(range.len).await).await?))
    }

    /// The device that holds all of it, and where, if one request can read exactly that.
    fn in_one_piece(&self, at: Logical, mirror: usize, len: usize) -> Result<Option<(&D, Extent)>> {
        let piece = self.chunks.borrow().map(at, len as u64)?;
        let Some(&Physical { devid, byte }) = piece.copies.get(mirror.wrapping_sub(1)) else {
            return Ok(None);
        };
        let member = self.members.iter().find(|member| member.devid == devid);
        let Some(Member { device, geometry, .. }) = member else { return Ok(None) };
        let (block, len) = (geometry.block.bytes(), len as u64);
        let range = Extent::new(Sector::containing(byte), Sectors(len >> 9));
        let whole = piece.len >= len && byte.is_multiple_of(block) && len.is_multiple_of(block);
        let one = len > 0 && range.len <= geometry.max_request && range.fits(geometry.len);
        Ok((whole && one).then_some((device, range)))
    }
}
