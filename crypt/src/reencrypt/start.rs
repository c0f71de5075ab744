//! How an operation begins: new key, new slots, and one write of the header that changes everything.
//!
//! Key areas lie in gaps that nothing names until that write, so a cut before it has changed nothing.

use std::sync::Arc;

use serde_json::{Value, json};
use varve_block::{BlockDevice, Rt};

use super::digest;
use super::keys::{self, Opened};
use super::plan::{Protect, Start};
use super::position::Position;
use super::run::{Devices, Reencryption};
use super::segments::{Layout, segment};
use super::state::{Mode, Operation, Resilience, Side, SideCipher};
use crate::cipher::CipherSpec;
use crate::create::{AREA_ALIGN, DRAWS_MAX, FormatOptions, LuksVersion, area_step};
use crate::error::{Error, Result};
use crate::format::luks2::Luks2;
use crate::format::metadata::{DIGESTS_MAX, Metadata, OBJECTS_MAX, Segment, SegmentKind};
use crate::hash::Hash;
use crate::header::check_requirements;
use crate::key::Key;
use crate::manage::{AreaCipher, Fresh, MetadataEditor, NewKey, Proof, draw, fresh_digest, tree};
use crate::unlock::UnlockOptions;
use crate::xts::SectorSize;

/// The keys of both sides, old one first, and what the new header says about the new one.
struct Sides {
    previous: Side,
    last: Side,
    keys: Vec<Key>,
}

/// Begins a re-encryption. When this returns, the header describes it and nothing was converted yet.
///
/// Encryption needs a detached header, which is made here; decryption needs a detached header that is
/// there.
///
/// # Errors
/// [`Error::Options`] and [`Error::Unsupported`] when the volume or the plan does not allow it: nothing was
/// changed. [`Error::WrongKey`] when no secret opens the volume.
pub async fn start<D: BlockDevice + Clone>(
    rt: &Rt,
    devices: &Devices<D>,
    options: &UnlockOptions,
    plan: &Start,
) -> Result<Reencryption<D>> {
    if plan.secrets.is_empty() {
        return Err(Error::Options("a re-encryption needs a secret of the volume".into()));
    }
    if plan.mode != Mode::Reencrypt && !devices.detached {
        return Err(Error::unsupported(format!(
            "mode {} with the header on the same device: the payload would have to move; give a \
             detached header",
            plan.mode.name()
        )));
    }
    if plan.mode != Mode::Decrypt {
        plan.cipher.check_creatable()?;
        if !plan.key_bits.is_multiple_of(8) || !plan.cipher.takes_key(plan.key_bits as usize / 8) {
            return Err(Error::Options(format!(
                "a key of {} bits for {}",
                plan.key_bits, plan.cipher
            )));
        }
    }
    if plan.mode == Mode::Encrypt {
        make_header(rt, devices, options, plan).await?;
    }
    let editor = MetadataEditor::open(devices.header.clone(), options.header_copy).await?;
    let h = editor.header();
    check_requirements(&h.metadata)?;
    let (old, total) = only_segment(h, devices, plan)?;
    let mut tree = h.metadata.json.clone();
    let sides = match plan.mode {
        Mode::Reencrypt => new_key(rt, &editor, options, plan, &old, &mut tree).await?,
        Mode::Encrypt | Mode::Decrypt => {
            let cipher = old.cipher.as_ref().expect("a LUKS2 volume that was just looked at");
            let opened =
                keys::open(rt, &devices.header, h, cipher.digest, options, &plan.secrets, false)
                    .await?;
            let plain = Side { cipher: None, ..old.clone() };
            let keys = vec![opened.key];
            match plan.mode {
                Mode::Encrypt => Sides { previous: plain, last: old.clone(), keys },
                _ => Sides { previous: old.clone(), last: plain, keys },
            }
        }
    };
    describe(h, plan, &sides, total, devices, &mut tree)?;
    sign(rt, h, plan, &sides, devices, &mut tree).await?;
    let mut editor = editor;
    editor
        .update(|draft| {
            draft.json = tree;
            Ok(())
        })
        .await?;
    let op = Operation::parse(editor.header(), devices.data.geometry().len.bytes())?;
    let keys: Vec<&Key> = sides.keys.iter().collect();
    Reencryption::with_keys(rt, devices, options, editor, op, &keys)
}

/// A header for plain data. It is written whole before the payload is looked at.
async fn make_header<D: BlockDevice + Clone>(
    rt: &Rt,
    devices: &Devices<D>,
    options: &UnlockOptions,
    plan: &Start,
) -> Result<()> {
    let format = FormatOptions {
        cipher: plan.cipher.clone(),
        key_bits: plan.key_bits,
        hash: plan.protection.hash,
        pbkdf: plan.protection.pbkdf,
        cost: plan.protection.cost,
        sector_size: Some(plan.sector_size.unwrap_or(SectorSize::S512)),
        detached: true,
        ..FormatOptions::new(LuksVersion::Luks2)
    };
    crate::create::format(rt, &devices.header, &format, &plan.secrets[0]).await?;
    for secret in &plan.secrets[1..] {
        let proof = Proof::Secret(Arc::clone(&plan.secrets[0]));
        let new = NewKey { secret: Arc::clone(secret), slot: None, protection: plan.protection };
        crate::manage::add_key(rt, &devices.header, options, &proof, &new).await?;
    }
    Ok(())
}

/// The volume as one side, and its length: one crypt segment to the end of the device.
fn only_segment<D: BlockDevice>(
    h: &Luks2,
    devices: &Devices<D>,
    plan: &Start,
) -> Result<(Side, u64)> {
    let m = &h.metadata;
    let segments: Vec<(&u32, &Segment)> = m.segments.iter().collect();
    let [(0, segment @ Segment { size: None, .. })] = segments[..] else {
        return Err(Error::unsupported(
            "re-encryption of a volume that is not one segment to the end of its device",
        ));
    };
    let SegmentKind::Crypt { encryption, iv_tweak, sector_size, integrity } = &segment.kind else {
        return Err(Error::unsupported("re-encryption of a segment that is not encrypted"));
    };
    if integrity.is_some() {
        return Err(Error::unsupported("re-encryption of a volume with integrity protection"));
    }
    let spec = CipherSpec::parse(encryption)?;
    spec.check_supported()?;
    let size = SectorSize::new(*sector_size)
        .ok_or_else(|| Error::unsupported(format!("encryption sectors of {sector_size} bytes")))?;
    let digest = m.digests.iter().find(|(_, d)| d.segments.contains(&0)).map(|(id, _)| *id);
    let digest = digest.expect("every crypt segment is named by a digest");
    let cipher = SideCipher { spec, sector_size: size, iv_tweak: *iv_tweak, digest };
    let geometry = devices.data.geometry();
    let total = geometry.len.bytes().saturating_sub(segment.offset);
    let new = plan.sector_size.unwrap_or(size);
    let unit = (size.max(new).bytes() as u64).max(geometry.block.bytes());
    if total == 0 || !total.is_multiple_of(unit) {
        return Err(Error::Options(format!(
            "the payload on {} has {total} bytes: a multiple of {unit} is needed",
            geometry.dev
        )));
    }
    Ok((Side { segment: 0, offset: segment.offset, cipher: Some(cipher) }, total))
}

/// Draws the new key and puts it into slots of its own, beside the old ones.
async fn new_key<D: BlockDevice + Clone>(
    rt: &Rt,
    editor: &MetadataEditor<D>,
    options: &UnlockOptions,
    plan: &Start,
    old: &Side,
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
    Ok(Sides { previous: old.clone(), last, keys: vec![opened.key, key] })
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

fn free(limit: u32, is_taken: impl Fn(u32) -> bool, what: &str) -> Result<u32> {
    (0..limit)
        .find(|&id| !is_taken(id))
        .ok_or_else(|| Error::Options(format!("all {what} are in use; remove one first")))
}

/// Offset and length of every keyslot area.
fn areas(m: &Metadata) -> Vec<(u64, u64)> {
    m.keyslots.values().map(|s| (s.area_offset, s.area_size)).collect()
}

/// The gaps between the areas, in order.
fn gaps(h: &Luks2, taken: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut taken = taken.to_vec();
    taken.sort_unstable();
    let end = h.metadata.areas_end(h.hdr_size);
    let mut at = (2 * h.hdr_size).next_multiple_of(AREA_ALIGN);
    let mut gaps = Vec::new();
    for (start, len) in taken.into_iter().chain([(end, 0)]) {
        if start > at {
            gaps.push((at, start - at));
        }
        at = at.max((start + len).next_multiple_of(AREA_ALIGN));
    }
    gaps
}

fn gap(h: &Luks2, taken: &[(u64, u64)], len: u64) -> Result<u64> {
    let fits = gaps(h, taken).into_iter().find(|(_, room)| *room >= len);
    fits.map(|(at, _)| at).ok_or_else(|| {
        Error::Options(format!(
            "the keyslot region has no gap of {len} bytes left; remove a key first"
        ))
    })
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

/// The reencrypt keyslot, the segments, the requirement; and a digest of nothing in the place of the true
/// one, which is made of all this.
fn describe<D: BlockDevice>(
    h: &Luks2,
    plan: &Start,
    sides: &Sides,
    total: u64,
    devices: &Devices<D>,
    tree: &mut Value,
) -> Result<()> {
    let now = Metadata::parse("changed LUKS2 header", without_segments(h, tree), h.hdr_size)?;
    let taken = areas(&now);
    let (at, room) = gaps(h, &taken).into_iter().max_by_key(|(_, room)| *room).unwrap_or((0, 0));
    let unit = block_of(sides, total, devices);
    let resilience = match plan.protect {
        Protect::None => Resilience::None,
        Protect::Journal => Resilience::Journal,
        Protect::Checksum(hash) => Resilience::Checksum { hash, block: unit },
    };
    let least = match resilience {
        Resilience::None => AREA_ALIGN,
        Resilience::Journal => unit,
        Resilience::Checksum { hash, .. } => hash.size() as u64,
    };
    if room < least.max(AREA_ALIGN) {
        return Err(Error::Options(format!(
            "the keyslot region has no {least} bytes left for the state of the re-encryption; remove a \
             key first, or --drop-other-keys"
        )));
    }
    let slot = free(OBJECTS_MAX, |id| now.keyslots.contains_key(&id), "keyslots")?;
    let digest = free(DIGESTS_MAX, |id| now.digests.contains_key(&id), "digests")?;
    let mut area = json!({
        "type": resilience.name(),
        "offset": at.to_string(),
        "size": (room - room % AREA_ALIGN).to_string(),
    });
    if let Resilience::Checksum { hash, block } = resilience {
        area["hash"] = hash.name().into();
        area["sector_size"] = block.into();
    }
    tree["keyslots"][slot.to_string()] = json!({
        "type": "reencrypt",
        "key_size": 1,
        "priority": 0,
        "mode": plan.mode.name(),
        "direction": plan.direction.name(),
        "area": area,
    });
    let slot = slot.to_string();
    tree["digests"][digest.to_string()] =
        tree::digest(Hash::Sha256, 1000, &[0; 32], &[0; 32], &slot, None);
    let layout = Layout {
        mode: plan.mode,
        direction: plan.direction,
        previous: &sides.previous,
        last: &sides.last,
    };
    let one = |side: &Side, flag| {
        (segment(side, 0, None, Some(flag)), side.cipher.as_ref().map(|c| c.digest))
    };
    let backups = vec![one(&sides.previous, "backup-previous"), one(&sides.last, "backup-final")];
    layout.put(tree, Position { done: 0, hot: 0, total, fixed: false }, backups)?;
    if !tree["config"]["requirements"].is_object() {
        tree["config"]["requirements"] = json!({});
    }
    tree["config"]["requirements"]["mandatory"] = json!(["online-reencrypt-v2"]);
    Ok(())
}

/// The tree with the segments of the header: what is in it besides is being made.
fn without_segments(h: &Luks2, tree: &Value) -> Value {
    let mut now = tree.clone();
    now["segments"] = h.metadata.json["segments"].clone();
    now
}

/// Bytes that one hash covers: 4096, as the reference has it, where that divides the payload.
fn block_of<D: BlockDevice>(sides: &Sides, total: u64, devices: &Devices<D>) -> u64 {
    let size = |s: &Side| s.cipher.as_ref().map_or(512, |c| c.sector_size.bytes() as u64);
    let least =
        size(&sides.previous).max(size(&sides.last)).max(devices.data.geometry().block.bytes());
    if total.is_multiple_of(least.max(4096)) { least.max(4096) } else { least }
}

/// Puts the digest over all of it in its place.
async fn sign<D: BlockDevice>(
    rt: &Rt,
    h: &Luks2,
    plan: &Start,
    sides: &Sides,
    devices: &Devices<D>,
    tree: &mut Value,
) -> Result<()> {
    let metadata = Metadata::parse("changed LUKS2 header", tree.clone(), h.hdr_size)?;
    let next = Luks2 { metadata, ..h.clone() };
    let op = Operation::parse(&next, devices.data.geometry().len.bytes())?;
    let keys: Vec<&Key> = sides.keys.iter().collect();
    let string = digest::material(&next.metadata, &op, &keys)?;
    let how = plan.protection;
    let (iterations, salt, digest, hash) = rt.offload(move || fresh_digest(how, &string)).await?;
    let (id, _) = next.metadata.digest_of(op.slot).expect("the one that was put there");
    let slot = op.slot.to_string();
    tree["digests"][id.to_string()] = tree::digest(hash, iterations, &salt, &digest, &slot, None);
    Ok(())
}
