//! Bucket priorities and generations: a chain of buckets, its head named by the journal.
//!
//! Set `j` describes buckets `j * per_set ..`. The chain is not terminated (the last `next` is
//! stale): sets are counted. On disk the generations lag behind, see [`crate::effective`].

use std::mem::size_of;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Bucket, SetMagic};
use crate::error::{Corrupt, Hex, Place};
use varve_block::sum;

/// Head of a prio set, as stored.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
pub(crate) struct RawPrioSet {
    csum: U64,
    magic: U64,
    seq: U64,
    version: U32,
    pad: U32,
    next_bucket: U64,
}
const _: () = assert!(size_of::<RawPrioSet>() == HEADER);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct RawPrio {
    prio: U16,
    generation: u8,
}
const _: () = assert!(size_of::<RawPrio>() == 3);

pub(crate) const HEADER: usize = 40;

/// What the chain says of one bucket.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Prio {
    /// 0 never used, 32768 just used, 65535 metadata. Advisory.
    pub prio: u16,
    pub generation: u8,
}

impl Prio {
    pub const METADATA: u16 = 65_535;
    pub const FRESH: u16 = 32_768;
}

/// One bucket of the chain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PrioSet {
    /// The same in every set of a chain.
    pub seq: u64,
    pub version: u32,
    /// The next set; meaningless in the last one.
    pub next: Bucket,
    pub entries: Vec<Prio>,
}

impl PrioSet {
    /// Check 23 for one set. `bytes` is the whole area, all of it under the checksum.
    pub fn parse(bytes: &[u8], magic: SetMagic, bucket: Bucket) -> Result<PrioSet, Corrupt> {
        let wrong = |field, found: &dyn std::fmt::Display, expected: &dyn std::fmt::Display| {
            Err(Corrupt::row(23, "prio set", Place::bucket(bucket), field, found, expected))
        };
        let Ok((raw, body)) = RawPrioSet::ref_from_prefix(bytes) else {
            return wrong("length", &bytes.len(), &"at least 40 bytes");
        };
        if raw.magic != magic.pset() {
            return wrong("magic", &Hex(raw.magic.get()), &Hex(magic.pset()));
        }
        let sum = sum::bcache_crc64(bytes.get(size_of::<U64>()..).unwrap_or(&[]));
        if raw.csum != sum {
            return wrong("csum", &Hex(raw.csum.get()), &Hex(sum));
        }
        let (chunks, _) = body.as_chunks::<3>();
        let entries = chunks
            .iter()
            .map(|[lo, hi, generation]| Prio {
                prio: u16::from_le_bytes([*lo, *hi]),
                generation: *generation,
            })
            .collect();
        Ok(PrioSet {
            seq: raw.seq.get(),
            version: raw.version.get(),
            next: Bucket(raw.next_bucket.get()),
            entries,
        })
    }

    /// The whole area of `meta_sectors` sectors, sealed.
    pub fn encode(&self, magic: SetMagic, meta_sectors: u32) -> Vec<u8> {
        let len = usize::try_from(meta_sectors).unwrap_or(0).saturating_mul(super::SECTOR_BYTES);
        let head = RawPrioSet {
            csum: 0.into(),
            magic: magic.pset().into(),
            seq: self.seq.into(),
            version: self.version.into(),
            pad: 0.into(),
            next_bucket: self.next.0.into(),
        };
        let mut bytes = Vec::with_capacity(len);
        bytes.extend_from_slice(head.as_bytes());
        for entry in &self.entries {
            let raw = RawPrio { prio: entry.prio.into(), generation: entry.generation };
            bytes.extend_from_slice(raw.as_bytes());
        }
        bytes.resize(len, 0);
        let sum = sum::bcache_crc64(bytes.get(size_of::<U64>()..).unwrap_or(&[]));
        if let Some(field) = bytes.get_mut(..size_of::<U64>()) {
            field.copy_from_slice(&sum.to_le_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn magic() -> SetMagic {
        SetMagic::of(::uuid::Uuid::parse_str("14a6efd5-c5c2-422c-9a1f-fa464c344d33").unwrap())
    }

    /// Golden vector (e): the set's other 128 KiB buckets are 0/0 or as named there, so the header
    /// words are reproduced from the fields alone.
    #[test]
    fn header_words_of_the_golden_chain() {
        let set = PrioSet { seq: 2, version: 0, next: Bucket(0x17), entries: Vec::new() };
        let bytes = set.encode(magic(), 256);
        assert_eq!(bytes.len(), 256 * 512);
        let words = super::super::bset::read_words(&bytes[8..40]);
        assert_eq!(words, [0x4B12_239A_52DC_D985, 2, 0, 0x17]);
    }

    #[test]
    fn a_flipped_bit_anywhere_even_in_the_unused_tail_is_noticed() {
        let entries =
            (0u8..100).map(|i| Prio { prio: u16::from(i) * 600, generation: i }).collect();
        let set = PrioSet { seq: 9, version: 0, next: Bucket(5), entries };
        let good = set.encode(magic(), 8);
        let back = PrioSet::parse(&good, magic(), Bucket(4)).unwrap();
        assert_eq!(back.entries.len(), (4096 - 40) / 3);
        assert_eq!(back.entries[..100], set.entries);
        assert_eq!((back.seq, back.next), (9, Bucket(5)));
        for byte in (0..good.len()).step_by(37).chain([8, 4095]) {
            let mut bad = good.clone();
            bad[byte] ^= 0x10;
            let corrupt = PrioSet::parse(&bad, magic(), Bucket(4)).unwrap_err();
            assert_eq!(corrupt.rule, crate::error::Rule::Row(23));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(PrioSet::parse(&bytes, magic(), Bucket(4)).is_err());
        }
    }
}
