//! C27: metadata that no correct run leaves are refused before anything is written.

use super::*;
use crate::format::metadata::SegmentKind;
use serde_json::{Value, json};

/// The image with another tree in both copies, checksums right. `None`: the tree is no header at all.
pub(super) fn with_tree(image: &[u8], edit: impl FnOnce(&mut Value)) -> Option<Vec<u8>> {
    let h = header(image);
    let mut tree = h.metadata.json.clone();
    edit(&mut tree);
    let metadata = Metadata::parse("test", tree, h.hdr_size).ok()?;
    let next = Luks2 { metadata, ..h };
    let mut image = image.to_vec();
    for (at, bytes) in next.encode(&mut crate::key::fill_random).unwrap().unwrap() {
        let at = usize::try_from(at).unwrap();
        image[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    Some(image)
}

/// A volume in the middle of its work, clean, and one cut inside of a zone.
fn halfway(protect: Protect) -> [Vec<u8>; 2] {
    let plain = noise(32 << 10);
    let begun = begun(&volume(&plain, 512), &Start { protect, ..plan() });
    let (_, disk) = resume(&begun, 12 << 10);
    let mut out = [None, None];
    crate::testing::recorder::each_cut(&begun, &disk.take(), |cut| {
        let h = header(cut.image);
        let hot = h.metadata.segments.values().any(state::is_hot);
        if h.metadata.regular_segments().count() == 2 + usize::from(hot) {
            out[usize::from(hot)].get_or_insert(cut.image.to_vec());
        }
    });
    out.map(Option::unwrap)
}

fn refused(image: &[u8], what: &str) {
    let (ended, disk) = resume(image, 12 << 10);
    let error = ended.expect_err(what);
    assert!(
        matches!(
            error,
            Error::Corrupt(_)
                | Error::Refused { .. }
                | Error::Unsupported(_)
                | Error::WrongKey { .. }
        ),
        "{what}: {error}"
    );
    assert!(!disk.has_written(), "{what}: {error}");
}

type Edit = Box<dyn Fn(&mut Value)>;

/// Edits of the keyslot and the requirement.
fn slot_edits() -> Vec<(&'static str, Edit)> {
    let slot = |t: &Value| {
        let slots = t["keyslots"].as_object().unwrap();
        slots.iter().find(|(_, s)| s["type"] == "reencrypt").unwrap().0.clone()
    };
    let at_slot = |field: &'static str, value: Value| -> Edit {
        Box::new(move |t: &mut Value| {
            let id = slot(t);
            t["keyslots"][id][field] = value.clone();
        })
    };
    let at_area = |field: &'static str, value: Value| -> Edit {
        Box::new(move |t: &mut Value| {
            let id = slot(t);
            t["keyslots"][id]["area"][field] = value.clone();
        })
    };
    let required = |list: Value| -> Edit {
        Box::new(move |t: &mut Value| t["config"]["requirements"]["mandatory"] = list.clone())
    };
    vec![
        ("requirement with a tail", required(json!(["online-reencryptx"]))),
        ("two requirements", required(json!(["online-reencrypt-v2", "online-reencrypt-v3"]))),
        ("no requirement", required(json!([]))),
        ("the unsigned requirement", required(json!(["online-reencrypt"]))),
        ("another version", required(json!(["online-reencrypt-v3"]))),
        ("an unknown version", required(json!(["online-reencrypt-v9"]))),
        ("one more requirement", required(json!(["online-reencrypt-v2", "opal"]))),
        ("slot type", at_slot("type", json!("luks3"))),
        ("mode", at_slot("mode", json!("decrypt"))),
        ("mode", at_slot("mode", json!("encrypt"))),
        ("direction", at_slot("direction", json!("backward"))),
        ("key_size", at_slot("key_size", json!(2))),
        ("resilience", at_area("type", json!("journal"))),
        ("resilience", at_area("type", json!("none"))),
        ("resilience", at_area("type", json!("datashift"))),
        ("hash", at_area("hash", json!("sha1"))),
        ("hash", at_area("hash", json!("crc"))),
        ("block", at_area("sector_size", json!(512))),
        ("block", at_area("sector_size", json!(1000))),
        ("area", at_area("size", json!("4096"))),
    ]
}

/// Edits of segments and digests.
fn segment_edits() -> Vec<(&'static str, Edit)> {
    let segment = |id: &'static str, field: &'static str, value: Value| -> Edit {
        Box::new(move |t: &mut Value| t["segments"][id][field] = value.clone())
    };
    vec![
        ("linear", segment("1", "type", json!("linear"))),
        ("linear backup", segment("3", "type", json!("linear"))),
        ("cipher", segment("0", "encryption", json!("aes-cbc-plain64"))),
        ("tweak", segment("1", "iv_tweak", json!("0"))),
        ("offset", segment("1", "offset", json!("595968"))),
        ("size", segment("0", "size", json!("8192"))),
        ("backup tweak", segment("3", "iv_tweak", json!("8"))),
        ("backup offset", segment("3", "offset", json!("655360"))),
        ("backup sector size", segment("2", "sector_size", json!(4096))),
        ("backup flag", segment("2", "flags", json!(["backup-final"]))),
        ("no backup flag", segment("3", "flags", json!(["backup-other"]))),
        ("null", segment("3", "encryption", json!("cipher_null-ecb"))),
        ("hot", segment("1", "flags", json!(["in-reencryption"]))),
        (
            "digests exchanged",
            Box::new(|t: &mut Value| {
                let one = t["digests"]["0"]["segments"].clone();
                t["digests"]["0"]["segments"] = t["digests"]["1"]["segments"].clone();
                t["digests"]["1"]["segments"] = one;
            }),
        ),
        (
            "digest of another",
            Box::new(|t: &mut Value| {
                t["digests"]["2"]["digest"] = t["digests"]["1"]["digest"].clone();
            }),
        ),
        (
            "digest with a segment",
            Box::new(|t: &mut Value| {
                t["digests"]["2"]["segments"] = json!(["0"]);
            }),
        ),
        (
            "segment of nobody",
            Box::new(|t: &mut Value| {
                t["digests"]["0"]["segments"] = json!([]);
            }),
        ),
    ]
}

#[test]
fn every_row_of_the_mangling_list_is_refused_without_a_write() {
    let mut edits = slot_edits();
    edits.extend(segment_edits());
    let [clean, hot] = halfway(Protect::Checksum(Hash::Sha256));
    for image in [&clean, &hot] {
        assert!(matches!(resume(image, 12 << 10).0, Ok(Ended::Finished)), "the base is good");
        let mut refusals = 0;
        for (what, edit) in &edits {
            match with_tree(image, |t| edit(t)) {
                None => refusals += 1,
                // On the other base the edit may have hit what was so already.
                Some(same) if header(&same).metadata.json == header(image).metadata.json => {}
                Some(forged) => {
                    refused(&forged, what);
                    refusals += 1;
                }
            }
        }
        assert!(refusals > 30, "{refusals}");
    }
}

/// What is not covered by the digest and harmless is no reason to refuse.
#[test]
fn unknown_flags_and_a_missing_priority_are_accepted() {
    let [clean, _] = halfway(Protect::Journal);
    let image = with_tree(&clean, |t| {
        t["segments"]["0"]["flags"] = json!(["something-new"]);
        for (_, slot) in t["keyslots"].as_object_mut().unwrap() {
            if slot["type"] == "reencrypt" {
                slot.as_object_mut().unwrap().shift_remove("priority");
            }
        }
    });
    assert!(matches!(resume(&image.unwrap(), 12 << 10).0, Ok(Ended::Finished)));
}

/// Where the reference leaves a volume when it is killed at its last writes: data done, old key gone.
#[test]
fn a_finished_volume_without_its_old_key_is_cleaned_up() {
    let plain = noise(32 << 10);
    let begun = begun(&volume(&plain, 512), &plan());
    let (_, disk) = resume(&begun, 12 << 10);
    let mut last = None;
    crate::testing::recorder::each_cut(&begun, &disk.take(), |cut| {
        let h = header(cut.image);
        let segments: Vec<_> = h.metadata.regular_segments().collect();
        let requirement = !h.metadata.config.requirements.is_empty();
        let new = h.metadata.digests.get(&1).is_some_and(|d| d.segments.contains(&0));
        if requirement && segments.len() == 1 && new && !state::is_hot(segments[0].1) {
            assert!(matches!(segments[0].1.kind, SegmentKind::Crypt { .. }));
            last.get_or_insert(cut.image.to_vec());
        }
    });
    let image = with_tree(&last.unwrap(), |t| crate::manage::tree::remove_keyslot(t, 0)).unwrap();
    let (ended, disk) = resume(&image, 12 << 10);
    assert_eq!(ended.unwrap(), Ended::Finished);
    assert!(contents(&disk.image(), SECRET).unwrap().0 == plain);
    assert_eq!(header(&disk.image()).metadata.digests.len(), 1);
}
