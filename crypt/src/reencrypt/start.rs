//! How an operation begins: new key, new slots, and one write of the header that changes everything.
//!
//! Key areas lie in gaps that nothing names until that write, so a cut before it has changed nothing.

use std::sync::Arc;

use serde_json::{Value, json};
use varve_block::{BlockDevice, Geometry, Rt};

use super::digest;
use super::keys::{self, Opened};
use super::plan::{Protect, Start};
use super::position::Position;
use super::run::{Devices, Reencryption};
use super::segments::{Layout, mapped, whole};
use super::shift::Shift;
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
    /// The payload moves.
    shift: Option<Shift>,
    /// Bytes of payload.
    total: u64,
}

/// A header that says that everything is still to be done, and the keys of both sides, old one first.
pub(super) struct Composed {
    pub(super) tree: Value,
    pub(super) keys: Vec<Key>,
}

/// Begins a re-encryption. When this returns, the header describes it and nothing was converted yet.
///
/// Encryption makes its header: on a detached header device, or with [`Start::reduce`] at the beginning of
/// the disk itself, from where the payload then moves away. Decryption needs a detached header that is
/// there; when that is one that [`super::export_header`] made, the payload moves back to the beginning.
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
    check_plan(plan, devices.detached)?;
    if let (Mode::Encrypt, Some(reduce)) = (plan.mode, plan.reduce) {
        return super::attached::encrypt(rt, devices, options, plan, reduce).await;
    }
    if plan.mode == Mode::Encrypt {
        make_header(rt, &devices.header, options, plan, None).await?;
    }
    let editor = MetadataEditor::open(devices.header.clone(), options.header_copy).await?;
    if plan.mode == Mode::Decrypt && super::attached::is_export(&editor.header().metadata) {
        return super::attached::decrypt(rt, devices, options, plan, editor).await;
    }
    let geometry = devices.data.geometry();
    let composed = compose(rt, &editor, &geometry, options, plan, None).await?;
    begin(rt, devices, options, editor, composed).await
}

fn check_plan(plan: &Start, detached: bool) -> Result<()> {
    if plan.secrets.is_empty() {
        return Err(Error::Options("a re-encryption needs a secret of the volume".into()));
    }
    if plan.mode != Mode::Encrypt && plan.reduce.is_some() {
        return Err(Error::Options("only an encryption makes the payload shorter".into()));
    }
    if plan.mode != Mode::Reencrypt && detached == plan.reduce.is_some() {
        return Err(Error::unsupported(format!(
            "mode {} with the header on the same device: the payload would have to move; give a \
             detached header, or for an encryption say by how much the payload may shrink",
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
    Ok(())
}

/// What the header will say. Writes keyslot areas that nothing names yet, and nothing else. `moves`: bytes
/// by which the payload moves.
pub(super) async fn compose<H: BlockDevice + Clone>(
    rt: &Rt,
    editor: &MetadataEditor<H>,
    data: &Geometry,
    options: &UnlockOptions,
    plan: &Start,
    moves: Option<u64>,
) -> Result<Composed> {
    let h = editor.header();
    check_requirements(&h.metadata)?;
    let (old, total) = only_segment(h, data, plan, moves)?;
    let mut tree = h.metadata.json.clone();
    let mut sides = match plan.mode {
        Mode::Reencrypt => new_key(rt, editor, options, plan, (&old, total), &mut tree).await?,
        Mode::Encrypt | Mode::Decrypt => {
            let cipher = old.cipher.as_ref().expect("a LUKS2 volume that was just looked at");
            let opened =
                keys::open(rt, editor.device(), h, cipher.digest, options, &plan.secrets, false)
                    .await?;
            let plain = Side { cipher: None, ..old.clone() };
            let keys = vec![opened.key];
            let (previous, last) = match plan.mode {
                Mode::Encrypt => (plain, old),
                _ => (old, plain),
            };
            Sides { previous, last, keys, shift: None, total }
        }
    };
    if let Some(size) = moves {
        sides.place(plan.mode, size, data.len.bytes());
    }
    describe(h, plan, &mut sides, data, &mut tree)?;
    sign(rt, h, plan, &sides, data, &mut tree).await?;
    Ok(Composed { tree, keys: sides.keys })
}

impl Sides {
    /// The payload is somewhere else before and after. How long its first part is, the area may limit.
    fn place(&mut self, mode: Mode, size: u64, data_len: u64) {
        let offset = match mode {
            Mode::Encrypt => {
                self.previous.offset = 0;
                self.previous.size = Some(self.total);
                data_len - size
            }
            _ => {
                self.last.offset = 0;
                0
            }
        };
        self.shift = Some(Shift { size, segment: 0, offset, len: size.min(self.total) });
    }
}

/// Writes the header and takes the operation up.
pub(super) async fn begin<D: BlockDevice + Clone>(
    rt: &Rt,
    devices: &Devices<D>,
    options: &UnlockOptions,
    mut editor: MetadataEditor<D>,
    composed: Composed,
) -> Result<Reencryption<D>> {
    editor
        .update(|draft| {
            draft.json = composed.tree;
            Ok(())
        })
        .await?;
    let op = Operation::parse(editor.header(), devices.data.geometry().len.bytes())?;
    let keys: Vec<&Key> = composed.keys.iter().collect();
    Reencryption::with_keys(rt, devices, options, editor, op, &keys)
}

/// A header for plain data, which will lie at byte `data_offset`. It is written whole before the payload is
/// looked at.
pub(super) async fn make_header<H: BlockDevice + Clone>(
    rt: &Rt,
    device: &H,
    options: &UnlockOptions,
    plan: &Start,
    data_offset: Option<u64>,
) -> Result<()> {
    let format = FormatOptions {
        cipher: plan.cipher.clone(),
        key_bits: plan.key_bits,
        hash: plan.protection.hash,
        pbkdf: plan.protection.pbkdf,
        cost: plan.protection.cost,
        sector_size: Some(plan.sector_size.unwrap_or(SectorSize::S512)),
        detached: true,
        data_offset,
        ..FormatOptions::new(LuksVersion::Luks2)
    };
    crate::create::format(rt, device, &format, &plan.secrets[0]).await?;
    for secret in &plan.secrets[1..] {
        let proof = Proof::Secret(Arc::clone(&plan.secrets[0]));
        let new = NewKey { secret: Arc::clone(secret), slot: None, protection: plan.protection };
        crate::manage::add_key(rt, device, options, &proof, &new).await?;
    }
    Ok(())
}

/// The volume as one side, and its length: one crypt segment to the end of the device.
fn only_segment(
    h: &Luks2,
    data: &Geometry,
    plan: &Start,
    moves: Option<u64>,
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
    let mut total = data.len.bytes().saturating_sub(segment.offset);
    if plan.mode == Mode::Encrypt {
        // The room for the copy of the first part.
        total = total.saturating_sub(moves.unwrap_or(0));
    }
    let new = plan.sector_size.unwrap_or(size);
    let unit = (size.max(new).bytes() as u64).max(data.block.bytes());
    if total == 0 || !total.is_multiple_of(unit) {
        return Err(Error::Options(format!(
            "the payload on {} has {total} bytes: a multiple of {unit} is needed",
            data.dev
        )));
    }
    let side = Side { segment: 0, offset: segment.offset, size: None, cipher: Some(cipher) };
    Ok((side, total))
}

/// Draws the new key and puts it into slots of its own, beside the old ones.
async fn new_key<D: BlockDevice + Clone>(
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
fn describe(
    h: &Luks2,
    plan: &Start,
    sides: &mut Sides,
    data: &Geometry,
    tree: &mut Value,
) -> Result<()> {
    let now = Metadata::parse("changed LUKS2 header", without_segments(h, tree), h.hdr_size)?;
    let taken = areas(&now);
    let (at, room) = gaps(h, &taken).into_iter().max_by_key(|(_, room)| *room).unwrap_or((0, 0));
    let unit = block_of(sides, data);
    let copied = sides.shift.is_some() && plan.mode == Mode::Encrypt;
    let resilience = resilience(plan, sides, unit)?;
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
    // Nothing is ever written there when the payload is its own journal.
    let size = if copied { AREA_ALIGN } else { room - room % AREA_ALIGN };
    if let Some(shift) = &mut sides.shift
        && !copied
    {
        let room = super::state::room(resilience, size);
        shift.len = shift.len.min(room - room % unit);
    }
    let area_type = match sides.shift {
        Some(_) => super::shift::area_type(resilience),
        None => resilience.name(),
    };
    let mut area = json!({
        "type": area_type,
        "offset": at.to_string(),
        "size": size.to_string(),
    });
    if let Resilience::Checksum { hash, block } = resilience {
        area["hash"] = hash.name().into();
        area["sector_size"] = block.into();
    }
    if let Some(shift) = &sides.shift {
        area["shift_size"] = shift.size.to_string().into();
    }
    tree["keyslots"][slot.to_string()] = json!({
        "type": "reencrypt",
        "key_size": 1,
        "priority": 0,
        "mode": plan.mode.name(),
        "direction": plan.direction_of(sides.shift.is_some()).name(),
        "area": area,
    });
    let slot = slot.to_string();
    tree["digests"][digest.to_string()] =
        tree::digest(Hash::Sha256, 1000, &[0; 32], &[0; 32], &slot, None);
    put_segments(plan, sides, tree)?;
    if !tree["config"]["requirements"].is_object() {
        tree["config"]["requirements"] = json!({});
    }
    let moves_back = sides.shift.is_some() && plan.mode == Mode::Decrypt;
    let requirement = if moves_back { "online-reencrypt-v3" } else { "online-reencrypt-v2" };
    tree["config"]["requirements"]["mandatory"] = json!([requirement]);
    Ok(())
}

/// What was asked for. A first part that has a copy needs none.
fn resilience(plan: &Start, sides: &Sides, block: u64) -> Result<Resilience> {
    match (plan.protect, sides.shift.is_some()) {
        (_, true) if plan.mode == Mode::Encrypt => Ok(Resilience::None),
        (Protect::None, true) => Err(Error::Options(
            "the first part of a decryption in place needs resilience datashift-checksum or \
             datashift-journal"
                .into(),
        )),
        (Protect::None, false) => Ok(Resilience::None),
        (Protect::Journal, _) => Ok(Resilience::Journal),
        (Protect::Checksum(hash), _) => Ok(Resilience::Checksum { hash, block }),
    }
}

/// Nothing is done, and the backup segments say what was and what will be.
fn put_segments(plan: &Start, sides: &Sides, tree: &mut Value) -> Result<()> {
    let layout = Layout {
        mode: plan.mode,
        direction: plan.direction_of(sides.shift.is_some()),
        previous: &sides.previous,
        last: &sides.last,
        shift: sides.shift.as_ref(),
    };
    let digest = |side: &Side| side.cipher.as_ref().map(|c| c.digest);
    let one = |side: &Side, flag| (whole(side, flag), digest(side));
    let mut backups =
        vec![one(&sides.previous, "backup-previous"), one(&sides.last, "backup-final")];
    if let Some(shift) = &sides.shift {
        let cipher = sides.previous.cipher.as_ref();
        let flag = Some("backup-moved-segment");
        let value = mapped(cipher, shift.offset, 0, Some(shift.len), flag);
        backups.push((value, digest(&sides.previous)));
    }
    let moved = sides.shift.as_ref().map_or(0, |shift| shift.len);
    let position = Position { done: 0, hot: 0, total: sides.total, fixed: false, moved };
    layout.put(tree, position, backups)
}

/// The tree with the segments of the header: what is in it besides is being made.
fn without_segments(h: &Luks2, tree: &Value) -> Value {
    let mut now = tree.clone();
    now["segments"] = h.metadata.json["segments"].clone();
    now
}

/// Bytes that one hash covers: 4096, as the reference has it, where that divides the payload.
fn block_of(sides: &Sides, data: &Geometry) -> u64 {
    let size = |s: &Side| s.cipher.as_ref().map_or(512, |c| c.sector_size.bytes() as u64);
    let least = size(&sides.previous).max(size(&sides.last)).max(data.block.bytes());
    if sides.total.is_multiple_of(least.max(4096)) { least.max(4096) } else { least }
}

/// Puts the digest over all of it in its place.
async fn sign(
    rt: &Rt,
    h: &Luks2,
    plan: &Start,
    sides: &Sides,
    data: &Geometry,
    tree: &mut Value,
) -> Result<()> {
    let metadata = Metadata::parse("changed LUKS2 header", tree.clone(), h.hdr_size)?;
    let next = Luks2 { metadata, ..h.clone() };
    let op = Operation::parse(&next, data.len.bytes())?;
    let keys: Vec<&Key> = sides.keys.iter().collect();
    let string = digest::material(&next.metadata, &op, &keys)?;
    let how = plan.protection;
    let (iterations, salt, digest, hash) = rt.offload(move || fresh_digest(how, &string)).await?;
    let (id, _) = next.metadata.digest_of(op.slot).expect("the one that was put there");
    let slot = op.slot.to_string();
    tree["digests"][id.to_string()] = tree::digest(hash, iterations, &salt, &digest, &slot, None);
    Ok(())
}
