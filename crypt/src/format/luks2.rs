//! The LUKS2 binary header, and the choice between its two copies.
//!
//! ```text
//! 0              hdr_size          2 * hdr_size                    segment offset
//! | primary      | secondary      | keyslot areas, as JSON says   | payload
//! | 4096 + JSON  | 4096 + JSON    |
//! ```
//!
//! Both copies say the same; one of them survives any crash while they are written. The one with the
//! higher `seqid` is the newer. The checksum guards against accidents, not against people.

use zerocopy::big_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::{Corrupt, printable};
use crate::format::metadata::Metadata;
use crate::format::{MAGIC, MAGIC_SECONDARY, json, set_text, text};
use crate::hash::Hash;
use crate::key;

mod recover;

pub(crate) use recover::recover;

/// Bytes of the binary block at the head of each copy.
pub(crate) const BINARY_LEN: u64 = 4096;
/// The nine sizes that a copy may have; a secondary lies at its own size.
pub(crate) const HDR_SIZES: [u64; 9] =
    [0x4000, 0x8000, 0x1_0000, 0x2_0000, 0x4_0000, 0x8_0000, 0x10_0000, 0x20_0000, 0x40_0000];
/// Everything two copies can span.
pub(crate) const HEAD_MAX: u64 = 0x80_0000;
/// Longest label, subsystem.
pub(crate) const LABEL_MAX: usize = 47;

/// The binary header as stored.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
pub(crate) struct RawHeader {
    magic: [u8; 6],
    version: U16,
    hdr_size: U64,
    seqid: U64,
    label: [u8; 48],
    checksum_algorithm: [u8; 32],
    salt: [u8; 64],
    uuid: [u8; 40],
    subsystem: [u8; 48],
    hdr_offset: U64,
    padding: [u8; 184],
    checksum: [u8; 64],
    padding_to_4096: [u8; 3584],
}
const _: () = assert!(
    size_of::<RawHeader>() == 4096
        && std::mem::offset_of!(RawHeader, uuid) == 168
        && std::mem::offset_of!(RawHeader, hdr_offset) == 256
        && std::mem::offset_of!(RawHeader, checksum) == 448
);

/// Which of the two copies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HeaderCopy {
    Primary,
    Secondary,
}

impl HeaderCopy {
    /// The copy that this one is not.
    #[must_use]
    pub fn other(self) -> HeaderCopy {
        match self {
            HeaderCopy::Primary => HeaderCopy::Secondary,
            HeaderCopy::Secondary => HeaderCopy::Primary,
        }
    }

    /// Its place in the order of [`EncodedCopies`].
    pub(crate) fn index(self) -> usize {
        match self {
            HeaderCopy::Primary => 0,
            HeaderCopy::Secondary => 1,
        }
    }

    pub(crate) fn what(self) -> &'static str {
        match self {
            HeaderCopy::Primary => "LUKS2 primary header",
            HeaderCopy::Secondary => "LUKS2 secondary header",
        }
    }
}

/// How the copy that was not chosen compares with the one that was.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OtherCopy {
    /// It says the same.
    Same,
    /// It is good and older.
    Older,
    /// It is good, not older, and says something else; or it is another volume's.
    Different,
    /// It is damaged, or gone.
    Unusable,
}

/// A copy of the header every field of which has been looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct Luks2 {
    /// Bytes of each copy.
    pub hdr_size: u64,
    /// Grows with every write of the metadata.
    pub seqid: u64,
    pub label: String,
    pub subsystem: String,
    pub uuid: String,
    pub checksum_algorithm: String,
    /// The copy this was read from.
    pub copy: HeaderCopy,
    /// What became of the other copy.
    pub other: OtherCopy,
    pub metadata: Metadata,
    /// What is odd about the copies, for the operator.
    pub notes: Vec<String>,
}

/// Offset and bytes of the primary and of the secondary, in the order in which they are written.
pub(crate) type EncodedCopies = [(u64, Vec<u8>); 2];

/// Why a copy does not count.
#[derive(Debug)]
pub(crate) enum BadCopy {
    /// No header there.
    Absent(Corrupt),
    /// A header, with a sound checksum and metadata that break the rules.
    JsonBad { size: u64, why: Corrupt },
}

impl Luks2 {
    /// Reads the copy at `offset` of `head`, which holds the first bytes of the device.
    pub(crate) fn read_copy(
        head: &[u8],
        offset: u64,
        copy: HeaderCopy,
        device_len: u64,
    ) -> Result<Luks2, BadCopy> {
        let wrong = |check, field: &str, found: String, expected: &str| {
            BadCopy::Absent(Corrupt {
                what: copy.what(),
                check,
                field: field.into(),
                found,
                expected: expected.into(),
            })
        };
        let start = usize::try_from(offset).ok();
        let Some(bytes) = start.and_then(|o| head.get(o..)) else {
            return Err(wrong(12, "length", format!("{device_len} bytes"), "room for the header"));
        };
        let Ok((raw, _)) = RawHeader::ref_from_prefix(bytes) else {
            return Err(wrong(12, "length", format!("{device_len} bytes"), "room for the header"));
        };
        let magic = match copy {
            HeaderCopy::Primary => MAGIC,
            HeaderCopy::Secondary => MAGIC_SECONDARY,
        };
        if raw.magic != magic || raw.version.get() != 2 {
            let found = format!("{:02x?} version {}", raw.magic, raw.version);
            return Err(wrong(1, "magic", found, "the magic of this copy, and version 2"));
        }
        if raw.hdr_offset.get() != offset {
            let found = raw.hdr_offset.to_string();
            return Err(wrong(4, "hdr_offset", found, "the position it was read from"));
        }
        let size = raw.hdr_size.get();
        let sized = HDR_SIZES.contains(&size) && (copy == HeaderCopy::Primary || size == offset);
        if !sized {
            return Err(wrong(
                3,
                "hdr_size",
                size.to_string(),
                "one of nine sizes, 16 KiB to 4 MiB",
            ));
        }
        let Some(all) = usize::try_from(size).ok().and_then(|n| bytes.get(..n)) else {
            return Err(wrong(12, "length", format!("{device_len} bytes"), "room for the header"));
        };
        check_sum(raw, all)
            .map_err(|(check, field, found, expected)| wrong(check, field, found, expected))?;
        Luks2::parse(raw, all, copy, device_len).map_err(|why| BadCopy::JsonBad { size, why })
    }

    fn parse(
        raw: &RawHeader,
        all: &[u8],
        copy: HeaderCopy,
        device_len: u64,
    ) -> Result<Luks2, Corrupt> {
        let what = copy.what();
        let hdr_size = raw.hdr_size.get();
        let (_, area) = all.split_at_checked(size_of::<RawHeader>()).unwrap_or((all, &[]));
        let metadata = Metadata::parse(what, json::read(what, area)?, hdr_size)?;
        let end = metadata.areas_end(hdr_size);
        let wrong = |check, field: &str, found, expected: String| Corrupt {
            what,
            check,
            field: field.into(),
            found,
            expected,
        };
        if end > device_len {
            let expected = format!("at least {end}: headers and keyslots");
            return Err(wrong(12, "device length", device_len.to_string(), expected));
        }
        let notes = metadata.notes.clone();
        Ok(Luks2 {
            hdr_size,
            seqid: raw.seqid.get(),
            label: lossy(&raw.label),
            subsystem: lossy(&raw.subsystem),
            uuid: text(&raw.uuid, |t| wrong(2, "uuid", t, "text".into()))?.to_owned(),
            checksum_algorithm: lossy(&raw.checksum_algorithm),
            copy,
            other: OtherCopy::Unusable,
            metadata,
            notes,
        })
    }

    /// The bytes of both copies, each with a fresh salt, in the order in which they are written.
    /// `None`: the metadata do not fit the header's size.
    pub(crate) fn encode(
        &self,
        random: &mut dyn FnMut(&mut [u8]) -> crate::Result<()>,
    ) -> crate::Result<Option<EncodedCopies>> {
        let size = usize::try_from(self.hdr_size).expect("at most 4 MiB");
        let area_len = size.saturating_sub(size_of::<RawHeader>());
        let Some(area) = json::write(&self.metadata.json, area_len) else { return Ok(None) };
        let mut one = |magic, offset: u64| -> crate::Result<(u64, Vec<u8>)> {
            let mut raw = RawHeader::read_from_bytes(&[0; 4096]).expect("the size of the struct");
            raw.magic = magic;
            raw.version = U16::new(2);
            raw.hdr_size = U64::new(self.hdr_size);
            raw.seqid = U64::new(self.seqid);
            set_text(&mut raw.label, &self.label);
            set_text(&mut raw.checksum_algorithm, Hash::Sha256.name());
            random(&mut raw.salt)?;
            set_text(&mut raw.uuid, &self.uuid);
            set_text(&mut raw.subsystem, &self.subsystem);
            raw.hdr_offset = U64::new(offset);
            let sum = Hash::Sha256.digest(&[raw.as_bytes(), &area]);
            for (to, from) in raw.checksum.iter_mut().zip(sum.iter().take(Hash::Sha256.size())) {
                *to = *from;
            }
            let mut bytes = raw.as_bytes().to_vec();
            bytes.extend_from_slice(&area);
            Ok((offset, bytes))
        };
        Ok(Some([one(MAGIC, 0)?, one(MAGIC_SECONDARY, self.hdr_size)?]))
    }
}

/// A label may hold anything; it is escaped where it is shown.
fn lossy(field: &[u8]) -> String {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    String::from_utf8_lossy(field.get(..end).unwrap_or_default()).into_owned()
}

type BadSum = (u8, &'static str, String, &'static str);

/// The checksum covers the copy with its own field zeroed (checks 5, 6).
fn check_sum(raw: &RawHeader, all: &[u8]) -> Result<(), BadSum> {
    let name = lossy(&raw.checksum_algorithm);
    let allowed = |h: &Hash| matches!(h, Hash::Sha1 | Hash::Sha256 | Hash::Sha384 | Hash::Sha512);
    let Some(hash) = Hash::named(&name).filter(allowed) else {
        let expected = "sha256, sha384, sha512 or sha1";
        return Err((5, "checksum algorithm", printable(&name), expected));
    };
    let mut zeroed = raw.clone();
    zeroed.checksum = [0; 64];
    let (_, area) = all.split_at_checked(size_of::<RawHeader>()).unwrap_or((all, &[]));
    let sum = hash.digest(&[zeroed.as_bytes(), area]);
    let (stored, rest) = raw.checksum.split_at_checked(hash.size()).unwrap_or((&[], &[]));
    if rest.iter().any(|&b| b != 0) {
        return Err((5, "checksum", "bytes behind it".into(), "zeroes behind the checksum"));
    }
    if !key::same(stored, sum.get(..hash.size()).unwrap_or_default()) {
        return Err((6, "checksum", "another one".into(), "the checksum of header and JSON"));
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
