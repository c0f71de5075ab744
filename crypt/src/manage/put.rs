//! Putting a key into a free slot: which slot, which gap, and the order of the writes.

use std::sync::Arc;

use varve_block::{BlockDevice, Rt};

use super::area::{AreaCipher, Fresh, Protection};
use super::editor::MetadataEditor;
use super::keys::NewKey;
use super::luks1::Luks1Editor;
use super::tree;
use crate::cipher::CipherSpec;
use crate::create::{AREA_ALIGN, DIGEST_TIME, DRAWS_MAX, area_step};
use crate::error::{Error, Result};
use crate::format::luks1::Luks1Slot;
use crate::format::luks2::Luks2;
use crate::format::metadata::OBJECTS_MAX;
use crate::hash::Hash;
use crate::kdf::{self, Cost, Kdf, PBKDF2_ITERATIONS_MIN, Pbkdf, SALT_LEN};
use crate::key::{self, Key};

pub(crate) fn draw(len: usize) -> Result<Key> {
    for _ in 0..DRAWS_MAX {
        let key = Key::random(len)?;
        if !key.is_zero() {
            return Ok(key);
        }
    }
    Err(Error::Random("it gives keys of zeroes".into()))
}

/// A slot number that is free.
pub(super) fn free_slot(h: &Luks2, wanted: Option<u32>) -> Result<u32> {
    let taken = &h.metadata.keyslots;
    match wanted {
        Some(slot) if slot >= OBJECTS_MAX => {
            Err(Error::Options(format!("keyslot {slot}: there are 0 to {}", OBJECTS_MAX - 1)))
        }
        Some(slot) if taken.contains_key(&slot) => {
            Err(Error::Options(format!("keyslot {slot} is in use")))
        }
        Some(slot) => Ok(slot),
        None => (0..OBJECTS_MAX)
            .find(|slot| !taken.contains_key(slot))
            .ok_or_else(|| Error::Options("all keyslots are in use".into())),
    }
}

/// The first gap of the keyslot region that `len` bytes fit into.
fn free_area(h: &Luks2, len: u64) -> Result<u64> {
    let mut areas: Vec<(u64, u64)> =
        h.metadata.keyslots.values().map(|s| (s.area_offset, s.area_size)).collect();
    areas.sort_unstable();
    let end = h.metadata.areas_end(h.hdr_size);
    let mut at = 2 * h.hdr_size;
    for (start, size) in areas.into_iter().chain([(end, 0)]) {
        if at.checked_add(len).is_some_and(|e| e <= start) {
            return Ok(at);
        }
        at = at.max((start + size).next_multiple_of(AREA_ALIGN));
    }
    Err(Error::Options(format!(
        "the keyslot region has no gap of {len} bytes left; remove a key first"
    )))
}

/// Which digest recognises a new key.
pub(super) enum PutDigest {
    Existing(u32),
    New(u32),
}

/// Where a new key goes.
pub(super) struct Put {
    pub(super) slot: u32,
    pub(super) digest: PutDigest,
    /// A slot that gives way in the same write.
    pub(super) replaces: Option<u32>,
}

/// Makes, writes and proves an area, and then lets the header name it.
pub(super) async fn store<D: BlockDevice>(
    rt: &Rt,
    mut editor: MetadataEditor<D>,
    volume_key: Key,
    new: &NewKey,
    put: Put,
) -> Result<MetadataEditor<D>> {
    let cipher = AreaCipher::default();
    let len = area_step(volume_key.len());
    let at = free_area(editor.header(), len)?;
    let (how, secret, area_cipher) = (new.protection, Arc::clone(&new.secret), cipher.clone());
    let unbound = matches!(put.digest, PutDigest::New(_));
    let work = move || {
        let fresh = Fresh::make(how, area_cipher, &volume_key, &secret)?;
        let digest = unbound.then(|| fresh_digest(how, &volume_key)).transpose()?;
        Ok::<_, Error>((fresh, digest, volume_key))
    };
    let (fresh, digest, volume_key) = rt.offload(work).await?;
    fresh.store(editor.device(), at, &volume_key).await?;
    let slot = tree::keyslot(&tree::NewKeyslot {
        kdf: &fresh.kdf,
        af_hash: how.hash,
        key_len: volume_key.len(),
        area_offset: at,
        area_size: len,
        area_cipher: &cipher.spec,
        area_key_len: cipher.key_len,
    });
    editor.update(|draft| put_slot(&mut draft.json, &put, slot, digest)).await?;
    Ok(editor)
}

fn put_slot(
    json: &mut serde_json::Value,
    put: &Put,
    mut slot: serde_json::Value,
    digest: Option<FreshDigest>,
) -> Result<()> {
    let id = put.slot.to_string();
    if let Some(old) = put.replaces {
        // Its priority is the operator's and stays.
        if let Some(priority) = json["keyslots"][old.to_string()].get("priority") {
            slot["priority"] = priority.clone();
        }
        if old == put.slot {
            json["keyslots"][&id] = slot;
            return Ok(());
        }
        json["keyslots"][&id] = slot;
        if let PutDigest::Existing(digest) = put.digest {
            tree::name_in_digest(json, digest, put.slot);
        }
        tree::remove_keyslot(json, old);
        return Ok(());
    }
    json["keyslots"][&id] = slot;
    match (&put.digest, digest) {
        (PutDigest::Existing(digest), _) => tree::name_in_digest(json, *digest, put.slot),
        (PutDigest::New(new), Some((iterations, salt, digest, hash))) => {
            let digest = tree::digest(hash, iterations, &salt, &digest, &id, None);
            json["digests"][new.to_string()] = digest;
        }
        (PutDigest::New(_), None) => unreachable!("made with the area"),
    }
    Ok(())
}

/// Iterations, salt, digest, hash.
pub(crate) type FreshDigest = (u32, [u8; SALT_LEN], Vec<u8>, Hash);

/// A digest that will recognise `key`.
pub(crate) fn fresh_digest(how: Protection, key: &Key) -> Result<FreshDigest> {
    let clock = crate::create::wall_clock();
    let mut salt = [0; SALT_LEN];
    key::fill_random(&mut salt)?;
    let mut out = vec![0; how.hash.size()];
    let iterations = match how.cost {
        Cost::Benchmark { .. } => kdf::benchmark_pbkdf2(how.hash, out.len(), DIGEST_TIME, &clock),
        Cost::Forced { .. } => PBKDF2_ITERATIONS_MIN,
    };
    let done = how.hash.pbkdf2(key.bytes(), &salt, iterations, &mut out, &|| false);
    assert!(done, "nobody stops a digest");
    Ok((iterations, salt, out, how.hash))
}

/// LUKS1: the area of a free slot, and then the slot.
pub(super) async fn add_luks1<D: BlockDevice + Clone>(
    rt: &Rt,
    device: &D,
    key: Key,
    new: &NewKey,
) -> Result<u32> {
    let mut editor = Luks1Editor::open(device.clone()).await?;
    let h = &editor.header;
    let hash = h.hash()?;
    if !matches!(new.protection.pbkdf, Pbkdf::Pbkdf2(_)) {
        return Err(Error::Options("LUKS1 knows PBKDF2 only".into()));
    }
    let free = |i: &usize| !h.slots[*i].active;
    let slot = match new.slot {
        None => (0..h.slots.len()).find(free),
        Some(slot) => usize::try_from(slot).ok().filter(|s| *s < h.slots.len()).filter(free),
    };
    let slot = slot.ok_or_else(|| match new.slot {
        Some(slot) => Error::Options(format!("keyslot {slot} is in use, or there is none such")),
        None => Error::Options("all eight keyslots are in use".into()),
    })?;
    let spec: CipherSpec = h.cipher_spec()?;
    let cipher = AreaCipher { spec, key_len: h.key_bytes as usize };
    // One hash for all is in the header.
    let how = Protection { pbkdf: Pbkdf::Pbkdf2(hash), hash, ..new.protection };
    let secret = Arc::clone(&new.secret);
    let work = move || Fresh::make(how, cipher, &key, &secret).map(|fresh| (fresh, key));
    let (fresh, key) = rt.offload(work).await?;
    let material_offset = editor.header.slots[slot].material_offset;
    fresh.store(device, u64::from(material_offset) * 512, &key).await?;
    let Kdf::Pbkdf2 { iterations, salt, .. } = fresh.kdf else { unreachable!("asked for PBKDF2") };
    let stripes = crate::af::STRIPES;
    let active = Luks1Slot { active: true, iterations, salt, material_offset, stripes };
    editor.activate(slot, active).await?;
    Ok(u32::try_from(slot).expect("below eight"))
}
