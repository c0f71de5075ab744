//! LUKS1: one header of 592 bytes, eight keyslots, big-endian.

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::af;
use crate::cipher::CipherSpec;
use crate::error::{Corrupt, Error, Result, printable};
use crate::format::MAGIC;
use crate::hash::Hash;

const WHAT: &str = "LUKS1 header";
/// The header owns the first two sectors, although it fills little more than one.
pub(crate) const HEADER_LEN: usize = 1024;
const SLOT_ACTIVE: u32 = 0x00ac_71f3;
const SLOT_FREE: u32 = 0x0000_dead;
/// Keyslots of every LUKS1 header.
pub(crate) const SLOTS: usize = 8;
/// Bytes of the digest of the volume key.
pub(crate) const DIGEST_LEN: usize = 20;

/// The header as stored.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
pub(crate) struct RawHeader {
    pub(crate) magic: [u8; 6],
    pub(crate) version: U16,
    pub(crate) cipher: [u8; 32],
    pub(crate) mode: [u8; 32],
    pub(crate) hash: [u8; 32],
    pub(crate) payload_offset: U32,
    pub(crate) key_bytes: U32,
    pub(crate) digest: [u8; DIGEST_LEN],
    pub(crate) digest_salt: [u8; 32],
    pub(crate) digest_iterations: U32,
    pub(crate) uuid: [u8; 40],
    pub(crate) slots: [RawSlot; SLOTS],
}
const _: () = assert!(
    size_of::<RawHeader>() == 592
        && std::mem::offset_of!(RawHeader, payload_offset) == 104
        && std::mem::offset_of!(RawHeader, digest_iterations) == 164
        && std::mem::offset_of!(RawHeader, slots) == 208
);

/// A keyslot as stored.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
pub(crate) struct RawSlot {
    pub(crate) active: U32,
    pub(crate) iterations: U32,
    pub(crate) salt: [u8; 32],
    pub(crate) material_offset: U32,
    pub(crate) stripes: U32,
}
const _: () = assert!(size_of::<RawSlot>() == 48);

/// First byte of a slot in the header.
pub(crate) fn slot_at(slot: usize) -> usize {
    std::mem::offset_of!(RawHeader, slots).saturating_add(slot.saturating_mul(size_of::<RawSlot>()))
}
/// First byte of the UUID, and its room.
pub(crate) const UUID_AT: (usize, usize) = (std::mem::offset_of!(RawHeader, uuid), 40);

/// A header every field of which has been looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Luks1 {
    /// Cipher field, as in `aes`.
    pub cipher: String,
    /// Mode field, as in `xts-plain64`.
    pub mode: String,
    /// Name of the hash for everything.
    pub hash: String,
    /// First sector of the payload; 0 when the header is detached.
    pub payload_offset: u32,
    /// Length of the volume key.
    pub key_bytes: u32,
    /// Digest of the volume key.
    pub digest: [u8; DIGEST_LEN],
    pub digest_salt: [u8; 32],
    pub digest_iterations: u32,
    pub uuid: String,
    /// All eight, free ones included.
    pub slots: [Luks1Slot; SLOTS],
}

/// One of the eight keyslots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Luks1Slot {
    pub active: bool,
    pub iterations: u32,
    pub salt: [u8; 32],
    /// First sector of the key material.
    pub material_offset: u32,
    pub stripes: u32,
}

fn wrong(check: u8, field: &str, found: impl ToString, expected: impl Into<String>) -> Corrupt {
    Corrupt {
        what: WHAT,
        check,
        field: field.into(),
        found: found.to_string(),
        expected: expected.into(),
    }
}

impl Luks1 {
    /// Checks a header. `device_len` is the length in bytes of the device it lies on.
    pub(crate) fn parse(head: &[u8], device_len: u64) -> Result<Luks1, Corrupt> {
        let Ok((raw, _)) = RawHeader::ref_from_prefix(head) else {
            return Err(wrong(1, "length", head.len(), "at least 592 bytes"));
        };
        if raw.magic != MAGIC || raw.version.get() != 1 {
            return Err(wrong(1, "version", raw.version, "1, behind the magic"));
        }
        let header = Luks1 {
            cipher: field_text("cipher", &raw.cipher)?,
            mode: field_text("mode", &raw.mode)?,
            hash: field_text("hash", &raw.hash)?,
            payload_offset: raw.payload_offset.get(),
            key_bytes: raw.key_bytes.get(),
            digest: raw.digest,
            digest_salt: raw.digest_salt,
            digest_iterations: raw.digest_iterations.get(),
            uuid: super::text(&raw.uuid, |t| wrong(2, "uuid", t, "text"))?.to_owned(),
            slots: parse_slots(&raw.slots)?,
        };
        header.check(device_len)?;
        Ok(header)
    }

    fn check(&self, device_len: u64) -> Result<(), Corrupt> {
        if !(1..=512).contains(&self.key_bytes) {
            return Err(wrong(24, "key bytes", self.key_bytes, "1 to 512"));
        }
        if self.digest_iterations == 0 {
            return Err(wrong(30, "digest iterations", 0, "above zero"));
        }
        let mut ranges = Vec::new();
        for (i, slot) in self.slots.iter().enumerate() {
            let name = format!("slot {i} material offset");
            let start = u64::from(slot.material_offset);
            let end = start.saturating_add(self.area_sectors());
            if start.saturating_mul(512) < HEADER_LEN as u64 {
                return Err(wrong(32, &name, start, "at least sector 2, behind the header"));
            }
            let payload = u64::from(self.payload_offset);
            if payload != 0 && end > payload {
                return Err(wrong(32, &name, start, format!("to end before sector {payload}")));
            }
            if slot.active && end.saturating_mul(512) > device_len {
                return Err(wrong(32, &name, start, "to end inside the device"));
            }
            ranges.push((start, end, i));
        }
        ranges.sort_unstable();
        for (one, two) in ranges.iter().zip(ranges.iter().skip(1)) {
            if one.1 > two.0 {
                let name = format!("slot {} material offset", two.2);
                return Err(wrong(32, &name, two.0, format!("not to overlap slot {}", one.2)));
            }
        }
        Ok(())
    }

    /// Sectors of a split key.
    pub(crate) fn area_sectors(&self) -> u64 {
        let bytes = af::area_len(u64::from(self.key_bytes), af::STRIPES);
        bytes.expect("at most 512 bytes of key") / 512
    }

    /// The two text fields joined, as LUKS2 and table lines have them.
    pub fn cipher_spec(&self) -> Result<CipherSpec> {
        CipherSpec::parse(&format!("{}-{}", self.cipher, self.mode))
    }

    /// The hash for AF, PBKDF2 and digest, if it is one we have (check 40).
    pub(crate) fn hash(&self) -> Result<Hash> {
        Hash::named(&self.hash).ok_or_else(|| {
            Error::unsupported(format!("hash \"{}\" is not implemented", printable(&self.hash)))
        })
    }

    /// The header as stored: both sectors.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut raw = RawHeader {
            magic: MAGIC,
            version: U16::new(1),
            cipher: [0; 32],
            mode: [0; 32],
            hash: [0; 32],
            payload_offset: U32::new(self.payload_offset),
            key_bytes: U32::new(self.key_bytes),
            digest: self.digest,
            digest_salt: self.digest_salt,
            digest_iterations: U32::new(self.digest_iterations),
            uuid: [0; 40],
            slots: self.slots.each_ref().map(Luks1Slot::encode),
        };
        super::set_text(&mut raw.cipher, &self.cipher);
        super::set_text(&mut raw.mode, &self.mode);
        super::set_text(&mut raw.hash, &self.hash);
        super::set_text(&mut raw.uuid, &self.uuid);
        let mut bytes = raw.as_bytes().to_vec();
        bytes.resize(HEADER_LEN, 0);
        bytes
    }
}

impl Luks1Slot {
    pub(crate) fn encode(&self) -> RawSlot {
        RawSlot {
            active: U32::new(if self.active { SLOT_ACTIVE } else { SLOT_FREE }),
            iterations: U32::new(self.iterations),
            salt: self.salt,
            material_offset: U32::new(self.material_offset),
            stripes: U32::new(self.stripes),
        }
    }
}

fn parse_slots(raw: &[RawSlot; SLOTS]) -> Result<[Luks1Slot; SLOTS], Corrupt> {
    for (i, slot) in raw.iter().enumerate() {
        let active = slot.active.get();
        if !matches!(active, SLOT_ACTIVE | SLOT_FREE) {
            let name = format!("slot {i} state");
            return Err(wrong(32, &name, format!("{active:#x}"), "0xac71f3 or 0xdead"));
        }
        if slot.stripes.get() != af::STRIPES {
            return Err(wrong(23, &format!("slot {i} stripes"), slot.stripes, "4000"));
        }
    }
    Ok(raw.each_ref().map(|slot| Luks1Slot {
        active: slot.active.get() == SLOT_ACTIVE,
        iterations: slot.iterations.get(),
        salt: slot.salt,
        material_offset: slot.material_offset.get(),
        stripes: slot.stripes.get(),
    }))
}

/// Text whose last byte counts as NUL whatever it is, as the reference reads it.
fn field_text(name: &str, bytes: &[u8; 32]) -> Result<String, Corrupt> {
    let (_, bytes) = bytes.split_last().expect("32 bytes");
    Ok(super::text(bytes, |t| wrong(2, name, t, "text"))?.to_owned())
}

#[cfg(test)]
mod tests;
