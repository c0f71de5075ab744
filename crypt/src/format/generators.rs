//! The reference's own collection of broken headers, made again in memory: one row per image, with a right
//! checksum in the copy that is shown and the other copy destroyed, and the verdict that the reference
//! gives. Names are those of its generators.

use serde_json::{Value, json};

use super::luks2::tests::reseal;
use crate::error::Error;
use crate::header::Header;

const SIZE: usize = 16384;
const SLOT: u64 = 258_048;
/// Payload of the base image, and its whole length.
const PAYLOAD: u64 = 4 << 20;

/// Eight keyslots of a derivation that nobody has any more, and one segment.
fn base() -> Value {
    let slot = |i: u64| {
        json!({
            "type": "luks2", "key_size": 32,
            "kdf": {"type": "argon2", "time": 4, "memory": 235_980, "cpus": 2,
                "salt": "z6vz4xK7cjan92rDA5JF8O6Jk2HouV0O8DMB6GlztVk="},
            "af": {"type": "luks1", "hash": "sha256", "stripes": 4000},
            "area": {"type": "raw", "encryption": "aes-xts-plain64", "key_size": 32,
                "offset": (2 * SIZE as u64 + i * SLOT).to_string(), "size": SLOT.to_string()},
        })
    };
    let slots: serde_json::Map<String, Value> = (0..8).map(|i| (i.to_string(), slot(i))).collect();
    json!({
        "keyslots": slots,
        "tokens": {"0": {"type": "dummy", "keyslots": []}},
        "segments": {"0": {"type": "crypt", "offset": PAYLOAD.to_string(), "iv_tweak": "0",
            "size": "dynamic", "encryption": "aes-xts-plain64", "sector_size": 512}},
        "digests": {"0": {"type": "pbkdf2", "hash": "sha256", "iterations": 1000,
            "salt": "G8gqtKhS96IbogHyJLO+t9kmjLkx+DM3HHJqQtgc2Dk=",
            "digest": "C9JWko5m+oYmjg6R0t/98cGGzLr/4UaG3hImSJMivfc=",
            "keyslots": ["0", "1", "2", "3", "4", "5", "6", "7"], "segments": ["0"]}},
        "config": {"json_size": "12288", "keyslots_size": "4161536",
            "flags": ["allow-discards"]},
    })
}

/// A device whose primary header has this text, and whose secondary is no header.
fn image(text: &[u8], size: usize) -> Vec<u8> {
    let mut image = vec![0; usize::try_from(PAYLOAD).unwrap() + (8 << 20)];
    let vector = crate::testing::images::luks2_a();
    image[..512].copy_from_slice(&vector[..512]);
    image[8..16].copy_from_slice(&(size as u64).to_be_bytes());
    image[4096..4096 + text.len()].copy_from_slice(text);
    reseal(&mut image, 0);
    image
}

fn verdict(image: &[u8]) -> Result<(), u8> {
    match Header::parse(image, image.len() as u64, None) {
        Ok(header) => {
            assert!(header.to_string().is_ascii(), "a dump of it is harmless");
            Ok(())
        }
        Err(Error::Corrupt(c)) => Err(c.check),
        Err(Error::NotLuks(_)) => Err(1),
        Err(e) => panic!("{e}"),
    }
}

fn of(tree: &Value) -> Result<(), u8> {
    verdict(&image(tree.to_string().as_bytes(), SIZE))
}

/// The base with one value set; `null` removes it.
fn set(path: &str, value: Value) -> Value {
    let mut tree = base();
    put(&mut tree, path, value);
    tree
}

fn put(tree: &mut Value, path: &str, value: Value) {
    let (parent, name) = path.rsplit_once('/').unwrap();
    let parent = tree.pointer_mut(parent).unwrap_or_else(|| panic!("{path}"));
    let parent = parent.as_object_mut().unwrap();
    match value {
        Value::Null => drop(parent.remove(name).unwrap_or_else(|| panic!("{path}"))),
        value => drop(parent.insert(name.into(), value)),
    }
}

#[test]
fn the_base_image_is_accepted() {
    assert_eq!(of(&base()), Ok(()));
}

/// Name of the generator, the value it sets where, and what becomes of it.
type Row = (&'static str, String, Value, Result<(), u8>);

#[track_caller]
fn all(rows: Vec<Row>) {
    for (name, path, value, expected) in rows {
        assert_eq!(of(&set(&path, value)), expected, "{name}");
    }
}

/// One value outside of the segments is wrong.
#[test]
fn generators_of_single_values_get_their_verdicts() {
    let area = |slot: u32, name: &str| format!("/keyslots/{slot}/area/{name}");
    all(vec![
        ("area-in-json-hdr-space-json0", area(0, "offset"), json!("32767"), Err(33)),
        ("invalid-json-size-c0", "/config/json_size".into(), json!("12287"), Err(11)),
        ("invalid-json-size-c1", "/config/json_size".into(), json!("12289"), Err(11)),
        ("invalid-json-size-c2", "/config/json_size".into(), json!("28672"), Err(11)),
        ("invalid-keyslots-size-c0", "/config/keyslots_size".into(), json!("4165632"), Err(11)),
        ("invalid-keyslots-size-c1", "/config/keyslots_size".into(), json!("4161535"), Err(11)),
        ("invalid-keyslots-size-c2", "/config/keyslots_size".into(), json!("2060288"), Err(33)),
        ("invalid-tokens", "/tokens".into(), json!(42), Err(10)),
        ("keyslot-invalid-af", "/keyslots/0/af/type".into(), json!(42), Err(23)),
        ("keyslot-invalid-area", "/keyslots/0/area".into(), json!(42), Err(33)),
        ("keyslot-invalid-area-size", area(0, "size"), json!("0"), Err(33)),
        ("keyslot-invalid-objects", "/keyslots/0/type".into(), json!(42), Err(10)),
        ("keyslot-missing-digest", "/digests/0/keyslots".into(), json!(["1"]), Err(16)),
        (
            "missing-keyslot-referenced-in-digest",
            "/digests/0/keyslots".into(),
            json!(["0", "1", "2", "3", "4", "5", "6", "7", "8"]),
            Err(16),
        ),
        (
            "missing-keyslot-referenced-in-token",
            "/tokens/0/keyslots".into(),
            json!(["16"]),
            Err(16),
        ),
        (
            "missing-segment-referenced-in-digest",
            "/digests/0/segments".into(),
            json!(["0", "1"]),
            Err(16),
        ),
        (
            "overlapping-areas-c0-json0",
            area(7, "offset"),
            base()["keyslots"]["6"]["area"]["offset"].clone(),
            Err(33),
        ),
        (
            "overlapping-areas-c1-json0",
            area(7, "offset"),
            json!((2 * SIZE as u64 + 6 * SLOT + 1).to_string()),
            Err(33),
        ),
        (
            "overlapping-areas-c2-json0",
            area(7, "offset"),
            json!((2 * SIZE as u64 + 7 * SLOT - 1).to_string()),
            Err(33),
        ),
    ]);
}

/// One value of the segment is wrong.
#[test]
fn generators_of_segments_get_their_verdicts() {
    let seg = |name: &str| format!("/segments/0/{name}");
    all(vec![
        ("segment-crypt-missing-encryption", seg("encryption"), Value::Null, Err(39)),
        ("segment-crypt-wrong-encryption", seg("encryption"), json!({}), Err(39)),
        ("segment-crypt-empty-encryption", seg("encryption"), json!(""), Err(39)),
        ("segment-crypt-missing-ivoffset", seg("iv_tweak"), Value::Null, Err(9)),
        ("segment-crypt-wrong-ivoffset", seg("iv_tweak"), json!("dynamic"), Err(9)),
        ("segment-crypt-missing-sectorsize", seg("sector_size"), Value::Null, Err(9)),
        ("segment-crypt-wrong-sectorsize-0", seg("sector_size"), json!(1023), Err(35)),
        ("segment-crypt-wrong-sectorsize-1", seg("sector_size"), json!("4096"), Err(9)),
        ("segment-crypt-wrong-sectorsize-2", seg("sector_size"), json!(-1024), Err(9)),
        ("segment-missing-type", seg("type"), Value::Null, Err(34)),
        ("segment-wrong-type", seg("type"), json!(42), Err(34)),
        ("segment-missing-offset", seg("offset"), Value::Null, Err(9)),
        ("segment-wrong-offset", seg("offset"), json!("-42"), Err(9)),
        ("segment-missing-size", seg("size"), Value::Null, Err(34)),
        ("segment-wrong-size-0", seg("size"), json!(4096), Err(34)),
        ("segment-wrong-size-1", seg("size"), json!("automatic"), Err(9)),
        ("segment-wrong-size-2", seg("size"), json!("511"), Err(34)),
        ("segment-wrong-flags", seg("flags"), json!("hello"), Err(34)),
        ("segment-wrong-flags-element", seg("flags"), json!(["hello", 1]), Err(34)),
        ("uint64-max-segment-size", seg("size"), json!("18446744073709551104"), Ok(())),
        ("uint64-overflow-segment-size", seg("size"), json!("18446744073709551616"), Err(9)),
        ("uint64-signed-segment-size", seg("size"), json!("-512"), Err(9)),
    ]);
}

/// Objects that come or change as a whole.
#[test]
fn generators_of_objects_get_their_verdicts() {
    let with = |edit: &dyn Fn(&mut Value)| {
        let mut tree = base();
        edit(&mut tree);
        of(&tree)
    };
    let digest = base()["digests"]["0"].clone();
    assert_eq!(with(&|t| t["digests"]["1"] = digest.clone()), Err(16), "keyslot-too-many-digests");

    let fixed = |t: &mut Value| put(t, "/segments/0/size", json!("1048576"));
    let second =
        json!({"type": "whatever", "offset": (PAYLOAD + (1 << 20)).to_string(), "size": "dynamic"});
    let two = |t: &mut Value| {
        fixed(t);
        t["segments"]["1"] = second.clone();
    };
    assert_eq!(with(&two), Ok(()), "segment-two");
    let unknown = json!({"type": "some_type", "offset": PAYLOAD.to_string(), "size": "dynamic"});
    assert_eq!(with(&|t| t["segments"]["0"] = unknown.clone()), Ok(()), "segment-unknown-type");
    let backup = json!({"type": "linear", "offset": PAYLOAD.to_string(), "size": "dynamic",
        "flags": ["backup-x"]});
    let at = |id: &str| {
        let (id, backup) = (id.to_owned(), backup.clone());
        with(&move |t| t["segments"][&id] = backup.clone())
    };
    assert_eq!(at("1"), Ok(()), "a backup segment behind the regular one");
    assert_eq!(at("2"), Err(34), "segment-wrong-backup-key-0");
    let before = |t: &mut Value| {
        let regular = t["segments"]["0"].take();
        t["segments"] = json!({"0": backup.clone(), "1": regular});
        t["digests"]["0"]["segments"] = json!(["1"]);
    };
    assert_eq!(with(&before), Err(34), "segment-wrong-backup-key-1");

    let salt = "z6vz4xK7cjan92rDA5JF8O6Jk2HouV0O8DMB6GlztVk=";
    let kdf = |kind: &str| {
        let all = json!({"type": kind, "salt": salt, "time": 4, "memory": 1024, "cpus": 2,
            "hash": "sha256", "iterations": 1000});
        with(&move |t| t["keyslots"]["2"]["kdf"] = all.clone())
    };
    assert_eq!(kdf("pbkdf2"), Ok(()), "argon2-leftover-params");
    assert_eq!(kdf("argon2i"), Ok(()), "pbkdf2-leftover-params-0");
    assert_eq!(kdf("argon2id"), Ok(()), "pbkdf2-leftover-params-1");
}

/// The frame around the text.
#[test]
fn generators_of_frames_get_their_verdicts() {
    let text = base().to_string();
    let framed = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut area = text.clone().into_bytes();
        area.resize(SIZE - 4096, 0);
        edit(&mut area);
        verdict(&image(&area, SIZE))
    };
    assert_eq!(framed(&|_| {}), Ok(()));
    let full = |len: usize| {
        move |area: &mut Vec<u8>| {
            let mut tree = base();
            put(&mut tree, "/config/filler", json!(""));
            let fill = len - tree.to_string().len();
            put(&mut tree, "/config/filler", json!("x".repeat(fill)));
            area[..len].copy_from_slice(tree.to_string().as_bytes());
        }
    };
    assert_eq!(framed(&full(SIZE - 4097)), Ok(()), "correct-full-json0");
    assert_eq!(framed(&full(SIZE - 4096)), Err(7), "missing-trailing-null-byte-json0");
    assert_eq!(framed(&|a| a[text.len() + 1] = b'x'), Err(7), "non-null-byte-beyond-json0");
    let tail = |a: &mut Vec<u8>| a[text.len() + 20..][..10].copy_from_slice(b"a sentence");
    assert_eq!(framed(&tail), Err(7), "non-null-bytes-beyond-json0");
    assert_eq!(framed(&|a| a[0] = b' '), Err(7), "invalid-opening-char-json0");
    let array = |a: &mut Vec<u8>| {
        a.fill(0);
        a[..7].copy_from_slice(b"[1,2,3]");
    };
    assert_eq!(framed(&array), Err(7), "invalid-object-type-json0");
    let pretty = serde_json::to_string_pretty(&base()).unwrap();
    assert_eq!(verdict(&image(pretty.as_bytes(), SIZE)), Ok(()), "non-compact-json-token-0");
}

/// Copies and checksums: which of the two counts.
#[test]
fn generators_of_copies_get_their_verdicts() {
    let text = base().to_string();
    let good = {
        let mut image = image(text.as_bytes(), SIZE);
        let copy = image[..SIZE].to_vec();
        image[SIZE..2 * SIZE].copy_from_slice(&copy);
        image[SIZE..SIZE + 6].copy_from_slice(b"SKUL\xba\xbe");
        image[SIZE + 256..SIZE + 264].copy_from_slice(&(SIZE as u64).to_be_bytes());
        reseal(&mut image, SIZE);
        image
    };
    assert_eq!(verdict(&good), Ok(()));
    let with = |edit: &dyn Fn(&mut [u8])| {
        let mut image = good.clone();
        edit(&mut image);
        verdict(&image)
    };
    assert_eq!(with(&|i| i[448] ^= 1), Ok(()), "invalid-checksum-hdr0");
    assert_eq!(with(&|i| i[SIZE + 448] ^= 1), Ok(()), "invalid-checksum-hdr1");
    let both = |i: &mut [u8]| {
        i[448] ^= 1;
        i[SIZE + 448] ^= 1;
    };
    assert_eq!(with(&both), Err(6), "invalid-checksum-both-hdrs");
    for (at, name) in [(0, "hdr0"), (SIZE, "hdr1")] {
        let spoilt = |i: &mut [u8]| {
            i[at + 4096..at + 4100].copy_from_slice(b"spoi");
            reseal(i, at);
        };
        assert_eq!(with(&spoilt), Ok(()), "corrupted-{name}-with-correct-chks");
    }
}

/// All nine sizes, each with one of the copies only, and what does not fit a size.
#[test]
fn generators_of_metadata_sizes_get_their_verdicts() {
    for size in super::luks2::HDR_SIZES {
        let sized = |edit: &dyn Fn(&mut Value)| {
            let mut tree = base();
            put(&mut tree, "/config/json_size", json!((size - 4096).to_string()));
            for i in 0..8_u64 {
                let offset = json!((2 * size + i * SLOT).to_string());
                put(&mut tree, &format!("/keyslots/{i}/area/offset"), offset);
            }
            put(&mut tree, "/config/keyslots_size", json!((8 * SLOT).to_string()));
            let payload = (2 * size + 8 * SLOT).next_multiple_of(4096);
            put(&mut tree, "/segments/0/offset", json!(payload.to_string()));
            edit(&mut tree);
            let mut made = image(b"", usize::try_from(size).unwrap());
            made.resize(usize::try_from(payload + 4096).unwrap(), 0);
            let text = tree.to_string();
            made[4096..4096 + text.len()].copy_from_slice(text.as_bytes());
            reseal(&mut made, 0);
            made
        };
        let primary = sized(&|_| {});
        assert_eq!(verdict(&primary), Ok(()), "metadata-size-{size}");
        let mut secondary = primary.clone();
        let at = usize::try_from(size).unwrap();
        secondary.copy_within(..at, at);
        secondary[at..at + 6].copy_from_slice(b"SKUL\xba\xbe");
        secondary[at + 256..at + 264].copy_from_slice(&size.to_be_bytes());
        reseal(&mut secondary, at);
        secondary[..at].fill(0);
        assert_eq!(verdict(&secondary), Ok(()), "metadata-size-{size}-secondary");
        let inside =
            |t: &mut Value| put(t, "/keyslots/0/area/offset", json!((2 * size - 1).to_string()));
        assert_eq!(verdict(&sized(&inside)), Err(33), "metadata-size-{size}-inv-area-c0");
        let behind = |t: &mut Value| {
            put(t, "/keyslots/7/area/offset", json!((2 * size + 7 * SLOT + 1).to_string()))
        };
        assert_eq!(verdict(&sized(&behind)), Err(33), "metadata-size-{size}-inv-area-c1");
        let small =
            |t: &mut Value| put(t, "/config/keyslots_size", json!((8 * SLOT - 4096).to_string()));
        assert_eq!(verdict(&sized(&small)), Err(33), "metadata-size-{size}-inv-keyslots-size-c0");
        let other = |t: &mut Value| put(t, "/config/json_size", json!(size.to_string()));
        assert_eq!(verdict(&sized(&other)), Err(11), "metadata-size-{size}-inv-json-size-c0");
    }
    let mut huge = image(base().to_string().as_bytes(), SIZE);
    huge[8..16].copy_from_slice(&0x8000_0000u64.to_be_bytes());
    assert_eq!(verdict(&huge), Err(3), "metadata-size-invalid");
}
