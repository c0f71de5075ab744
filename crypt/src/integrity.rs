//! dm-integrity keeps a tag for each sector: authenticated encryption fills it, or a hash of the data.
//!
//! ```text
//!   Sealed       encrypts and authenticates: data and tuple of each sector        sealed.rs, aead.rs
//!   Hashed       the same place for a volume whose tags are hashes of its data    hashed.rs, hash.rs
//!   Integrity    both or neither survive a crash                                  device.rs, start.rs
//!     journal    sections of entries, commit ids                                  journal.rs, replay.rs
//!     bitmap     regions that are being written, tags computed anew               bitmap.rs, recalculate.rs
//!     base       runs of data and tags on the device below                        base.rs, layout.rs
//! ```
//!
//! The format is the kernel's dm-integrity. Below dm-crypt the LUKS2 header says `integrity`, and the
//! superblock lies where the segment begins; by itself (integritysetup) it lies at sector 0. It detects sectors that were changed or moved. It does not
//! detect a sector that was put back together with its old tuple.

mod aead;
mod base;
mod bitmap;
mod bits;
mod device;
mod hash;
mod hashed;
mod hooks;
mod info;
mod journal;
mod layout;
mod make;
mod recalculate;
mod replay;
mod sealed;
mod stale;
mod start;
#[cfg(test)]
mod tests;

pub(crate) use aead::Aead;
pub use aead::AeadSpec;
pub use device::Journaling;
pub use hash::HashSpec;
pub use hashed::{Hashed, HashedOptions, Verified};
pub use info::{IntegrityInfo, integrity_info, integrity_place};
pub(crate) use layout::{Layout, Wishes};
pub(crate) use make::lay_out;
pub use make::{FirstTags, HashedFormat, format_hashed};
pub use replay::Replayed;
pub use sealed::{Seal, Sealed};

use varve_block::{BlockDevice, Sector, Sectors};

use crate::cipher::CipherSpec;
use crate::error::{Error, Result};
use crate::format::integrity::{self as format, Superblock};
use crate::format::metadata::SegmentIntegrity;

impl Seal {
    /// The superblock that a new device of that length needs.
    pub(crate) fn design(&self, device: Sectors) -> Result<Superblock> {
        let tag = u16::try_from(self.aead.tuple_len()).expect("at most 80 bytes");
        let log2_block = u8::try_from(self.sector_size.sectors().ilog2()).expect("at most 3");
        Layout::design(tag, log2_block, &Wishes::default(), self.start, device)
    }
}

/// The superblock at a sector of a device.
pub(crate) async fn read_superblock<D: BlockDevice>(device: &D, at: Sector) -> Result<Superblock> {
    let bytes = crate::io::read_bytes(device, at.byte(), format::LEN as u64).await?;
    Superblock::parse(&bytes).map_err(|e| match e {
        Error::Corrupt(mut c) => {
            c.field = format!("{} at sector {at} of {}", c.field, device.geometry().dev);
            Error::Corrupt(c)
        }
        other => other,
    })
}

/// How a segment of a LUKS2 header is authenticated, if we can serve it (check 44).
pub(crate) fn check_segment(
    id: u32,
    encryption: &str,
    integrity: &SegmentIntegrity,
    size: Option<u64>,
) -> Result<AeadSpec> {
    let no = |why: &str| Err(Error::unsupported(format!("segment {id}: {why}")));
    let spec = AeadSpec::parse(&CipherSpec::parse(encryption)?, &integrity.kind)?;
    if integrity.journal_encryption != "none" || integrity.journal_integrity != "none" {
        return no("an encrypted or authenticated integrity journal");
    }
    if integrity.key_size.is_some_and(|size| size != spec.mac_key_len() as u64) {
        return no("an integrity key of another size than its hash");
    }
    if size.is_some() {
        return no("integrity protection of a part of the device");
    }
    Ok(spec)
}
