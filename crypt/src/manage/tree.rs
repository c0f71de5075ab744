//! The JSON of new objects, and the references between objects when one goes.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value, json};

use crate::af;
use crate::cipher::CipherSpec;
use crate::hash::Hash;
use crate::kdf::Kdf;

/// What a keyslot object says.
pub(crate) struct NewKeyslot<'a> {
    pub(crate) kdf: &'a Kdf,
    pub(crate) af_hash: Hash,
    pub(crate) key_len: usize,
    pub(crate) area_offset: u64,
    pub(crate) area_size: u64,
    pub(crate) area_cipher: &'a CipherSpec,
    pub(crate) area_key_len: usize,
}

pub(crate) fn keyslot(new: &NewKeyslot<'_>) -> Value {
    json!({
        "type": "luks2",
        "key_size": new.key_len,
        "af": { "type": "luks1", "stripes": af::STRIPES, "hash": new.af_hash.name() },
        "area": {
            "type": "raw",
            "offset": new.area_offset.to_string(),
            "size": new.area_size.to_string(),
            "encryption": new.area_cipher.text(),
            "key_size": new.area_key_len,
        },
        "kdf": kdf(new.kdf),
    })
}

fn kdf(kdf: &Kdf) -> Value {
    match kdf {
        Kdf::Pbkdf2 { hash, iterations, salt } => json!({
            "type": "pbkdf2",
            "hash": hash.name(),
            "iterations": iterations,
            "salt": BASE64_STANDARD.encode(salt),
        }),
        Kdf::Argon2 { kind, time, memory_kib, lanes, salt } => json!({
            "type": kind.name(),
            "time": time,
            "memory": memory_kib,
            "cpus": lanes,
            "salt": BASE64_STANDARD.encode(salt),
        }),
    }
}

/// A digest for one keyslot, and for a segment when the key is a volume's.
pub(crate) fn digest(
    hash: Hash,
    iterations: u32,
    salt: &[u8],
    digest: &[u8],
    keyslot: &str,
    segment: Option<&str>,
) -> Value {
    json!({
        "type": "pbkdf2",
        "keyslots": [keyslot],
        "segments": segment.map_or_else(Vec::new, |s| vec![s]),
        "hash": hash.name(),
        "iterations": iterations,
        "salt": BASE64_STANDARD.encode(salt),
        "digest": BASE64_STANDARD.encode(digest),
    })
}

/// Takes a keyslot out of the tree: itself, its name in digests and tokens, and a digest that
/// recognises nothing any more.
pub(crate) fn remove_keyslot(json: &mut Value, slot: u32) {
    let id = slot.to_string();
    if let Some(slots) = json.get_mut("keyslots").and_then(Value::as_object_mut) {
        slots.shift_remove(&id);
    }
    for object in ["digests", "tokens"] {
        let members = json.get_mut(object).and_then(Value::as_object_mut);
        for (_, member) in members.into_iter().flatten() {
            if let Some(list) = member.get_mut("keyslots").and_then(Value::as_array_mut) {
                list.retain(|name| name != &id);
            }
        }
    }
    if let Some(digests) = json.get_mut("digests").and_then(Value::as_object_mut) {
        let empty = |d: &Value, list: &str| {
            d.get(list).and_then(Value::as_array).is_some_and(Vec::is_empty)
        };
        digests.retain(|_, d| !(empty(d, "keyslots") && empty(d, "segments")));
    }
}

/// Names a keyslot in a digest.
pub(crate) fn name_in_digest(json: &mut Value, digest: u32, slot: u32) {
    let digest = json.get_mut("digests").and_then(|d| d.get_mut(digest.to_string()));
    if let Some(list) = digest.and_then(|d| d.get_mut("keyslots")).and_then(Value::as_array_mut) {
        list.push(slot.to_string().into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_keyslot_leaves_no_reference_and_no_empty_digest() {
        let mut tree = json!({
            "keyslots": {"0": {}, "1": {}, "2": {}},
            "digests": {
                "0": {"keyslots": ["0", "1"], "segments": ["0"]},
                "1": {"keyslots": ["2"], "segments": []},
            },
            "tokens": {"0": {"keyslots": ["2", "1"], "x": 1}},
        });
        remove_keyslot(&mut tree, 1);
        assert_eq!(tree["digests"]["0"]["keyslots"], json!(["0"]));
        assert_eq!(tree["tokens"]["0"], json!({"keyslots": ["2"], "x": 1}));
        remove_keyslot(&mut tree, 2);
        assert!(tree["digests"].get("1").is_none(), "an unbound digest goes with its key");
        remove_keyslot(&mut tree, 0);
        assert_eq!(tree["digests"]["0"]["segments"], json!(["0"]), "a volume's digest stays");
        assert_eq!(tree["keyslots"], json!({}));
        name_in_digest(&mut tree, 0, 5);
        assert_eq!(tree["digests"]["0"]["keyslots"], json!(["5"]));
    }
}
