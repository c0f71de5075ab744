//! What the header says of an operation that has done nothing yet, and the digest over all of it.

use serde_json::{Value, json};
use varve_block::{Geometry, Rt};

use super::Sides;
use super::room::{areas, free, gaps};
use crate::create::AREA_ALIGN;
use crate::error::{Error, Result};
use crate::format::luks2::Luks2;
use crate::format::metadata::{DIGESTS_MAX, Metadata, OBJECTS_MAX};
use crate::hash::Hash;
use crate::key::Key;
use crate::manage::{fresh_digest, tree};
use crate::reencrypt::plan::{Protect, Start};
use crate::reencrypt::position::Position;
use crate::reencrypt::segments::{Layout, mapped, whole};
use crate::reencrypt::state::{self, Mode, Operation, Resilience, Side};
use crate::reencrypt::{digest, shift};

/// The reencrypt keyslot, the segments, the requirement; and a digest of nothing in the place of the true
/// one, which is made of all this.
pub(super) fn describe(
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
        let room = state::room(resilience, size);
        shift.len = shift.len.min(room - room % unit);
    }
    let area_type = match sides.shift {
        Some(_) => shift::area_type(resilience),
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
pub(super) async fn sign(
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
