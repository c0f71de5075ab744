//! Backup, restore, repair and settings, cut at every sector where they write.

use super::*;
use crate::format::luks2::{HeaderCopy, OtherCopy};
use crate::format::metadata::Priority;
use zeroize::Zeroizing;

fn luks2(image: &[u8]) -> crate::Luks2 {
    match parse(image) {
        Header::Luks2(h) => *h,
        Header::Luks1(_) => panic!("LUKS2"),
    }
}

fn taken(image: &[u8]) -> Zeroizing<Vec<u8>> {
    let (bytes, after, events) = run(image, |_, d| async move { Ok(backup(&d, None).await?.0) });
    assert!(after == image && events.is_empty(), "a backup only reads");
    bytes.unwrap()
}

#[test]
fn a_restored_backup_brings_the_old_keys_back_and_nothing_of_the_new() {
    for version in BOTH {
        let before = volume(version);
        let saved = taken(&before);
        let changed = add(&before, "second");
        let (done, erased, _) = run(&changed, |_, d| async move { erase(&d, &options()).await });
        done.unwrap();
        let mut wiped = before.clone();
        wiped[..64 << 10].fill(0xa5);
        for image in [&changed, &erased, &wiped] {
            let held = saved.clone();
            let (done, after, events) =
                run(image, |_, d| async move { Backup::parse(held)?.restore(&d).await });
            done.unwrap();
            assert!(after[..saved.len()] == saved[..]);
            assert!(after[saved.len()..] == image[saved.len()..], "nothing behind it is written");
            assert_eq!((opens(&after, "first"), opens(&after, "second")), (Some(0), None));
            // C22: at a cut there is the old header, none, or the restored one with all its areas.
            let (mut none, mut whole) = (0, 0);
            each_cut(image, &events, |cut| {
                match Header::parse(cut.image, cut.image.len() as u64, None) {
                    Ok(h) if h == parse(&after) && cut.image[..512] != image[..512] => {
                        whole += 1;
                        assert!(opens(cut.image, "first").is_some(), "a header without its areas");
                    }
                    Ok(_) => {}
                    Err(_) => none += 1,
                }
            });
            assert!(none > 500 && whole > 0, "{version:?}: {none} {whole}");
        }
    }
}

#[test]
fn what_does_not_fit_the_device_is_named() {
    let (one, two) = (volume(LuksVersion::Luks1), volume(LuksVersion::Luks2));
    let backup = |image: &[u8]| Backup::parse(taken(image)).unwrap();
    assert!(backup(&one).concerns(Some(&parse(&one))).is_empty());
    assert!(backup(&two).concerns(Some(&parse(&two))).is_empty());
    assert!(backup(&two).concerns(None).is_empty());
    let mixed = backup(&one).concerns(Some(&parse(&two))).join("; ");
    assert!(mixed.contains("LUKS1 in the backup, LUKS2 on the device"), "{mixed}");
    let other = volume(LuksVersion::Luks2);
    let uuid = backup(&two).concerns(Some(&parse(&other)));
    assert!(uuid.len() == 1 && uuid[0].starts_with("UUID"), "{uuid:?}");
    let mut moved = parse(&two);
    if let Header::Luks2(h) = &mut moved {
        h.metadata.segments.get_mut(&0).unwrap().offset = 4 << 20;
    }
    let moved = backup(&two).concerns(Some(&moved)).join("; ");
    assert!(
        moved.contains("bytes 2097152+ in the backup, bytes 4194304+ on the device"),
        "{moved}"
    );
}

#[test]
fn a_damaged_or_short_backup_is_refused_before_anything_is_written() {
    for version in BOTH {
        let before = volume(version);
        let saved = taken(&before);
        for len in [0, 511, 4096, 40_000, saved.len() - 1] {
            let cut = Zeroizing::new(saved[..len].to_vec());
            assert!(Backup::parse(cut).is_err(), "{version:?}: {len} bytes");
        }
        let small = &before[..saved.len() - 4096];
        let (done, after, events) =
            run(small, |_, d| async move { Backup::parse(saved)?.restore(&d).await });
        assert!(done.is_err() && after == small && events.is_empty());
    }
}

#[test]
fn settings_change_in_one_write_and_nothing_else_does() {
    let before = add(&volume(LuksVersion::Luks2), "second");
    let settings = Settings {
        label: Some("attic".into()),
        subsystem: Some("disks".into()),
        priority: Some((1, Priority::Ignore)),
        flags: Some(vec!["allow-discards".into()]),
    };
    let (done, after, events) =
        run(&before, |_, d| async move { configure(d, None, settings).await });
    done.unwrap();
    let (old, new) = (luks2(&before), luks2(&after));
    assert_eq!((new.label.as_str(), new.subsystem.as_str()), ("attic", "disks"));
    assert_eq!(new.metadata.keyslots[&1].priority, Priority::Ignore);
    assert_eq!(new.metadata.config.flags, ["allow-discards"]);
    assert_eq!(new.seqid, old.seqid + 1);
    assert_eq!(opens(&after, "second"), None, "only when named");
    each_cut(&before, &events, |cut| {
        let now = luks2(cut.image);
        assert!(now.seqid == old.seqid && now.label.is_empty() || now.label == "attic");
    });
    for bad in [
        Settings { flags: Some(vec!["fly".into()]), ..Settings::default() },
        Settings { priority: Some((9, Priority::Prefer)), ..Settings::default() },
        Settings { label: Some("x".repeat(48)), ..Settings::default() },
    ] {
        let (done, same, _) = run(&after, |_, d| async move { configure(d, None, bad).await });
        assert!(done.is_err() && same == after);
    }
}

#[test]
fn a_new_uuid_is_written_in_both_formats() {
    for version in BOTH {
        let before = volume(version);
        let uuid = uuid::Uuid::from_u128(7);
        let (done, after, events) =
            run(&before, |_, d| async move { set_uuid(&d, None, uuid).await });
        done.unwrap();
        assert_eq!(parse(&after).uuid(), uuid.to_string());
        assert_eq!(opens(&after, "first"), Some(0));
        let old = parse(&before).uuid().to_owned();
        each_cut(&before, &events, |cut| {
            let len = cut.image.len() as u64;
            match Header::parse(cut.image, len, None) {
                Ok(now) => assert!(now.uuid() == old || now.uuid() == uuid.to_string()),
                // Between the copies of LUKS2 there are two names; either copy is whole.
                Err(Error::Refused { check: 14, .. }) => {
                    let named =
                        |c| Header::parse(cut.image, len, Some(c)).unwrap().uuid().to_owned();
                    assert_eq!(named(HeaderCopy::Primary), uuid.to_string());
                    assert_eq!(named(HeaderCopy::Secondary), old);
                }
                Err(e) => panic!("{e}"),
            }
        });
    }
}

#[test]
fn tokens_come_and_go_as_they_are() {
    let before = volume(LuksVersion::Luks2);
    let text = br#"{"type":"clevis","keyslots":["0"],"jwe":{"deep":[1,2,{"a":"b"}]}}"#;
    let import = |image: &[u8], text: &'static [u8], id, replace| {
        run(image, |_, d| async move { import_token(d, None, text, id, replace).await })
    };
    let (id, image, _) = import(&before, text, None, false);
    assert_eq!(id.unwrap(), 0);
    let kept = serde_json::to_vec(&luks2(&image).metadata.json["tokens"]["0"]).unwrap();
    assert_eq!(kept, text, "byte for byte");
    assert!(import(&image, text, Some(0), false).0.is_err(), "taken");
    assert_eq!(import(&image, text, Some(0), true).0.unwrap(), 0);
    let (id, image, _) = import(&image, text, Some(31), false);
    assert_eq!(id.unwrap(), 31);
    let bad: [&[u8]; 5] = [
        b"",
        b"[]",
        b"{}",
        br#"{"type":"x","keyslots":["9"]}"#,
        br#"{"type":"x","type":"y","keyslots":[]}"#,
    ];
    for text in bad {
        let (refused, after, _) = import(&image, text, None, false);
        assert!(refused.is_err() && after == image);
    }
    assert!(import(&image, text, Some(32), false).0.is_err());
    // A key that is added or removed leaves the tokens as they are.
    let image = add(&image, "second");
    let (done, image, _) =
        run(&image, |rt, d| async move { kill_slot(&rt, &d, &options(), 0, None, false).await });
    done.unwrap();
    let token = &luks2(&image).metadata.json["tokens"]["31"];
    assert_eq!(token["jwe"]["deep"][2]["a"], "b");
    assert_eq!(token["keyslots"], serde_json::json!([]));
    let (done, image, _) = run(&image, |_, d| async move { remove_token(d, None, 31).await });
    done.unwrap();
    assert_eq!(luks2(&image).metadata.tokens.keys().collect::<Vec<_>>(), [&0]);
    assert!(run(&image, |_, d| async move { remove_token(d, None, 31).await }).0.is_err());
}

#[test]
fn a_repair_makes_the_copies_alike_and_says_what_it_did() {
    let good = volume(LuksVersion::Luks2);
    let fix = |image: &[u8]| run(image, |_, d| async move { repair(&d, None).await });
    let (found, same, _) = fix(&good);
    assert!(found.unwrap().is_none() && same == good, "nothing to do, nothing written");
    for at in [0, 16384] {
        let mut broken = good.clone();
        broken[at + 5000] ^= 1;
        let (found, after, _) = fix(&broken);
        let found = found.unwrap();
        assert!(found.rewrites.is_some() && found.notes[0].contains("unusable"), "{found:?}");
        assert_eq!(luks2(&after).other, OtherCopy::Same);
        assert_eq!(luks2(&after).seqid, luks2(&good).seqid, "the state is the same one");
        assert_eq!(opens(&after, "first"), Some(0));
    }
    let (found, same, _) = fix(&volume(LuksVersion::Luks1));
    assert!(found.unwrap().is_none() && !same.is_empty());
}
