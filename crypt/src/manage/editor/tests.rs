use super::*;
use crate::format::luks2::tests::reseal;
use crate::testing::images;
use crate::testing::recorder::{Event, Recorder, each_cut};
use serde_json::json;
use varve_block::{Sector, Sim};

const SECOND: usize = 16384;

/// The vector's head: headers, keyslots, and a payload of nothing.
fn image() -> Vec<u8> {
    images::luks2_a()[..1 << 20].to_vec()
}

fn parse(image: &[u8]) -> Result<Luks2> {
    match Header::parse(image, image.len() as u64, None)? {
        Header::Luks2(h) => Ok(*h),
        Header::Luks1(_) => panic!("LUKS2"),
    }
}

/// Runs one labelling over the image and gives what was written.
fn label(
    image: &[u8],
    only: Option<HeaderCopy>,
    label: &str,
) -> (Result<Luks2>, Vec<u8>, Vec<Event>) {
    let disk = Recorder::new(image);
    let (held, label) = (disk.clone(), label.to_owned());
    let done = Sim::new(1).run(|_| async move {
        let mut editor = MetadataEditor::open(held, only).await?;
        editor
            .update(|draft| {
                draft.label = label;
                draft.json["tokens"]["0"] = json!({"type": "mine", "keyslots": ["0"]});
                Ok(())
            })
            .await
            .cloned()
    });
    (done, disk.image(), disk.take())
}

fn heal(image: &[u8], only: Option<HeaderCopy>) -> (Result<bool>, Vec<u8>, Vec<Event>) {
    let disk = Recorder::new(image);
    let held = disk.clone();
    let done =
        Sim::new(1).run(|_| async move { MetadataEditor::open(held, only).await?.heal().await });
    (done, disk.image(), disk.take())
}

#[test]
fn an_update_is_read_back_with_both_copies_alike() {
    let before = parse(&image()).unwrap();
    let (done, after, _) = label(&image(), None, "attic");
    let read = parse(&after).unwrap();
    assert_eq!(done.unwrap(), read);
    assert_eq!(
        (read.label.as_str(), read.seqid, read.other),
        ("attic", before.seqid + 1, OtherCopy::Same)
    );
    assert_eq!(read.metadata.tokens[&0].kind, "mine");
    assert_ne!(after[104..168], image()[104..168], "a fresh salt");
    assert_ne!(after[104..168], after[SECOND + 104..SECOND + 168], "one per copy");
    assert_eq!(after[2 * SECOND..], image()[2 * SECOND..], "nothing else was written");
}

/// C22: a cut at each 512-byte write leaves the old metadata or the new, and a header that can be made
/// whole again.
#[test]
fn a_cut_at_every_write_leaves_the_old_state_or_the_new() {
    let stale = {
        let (_, mut newer, _) = label(&image(), None, "newer");
        newer[SECOND..2 * SECOND].copy_from_slice(&image()[SECOND..2 * SECOND]);
        newer
    };
    let older_primary = {
        let (_, mut newer, _) = label(&image(), None, "newer");
        newer[..SECOND].copy_from_slice(&image()[..SECOND]);
        newer
    };
    let mut no_primary = image();
    no_primary[..SECOND].fill(0);
    let mut no_secondary = image();
    no_secondary[SECOND..2 * SECOND].fill(0);
    for before in [image(), stale, older_primary, no_primary, no_secondary] {
        let old = parse(&before).unwrap();
        let (done, _, events) = label(&before, None, "changed");
        let new = done.unwrap();
        let (mut olds, mut news) = (0, 0);
        each_cut(&before, &events, |cut| {
            let now = parse(cut.image).expect("one copy is good at every moment");
            match now.seqid {
                s if s == old.seqid => {
                    assert_eq!(now.metadata.json, old.metadata.json);
                    assert_eq!(now.label, old.label);
                    olds += 1;
                }
                s if s == new.seqid => {
                    assert_eq!(now.metadata.json, new.metadata.json);
                    assert_eq!(now.label, "changed");
                    news += 1;
                }
                other => panic!("seqid {other}: a third state"),
            }
            if cut.sectors % 7 == 0 || cut.sectors == cut.of {
                let (done, healed, _) = heal(cut.image, None);
                done.expect("can be made whole");
                let healed = parse(&healed).unwrap();
                assert_eq!((healed.seqid, healed.other), (now.seqid, OtherCopy::Same));
            }
        });
        assert!(olds > 30 && news > 30, "{olds} {news}");
    }
}

/// The same for the repair itself.
#[test]
fn a_cut_while_healing_loses_nothing() {
    let (_, mut stale, _) = label(&image(), None, "newer");
    stale[..SECOND].copy_from_slice(&image()[..SECOND]);
    let (done, healed, events) = heal(&stale, None);
    assert!(done.unwrap());
    assert_eq!(
        healed[SECOND..2 * SECOND],
        stale[SECOND..2 * SECOND],
        "the good copy is not touched"
    );
    each_cut(&stale, &events, |cut| {
        assert_eq!(parse(cut.image).unwrap().label, "newer");
    });
    let (again, same, events) = heal(&healed, None);
    assert!(!again.unwrap(), "nothing to do");
    assert!(same == healed && !events.iter().any(|e| matches!(e, Event::Write(..))));
}

/// C24: copies that disagree are reported, and written over only when the operator names one.
#[test]
fn copies_that_disagree_are_left_alone_until_one_is_named() {
    let edit = |image: &mut [u8], at: usize, byte: usize, value: u8| {
        image[at + byte] = value;
        reseal(image, at);
    };
    let mut other_uuid = image();
    edit(&mut other_uuid, SECOND, 168, b'9');
    edit(&mut other_uuid, SECOND, 23, 9);
    let mut equal_seqid = image();
    edit(&mut equal_seqid, SECOND, 24, b'V');
    for before in [&other_uuid, &equal_seqid] {
        let (refused, after, _) = heal(before, None);
        assert!(matches!(refused, Err(Error::Refused { check: 14, .. })), "{refused:?}");
        assert!(&after == before, "nothing is written");
        for copy in [HeaderCopy::Primary, HeaderCopy::Secondary] {
            let kept = copy.index() * SECOND..(copy.index() + 1) * SECOND;
            let (done, after, _) = heal(before, Some(copy));
            assert!(done.unwrap());
            assert_eq!(after[kept.clone()], before[kept], "the named copy is kept as it is");
            assert_eq!(parse(&after).unwrap().other, OtherCopy::Same);
        }
    }
    let (refused, after, _) = label(&other_uuid, None, "x");
    assert!(refused.is_err() && after == other_uuid);
    // An update settles it too: it was told which.
    let (done, after, _) = label(&other_uuid, Some(HeaderCopy::Secondary), "x");
    assert_eq!(done.unwrap().seqid, 10);
    assert_eq!(parse(&after).unwrap().other, OtherCopy::Same);
}

#[test]
fn a_primary_overwritten_by_a_file_system_is_written_over_only_when_asked() {
    let mut before = image();
    before[..SECOND].fill(0);
    before[1024 + 56..1024 + 58].copy_from_slice(b"\x53\xef");
    let (refused, after, _) = heal(&before, None);
    assert!(matches!(refused, Err(Error::Refused { check: 14, .. })));
    assert!(after == before);
    let (done, after, _) = heal(&before, Some(HeaderCopy::Secondary));
    assert!(done.unwrap());
    assert_eq!(parse(&after).unwrap().other, OtherCopy::Same);
}

#[test]
fn a_tree_that_breaks_a_rule_is_not_written() {
    let disk = Recorder::new(&image());
    let held = disk.clone();
    Sim::new(1).run(|_| async move {
        let mut editor = MetadataEditor::open(held, None).await.unwrap();
        let bad: [fn(&mut Draft); 6] = [
            |d| d.json["digests"]["0"]["keyslots"] = json!(["7"]),
            |d| d.json["config"]["keyslots_size"] = json!("8192"),
            |d| d.json["segments"] = json!([]),
            |d| {
                d.json["tokens"]["0"] =
                    json!({"type": "big", "keyslots": [], "x": "y".repeat(12288)})
            },
            |d| d.label = "x".repeat(48),
            |d| d.uuid = "not-a-uuid".into(),
        ];
        for edit in bad {
            let refused = editor
                .update(|d| {
                    edit(d);
                    Ok(())
                })
                .await;
            assert!(refused.is_err());
        }
    });
    assert!(!disk.has_written());
}

#[test]
fn a_header_that_somebody_else_changed_is_left_alone() {
    let disk = Recorder::new(&image());
    let held = disk.clone();
    Sim::new(1).run(|_| async move {
        let mut one = MetadataEditor::open(held.clone(), None).await.unwrap();
        let mut two = MetadataEditor::open(held.clone(), None).await.unwrap();
        one.update(|d| {
            d.label = "one".into();
            Ok(())
        })
        .await
        .unwrap();
        held.take();
        let e = two.update(|_| Ok(())).await.unwrap_err().to_string();
        assert!(e.contains("somebody else changed the header"), "{e}");
        assert!(!held.has_written());
        // The one that wrote goes on.
        assert_eq!(one.update(|_| Ok(())).await.unwrap().seqid, 5);
    });
}

#[test]
fn an_unknown_requirement_forbids_writing() {
    let mut before = image();
    for at in [0, SECOND] {
        let mut tree: Value = serde_json::from_str(images::LUKS2_A_JSON).unwrap();
        tree["config"]["requirements"] = json!({"mandatory": ["teleport"]});
        let text = tree.to_string();
        before[at + 4096..at + 4096 + text.len()].copy_from_slice(text.as_bytes());
        reseal(&mut before, at);
    }
    let (refused, after, _) = label(&before, None, "x");
    assert!(matches!(refused, Err(Error::Unsupported(_))), "{refused:?}");
    assert!(after == before);
}

#[test]
fn what_reads_back_differently_stops_the_update_with_one_good_copy_left() {
    let disk = Recorder::new(&image());
    disk.lose_writes_at(Sector(8));
    let held = disk.clone();
    Sim::new(1).run(|_| async move {
        let mut editor = MetadataEditor::open(held, None).await.unwrap();
        let edit = |d: &mut Draft| {
            d.json["tokens"]["0"] = json!({"type": "mine", "keyslots": []});
            Ok(())
        };
        let e = editor.update(edit).await.unwrap_err();
        assert!(matches!(e, Error::NotStored { .. }), "{e}");
        assert!(editor.update(edit).await.is_err(), "this editor writes no more");
    });
    let now = parse(&disk.image()).unwrap();
    assert_eq!((now.copy, now.seqid), (HeaderCopy::Secondary, 3));
}
