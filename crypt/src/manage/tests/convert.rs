//! From one format to the other, cut at every sector: a volume of the one or of the other, with its keys.

use super::*;
use crate::{CipherSpec, SectorSize};

/// A LUKS2 volume that LUKS1 could be.
fn plain_luks2() -> Vec<u8> {
    let o = FormatOptions {
        pbkdf: Pbkdf::Pbkdf2(Hash::Sha256),
        cost: FORCED,
        keyslots_size: Some(1 << 20),
        data_offset: Some(2 << 20),
        sector_size: Some(SectorSize::S512),
        ..FormatOptions::new(LuksVersion::Luks2)
    };
    let disk = Recorder::new(&vec![0; (2 << 20) + 4096]);
    let held = disk.clone();
    Sim::new(1)
        .run(|rt| async move { crate::format(&rt, &held, &o, &secret("first")).await })
        .unwrap();
    disk.image()
}

fn to_luks2(image: &[u8]) -> (Result<(), Error>, Vec<u8>, Vec<Event>) {
    run(image, |_, d| async move { convert_to_luks2(&d).await })
}

fn to_luks1(image: &[u8]) -> (Result<(), Error>, Vec<u8>, Vec<Event>) {
    run(image, |_, d| async move { convert_to_luks1(&d).await })
}

/// Data and everything that says what it is.
fn facts(header: &Header) -> (String, String, u64) {
    match header {
        Header::Luks1(h) => {
            let spec = h.cipher_spec().unwrap();
            (h.uuid.clone(), spec.text().to_owned(), u64::from(h.payload_offset) * 512)
        }
        Header::Luks2(h) => {
            let crate::SegmentKind::Crypt { encryption, .. } = &h.metadata.segments[&0].kind else {
                panic!("crypt")
            };
            assert!(CipherSpec::parse(encryption).is_ok());
            (h.uuid.clone(), encryption.clone(), h.metadata.segments[&0].offset)
        }
    }
}

#[track_caller]
fn survives(before: &[u8], after: &[u8], events: &[Event]) {
    assert_eq!(facts(&parse(before)), facts(&parse(after)));
    let (mut old, mut new) = (0, 0);
    each_cut(before, events, |cut| {
        let now = parse(cut.image);
        assert_eq!(facts(&now), facts(&parse(before)));
        if now.version() == parse(before).version() {
            old += 1;
        } else {
            new += 1;
        }
        if worth_trying(cut) {
            assert!(opens(cut.image, "first").is_some());
            assert!(opens(cut.image, "second").is_some());
        }
    });
    assert!(old > 0 && new > 0, "{old} {new}");
}

#[test]
fn a_luks1_volume_becomes_luks2_and_back_with_its_keys() {
    let one = add(&volume(LuksVersion::Luks1), "second");
    let (done, two, events) = to_luks2(&one);
    done.unwrap();
    survives(&one, &two, &events);
    assert_eq!(parse(&two).version(), 2);
    assert!(parse(&two).notes().is_empty(), "{:?}", parse(&two).notes());
    assert_eq!((opens(&two, "first"), opens(&two, "second")), (Some(0), Some(1)));
    // The area that moved is nowhere a second time.
    let Header::Luks1(h) = parse(&one) else { panic!("LUKS1") };
    let old = usize::try_from(h.slots[0].material_offset).unwrap() * 512;
    let left = (0..500).filter(|i| {
        let sector = old + 512 * i..old + 512 * (i + 1);
        two[sector.clone()] == one[sector]
    });
    assert_eq!(left.count(), 0, "old key material is left");
    let (done, back, events) = to_luks1(&two);
    done.unwrap();
    survives(&two, &back, &events);
    assert_eq!((opens(&back, "first"), opens(&back, "second")), (Some(0), Some(1)));
    // And what was made so can be managed on.
    let third = {
        let (done, image, _) = run(&back, |rt, d| async move {
            add_key(&rt, &d, &options(), &proof("second"), &new("third")).await
        });
        done.unwrap();
        image
    };
    assert_eq!(opens(&third, "third"), Some(2));
    assert_eq!(opens(&third, "first"), Some(0));
}

#[test]
fn a_luks2_volume_becomes_luks1() {
    let two = add(&plain_luks2(), "second");
    let (done, one, events) = to_luks1(&two);
    done.unwrap();
    survives(&two, &one, &events);
    let mut lost = one.clone();
    lost[..512].fill(0);
    assert!(Header::parse(&lost, lost.len() as u64, None).is_err(), "no old secondary waits");
}

#[test]
fn a_full_luks1_volume_has_no_room_to_move() {
    let mut image = volume(LuksVersion::Luks1);
    for _ in 0..7 {
        image = add(&image, "more");
    }
    let (refused, after, events) = to_luks2(&image);
    assert!(refused.unwrap_err().to_string().contains("slots 1 to 5 must be free"));
    assert!(after == image && events.is_empty());
    let (done, image, _) =
        run(&image, |rt, d| async move { kill_slot(&rt, &d, &options(), 5, None, false).await });
    done.unwrap();
    let (done, after, _) = to_luks2(&image);
    done.unwrap();
    assert_eq!(opens(&after, "first"), Some(0));
}

#[test]
fn what_luks1_does_not_know_stops_the_conversion() {
    type Edit = fn(&mut serde_json::Value);
    let rows: [(&str, Edit); 6] = [
        ("tokens", |j| j["tokens"]["0"] = serde_json::json!({"type": "x", "keyslots": []})),
        ("persistent flags", |j| j["config"]["flags"] = serde_json::json!(["allow-discards"])),
        ("above 512", |j| j["segments"]["0"]["sector_size"] = 4096.into()),
        ("IV offset", |j| j["segments"]["0"]["iv_tweak"] = "8".into()),
        ("another hash", |j| j["keyslots"]["0"]["af"]["hash"] = "sha512".into()),
        ("otherwise than the data", |j| {
            j["keyslots"]["0"]["area"]["encryption"] = "aes-xts-plain".into();
        }),
    ];
    for (word, edit) in rows {
        let (done, image, _) = run(&plain_luks2(), |_, d| async move {
            let mut editor = MetadataEditor::open(d, None).await?;
            let change = |draft: &mut Draft| {
                edit(&mut draft.json);
                Ok(())
            };
            editor.update(change).await.map(drop)
        });
        done.unwrap();
        let (refused, after, events) = to_luks1(&image);
        let e = refused.unwrap_err().to_string();
        assert!(e.contains(word), "{word}: {e}");
        assert!(after == image && events.is_empty());
    }
    let cost = Cost::Forced { iterations: 4, memory_kib: 32, lanes: 1 };
    let protection = Protection { pbkdf: Pbkdf::Argon2(Argon2Kind::Id), cost, hash: Hash::Sha256 };
    let one = NewKey { secret: secret("second"), slot: None, protection };
    let (done, image, _) = run(&plain_luks2(), |rt, d| async move {
        add_key(&rt, &d, &options(), &proof("first"), &one).await
    });
    done.unwrap();
    assert!(to_luks1(&image).0.unwrap_err().to_string().contains("pbkdf2"));
    let (done, image, _) = run(&plain_luks2(), |rt, d| async move {
        add_unbound_key(&rt, &d, &options(), 64, &new("second")).await
    });
    done.unwrap();
    assert!(to_luks1(&image).0.unwrap_err().to_string().contains("unbound"));
    assert!(to_luks1(&volume(LuksVersion::Luks1)).0.is_err());
    assert!(to_luks2(&plain_luks2()).0.is_err());
}
