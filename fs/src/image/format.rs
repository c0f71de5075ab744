//! The container's bytes: the head of a cluster (format: btrfs 25).
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::format::{Result, head, wrong};
use crate::units::Logical;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Clusters begin on multiples of this, and their heads fill one.
pub(crate) const HEAD_SIZE: usize = 1024;
pub(crate) const MAGIC: u64 = 0xBD5C_25E2_7295_668B;
/// The version that carries data; the kernel's tools read it only when built to.
pub(crate) const MAGIC_EXPERIMENTAL: u64 = 0x3176_5F50_6D55_445F;
/// What fits in a head.
pub(crate) const ITEMS_MAX: usize = 83;
/// The "logical" address under which the superblock is kept.
pub(crate) const SUPER_ITEM: Logical = Logical(65536);
/// No payload is longer, packed or unpacked. Writers stop at 256 KiB; only the old free space cache
/// of very large block groups goes above.
pub(crate) const PAYLOAD_MAX: u64 = 16 << 20;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Debug)]
#[repr(C)]
struct RawHead {
    magic: U64,
    bytenr: U64,
    nritems: U32,
    compress: u8,
}
const _: () = assert!(size_of::<RawHead>() == 21);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Debug)]
#[repr(C)]
struct RawItem {
    bytenr: U64,
    size: U32,
}
const _: () = assert!(size_of::<RawItem>() == 12);

/// What a cluster holds: its payloads follow the head in this order, back to back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Cluster {
    /// Each payload is a zlib stream.
    pub(crate) packed: bool,
    /// Logical address, and bytes in the stream.
    pub(crate) items: Vec<(Logical, u32)>,
}

impl Cluster {
    /// The cluster whose head begins at byte `at` of the stream.
    pub(crate) fn parse(bytes: &[u8], at: u64) -> Result<Cluster> {
        let (raw, rest) = head::<RawHead>(bytes, "a head of 1024 bytes")?;
        match raw.magic.get() {
            MAGIC => (),
            MAGIC_EXPERIMENTAL => {
                return wrong("version", 1, "0: dumps that carry file data are not supported");
            }
            other => return wrong("magic", other, "0xbd5c25e27295668b"),
        }
        if raw.bytenr.get() != at {
            return wrong("bytenr", raw.bytenr.get(), "the head's own place in the stream");
        }
        let packed = match raw.compress {
            0 => false,
            1 => true,
            other => return wrong("compress", other.into(), "0 (none) or 1 (zlib)"),
        };
        let count = raw.nritems.get();
        let items = usize::try_from(count)
            .ok()
            .filter(|count| *count <= ITEMS_MAX)
            .and_then(|count| <[RawItem]>::ref_from_prefix_with_elems(rest, count).ok());
        let Some((items, _)) = items else {
            return wrong("nritems", count.into(), "at most 83");
        };
        let items: Vec<_> =
            items.iter().map(|item| (Logical(item.bytenr.get()), item.size.get())).collect();
        for (_, size) in &items {
            if *size == 0 || u64::from(*size) > PAYLOAD_MAX {
                return wrong("item size", (*size).into(), "1 byte to 16 MiB");
            }
        }
        Ok(Cluster { packed, items })
    }

    /// The head of this cluster at byte `at` of the stream.
    ///
    /// # Panics
    /// With more than 83 items.
    pub(crate) fn encode(&self, at: u64) -> Vec<u8> {
        assert!(self.items.len() <= ITEMS_MAX, "a cluster holds at most 83 items");
        let raw = RawHead {
            magic: MAGIC.into(),
            bytenr: at.into(),
            nritems: u32::try_from(self.items.len()).expect("few").into(),
            compress: u8::from(self.packed),
        };
        let mut bytes = raw.as_bytes().to_vec();
        for (logical, size) in &self.items {
            let raw = RawItem { bytenr: logical.0.into(), size: (*size).into() };
            bytes.extend_from_slice(raw.as_bytes());
        }
        bytes.resize(HEAD_SIZE, 0);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_get_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..1100)) {
            let _ = Cluster::parse(&bytes, 0);
            let mut close = bytes;
            close.resize(HEAD_SIZE, 0);
            if let Some(magic) = close.first_chunk_mut::<8>() {
                *magic = MAGIC.to_le_bytes();
            }
            let _ = Cluster::parse(&close, 0);
        }

        #[test]
        fn a_head_survives_the_round_trip(
            packed: bool,
            items in proptest::collection::vec((any::<u64>(), 1u32..1 << 24), 0..=ITEMS_MAX),
        ) {
            let items = items.into_iter().map(|(at, size)| (Logical(at), size)).collect();
            let cluster = Cluster { packed, items };
            let bytes = cluster.encode(7168);
            prop_assert_eq!(bytes.len(), HEAD_SIZE);
            prop_assert_eq!(Cluster::parse(&bytes, 7168), Ok(cluster));
            prop_assert!(Cluster::parse(&bytes, 0).is_err(), "a head knows where it belongs");
        }
    }
}
