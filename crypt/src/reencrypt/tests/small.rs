//! C26 of payloads that move: every write of volumes that are as small as their headers let them be is cut.

use super::shift::{
    Events, again, decrypt_plan, devices, encrypt_plan, has_nothing_left, is_ordinary, opened_at,
    status_of,
};
use super::two::{self, each_cut};
use super::*;

/// What the header and one keyslot of a 256-bit key need, and no more: few writes, so that each can be cut.
const SMALL: usize = 168 << 10;
const SMALL_ZONE: u64 = 16 << 10;
/// Every so many-th cut is gone on from to the end; all others are shown, recovered in memory.
const TO_THE_END: usize = 13;

/// One operation whose every write is cut.
struct Small {
    detached: bool,
    plan: Start,
    before: [Vec<u8>; 2],
    plain: Vec<u8>,
    volume_key: Vec<u8>,
}

impl Small {
    fn encryption(len: usize) -> Small {
        let plain = noise(len);
        let disk = [plain.clone(), vec![0xee; 2 * SMALL]].concat();
        let plan = Start { key_bits: 256, reduce: Some(2 * SMALL as u64), ..encrypt_plan() };
        Small { detached: false, plan, before: [vec![0; 512], disk], plain, volume_key: Vec::new() }
    }

    fn decryption(len: usize, protect: Protect) -> Small {
        let plain = noise(len);
        let disk = Mem::from_bytes(&vec![0; SMALL + len]);
        let (held, data) = (disk.clone(), plain.clone());
        let (header, volume_key) = Sim::new(1).run(|rt| async move {
            let how = FormatOptions {
                pbkdf: cheap().pbkdf,
                cost: cheap().cost,
                key_bits: 256,
                keyslots_size: Some(SMALL as u64 - 32_768),
                data_offset: Some(SMALL as u64),
                ..FormatOptions::new(LuksVersion::Luks2)
            };
            crate::create::format(&rt, &held, &how, &key(SECRET)).await.unwrap();
            let volume = unlock(&rt, &held, &options(), &key(SECRET)).await.unwrap();
            let mut data = data;
            volume.segments[0].xts.encrypt(0, &mut data);
            held.poke(SMALL as u64, &data);
            (export_header(&held).await.unwrap().to_vec(), volume.key.bytes().to_vec())
        });
        let before = [header, disk.to_vec()];
        Small { detached: true, plan: decrypt_plan(protect), before, plain, volume_key }
    }

    /// What the operator does, on these images.
    fn run(&self, images: &[Vec<u8>; 2]) -> ([Vec<u8>; 2], Events) {
        let pair = two::two(images);
        let (devices, plan) = (devices(&pair, self.detached), self.plan.clone());
        let ended =
            Sim::new(3).run(|rt| async move { again(&rt, &devices, &plan, SMALL_ZONE).await });
        assert_eq!(ended.unwrap(), Ended::Finished);
        ([pair[0].image(), pair[1].image()], pair[0].take())
    }

    fn header<'a>(&self, images: &'a [Vec<u8>; 2]) -> &'a [u8] {
        &images[usize::from(!self.detached)]
    }

    /// The header is one of a finished operation.
    fn is_done(&self, images: &[Vec<u8>; 2]) -> bool {
        let image = self.header(images);
        is_ordinary(image) && !(self.detached && is_export(&header(image).metadata))
    }

    /// The payload of a finished operation.
    fn payload(&self, images: &[Vec<u8>; 2]) -> Vec<u8> {
        if self.detached {
            return images[1][..self.plain.len()].to_vec();
        }
        let (_, clear) = opened_at(&images[1], SMALL);
        clear[..self.plain.len()].to_vec()
    }

    /// The payload of an operation under way, as a server would show it that may not write. The key is at hand:
    /// thousands of cuts do not derive it again.
    fn shown(&self, images: &[Vec<u8>; 2]) -> Vec<u8> {
        let pair = two::two(images);
        let (devices, volume_key) =
            (devices(&pair, self.detached), Key::copy_from(&self.volume_key));
        let volume = Sim::new(3).run(|rt| async move {
            let editor = MetadataEditor::open(devices.header.clone(), None).await.unwrap();
            let len = devices.data.geometry().len.bytes();
            let op = state::Operation::parse(editor.header(), len).unwrap();
            let keys = [&volume_key];
            let work = Reencryption::with_keys(&rt, &devices, &options(), editor, op, &keys);
            let mut work = work.unwrap();
            work.settle_in_memory().await.unwrap();
            work.volume().unwrap()
        });
        let disk = pair[1].image();
        let mut payload = Vec::new();
        for m in &volume.segments {
            let at = usize::try_from(m.below.byte()).unwrap();
            let mut data = disk[at..at + m.range.len.byte_len()].to_vec();
            m.xts.decrypt(m.iv_offset, &mut data);
            payload.extend(data);
        }
        payload
    }

    /// Cuts every write. How many cuts left no header yet or an untouched one, a boundary, a hot zone.
    fn explore(mut self) -> [usize; 3] {
        let (after, events) = self.run(&self.before);
        if !self.detached {
            self.volume_key = opened_at(&after[1], SMALL).0;
        }
        let (mut counts, mut looked) = ([0; 3], 0);
        each_cut(&self.before, &events, 1, |cut| {
            looked += 1;
            assert!(!has_nothing_left(self.header(cut), &cut[1]));
            if self.is_done(cut) {
                assert!(self.payload(cut) == self.plain, "cut {looked}");
                return;
            }
            let hot = status_of(self.header(cut));
            let begun = hot.is_some() && !is_ordinary(self.header(cut));
            counts[if begun { 1 + usize::from(hot == Some(true)) } else { 0 }] += 1;
            if begun {
                assert!(self.shown(cut) == self.plain, "cut {looked}, hot: {hot:?}");
            }
            // Before there is a header, only the operator's command knows what was copied where.
            let untouched = !begun && cut[1] == self.before[1];
            if looked % TO_THE_END == 0 && !untouched {
                assert!(self.payload(&self.run(cut).0) == self.plain, "cut {looked}, to the end");
            }
        });
        counts
    }
}

/// C26: a cut at every write, also of the beginning.
#[test]
fn a_cut_anywhere_of_an_encryption_loses_nothing() {
    let counts = Small::encryption(SMALL + (36 << 10)).explore();
    assert!(counts.iter().all(|&n| n > 200), "no header, clean, hot: {counts:?}");
}

#[test]
fn a_cut_anywhere_of_a_decryption_loses_nothing() {
    for protect in [Protect::Checksum(Hash::Sha256), Protect::Journal] {
        let counts = Small::decryption(SMALL + (36 << 10), protect).explore();
        // The header file is there before anything begins.
        let [not_begun, clean, hot] = counts;
        assert!(not_begun > 20 && clean > 200 && hot > 200, "{protect:?}: {counts:?}");
    }
}
