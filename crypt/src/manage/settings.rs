//! Changes of the metadata alone: names, priorities, flags, tokens.

use serde_json::Value;
use varve_block::BlockDevice;

use super::editor::MetadataEditor;
use super::luks1::Luks1Editor;
use crate::error::{Error, Result, printable};
use crate::format::json;
use crate::format::luks2::HeaderCopy;
use crate::format::metadata::{OBJECTS_MAX, Priority};
use crate::header::Header;

/// Flags of a LUKS2 header that mean something to those who open it.
pub const PERSISTENT_FLAGS: [&str; 7] = [
    "allow-discards",
    "same-cpu-crypt",
    "submit-from-crypt-cpus",
    "no-read-workqueue",
    "no-write-workqueue",
    "no-journal",
    "high_priority",
];

/// What is to be changed; `None` stays as it is.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub label: Option<String>,
    pub subsystem: Option<String>,
    /// When a keyslot is tried.
    pub priority: Option<(u32, Priority)>,
    /// All flags, in place of those that are there.
    pub flags: Option<Vec<String>>,
}

/// Changes settings of a LUKS2 header, all of them in one write.
pub async fn configure<D: BlockDevice>(
    device: D,
    copy: Option<HeaderCopy>,
    settings: Settings,
) -> Result<()> {
    let unknown = |f: &&String| !PERSISTENT_FLAGS.contains(&f.as_str());
    if let Some(flag) = settings.flags.iter().flatten().find(unknown) {
        return Err(Error::Options(format!(
            "\"{}\" is no flag; there are {}",
            printable(flag),
            PERSISTENT_FLAGS.join(", ")
        )));
    }
    let mut editor = MetadataEditor::open(device, copy).await?;
    let slots = &editor.header().metadata.keyslots;
    if let Some((slot, _)) = settings.priority
        && !slots.contains_key(&slot)
    {
        return Err(Error::Options(format!("there is no keyslot {slot} in use")));
    }
    editor
        .update(|draft| {
            draft.label = settings.label.unwrap_or_else(|| draft.label.clone());
            draft.subsystem = settings.subsystem.unwrap_or_else(|| draft.subsystem.clone());
            if let Some((slot, priority)) = settings.priority {
                let number = match priority {
                    Priority::Ignore => 0,
                    Priority::Normal => 1,
                    Priority::Prefer => 2,
                };
                draft.json["keyslots"][slot.to_string()]["priority"] = number.into();
            }
            if let Some(flags) = settings.flags {
                draft.json["config"]["flags"] = flags.into();
            }
            Ok(())
        })
        .await?;
    Ok(())
}

/// Gives the volume another UUID.
///
/// A power cut between the two copies of a LUKS2 header leaves two good ones with different UUIDs, which is
/// what copies of different volumes look like: opening asks for the copy to use, and a repair that
/// names one ends it (check 14). Both open the volume.
pub async fn set_uuid<D: BlockDevice + Clone>(
    device: &D,
    copy: Option<HeaderCopy>,
    uuid: uuid::Uuid,
) -> Result<()> {
    match Header::read(device, copy).await? {
        Header::Luks1(_) => Luks1Editor::open(device.clone()).await?.set_uuid(uuid).await,
        Header::Luks2(_) => {
            let mut editor = MetadataEditor::open(device.clone(), copy).await?;
            editor
                .update(|draft| {
                    draft.uuid = uuid.to_string();
                    Ok(())
                })
                .await
                .map(drop)
        }
    }
}

/// Puts a token into a LUKS2 header: its JSON as it is, after the checks of a reader. Gives its id.
pub async fn import_token<D: BlockDevice>(
    device: D,
    copy: Option<HeaderCopy>,
    text: &[u8],
    id: Option<u32>,
    replace: bool,
) -> Result<u32> {
    let token = json::read_text("token", text)?;
    let mut editor = MetadataEditor::open(device, copy).await?;
    let taken = &editor.header().metadata.tokens;
    let id = match id {
        Some(id) if id >= OBJECTS_MAX => {
            return Err(Error::Options(format!("token {id}: there are 0 to {}", OBJECTS_MAX - 1)));
        }
        Some(id) if taken.contains_key(&id) && !replace => {
            return Err(Error::Options(format!(
                "token {id} is there already; --replace writes over it"
            )));
        }
        Some(id) => id,
        None => (0..OBJECTS_MAX)
            .find(|id| !taken.contains_key(id))
            .ok_or_else(|| Error::Options("all tokens are in use".into()))?,
    };
    editor
        .update(|draft| {
            draft.json["tokens"][id.to_string()] = token;
            Ok(())
        })
        .await?;
    Ok(id)
}

/// Removes a token.
pub async fn remove_token<D: BlockDevice>(
    device: D,
    copy: Option<HeaderCopy>,
    id: u32,
) -> Result<()> {
    let mut editor = MetadataEditor::open(device, copy).await?;
    if !editor.header().metadata.tokens.contains_key(&id) {
        return Err(Error::Options(format!("there is no token {id}")));
    }
    editor
        .update(|draft| {
            if let Some(tokens) = draft.json.get_mut("tokens").and_then(Value::as_object_mut) {
                tokens.shift_remove(&id.to_string());
            }
            Ok(())
        })
        .await?;
    Ok(())
}
