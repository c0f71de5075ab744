//! Whole runs: what comes out, what is refused, interruption, slots.

use super::*;
use crate::cipher::CipherSpec;
use crate::manage::{NewKey, Proof, add_key};
use proptest::prelude::*;

const PROTECTS: [Protect; 3] = [Protect::Checksum(Hash::Sha256), Protect::Journal, Protect::None];
const DIRECTIONS: [Direction; 2] = [Direction::Forward, Direction::Backward];

#[test]
fn every_direction_and_resilience_gives_the_same_data_under_another_key() {
    let plain = noise(96 << 10);
    for from in [512, 4096] {
        let before = volume(&plain, from);
        for direction in DIRECTIONS {
            for protect in PROTECTS {
                let to = SectorSize::new(if from == 512 { 4096 } else { 512 });
                let plan = Start { direction, protect, sector_size: to, ..plan() };
                let begun = begun(&before, &plan);
                assert_eq!(begun[BASE..], before[BASE..], "nothing is converted at the start");
                let (ended, disk) = resume(&begun, 16 << 10);
                assert_eq!(ended.unwrap(), Ended::Finished);
                let after = disk.image();
                let (data, size) = contents(&after, SECRET).unwrap();
                assert!(data == plain, "{direction:?} {protect:?}");
                assert_eq!(Some(size), to.map(SectorSize::bytes));
                assert_ne!(after[BASE..], before[BASE..]);
                let h = header(&after);
                assert!(h.metadata.config.requirements.is_empty());
                assert_eq!(h.metadata.keyslots.len(), 1, "the old slot is gone");
                assert_eq!((h.metadata.segments.len(), h.metadata.digests.len()), (1, 1));
                assert!(h.metadata.json["config"].get("requirements").is_none());
            }
        }
    }
}

#[test]
fn it_stops_between_zones_and_goes_on_there() {
    let plain = noise(96 << 10);
    for direction in DIRECTIONS {
        let mut image = begun(&volume(&plain, 512), &Start { direction, ..plan() });
        let mut seen = Vec::new();
        for _ in 0..20 {
            let disk = Mem::from_bytes(&image);
            let held = disk.clone();
            let ended = Sim::new(5).run(|rt| async move {
                let work = Reencryption::resume(&rt, &on(&held), &options(), &[key(SECRET)])
                    .await
                    .unwrap();
                let mut asked = 0;
                let mut watch = |_| {
                    asked += 1;
                    if asked == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                };
                work.with_zone(20 << 10).unwrap().run(&mut watch).await.unwrap()
            });
            image = disk.to_vec();
            match ended {
                Ended::Interrupted(p) => seen.push(p.done >> 10),
                Ended::Finished => break,
            }
            let refused = contents(&image, SECRET).unwrap_err().to_string();
            assert!(refused.contains("--resume-only"), "{refused}");
        }
        assert_eq!(seen, [20, 40, 60, 80], "{direction:?}");
        assert!(contents(&image, SECRET).unwrap().0 == plain);
    }
}

/// C27, in part: a volume under way is not changed by anything else.
#[test]
fn a_second_start_and_a_wrong_secret_write_nothing() {
    let image = begun(&volume(&noise(32 << 10), 512), &plan());
    let disk = Recorder::new(&image);
    let held = disk.clone();
    Sim::new(6).run(|rt| async move {
        let again = start(&rt, &on(&held), &options(), &plan()).await.map(drop).unwrap_err();
        assert!(again.to_string().contains("--resume-only"), "{again}");
        let wrong = Reencryption::resume(&rt, &on(&held), &options(), &[key("x")]).await.map(drop);
        assert!(matches!(wrong, Err(Error::WrongKey { .. })));
    });
    assert!(!disk.has_written());
    let none = resume(&volume(&noise(4096), 512), 4096).0.unwrap_err();
    assert!(none.to_string().contains("no re-encryption"), "{none}");
}

#[test]
fn a_slot_whose_secret_is_not_given_is_lost_only_when_that_was_said() {
    let before = volume(&noise(32 << 10), 512);
    let disk = Mem::from_bytes(&before);
    let held = disk.clone();
    Sim::new(7).run(|rt| async move {
        let proof = Proof::Secret(key(SECRET));
        let new = NewKey { secret: key("two"), slot: None, protection: cheap() };
        add_key(&rt, &held, &options(), &proof, &new).await.unwrap();
        let refused = start(&rt, &on(&held), &options(), &plan()).await.map(drop).unwrap_err();
        assert!(refused.to_string().contains("keyslot 1"), "{refused}");
        // Two slots of two keys do not fit into this small region.
        let both = Start { secrets: vec![key(SECRET), key("two")], ..plan() };
        let full = start(&rt, &on(&held), &options(), &both).await.map(drop).unwrap_err();
        assert!(full.to_string().contains("no gap"), "{full}");
        let header = Header::read(&held, None).await.unwrap();
        header.check_activatable().expect("an ordinary volume still");
    });
    assert!(contents(&disk.to_vec(), "two").is_ok());
}

#[test]
fn every_secret_that_is_given_opens_the_new_volume() {
    let plain = noise(64 << 10);
    let disk = Mem::from_bytes(&vec![0; (4 << 20) + plain.len()]);
    let (held, data) = (disk.clone(), plain.clone());
    let volume = Sim::new(8).run(|rt| async move {
        let how = FormatOptions {
            sector_size: SectorSize::new(512),
            pbkdf: cheap().pbkdf,
            cost: cheap().cost,
            data_offset: Some(4 << 20),
            ..FormatOptions::new(LuksVersion::Luks2)
        };
        crate::create::format(&rt, &held, &how, &key(SECRET)).await.unwrap();
        let proof = Proof::Secret(key(SECRET));
        for (slot, secret) in [(3, "two"), (4, "three")] {
            let new = NewKey { secret: key(secret), slot: Some(slot), protection: cheap() };
            add_key(&rt, &held, &options(), &proof, &new).await.unwrap();
        }
        let token = serde_json::json!({"type": "mine", "keyslots": ["3"]});
        let mut editor = MetadataEditor::open(held.clone(), None).await.unwrap();
        editor
            .update(|draft| {
                draft.json["tokens"]["0"] = token;
                Ok(())
            })
            .await
            .unwrap();
        let old = unlock(&rt, &held, &options(), &key("two")).await.unwrap();
        let mut cipher = data.clone();
        old.segments[0].xts.encrypt(0, &mut cipher);
        held.poke(4 << 20, &cipher);
        let plan = Start {
            secrets: vec![key("two"), key(SECRET)],
            drop_other_keys: true,
            cipher: CipherSpec::parse("aes-xts-plain64").unwrap(),
            key_bits: 256,
            ..plan()
        };
        let work = start(&rt, &on(&held), &options(), &plan).await.unwrap();
        assert_eq!(work.run(&mut |_| ControlFlow::Continue(())).await.unwrap(), Ended::Finished);
        assert!(unlock(&rt, &held, &options(), &key("three")).await.is_err(), "was dropped");
        for secret in [SECRET, "two"] {
            let new = unlock(&rt, &held, &options(), &key(secret)).await.unwrap();
            assert!(new.key != old.key && new.key.len() == 32);
        }
        unlock(&rt, &held, &options(), &key("two")).await.unwrap()
    });
    let mut after = disk.to_vec()[4 << 20..].to_vec();
    volume.segments[0].xts.decrypt(0, &mut after);
    assert!(after == plain);
    let h = header(&disk.to_vec());
    assert_eq!(h.metadata.keyslots.len(), 2);
    assert_eq!(h.metadata.tokens[&0].keyslots, [volume.slot.unwrap()], "tokens follow their slot");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn any_size_and_zone_keeps_the_data(
        sectors in 1usize..200,
        zone in 1u64..64,
        sizes in (0u32..4, 0u32..4),
        forward in any::<bool>(),
        protect in 0usize..3,
    ) {
        let (from, to) = (512u64 << sizes.0, 512u64 << sizes.1);
        let unit = usize::try_from(from.max(to)).unwrap();
        let plain = noise((sectors * 512).next_multiple_of(unit));
        let direction = if forward { Direction::Forward } else { Direction::Backward };
        let plan = Start {
            direction, protect: PROTECTS[protect], sector_size: SectorSize::new(to), ..plan()
        };
        let begun = begun(&volume(&plain, from), &plan);
        // Anything below a block is refused, so blocks are what is drawn.
        let (ended, disk) = resume(&begun, zone * 4096);
        prop_assert_eq!(ended.unwrap(), Ended::Finished);
        prop_assert!(contents(&disk.image(), SECRET).unwrap().0 == plain);
    }
}
