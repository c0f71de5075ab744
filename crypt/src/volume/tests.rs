use super::*;
use crate::format::luks2::Luks2;
use crate::testing::{images, vk1};
use serde_json::{Value, json};

fn header(edit: impl FnOnce(&mut Value)) -> Header {
    let image = images::luks2_a();
    let Header::Luks2(mut h) = Header::parse(&image, image.len() as u64, None).unwrap() else {
        panic!("LUKS2")
    };
    let mut json = h.metadata.json.clone();
    edit(&mut json);
    h.metadata = crate::format::metadata::Metadata::parse("test", json, h.hdr_size).unwrap();
    Header::Luks2(Box::new(Luks2 { ..*h }))
}

const DEVICE: Sectors = Sectors(2048 + 64);

fn map(h: &Header, detached: bool, digest: Option<u32>) -> Result<Volume> {
    let options =
        MapOptions { data_len: DEVICE, detached, allow_weak_key: false, engine: Engine::Auto };
    h.map(Verified { key: Key::copy_from(&vk1()), slot: Some(0), digest }, &options)
}

#[track_caller]
fn refused(edit: impl FnOnce(&mut Value), check: u8) {
    match map(&header(edit), false, Some(0)) {
        Err(Error::Corrupt(Corrupt { check: c, .. }) | Error::Refused { check: c, .. }) => {
            assert_eq!(c, check);
        }
        other => panic!("check {check}: {other:?}"),
    }
}

#[test]
fn a_dynamic_segment_fills_the_device() {
    let v = map(&header(|_| {}), false, Some(0)).unwrap();
    assert_eq!((v.len(), v.sector_size), (Sectors(64), SectorSize::S4096));
    assert_eq!(v.segments[0].below, Sector(2048));
    assert_eq!(v.segments[0].iv_number(Sector(8)), 8);
    assert!(v.flags.is_empty());
    assert!(!format!("{v:?}").contains("8003"), "no key bytes");
}

#[test]
fn what_passes_the_parser_still_meets_the_device() {
    let seg = |v: &mut Value, name: &str, to: Value| v["segments"]["0"][name] = to;
    refused(|v| seg(v, "sector_size", json!(1536)), 35);
    refused(|v| seg(v, "sector_size", json!(65536)), 35);
    refused(|v| seg(v, "iv_tweak", json!("1")), 35);
    refused(|v| seg(v, "size", json!("4608")), 35);
    refused(|v| seg(v, "size", json!("18446744073709547520")), 36);
    refused(|v| seg(v, "size", json!("36864")), 36);
    refused(|v| seg(v, "offset", json!("1081344")), 36);
    refused(|v| seg(v, "iv_tweak", json!("18446744073709551608")), 38);
    refused(|v| seg(v, "encryption", json!("cipher_null-ecb")), 41);
    refused(|v| seg(v, "offset", json!("0")), 37);
}

#[test]
fn a_payload_at_sector_zero_needs_a_detached_header() {
    let h = header(|v| v["segments"]["0"]["offset"] = json!("0"));
    assert_eq!(map(&h, true, Some(0)).unwrap().len(), DEVICE);
    let image = images::luks1();
    let Header::Luks1(mut l) = Header::parse(&image, image.len() as u64, None).unwrap() else {
        panic!("LUKS1")
    };
    l.payload_offset = 0;
    assert!(map(&Header::Luks1(l.clone()), false, None).is_err());
    assert_eq!(map(&Header::Luks1(l), true, None).unwrap().len(), DEVICE);
}

#[test]
fn the_key_of_another_digest_is_never_mapped() {
    let h = header(|v| {
        let mut other = v["digests"]["0"].clone();
        other["segments"] = json!([]);
        other["keyslots"] = json!([]);
        v["digests"]["1"] = other;
    });
    assert!(matches!(map(&h, false, Some(1)), Err(Error::Refused { check: 21, .. })));
    assert!(matches!(map(&h, false, None), Err(Error::Refused { check: 21, .. })));
}

#[test]
fn what_we_do_not_do_is_named() {
    let unsupported = |edit: &dyn Fn(&mut Value), word: &str| {
        let e = map(&header(edit), false, Some(0)).unwrap_err();
        assert!(matches!(&e, Error::Unsupported(t) if t.contains(word)), "{e}");
    };
    unsupported(&|v| v["config"]["requirements"] = json!({"mandatory": ["future"]}), "future");
    unsupported(&|v| v["segments"]["0"]["encryption"] = json!("cast5-xts-plain64"), "cast5");
    unsupported(
        &|v| {
            v["segments"]["0"]["integrity"] = json!({"type": "cmac(aes)",
                "journal_encryption": "none", "journal_integrity": "none"});
        },
        "integrity",
    );
    unsupported(&|v| v["segments"]["0"]["type"] = json!("hw-opal"), "hw-opal");
    let e = map(&header(|v| v["segments"]["0"]["type"] = json!("linear")), false, Some(0));
    assert!(matches!(e, Err(Error::Refused { check: 41, .. })), "plaintext behind a LUKS header");
}

#[test]
fn pieces_of_a_range_follow_the_segments() {
    let h = header(|v| {
        v["segments"]["0"]["size"] = json!("8192");
        let mut second = v["segments"]["0"].clone();
        second["offset"] = json!("1064960");
        second["iv_tweak"] = json!("64");
        second["size"] = json!("dynamic");
        v["segments"]["1"] = second;
        v["digests"]["0"]["segments"] = json!(["0", "1"]);
    });
    let v = map(&h, false, Some(0)).unwrap();
    assert_eq!(v.len(), Sectors(16 + 32));
    let parts: Vec<_> = v
        .pieces(Extent::new(Sector(8), Sectors(24)))
        .map(|(m, e)| (m.below(e.start).0, e.len.0, m.iv_number(e.start)))
        .collect();
    assert_eq!(parts, [(2056, 8, 8), (2080, 16, 64)]);
}
