//! How a volume with an internal hash is taken up in one of its modes, whatever mode it was left in.
//!
//! ```text
//! left          taken up with a journal, or directly     taken up with a bitmap
//! clean         the journal is replayed                  the same, then the superblock says "bitmap", then
//!                                                        the bitmap is written over the journal
//! bitmap        what its bits say is recalculated;       what its bits say is recalculated
//!               a new journal is written over it
//! ```
//!
//! Each arrow is several writes, and a cut between any two of them leaves one of the two states on the left:
//! the superblock's word comes before the bitmap and goes after it, and sectors of a journal that are found
//! where a bitmap should be (they carry commit ids) mean that no block was written since it was asked for.

use varve_block::{BlockDevice, DevId, Extent, Sector, Sectors};

use super::base::Base;
use super::bitmap::Bitmap;
use super::bits::Bits;
use super::device::{Barrier, Integrity, Journaling};
use super::journal;
use super::replay::Replayed;
use super::stale::Stale;
use super::{Layout, read_superblock};
use crate::error::{Corrupt, Error, Result};
use crate::format::integrity::Superblock;

/// How a volume is taken up.
#[derive(Clone, Copy, Debug)]
pub(super) struct How {
    pub(super) journaling: Journaling,
    /// Neither journal, bitmap nor tags are looked at.
    pub(super) recovery: bool,
    /// All tags are computed anew.
    pub(super) recalculate: bool,
    /// Sectors to a bit of a bitmap that begins now.
    pub(super) sectors_per_bit: Option<u64>,
}

/// A volume as it is taken up.
pub(super) struct Taken<D> {
    pub(super) integrity: Integrity<D>,
    pub(super) sb: Superblock,
    pub(super) replayed: Replayed,
}

/// The superblock at `at` with the layout that follows.
pub(super) async fn look<D: BlockDevice>(below: &D, at: Sector) -> Result<(Superblock, Layout)> {
    let sb = read_superblock(below, at).await?;
    let layout = Layout::new(&sb, at, below.geometry().len)?;
    Ok((sb, layout))
}

/// Takes a volume up. What may not be written is kept in memory, and tags are not computed then.
pub(super) async fn take_up<D: BlockDevice>(
    below: D,
    mut sb: Superblock,
    layout: Layout,
    how: How,
) -> Result<Taken<D>> {
    let geometry = below.geometry();
    let dev = DevId::new(format!("integrity on {}", geometry.dev));
    let mut integrity = Integrity::new(Base::new(below, layout, dev), how.journaling);
    let provided = integrity.base.layout.provided;
    if how.recovery {
        *integrity.stale.borrow_mut() = Stale::From(Sector(0));
        return Ok(Taken { integrity, sb, replayed: Replayed::default() });
    }
    // Whole blocks: the number may be anything.
    let block = integrity.base.layout.block.0;
    let pending = sb.recalculating.filter(|&s| s < provided.0).map(|s| Sector(s - s % block));
    let mut stale = match (sb.dirty_bitmap, pending) {
        (true, pending) => Stale::of_bits(integrity.read_map(&sb, pending).await?),
        (false, Some(from)) => Stale::From(from),
        (false, None) => Stale::None,
    };
    if how.recalculate {
        stale = Stale::From(Sector(0));
    }
    let replayed = if geometry.read_only {
        let replayed = match sb.dirty_bitmap {
            true => Replayed::default(),
            false => integrity.recover(false).await?,
        };
        *integrity.stale.borrow_mut() = stale;
        replayed
    } else if how.journaling == Journaling::Bitmap {
        integrity.begin_map(&mut sb, stale, how).await?
    } else {
        integrity.begin_journal(&mut sb, stale, how).await?
    };
    Ok(Taken { integrity, sb, replayed })
}

impl<D: BlockDevice> Integrity<D> {
    /// The superblock, durably. What of its sector is not ours stays.
    pub(super) async fn write_super(&self, sb: &Superblock) -> Result<()> {
        let at = self.base.layout.start.byte();
        crate::io::write_bytes(&*self.base.below, at, &sb.encode()).await?;
        Ok(self.barrier(Barrier::Super).await?)
    }

    /// The bitmap that lies in place of the journal. `pending`: where a recalculation was, in case that the
    /// bitmap had not been written yet.
    async fn read_map(&self, sb: &Superblock, pending: Option<Sector>) -> Result<Bits> {
        let layout = &self.base.layout;
        let shift = u32::from(sb.log2_block) + u32::from(sb.log2_blocks_per_bit);
        let needed = layout.provided.0.saturating_sub(1).checked_shr(shift).unwrap_or(0) + 1;
        if needed > layout.bits_max() {
            return Err(Error::Corrupt(Corrupt {
                what: "dm-integrity superblock",
                check: 44,
                field: "log2 of blocks per bitmap bit".into(),
                found: sb.log2_blocks_per_bit.to_string(),
                expected: format!("a bitmap of at most {} bits", layout.bits_max()),
            }));
        }
        let len = Bits::new(layout, sb.log2_blocks_per_bit).sectors_long();
        let place = Extent::new(layout.map_at(), len.min(layout.journal_len()));
        let mut stored = Vec::with_capacity(len.byte_len());
        for piece in place.pieces(Sectors(2048)) {
            let buf = self.base.pool.take(piece.len).await;
            stored.extend_from_slice(&self.base.read_below(piece.start, buf).await?);
        }
        let mut bits = Bits::from_bytes(layout, sb.log2_blocks_per_bit, &stored);
        let section = layout.section.0;
        let is_journal = (0u64..).zip(stored.chunks_exact(512)).any(|(n, sector)| {
            u32::try_from(n / section)
                .is_ok_and(|nth| journal::is_of_journal(nth, n % section, sector))
        });
        if let (true, Some(from)) = (is_journal, pending) {
            bits.set(Extent::between(from, Sector(layout.provided.0)));
        }
        Ok(bits)
    }

    /// From whatever was left to a bitmap in use.
    async fn begin_map(&mut self, sb: &mut Superblock, stale: Stale, how: How) -> Result<Replayed> {
        let provided = self.base.layout.provided;
        let mut replayed = Replayed::default();
        let was_dirty = sb.dirty_bitmap;
        if !was_dirty {
            replayed = self.recover(true).await?;
            let kept = (sb.log2_blocks_per_bit > 0)
                .then(|| sb.log2_blocks_per_bit.saturating_add(sb.log2_block));
            let asked = how.sectors_per_bit.map(|n| n.max(1).ilog2());
            let asked = asked.map(|log2| u8::try_from(log2).expect("at most 63"));
            sb.log2_blocks_per_bit = self.base.layout.log2_blocks_per_bit(provided, asked.or(kept));
            sb.dirty_bitmap = true;
            self.write_super(sb).await?;
        }
        let mut bits = Bits::new(&self.base.layout, sb.log2_blocks_per_bit);
        match stale {
            Stale::None => {}
            Stale::From(from) => bits.set(Extent::between(from, Sector(provided.0))),
            Stale::Bits { bits: found, .. } => bits = found,
        }
        // Also what was found: it may have been read from a cache that a power cut empties.
        self.write_whole_map(&bits).await?;
        self.bitmap = Some(Bitmap::new(bits.clone()));
        *self.stale.borrow_mut() = Stale::of_bits(bits);
        Ok(replayed)
    }

    /// From whatever was left to a journal in use, or to none.
    async fn begin_journal(
        &mut self,
        sb: &mut Superblock,
        stale: Stale,
        how: How,
    ) -> Result<Replayed> {
        let provided = self.base.layout.provided;
        let first = stale.next(provided, Sectors(1)).map(|run| run.start);
        if sb.dirty_bitmap || how.recalculate {
            // Before the bitmap goes: afterwards nothing else knows what it said.
            if let Some(first) = first {
                sb.recalculating = Some(first.0);
            }
            self.write_super(sb).await?;
        }
        if sb.dirty_bitmap {
            self.leave_map(sb).await?;
        }
        let replayed = self.recover(true).await?;
        *self.stale.borrow_mut() = first.map_or(Stale::None, Stale::From);
        Ok(replayed)
    }

    /// An empty journal in place of a bitmap that says nothing any more.
    pub(super) async fn leave_map(&self, sb: &mut Superblock) -> Result<()> {
        self.blank(0..self.base.layout.sections, 0).await?;
        sb.dirty_bitmap = false;
        self.write_super(sb).await
    }
}
