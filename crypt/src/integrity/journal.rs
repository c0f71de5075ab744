//! dm-integrity's journal as bytes (luks.md 5.4): sections of entries and data, and what a start finds.
//!
//! Every sector of the journal ends in a *commit id* that follows from its place and a sequence number
//! of two bits; the bytes that it displaces from data are kept in the entry. The sequence advances when
//! the ring wraps, so that a section that was written half is told from a whole one: its sectors carry
//! two numbers.

use std::ops::Range;

use super::layout::{ENTRY_SECTORS, JOURNAL_SECTOR_DATA, Layout};

/// Sequence numbers.
const SEQUENCES: u8 = 4;
/// Mixed into the commit ids of each sequence; secret only in a journal that is encrypted.
const BASES: [u64; 4] =
    [0x1111_1111_1111_1111, 0x2222_2222_2222_2222, 0x3333_3333_3333_3333, 0x4444_4444_4444_4444];
/// The upper half of the sector field of an entry that is not used.
const UNUSED: u64 = 0xffff_ffff;
const ID: Range<usize> = 504..512;

/// The number after this one.
pub(crate) fn next(seq: u8) -> u8 {
    (seq + 1) % SEQUENCES
}

fn previous(seq: u8) -> u8 {
    (seq + SEQUENCES - 1) % SEQUENCES
}

fn commit_id(seq: u8, section: u32, sector: u64) -> [u8; 8] {
    (BASES[usize::from(seq)] ^ (u64::from(section) << 32) ^ sector).to_le_bytes()
}

/// Whether a sector carries a commit id of that place in a journal: what else lies there has none.
pub(crate) fn is_of_journal(section: u32, sector: u64, bytes: &[u8]) -> bool {
    (0..SEQUENCES).any(|seq| bytes[ID] == commit_id(seq, section, sector))
}

/// A block on its way to its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// First sector above.
    pub(crate) at: u64,
    pub(crate) data: Box<[u8]>,
    pub(crate) tag: Box<[u8]>,
}

/// The bytes of a section that holds these blocks, the rest of its entries being unused.
///
/// # Panics
/// When there are more blocks than entries.
pub(crate) fn encode<'a>(
    layout: &Layout,
    section: u32,
    seq: u8,
    blocks: impl IntoIterator<Item = &'a Block>,
    out: &mut [u8],
) {
    out.fill(0);
    let mut blocks = blocks.into_iter();
    for e in 0..layout.section_entries {
        let (at, data_at) = layout.entry_at(e);
        let Some(block) = blocks.next() else {
            out[at..at + 8].copy_from_slice(&(UNUSED << 32).to_le_bytes());
            continue;
        };
        out[at..at + 8].copy_from_slice(&block.at.to_le_bytes());
        let mut to = at + 8;
        for sector in block.data.chunks_exact(512) {
            out[to..to + 8].copy_from_slice(&sector[ID]);
            to += 8;
        }
        out[to..to + block.tag.len()].copy_from_slice(&block.tag);
        out[data_at..data_at + block.data.len()].copy_from_slice(&block.data);
    }
    assert!(blocks.next().is_none(), "more blocks than entries of a section");
    for (n, sector) in (0u64..).zip(out.chunks_exact_mut(512)) {
        sector[ID].copy_from_slice(&commit_id(seq, section, n));
    }
}

/// The sequence numbers that sectors of a section carry, as a set of bits; `None`: a sector's id fits none.
pub(crate) fn sequences(section: u32, bytes: &[u8]) -> Result<u8, u64> {
    let mut found = 0;
    for (n, sector) in (0u64..).zip(bytes.chunks_exact(512)) {
        match (0..SEQUENCES).find(|&seq| sector[ID] == commit_id(seq, section, n)) {
            Some(seq) => found |= 1 << seq,
            None => return Err(n),
        }
    }
    Ok(found)
}

/// The entries in use: their number and the sector that they are for.
pub(crate) fn entries(layout: &Layout, bytes: &[u8]) -> Vec<(u64, u64)> {
    (0..layout.section_entries)
        .filter_map(|e| {
            let (at, _) = layout.entry_at(e);
            let sector = u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
            (sector >> 32 != UNUSED).then_some((e, sector))
        })
        .collect()
}

/// The block of an entry, whole again.
pub(crate) fn block(layout: &Layout, bytes: &[u8], entry: u64, at: u64) -> Block {
    let (place, data_at) = layout.entry_at(entry);
    let len = layout.block.byte_len();
    let mut data: Box<[u8]> = bytes[data_at..data_at + len].into();
    let mut from = place + 8;
    for sector in data.chunks_exact_mut(512) {
        sector[ID].copy_from_slice(&bytes[from..from + 8]);
        from += 8;
    }
    Block { at, data, tag: bytes[from..from + layout.tag].into() }
}

/// What a start has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// First section to replay, and how many, in the ring's order.
    pub(crate) first: u32,
    pub(crate) count: u32,
    /// The ring is whole: it goes on at `first` with this sequence. Otherwise it is made new.
    pub(crate) goes_on: Option<u8>,
    /// The sequence of a ring that is made new.
    pub(crate) erase: u8,
}

/// Reads the state of the ring from the sequences of its sections. `used`: some entry is.
/// `None`: all four sequences are there, which no history leaves.
pub(crate) fn find(sections: &[u8], used: bool) -> Option<Found> {
    let len = u32::try_from(sections.len()).expect("counted by a u32");
    let all = sections.iter().fold(0, |all, s| all | s);
    let has = |seq: u8| all & (1 << seq) != 0;
    let unused = if has(3) {
        (0..SEQUENCES).find(|&seq| !has(seq))?
    } else {
        (1..SEQUENCES).rev().find(|&seq| has(seq - 1)).unwrap_or(0)
    };
    let last = previous(unused);
    let mut want = previous(last);
    let empty = !used || (!has(want) && has(previous(want)));
    let latest = sections.iter().rposition(|s| s & (1 << last) != 0);
    let mut first = latest.map_or(0, |n| u32::try_from(n).expect("below len")) + 1;
    if first >= len {
        first = 0;
        want = next(want);
    }
    let (mut count, mut at) = (0, first);
    while count < len && sections[at as usize] == 1 << want {
        count += 1;
        at += 1;
        if at >= len {
            at = 0;
            want = next(want);
        }
    }
    Some(Found {
        first,
        count: if empty { 0 } else { count },
        goes_on: (count == len).then_some(want),
        erase: previous(previous(last)),
    })
}

/// The order in which a ring that has been replayed is made new, with a flush after each part: the
/// section where a replay would begin, what comes after it, and the last one, which says where it begins.
pub(crate) fn erase_order(first: u32, len: u32) -> [Vec<u32>; 3] {
    let ring = |n: u32| (0..n).map(move |i| (u64::from(first) + 1 + u64::from(i)) % u64::from(len));
    let small = |n: u64| u32::try_from(n).expect("below len");
    let middle = ring(len.saturating_sub(2)).map(small).collect();
    let last = if len >= 2 {
        vec![small((u64::from(first) + u64::from(len) - 1) % u64::from(len))]
    } else {
        Vec::new()
    };
    [vec![first], middle, last]
}

const _: () = assert!(ENTRY_SECTORS == 8 && JOURNAL_SECTOR_DATA == 504);

#[cfg(test)]
mod tests;
