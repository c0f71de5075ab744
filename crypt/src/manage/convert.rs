//! A header of one format made into the other, in place, keys and data where they are.
//!
//! ```text
//! LUKS1   | header | slot 0 ................. | slot 1 .. | ..            | payload
//! LUKS2   | primary | secondary |              | slot 1 .. | .. | slot 0 . | payload
//! ```
//!
//! Keyslot areas have the same content in both (their IVs count from the area itself), so only what lies
//! where LUKS2 has its headers has to move: slot 0, into the area of a free slot.
//!
//! # What a power cut leaves
//!
//! A volume of the old format or of the new, with all its keys. To LUKS2: the area is copied and the
//! LUKS1 header points to the copy in one sector write; the secondary header is written while the LUKS1
//! header still counts; then sector 0 alone turns the volume over, to a primary whose checksum fails
//! until its rest is there, which the secondary makes good. To LUKS1 it is the same backwards.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Map, json};
use varve_block::BlockDevice;

use super::area::destroy;
use super::luks1::Luks1Editor;
use super::tree;
use crate::af;
use crate::create::AREA_ALIGN;
use crate::error::{Error, Result};
use crate::format::luks1::{DIGEST_LEN, HEADER_LEN, Luks1, Luks1Slot, SLOTS};
use crate::format::luks2::{BINARY_LEN, HDR_SIZES, HeaderCopy, Luks2, OtherCopy};
use crate::format::metadata::{
    DigestKind, KEYSLOTS_SIZE_MAX, KeyslotKind, Luks2Slot, Metadata, SegmentKind, SlotKdf,
};
use crate::hash::Hash;
use crate::header::Header;
use crate::kdf::Kdf;
use crate::key;

const SECTOR: usize = 512;
/// Both copies of the smallest LUKS2 header.
const HEADS: u64 = 2 * HDR_SIZES[0];
/// Slots that lie in the header's first sector as a whole.
const FIRST_SECTOR_SLOTS: usize = 6;

fn cannot(why: impl Into<String>) -> Error {
    Error::Unsupported(format!("this volume cannot be converted: {}", why.into()))
}

/// LUKS1 to LUKS2.
pub async fn convert_to_luks2<D: BlockDevice + Clone>(device: &D) -> Result<()> {
    let mut editor = Luks1Editor::open(device.clone()).await?;
    let len = device.geometry().len.bytes();
    // Everything that can be wrong is found before anything moves.
    let plan = Move::choose(&editor.header)?;
    let header = plan.luks2(&editor.header, len)?;
    let Some([primary, secondary]) = header.encode(&mut key::fill_random)? else {
        return Err(cannot("its metadata do not fit"));
    };
    if let Some((from, to)) = plan.slots {
        let at = |slot: usize| u64::from(editor.header.slots[slot].material_offset) * 512;
        let (old, new) = (at(from), at(to));
        let area = editor.header.area_sectors() * 512;
        let bytes = crate::io::read_bytes(device, old, area).await?;
        crate::io::write_bytes(device, new, &bytes).await?;
        device.flush().await?;
        if *crate::io::read_bytes(device, new, area).await? != *bytes {
            return Err(Error::NotStored { dev: device.geometry().dev, what: "keyslot area" });
        }
        editor.swap_areas(from, to).await?;
        destroy(device, old, area).await?;
    }
    let binary = usize::try_from(BINARY_LEN).expect("4096");
    let put = async |at: u64, bytes: &[u8]| -> Result<()> {
        crate::io::write_bytes(device, at, bytes).await?;
        device.flush().await?;
        Ok(())
    };
    put(secondary.0, &secondary.1).await?;
    put(BINARY_LEN, &primary.1[binary..]).await?;
    put(0, &primary.1[..SECTOR]).await?;
    put(SECTOR as u64, &primary.1[SECTOR..binary]).await?;
    match Header::read(device, None).await? {
        Header::Luks2(now) if now.other == OtherCopy::Same => Ok(()),
        _ => Err(Error::NotStored { dev: device.geometry().dev, what: "converted header" }),
    }
}

/// What stands in the way of LUKS2's headers, and where it goes.
struct Move {
    /// From a slot in use to a free one: their areas change places.
    slots: Option<(usize, usize)>,
}

impl Move {
    fn choose(h: &Luks1) -> Result<Move> {
        let start = |s: &Luks1Slot| u64::from(s.material_offset) * 512;
        let inside: Vec<usize> =
            (0..SLOTS).filter(|&i| h.slots[i].active && start(&h.slots[i]) < HEADS).collect();
        let [from] = inside[..] else {
            return match inside.len() {
                0 => Ok(Move { slots: None }),
                _ => Err(cannot("more than one keyslot lies where its headers would be")),
            };
        };
        let free = |&i: &usize| !h.slots[i].active && start(&h.slots[i]) >= HEADS;
        match (0..FIRST_SECTOR_SLOTS).find(free) {
            Some(to) if from < FIRST_SECTOR_SLOTS => Ok(Move { slots: Some((from, to)) }),
            _ => Err(cannot("one of the keyslots 1 to 5 must be free; remove a key first")),
        }
    }

    /// Where a slot's area will be.
    fn offset(&self, h: &Luks1, slot: usize) -> u64 {
        let slot = match self.slots {
            Some((from, to)) if slot == from => to,
            _ => slot,
        };
        u64::from(h.slots[slot].material_offset) * 512
    }

    fn luks2(&self, h: &Luks1, device_len: u64) -> Result<Luks2> {
        let (hash, spec) = (h.hash()?, h.cipher_spec()?);
        let area = h.area_sectors() * 512;
        let used: Vec<usize> = (0..SLOTS).filter(|&i| h.slots[i].active).collect();
        let payload = u64::from(h.payload_offset) * 512;
        let end = match payload {
            // Detached: as far as the areas go.
            0 => (0..SLOTS).map(|i| self.offset(h, i) + area).max().unwrap_or(0),
            payload => payload,
        };
        let size = end.min(device_len).saturating_sub(HEADS) / AREA_ALIGN * AREA_ALIGN;
        // The reference rounds areas up. Where places are odd (the layout of the 1.0 tools) that could reach
        // into the next one.
        let even = used.iter().all(|&i| self.offset(h, i).is_multiple_of(AREA_ALIGN));
        let area_size = if even { area.next_multiple_of(AREA_ALIGN) } else { area };
        let mut keyslots = Map::new();
        for &i in &used {
            let slot = &h.slots[i];
            let kdf = Kdf::Pbkdf2 { hash, iterations: slot.iterations, salt: slot.salt };
            let new = tree::keyslot(&tree::NewKeyslot {
                kdf: &kdf,
                af_hash: hash,
                key_len: h.key_bytes as usize,
                area_offset: self.offset(h, i),
                area_size,
                area_cipher: &spec,
                area_key_len: h.key_bytes as usize,
            });
            keyslots.insert(i.to_string(), new);
        }
        let names: Vec<String> = used.iter().map(usize::to_string).collect();
        let json = json!({
            "keyslots": keyslots,
            "tokens": {},
            "segments": { "0": {
                "type": "crypt",
                "offset": payload.to_string(),
                "size": "dynamic",
                "iv_tweak": "0",
                "encryption": spec.text(),
                "sector_size": SECTOR,
            } },
            "digests": { "0": {
                "type": "pbkdf2",
                "keyslots": names,
                "segments": ["0"],
                "hash": hash.name(),
                "iterations": h.digest_iterations,
                "salt": BASE64_STANDARD.encode(h.digest_salt),
                "digest": BASE64_STANDARD.encode(h.digest),
            } },
            "config": {
                "json_size": (HDR_SIZES[0] - BINARY_LEN).to_string(),
                "keyslots_size": size.min(KEYSLOTS_SIZE_MAX).to_string(),
            },
        });
        Ok(Luks2 {
            hdr_size: HDR_SIZES[0],
            seqid: 1,
            label: String::new(),
            subsystem: String::new(),
            uuid: h.uuid.clone(),
            checksum_algorithm: Hash::Sha256.name().into(),
            copy: HeaderCopy::Primary,
            other: OtherCopy::Same,
            metadata: Metadata::parse("converted LUKS2 header", json, HDR_SIZES[0])?,
            notes: Vec::new(),
        })
    }
}

/// LUKS2 to LUKS1, when the volume has nothing that LUKS1 does not know.
pub async fn convert_to_luks1<D: BlockDevice>(device: &D) -> Result<()> {
    let Header::Luks2(h) = Header::read(device, None).await? else {
        return Err(Error::unsupported("not a LUKS2 header"));
    };
    if h.other != OtherCopy::Same {
        return Err(cannot("one of its header copies is damaged or old; repair it first"));
    }
    let bytes = luks1(&h)?.encode();
    Luks1::parse(&bytes, device.geometry().len.bytes())?;
    let put = async |at: usize, bytes: &[u8]| -> Result<()> {
        crate::io::write_bytes(device, at as u64, bytes).await?;
        device.flush().await?;
        Ok(())
    };
    put(SECTOR, &bytes[SECTOR..]).await?;
    put(0, &bytes[..SECTOR]).await?;
    // The LUKS2 text, and the secondary header, which would be found if sector 0 were lost.
    let rest = vec![0; usize::try_from(2 * h.hdr_size).expect("at most 8 MiB") - HEADER_LEN];
    put(HEADER_LEN, &rest).await?;
    match Header::read(device, None).await? {
        Header::Luks1(_) => Ok(()),
        Header::Luks2(_) => {
            Err(Error::NotStored { dev: device.geometry().dev, what: "converted header" })
        }
    }
}

fn luks1(h: &Luks2) -> Result<Luks1> {
    let m = &h.metadata;
    let none = |empty: bool, what: &str| {
        if empty {
            Ok(())
        } else {
            Err(cannot(format!("it has {what}, which LUKS1 does not know")))
        }
    };
    none(m.config.requirements.is_empty(), "requirements")?;
    none(m.tokens.is_empty(), "tokens")?;
    none(m.config.flags.is_empty(), "persistent flags")?;
    none(h.label.is_empty() && h.subsystem.is_empty(), "a label or subsystem")?;
    none(m.segments.len() == 1, "several data segments")?;
    none(m.digests.len() == 1, "several volume keys, or unbound ones")?;
    let segment = m.segments.get(&0).ok_or_else(|| cannot("it has no data segment"))?;
    let SegmentKind::Crypt { encryption, iv_tweak, sector_size, integrity } = &segment.kind else {
        return Err(cannot("its data is not encrypted"));
    };
    none(integrity.is_none(), "integrity protection")?;
    none(*sector_size == SECTOR as u64, "encryption sectors above 512 bytes")?;
    none(*iv_tweak == 0 && segment.size.is_none(), "a data segment of fixed size or IV offset")?;
    let (_, digest) = m.digests.first_key_value().ok_or_else(|| cannot("it has no volume key"))?;
    let DigestKind::Pbkdf2 { hash, iterations, salt, digest } = &digest.kind else {
        return Err(cannot("its digest is of an unknown type"));
    };
    let hash = Hash::named(hash).ok_or_else(|| cannot("its hash is not known"))?;
    let spec = crate::cipher::CipherSpec::parse(encryption)?;
    let (cipher, mode) = spec
        .luks1_fields()
        .filter(|(c, m)| c.len() < 32 && m.len() < 32)
        .ok_or_else(|| cannot("LUKS1 cannot name its cipher"))?;
    let key_size = m.keyslots.values().map(|s| s.key_size).next();
    let key_size =
        key_size.ok_or_else(|| cannot("it has no keyslot, so its key size is unknown"))?;
    let key_bytes = u32::try_from(key_size).ok().filter(|n| (1..=512).contains(n));
    let key_bytes = key_bytes.ok_or_else(|| cannot("its key is too long"))?;
    let decoded = |text: &str| BASE64_STANDARD.decode(text).map_err(|_| cannot("bad base64"));
    let stored = decoded(digest)?;
    // PBKDF2 gives its output block by block: the first 20 bytes are those of a shorter digest.
    let short = stored.get(..DIGEST_LEN).and_then(|d| d.try_into().ok());
    let mut slots: [Option<Luks1Slot>; SLOTS] = Default::default();
    for (&id, slot) in &m.keyslots {
        let place = slots.get_mut(id as usize);
        let place = place.ok_or_else(|| cannot(format!("keyslot {id}: LUKS1 has 0 to 7")))?;
        let KeyslotKind::Luks2(luks2) = &slot.kind else {
            return Err(cannot(format!("keyslot {id} is of another type")));
        };
        if slot.key_size != key_size || slot.area_offset % 512 != 0 {
            return Err(cannot(format!("keyslot {id} has another key size, or odd places")));
        }
        *place = Some(luks1_slot(id, luks2, slot.area_offset, key_size, encryption, hash)?);
    }
    let area = af::area_len(key_size, af::STRIPES).ok_or_else(|| cannot("key size"))?;
    let limit = if segment.offset == 0 { m.areas_end(h.hdr_size) } else { segment.offset };
    Ok(Luks1 {
        cipher: cipher.into(),
        mode: mode.into(),
        hash: hash.name().into(),
        payload_offset: u32::try_from(segment.offset / 512)
            .map_err(|_| cannot("its payload begins above 2 TiB"))?,
        key_bytes,
        digest: short.ok_or_else(|| cannot("its digest is too short"))?,
        digest_salt: decoded(salt)?.try_into().map_err(|_| cannot("its salt is not 32 bytes"))?,
        digest_iterations: u32::try_from(*iterations).map_err(|_| cannot("its digest's cost"))?,
        uuid: h.uuid.clone(),
        slots: place_free(slots, area / 512, limit / 512)?,
    })
}

fn luks1_slot(
    id: u32,
    slot: &Luks2Slot,
    area_offset: u64,
    key_size: u64,
    encryption: &str,
    hash: Hash,
) -> Result<Luks1Slot> {
    let SlotKdf::Pbkdf2 { hash: kdf_hash, iterations, salt } = &slot.kdf else {
        return Err(cannot(format!("keyslot {id} has another key derivation than pbkdf2")));
    };
    if kdf_hash != hash.name() || slot.af_hash != hash.name() {
        return Err(cannot(format!("keyslot {id} has another hash than the volume's digest")));
    }
    if slot.area_encryption != encryption || slot.area_key_size != key_size {
        return Err(cannot(format!("keyslot {id} is encrypted otherwise than the data")));
    }
    let salt = BASE64_STANDARD.decode(salt).ok().and_then(|s| s.try_into().ok());
    Ok(Luks1Slot {
        active: true,
        iterations: u32::try_from(*iterations).map_err(|_| cannot("its cost is too high"))?,
        salt: salt.ok_or_else(|| cannot(format!("keyslot {id} has a bad salt")))?,
        material_offset: u32::try_from(area_offset / 512).map_err(|_| cannot("area offset"))?,
        stripes: af::STRIPES,
    })
}

/// Free slots get areas between those in use: LUKS1 gives every slot one, also where the LUKS2 headers
/// were. All in sectors.
fn place_free(
    slots: [Option<Luks1Slot>; SLOTS],
    area: u64,
    limit: u64,
) -> Result<[Luks1Slot; SLOTS]> {
    let mut taken: Vec<u64> =
        slots.iter().flatten().map(|s| u64::from(s.material_offset)).collect();
    let mut placed = Vec::new();
    for slot in slots {
        if let Some(slot) = slot {
            placed.push(slot);
            continue;
        }
        taken.sort_unstable();
        let mut at = 8;
        for &start in &taken {
            if at + area <= start {
                break;
            }
            at = at.max((start + area).next_multiple_of(8));
        }
        if at + area > limit {
            return Err(cannot("there is no room for the areas of eight keyslots"));
        }
        taken.push(at);
        placed.push(Luks1Slot {
            active: false,
            iterations: 0,
            salt: [0; 32],
            material_offset: u32::try_from(at).map_err(|_| cannot("area offset"))?,
            stripes: af::STRIPES,
        });
    }
    Ok(placed.try_into().expect("one for each"))
}

/// The reasons in words, without writing anything: `Ok` when the conversion would be done.
pub async fn can_convert<D: BlockDevice>(device: &D) -> Result<()> {
    match Header::read(device, None).await? {
        Header::Luks1(h) => Move::choose(&h)?.luks2(&h, device.geometry().len.bytes()).map(drop),
        Header::Luks2(h) => luks1(&h).map(drop),
    }
}
