//! A LUKS header of either version, read once into memory and judged there.
//!
//! The first megabytes of the device are read into a private copy; every decision is made from that
//! copy and the device is not asked again, so a header that changes while we look cannot mix two
//! states (check 6).

use varve_block::BlockDevice;

use crate::cipher::CipherSpec;
use crate::error::{Corrupt, Error, Result, printable};
use crate::format::luks1::Luks1;
use crate::format::luks2::{self, HeaderCopy, Luks2};
use crate::format::metadata::{Metadata, Segment, SegmentKind};
use crate::format::{MAGIC, MAGIC_SECONDARY};
use crate::integrity;

/// The header of a volume.
#[derive(Clone, Debug, PartialEq)]
pub enum Header {
    Luks1(Box<Luks1>),
    Luks2(Box<Luks2>),
}

/// Bytes at the head of a device that [`Header::parse`] wants to see.
pub const HEAD_LEN: u64 = luks2::HEAD_MAX;

impl Header {
    /// Finds and checks the header in `head`: the first [`HEAD_LEN`] bytes of a device of
    /// `device_len` bytes, or all of it when it is shorter. `only` names one of the copies of a LUKS2
    /// header and ignores the other.
    pub fn parse(head: &[u8], device_len: u64, only: Option<HeaderCopy>) -> Result<Header> {
        let version = head.get(6..8).map(|v| u16::from_be_bytes([v[0], v[1]]));
        if head.starts_with(&MAGIC) && version == Some(1) {
            return Ok(Header::Luks1(Box::new(Luks1::parse(head, device_len)?)));
        }
        let failed = match luks2::recover(head, device_len, only) {
            Ok(header) => return Ok(Header::Luks2(Box::new(header))),
            Err(e) => e,
        };
        if head.starts_with(&MAGIC) {
            return Err(match version {
                Some(2) | None => failed,
                Some(other) => Error::unsupported(format!("LUKS version {other}")),
            });
        }
        let second = |at: &u64| {
            let at = usize::try_from(*at).expect("at most 4 MiB");
            head.get(at..).is_some_and(|b| b.starts_with(&MAGIC_SECONDARY))
        };
        if luks2::HDR_SIZES.iter().any(second) {
            return Err(failed);
        }
        Err(Error::NotLuks(match &failed {
            Error::Corrupt(Corrupt { check: 12, found, .. }) => format!("too short, {found}"),
            _ => "no header at the start, and no secondary one".into(),
        }))
    }

    /// Reads the head of a device and parses it.
    pub async fn read<D: BlockDevice>(device: &D, only: Option<HeaderCopy>) -> Result<Header> {
        let len = device.geometry().len.bytes();
        let head = crate::io::read_bytes(device, 0, len.min(HEAD_LEN)).await?;
        Header::parse(&head, len, only)
    }

    /// The volume's UUID, as text from the header.
    pub fn uuid(&self) -> &str {
        match self {
            Header::Luks1(h) => &h.uuid,
            Header::Luks2(h) => &h.uuid,
        }
    }

    /// 1 or 2.
    pub fn version(&self) -> u16 {
        match self {
            Header::Luks1(_) => 1,
            Header::Luks2(_) => 2,
        }
    }

    /// What is odd about the header without making it unusable.
    pub fn notes(&self) -> &[String] {
        match self {
            Header::Luks1(_) => &[],
            Header::Luks2(h) => &h.notes,
        }
    }

    /// Why this volume may be looked at but not opened (checks 13, 42, 44).
    pub fn check_activatable(&self) -> Result<()> {
        let h = match self {
            Header::Luks1(_) => return Ok(()),
            Header::Luks2(h) => h,
        };
        check_requirements(&h.metadata)?;
        if h.metadata.regular_segments().next().is_none() {
            return Err(Error::unsupported("the header names no segment to open"));
        }
        for (id, segment) in h.metadata.regular_segments() {
            check_segment(id, segment)?;
        }
        Ok(())
    }
}

/// Every requirement stops activation: those we know mean work that we do not do, and what an unknown
/// one means nobody can say.
pub(crate) fn check_requirements(metadata: &Metadata) -> Result<()> {
    let Some(requirement) = metadata.config.requirements.first() else { return Ok(()) };
    Err(Error::unsupported(match crate::reencrypt::describe(metadata) {
        Some(state) => format!(
            "a re-encryption is under way ({state}); finish it with: varve crypt reencrypt \
             --resume-only (or cryptsetup reencrypt --resume-only)"
        ),
        None => format!("the volume requires \"{}\" (check 13)", printable(requirement)),
    }))
}

fn check_segment(id: u32, segment: &Segment) -> Result<()> {
    match &segment.kind {
        SegmentKind::Crypt { integrity: Some(integrity), encryption, .. } => {
            integrity::check_segment(id, encryption, integrity, segment.size).map(drop)
        }
        SegmentKind::Crypt { encryption, .. } => CipherSpec::parse(encryption)?.check_supported(),
        SegmentKind::Linear => Err(Error::refused(
            41,
            format!("segment {id} is not encrypted, and no re-encryption explains it"),
        )),
        SegmentKind::Unknown(kind) => Err(Error::unsupported(format!(
            "segment {id} has the unknown type \"{}\"",
            printable(kind)
        ))),
    }
}
