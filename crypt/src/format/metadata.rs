//! The LUKS2 metadata: keyslots, digests, segments, tokens, config.
//!
//! The JSON tree itself is kept as the truth, with everything in it that we do not know; the typed
//! view is made from it by [`Metadata::parse`] and never written back. A change edits the tree and
//! parses it again, so that what is written has passed the same checks as what is read.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::error::Corrupt;
use crate::format::fields::Field;

mod check;

/// Keyslots, tokens and segments have ids below this; digests below [`DIGESTS_MAX`].
pub(crate) const OBJECTS_MAX: u32 = 32;
pub(crate) const DIGESTS_MAX: u32 = 8;
/// Largest keyslot region.
pub(crate) const KEYSLOTS_SIZE_MAX: u64 = 128 << 20;

/// Requirements whose meaning is known. What an unknown one means nobody can say, so nothing is written
/// to its volume (check 13).
pub(crate) const KNOWN_REQUIREMENTS: [&str; 7] = [
    "offline-reencrypt",
    "online-reencrypt",
    "online-reencrypt-v2",
    "online-reencrypt-v3",
    "inline-hw-tags",
    "opal",
    "opal-v2",
];

/// Everything the JSON area of a LUKS2 header says.
#[derive(Clone, Debug, PartialEq)]
pub struct Metadata {
    /// The tree as it was read, with what we do not know.
    pub json: Value,
    pub keyslots: BTreeMap<u32, Keyslot>,
    pub digests: BTreeMap<u32, Digest>,
    pub segments: BTreeMap<u32, Segment>,
    pub tokens: BTreeMap<u32, Token>,
    pub config: Config,
    /// What was repaired in memory, and what is odd without being wrong.
    pub notes: Vec<String>,
}

/// A keyslot: a place that holds a key, and how to read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyslot {
    /// Length of the stored key in bytes.
    pub key_size: u64,
    pub area_offset: u64,
    pub area_size: u64,
    pub priority: Priority,
    pub kind: KeyslotKind,
}

/// When a keyslot is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Only when it is named.
    Ignore,
    Normal,
    /// Before the others.
    Prefer,
}

/// What a keyslot holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyslotKind {
    /// A key under a passphrase.
    Luks2(Luks2Slot),
    /// The state of a re-encryption.
    Reencrypt { mode: String, direction: String, resilience: String },
    /// A type nobody told us about: kept, skipped.
    Unknown(String),
}

/// How a key lies in its area. Names and numbers are as in the header; they are judged at use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Luks2Slot {
    pub area_encryption: String,
    pub area_key_size: u64,
    pub af_hash: String,
    pub stripes: u64,
    pub kdf: SlotKdf,
}

/// The key derivation of a slot, as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotKdf {
    Pbkdf2 { hash: String, iterations: u64, salt: String },
    Argon2 { id: bool, time: u64, memory: u64, cpus: u64, salt: String },
    Unknown(String),
}

/// A digest: which keys it recognises, and for which segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    pub keyslots: Vec<u32>,
    pub segments: Vec<u32>,
    pub kind: DigestKind,
}

/// How a key is recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DigestKind {
    Pbkdf2 { hash: String, iterations: u64, salt: String, digest: String },
    Unknown(String),
}

/// A run of the data device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First byte on the data device.
    pub offset: u64,
    /// Bytes, or `None`: to the end of the device.
    pub size: Option<u64>,
    pub flags: Vec<String>,
    pub kind: SegmentKind,
}

/// What a segment holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    Crypt {
        encryption: String,
        iv_tweak: u64,
        sector_size: u64,
        /// The integrity protection, if there is any.
        integrity: Option<SegmentIntegrity>,
    },
    Linear,
    Unknown(String),
}

/// How a segment's sectors are authenticated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentIntegrity {
    /// As `hmac(sha256)` or `aead`.
    pub kind: String,
    pub journal_encryption: String,
    pub journal_integrity: String,
    /// Bytes of the key that authenticates, where the header says them.
    pub key_size: Option<u64>,
}

/// A token: a hint for other programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub kind: String,
    pub keyslots: Vec<u32>,
}

/// The `config` object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub json_size: u64,
    pub keyslots_size: u64,
    pub flags: Vec<String>,
    /// `requirements.mandatory`.
    pub requirements: Vec<String>,
}

impl Segment {
    /// A segment that only remembers what a re-encryption started from or leads to.
    pub fn is_backup(&self) -> bool {
        self.flags.iter().any(|f| f.starts_with("backup-"))
    }
}

impl Metadata {
    /// Checks the tree of a copy whose header, this binary block included, is `hdr_size` bytes long.
    pub(crate) fn parse(
        what: &'static str,
        mut json: Value,
        hdr_size: u64,
    ) -> Result<Metadata, Corrupt> {
        let notes = drop_leftovers(&mut json);
        let root = Field::root(what, &json);
        let mut metadata = Metadata {
            keyslots: parse_each(&root.get("keyslots"), OBJECTS_MAX, parse_keyslot)?,
            tokens: parse_each(&root.get("tokens"), OBJECTS_MAX, parse_token)?,
            segments: parse_each(&root.get("segments"), OBJECTS_MAX, parse_segment)?,
            digests: parse_each(&root.get("digests"), DIGESTS_MAX, parse_digest)?,
            config: parse_config(&root.get("config"))?,
            json: Value::Null,
            notes,
        };
        metadata.check(&root, hdr_size)?;
        metadata.notes.extend(metadata.cheap_slots());
        metadata.json = json;
        Ok(metadata)
    }

    /// Slots whose secret could be guessed for next to nothing (check 26): opened, with a remark.
    fn cheap_slots(&self) -> Vec<String> {
        let floor = u64::from(crate::kdf::PBKDF2_ITERATIONS_MIN);
        let cheap = |(id, slot): (&u32, &Keyslot)| match &slot.kind {
            KeyslotKind::Luks2(Luks2Slot { kdf: SlotKdf::Pbkdf2 { iterations, .. }, .. })
                if *iterations < floor =>
            {
                Some(format!("keyslot {id} has only {iterations} PBKDF2 iterations"))
            }
            _ => None,
        };
        self.keyslots.iter().filter_map(cheap).collect()
    }

    /// The digest that names this keyslot. Exactly one does: `parse` saw to it.
    pub fn digest_of(&self, slot: u32) -> Option<(u32, &Digest)> {
        self.digests.iter().find(|(_, d)| d.keyslots.contains(&slot)).map(|(id, d)| (*id, d))
    }

    /// Segments that describe the device as it is, in order.
    pub fn regular_segments(&self) -> impl Iterator<Item = (u32, &Segment)> {
        self.segments.iter().filter(|(_, s)| !s.is_backup()).map(|(id, s)| (*id, s))
    }
}

fn parse_each<T>(
    field: &Field<'_>,
    limit: u32,
    parse: fn(&Field<'_>) -> Result<T, Corrupt>,
) -> Result<BTreeMap<u32, T>, Corrupt> {
    field.by_id(10, limit)?.into_iter().map(|(id, f)| Ok((id, parse(&f)?))).collect()
}

/// A slot whose derivation was changed by an old tool may still have the fields of the other family.
/// They mean nothing; they are dropped, as the reference does.
fn drop_leftovers(json: &mut Value) -> Vec<String> {
    const PBKDF2: [&str; 2] = ["hash", "iterations"];
    const ARGON2: [&str; 3] = ["time", "memory", "cpus"];
    let mut notes = Vec::new();
    let slots = json.get_mut("keyslots").and_then(Value::as_object_mut);
    for (id, slot) in slots.into_iter().flatten() {
        let Some(kdf) = slot.get_mut("kdf").and_then(Value::as_object_mut) else { continue };
        let foreign: &[&str] = match kdf.get("type").and_then(Value::as_str) {
            Some("pbkdf2") => &ARGON2,
            Some("argon2i" | "argon2id") => &PBKDF2,
            _ => continue,
        };
        for name in foreign {
            if kdf.shift_remove(*name).is_some() {
                let id = crate::error::printable(id);
                notes.push(format!("keyslot {id}: leftover field kdf.{name} ignored"));
            }
        }
    }
    notes
}

fn parse_keyslot(f: &Field<'_>) -> Result<Keyslot, Corrupt> {
    let kind = f.get("type").text(10)?;
    let area = f.get("area");
    area.object(33)?;
    Ok(Keyslot {
        key_size: f.get("key_size").integer_not_zero()?,
        area_offset: area.get("offset").number_text()?,
        area_size: area.get("size").number_text()?,
        priority: parse_priority(&f.get("priority"))?,
        kind: match kind {
            "luks2" => KeyslotKind::Luks2(parse_luks2_slot(f, &area)?),
            "reencrypt" => KeyslotKind::Reencrypt {
                mode: one_of(&f.get("mode"), &["reencrypt", "encrypt", "decrypt"])?,
                direction: one_of(&f.get("direction"), &["forward", "backward"])?,
                resilience: area.get("type").text(42)?.to_owned(),
            },
            other => KeyslotKind::Unknown(other.to_owned()),
        },
    })
}

fn one_of(field: &Field<'_>, names: &[&str]) -> Result<String, Corrupt> {
    let text = field.text(42)?;
    if names.contains(&text) { Ok(text.into()) } else { Err(field.wrong(42, names.join(" or "))) }
}

fn parse_priority(field: &Field<'_>) -> Result<Priority, Corrupt> {
    if !field.is_present() {
        return Ok(Priority::Normal);
    }
    match field.integer()? {
        0 => Ok(Priority::Ignore),
        1 => Ok(Priority::Normal),
        2 => Ok(Priority::Prefer),
        _ => Err(field.wrong(9, "0, 1 or 2")),
    }
}

fn parse_luks2_slot(f: &Field<'_>, area: &Field<'_>) -> Result<Luks2Slot, Corrupt> {
    let (af, area_type) = (f.get("af"), area.get("type"));
    if area_type.text(33)? != "raw" {
        return Err(area_type.wrong(33, "raw"));
    }
    af.object(23)?;
    if af.get("type").text(23)? != "luks1" {
        return Err(af.get("type").wrong(23, "luks1"));
    }
    Ok(Luks2Slot {
        area_encryption: area.get("encryption").text_not_empty(33)?.to_owned(),
        area_key_size: area.get("key_size").integer_not_zero()?,
        af_hash: af.get("hash").text(23)?.to_owned(),
        stripes: af.get("stripes").integer_not_zero()?,
        kdf: parse_kdf(&f.get("kdf"))?,
    })
}

fn parse_kdf(kdf: &Field<'_>) -> Result<SlotKdf, Corrupt> {
    let members = kdf.object(27)?.len();
    let kind = kdf.get("type").text(27)?;
    let salt = || Ok(kdf.get("salt").text(29)?.to_owned());
    let (parsed, expected) = match kind {
        "pbkdf2" => {
            let hash = kdf.get("hash").text(17)?.to_owned();
            let iterations = kdf.get("iterations").integer_not_zero()?;
            (SlotKdf::Pbkdf2 { hash, iterations, salt: salt()? }, 4)
        }
        "argon2i" | "argon2id" => {
            let id = kind == "argon2id";
            let time = kdf.get("time").integer_not_zero()?;
            let memory = kdf.get("memory").integer_not_zero()?;
            let cpus = kdf.get("cpus").integer_not_zero()?;
            (SlotKdf::Argon2 { id, time, memory, cpus, salt: salt()? }, 5)
        }
        other => return Ok(SlotKdf::Unknown(other.to_owned())),
    };
    if members == expected {
        Ok(parsed)
    } else {
        Err(kdf.wrong(27, format!("exactly {expected} fields for {kind}")))
    }
}

fn parse_digest(f: &Field<'_>) -> Result<Digest, Corrupt> {
    Ok(Digest {
        keyslots: f.get("keyslots").ids(16, OBJECTS_MAX)?,
        segments: f.get("segments").ids(16, OBJECTS_MAX)?,
        kind: match f.get("type").text(10)? {
            "pbkdf2" => DigestKind::Pbkdf2 {
                hash: f.get("hash").text(17)?.to_owned(),
                iterations: f.get("iterations").integer_not_zero()?,
                salt: f.get("salt").text(18)?.to_owned(),
                digest: f.get("digest").text(18)?.to_owned(),
            },
            other => DigestKind::Unknown(other.to_owned()),
        },
    })
}

fn parse_segment(f: &Field<'_>) -> Result<Segment, Corrupt> {
    let kind = f.get("type").text_not_empty(34)?;
    let offset = f.get("offset").number_text()?;
    if !offset.is_multiple_of(512) {
        return Err(f.get("offset").wrong(34, "a multiple of 512"));
    }
    let size = match f.get("size").text(34)? {
        "dynamic" => None,
        _ => Some(f.get("size").number_text()?),
    };
    if size.is_some_and(|n| n == 0 || !n.is_multiple_of(512)) {
        return Err(f.get("size").wrong(34, "a multiple of 512 above zero, or \"dynamic\""));
    }
    let kind = match kind {
        "crypt" => parse_crypt_segment(f)?,
        "linear" => SegmentKind::Linear,
        other => SegmentKind::Unknown(other.to_owned()),
    };
    Ok(Segment { offset, size, flags: f.get("flags").texts(34)?, kind })
}

fn parse_crypt_segment(f: &Field<'_>) -> Result<SegmentKind, Corrupt> {
    let sector_size = f.get("sector_size").integer_not_zero()?;
    if !sector_size.is_multiple_of(512) {
        return Err(f.get("sector_size").wrong(35, "a multiple of 512"));
    }
    let integrity = f.get("integrity");
    let integrity = if integrity.is_present() {
        integrity.object(44)?;
        let text = |name| integrity.get(name).text(44).map(str::to_owned);
        let key_size = integrity.get("key_size");
        Some(SegmentIntegrity {
            kind: text("type")?,
            journal_encryption: text("journal_encryption")?,
            journal_integrity: text("journal_integrity")?,
            key_size: match key_size.is_present() {
                true => Some(key_size.integer_not_zero()?),
                false => None,
            },
        })
    } else {
        None
    };
    Ok(SegmentKind::Crypt {
        encryption: f.get("encryption").text_not_empty(39)?.to_owned(),
        iv_tweak: f.get("iv_tweak").number_text()?,
        sector_size,
        integrity,
    })
}

fn parse_token(f: &Field<'_>) -> Result<Token, Corrupt> {
    Ok(Token {
        kind: f.get("type").text_not_empty(10)?.to_owned(),
        keyslots: f.get("keyslots").ids(16, OBJECTS_MAX)?,
    })
}

fn parse_config(f: &Field<'_>) -> Result<Config, Corrupt> {
    f.object(10)?;
    let requirements = f.get("requirements");
    let requirements = if requirements.is_present() {
        requirements.object(13)?;
        requirements.get("mandatory").texts(13)?
    } else {
        Vec::new()
    };
    Ok(Config {
        json_size: f.get("json_size").number_text()?,
        keyslots_size: f.get("keyslots_size").number_text()?,
        flags: f.get("flags").texts(45)?,
        requirements,
    })
}

#[cfg(test)]
mod tests;
