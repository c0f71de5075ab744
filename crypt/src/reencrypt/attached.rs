//! Operations whose header lies, or lay, at the beginning of the disk.
//!
//! # Encryption: a header before data that begin at byte 0
//!
//! ```text
//! 1. the first part of the payload is copied to the end of the disk; flush
//! 2. header and keyslots, as one image, go into the gap before that copy, with a record; flush
//! 3. keyslots to the beginning, over the plain data; flush; secondary header; flush; primary; flush
//! 4. the record is erased; flush
//! ```
//!
//! A cut in 1 or 2 has changed nothing of the payload. A cut in 3 leaves a disk that is neither plain nor
//! a volume: the same command finds the record and does 3 again. As soon as one header copy is whole, all
//! keyslots are, and any program can go on.
//!
//! # Decryption: the header goes
//!
//! The header is exported into a file first, durably, with a token that says what it is for. Then the first
//! part of the payload is copied over the header on the disk, and only then the file says that the work has
//! begun. After a cut in between the same command finds the token and does it again: the copy is made of
//! bytes that are not touched before the file says so.

use serde_json::json;
use varve_block::dev::Mem;
use varve_block::{BlockDevice, Rt, Sectors};
use zeroize::Zeroizing;

use super::plan::Start;
use super::position::extent;
use super::run::{Devices, Reencryption};
use super::start::{begin, compose, make_header};
use super::state::{Operation, reencrypt_slot, wrong};
use crate::error::{Error, Result};
use crate::format::metadata::Metadata;
use crate::hash::Hash;
use crate::header::Header;
use crate::io::{Fill, fill, read_bytes, write_bytes};
use crate::key::Key;
use crate::manage::{MetadataEditor, backup};
use crate::unlock::UnlockOptions;

/// Bytes copied at once.
const COPY: u64 = 4 << 20;
const MAGIC: &[u8; 16] = b"varve-encrypt-1\n";
const RECORD: u64 = 4096;
/// Type of the token that marks an exported header.
const TOKEN: &str = "varve-decrypt";

/// What [`encrypt`] finds after a cut: the header that it was writing.
struct Record {
    image: Vec<u8>,
}

impl Record {
    /// Magic, shift, length of the disk, length of the image, its SHA-256; then the SHA-256 of all that.
    fn head(image: &[u8], shift: u64, disk: u64) -> Vec<u8> {
        let mut head = MAGIC.to_vec();
        for n in [shift, disk, image.len() as u64] {
            head.extend_from_slice(&n.to_be_bytes());
        }
        head.extend_from_slice(&Hash::Sha256.digest(&[image])[..32]);
        let sum = Hash::Sha256.digest(&[&head]);
        head.extend_from_slice(&sum[..32]);
        head.resize(usize::try_from(RECORD).expect("4096"), 0);
        head
    }

    /// The record at byte `at`, if a whole one is there that was made for this disk and this shift.
    async fn read<D: BlockDevice>(device: &D, at: u64, shift: u64) -> Result<Option<Record>> {
        let head = read_bytes(device, at, RECORD).await?;
        if head[..16] != *MAGIC {
            return Ok(None);
        }
        let len = u64::from_be_bytes(head[32..40].try_into().expect("eight bytes"));
        if len > shift - RECORD {
            return Ok(None);
        }
        let image = read_bytes(device, at + RECORD, len).await?.to_vec();
        let whole = Record::head(&image, shift, device.geometry().len.bytes());
        Ok((whole == *head).then_some(Record { image }))
    }
}

/// Begins an encryption with the header on the disk. `reduce`: see [`Start::reduce`].
pub(super) async fn encrypt<D: BlockDevice + Clone>(
    rt: &Rt,
    devices: &Devices<D>,
    options: &UnlockOptions,
    plan: &Start,
    reduce: u64,
) -> Result<Reencryption<D>> {
    let device = &devices.data;
    let geometry = device.geometry();
    let (disk, shift) = (geometry.len.bytes(), reduce / 2);
    if reduce == 0 || !reduce.is_multiple_of(2 * 4096) {
        return Err(Error::Options(format!("a reduction by {reduce} bytes: a multiple of 8192")));
    }
    let total = disk.saturating_sub(reduce);
    // The gap before the copy must not be a part of what the header will cover.
    if total < shift {
        return Err(Error::Options(format!(
            "{} has {disk} bytes: to be reduced by {reduce} it needs {} at least",
            geometry.dev,
            3 * shift
        )));
    }
    let image = match Record::read(device, total, shift).await? {
        Some(record) => record.image,
        None => {
            match Header::read(device, None).await {
                Err(Error::NotLuks(_)) => {}
                Err(e) => return Err(e),
                Ok(_) => {
                    return Err(Error::Options(format!("{} has a LUKS header", geometry.dev)));
                }
            }
            prepare(rt, devices, options, plan, (total, shift)).await?
        }
    };
    let (op, keys) = check_image(rt, &image, options, plan, disk).await?;
    put_header(device, &image, shift).await?;
    fill(device, extent(0, total, RECORD), Fill::Zero).await?;
    device.flush().await?;
    let editor = MetadataEditor::open(devices.header.clone(), options.header_copy).await?;
    let keys: Vec<&Key> = keys.iter().collect();
    Reencryption::with_keys(rt, devices, options, editor, op, &keys)
}

/// Steps 1 and 2. Nothing of the payload is lost when they are cut.
async fn prepare<D: BlockDevice + Clone>(
    rt: &Rt,
    devices: &Devices<D>,
    options: &UnlockOptions,
    plan: &Start,
    (total, shift): (u64, u64),
) -> Result<Vec<u8>> {
    let device = &devices.data;
    let geometry = device.geometry();
    let header = Mem::new(Sectors(shift.min(16 << 20) / 512));
    make_header(rt, &header, options, plan, Some(shift)).await?;
    let mut editor = MetadataEditor::open(header.clone(), None).await?;
    let composed = compose(rt, &editor, &geometry, options, plan, Some(shift)).await?;
    editor
        .update(|draft| {
            draft.json = composed.tree;
            Ok(())
        })
        .await?;
    let slots = editor.header().metadata.keyslots.values();
    let end = slots.map(|s| s.area_offset + s.area_size).max().unwrap_or(0);
    let mut image = header.to_vec();
    image.truncate(usize::try_from(end).expect("at most 16 MiB"));
    if end > shift - RECORD {
        return Err(Error::Options(format!("the header needs {end} bytes, reduce by more")));
    }
    copy(device, 0, geometry.len.bytes() - shift, shift.min(total)).await?;
    write_bytes(device, total + RECORD, &image).await?;
    device.flush().await?;
    let head = Record::head(&image, shift, geometry.len.bytes());
    write_bytes(device, total, &head).await?;
    device.flush().await?;
    Ok(image)
}

/// The operation that an image describes and its keys: proven, before the image goes over the plain data.
async fn check_image(
    rt: &Rt,
    image: &[u8],
    options: &UnlockOptions,
    plan: &Start,
    disk: u64,
) -> Result<(Operation, Vec<Key>)> {
    let mut bytes = image.to_vec();
    bytes.resize(bytes.len().next_multiple_of(512).max(1 << 20), 0);
    let header = Mem::from_bytes(&bytes);
    let Header::Luks2(h) = Header::parse(&bytes, 16 << 20, None)? else {
        return Err(Error::unsupported("a LUKS1 header for an encryption in place"));
    };
    let op = Operation::parse(&h, disk)?;
    let keys = super::keys::of_operation(rt, &header, &h, &op, options, &plan.secrets).await?;
    super::digest::verify(&h, &op, &keys.iter().collect::<Vec<_>>(), &options.limits)?;
    Ok((op, keys))
}

/// Step 3: what makes a header usable comes before what makes it valid.
async fn put_header<D: BlockDevice>(device: &D, image: &[u8], shift: u64) -> Result<()> {
    let Header::Luks2(h) = Header::parse(image, shift, None)? else {
        return Err(Error::unsupported("a LUKS1 header for an encryption in place"));
    };
    let (one, two) = (h.hdr_size, 2 * h.hdr_size);
    let index = |at: u64| usize::try_from(at).expect("inside of the image");
    write_bytes(device, two, &image[index(two)..]).await?;
    let end = (image.len() as u64).next_multiple_of(4096);
    // The plain data that were there are in their copy.
    fill(device, extent(0, end, shift - end), Fill::Random).await?;
    device.flush().await?;
    write_bytes(device, one, &image[index(one)..index(two)]).await?;
    device.flush().await?;
    write_bytes(device, 0, &image[..index(one)]).await?;
    Ok(device.flush().await?)
}

/// Copies a run of the disk durably. The runs do not overlap.
async fn copy<D: BlockDevice>(device: &D, from: u64, to: u64, len: u64) -> Result<()> {
    let mut done = 0;
    while done < len {
        let now = COPY.min(len - done);
        let bytes = read_bytes(device, from + done, now).await?;
        write_bytes(device, to + done, &bytes).await?;
        done += now;
    }
    Ok(device.flush().await?)
}

/// The header of a volume as a file that a decryption can begin with: its header is at the beginning of the
/// disk and has to go.
///
/// # Errors
/// When there is no LUKS2 header, or when it cannot be detached.
pub async fn export_header<D: BlockDevice>(device: &D) -> Result<Zeroizing<Vec<u8>>> {
    let (bytes, header) = backup(device, None).await?;
    let Header::Luks2(h) = header else {
        return Err(Error::unsupported("decryption of a LUKS1 volume; convert it to LUKS2 first"));
    };
    crate::header::check_requirements(&h.metadata)?;
    let file = Mem::from_bytes(&bytes);
    let mut editor = MetadataEditor::open(file.clone(), Some(h.copy)).await?;
    editor
        .update(|draft| {
            let free = (0..32u32).find(|id| !h.metadata.tokens.contains_key(id));
            let id = free.ok_or_else(|| Error::Options("all tokens are in use".into()))?;
            draft.json["tokens"][id.to_string()] = json!({ "type": TOKEN, "keyslots": [] });
            Ok(())
        })
        .await?;
    Ok(Zeroizing::new(file.to_vec()))
}

/// Whether a header was made by [`export_header`], and nothing has begun with it.
pub fn is_export(metadata: &Metadata) -> bool {
    metadata.json["tokens"]
        .as_object()
        .is_some_and(|tokens| tokens.values().any(|t| t["type"] == TOKEN))
        && reencrypt_slot(metadata).is_none()
}

/// Begins a decryption whose payload moves back to byte 0, over the header that was exported.
pub(super) async fn decrypt<D: BlockDevice + Clone>(
    rt: &Rt,
    devices: &Devices<D>,
    options: &UnlockOptions,
    plan: &Start,
    editor: MetadataEditor<D>,
) -> Result<Reencryption<D>> {
    let geometry = devices.data.geometry();
    let from = editor.header().metadata.regular_segments().next().map_or(0, |(_, s)| s.offset);
    if from == 0 || !from.is_multiple_of(4096) {
        return Err(wrong("segments.0.offset", from, "a payload behind the header"));
    }
    let mut composed = compose(rt, &editor, &geometry, options, plan, Some(from)).await?;
    if let Some(tokens) = composed.tree["tokens"].as_object_mut() {
        tokens.retain(|_, token| token["type"] != TOKEN);
    }
    let moved = &composed.tree["segments"]["0"]["size"];
    let len = moved.as_str().and_then(|s| s.parse().ok()).unwrap_or(0);
    copy(&devices.data, from, 0, len).await?;
    begin(rt, devices, options, editor, composed).await
}
