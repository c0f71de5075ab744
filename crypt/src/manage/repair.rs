//! Repair of a header that can still be read, and only when somebody asks for it.

use varve_block::BlockDevice;
use zeroize::Zeroizing;

use super::editor::MetadataEditor;
use crate::error::{Error, Result};
use crate::format::luks2::{HeaderCopy, OtherCopy};
use crate::header::{HEAD_LEN, Header};

/// What is wrong with a header that opens.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Damage {
    /// The copy that is written again.
    pub rewrites: Option<HeaderCopy>,
    /// The metadata are written again without what does not belong there.
    pub cleans: bool,
    /// In words.
    pub notes: Vec<String>,
}

impl Damage {
    /// There is nothing to do.
    pub fn is_none(&self) -> bool {
        self.rewrites.is_none() && !self.cleans
    }
}

/// Looks, and writes nothing.
pub async fn damage<D: BlockDevice>(device: &D, copy: Option<HeaderCopy>) -> Result<Damage> {
    match Header::read(device, copy).await? {
        Header::Luks1(_) => Ok(Damage { rewrites: None, cleans: false, notes: Vec::new() }),
        Header::Luks2(h) => Ok(Damage {
            rewrites: (h.other != OtherCopy::Same).then(|| h.copy.other()),
            cleans: h.metadata.notes.iter().any(|n| n.contains("leftover")),
            notes: h.notes.clone(),
        }),
    }
}

/// The bytes that a repair may change: both headers, whatever is in their place now.
pub async fn before_repair<D: BlockDevice>(device: &D) -> Result<Zeroizing<Vec<u8>>> {
    let len = device.geometry().len.bytes().min(HEAD_LEN);
    crate::io::read_bytes(device, 0, len).await
}

/// Makes both copies of a LUKS2 header alike, from the one that counts or the one that is named.
pub async fn repair<D: BlockDevice + Clone>(
    device: &D,
    copy: Option<HeaderCopy>,
) -> Result<Damage> {
    let found = damage(device, copy).await?;
    if found.is_none() {
        return Ok(found);
    }
    let mut editor = MetadataEditor::open(device.clone(), copy).await?;
    editor.heal().await?;
    if found.cleans {
        // The tree in memory is clean already: writing it is all there is to do.
        editor.update(|_| Ok(())).await?;
    }
    let left = damage(device, None).await?;
    if left.is_none() {
        Ok(found)
    } else {
        Err(Error::Options(format!("the repair did not last: {}", left.notes.join("; "))))
    }
}
