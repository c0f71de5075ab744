//! What dm-integrity's superblock says, for people.

use std::fmt;

use varve_block::{BlockDevice, Sector};

use super::{Layout, read_superblock};
use crate::error::Result;
use crate::format::metadata::SegmentKind;
use crate::header::Header;

/// A superblock that fits its device.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct IntegrityInfo {
    /// First sector of the superblock.
    pub sector: u64,
    /// Bytes kept for each block.
    pub tag_size: usize,
    /// Bytes of a block.
    pub block_size: u64,
    pub provided_sectors: u64,
    pub journal_sections: u32,
    pub journal_sectors: u64,
    /// Tags before this sector are valid; absent: all are.
    pub recalculating_from: Option<u64>,
    pub dirty_bitmap: bool,
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
        if let Some(sector) = self.recalculating_from {
            writeln!(f, "\trecalculating from sector {sector}")?;
        }
        if self.dirty_bitmap {
            writeln!(f, "\tdirty bitmap in place of the journal")?;
        }
        Ok(())
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
    Ok(IntegrityInfo {
        sector: at.0,
        tag_size: layout.tag,
        block_size: layout.block.bytes(),
        provided_sectors: layout.provided.0,
        journal_sections: layout.sections,
        journal_sectors: layout.section.0 * u64::from(layout.sections),
        recalculating_from: sb.recalculating,
        dirty_bitmap: sb.dirty_bitmap,
    })
}
