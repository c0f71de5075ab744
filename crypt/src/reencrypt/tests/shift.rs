//! Payloads that move: encryption with the header on the disk, and decryption that takes it away.

use super::two::{self, Logged, each_cut};
use super::*;
use crate::hash::Hash;
use serde_json::{Value, json};

pub(super) type Events = Vec<(usize, two::Event)>;

/// By how much the payload moves; header and keyslots need 288 KiB.
const SHIFT: usize = 384 << 10;
const ZONE: u64 = 160 << 10;

pub(super) fn encrypt_plan() -> Start {
    Start {
        mode: Mode::Encrypt,
        reduce: Some(2 * SHIFT as u64),
        sector_size: SectorSize::new(4096),
        ..plan()
    }
}

pub(super) fn decrypt_plan(protect: Protect) -> Start {
    Start { mode: Mode::Decrypt, protect, ..plan() }
}

pub(super) fn devices(pair: &[Logged; 2], detached: bool) -> Devices<Logged> {
    let [header, data] = pair.clone();
    Devices { header: if detached { header } else { data.clone() }, data, detached }
}

/// What the operator does: the same command, again and again.
pub(super) async fn again(
    rt: &Rt,
    devices: &Devices<Logged>,
    plan: &Start,
    zone: u64,
) -> Result<Ended> {
    let under_way = match status(&devices.header, &options()).await {
        Ok(state) => state.is_some(),
        // A header that was being written; the beginning of the work knows more.
        Err(_) if plan.mode == Mode::Encrypt => false,
        Err(e) => return Err(e),
    };
    let work = match under_way {
        true => Reencryption::resume(rt, devices, &options(), &[key(SECRET)]).await?,
        false => start(rt, devices, &options(), plan).await?,
    };
    work.with_zone(zone)?.run(&mut |_| ControlFlow::Continue(())).await
}

fn run_on(
    images: &[Vec<u8>; 2],
    detached: bool,
    plan: &Start,
) -> (Result<Ended>, [Vec<u8>; 2], Events) {
    let pair = two::two(images);
    let (devices, plan) = (devices(&pair, detached), plan.clone());
    let ended = Sim::new(3).run(|rt| async move { again(&rt, &devices, &plan, ZONE).await });
    (ended, [pair[0].image(), pair[1].image()], pair[0].take())
}

/// The header says that nothing is under way.
pub(super) fn is_ordinary(image: &[u8]) -> bool {
    Header::parse(image, image.len() as u64, None)
        .is_ok_and(|h| matches!(h, Header::Luks2(h) if h.metadata.config.requirements.is_empty()))
}

fn opened(image: &[u8]) -> Vec<u8> {
    opened_at(image, SHIFT).1
}

/// Volume key, and plain data of the payload that begins there.
pub(super) fn opened_at(image: &[u8], at: usize) -> (Vec<u8>, Vec<u8>) {
    let disk = Mem::from_bytes(image);
    let volume = Sim::new(1)
        .run(|rt| async move { unlock(&rt, &disk, &options(), &key(SECRET)).await })
        .unwrap();
    let mut data = image[at..].to_vec();
    volume.segments[0].xts.decrypt(0, &mut data);
    (volume.key.bytes().to_vec(), data)
}

/// A plain disk of so many bytes before what the reduction takes.
fn plain_disk(len: usize) -> (Vec<u8>, [Vec<u8>; 2]) {
    let plain = noise(len);
    let mut disk = plain.clone();
    disk.resize(len + 2 * SHIFT, 0xee);
    (plain, [vec![0; 512], disk])
}

#[test]
fn a_plain_disk_gets_its_header_before_its_data() {
    // The shift, odd ends, several zones.
    for len in [384 << 10, 388 << 10, 1000 << 10, 1300 << 10] {
        let (plain, before) = plain_disk(len);
        let (ended, after, _) = run_on(&before, false, &encrypt_plan());
        assert_eq!(ended.unwrap(), Ended::Finished);
        let h = header(&after[1]);
        assert_eq!((h.metadata.segments.len(), h.metadata.digests.len()), (1, 1));
        assert_eq!(h.metadata.segments[&0].offset, SHIFT as u64);
        assert!(opened(&after[1])[..len] == plain, "{len}");
        assert!(after[1].windows(64).all(|w| !plain[..64].starts_with(w)), "no plain copy is left");
    }
}

/// A volume whose payload begins behind its header, and its header as a file.
fn volume_and_header(plain: &[u8]) -> [Vec<u8>; 2] {
    let disk = volume(plain, 512);
    let held = Mem::from_bytes(&disk);
    let file = Sim::new(1).run(|_| async move { export_header(&held).await }).unwrap();
    [file.to_vec(), disk]
}

#[test]
fn a_volume_loses_its_header_and_its_data_move_back() {
    for len in [4096, 200 << 10, 576 << 10, 580 << 10, 1300 << 10] {
        let plain = noise(len);
        for protect in [Protect::Checksum(Hash::Sha256), Protect::Journal] {
            let before = volume_and_header(&plain);
            let (ended, after, _) = run_on(&before, true, &decrypt_plan(protect));
            assert_eq!(ended.unwrap(), Ended::Finished);
            assert!(after[1][..len] == plain, "{len} {protect:?}");
            assert!(header(&after[0]).metadata.keyslots.is_empty());
        }
    }
}

/// Converts two zones of a decryption, gives the last part a size of its own, that much more than it has, and goes
/// on.
fn sized(before: &[Vec<u8>; 2], more: u64) -> (Result<Ended>, Vec<u8>) {
    let pair = two::two(before);
    let devices = devices(&pair, true);
    let ended = Sim::new(3).run(|rt| async move {
        let plan = decrypt_plan(Protect::Journal);
        let work = start(&rt, &devices, &options(), &plan).await?.with_zone(ZONE)?;
        let mut zones = 0;
        let mut two = |_| {
            zones += 1;
            if zones > 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let Ended::Interrupted(now) = work.run(&mut two).await? else { panic!("it is longer") };
        let mut editor = MetadataEditor::open(devices.header.clone(), None).await?;
        let edit = editor.update(|draft| {
            let segments = &mut draft.json["segments"];
            let moved: u64 = segments["0"]["size"].as_str().unwrap().parse().unwrap();
            let last = &mut segments["2"];
            assert_eq!((&last["type"], &last["size"]), (&json!("crypt"), &json!("dynamic")));
            let rest = now.total - moved - now.done;
            last["size"] = rest.wrapping_add(more).to_string().into();
            Ok(())
        });
        edit.await?;
        again(&rt, &devices, &plan, ZONE).await
    });
    (ended, pair[1].image())
}

/// As cryptsetup leaves it when it worked under a mapping.
#[test]
fn the_last_part_may_say_how_long_it_is() {
    let plain = noise(1300 << 10);
    let before = volume_and_header(&plain);
    let (ended, disk) = sized(&before, 0);
    assert_eq!(ended.unwrap(), Ended::Finished);
    assert!(disk[..plain.len()] == plain);
    for more in [4096, 0u64.wrapping_sub(4096)] {
        let (ended, _) = sized(&before, more);
        assert!(ended.unwrap_err().to_string().contains("segments.2.size"), "{more}");
    }
}

/// Under way with nothing left to do: the reference would convert the first part a second time.
pub(super) fn has_nothing_left(header: &[u8], disk: &[u8]) -> bool {
    match Header::parse(header, header.len() as u64, None) {
        Ok(Header::Luks2(h)) => {
            state::Operation::parse(&h, disk.len() as u64).is_ok_and(|op| op.position.is_finished())
        }
        _ => false,
    }
}

/// A readable header: whether it has a hot zone.
pub(super) fn status_of(image: &[u8]) -> Option<bool> {
    match Header::parse(image, image.len() as u64, None).ok()? {
        Header::Luks2(h) => Some(h.metadata.regular_segments().any(|(_, s)| state::is_hot(s))),
        Header::Luks1(_) => None,
    }
}

#[test]
fn what_cannot_be_done_is_refused_without_a_write() {
    let (_, before) = plain_disk(400 << 10);
    let volume = volume(&noise(800 << 10), 512);
    for (disk, reduce, what) in [
        (&before[1], 0, "multiple of 8192"),
        (&before[1], 4096 * 3, "multiple of 8192"),
        (&before[1], 1 << 30, "at least"),
        (&before[1], 64 << 10, "keyslots size"),
        (&volume, 2 * SHIFT as u64, "LUKS header"),
    ] {
        let pair = two::two(&[vec![0; 512], disk.clone()]);
        let plan = Start { reduce: Some(reduce), ..encrypt_plan() };
        let devices = devices(&pair, false);
        let refused = Sim::new(9)
            .run(|rt| async move { start(&rt, &devices, &options(), &plan).await.map(drop) })
            .unwrap_err()
            .to_string();
        assert!(refused.contains(what), "{refused}");
        assert!(!pair[1].has_written(), "{refused}");
    }
    let before = volume_and_header(&noise(400 << 10));
    let (refused, after, _) = run_on(&before, true, &decrypt_plan(Protect::None));
    assert!(refused.unwrap_err().to_string().contains("datashift-checksum"));
    assert!(after == before);
}

/// A wrong secret for a header that a cut kept from its place: nothing goes over the plain data.
#[test]
fn a_record_of_a_cut_beginning_needs_its_own_secret() {
    let (_, before) = plain_disk(400 << 10);
    let (_, _, events) = run_on(&before, false, &encrypt_plan());
    let mut seen = 0;
    each_cut(&before, &events, 10_000, |cut| {
        if status_of(&cut[1]).is_some() || cut[1][..512] != before[1][..512] {
            return;
        }
        let pair = two::two(cut);
        let (devices, plan) = (devices(&pair, false), encrypt_plan());
        let plan = Start { secrets: vec![key("another")], ..plan };
        let began = Sim::new(9)
            .run(|rt| async move { start(&rt, &devices, &options(), &plan).await.map(drop) });
        if matches!(began, Err(Error::WrongKey { .. })) {
            assert!(!pair[1].has_written());
            seen += 1;
        }
    });
    assert!(seen > 0);
}

type Edit = Box<dyn Fn(&mut Value)>;

/// Edits of what is particular to a payload that moves.
fn edits() -> Vec<(&'static str, Edit)> {
    let area = |field: &'static str, value: Value| -> Edit {
        Box::new(move |t: &mut Value| {
            for (_, slot) in t["keyslots"].as_object_mut().unwrap() {
                if slot["type"] == "reencrypt" {
                    slot["area"][field] = value.clone();
                }
            }
        })
    };
    let flagged = |flag: &'static str, field: &'static str, value: Value| -> Edit {
        Box::new(move |t: &mut Value| {
            for (_, segment) in t["segments"].as_object_mut().unwrap() {
                if segment["flags"][0] == flag {
                    segment[field] = value.clone();
                }
            }
        })
    };
    let slot = |field: &'static str, value: Value| -> Edit {
        Box::new(move |t: &mut Value| {
            for (_, slot) in t["keyslots"].as_object_mut().unwrap() {
                if slot["type"] == "reencrypt" {
                    slot[field] = value.clone();
                }
            }
        })
    };
    let first = |field: &'static str, value: Value| -> Edit {
        Box::new(move |t: &mut Value| t["segments"]["0"][field] = value.clone())
    };
    vec![
        ("shift", area("shift_size", json!("4096"))),
        ("shift", area("shift_size", json!("0"))),
        ("shift", area("shift_size", json!("18446744073709547520"))),
        ("shift", area("shift_size", json!(393_216))),
        ("no shift", area("type", json!("checksum"))),
        ("no shift", area("type", json!("journal"))),
        ("other resilience", area("type", json!("datashift-journal"))),
        ("direction", slot("direction", json!("forward"))),
        ("direction", slot("direction", json!("backward"))),
        ("mode", slot("mode", json!("reencrypt"))),
        ("moved offset", flagged("backup-moved-segment", "offset", json!("4096"))),
        ("moved offset", flagged("backup-moved-segment", "offset", json!("18446744073709547520"))),
        ("moved size", flagged("backup-moved-segment", "size", json!("4096"))),
        ("moved size", flagged("backup-moved-segment", "size", json!("dynamic"))),
        ("not moved", flagged("backup-moved-segment", "flags", json!(["backup-something"]))),
        ("previous offset", flagged("backup-previous", "offset", json!("8192"))),
        ("previous size", flagged("backup-previous", "size", json!("819200"))),
        ("final offset", flagged("backup-final", "offset", json!("8192"))),
        ("final size", flagged("backup-final", "size", json!("819200"))),
        ("hot size", flagged("in-reencryption", "size", json!("4096"))),
        ("hot offset", flagged("in-reencryption", "offset", json!("1048576"))),
        ("first part size", first("size", json!("8192"))),
        ("first part offset", first("offset", json!("12288"))),
        (
            "requirement",
            Box::new(|t: &mut Value| {
                let now = &mut t["config"]["requirements"]["mandatory"];
                let other = now[0] == "online-reencrypt-v3";
                *now = json!([if other { "online-reencrypt-v2" } else { "online-reencrypt-v3" }]);
            }),
        ),
    ]
}

/// C27: what no correct run leaves is refused before the first write.
#[test]
fn forged_metadata_of_a_moving_payload_are_refused() {
    let (_, disk) = plain_disk(1000 << 10);
    let volume = volume_and_header(&noise(1000 << 10));
    let checksum = Protect::Checksum(Hash::Sha256);
    for (before, detached, plan) in
        [(disk, false, encrypt_plan()), (volume, true, decrypt_plan(checksum))]
    {
        let at = usize::from(!detached);
        let (_, _, events) = run_on(&before, detached, &plan);
        let mut bases: [Option<[Vec<u8>; 2]>; 2] = [None, None];
        each_cut(&before, &events, 61, |cut| {
            let Some(hot) = status_of(&cut[at]) else { return };
            let h = header(&cut[at]);
            let begun = state::reencrypt_slot(&h.metadata).is_some();
            if begun && h.metadata.regular_segments().count() >= 3 {
                bases[usize::from(hot)].get_or_insert_with(|| cut.clone());
            }
        });
        let mut refusals = 0;
        for base in bases.iter().flatten() {
            for (what, edit) in edits() {
                let Some(forged) = super::forged::with_tree(&base[at], |t| edit(t)) else {
                    refusals += 1;
                    continue;
                };
                if header(&forged).metadata.json == header(&base[at]).metadata.json {
                    continue;
                }
                let mut images = base.clone();
                images[at] = forged;
                let pair = two::two(&images);
                let devices = devices(&pair, detached);
                let refused = Sim::new(3).run(|rt| async move {
                    let secrets = [key(SECRET)];
                    let work = Reencryption::resume(&rt, &devices, &options(), &secrets).await?;
                    work.run(&mut |_| ControlFlow::Continue(())).await
                });
                assert!(refused.is_err(), "{what}");
                assert!(!pair[0].has_written(), "{what}");
                refusals += 1;
            }
        }
        assert!(bases.iter().all(Option::is_some) && refusals > 30, "{refusals}");
    }
}
