//! EXTENT_DATA: which bytes a piece of a file is made of (format: btrfs 10.5).

use super::{Result, exactly, head, wrong};
use crate::units::Logical;
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes before inline data.
pub(crate) const INLINE_HEAD: usize = 21;
/// Size of an item that refers to an extent.
pub(crate) const REGULAR_SIZE: usize = 53;
/// Largest piece of a file that one compressed extent holds.
pub const MAX_UNCOMPRESSED: u64 = 128 << 10;
/// Largest data extent.
pub const MAX_EXTENT: u64 = 128 << 20;

pub(crate) const INLINE: u8 = 0;
pub(crate) const REGULAR: u8 = 1;
pub(crate) const PREALLOC: u8 = 2;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Debug)]
#[repr(C)]
pub(crate) struct RawHead {
    generation: U64,
    ram_bytes: U64,
    compression: u8,
    encryption: u8,
    other_encoding: U16,
    kind: u8,
}
const _: () = assert!(size_of::<RawHead>() == INLINE_HEAD);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Debug)]
#[repr(C)]
pub(crate) struct RawRegular {
    head: RawHead,
    disk_bytenr: U64,
    disk_num_bytes: U64,
    offset: U64,
    num_bytes: U64,
}
const _: () = assert!(size_of::<RawRegular>() == REGULAR_SIZE);

/// The item's fields as numbers, for a checker that must say which one is wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields {
    pub(crate) ram_bytes: u64,
    pub(crate) compression: u8,
    pub(crate) encryption: u8,
    pub(crate) kind: u8,
    /// `None` when the item is not 53 bytes long.
    pub(crate) place: Option<Place>,
}

impl Fields {
    pub(crate) fn decode(bytes: &[u8]) -> Option<Fields> {
        let (raw, _) = RawHead::ref_from_prefix(bytes).ok()?;
        Some(Fields {
            ram_bytes: raw.ram_bytes.get(),
            compression: raw.compression,
            encryption: raw.encryption,
            kind: raw.kind,
            place: Place::parse(bytes).ok(),
        })
    }
}

/// How an extent's bytes are packed. Codes of the disk; the send stream has others.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Compression {
    None,
    Zlib,
    Lzo,
    Zstd,
}

impl Compression {
    pub fn from_disk(raw: u8) -> Result<Compression> {
        match raw {
            0 => Ok(Compression::None),
            1 => Ok(Compression::Zlib),
            2 => Ok(Compression::Lzo),
            3 => Ok(Compression::Zstd),
            other => wrong("compression", other.into(), "0..=3"),
        }
    }

    pub fn to_disk(self) -> u8 {
        match self {
            Compression::None => 0,
            Compression::Zlib => 1,
            Compression::Lzo => 2,
            Compression::Zstd => 3,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileExtent<'a> {
    /// Transaction that wrote it.
    pub generation: u64,
    /// Size of the whole extent once uncompressed.
    pub ram_bytes: u64,
    pub compression: Compression,
    pub body: Body<'a>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Body<'a> {
    /// The data itself, packed as `compression` says.
    Inline(&'a [u8]),
    Regular(Place),
    /// Allocated and never written: reads as zeroes.
    Prealloc(Place),
}

/// The part of an extent that a file uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// 0 is a hole.
    pub disk_bytenr: Logical,
    pub disk_num_bytes: u64,
    /// Into the *uncompressed* extent.
    pub offset: u64,
    /// Bytes of the file, uncompressed.
    pub num_bytes: u64,
}

impl Place {
    pub fn is_hole(&self) -> bool {
        self.disk_bytenr.0 == 0
    }
}

impl<'a> FileExtent<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<FileExtent<'a>> {
        let (raw, inline) = head::<RawHead>(bytes, "at least 21")?;
        if raw.encryption != 0 {
            return wrong("encryption", raw.encryption.into(), "0");
        }
        if raw.other_encoding.get() != 0 {
            return wrong("other_encoding", raw.other_encoding.get().into(), "0");
        }
        let body = match raw.kind {
            INLINE => Body::Inline(inline),
            REGULAR => Body::Regular(Place::parse(bytes)?),
            PREALLOC => Body::Prealloc(Place::parse(bytes)?),
            other => return wrong("type", other.into(), "0..=2"),
        };
        Ok(FileExtent {
            generation: raw.generation.get(),
            ram_bytes: raw.ram_bytes.get(),
            compression: Compression::from_disk(raw.compression)?,
            body,
        })
    }

    pub fn encode(&self) -> Vec<u8> {
        let (kind, place) = match &self.body {
            Body::Inline(_) => (INLINE, None),
            Body::Regular(place) => (REGULAR, Some(place)),
            Body::Prealloc(place) => (PREALLOC, Some(place)),
        };
        let head = RawHead {
            generation: self.generation.into(),
            ram_bytes: self.ram_bytes.into(),
            compression: self.compression.to_disk(),
            encryption: 0,
            other_encoding: 0.into(),
            kind,
        };
        match (place, &self.body) {
            (Some(place), _) => RawRegular {
                head,
                disk_bytenr: place.disk_bytenr.0.into(),
                disk_num_bytes: place.disk_num_bytes.into(),
                offset: place.offset.into(),
                num_bytes: place.num_bytes.into(),
            }
            .as_bytes()
            .to_vec(),
            (None, Body::Inline(data)) => [head.as_bytes(), data].concat(),
            (None, _) => unreachable!("only inline extents have no place"),
        }
    }

    /// How many bytes of the file this item covers, before rounding.
    pub fn file_len(&self) -> u64 {
        match &self.body {
            Body::Inline(_) => self.ram_bytes,
            Body::Regular(place) | Body::Prealloc(place) => place.num_bytes,
        }
    }
}

impl Place {
    fn parse(bytes: &[u8]) -> Result<Place> {
        let raw = exactly::<RawRegular>(bytes, "53")?;
        Ok(Place {
            disk_bytenr: Logical(raw.disk_bytenr.get()),
            disk_num_bytes: raw.disk_num_bytes.get(),
            offset: raw.offset.get(),
            num_bytes: raw.num_bytes.get(),
        })
    }
}
