//! Key management over a device that is cut at every sector (C22, C23).

mod convert;
mod headers;

use super::*;
use crate::error::Error;
use crate::header::Header;
use crate::kdf::{Argon2Kind, Cost, Limits, Pbkdf};
use crate::key::Key;
use crate::testing::recorder::{Cut, Event, Recorder, each_cut};
use crate::unlock::UnlockOptions;
use crate::{FormatOptions, Hash, LuksVersion};
use std::sync::Arc;
use varve_block::{DevId, Geometry, Rt, Sectors, Sim};

const FORCED: Cost = Cost::Forced { iterations: 1000, memory_kib: 32, lanes: 1 };
const BOTH: [LuksVersion; 2] = [LuksVersion::Luks1, LuksVersion::Luks2];

fn how() -> Protection {
    Protection { pbkdf: Pbkdf::Pbkdf2(Hash::Sha256), cost: FORCED, hash: Hash::Sha256 }
}

fn secret(text: &str) -> Arc<Key> {
    Arc::new(Key::copy_from(text.as_bytes()))
}

fn new(text: &str) -> NewKey {
    NewKey { secret: secret(text), slot: None, protection: how() }
}

fn proof(text: &str) -> Proof {
    Proof::Secret(secret(text))
}

fn options() -> UnlockOptions {
    UnlockOptions::default()
}

/// A small volume that `first` opens.
pub(super) fn volume(version: LuksVersion) -> Vec<u8> {
    let small = FormatOptions {
        pbkdf: Pbkdf::Pbkdf2(Hash::Sha256),
        cost: FORCED,
        ..FormatOptions::new(version)
    };
    let (o, len) = match version {
        LuksVersion::Luks1 => (small, (2 << 20) + 4096),
        LuksVersion::Luks2 => (
            FormatOptions { keyslots_size: Some(1 << 20), data_offset: Some(2 << 20), ..small },
            (2 << 20) + 4096,
        ),
    };
    let disk = Recorder::new(&vec![0; len]);
    let held = disk.clone();
    Sim::new(1)
        .run(|rt| async move { crate::format(&rt, &held, &o, &secret("first")).await })
        .unwrap();
    disk.image()
}

/// Runs an operation on an image; gives its result, the image after it, and what it wrote.
pub(super) fn run<T: 'static, F>(
    image: &[u8],
    work: impl FnOnce(Rt, Recorder) -> F,
) -> (Result<T, Error>, Vec<u8>, Vec<Event>)
where
    F: Future<Output = Result<T, Error>> + 'static,
{
    let disk = Recorder::new(image);
    let held = disk.clone();
    let done = Sim::new(1).run(|rt| work(rt, held));
    (done, disk.image(), disk.take())
}

pub(super) fn parse(image: &[u8]) -> Header {
    Header::parse(image, image.len() as u64, None).expect("a header at every moment")
}

/// The slot that a secret opens.
pub(super) fn opens(image: &[u8], text: &str) -> Option<u32> {
    let limits = Limits::default();
    let header = parse(image);
    let list = header.candidates(None, &limits).unwrap().list;
    list.into_iter().find_map(|c| {
        let at = usize::try_from(c.area_offset).unwrap();
        let area = &image[at..at + usize::try_from(c.area_len).unwrap()];
        c.attempt(area, &secret(text), &limits).unwrap().map(|_| c.slot)
    })
}

/// Areas are long and all alike: passphrases are tried at the ends of a run of writes, and now and then.
fn worth_trying(cut: &Cut<'_>) -> bool {
    cut.of < 100 || cut.sectors < 2 || cut.sectors + 2 > cut.of || cut.sectors.is_multiple_of(97)
}

fn add(image: &[u8], text: &'static str) -> Vec<u8> {
    let (done, after, _) = run(image, |rt, d| async move {
        add_key(&rt, &d, &options(), &proof("first"), &new(text)).await
    });
    done.unwrap();
    after
}

#[test]
fn an_added_key_opens_and_the_old_one_still_does() {
    for version in BOTH {
        let before = volume(version);
        let after = add(&before, "second");
        assert_eq!((opens(&after, "first"), opens(&after, "second")), (Some(0), Some(1)));
        assert_eq!(opens(&after, "third"), None);
        let Header::Luks2(h) = parse(&after) else { continue };
        assert!(h.notes.is_empty(), "{:?}", h.notes);
        assert_eq!(h.metadata.digests[&0].keyslots, [0, 1]);
    }
}

#[test]
fn adding_needs_a_key_that_opens_the_volume() {
    for version in BOTH {
        let before = volume(version);
        let (done, after, _) = run(&before, |rt, d| async move {
            add_key(&rt, &d, &options(), &proof("wrong"), &new("second")).await
        });
        assert!(matches!(done, Err(Error::WrongKey { .. })));
        assert!(after == before, "nothing is written");
        let key = parse(&before).candidates(None, &Limits::default()).unwrap().list.remove(0);
        let at = usize::try_from(key.area_offset).unwrap();
        let area = &before[at..at + usize::try_from(key.area_len).unwrap()];
        let found = key.attempt(area, &secret("first"), &Limits::default()).unwrap().unwrap();
        let proof = Proof::VolumeKey(Arc::new(found.key));
        let (done, after, _) = run(&before, |rt, d| async move {
            add_key(&rt, &d, &options(), &proof, &new("second")).await
        });
        assert_eq!(done.unwrap(), 1, "the volume key proves itself");
        assert_eq!(opens(&after, "second"), Some(1));
    }
}

/// C22, C23 for `add`: the old key always opens; the new one exactly when the header names its slot.
#[test]
fn a_cut_while_adding_leaves_the_old_keys_or_one_more() {
    for version in BOTH {
        let before = volume(version);
        let (done, after, events) = run(&before, |rt, d| async move {
            add_key(&rt, &d, &options(), &proof("first"), &new("second")).await
        });
        assert_eq!(done.unwrap(), 1);
        assert_eq!(opens(&after, "second"), Some(1));
        let (mut without, mut with) = (0, 0);
        each_cut(&before, &events, |cut| {
            let named =
                parse(cut.image).candidates(None, &Limits::default()).unwrap().list.len() == 2;
            if named {
                with += 1;
            } else {
                without += 1;
            }
            if worth_trying(cut) {
                assert_eq!(opens(cut.image, "first"), Some(0));
                assert_eq!(opens(cut.image, "second").is_some(), named, "named, and half-written");
            }
        });
        assert!(without > 500 && with > 0, "{version:?}: {without} {with}");
    }
}

/// C22, C23 for `change`: never a moment without a key that opens.
#[test]
fn a_cut_while_changing_leaves_the_old_key_or_the_new() {
    for version in BOTH {
        let before = volume(version);
        let (done, after, events) = run(&before, |rt, d| async move {
            change_key(&rt, &d, &options(), &secret("first"), &new("second")).await
        });
        let changed = done.unwrap();
        match version {
            LuksVersion::Luks1 => assert_eq!((changed.old, changed.new), (0, 1)),
            LuksVersion::Luks2 => assert_eq!((changed.old, changed.new), (0, 0)),
        }
        assert_eq!(opens(&after, "first"), None, "the old key is dead");
        assert_eq!(opens(&after, "second"), Some(changed.new));
        let old = match parse(&before) {
            Header::Luks1(h) => u64::from(h.slots[0].material_offset) * 512,
            Header::Luks2(h) => h.metadata.keyslots[&0].area_offset,
        };
        let area = usize::try_from(old).unwrap();
        let left = (0..500).filter(|i| {
            let at = area + 512 * i;
            after[at..at + 512] == before[at..at + 512]
        });
        assert_eq!(left.count(), 0, "no sector of the old area is left");
        each_cut(&before, &events, |cut| {
            parse(cut.image);
            if worth_trying(cut) {
                let keys = (opens(cut.image, "first"), opens(cut.image, "second"));
                match version {
                    LuksVersion::Luks1 => assert!(keys.0.is_some() || keys.1.is_some()),
                    LuksVersion::Luks2 => {
                        assert!(
                            keys.0.is_some() != keys.1.is_some(),
                            "one at every moment: {keys:?}"
                        );
                    }
                }
            }
        });
    }
}

/// C22, C23 for `remove`: the others always open; the removed one never after the first write of noise.
#[test]
fn a_cut_while_removing_never_brings_a_key_back() {
    for version in BOTH {
        let before = add(&volume(version), "second");
        let (done, after, events) = run(&before, |rt, d| async move {
            remove_key(&rt, &d, &options(), &secret("second"), false).await
        });
        assert_eq!(done.unwrap(), 1);
        assert_eq!((opens(&after, "first"), opens(&after, "second")), (Some(0), None));
        let mut whole = 0;
        each_cut(&before, &events, |cut| {
            parse(cut.image);
            if worth_trying(cut) {
                assert_eq!(opens(cut.image, "first"), Some(0));
                if cut.sectors > 0 || cut.of < 100 {
                    assert_eq!(opens(cut.image, "second"), None);
                } else {
                    whole += 1;
                }
            }
        });
        assert!(whole > 0);
    }
}

#[test]
fn the_last_key_goes_only_when_that_was_said() {
    for version in BOTH {
        let before = volume(version);
        let (done, after, _) = run(&before, |rt, d| async move {
            remove_key(&rt, &d, &options(), &secret("first"), false).await
        });
        assert!(done.unwrap_err().to_string().contains("last key"));
        assert!(after == before);
        let (done, after, _) =
            run(
                &before,
                |rt, d| async move { kill_slot(&rt, &d, &options(), 0, None, false).await },
            );
        assert!(done.unwrap_err().to_string().contains("last key"));
        assert!(after == before);
        let (done, after, _) =
            run(
                &before,
                |rt, d| async move { kill_slot(&rt, &d, &options(), 0, None, true).await },
            );
        done.unwrap();
        assert_eq!(opens(&after, "first"), None);
        let (done, again, _) =
            run(&after, |rt, d| async move { kill_slot(&rt, &d, &options(), 0, None, true).await });
        assert!(done.unwrap_err().to_string().contains("no keyslot 0"));
        assert!(again == after);
    }
}

/// An unbound key opens no volume, so it does not count as the last but one.
#[test]
fn unbound_keys_are_apart() {
    let before = volume(LuksVersion::Luks2);
    let (done, after, _) = run(&before, |rt, d| async move {
        add_unbound_key(&rt, &d, &options(), 32, &new("second")).await
    });
    assert_eq!(done.unwrap(), 1);
    let Header::Luks2(h) = parse(&after) else { panic!("LUKS2") };
    assert_eq!(
        (h.metadata.digests[&1].keyslots.as_slice(), h.metadata.digests[&1].segments.len()),
        (&[1][..], 0)
    );
    assert_eq!(h.metadata.keyslots[&1].key_size, 32);
    assert_eq!(opens(&after, "second"), Some(1));
    let (done, _, _) = run(&after, |rt, d| async move {
        add_key(&rt, &d, &options(), &proof("second"), &new("third")).await
    });
    assert!(done.unwrap_err().to_string().contains("no volume"));
    let (done, _, _) =
        run(&after, |rt, d| async move { kill_slot(&rt, &d, &options(), 0, None, false).await });
    assert!(done.unwrap_err().to_string().contains("last key"));
    let (done, after, _) =
        run(&after, |rt, d| async move { kill_slot(&rt, &d, &options(), 1, None, false).await });
    done.unwrap();
    let Header::Luks2(h) = parse(&after) else { panic!("LUKS2") };
    assert!(!h.metadata.digests.contains_key(&1));
    let (done, _, _) = run(&volume(LuksVersion::Luks1), |rt, d| async move {
        add_unbound_key(&rt, &d, &options(), 32, &new("second")).await
    });
    assert!(matches!(done, Err(Error::Unsupported(_))));
}

#[test]
fn a_witness_must_open_another_slot() {
    for version in BOTH {
        let before = add(&volume(version), "second");
        for (text, word) in [("second", "slot 1 itself"), ("wrong", "no usable keyslot")] {
            let (done, after, _) = run(&before, |rt, d| async move {
                kill_slot(&rt, &d, &options(), 1, Some(&secret(text)), false).await
            });
            assert!(done.unwrap_err().to_string().contains(word));
            assert!(after == before);
        }
        let (done, after, _) = run(&before, |rt, d| async move {
            kill_slot(&rt, &d, &options(), 1, Some(&secret("first")), false).await
        });
        done.unwrap();
        assert_eq!(opens(&after, "second"), None);
    }
}

#[test]
fn slots_run_out_and_are_used_again() {
    for version in BOTH {
        let mut image = volume(version);
        let mut added = 1;
        let refused = loop {
            let (done, after, _) = run(&image, |rt, d| async move {
                add_key(&rt, &d, &options(), &proof("first"), &new("more")).await
            });
            match done {
                Ok(slot) => assert_eq!(slot, added),
                Err(e) => break e.to_string(),
            }
            (image, added) = (after, added + 1);
        };
        match version {
            LuksVersion::Luks1 => assert!(added == 8 && refused.contains("all eight"), "{refused}"),
            LuksVersion::Luks2 => assert!(added == 4 && refused.contains("no gap"), "{refused}"),
        }
        // A full volume cannot change a key without a moment of risk, so it does not.
        let (done, after, _) = run(&image, |rt, d| async move {
            change_key(&rt, &d, &options(), &secret("first"), &new("x")).await
        });
        assert!(done.is_err() && after == image);
        let (done, image, _) =
            run(
                &image,
                |rt, d| async move { kill_slot(&rt, &d, &options(), 2, None, false).await },
            );
        done.unwrap();
        let one = NewKey { slot: Some(3), ..new("again") };
        let (done, _, _) = run(&image, |rt, d| async move {
            add_key(&rt, &d, &options(), &proof("first"), &one).await
        });
        assert!(done.unwrap_err().to_string().contains("keyslot 3 is in use"));
        let image = add(&image, "again");
        assert_eq!(opens(&image, "again"), Some(2), "{version:?}: the gap in the middle");
    }
}

#[test]
fn erasing_leaves_a_header_without_keys() {
    for version in BOTH {
        let before = add(&volume(version), "second");
        let (done, after, events) = run(&before, |_, d| async move { erase(&d, &options()).await });
        assert_eq!(done.unwrap(), [0, 1]);
        assert_eq!((opens(&after, "first"), opens(&after, "second")), (None, None));
        assert_eq!(parse(&after).uuid(), parse(&before).uuid());
        each_cut(&before, &events, |cut| {
            parse(cut.image);
        });
        let (done, _, _) = run(&after, |_, d| async move { erase(&d, &options()).await });
        assert_eq!(done.unwrap(), [0; 0], "nothing left to erase");
    }
}

#[test]
fn argon2_slots_and_long_keys_are_made_too() {
    let before = volume(LuksVersion::Luks2);
    let cost = Cost::Forced { iterations: 4, memory_kib: 32, lanes: 1 };
    let protection = Protection { pbkdf: Pbkdf::Argon2(Argon2Kind::Id), cost, hash: Hash::Sha512 };
    let one = NewKey { secret: secret("second"), slot: Some(7), protection };
    let (done, after, _) =
        run(
            &before,
            |rt, d| async move { add_key(&rt, &d, &options(), &proof("first"), &one).await },
        );
    assert_eq!(done.unwrap(), 7);
    assert_eq!(opens(&after, "second"), Some(7));
    let (done, _, _) = run(&volume(LuksVersion::Luks1), |rt, d| async move {
        let one = NewKey { secret: secret("second"), slot: None, protection };
        add_key(&rt, &d, &options(), &proof("first"), &one).await
    });
    assert!(done.unwrap_err().to_string().contains("PBKDF2 only"));
}

#[test]
fn an_area_that_does_not_come_back_is_not_named() {
    for version in BOTH {
        let before = volume(version);
        let disk = Recorder::new(&before);
        let at = match parse(&before) {
            Header::Luks1(h) => u64::from(h.slots[1].material_offset),
            Header::Luks2(h) => (h.metadata.keyslots[&0].area_offset + 258_048) / 512,
        };
        disk.lose_writes_at(varve_block::Sector(at));
        let held = disk.clone();
        let done = Sim::new(1).run(|rt| async move {
            add_key(&rt, &held, &options(), &proof("first"), &new("second")).await
        });
        assert!(matches!(done, Err(Error::NotStored { what: "keyslot area", .. })), "{done:?}");
        assert!(parse(&disk.image()) == parse(&before));
    }
}

#[test]
fn nothing_is_changed_while_a_re_encryption_waits() {
    let before = volume(LuksVersion::Luks2);
    let (done, image, _) = run(&before, |_, d| async move {
        let mut editor = MetadataEditor::open(d, None).await?;
        editor
            .update(|draft| {
                draft.json["config"]["requirements"] =
                    serde_json::json!({"mandatory": ["offline-reencrypt"]});
                Ok(())
            })
            .await
            .map(drop)
    });
    done.unwrap();
    let (done, after, _) = run(&image, |rt, d| async move {
        add_key(&rt, &d, &options(), &proof("first"), &new("second")).await
    });
    assert!(matches!(done, Err(Error::Unsupported(_))));
    let (erased, after2, _) = run(&image, |_, d| async move { erase(&d, &options()).await });
    assert!(erased.is_err() && after == image && after2 == image);
}

#[test]
fn a_device_of_large_blocks_is_changed_too() {
    let geometry = Geometry {
        block: Sectors(8),
        ..Geometry::new(DevId::new("mem"), Sectors(((2 << 20) + 4096) / 512))
    };
    for version in BOTH {
        let disk = varve_block::dev::Mem::with_geometry(geometry.clone());
        disk.poke(0, &volume(version));
        let held = disk.clone();
        Sim::new(1).run(|rt| async move {
            add_key(&rt, &held, &options(), &proof("first"), &new("second")).await.unwrap();
            remove_key(&rt, &held, &options(), &secret("first"), false).await.unwrap();
        });
        let after = disk.to_vec();
        assert_eq!((opens(&after, "first"), opens(&after, "second")), (None, Some(1)));
    }
}
