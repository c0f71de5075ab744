//! Keys of a volume: added, changed, removed.
//!
//! ```text
//! add      area written, flushed, proven --> header names it
//! change   the same with a second area   --> header names the new one in place of the old --> old area destroyed
//! remove   area destroyed, flushed       --> header forgets it
//! ```
//!
//! # What a power cut leaves
//!
//! *Add*: the slot, or noise in an area that nothing names. *Change* (LUKS2): one write of the metadata
//! switches over, so the old key works, or the new, and at every moment exactly one of them; LUKS1 has
//! fixed areas, so the new key gets a free slot first, and for a moment both work. *Remove*: the slot as
//! it was, a slot that nothing opens any more, or none. The other order could leave a live key in an area
//! that is forgotten.
//!
//! A key area is proven before the header names it: the volume key is taken out of what the device gives
//! back, not out of memory.

use std::sync::Arc;

use varve_block::{BlockDevice, Rt};

use super::area::{Protection, destroy};
use super::editor::MetadataEditor;
use super::luks1::Luks1Editor;
use super::put::{Put, PutDigest, add_luks1, draw, free_slot, store};
use super::tree;
use crate::error::{Error, Result, printable};
use crate::format::luks2::Luks2;
use crate::format::metadata::{DIGESTS_MAX, KeyslotKind, SlotKdf};
use crate::header::{Header, check_requirements};
use crate::key::Key;
use crate::keyslot::Verified;
use crate::unlock::{UnlockOptions, try_slots};

/// What proves that somebody may add a key.
#[derive(Clone, Debug)]
pub enum Proof {
    /// A passphrase or the content of a key file that opens a slot.
    Secret(Arc<Key>),
    /// The volume key itself.
    VolumeKey(Arc<Key>),
}

/// A key to be added.
#[derive(Clone, Debug)]
pub struct NewKey {
    pub secret: Arc<Key>,
    /// `None`: the first free slot.
    pub slot: Option<u32>,
    pub protection: Protection,
}

/// A slot was exchanged for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Changed {
    /// The slot that held the old key.
    pub old: u32,
    /// The slot that holds the new one.
    pub new: u32,
}

/// Adds a key to the volume. `options` say how the proof is tried.
pub async fn add_key<D: BlockDevice + Clone>(
    rt: &Rt,
    device: &D,
    options: &UnlockOptions,
    proof: &Proof,
    new: &NewKey,
) -> Result<u32> {
    let header = changeable(device, options).await?;
    let volume = prove(rt, device, &header, options, proof).await?;
    match header {
        Header::Luks1(_) => add_luks1(rt, device, volume.key, new).await,
        Header::Luks2(_) => {
            let editor = MetadataEditor::open(device.clone(), options.header_copy).await?;
            let digest = volume.digest.expect("a LUKS2 key has a digest");
            let slot = free_slot(editor.header(), new.slot)?;
            let put = Put { slot, digest: PutDigest::Existing(digest), replaces: None };
            store(rt, editor, volume.key, new, put).await?;
            Ok(slot)
        }
    }
}

/// Adds a slot with a fresh random key of `key_bytes` that belongs to no segment (LUKS2).
pub async fn add_unbound_key<D: BlockDevice + Clone>(
    rt: &Rt,
    device: &D,
    options: &UnlockOptions,
    key_bytes: usize,
    new: &NewKey,
) -> Result<u32> {
    if !(1..=512).contains(&key_bytes) {
        return Err(Error::Options(format!("a key of {key_bytes} bytes: 1 to 512")));
    }
    if let Header::Luks1(_) = changeable(device, options).await? {
        return Err(Error::unsupported("LUKS1 knows no unbound keys"));
    }
    let editor = MetadataEditor::open(device.clone(), options.header_copy).await?;
    let slot = free_slot(editor.header(), new.slot)?;
    let taken = &editor.header().metadata.digests;
    let id = (0..DIGESTS_MAX).find(|id| !taken.contains_key(id));
    let id = id.ok_or_else(|| Error::Options("all eight digests are in use".into()))?;
    let key = draw(key_bytes)?;
    let put = Put { slot, digest: PutDigest::New(id), replaces: None };
    store(rt, editor, key, new, put).await?;
    Ok(slot)
}

/// Replaces the key that `old` opens. The volume can be opened at every moment.
pub async fn change_key<D: BlockDevice + Clone>(
    rt: &Rt,
    device: &D,
    options: &UnlockOptions,
    old: &Arc<Key>,
    new: &NewKey,
) -> Result<Changed> {
    let header = changeable(device, options).await?;
    let (opened, _) = try_slots(rt, device, &header, options, old).await?;
    let old_slot = opened.slot.expect("the key came from a slot");
    match header {
        Header::Luks1(_) => {
            let added = add_luks1(rt, device, opened.key, new).await?;
            remove_luks1(device, old_slot).await?;
            Ok(Changed { old: old_slot, new: added })
        }
        Header::Luks2(h) => {
            let slot = match new.slot {
                None => old_slot,
                Some(slot) if slot == old_slot => slot,
                Some(slot) => free_slot(&h, Some(slot))?,
            };
            let digest = opened.digest.expect("a LUKS2 key has a digest");
            let editor = MetadataEditor::open(device.clone(), options.header_copy).await?;
            let area = h.metadata.keyslots.get(&old_slot).map(|s| (s.area_offset, s.area_size));
            let (at, len) = area.expect("the slot was just opened");
            let put = Put { slot, digest: PutDigest::Existing(digest), replaces: Some(old_slot) };
            let editor = store(rt, editor, opened.key, new, put).await?;
            destroy(editor.device(), at, len).await?;
            Ok(Changed { old: old_slot, new: slot })
        }
    }
}

/// Removes the slot that `secret` opens. The last key of a volume only with `even_the_last`.
pub async fn remove_key<D: BlockDevice + Clone>(
    rt: &Rt,
    device: &D,
    options: &UnlockOptions,
    secret: &Arc<Key>,
    even_the_last: bool,
) -> Result<u32> {
    let header = changeable(device, options).await?;
    let (opened, _) = try_slots(rt, device, &header, options, secret).await?;
    let slot = opened.slot.expect("the key came from a slot");
    remove(device, header, options, slot, even_the_last).await?;
    Ok(slot)
}

/// Removes a slot by its number, without its secret. With `witness`, only when that secret opens
/// another slot of the volume: somebody who kills a slot can still get in.
pub async fn kill_slot<D: BlockDevice + Clone>(
    rt: &Rt,
    device: &D,
    options: &UnlockOptions,
    slot: u32,
    witness: Option<&Arc<Key>>,
    even_the_last: bool,
) -> Result<()> {
    let header = changeable(device, options).await?;
    if let Some(secret) = witness {
        let (opened, _) = try_slots(rt, device, &header, options, secret).await?;
        if opened.slot == Some(slot) && !even_the_last {
            return Err(Error::Options(format!(
                "the key that was given is that of slot {slot} itself; give one that stays"
            )));
        }
    }
    remove(device, header, options, slot, even_the_last).await
}

/// Destroys every key of the volume. Its data is lost to everybody who has no backup of the header.
/// Gives the slots that were in use.
pub async fn erase<D: BlockDevice + Clone>(
    device: &D,
    options: &UnlockOptions,
) -> Result<Vec<u32>> {
    let slots = match changeable(device, options).await? {
        Header::Luks1(h) => {
            let slots: Vec<u32> =
                (0u32..).zip(&h.slots).filter(|(_, s)| s.active).map(|(id, _)| id).collect();
            for &slot in &slots {
                remove_luks1(device, slot).await?;
            }
            slots
        }
        Header::Luks2(h) => {
            for slot in h.metadata.keyslots.values() {
                destroy(device, slot.area_offset, slot.area_size).await?;
            }
            let slots: Vec<u32> = h.metadata.keyslots.keys().copied().collect();
            let mut editor = MetadataEditor::open(device.clone(), options.header_copy).await?;
            editor
                .update(|draft| {
                    slots.iter().for_each(|&slot| tree::remove_keyslot(&mut draft.json, slot));
                    Ok(())
                })
                .await?;
            slots
        }
    };
    Ok(slots)
}

/// The header, if its keyslots may be changed: not while a re-encryption is under way, which holds
/// keys in slots of its own.
async fn changeable<D: BlockDevice>(device: &D, options: &UnlockOptions) -> Result<Header> {
    let header = Header::read(device, options.header_copy).await?;
    if let Header::Luks2(h) = &header {
        check_requirements(&h.metadata)?;
    }
    Ok(header)
}

/// The volume key, from what proves it. A key that opens no segment is not the volume's.
async fn prove<D: BlockDevice + Clone>(
    rt: &Rt,
    device: &D,
    header: &Header,
    options: &UnlockOptions,
    proof: &Proof,
) -> Result<Verified> {
    let verified = match proof {
        Proof::Secret(secret) => try_slots(rt, device, header, options, secret).await?.0,
        Proof::VolumeKey(key) => header.verify_volume_key(key.duplicate(), &options.limits)?,
    };
    if let (Header::Luks2(h), Some(id)) = (header, verified.digest)
        && h.metadata.digests.get(&id).is_none_or(|d| d.segments.is_empty())
    {
        return Err(Error::Options("that key belongs to no volume (an unbound keyslot)".into()));
    }
    Ok(verified)
}

async fn remove<D: BlockDevice + Clone>(
    device: &D,
    header: Header,
    options: &UnlockOptions,
    slot: u32,
    even_the_last: bool,
) -> Result<()> {
    let last = match &header {
        Header::Luks1(h) => {
            let used = |i: usize| h.slots.get(i).is_some_and(|s| s.active);
            if !usize::try_from(slot).is_ok_and(used) {
                return Err(Error::Options(format!("there is no keyslot {slot} in use")));
            }
            h.slots.iter().filter(|s| s.active).count() == 1
        }
        Header::Luks2(h) => is_last(h, slot)?,
    };
    if last && !even_the_last {
        return Err(Error::Options(format!(
            "keyslot {slot} holds the last key: without it all data is lost; --force removes it"
        )));
    }
    match header {
        Header::Luks1(_) => remove_luks1(device, slot).await,
        Header::Luks2(h) => {
            let mut editor = MetadataEditor::open(device.clone(), options.header_copy).await?;
            let area = h.metadata.keyslots.get(&slot).expect("just looked at");
            destroy(editor.device(), area.area_offset, area.area_size).await?;
            editor
                .update(|draft| {
                    tree::remove_keyslot(&mut draft.json, slot);
                    Ok(())
                })
                .await?;
            Ok(())
        }
    }
}

/// Whether no other slot that somebody could open holds this slot's key.
fn is_last(h: &Luks2, slot: u32) -> Result<bool> {
    let m = &h.metadata;
    let Some(keyslot) = m.keyslots.get(&slot) else {
        return Err(Error::Options(format!("there is no keyslot {slot} in use")));
    };
    if let KeyslotKind::Unknown(kind) = &keyslot.kind {
        return Err(Error::unsupported(format!(
            "keyslot {slot} has the unknown type \"{}\"",
            printable(kind)
        )));
    }
    let Some((_, digest)) = m.digest_of(slot) else { return Ok(false) };
    if digest.segments.is_empty() {
        return Ok(false);
    }
    let opens = |other: &u32| {
        m.keyslots.get(other).is_some_and(|s| match &s.kind {
            KeyslotKind::Luks2(luks2) => !matches!(luks2.kdf, SlotKdf::Unknown(_)),
            _ => false,
        })
    };
    Ok(!digest.keyslots.iter().any(|other| *other != slot && opens(other)))
}

async fn remove_luks1<D: BlockDevice + Clone>(device: &D, slot: u32) -> Result<()> {
    let mut editor = Luks1Editor::open(device.clone()).await?;
    let slot = usize::try_from(slot).expect("below eight");
    let at = u64::from(editor.header.slots[slot].material_offset) * 512;
    let len = editor.header.area_sectors() * 512;
    destroy(device, at, len).await?;
    editor.free(slot).await
}
