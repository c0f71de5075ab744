//! The one way in which LUKS2 metadata change on a device.
//!
//! ```text
//! edit the tree --> parse it as a reader would --> seqid + 1, a fresh salt per copy
//!      one copy:  binary block without checksum, JSON area, binary block; flush; read back, compare
//!      the other: the same
//! ```
//!
//! # What a power cut leaves
//!
//! The state before or the state after, never a third one. With two good copies the primary is written
//! first; while it is torn, the secondary holds the old state. When one copy is damaged or *older*, that
//! copy is written first: to start with the only copy that holds the present state would, at a cut, bring
//! back the older one, whose keyslot areas may have been wiped since.
//!
//! Metadata promise what they name, so its order is the caller's: write an area and flush it, then
//! update; and what an update removed is nobody's after it.
//!
//! # Who else writes
//!
//! A device that is opened for writing is locked (the lock that the reference takes on files, exclusive
//! open on block devices). In case somebody does not ask for locks, the header is read again before each
//! update, and one that is not what was loaded is left alone (check 49).

use serde_json::Value;
use varve_block::BlockDevice;

use crate::error::{Error, Result, printable};
use crate::format::luks2::{BINARY_LEN, HeaderCopy, LABEL_MAX, Luks2, OtherCopy, recover};
use crate::format::metadata::{KNOWN_REQUIREMENTS, Metadata};
use crate::header::Header;
use crate::key;

/// The checksum in the binary block.
const CHECKSUM: std::ops::Range<usize> = 448..512;

/// What may be changed in a header. The rest follows from the device.
#[derive(Clone, Debug, PartialEq)]
pub struct Draft {
    /// The whole JSON tree, with what we do not know in it.
    pub json: Value,
    pub label: String,
    pub subsystem: String,
    pub uuid: String,
}

/// The LUKS2 header of a device, to be changed.
pub struct MetadataEditor<D> {
    device: D,
    header: Luks2,
    /// The copy that the operator named.
    only: Option<HeaderCopy>,
    /// A write failed: what is on the device has to be looked at again.
    lost: bool,
}

impl<D: BlockDevice> MetadataEditor<D> {
    /// Reads the header. `only` takes that copy whatever the other says, and makes the next update
    /// overwrite the other.
    pub async fn open(device: D, only: Option<HeaderCopy>) -> Result<MetadataEditor<D>> {
        match Header::read(&device, only).await? {
            Header::Luks2(header) => {
                Ok(MetadataEditor { device, header: *header, only, lost: false })
            }
            Header::Luks1(_) => Err(Error::unsupported("a LUKS1 header has no metadata to edit")),
        }
    }

    /// The header as it is on the device.
    pub fn header(&self) -> &Luks2 {
        &self.header
    }

    /// Where the header lies.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Makes the change that `edit` makes to the draft. When this returns, both copies are durable and
    /// were read back. After an error the device holds the old state or the new one, and this editor
    /// writes no more.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the edited tree breaks a rule of the format: nothing was written.
    /// [`Error::Unsupported`] when the header requires what we do not know.
    pub async fn update(&mut self, edit: impl FnOnce(&mut Draft) -> Result<()>) -> Result<&Luks2> {
        let next = self.next(edit)?;
        let copies = encode(&next)?;
        let first = match self.still_ours().await? {
            (_, OtherCopy::Same) => HeaderCopy::Primary,
            (present, _) => present.other(),
        };
        self.lost = true;
        for copy in [first, first.other()] {
            let (at, bytes) = &copies[copy.index()];
            self.write_copy(copy, *at, bytes).await?;
        }
        self.lost = false;
        self.header = next;
        self.only = None;
        Ok(&self.header)
    }

    /// Writes the copy that was not chosen again from the one that was, when they are not the same.
    /// Says whether it was necessary.
    ///
    /// # Errors
    /// [`Error::Refused`] when both copies are good and neither is newer, until the operator has named
    /// the one to keep.
    pub async fn heal(&mut self) -> Result<bool> {
        if self.header.other == OtherCopy::Same {
            return Ok(false);
        }
        if self.header.other == OtherCopy::Different && self.only.is_none() {
            return Err(Error::refused(
                14,
                "both header copies are good and they differ; name the copy to keep",
            ));
        }
        self.may_be_written(&self.header.label, &self.header.subsystem)?;
        let copies = encode(&self.header)?;
        let (present, _) = self.still_ours().await?;
        let copy = present.other();
        let (at, bytes) = &copies[copy.index()];
        self.lost = true;
        self.write_copy(copy, *at, bytes).await?;
        self.lost = false;
        self.header.other = OtherCopy::Same;
        self.only = None;
        Ok(true)
    }

    fn next(&self, edit: impl FnOnce(&mut Draft) -> Result<()>) -> Result<Luks2> {
        let h = &self.header;
        let mut draft = Draft {
            json: h.metadata.json.clone(),
            label: h.label.clone(),
            subsystem: h.subsystem.clone(),
            uuid: h.uuid.clone(),
        };
        edit(&mut draft)?;
        self.may_be_written(&draft.label, &draft.subsystem)?;
        if uuid::Uuid::try_parse(&draft.uuid).is_err() && draft.uuid != h.uuid {
            return Err(Error::Options(format!("\"{}\" is not a UUID", printable(&draft.uuid))));
        }
        let metadata = Metadata::parse("changed LUKS2 header", draft.json, h.hdr_size)?;
        let end = metadata.areas_end(h.hdr_size);
        let len = self.device.geometry().len.bytes();
        if end > len {
            return Err(Error::Options(format!(
                "headers and keyslots would need {end} bytes, the device has {len}"
            )));
        }
        let seqid = h.seqid.checked_add(1);
        Ok(Luks2 {
            seqid: seqid.ok_or_else(|| Error::unsupported("the header's seqid is used up"))?,
            label: draft.label,
            subsystem: draft.subsystem,
            uuid: draft.uuid,
            copy: HeaderCopy::Primary,
            other: OtherCopy::Same,
            notes: metadata.notes.clone(),
            metadata,
            ..h.clone()
        })
    }

    /// What must hold before anything of ours goes into this header.
    fn may_be_written(&self, label: &str, subsystem: &str) -> Result<()> {
        if self.lost {
            return Err(Error::Options(
                "the header was not written to its end; read it again".into(),
            ));
        }
        let unknown = |r: &&String| !KNOWN_REQUIREMENTS.contains(&r.as_str());
        if let Some(requirement) = self.header.metadata.config.requirements.iter().find(unknown) {
            return Err(Error::unsupported(format!(
                "the volume requires \"{}\", nothing is written to it (check 13)",
                printable(requirement)
            )));
        }
        for (name, text) in [("label", label), ("subsystem", subsystem)] {
            // A replacement character stands for bytes that would be lost.
            if text.len() > LABEL_MAX || text.contains(['\0', char::REPLACEMENT_CHARACTER]) {
                return Err(Error::Options(format!(
                    "the {name} must be UTF-8 text of at most {LABEL_MAX} bytes; set another one"
                )));
            }
        }
        Ok(())
    }

    /// The header on the device is the one that was loaded. Gives the copy it was found in, and the
    /// state of the other.
    async fn still_ours(&self) -> Result<(HeaderCopy, OtherCopy)> {
        let len = self.device.geometry().len.bytes();
        let head =
            crate::io::read_bytes(&self.device, 0, len.min(2 * self.header.hdr_size)).await?;
        let changed = |now: &str| {
            Error::Options(format!(
                "{}: somebody else changed the header (seqid {} was read, now {now}); nothing was \
                 written",
                self.device.geometry().dev,
                self.header.seqid
            ))
        };
        let now = recover(&head, len, self.only).map_err(|_| changed("unreadable"))?;
        let facts = |h: &Luks2| (h.seqid, h.uuid.clone(), h.label.clone(), h.subsystem.clone());
        if facts(&now) != facts(&self.header) || now.metadata.json != self.header.metadata.json {
            return Err(changed(&now.seqid.to_string()));
        }
        Ok((now.copy, now.other))
    }

    /// One copy, durable and compared. The checksum comes last: until then the copy is plainly bad.
    async fn write_copy(&self, copy: HeaderCopy, at: u64, bytes: &[u8]) -> Result<()> {
        let device = &self.device;
        let (binary, area) = bytes.split_at(usize::try_from(BINARY_LEN).expect("4096"));
        let mut unsealed = binary.to_vec();
        unsealed[CHECKSUM].fill(0);
        crate::io::write_bytes(device, at, &unsealed).await?;
        crate::io::write_bytes(device, at + BINARY_LEN, area).await?;
        crate::io::write_bytes(device, at, binary).await?;
        device.flush().await?;
        let stored = crate::io::read_bytes(device, at, bytes.len() as u64).await?;
        if *stored != bytes {
            return Err(Error::NotStored { dev: device.geometry().dev, what: copy.what() });
        }
        tracing::debug!(dev = %device.geometry().dev, copy = ?copy, "LUKS2 header copy written");
        Ok(())
    }
}

fn encode(header: &Luks2) -> Result<crate::format::luks2::EncodedCopies> {
    header.encode(&mut key::fill_random)?.ok_or_else(|| {
        Error::Options(format!(
            "the metadata do not fit into a header of {} bytes",
            header.hdr_size
        ))
    })
}

#[cfg(test)]
mod tests;
