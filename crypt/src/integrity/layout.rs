//! Where dm-integrity puts data, tags and journal (luks.md 5.3).
//!
//! ```text
//! start   +8                        initial
//! | super | journal: sections ...   | run of tags | interleave data sectors | run of tags | ...
//!                                   \________________ area 0 ______________/
//! ```

use varve_block::{Extent, Sector, Sectors};

use crate::error::{Corrupt, Error, Result};
use crate::format::integrity::{self as format, Superblock};

/// Bytes of a journal sector before its commit id.
pub(crate) const JOURNAL_SECTOR_DATA: u64 = 504;
/// Sectors of a section that hold entries; the data blocks follow.
pub(crate) const ENTRY_SECTORS: u64 = 8;
/// Metadata runs are padded to this many bytes; before that was mended, to the second number.
const PADDING: [u64; 2] = [4096, 131_072];
/// Sectors of an area's data, as the kernel makes them.
const LOG2_INTERLEAVE: u8 = 15;
/// Default journal: the device's sectors divided by this, up to that many.
const JOURNAL_SHARE: u64 = 128;
const JOURNAL_MAX: u64 = 131_072;
/// Sectors that one bit of a bitmap stands for, at least.
const LOG2_SECTORS_PER_BIT: u8 = 15;

/// What a new superblock may be asked for; what is not said is as the kernel has it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wishes {
    /// Goes into every internal hash.
    pub(crate) salt: Option<[u8; 16]>,
    /// Sectors of the journal.
    pub(crate) journal: Option<u64>,
    /// Sectors of an area's data, rounded down to a power of two.
    pub(crate) interleave: Option<u64>,
    /// Sectors that a bit of the bitmap stands for, rounded down to a power of two.
    pub(crate) sectors_per_bit: Option<u64>,
}

/// Numbers that follow from a superblock and its place. All are bounded: nothing computed from them
/// for a sector below `provided` overflows or leaves the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// First sector of the superblock.
    pub(crate) start: Sector,
    /// Bytes of a tag.
    pub(crate) tag: usize,
    /// Sectors of a block.
    pub(crate) block: Sectors,
    log2_interleave: u8,
    log2_block: u8,
    /// Bytes of a journal entry.
    pub(crate) entry: usize,
    /// Entries of a section; always a multiple of eight.
    pub(crate) section_entries: u64,
    pub(crate) section: Sectors,
    pub(crate) sections: u32,
    /// Sectors of superblock and journal.
    initial: u64,
    /// Sectors of an area's tags.
    run: u64,
    /// Sectors of the device above.
    pub(crate) provided: Sectors,
}

impl Layout {
    /// The layout of a superblock at `start` of a device of `device` sectors (check 44).
    pub(crate) fn new(sb: &Superblock, start: Sector, device: Sectors) -> Result<Layout> {
        let layout = Layout::unsized_of(sb, start);
        let most = layout.most(device);
        if sb.provided > most {
            return Err(Error::Corrupt(Corrupt {
                what: "dm-integrity superblock",
                check: 44,
                field: "provided sectors".into(),
                found: sb.provided.to_string(),
                expected: format!("at most {most}, which is what fits {device} sectors"),
            }));
        }
        Ok(Layout { provided: sb.provided, ..layout })
    }

    fn unsized_of(sb: &Superblock, start: Sector) -> Layout {
        let tag = u64::from(sb.tag_size);
        let entry = (8 + (8 << sb.log2_block) + tag).next_multiple_of(8);
        let section_entries = ENTRY_SECTORS * (JOURNAL_SECTOR_DATA / entry);
        let section = ENTRY_SECTORS + (section_entries << sb.log2_block);
        let padding = PADDING[usize::from(!sb.fixed_padding)];
        let run = (tag << (sb.log2_interleave - sb.log2_block)).next_multiple_of(padding) / 512;
        Layout {
            start,
            tag: usize::from(sb.tag_size),
            block: Sectors(1 << sb.log2_block),
            log2_interleave: sb.log2_interleave,
            log2_block: sb.log2_block,
            entry: usize::try_from(entry).expect("below a sector"),
            section_entries,
            section: Sectors(section),
            sections: sb.journal_sections,
            initial: format::SECTORS + section * u64::from(sb.journal_sections),
            run,
            provided: Sectors(0),
        }
    }

    /// What a new superblock at `start` says.
    pub(crate) fn design(
        tag_size: u16,
        log2_block: u8,
        wishes: &Wishes,
        start: Sector,
        device: Sectors,
    ) -> Result<Superblock> {
        let log2 = |n: u64| u8::try_from(n.max(1).ilog2()).expect("at most 63");
        let log2_interleave = wishes.interleave.map_or(LOG2_INTERLEAVE, log2);
        let mut sb = Superblock {
            tag_size,
            log2_interleave: log2_interleave
                .clamp(*format::INTERLEAVE.start(), *format::INTERLEAVE.end()),
            journal_sections: 1,
            provided: Sectors(0),
            log2_block,
            log2_blocks_per_bit: 0,
            recalculating: None,
            dirty_bitmap: false,
            fixed_padding: true,
            salt: wishes.salt,
        };
        let journal = wishes.journal.unwrap_or((device.0 / JOURNAL_SHARE).min(JOURNAL_MAX));
        let section = Layout::unsized_of(&sb, start).section.0;
        sb.journal_sections = u32::try_from((journal / section).max(1))
            .map_err(|_| Error::Options(format!("a journal of {journal} sectors is too long")))?;
        let layout = Layout::unsized_of(&sb, start);
        sb.provided = layout.most(device);
        if sb.provided.0 == 0 {
            return Err(Error::Options(format!(
                "{device} sectors are too few for integrity: superblock, journal and tags need \
                 more than {} from sector {start} on",
                layout.initial + layout.run
            )));
        }
        sb.log2_blocks_per_bit =
            layout.log2_blocks_per_bit(sb.provided, wishes.sectors_per_bit.map(log2));
        Ok(sb)
    }

    /// The same with short areas, so that small devices have several.
    #[cfg(test)]
    pub(crate) fn interleaved(
        mut sb: Superblock,
        log2: u8,
        start: Sector,
        device: Sectors,
    ) -> Superblock {
        sb.log2_interleave = log2;
        sb.provided = Layout::unsized_of(&sb, start).most(device);
        sb
    }

    /// Blocks to a bit, so that the bitmap fits the journal's place. `wanted`: log2 of sectors.
    pub(crate) fn log2_blocks_per_bit(&self, provided: Sectors, wanted: Option<u8>) -> u8 {
        let bits = self.bits_max();
        let mut log2 = wanted.unwrap_or(LOG2_SECTORS_PER_BIT).max(self.log2_block);
        while log2 < 63 && bits < provided.0.div_ceil(1 << log2) {
            log2 += 1;
        }
        log2 - self.log2_block
    }

    /// Bits that the journal's place has room for.
    pub(crate) fn bits_max(&self) -> u64 {
        (self.journal_len().0 << 12).min(u64::from(u32::MAX))
    }

    /// Sectors of the journal, or of the place that a bitmap takes.
    pub(crate) fn journal_len(&self) -> Sectors {
        Sectors(self.initial - format::SECTORS)
    }

    /// Where a bitmap begins: in the place of the journal.
    pub(crate) fn map_at(&self) -> Sector {
        self.start + Sectors(format::SECTORS)
    }

    /// The most sectors that such a device can provide: bit by bit from the highest one, as the
    /// kernel tries them.
    fn most(&self, device: Sectors) -> Sectors {
        let fits = |provided: u64| {
            let last = self.place(u128::from(provided - 1));
            u128::from(self.initial) + 8 < u128::from(device.0) && last < u128::from(device.0)
        };
        let mut provided = 0;
        for bit in (3..64 - device.0.leading_zeros()).rev() {
            if fits(provided | 1 << bit) {
                provided |= 1 << bit;
            }
        }
        Sectors(provided)
    }

    /// The device's sector of a sector above, in numbers that cannot overflow.
    fn place(&self, s: u128) -> u128 {
        let (area, off) = (s >> self.log2_interleave, s & ((1 << self.log2_interleave) - 1));
        u128::from(self.start.0 + self.initial)
            + (area + 1) * u128::from(self.run)
            + (area << self.log2_interleave)
            + off
    }

    /// Where the data of a sector lies.
    pub(crate) fn data(&self, s: Sector) -> Sector {
        assert!(s.0 < self.provided.0, "{s} is not a sector of {}", self.provided);
        Sector(u64::try_from(self.place(u128::from(s.0))).expect("inside the device"))
    }

    /// The device's byte of the tag of the block at `s`.
    pub(crate) fn tag_byte(&self, s: Sector) -> u64 {
        assert!(s.is_aligned(self.block), "a tag belongs to a block");
        let data = self.data(s).0;
        let off = s.0 & ((1 << self.log2_interleave) - 1);
        (data - off - self.run) * 512 + (off >> self.log2_block) * self.tag as u64
    }

    /// The parts of a run that lie in one area each.
    pub(crate) fn pieces(&self, range: Extent) -> impl Iterator<Item = Extent> + use<> {
        let area = 1 << self.log2_interleave;
        let mut rest = range;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let room = area - (rest.start.0 & (area - 1));
            let piece = Extent::new(rest.start, rest.len.min(Sectors(room)));
            rest = Extent::between(piece.end(), rest.end());
            Some(piece)
        })
    }

    /// Blocks in so many sectors.
    pub(crate) fn blocks(&self, len: Sectors) -> usize {
        usize::try_from(len.0 >> self.log2_block).expect("a request")
    }

    /// First sector of a section of the journal.
    pub(crate) fn section_at(&self, section: u32) -> Sector {
        assert!(section < self.sections, "section {section} of {}", self.sections);
        self.start + Sectors(format::SECTORS + u64::from(section) * self.section.0)
    }

    /// First byte of an entry, and of its block, within a section. Entries are dealt over the entry
    /// sectors like cards.
    pub(crate) fn entry_at(&self, entry: u64) -> (usize, usize) {
        let at = (entry % ENTRY_SECTORS) * 512 + (entry / ENTRY_SECTORS) * self.entry as u64;
        let data = (ENTRY_SECTORS + (entry << self.log2_block)) * 512;
        let small = |n| usize::try_from(n).expect("inside a section");
        (small(at), small(data))
    }
}

#[cfg(test)]
mod tests;
