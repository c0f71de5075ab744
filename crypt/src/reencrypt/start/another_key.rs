//! Another volume key, in slots of its own beside the old ones.

use std::sync::Arc;

use serde_json::{Value, json};
use varve_block::{BlockDevice, Rt};

use super::Sides;
use super::room::{areas, free, gap};
use crate::create::{DRAWS_MAX, area_step};
use crate::error::{Error, Result};
use crate::format::luks2::Luks2;
use crate::format::metadata::{DIGESTS_MAX, OBJECTS_MAX};
use crate::key::Key;
use crate::manage::{AreaCipher, Fresh, MetadataEditor, draw, fresh_digest, tree};
use crate::reencrypt::keys::{self, Opened};
use crate::reencrypt::plan::Start;
use crate::reencrypt::state::{Side, SideCipher};
use crate::unlock::UnlockOptions;

/// Draws the new key and puts it into slots of its own, beside the old ones.
pub(super) async fn new_key<D: BlockDevice + Clone>(
    rt: &Rt,
    editor: &MetadataEditor<D>,
    options: &UnlockOptions,
    plan: &Start,
    (old, total): (&Side, u64),
    tree: &mut Value,
) -> Result<Sides> {
    let h = editor.header();
    let cipher = old.cipher.as_ref().expect("a LUKS2 volume");
    let every = options.slot.is_none();
    let opened =
        keys::open(rt, editor.device(), h, cipher.digest, options, &plan.secrets, every).await?;
    check_covered(h, cipher.digest, &opened, plan)?;
    let key = unequal(plan.key_bits as usize / 8)?;
    let id = free(DIGESTS_MAX, |id| h.metadata.digests.contains_key(&id), "digests")?;
    let (how, copy) = (plan.protection, key.duplicate());
    let (iterations, salt, digest, hash) = rt.offload(move || fresh_digest(how, &copy)).await?;
    let mut taken = areas(&h.metadata);
    let mut names = Vec::new();
    for (from, secret) in &opened.slots {
        let slot = free(
            OBJECTS_MAX,
            |id| h.metadata.keyslots.contains_key(&id) || names.contains(&id.to_string()),
            "keyslots",
        )?;
        let len = area_step(key.len());
        let at = gap(h, &taken, len)?;
        taken.push((at, len));
        let value = store(rt, editor, plan, &key, &plan.secrets[*secret], at).await?;
        put_slot(tree, *from, slot, value);
        names.push(slot.to_string());
    }
    let mut value = tree::digest(hash, iterations, &salt, &digest, "", None);
    value["keyslots"] = json!(names);
    tree["digests"][id.to_string()] = value;
    let last = Side {
        cipher: Some(SideCipher {
            spec: plan.cipher.clone(),
            sector_size: plan.sector_size.unwrap_or(cipher.sector_size),
            iv_tweak: cipher.iv_tweak,
            digest: id,
        }),
        ..old.clone()
    };
    let keys = vec![opened.key, key];
    Ok(Sides { previous: old.clone(), last, keys, shift: None, total })
}

/// Nobody loses access without having been told.
fn check_covered(h: &Luks2, digest: u32, opened: &Opened, plan: &Start) -> Result<()> {
    let all = &h.metadata.digests[&digest].keyslots;
    let missing: Vec<String> = all
        .iter()
        .filter(|slot| !opened.slots.iter().any(|(s, _)| s == *slot))
        .map(u32::to_string)
        .collect();
    if missing.is_empty() || plan.drop_other_keys {
        return Ok(());
    }
    Err(Error::Options(format!(
        "no given secret opens keyslot {}, which would be lost with the old key: give its secret as \
         well (--also-key-file, --also-passphrase-file), or --drop-other-keys",
        missing.join(", ")
    )))
}

fn unequal(len: usize) -> Result<Key> {
    for _ in 0..DRAWS_MAX {
        let key = draw(len)?;
        if !key.halves_equal() {
            return Ok(key);
        }
    }
    Err(Error::Random("it gives keys with equal halves".into()))
}

/// An area of the new key under one secret, proven on the device.
async fn store<D: BlockDevice + Clone>(
    rt: &Rt,
    editor: &MetadataEditor<D>,
    plan: &Start,
    key: &Key,
    secret: &Arc<Key>,
    at: u64,
) -> Result<Value> {
    let cipher = AreaCipher::default();
    let (how, area, secret, copy) =
        (plan.protection, cipher.clone(), Arc::clone(secret), key.duplicate());
    let fresh = rt.offload(move || Fresh::make(how, area, &copy, &secret)).await?;
    fresh.store(editor.device(), at, key).await?;
    Ok(tree::keyslot(&tree::NewKeyslot {
        kdf: &fresh.kdf,
        af_hash: how.hash,
        key_len: key.len(),
        area_offset: at,
        area_size: area_step(key.len()),
        area_cipher: &cipher.spec,
        area_key_len: cipher.key_len,
    }))
}

/// A slot beside the one whose secret it has: with its priority, and in the same tokens.
fn put_slot(tree: &mut Value, from: u32, slot: u32, mut value: Value) {
    let from = from.to_string();
    if let Some(priority) = tree["keyslots"][&from].get("priority") {
        value["priority"] = priority.clone();
    }
    tree["keyslots"][slot.to_string()] = value;
    let tokens = tree.get_mut("tokens").and_then(Value::as_object_mut);
    for (_, token) in tokens.into_iter().flatten() {
        if let Some(list) = token.get_mut("keyslots").and_then(Value::as_array_mut)
            && list.iter().any(|id| *id == from)
        {
            list.push(slot.to_string().into());
        }
    }
}
