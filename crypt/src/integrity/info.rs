//! What dm-integrity's superblock says, for people.

use std::fmt;

use varve_block::{BlockDevice, Sector};

use super::{Layout, read_superblock};
use crate::error::Result;
use crate::format::integrity::Superblock;
use crate::format::metadata::SegmentKind;
use crate::header::Header;

/// A superblock that fits its device.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct IntegrityInfo {
    /// First sector of the superblock.
    pub sector: u64,
    /// The lowest version that knows what the superblock says.
    pub version: u8,
    /// Bytes kept for each block.
    pub tag_size: usize,
    /// Bytes of a block.
    pub block_size: u64,
    pub provided_sectors: u64,
    pub journal_sections: u32,
    pub journal_sectors: u64,
    /// Sectors of data between two runs of tags.
    pub interleave_sectors: u64,
    /// Sectors that a bit of a bitmap stands for.
    pub sectors_per_bit: u64,
    /// Tags before this sector are valid; absent: all are. In a dirty bitmap its bits say more.
    pub recalculating_from: Option<u64>,
    /// A bitmap lies in place of the journal: a crash left it, or it is in use.
    pub dirty_bitmap: bool,
    /// Runs of tags are padded to 4 KiB.
    pub fixed_padding: bool,
    /// A salt goes into every internal hash.
    pub salted: bool,
}

impl fmt::Display for IntegrityInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Integrity superblock (dm-integrity):")?;
        writeln!(f, "\tsector: {}", self.sector)?;
        writeln!(f, "\ttag size: {} [bytes]", self.tag_size)?;
        writeln!(f, "\tblock: {} [bytes]", self.block_size)?;
        writeln!(f, "\tprovides: {} [512-byte sectors]", self.provided_sectors)?;
        writeln!(
            f,
            "\tjournal: {} sections, {} [512-byte sectors]",
            self.journal_sections, self.journal_sectors
        )?;
        writeln!(f, "\tinterleave: {} [512-byte sectors]", self.interleave_sectors)?;
        writeln!(f, "\tbitmap: {} [512-byte sectors to a bit]", self.sectors_per_bit)?;
        let mut flags = Vec::new();
        for (on, name) in [
            (self.recalculating_from.is_some(), "recalculating"),
            (self.dirty_bitmap, "dirty_bitmap"),
            (self.fixed_padding, "fix_padding"),
            (self.salted, "fix_hmac"),
        ] {
            if on {
                flags.push(name);
            }
        }
        writeln!(f, "\tversion: {}, flags: {}", self.version, flags.join(" "))?;
        if let Some(sector) = self.recalculating_from {
            writeln!(f, "\trecalculating from sector {sector}")?;
        }
        if self.dirty_bitmap {
            writeln!(f, "\tdirty bitmap in place of the journal")?;
        }
        Ok(())
    }
}

impl IntegrityInfo {
    pub(super) fn new(sb: &Superblock, layout: &Layout) -> IntegrityInfo {
        IntegrityInfo {
            sector: layout.start.0,
            version: sb.version(),
            tag_size: layout.tag,
            block_size: layout.block.bytes(),
            provided_sectors: layout.provided.0,
            journal_sections: layout.sections,
            journal_sectors: layout.section.0 * u64::from(layout.sections),
            interleave_sectors: 1 << sb.log2_interleave,
            sectors_per_bit: 1
                << (u32::from(sb.log2_block) + u32::from(sb.log2_blocks_per_bit)).min(63),
            recalculating_from: sb.recalculating,
            dirty_bitmap: sb.dirty_bitmap,
            fixed_padding: sb.fixed_padding,
            salted: sb.salt.is_some(),
        }
    }
}

/// Where the superblock of a volume with integrity lies on its data device.
pub fn integrity_place(header: &Header) -> Option<Sector> {
    let Header::Luks2(h) = header else { return None };
    let (_, segment) = h.metadata.regular_segments().next()?;
    match &segment.kind {
        SegmentKind::Crypt { integrity: Some(_), .. } => Some(Sector(segment.offset / 512)),
        _ => None,
    }
}

/// Reads and checks the superblock there.
pub async fn integrity_info<D: BlockDevice>(device: &D, at: Sector) -> Result<IntegrityInfo> {
    let sb = read_superblock(device, at).await?;
    let layout = Layout::new(&sb, at, device.geometry().len)?;
    Ok(IntegrityInfo::new(&sb, &layout))
}
