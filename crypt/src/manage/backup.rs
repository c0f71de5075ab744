//! A header with all its keyslots, taken out and put back.
//!
//! A backup opens the volume with the passphrases of its day for ever, also after they were changed or
//! removed on the volume itself.
//!
//! # Restoring, and a cut in the middle
//!
//! ```text
//! both headers invalid, flush --> keyslot areas, flush --> header (LUKS2: primary, flush, secondary), flush
//! ```
//!
//! Areas are overwritten where they are, so there is no order that keeps the old keys until the new ones
//! are whole. Rather than a header whose passphrases mysteriously fail, a cut leaves a device that says
//! it has none: restoring again completes it.

use varve_block::BlockDevice;
use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::format::luks1::HEADER_LEN;
use crate::format::luks2::{HDR_SIZES, HeaderCopy, Luks2};
use crate::format::metadata::Segment;
use crate::header::Header;

/// Backups and areas end on these.
const PAGE: u64 = 4096;

/// Bytes of header and keyslots.
fn extent(header: &Header) -> u64 {
    match header {
        Header::Luks1(h) => {
            let end = |s: &crate::Luks1Slot| u64::from(s.material_offset) + h.area_sectors();
            let sectors = h.slots.iter().map(end).max().unwrap_or(0);
            (sectors * 512).next_multiple_of(PAGE)
        }
        Header::Luks2(h) => h.metadata.areas_end(h.hdr_size),
    }
}

/// The bytes of a backup, and the header in them.
pub async fn backup<D: BlockDevice>(
    device: &D,
    copy: Option<HeaderCopy>,
) -> Result<(Zeroizing<Vec<u8>>, Header)> {
    let header = Header::read(device, copy).await?;
    let len = extent(&header).min(device.geometry().len.bytes());
    Ok((crate::io::read_bytes(device, 0, len).await?, header))
}

/// A backup that was read and found whole.
#[derive(Debug)]
pub struct Backup {
    bytes: Zeroizing<Vec<u8>>,
    header: Header,
}

impl Backup {
    /// Checks the content of a backup file.
    pub fn parse(mut bytes: Zeroizing<Vec<u8>>) -> Result<Backup> {
        let header = Header::parse(&bytes, bytes.len() as u64, None)?;
        let len = extent(&header);
        if (bytes.len() as u64) < len {
            return Err(Error::Options(format!(
                "the backup has {} bytes, its header and keyslots need {len}",
                bytes.len()
            )));
        }
        bytes.truncate(usize::try_from(len).expect("at most 136 MiB"));
        if let Header::Luks2(h) = &header
            && !h.metadata.config.requirements.is_empty()
        {
            return Err(Error::refused(
                48,
                "the backup was made in the middle of a re-encryption, or requires what is unknown",
            ));
        }
        Ok(Backup { bytes, header })
    }

    /// The header in it.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What speaks against putting this backup on a device with that header, or with none.
    pub fn concerns(&self, present: Option<&Header>) -> Vec<String> {
        let Some(present) = present else { return Vec::new() };
        let mut concerns = Vec::new();
        let mut differs = |what: &str, backup: String, device: String| {
            if backup != device {
                concerns.push(format!("{what}: {backup} in the backup, {device} on the device"));
            }
        };
        let version = |h: &Header| format!("LUKS{}", h.version());
        differs("format", version(&self.header), version(present));
        differs("UUID", self.header.uuid().to_owned(), present.uuid().to_owned());
        match (&self.header, present) {
            (Header::Luks1(b), Header::Luks1(d)) => {
                let sector = |h: &crate::Luks1| format!("sector {}", h.payload_offset);
                differs("payload", sector(b), sector(d));
                let bits = |h: &crate::Luks1| format!("{} bits", u64::from(h.key_bytes) * 8);
                differs("key size", bits(b), bits(d));
            }
            (Header::Luks2(b), Header::Luks2(d)) => {
                differs("data segments", segments(b), segments(d));
                let size = |h: &Luks2| format!("{} bytes", h.metadata.areas_end(h.hdr_size));
                differs("headers and keyslots", size(b), size(d));
            }
            _ => {}
        }
        if let Header::Luks2(d) = present
            && !d.metadata.config.requirements.is_empty()
        {
            concerns
                .push("a re-encryption of the device is under way, its state would be lost".into());
        }
        concerns
    }

    /// Writes the backup over the device's header and keyslots. What speaks against it was settled.
    pub async fn restore<D: BlockDevice>(&self, device: &D) -> Result<()> {
        let len = device.geometry().len.bytes();
        let all = self.bytes.len() as u64;
        if len < all {
            return Err(Error::Options(format!(
                "{} has {len} bytes, the backup {all}",
                device.geometry().dev
            )));
        }
        if device.geometry().read_only {
            return Err(Error::Options(format!("{} is read-only", device.geometry().dev)));
        }
        // No copy of either header may be found until the areas are in place; an old secondary not even
        // then.
        let zero = [0; HEADER_LEN];
        crate::io::write_bytes(device, 0, &zero).await?;
        for at in HDR_SIZES {
            if self.owns(at) {
                crate::io::write_bytes(device, at, &zero).await?;
            }
        }
        device.flush().await?;
        // The header's copies come last, one after the other.
        let (copies, head_len) = match &self.header {
            Header::Luks1(_) => (1, HEADER_LEN as u64),
            Header::Luks2(h) => (2, h.hdr_size),
        };
        self.write(device, copies * head_len..all).await?;
        for copy in 0..copies {
            self.write(device, copy * head_len..(copy + 1) * head_len).await?;
        }
        if *crate::io::read_bytes(device, 0, all).await? != *self.bytes {
            return Err(Error::NotStored { dev: device.geometry().dev, what: "restored header" });
        }
        Ok(())
    }

    /// A secondary header of somebody else may lie there: the backup covers the place.
    fn owns(&self, at: u64) -> bool {
        at + HEADER_LEN as u64 <= self.bytes.len() as u64
    }

    async fn write<D: BlockDevice>(&self, device: &D, range: std::ops::Range<u64>) -> Result<()> {
        let at = |n: u64| usize::try_from(n).expect("inside the backup");
        let bytes = &self.bytes[at(range.start)..at(range.end)];
        crate::io::write_bytes(device, range.start, bytes).await?;
        device.flush().await?;
        Ok(())
    }
}

/// Where the data lies, in words.
fn segments(h: &Luks2) -> String {
    let one = |s: &Segment| match s.size {
        Some(size) => format!("{}+{size}", s.offset),
        None => format!("{}+", s.offset),
    };
    let list: Vec<String> = h.metadata.regular_segments().map(|(_, s)| one(s)).collect();
    format!("bytes {}", list.join(", "))
}
