use super::*;
use crate::testing::{images, sha256, to_hex, vk1};
use serde_json::{Value, json};

fn parse(image: &[u8]) -> Header {
    Header::parse(image, image.len() as u64, None).unwrap()
}

fn open(header: &Header, image: &[u8], secret: &str) -> Result<Verified> {
    let limits = Limits::default();
    let Candidates { list, skipped } = header.candidates(None, &limits)?;
    for c in list {
        let at = usize::try_from(c.area_offset).unwrap();
        let area = &image[at..at + usize::try_from(c.area_len).unwrap()];
        if let Some(v) = c.attempt(area, &Key::copy_from(secret.as_bytes()), &limits)? {
            return Ok(v);
        }
    }
    Err(Error::WrongKey { skipped })
}

#[test]
fn the_three_vectors_open_and_give_their_key() {
    let images = [images::luks1(), images::luks2_a(), images::luks2_b()];
    for (image, secret) in images.iter().zip(images::SECRETS) {
        let header = parse(image);
        let v = open(&header, image, secret).unwrap();
        assert_eq!(v.key, Key::copy_from(&vk1()));
        assert_eq!(v.slot, Some(0));
        assert!(matches!(open(&header, image, "wrong"), Err(Error::WrongKey { .. })));
        let proven = header.verify_volume_key(Key::copy_from(&vk1()), &Limits::default()).unwrap();
        assert_eq!(proven.slot, None);
        let other = Key::copy_from(&[3; 64]);
        assert!(header.verify_volume_key(other, &Limits::default()).is_err());
    }
}

#[test]
fn area_ciphertexts_are_those_of_the_specification() {
    let expect = [
        (images::luks1(), 4096, "be04c3dceb0cd7c70057716bc41ef0744a4eb6e178c3a5006e188f741e172d14"),
        (
            images::luks2_a(),
            32768,
            "071320bae3db2341a4653a658b9d032cdc2bb599fe6f5191cd0f927c90d0fbe2",
        ),
        (
            images::luks2_b(),
            32768,
            "cc94786faace9d2382fbbae8854b09db79eebe2c805a2d13b7c9b2e30c6f675e",
        ),
    ];
    for (image, at, sum) in expect {
        assert_eq!(sha256(&image[at..at + images::AREA_LEN]), sum);
    }
    assert_eq!(
        sha256(&images::luks1()[..2 << 20]),
        "8d52284ebc5589b6de21896f88bf93a47f406efa7aa117a50e0cb333c3401fc3"
    );
}

#[test]
fn one_flipped_bit_in_the_area_is_a_wrong_passphrase() {
    let mut image = images::luks2_a();
    image[32768 + 100_000] ^= 0x10;
    assert!(matches!(
        open(&parse(&image), &image, images::SECRETS[1]),
        Err(Error::WrongKey { .. })
    ));
}

/// The header of image A with its metadata changed by `edit`.
fn edited(edit: impl FnOnce(&mut Value)) -> Header {
    let Header::Luks2(mut h) = parse(&images::luks2_a()) else { panic!("LUKS2") };
    let mut json = h.metadata.json.clone();
    edit(&mut json);
    h.metadata = crate::format::metadata::Metadata::parse("test", json, h.hdr_size).unwrap();
    Header::Luks2(h)
}

#[track_caller]
fn skipped(edit: impl FnOnce(&mut Value), why: &str) {
    let c = edited(edit).candidates(None, &Limits::default()).unwrap();
    assert!(c.list.is_empty(), "{why}");
    assert!(c.skipped[0].why.contains(why), "{:?} should say {why}", c.skipped);
}

#[test]
fn slots_that_cannot_be_tried_are_listed_with_the_reason() {
    let slot = |v: &mut Value, path: &str, to: Value| {
        *v.pointer_mut(&format!("/keyslots/0/{path}")).unwrap() = to;
    };
    skipped(|v| slot(v, "key_size", json!(4294967295u32)), "check 24");
    skipped(|v| slot(v, "area/key_size", json!(4294967295u32)), "check 24");
    skipped(|v| slot(v, "af/stripes", json!(1)), "check 23");
    skipped(|v| slot(v, "area/size", json!("255999")), "check 25");
    skipped(|v| slot(v, "key_size", json!(512)), "check 25");
    skipped(|v| slot(v, "kdf/iterations", json!(1u64 << 31)), "the limit is");
    skipped(|v| slot(v, "kdf/iterations", json!(1u64 << 40)), "outside the bounds");
    skipped(|v| slot(v, "kdf/salt", json!("AAAA")), "check 29");
    skipped(|v| slot(v, "kdf/salt", json!("!!")), "check 29");
    skipped(|v| slot(v, "kdf/hash", json!("tiger")), "not implemented");
    skipped(|v| slot(v, "af/hash", json!("md5")), "not implemented");
    skipped(|v| slot(v, "area/encryption", json!("null")), "check 41");
    skipped(|v| slot(v, "area/encryption", json!("cipher_null-ecb")), "check 41");
    skipped(|v| slot(v, "area/encryption", json!("cast5-xts-plain64")), "not implemented");
    skipped(|v| slot(v, "area/key_size", json!(48)), "does not fit");
    skipped(|v| v["digests"]["0"]["salt"] = json!("AAAA"), "check 29");
    skipped(|v| v["digests"]["0"]["digest"] = json!(""), "check 18");
    skipped(|v| v["digests"]["0"]["digest"] = json!("AAAA"), "check 18");
    skipped(|v| v["digests"]["0"]["digest"] = json!("?"), "check 18");
    skipped(|v| v["digests"]["0"]["type"] = json!("other"), "unknown type");
    skipped(|v| v["digests"]["0"]["iterations"] = json!(1u64 << 33), "iterations");
    let bomb = json!({"type": "argon2id", "time": 4, "memory": 4194304, "cpus": 4, "salt":
        base64::prelude::BASE64_STANDARD.encode([0; 32])});
    skipped(|v| v["keyslots"]["0"]["kdf"] = bomb, "KiB of Argon2 memory");
    skipped(|v| v["keyslots"]["0"]["kdf"] = json!({"type": "argon2"}), "unknown key derivation");
    skipped(|v| v["keyslots"]["0"]["priority"] = json!(0), "only when named");
}

#[test]
fn priorities_order_the_slots_and_a_name_overrides_them() {
    let header = edited(|v| {
        for (id, priority) in [("1", 2), ("2", 0), ("3", 1)] {
            let mut slot = v["keyslots"]["0"].clone();
            slot["priority"] = json!(priority);
            let n: u64 = id.parse().unwrap();
            slot["area"]["offset"] = json!((32768 + n * 258_048).to_string());
            v["keyslots"][id] = slot;
            v["digests"]["0"]["keyslots"].as_array_mut().unwrap().push(json!(id));
        }
        v["config"]["keyslots_size"] = json!("1048576");
        v["segments"]["0"]["offset"] = json!("2097152");
    });
    let order = |only| -> Vec<u32> {
        let c = header.candidates(only, &Limits::default()).unwrap();
        c.list.iter().map(|c| c.slot).collect()
    };
    assert_eq!(order(None), [1, 0, 3]);
    assert_eq!(order(Some(2)), [2]);
    assert!(matches!(header.candidates(Some(9), &Limits::default()), Err(Error::Options(_))));
}

#[test]
fn a_digest_of_twenty_bytes_from_a_converted_volume_verifies_with_any_hash() {
    let mut digest = [0; 20];
    let salt = [9; 32];
    Hash::Sha256.pbkdf2(&vk1(), &salt, 1000, &mut digest, &|| false);
    let header = edited(|v| {
        v["digests"]["0"]["digest"] = json!(BASE64_STANDARD.encode(digest));
        v["digests"]["0"]["salt"] = json!(BASE64_STANDARD.encode(salt));
    });
    assert!(open(&header, &images::luks2_a(), images::SECRETS[1]).is_ok(), "{}", to_hex(&digest));
}
