//! Logical -> Physical: which bytes of which devices hold a run of logical addresses
//! (format: btrfs 5.7).
//!
//! Chunks never overlap, and every address lies in at most one. A run is answered piece by piece:
//! a piece never crosses a chunk's end, nor, where the profile stripes, a stripe's.

use crate::error::{Error, Place, Result};
use crate::format::chunk::{Chunk, Profile, STRIPE_LEN, Stripe};
use crate::format::superblock::SUPER_OFFSETS;
use crate::raid::Row;
use crate::units::{Logical, Physical, to_usize};
use std::collections::BTreeMap;
use std::ops::Range;

/// The chunks of a file system.
#[derive(Clone, Debug, Default)]
pub struct ChunkMap {
    chunks: BTreeMap<u64, Chunk>,
}

/// The first bytes of a run, and every place that holds them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    pub len: u64,
    /// Mirror 1 first. RAID5 and RAID6 have one.
    pub copies: Vec<Physical>,
    /// RAID5 and RAID6: what the bytes can be rebuilt from.
    pub row: Option<Row>,
}

impl Piece {
    /// How many ways there are to get the bytes: copies, and rebuilding from parity.
    pub fn mirrors(&self) -> usize {
        self.copies.len() + self.row.as_ref().map_or(0, Row::ways)
    }
}

impl ChunkMap {
    /// Takes a chunk whose rules were checked. The system chunks arrive twice, from the superblock
    /// and from the chunk tree; the later word counts.
    pub fn insert(&mut self, start: Logical, chunk: Chunk) -> Result<()> {
        let end = start.0.saturating_add(chunk.length);
        let overlap = self
            .chunks
            .range(..end)
            .next_back()
            .filter(|(at, other)| **at != start.0 && at.saturating_add(other.length) > start.0);
        if let Some((at, other)) = overlap {
            let message = format!(
                "chunk {start} length {} overlaps chunk {at} length {}",
                chunk.length, other.length
            );
            return Err(Error::corrupt(message));
        }
        self.chunks.insert(start.0, chunk);
        Ok(())
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (Logical, &Chunk)> {
        self.chunks.iter().map(|(start, chunk)| (Logical(*start), chunk))
    }

    /// Behind the last chunk: from here on no address means anything.
    pub fn end(&self) -> Logical {
        let last = self.iter().next_back();
        Logical(last.map_or(0, |(start, chunk)| start.0.saturating_add(chunk.length)))
    }

    /// The chunk that holds `at`.
    pub fn find(&self, at: Logical) -> Option<(Logical, &Chunk)> {
        let (start, chunk) = self.chunks.range(..=at.0).next_back()?;
        (at.0 - start < chunk.length).then_some((Logical(*start), chunk))
    }

    /// Where the first bytes of `[at, at + len)` are; at least one byte of them.
    pub fn map(&self, at: Logical, len: u64) -> Result<Piece> {
        let unmapped = || {
            let message = format!("unable to find logical {at} length {len}: no chunk holds it");
            Error::corrupt(message).at(Place { logical: Some(at), ..Place::default() })
        };
        let (start, chunk) = self.find(at).ok_or_else(unmapped)?;
        map_in(chunk, at.0 - start.0, len).ok_or_else(unmapped)
    }
}

/// The address arithmetic of every profile. `None` for a chunk the rules let nobody have.
fn map_in(chunk: &Chunk, off: u64, len: u64) -> Option<Piece> {
    let profile = chunk.flags.profile()?;
    let count = chunk.stripes.len() as u64;
    let data: u64 = profile.data_stripes(u16::try_from(count).ok()?)?.into();
    let (nr, within) = (off / STRIPE_LEN, off % STRIPE_LEN);
    let place = |stripe: &Stripe, byte: u64| {
        Some(Physical { devid: stripe.devid, byte: stripe.offset.checked_add(byte)? })
    };
    let stripe = |index: u64| chunk.stripes.get(to_usize(index));
    let (row, first, copies) = match profile {
        Profile::Single | Profile::Dup | Profile::Raid1 | Profile::Raid1c3 | Profile::Raid1c4 => {
            let copies: Option<Vec<_>> = chunk.stripes.iter().map(|s| place(s, off)).collect();
            let len = len.min(chunk.length - off);
            return Some(Piece { len, copies: copies?, row: None });
        }
        Profile::Raid0 => (nr / count, nr % count, 1),
        Profile::Raid10 => (nr / data, nr % data * 2, 2),
        // Columns shift by one device each row, so that parity is spread evenly.
        Profile::Raid5 | Profile::Raid6 => {
            let row = nr / data;
            (row, (nr % data + row) % count, 1)
        }
    };
    let byte = row.checked_mul(STRIPE_LEN)?.checked_add(within)?;
    let copies: Option<Vec<_>> = (first..first + copies).map(|i| place(stripe(i)?, byte)).collect();
    let len = len.min(STRIPE_LEN - within);
    let row = match profile.parity() {
        0 => None,
        parity => {
            let column = |c: u64| place(stripe((c + row) % count)?, byte);
            let columns: Option<Vec<_>> = (0..data).map(column).collect();
            let q = if parity == 2 { Some(column(data + 1)?) } else { None };
            Some(Row { data: columns?, p: column(data)?, q, wanted: to_usize(nr % data) })
        }
    };
    Some(Piece { len, copies: copies?, row })
}

/// Logical ranges of a chunk that hold a superblock copy on one of its devices: whole stripes, never
/// to be allocated. Only for profiles whose stripes hold the same bytes; a striped chunk is laid out
/// by nobody here yet.
pub(crate) fn super_ranges(start: Logical, chunk: &Chunk) -> Vec<Range<u64>> {
    let mut ranges: Vec<_> = chunk
        .stripes
        .iter()
        .flat_map(|stripe| SUPER_OFFSETS.map(|at| at.checked_sub(stripe.offset)))
        .flatten()
        .filter(|off| *off < chunk.length)
        .map(|off| {
            let from = start.0 + off - off % STRIPE_LEN;
            from..from + STRIPE_LEN
        })
        .collect();
    ranges.sort_by_key(|range| range.start);
    ranges.dedup();
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Uuid;
    use crate::format::chunk::GroupFlags;

    fn chunk(profile: Profile, stripes: u64, rows: u64) -> Chunk {
        let data: u64 = profile.data_stripes(u16::try_from(stripes).unwrap()).unwrap().into();
        Chunk {
            length: data * rows * STRIPE_LEN,
            owner: 2,
            stripe_len: STRIPE_LEN,
            flags: GroupFlags::DATA | profile.flag(),
            io_align: 65536,
            io_width: 65536,
            sector_size: 4096,
            sub_stripes: if profile == Profile::Raid10 { 2 } else { 1 },
            stripes: (1..=stripes)
                .map(|devid| Stripe { devid, offset: 1 << 20, dev_uuid: Uuid::nil() })
                .collect(),
        }
    }

    #[test]
    fn single_and_dup_run_to_the_end_of_the_chunk() {
        let mut map = ChunkMap::default();
        map.insert(Logical(1 << 30), chunk(Profile::Dup, 2, 4)).unwrap();
        let piece = map.map(Logical((1 << 30) + 4096), u64::MAX).unwrap();
        assert_eq!(piece.len, 4 * STRIPE_LEN - 4096);
        assert_eq!(piece.copies, [1, 2].map(|devid| Physical { devid, byte: (1 << 20) + 4096 }));
        assert!(map.map(Logical((1 << 30) + 4 * STRIPE_LEN), 1).is_err());
        assert!(map.map(Logical((1 << 30) - 1), 1).is_err());
    }

    /// Every byte of a device stripe is used once: the formulas are a bijection.
    #[test]
    fn no_two_addresses_share_a_place() {
        let shapes = [
            (Profile::Raid0, 3, 5),
            (Profile::Raid10, 4, 5),
            (Profile::Raid5, 4, 7),
            (Profile::Raid6, 5, 7),
        ];
        for (profile, stripes, rows) in shapes {
            let chunk = chunk(profile, stripes, rows);
            let mut seen = std::collections::BTreeSet::new();
            for nr in 0..chunk.length / STRIPE_LEN {
                let piece = map_in(&chunk, nr * STRIPE_LEN + 5, STRIPE_LEN).unwrap();
                assert_eq!(piece.len, STRIPE_LEN - 5);
                assert_eq!(piece.copies.len(), usize::from(profile.copies()));
                for copy in piece.copies {
                    assert!(copy.byte < (1 << 20) + rows * STRIPE_LEN);
                    assert!(seen.insert(copy), "{profile}: {copy} twice");
                }
            }
        }
    }

    #[test]
    fn raid5_rotates_one_device_per_row() {
        let chunk = chunk(Profile::Raid5, 3, 3);
        let dev = |nr| map_in(&chunk, nr * STRIPE_LEN, 1).unwrap().copies[0].devid;
        assert_eq!([0, 1, 2, 3, 4, 5].map(dev), [1, 2, 2, 3, 3, 1]);
    }

    #[test]
    fn parity_follows_the_data_and_no_two_columns_share_a_device() {
        let chunk = chunk(Profile::Raid6, 5, 7);
        for nr in 0..chunk.length / STRIPE_LEN {
            let piece = map_in(&chunk, nr * STRIPE_LEN + 4096, 1).unwrap();
            let row = piece.row.clone().unwrap();
            assert_eq!(row.data[row.wanted], piece.copies[0]);
            assert_eq!(piece.mirrors(), 5, "itself, by P, by Q, and without each other column");
            let places: Vec<_> = row.data.iter().copied().chain([row.p]).chain(row.q).collect();
            assert!(places.iter().all(|place| place.byte == places[0].byte));
            let devices: std::collections::BTreeSet<_> = places.iter().map(|p| p.devid).collect();
            assert_eq!(devices.len(), 5);
            let p = (3 + nr / 3) % 5 + 1;
            assert_eq!(row.p.devid, p, "P stands behind the last column");
            assert_eq!(row.q.unwrap().devid, p % 5 + 1, "and Q behind P");
        }
    }

    #[test]
    fn overlapping_chunks_are_refused_and_repeated_ones_are_not() {
        let mut map = ChunkMap::default();
        let four = chunk(Profile::Single, 1, 4);
        map.insert(Logical(STRIPE_LEN), four.clone()).unwrap();
        map.insert(Logical(STRIPE_LEN), four.clone()).unwrap();
        assert!(map.insert(Logical(0), four.clone()).is_err());
        assert!(map.insert(Logical(3 * STRIPE_LEN), four.clone()).is_err());
        map.insert(Logical(5 * STRIPE_LEN), four).unwrap();
    }

    #[test]
    fn superblock_copies_inside_a_chunk_are_found_in_every_stripe() {
        let mut dup = chunk(Profile::Dup, 2, 16);
        dup.stripes[0].offset = (64 << 20) - 4096;
        dup.stripes[1].offset = (64 << 20) - 3 * STRIPE_LEN;
        let start = Logical(1 << 30);
        assert_eq!(
            super_ranges(start, &dup),
            [start.0..start.0 + STRIPE_LEN, start.0 + 3 * STRIPE_LEN..start.0 + 4 * STRIPE_LEN]
        );
    }
}
