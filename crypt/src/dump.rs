//! Headers for people, in the shape of `cryptsetup luksDump`, and for programs, as JSON.

use std::fmt::{self, Display, Formatter, Write};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value, json};

use crate::error::printable;
use crate::format::luks1::Luks1;
use crate::format::luks2::Luks2;
use crate::format::metadata::{
    Digest, DigestKind, Keyslot, KeyslotKind, Luks2Slot, Priority, Segment, SegmentKind, SlotKdf,
};
use crate::header::Header;

impl Header {
    /// Everything in the header, for `--json`. The LUKS2 metadata are the tree as it is stored. No
    /// secret is in a header, so none is here.
    pub fn to_json(&self) -> Value {
        match self {
            Header::Luks1(h) => luks1_json(h),
            Header::Luks2(h) => json!({
                "version": 2,
                "uuid": h.uuid,
                "label": h.label,
                "subsystem": h.subsystem,
                "seqid": h.seqid,
                "header_size": h.hdr_size,
                "checksum_algorithm": h.checksum_algorithm,
                "copy": h.copy,
                "notes": h.notes,
                "metadata": h.metadata.json,
            }),
        }
    }
}

impl Display for Header {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Header::Luks1(h) => luks1_text(h, f),
            Header::Luks2(h) => luks2_text(h, f),
        }
    }
}

fn luks1_json(h: &Luks1) -> Value {
    let slot = |s: &crate::Luks1Slot| {
        json!({
            "active": s.active,
            "iterations": s.iterations,
            "salt": BASE64_STANDARD.encode(s.salt),
            "material_offset": s.material_offset,
            "stripes": s.stripes,
        })
    };
    json!({
        "version": 1,
        "uuid": h.uuid,
        "cipher": h.cipher,
        "mode": h.mode,
        "hash": h.hash,
        "payload_offset": h.payload_offset,
        "key_bytes": h.key_bytes,
        "digest": BASE64_STANDARD.encode(h.digest),
        "digest_salt": BASE64_STANDARD.encode(h.digest_salt),
        "digest_iterations": h.digest_iterations,
        "keyslots": h.slots.each_ref().map(slot),
    })
}

/// Bytes in hex, `per_line` to a line, each line but the first behind `indent`.
fn hex_lines(bytes: &[u8], per_line: usize, indent: &str) -> String {
    let mut text = String::new();
    for (i, line) in bytes.chunks(per_line).enumerate() {
        if i > 0 {
            text.push('\n');
            text.push_str(indent);
        }
        for byte in line {
            let _ = write!(text, "{byte:02x} ");
        }
    }
    text
}

fn luks1_text(h: &Luks1, f: &mut Formatter<'_>) -> fmt::Result {
    writeln!(f, "LUKS header information\n")?;
    writeln!(f, "Version:       \t1")?;
    writeln!(f, "Cipher name:   \t{}", printable(&h.cipher))?;
    writeln!(f, "Cipher mode:   \t{}", printable(&h.mode))?;
    writeln!(f, "Hash spec:     \t{}", printable(&h.hash))?;
    writeln!(f, "Payload offset:\t{}", h.payload_offset)?;
    writeln!(f, "MK bits:       \t{}", u64::from(h.key_bytes) * 8)?;
    writeln!(f, "MK digest:     \t{}", hex_lines(&h.digest, 20, ""))?;
    writeln!(f, "MK salt:       \t{}", hex_lines(&h.digest_salt, 16, "               \t"))?;
    writeln!(f, "MK iterations: \t{}", h.digest_iterations)?;
    writeln!(f, "UUID:          \t{}\n", printable(&h.uuid))?;
    for (i, slot) in h.slots.iter().enumerate() {
        if !slot.active {
            writeln!(f, "Key Slot {i}: DISABLED")?;
            continue;
        }
        writeln!(f, "Key Slot {i}: ENABLED")?;
        writeln!(f, "\tIterations:         \t{}", slot.iterations)?;
        let salt = hex_lines(&slot.salt, 16, "\t                      \t");
        writeln!(f, "\tSalt:               \t{salt}")?;
        writeln!(f, "\tKey material offset:\t{}", slot.material_offset)?;
        writeln!(f, "\tAF stripes:            \t{}", slot.stripes)?;
    }
    Ok(())
}

fn luks2_text(h: &Luks2, f: &mut Formatter<'_>) -> fmt::Result {
    let or = |text: &str, none: &str| if text.is_empty() { none.into() } else { printable(text) };
    let m = &h.metadata;
    writeln!(f, "LUKS header information")?;
    writeln!(f, "Version:       \t2")?;
    writeln!(f, "Epoch:         \t{}", h.seqid)?;
    writeln!(f, "Metadata area: \t{} [bytes]", h.hdr_size)?;
    writeln!(f, "Keyslots area: \t{} [bytes]", m.config.keyslots_size)?;
    writeln!(f, "UUID:          \t{}", or(&h.uuid, "(no UUID)"))?;
    writeln!(f, "Label:         \t{}", or(&h.label, "(no label)"))?;
    writeln!(f, "Subsystem:     \t{}", or(&h.subsystem, "(no subsystem)"))?;
    let list = |list: &[String]| list.iter().map(|t| printable(t) + " ").collect::<String>();
    writeln!(f, "Flags:       \t{}", or(&list(&m.config.flags), "(no flags)"))?;
    if !m.config.requirements.is_empty() {
        writeln!(f, "Requirements:\t{}", list(&m.config.requirements))?;
    }
    writeln!(f, "\nData segments:")?;
    for (id, segment) in &m.segments {
        segment_text(*id, segment, f)?;
    }
    writeln!(f, "Keyslots:")?;
    for (id, slot) in &m.keyslots {
        keyslot_text(*id, slot, m.digest_of(*id), f)?;
    }
    writeln!(f, "Tokens:")?;
    for (id, token) in &m.tokens {
        writeln!(f, "  {id}: {}", printable(&token.kind))?;
        for slot in &token.keyslots {
            writeln!(f, "\tKeyslot:    {slot}")?;
        }
    }
    writeln!(f, "Digests:")?;
    for (id, digest) in &m.digests {
        digest_text(*id, digest, f)?;
    }
    Ok(())
}

fn segment_text(id: u32, segment: &Segment, f: &mut Formatter<'_>) -> fmt::Result {
    let kind = match &segment.kind {
        SegmentKind::Crypt { .. } => "crypt".into(),
        SegmentKind::Linear => "linear".into(),
        SegmentKind::Unknown(kind) => printable(kind),
    };
    writeln!(f, "  {id}: {kind}")?;
    writeln!(f, "\toffset: {} [bytes]", segment.offset)?;
    match segment.size {
        Some(size) => writeln!(f, "\tlength: {size} [bytes]")?,
        None => writeln!(f, "\tlength: (whole device)")?,
    }
    if let SegmentKind::Crypt { encryption, sector_size, integrity, iv_tweak } = &segment.kind {
        writeln!(f, "\tcipher: {}", printable(encryption))?;
        writeln!(f, "\tsector: {sector_size} [bytes]")?;
        if *iv_tweak != 0 {
            writeln!(f, "\tIV offset: {iv_tweak} [sectors]")?;
        }
        if let Some(integrity) = integrity {
            writeln!(f, "\tintegrity: {}", printable(&integrity.kind))?;
            if let Some(size) = integrity.key_size {
                writeln!(f, "\tintegrity key size: {} [bits]", u128::from(size) * 8)?;
            }
        }
    }
    if !segment.flags.is_empty() {
        let flags: Vec<String> = segment.flags.iter().map(|t| printable(t)).collect();
        writeln!(f, "\tflags : {}", flags.join(", "))?;
    }
    writeln!(f)
}

fn keyslot_text(
    id: u32,
    slot: &Keyslot,
    digest: Option<(u32, &Digest)>,
    f: &mut Formatter<'_>,
) -> fmt::Result {
    let unbound = match digest {
        Some((_, d)) if d.segments.is_empty() => " (unbound)",
        _ => "",
    };
    let kind = match &slot.kind {
        KeyslotKind::Luks2(_) => "luks2".into(),
        KeyslotKind::Reencrypt { .. } => "reencrypt".into(),
        KeyslotKind::Unknown(kind) => printable(kind),
    };
    writeln!(f, "  {id}: {kind}{unbound}")?;
    writeln!(f, "\tKey:        {} bits", u128::from(slot.key_size) * 8)?;
    let priority = match slot.priority {
        Priority::Ignore => "ignored",
        Priority::Normal => "normal",
        Priority::Prefer => "preferred",
    };
    writeln!(f, "\tPriority:   {priority}")?;
    match &slot.kind {
        KeyslotKind::Luks2(luks2) => luks2_slot_text(luks2, f)?,
        KeyslotKind::Reencrypt { mode, direction, resilience } => {
            writeln!(f, "\tMode:       {}", printable(mode))?;
            writeln!(f, "\tDirection:  {}", printable(direction))?;
            writeln!(f, "\tResilience: {}", printable(resilience))?;
        }
        KeyslotKind::Unknown(_) => {}
    }
    writeln!(f, "\tArea offset:{} [bytes]", slot.area_offset)?;
    writeln!(f, "\tArea length:{} [bytes]", slot.area_size)?;
    match digest {
        Some((id, _)) => writeln!(f, "\tDigest ID:  {id}"),
        None => Ok(()),
    }
}

fn luks2_slot_text(slot: &Luks2Slot, f: &mut Formatter<'_>) -> fmt::Result {
    writeln!(f, "\tCipher:     {}", printable(&slot.area_encryption))?;
    writeln!(f, "\tCipher key: {} bits", u128::from(slot.area_key_size) * 8)?;
    match &slot.kdf {
        SlotKdf::Pbkdf2 { hash, iterations, salt } => {
            writeln!(f, "\tPBKDF:      pbkdf2")?;
            writeln!(f, "\tHash:       {}", printable(hash))?;
            writeln!(f, "\tIterations: {iterations}")?;
            bytes_text("Salt:       ", salt, f)?;
        }
        SlotKdf::Argon2 { id, time, memory, cpus, salt } => {
            writeln!(f, "\tPBKDF:      {}", if *id { "argon2id" } else { "argon2i" })?;
            writeln!(f, "\tTime cost:  {time}")?;
            writeln!(f, "\tMemory:     {memory}")?;
            writeln!(f, "\tThreads:    {cpus}")?;
            bytes_text("Salt:       ", salt, f)?;
        }
        SlotKdf::Unknown(kind) => writeln!(f, "\tPBKDF:      {}", printable(kind))?,
    }
    writeln!(f, "\tAF stripes: {}", slot.stripes)?;
    writeln!(f, "\tAF hash:    {}", printable(&slot.af_hash))
}

/// Base64 of the header as hex, or the text itself when it is not base64.
fn bytes_text(name: &str, base64: &str, f: &mut Formatter<'_>) -> fmt::Result {
    match BASE64_STANDARD.decode(base64) {
        Ok(bytes) => writeln!(f, "\t{name}{}", hex_lines(&bytes, 16, "\t            ")),
        Err(_) => writeln!(f, "\t{name}(not base64) {}", printable(base64)),
    }
}

fn digest_text(id: u32, digest: &Digest, f: &mut Formatter<'_>) -> fmt::Result {
    match &digest.kind {
        DigestKind::Pbkdf2 { hash, iterations, salt, digest } => {
            writeln!(f, "  {id}: pbkdf2")?;
            writeln!(f, "\tHash:       {}", printable(hash))?;
            writeln!(f, "\tIterations: {iterations}")?;
            bytes_text("Salt:       ", salt, f)?;
            bytes_text("Digest:     ", digest, f)
        }
        DigestKind::Unknown(kind) => writeln!(f, "  {id}: {}", printable(kind)),
    }
}
