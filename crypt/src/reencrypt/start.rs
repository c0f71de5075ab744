//! How an operation begins: new key, new slots, and one write of the header that changes everything.
//!
//! Key areas lie in gaps that nothing names until that write, so a cut before it has changed nothing.

mod another_key;
mod describe;
mod room;

use std::sync::Arc;

use serde_json::Value;
use varve_block::{BlockDevice, Geometry, Rt};

use self::another_key::new_key;
use self::describe::{describe, sign};
use super::keys;
use super::plan::Start;
use super::run::{Devices, Reencryption};
use super::shift::Shift;
use super::state::{Mode, Operation, Side, SideCipher};
use crate::cipher::CipherSpec;
use crate::create::{FormatOptions, LuksVersion};
use crate::error::{Error, Result};
use crate::format::luks2::Luks2;
use crate::format::metadata::{Segment, SegmentKind};
use crate::header::check_requirements;
use crate::key::Key;
use crate::manage::{MetadataEditor, NewKey, Proof};
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
