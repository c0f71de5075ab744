//! The digest over an operation's parameters and both of its keys (check 42, CVE-2021-4122).
//!
//! The byte string is that of the format: a version, the keys, and the fields of keyslot and backup
//! segments without any separator. Its secrecy is that of the keys in it.

use super::state::{Operation, Resilience, wrong};
use crate::error::Result;
use crate::format::luks2::Luks2;
use crate::format::metadata::{Metadata, Segment, SegmentKind};
use crate::kdf::Limits;
use crate::key::Key;
use crate::keyslot::recognised_by;

/// Longest text that goes into the string.
const TEXT_MAX: usize = 64;

/// The string that the digest of `op` is made of. `keys` are those of [`Operation::digests`], in order.
pub(super) fn material(m: &Metadata, op: &Operation, keys: &[&Key]) -> Result<Key> {
    let mut bytes = vec![b'v', b'0' + op.version];
    for key in keys {
        bytes.extend_from_slice(key.bytes());
    }
    text(&mut bytes, op.mode.name())?;
    text(&mut bytes, op.direction.name())?;
    text(&mut bytes, op.area_type())?;
    number(&mut bytes, op.area_offset);
    number(&mut bytes, op.area_size);
    if let Resilience::Checksum { hash, block } = op.resilience {
        text(&mut bytes, hash.name())?;
        small(&mut bytes, block)?;
    }
    if let Some(shift) = &op.shift {
        number(&mut bytes, shift.size);
    }
    let moved = op.shift.as_ref().map(|shift| shift.segment);
    for id in [op.previous.segment, op.last.segment].into_iter().chain(moved) {
        segment(&mut bytes, &m.segments[&id])?;
    }
    Ok(Key::take_from(&mut bytes))
}

/// Whether the header's digest is the one of these keys.
pub(super) fn verify(h: &Luks2, op: &Operation, keys: &[&Key], limits: &Limits) -> Result<()> {
    let Some((id, digest)) = h.metadata.digest_of(op.slot) else {
        return Err(wrong("digests", "none", "one that names the reencrypt keyslot"));
    };
    if digest.keyslots != [op.slot] || !digest.segments.is_empty() {
        return Err(wrong(format!("digests.{id}"), "others", "the reencrypt keyslot alone"));
    }
    if recognised_by(h, id, &material(&h.metadata, op, keys)?, limits)? {
        return Ok(());
    }
    Err(wrong(
        format!("digests.{id}"),
        "another digest",
        "that of these keys and parameters; nothing was written",
    ))
}

fn segment(to: &mut Vec<u8>, segment: &Segment) -> Result<()> {
    let kind = if matches!(segment.kind, SegmentKind::Linear) { "linear" } else { "crypt" };
    text(to, kind)?;
    number(to, segment.offset);
    match segment.size {
        Some(size) => number(to, size),
        None => text(to, "dynamic")?,
    }
    if let SegmentKind::Crypt { encryption, iv_tweak, sector_size, .. } = &segment.kind {
        number(to, *iv_tweak);
        text(to, encryption)?;
        small(to, *sector_size)?;
    }
    Ok(())
}

fn text(to: &mut Vec<u8>, text: &str) -> Result<()> {
    if text.is_empty() || text.len() > TEXT_MAX || text.contains('\0') {
        return Err(wrong("text", text, "1 to 64 bytes"));
    }
    to.extend_from_slice(text.as_bytes());
    Ok(())
}

fn number(to: &mut Vec<u8>, n: u64) {
    to.extend_from_slice(&n.to_be_bytes());
}

fn small(to: &mut Vec<u8>, n: u64) -> Result<()> {
    let n = u32::try_from(n).map_err(|_| wrong("sector_size", n, "32 bits"))?;
    to.extend_from_slice(&n.to_be_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::Hash;
    use crate::testing::{hex, sha256};

    /// The format's vector, as the reference wrote it.
    #[test]
    fn the_string_and_its_digest_are_those_of_the_reference() {
        let area = r#""area":{"type":"checksum","offset":"548864","size":"16228352","hash":"sha256","sector_size":4096}"#;
        let crypt = r#""type":"crypt","offset":"16777216","size":"dynamic","iv_tweak":"0","encryption":"aes-xts-plain64","sector_size":512"#;
        let slot = |area: &str| {
            format!(
                r#"{{"type":"luks2","key_size":64,"af":{{"type":"luks1","stripes":4000,"hash":"sha256"}},"area":{{"type":"raw","offset":"{area}","size":"258048","encryption":"aes-xts-plain64","key_size":64}},"kdf":{{"type":"pbkdf2","hash":"sha256","iterations":1000,"salt":"AAAA"}}}}"#
            )
        };
        let digest = |slot: &str, segments: &str| {
            format!(
                r#"{{"type":"pbkdf2","keyslots":["{slot}"],"segments":[{segments}],"hash":"sha256","iterations":1000,"salt":"AAAA","digest":"AAAA"}}"#
            )
        };
        let text = format!(
            r#"{{"keyslots":{{"0":{},"1":{},"2":{{"type":"reencrypt","key_size":1,"mode":"reencrypt","direction":"forward",{area}}}}},"tokens":{{}},"segments":{{"0":{{{crypt}}},"1":{{{crypt},"flags":["backup-previous"]}},"2":{{{crypt},"flags":["backup-final"]}}}},"digests":{{"0":{},"1":{},"2":{}}},"config":{{"json_size":"12288","keyslots_size":"16744448","requirements":{{"mandatory":["online-reencrypt-v2"]}}}}}}"#,
            slot("32768"),
            slot("290816"),
            digest("0", r#""0","1""#),
            digest("1", r#""2""#),
            digest("2", ""),
        );
        let json = serde_json::from_str(&text).unwrap();
        let metadata = Metadata::parse("test", json, 16384).unwrap();
        let header = crate::reencrypt::tests::header_of(metadata);
        let op = Operation::parse(&header, 64 << 20).unwrap();
        let [one, two] = [1, 2].map(|n| {
            Key::copy_from(
                &Hash::Sha512.digest(&[format!("varve luks vector volume key {n}").as_bytes()]),
            )
        });
        let string = material(&header.metadata, &op, &[&one, &two]).unwrap();
        assert_eq!(
            sha256(string.bytes()),
            "e37cf2d7b982f03e79fda424522821bb14f7d1d6f25e611493bf0abaf5634f58"
        );
        let salt = hex("01b8cd57c19358c7e094994120b876c1cfea15f0f52cfc03c98db27ca167288a");
        let mut out = [0; 32];
        assert!(Hash::Sha256.pbkdf2(string.bytes(), &salt, 1000, &mut out, &|| false));
        assert_eq!(
            out.to_vec(),
            hex("a960ee57f4f2b6c57b8cf040b36283a795451e6b53f0b24bd1b4f1ffc1b3ac64")
        );
    }
}
