//! C26: a power cut at every write. What is left is taken up again and no byte is lost.

use super::*;
use crate::reencrypt::state::Operation;
use crate::testing::recorder::{Event, each_cut};

const ZONE: u64 = 12 << 10;

/// Goes on without deriving the keys again, as thousands of cuts want it.
async fn go_on<D: BlockDevice + Clone>(
    rt: &Rt,
    disk: &D,
    keys: &[Vec<u8>; 2],
    accept: bool,
) -> Result<Ended> {
    let editor = MetadataEditor::open(disk.clone(), None).await?;
    let op = Operation::parse(editor.header(), disk.geometry().len.bytes())?;
    let keys = keys.each_ref().map(|k| Key::copy_from(k));
    let work =
        Reencryption::with_keys(rt, &on(disk), &options(), editor, op, &[&keys[0], &keys[1]])?;
    let work = work.with_zone(ZONE)?.accepting_damage(accept);
    work.run(&mut |_| ControlFlow::Continue(())).await
}

fn go_on_from(image: &[u8], keys: &[Vec<u8>; 2]) -> (Result<Ended>, Vec<u8>, Vec<Event>) {
    let disk = Recorder::new(image);
    let (held, keys) = (disk.clone(), keys.clone());
    let ended = Sim::new(3).run(|rt| async move { go_on(&rt, &held, &keys, false).await });
    (ended, disk.image(), disk.take())
}

/// The plain data of a finished image, with the new key at hand.
fn plain_of(image: &[u8], keys: &[Vec<u8>; 2], sector: u64) -> Vec<u8> {
    let h = header(image);
    assert!(h.metadata.config.requirements.is_empty(), "finished");
    let mut data = image[BASE..].to_vec();
    let params = crate::xts::XtsParams::new(
        crate::CipherSpec::parse("aes-xts-plain64").unwrap(),
        SectorSize::new(sector).unwrap(),
    );
    crate::Xts::new(&params, &Key::copy_from(&keys[1])).unwrap().decrypt(0, &mut data);
    data
}

fn is_under_way(image: &[u8]) -> bool {
    !header(image).metadata.config.requirements.is_empty()
}

/// Cuts a run at every write; `every`: of those inside of header copies only each so many-th.
fn explore(direction: Direction, protect: Protect, sizes: (u64, u64), again: usize) {
    let plain = noise(32 << 10);
    let before = volume(&plain, sizes.0);
    let plan = Start { direction, protect, sector_size: SectorSize::new(sizes.1), ..plan() };
    let begun = begun(&before, &plan);
    let keys = keys_of(&begun);
    let (ended, _, events) = go_on_from(&begun, &keys);
    assert_eq!(ended.unwrap(), Ended::Finished);
    let (mut cuts, mut recovered, mut twice) = (0, 0, 0);
    each_cut(&begun, &events, |cut| {
        // A header copy is 80 sectors long; where in it the cut falls makes little difference.
        if cut.of >= 64 && cut.sectors % 37 != 0 && cut.sectors != cut.of {
            return;
        }
        cuts += 1;
        if !is_under_way(cut.image) {
            assert!(plain_of(cut.image, &keys, sizes.1) == plain);
            return;
        }
        let hot = header(cut.image).metadata.segments.values().any(state::is_hot);
        let (ended, after, events) = go_on_from(cut.image, &keys);
        assert_eq!(ended.unwrap(), Ended::Finished);
        assert!(plain_of(&after, &keys, sizes.1) == plain, "cut {cuts}, hot: {hot}");
        recovered += usize::from(hot);
        // And a cut of the recovery itself, up to its first commit.
        if hot && again > 0 && recovered % again == 0 {
            let first: Vec<Event> =
                events.split_inclusive(|e| matches!(e, Event::Flush)).next().unwrap().to_vec();
            each_cut(cut.image, &first, |cut| {
                if cut.sectors % 5 != 0 {
                    return;
                }
                let (ended, after, _) = go_on_from(cut.image, &keys);
                assert_eq!(ended.unwrap(), Ended::Finished);
                assert!(plain_of(&after, &keys, sizes.1) == plain);
                twice += 1;
            });
        }
    });
    assert!(cuts > 100 && recovered > 50, "{cuts} cuts, {recovered} hot");
    assert!(again == 0 || twice > 20, "{twice}");
}

#[test]
fn a_cut_anywhere_is_recovered_by_checksums_forward() {
    explore(Direction::Forward, Protect::Checksum(Hash::Sha256), (512, 4096), 9);
}

#[test]
fn a_cut_anywhere_is_recovered_by_checksums_backward() {
    explore(Direction::Backward, Protect::Checksum(Hash::Sha512), (4096, 512), 0);
}

#[test]
fn a_cut_anywhere_is_recovered_by_checksums_of_large_sectors() {
    explore(Direction::Forward, Protect::Checksum(Hash::Sha256), (4096, 4096), 0);
}

#[test]
fn a_cut_anywhere_is_recovered_by_the_journal() {
    explore(Direction::Forward, Protect::Journal, (4096, 512), 9);
    explore(Direction::Backward, Protect::Journal, (512, 512), 0);
}

/// Reordering inside of an epoch is the device's right, so what must not be reordered has a flush between:
/// the protection of a zone, the header that names it, the zone, the header that has it behind.
#[test]
fn protection_header_and_zone_are_flushed_one_after_the_other() {
    for protect in [Protect::Checksum(Hash::Sha256), Protect::Journal, Protect::None] {
        let begun = begun(&volume(&noise(32 << 10), 512), &Start { protect, ..plan() });
        let (_, _, events) = go_on_from(&begun, &keys_of(&begun));
        let kind = |at: u64| match at {
            0..0x4000 => 'p',
            0x4000..0x8000 => 's',
            at if at >= BASE as u64 => 'z',
            _ => 'a',
        };
        let epochs: String = events
            .split(|e| matches!(e, Event::Flush))
            .filter_map(|epoch| {
                let mut kinds: Vec<char> = epoch
                    .iter()
                    .filter_map(
                        |e| if let Event::Write(at, _) = e { Some(kind(*at)) } else { None },
                    )
                    .collect();
                kinds.dedup();
                assert!(kinds.len() <= 1, "one flush covers {kinds:?}");
                kinds.first().copied()
            })
            .collect();
        let zone = if protect == Protect::None { "pszps" } else { "apszps" };
        // At the end: the ordinary header, the old slot destroyed, the header without it.
        assert_eq!(epochs, format!("{}psaps", zone.repeat(3)), "{protect:?}");
    }
}

/// A cut before, between or in the writes of the start leaves the volume as it was, or one under way.
#[test]
fn a_cut_of_the_start_changes_nothing_or_everything() {
    let plain = noise(16 << 10);
    let before = volume(&plain, 512);
    let disk = Recorder::new(&before);
    let held = disk.clone();
    Sim::new(2)
        .run(|rt| async move { start(&rt, &on(&held), &options(), &plan()).await.map(drop) })
        .unwrap();
    let keys = keys_of(&disk.image());
    let (mut old, mut new) = (0, 0);
    each_cut(&before, &disk.take(), |cut| {
        if cut.sectors % 17 != 0 && cut.sectors != cut.of {
            return;
        }
        match is_under_way(cut.image) {
            false => {
                assert!(cut.image[BASE..] == before[BASE..]);
                assert_eq!(header(cut.image).metadata.json, header(&before).metadata.json);
                old += 1;
            }
            true => {
                let (ended, after, _) = go_on_from(cut.image, &keys);
                assert_eq!(ended.unwrap(), Ended::Finished);
                assert!(plain_of(&after, &keys, 512) == plain);
                new += 1;
            }
        }
    });
    assert!(old > 20 && new > 5, "{old} {new}");
}

/// C26: without resilience a cut inside of a zone is seen and said, and only then the rest goes on.
#[test]
fn a_cut_without_resilience_is_reported_as_damage() {
    let plain = noise(32 << 10);
    let begun = begun(&volume(&plain, 512), &Start { protect: Protect::None, ..plan() });
    let keys = keys_of(&begun);
    let (_, _, events) = go_on_from(&begun, &keys);
    let (mut refused, mut whole) = (0, 0);
    each_cut(&begun, &events, |cut| {
        if cut.sectors % 9 != 0 || !is_under_way(cut.image) {
            return;
        }
        let segments = header(cut.image).metadata.segments;
        let hot = segments.values().find(|s| state::is_hot(s));
        let (ended, after, _) = go_on_from(cut.image, &keys);
        let Some(hot) = hot else {
            assert_eq!(ended.unwrap(), Ended::Finished);
            assert!(plain_of(&after, &keys, 512) == plain);
            whole += 1;
            return;
        };
        let zone = format!("bytes {}+{} ", hot.offset - BASE as u64, hot.size.unwrap());
        let error = ended.unwrap_err().to_string();
        assert!(error.contains("--accept-damage") && error.contains(&zone), "{error}");
        assert!(after == cut.image, "nothing was written");
        let disk = Mem::from_bytes(cut.image);
        let (held, both) = (disk.clone(), keys.clone());
        Sim::new(3).run(|rt| async move { go_on(&rt, &held, &both, true).await }).unwrap();
        let data = plain_of(&disk.to_vec(), &keys, 512);
        let wrong = data.chunks(512).zip(plain.chunks(512)).filter(|(a, b)| a != b).count();
        assert!(wrong <= 24, "only the zone is lost");
        refused += 1;
    });
    assert!(refused > 5 && whole > 5, "{refused} {whole}");
}

/// A block that is neither old nor new is not passed off as done.
#[test]
fn damage_inside_of_a_hot_zone_is_named() {
    let plain = noise(32 << 10);
    let begun = begun(&volume(&plain, 4096), &plan());
    let keys = keys_of(&begun);
    let (_, _, events) = go_on_from(&begun, &keys);
    let mut seen = 0;
    each_cut(&begun, &events, |cut| {
        let segments = header(cut.image).metadata.segments;
        let Some(hot) = segments.values().find(|s| state::is_hot(s)) else { return };
        if cut.sectors % 11 != 0 {
            return;
        }
        let at = usize::try_from(hot.offset).unwrap() + 4096 + 700;
        let mut image = cut.image.to_vec();
        image[at] ^= 1;
        let (ended, _, _) = go_on_from(&image, &keys);
        let error = ended.unwrap_err().to_string();
        let block = hot.offset + 4096 - BASE as u64;
        assert!(error.contains(&format!("byte {block} ")), "{error}");
        seen += 1;
    });
    assert!(seen > 3, "{seen}");
}
