use super::*;
use crate::testing::images::LUKS2_A_JSON;
use serde_json::json;

const HDR: u64 = 16384;

fn base() -> Value {
    serde_json::from_str(LUKS2_A_JSON).unwrap()
}

fn parse(v: Value) -> Result<Metadata, Corrupt> {
    Metadata::parse("LUKS2 header", v, HDR)
}

/// The base metadata with the value at a path replaced; `null` removes it.
fn with(path: &str, value: Value) -> Value {
    let mut v = base();
    let (parent, name) = path.rsplit_once('/').unwrap();
    let parent = v.pointer_mut(parent).unwrap_or_else(|| panic!("{path}"));
    let parent = parent.as_object_mut().unwrap();
    if value.is_null() {
        parent.remove(name).unwrap();
    } else {
        parent.insert(name.into(), value);
    }
    v
}

#[track_caller]
fn refused(path: &str, value: Value, check: u8) {
    let e = parse(with(path, value.clone())).expect_err(&format!("{path} = {value}"));
    assert_eq!(e.check, check, "{path} = {value}: {e}");
}

#[track_caller]
fn accepted(path: &str, value: Value) -> Metadata {
    parse(with(path, value.clone())).unwrap_or_else(|e| panic!("{path} = {value}: {e}"))
}

#[test]
fn the_vector_parses_into_what_it_says() {
    let m = parse(base()).unwrap();
    let slot = &m.keyslots[&0];
    assert_eq!((slot.key_size, slot.area_offset, slot.area_size), (64, 32768, 258_048));
    assert_eq!(slot.priority, Priority::Normal);
    assert!(matches!(&m.segments[&0].kind, SegmentKind::Crypt { sector_size: 4096, .. }));
    assert_eq!(m.segments[&0].size, None);
    assert_eq!(m.digest_of(0).unwrap().0, 0);
    assert_eq!(m.json, base(), "the tree is kept as it was");
}

#[test]
fn unknown_fields_objects_and_types_are_kept() {
    accepted("/config/somebody-elses", json!({"x": [1, 2]}));
    accepted("/strange", json!({"0": {}}));
    accepted("/keyslots/0/comment", json!("mine"));
    let m = accepted("/tokens/3", json!({"type": "clevis", "keyslots": ["0"], "jwe": {}}));
    assert_eq!(m.tokens[&3].kind, "clevis");
    assert_eq!(m.json["tokens"]["3"]["jwe"], json!({}));
    let m = accepted("/keyslots/0/kdf", json!({"type": "argon2", "salt": "x", "x": 1}));
    assert!(matches!(&m.keyslots[&0].kind, KeyslotKind::Luks2(s)
        if s.kdf == SlotKdf::Unknown("argon2".into())));
    accepted("/config/flags", json!(["allow-discards", "never-heard-of"]));
    accepted("/keyslots/0/priority", json!(2));
}

#[test]
fn the_five_top_level_objects_are_mandatory() {
    for name in ["keyslots", "tokens", "segments", "digests", "config"] {
        refused(&format!("/{name}"), json!(null), 10);
        refused(&format!("/{name}"), json!(42), 10);
        refused(&format!("/{name}"), json!([]), 10);
    }
}

#[test]
fn numbers_are_what_they_should_be() {
    for bad in [json!(-5), json!(0), json!(1.5), json!("1000"), json!(1e3), json!(null)] {
        refused("/keyslots/0/kdf/iterations", bad.clone(), 9);
        refused("/keyslots/0/key_size", bad.clone(), 9);
        refused("/digests/0/iterations", bad, 9);
    }
    for bad in [
        json!("-42"),
        json!("+1"),
        json!(" 1"),
        json!(""),
        json!("18446744073709551616"),
        json!(4096),
        json!("0x10"),
        json!(null),
    ] {
        refused("/segments/0/offset", bad.clone(), 9);
        refused("/segments/0/iv_tweak", bad.clone(), 9);
        refused("/keyslots/0/area/offset", bad, 9);
    }
    refused("/keyslots/0/priority", json!(3), 9);
}

#[test]
fn references_must_exist_and_slots_have_one_digest() {
    refused("/digests/0/keyslots", json!(["0", "1"]), 16);
    refused("/digests/0/keyslots", json!([]), 16);
    refused("/digests/0/keyslots", json!([0]), 16);
    refused("/digests/0/segments", json!(["1"]), 16);
    refused("/digests/0/segments", json!([]), 16);
    refused("/tokens/0", json!({"type": "x", "keyslots": ["7"]}), 16);
    let second = base()["digests"]["0"].clone();
    refused("/digests/1", second, 16);
    for id in ["40", "00", "-1", "x"] {
        refused(&format!("/keyslots/{id}"), base()["keyslots"]["0"].clone(), 8);
    }
    refused("/digests/8", base()["digests"]["0"].clone(), 8);
}

#[test]
fn the_config_must_fit_the_header_and_the_payload() {
    refused("/config/json_size", json!("12287"), 11);
    refused("/config/json_size", json!("28672"), 11);
    refused("/config/keyslots_size", json!("262143"), 11);
    refused("/config/keyslots_size", json!("134221824"), 11);
    refused("/config/keyslots_size", json!("1019904"), 11);
    accepted("/config/keyslots_size", json!("1015808"));
    refused("/config/flags", json!("allow-discards"), 45);
    refused("/config/requirements", json!(["x"]), 13);
    refused("/config/requirements", json!({"mandatory": "x"}), 13);
    let m = accepted("/config/requirements", json!({"mandatory": ["future"]}));
    assert_eq!(m.config.requirements, ["future"]);
}

#[test]
fn areas_lie_in_the_keyslot_region_and_apart() {
    refused("/keyslots/0/area", json!(42), 33);
    refused("/keyslots/0/area/offset", json!("32767"), 33);
    refused("/keyslots/0/area/size", json!("0"), 33);
    refused("/keyslots/0/area/size", json!("262145"), 33);
    refused("/keyslots/0/area/offset", json!("18446744073709551615"), 33);
    refused("/keyslots/0/area/type", json!("journal"), 33);
    let mut two = with("/keyslots/1", base()["keyslots"]["0"].clone());
    two["digests"]["0"]["keyslots"] = json!(["0", "1"]);
    two["keyslots"]["1"]["area"]["offset"] = json!("290815");
    two["keyslots"]["1"]["area"]["size"] = json!("4096");
    assert_eq!(parse(two.clone()).unwrap_err().check, 33);
    two["keyslots"]["1"]["area"]["offset"] = json!("290816");
    parse(two).unwrap();
}

#[test]
fn a_keyslots_parts_are_checked() {
    refused("/keyslots/0/type", json!(null), 10);
    refused("/keyslots/0/af", json!(null), 23);
    refused("/keyslots/0/af/type", json!(42), 23);
    refused("/keyslots/0/af/type", json!("other"), 23);
    refused("/keyslots/0/af/stripes", json!("4000"), 9);
    refused("/keyslots/0/kdf", json!([]), 27);
    refused("/keyslots/0/kdf/salt", json!(7), 29);
    refused("/keyslots/0/kdf/colour", json!("blue"), 27);
    refused("/keyslots/0/area/encryption", json!(""), 33);
}

#[test]
fn leftovers_of_another_derivation_are_dropped_with_a_note() {
    let kdf = json!({"type": "argon2id", "time": 4, "memory": 32, "cpus": 1, "salt": "x",
        "hash": "sha256", "iterations": 1000});
    let m = accepted("/keyslots/0/kdf", kdf);
    assert_eq!(m.notes.len(), 2);
    assert!(m.json["keyslots"]["0"]["kdf"].get("hash").is_none());
}

#[test]
fn segments_follow_their_rules() {
    refused("/segments/0/type", json!(null), 34);
    refused("/segments/0/type", json!(5), 34);
    refused("/segments/0/type", json!(""), 34);
    refused("/segments/0/offset", json!("1048577"), 34);
    refused("/segments/0/size", json!(4096), 34);
    refused("/segments/0/size", json!("automatic"), 9);
    refused("/segments/0/size", json!("511"), 34);
    refused("/segments/0/size", json!("0"), 34);
    refused("/segments/0/size", json!("18446744073709551616"), 9);
    accepted("/segments/0/size", json!("18446744073709551104"));
    refused("/segments/0/encryption", json!(""), 39);
    refused("/segments/0/encryption", json!({}), 39);
    refused("/segments/0/sector_size", json!(1023), 35);
    refused("/segments/0/sector_size", json!("4096"), 9);
    refused("/segments/0/sector_size", json!(-1024), 9);
    accepted("/segments/0/sector_size", json!(1536));
    refused("/segments/0/flags", json!("x"), 34);
    refused("/segments/0/flags", json!(["x", 1]), 34);
    refused("/segments/0/integrity", json!({"type": "hmac(sha256)"}), 44);
}

#[test]
fn segment_sets_have_no_gaps_and_no_overlaps() {
    let linear =
        |offset: &str, size: &str| json!({"type": "other", "offset": offset, "size": size});
    refused("/segments/1", linear("2097152", "dynamic"), 34);
    let mut v = with("/segments/1", linear("2097152", "dynamic"));
    v["segments"]["0"]["size"] = json!("1048576");
    parse(v.clone()).unwrap();
    v["segments"]["0"]["size"] = json!("1049088");
    assert_eq!(parse(v).unwrap_err().check, 34);
    refused("/segments/2", linear("2097152", "512"), 34);
    let backup = json!({"type": "linear", "offset": "0", "size": "dynamic",
        "flags": ["backup-final"]});
    refused("/segments/2", backup.clone(), 34);
    let mut v = with("/segments/1", backup.clone());
    v["segments"]["1"]["offset"] = json!("1048576");
    parse(v).unwrap();
    let mut only = base();
    only["segments"] = json!({"0": backup});
    only["digests"]["0"]["segments"] = json!(["0"]);
    assert_eq!(parse(only).unwrap_err().check, 34);
}

#[test]
fn a_reencryption_slot_and_its_requirement_come_together() {
    refused("/config/requirements", json!({"mandatory": ["online-reencrypt-v2"]}), 42);
    let slot = json!({"type": "reencrypt", "key_size": 1, "mode": "reencrypt",
        "direction": "forward", "area": {"type": "checksum", "offset": "290816", "size": "4096",
        "hash": "sha256", "sector_size": 512}});
    let mut v = with("/keyslots/1", slot);
    v["digests"]["0"]["keyslots"] = json!(["0", "1"]);
    assert_eq!(parse(v.clone()).unwrap_err().check, 42);
    v["config"]["requirements"] = json!({"mandatory": ["online-reencrypt-v2"]});
    parse(v.clone()).unwrap();
    for (field, bad) in [("key_size", json!(2)), ("mode", json!("x")), ("direction", json!("up"))] {
        let mut v = v.clone();
        v["keyslots"]["1"][field] = bad;
        assert_eq!(parse(v).unwrap_err().check, 42, "{field}");
    }
    let twice = json!({"mandatory": ["online-reencrypt-v2", "online-reencrypt"]});
    v["config"]["requirements"] = twice;
    assert_eq!(parse(v).unwrap_err().check, 42);
}
