//! One hand-damaged set for every row that can be produced: exactly that row is found, and the
//! sound set is silent.

use varve_block::dev::Mem;
use varve_block::{Sector, Sectors};

use super::*;
use crate::error::Corrupt;
use crate::format::superblock::{RawSuperblock, edit};
use crate::format::{BsetWriter, Bucket, Key, Pos, Ptr, bset};
use crate::testset::{BUCKET, TestSet, at, extent, node_key, run};

fn report(ssd: Mem, hdd: Mem, data: bool) -> Report {
    run(async move { check(Some(&ssd), Some(&hdd), CheckOptions { data }).await })
}

/// Rows found, without repetitions.
fn rows(report: &Report) -> Vec<u8> {
    let mut rows: Vec<u8> = report.findings.iter().map(|finding| finding.row).collect();
    rows.sort_unstable();
    rows.dedup();
    rows
}

#[track_caller]
fn expect(ssd: Mem, hdd: Mem, want: &[u8]) -> Report {
    let before = (ssd.to_vec(), hdd.to_vec());
    let found = report(ssd.clone(), hdd.clone(), want.contains(&54));
    let lines: Vec<String> = found.findings.iter().take(9).map(ToString::to_string).collect();
    assert_eq!(rows(&found), want, "{lines:#?}");
    assert_eq!((ssd.to_vec(), hdd.to_vec()), before, "the checker has written");
    for finding in &found.findings {
        assert_eq!(finding.code(), format!("bcache-{}", finding.row));
        assert!(finding.message().starts_with("corrupt "), "{finding}");
    }
    found
}

/// Damage done to the set before it is sealed.
#[track_caller]
fn set(want: &[u8], damage: impl FnOnce(&mut TestSet)) -> Report {
    let mut set = sound();
    damage(&mut set);
    let (ssd, hdd) = set.build();
    copy_clean(&ssd, &hdd);
    expect(ssd, hdd, want)
}

/// Damage done to the bytes.
#[track_caller]
fn bytes(want: &[u8], damage: impl FnOnce(&TestSet, &Mem)) -> Report {
    let set = sound();
    let (ssd, hdd) = set.build();
    copy_clean(&ssd, &hdd);
    damage(&set, &ssd);
    expect(ssd, hdd, want)
}

#[track_caller]
fn superblock(want: &[u8], damage: impl FnOnce(&mut RawSuperblock)) -> Report {
    bytes(want, |_, ssd| {
        let mut page = vec![0; 4096];
        ssd.peek(4096, &mut page);
        edit(&mut page, damage);
        ssd.poke(4096, &page);
    })
}

fn sound() -> TestSet {
    TestSet::new()
}

/// Clean extents equal the backing device.
fn copy_clean(ssd: &Mem, hdd: &Mem) {
    for (start, len, from) in [(32, 2, 808), (36, 4, 812), (116, 4, 836)] {
        let mut data = vec![0; len * 512];
        ssd.peek(from * 512, &mut data);
        hdd.poke(start * 512, &data);
    }
}

#[test]
fn a_sound_set_is_silent_and_described() {
    let found = set(&[], |_| ());
    assert!(!found.has_problems());
    let content = found.content.unwrap();
    assert_eq!((content.journal.seq, content.journal.last_seq, content.journal.entries), (7, 6, 2));
    assert_eq!(
        (content.tree.depth, content.tree.nodes, content.tree.root),
        (2, 3, Some(Bucket(23)))
    );
    let buckets = content.buckets;
    // 16 journal, 2 prio, 1 uuid, 3 nodes; dirty 100 102 103 105 106; clean 101 104.
    assert_eq!((buckets.metadata, buckets.dirty, buckets.clean), (22, 5, 2));
    assert_eq!(content.volumes.len(), 2);
    assert_eq!(content.volumes[0].dirty_sectors, 8 + 2 + 8 + 8);
    assert_eq!(content.volumes[0].cached_sectors, 26 + 2 + 4 + 4);
    assert!(content.volumes[1].flash_only);
    assert_eq!(content.volumes[1].dirty_sectors, 8);
}

/// One broken field.
type Damage = fn(&mut RawSuperblock);

#[test]
fn superblock_rows() {
    bytes(&[1], |_, ssd| ssd.poke(4096, &[0; 4096]));
    bytes(&[2], |_, ssd| ssd.poke(4096 + 0x70, &[9]));
    let cases: [(u8, Damage); 12] = [
        (3, |raw| raw.version = 9.into()),
        (4, |raw| raw.uuid = [0; 16]),
        (4, |raw| raw.set_uuid = [0; 16]),
        (5, |raw| raw.block_size = 3.into()),
        (6, |raw| raw.bucket_size = 12.into()),
        (7, |raw| raw.nbuckets = 100.into()),
        (7, |raw| raw.nbuckets = 1_000_000.into()),
        (8, |raw| {
            raw.first_bucket = 1.into();
            for (n, d) in (1u64..).zip(raw.d.iter_mut()) {
                *d = n.into();
            }
        }),
        (9, |raw| raw.nr_this_dev = 1.into()),
        (10, |raw| raw.d[3] = 99.into()),
        (10, |raw| raw.keys = 1.into()),
        (11, |raw| raw.flags = (raw.flags.get() | 1 << 20).into()),
    ];
    for (row, damage) in cases {
        superblock(&[row], damage);
    }
    let report = set(&[10], |set| {
        set.sb.journal_buckets = 17;
        set.prio_buckets = vec![Bucket(30), Bucket(31)];
        set.prios[0].next = Bucket(31);
        set.newest().prio_bucket = Bucket(30);
    });
    assert!(!report.has_problems(), "an unusual number of journal buckets is no harm");
    let report = set(&[12], |set| set.sb.set_sync(false));
    assert!(!report.has_problems() && report.content.is_none());
}

#[test]
fn backing_device_rows() {
    let with = |damage: &dyn Fn(&mut RawSuperblock)| {
        let (ssd, hdd) = sound().build();
        let mut page = vec![0; 4096];
        hdd.peek(4096, &mut page);
        edit(&mut page, |raw| damage(raw));
        hdd.poke(4096, &page);
        rows(&report(ssd, hdd, false))
    };
    assert_eq!(with(&|raw| (raw.version, raw.nbuckets) = (4.into(), 8.into())), [13]);
    assert_eq!(with(&|raw| (raw.version, raw.nbuckets) = (4.into(), 5000.into())), [13]);
    assert_eq!(with(&|raw| raw.flags = (raw.flags.get() | 7).into()), [11]);
    assert_eq!(with(&|raw| raw.set_uuid = [7; 16]), [53]);
    assert_eq!(with(&|raw| raw.uuid = [7; 16]), [27]);
    let (ssd, hdd) = sound().build();
    assert_eq!(rows(&report(hdd, ssd, false)), [3], "the devices are swapped");
}

#[test]
fn journal_rows() {
    set(&[14], |set| set.entries.clear());
    let torn = |set: &TestSet, ssd: &Mem, ring: u64, block: u64| {
        let sector = (set.sb.layout.first_bucket + ring) * BUCKET + block;
        ssd.poke(sector * 512 + 250, &[0xEE]);
    };
    bytes(&[15], |set, ssd| torn(set, ssd, 1, 1));
    bytes(&[], |set, ssd| torn(set, ssd, 0, 0));
    set(&[16], |set| {
        let again = set.entry(7, 6, vec![extent(300, 308, false, 120)]);
        set.entries.push((2, 0, again));
    });
    set(&[16], |set| {
        let behind = set.entry(6, 6, vec![]);
        set.entries.push((1, 2, behind));
    });
    set(&[17], |set| set.newest().last_seq = 8);
    set(&[17], |set| {
        set.entries[1].2.last_seq = 6;
        set.newest().last_seq = 5;
    });
    set(&[18], |set| {
        let next = set.entry(9, 6, vec![]);
        set.entries.push((2, 0, next));
    });
    set(&[], |set| {
        // Discard is on, and the oldest live entries are gone with their bucket.
        set.sb.set_discard(true);
        set.newest().last_seq = 4;
        set.entries.remove(0);
        set.entries[0].2.last_seq = 4;
    });
    set(&[19], |set| {
        let mut empty = extent(60, 64, false, 121);
        empty.empty_in_place();
        set.newest().keys.push(empty);
    });
    set(&[20], |set| set.newest().keys.push(Key::extent(0, 60, 64, false, Ptr::new(2, 1))));
    let report = set(&[20], |set| set.newest().keys.push(Key::extent(7, 60, 64, false, at(121))));
    assert!(!report.has_problems(), "a key of no volume is never asked for");
    set(&[21], |set| set.newest().btree_root = node_key(Pos::new(0, 5), 23));
    set(&[22], |set| set.newest().uuid_bucket = node_key(Pos::ZERO, 3000));
}

#[test]
fn prio_and_uuid_rows() {
    bytes(&[23], |_, ssd| ssd.poke(20 * BUCKET * 512 + 4000, &[1]));
    set(&[23], |set| set.newest().prio_bucket = Bucket(5000));
    set(&[23], |set| set.prios[0].next = Bucket(20));
    set(&[24], |set| set.prios[1].seq = 11);
    set(&[24], |set| {
        set.prios[0].version = 1;
    });
    set(&[25], |set| {
        set.prio_buckets[1] = Bucket(4);
        set.prios[0].next = Bucket(4);
    });
    set(&[], |set| set.uuids.slots[5].uuid = uuid::Uuid::from_u128(5));
    set(&[26], |set| {
        set.uuids.slots[5].uuid = uuid::Uuid::from_u128(5);
        set.uuids.slots[5].set_flash_only();
    });
    set(&[26], |set| set.uuids.slots[5] = set.uuids.slots[1]);
    set(&[26, 27], |set| set.uuids.slots[5] = set.uuids.slots[0]);
}

#[test]
fn node_rows() {
    set(&[28], |set| {
        let odd = Key::node(Pos::MAX, 7, Ptr::new(25 * BUCKET + 1, 1));
        set.nodes[0].sets[0][1] = odd;
        set.nodes[2].key = odd;
        // The builder writes it there; its real place holds nothing.
        set.nodes[2].sets = vec![vec![]];
    });
    bytes(&[29], |set, ssd| ssd.poke(set.node_sector(2) * 512, &[1, 2, 3]));
    bytes(&[30], |set, ssd| ssd.poke((set.node_sector(1) + 1) * 512, &[1, 2, 3]));
    bytes(&[31], |set, ssd| {
        let frame = set.frame(1);
        let lost = BsetWriter { frame: &frame, seq: 0x5F }.encode(&[extent(80, 88, true, 123)]);
        ssd.poke((set.node_sector(1) + 5) * 512, &lost);
    });
    bytes(&[32], |set, ssd| {
        let frame = set.frame(2);
        let mut node = set.node_bytes(2);
        bset::edit(&frame, &mut node, 0, |raw, _| raw.keys = 8.into());
        ssd.poke(frame.sector * 512, &node);
    });
}

/// Changes raw words of a node and seals it again.
fn words(set: &TestSet, ssd: &Mem, node: usize, change: impl FnOnce(&mut [u8])) {
    let frame = set.frame(node);
    let mut bytes = set.node_bytes(node);
    bset::edit(&frame, &mut bytes, 0, |_, body| change(body));
    ssd.poke(frame.sector * 512, &bytes);
}

#[test]
fn key_rows() {
    bytes(&[33], |set, ssd| words(set, ssd, 2, |body| body[5] |= 1));
    bytes(&[34], |set, ssd| words(set, ssd, 2, |body| body[24 + 16 + 6] |= 0x40));
    bytes(&[34], |set, ssd| {
        // Three keys of three words become two of four, the first of them clean, and one invalid.
        words(set, ssd, 2, |body| {
            let list = [
                [0xA000_0000_0080_0000, 112, 0x0003_3801, 0x0003_4001].to_vec(),
                [0x9000_0000_0080_0000, 120, 0x0003_4001].to_vec(),
                [0x8000_0000_0080_0000, 128].to_vec(),
            ];
            for (at, word) in list.concat().into_iter().enumerate() {
                body[at * 8..at * 8 + 8].copy_from_slice(&u64::to_le_bytes(word));
            }
        });
    });
    set(&[35], |set| {
        set.nodes[2].sets[0][1] = Key::extent(0, 112, 120, false, Ptr::new(104 * BUCKET + 4, 1));
    });
    bytes(&[35], |set, ssd| {
        // Larger than the place it ends at.
        words(set, ssd, 1, |body| body[8..16].copy_from_slice(&3u64.to_le_bytes()));
    });
    set(&[36], |set| set.nodes[0].sets[0][0] = set.nodes[0].sets[0][0].with_dirty(true));
    set(&[37], |set| set.nodes[2].sets[0].swap(0, 1));
    set(&[37, 39], |set| {
        let shifted = Key::extent(0, 104, 112, false, Ptr::new(103 * BUCKET, 1));
        set.nodes[2].sets[0].insert(2, shifted);
    });
    set(&[38], |set| set.nodes[0].sets[0].swap(0, 1));
    set(&[40], |set| {
        set.nodes[0].sets.push(vec![node_key(Pos::new(0, 100), 27)]);
        let mut twin = set.nodes[1].clone();
        twin.key = node_key(Pos::new(0, 100), 27);
        // Nothing in it: its extents would be found twice, and before its sibling's bound.
        twin.sets = vec![vec![]];
        set.nodes.push(twin);
    });
    set(&[41, 50], |set| {
        let beyond = extent(96, 104, false, 103);
        set.nodes[1].sets[0].push(beyond);
    });
    set(&[42], |set| set.nodes[2].sets[0].insert(0, extent(90, 98, true, 124)));
    set(&[43], |set| {
        let short = node_key(Pos::new(5, 0), 25);
        set.nodes[0].sets[0][1] = short;
        set.nodes[2].key = short;
    });
    set(&[44], |set| {
        // Two bounds, one bucket.
        let first = node_key(Pos::new(1, 8), 25);
        set.nodes[0].sets.push(vec![first]);
        set.nodes[2].key = first;
    });
    set(&[45], |set| set.prios[0].entries[101].generation = 99);
}

#[test]
fn extents_of_a_set_in_disorder_that_cover_each_other_are_named_too() {
    // A merge of sets in order cannot leave an overlap, so row 39 never comes alone.
    let found = set(&[37, 39], |set| {
        set.nodes[2].sets[0] = vec![
            extent(112, 120, false, 104),
            extent(104, 111, true, 103),
            extent(108, 114, true, 125),
        ];
    });
    let fields: Vec<&str> = found.findings.iter().map(|finding| finding.corrupt.field).collect();
    assert!(fields.contains(&"Key skipped backwards"));
    assert!(fields.contains(&"Overlapping keys"));
}

#[test]
fn the_set_that_the_predecessor_bug_wrote_is_found_by_name() {
    let found = set(&[37, 39], |set| {
        set.nodes[1].sets = vec![vec![
            Key::check(0, 16, 24, 5),
            Key::check(0, 24, 32, 6),
            extent(16, 24, true, 100),
        ]];
    });
    let finding = found.findings.iter().find(|finding| finding.row == 37).unwrap();
    assert_eq!(finding.corrupt.field, "Key skipped backwards");
    let text = finding.message();
    for part in ["set=00000000-0000-0000-0000-000000000002", "node=0:100", "bset=0", "index=2"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn extent_rows() {
    set(&[46], |set| set.prios[0].entries[103].generation = 2);
    set(&[], |set| set.prios[0].entries[104].generation = 2);
    let found = set(&[47], |set| set.uuids.slots[1].uuid = crate::format::UuidEntry::INVALID);
    assert!(found.findings[0].message().contains("8 dirty sectors of inode 1"));
    set(&[48], |set| set.newest().keys.push(extent(8, 16, true, 122)));
    set(&[48], |set| set.newest().keys.push(extent(1020, 1028, true, 122)));
    set(&[48], |set| set.uuids.slots[1].sectors = 4);
    set(&[50], |set| set.newest().keys.push(extent(300, 308, true, 103)));
    set(&[51], |set| set.newest().keys.push(extent(300, 308, true, 24)));
    set(&[52], |set| set.backing.set_state(BackingState::Clean));
    bytes(&[54], |_, ssd| ssd.poke(809 * 512, &[0x11; 3]));
}

#[test]
fn extents_off_the_blocks_are_noted() {
    let mut set = sound();
    let mut page = set.sb.encode();
    edit(page.as_mut_slice(), |raw| raw.block_size = 2.into());
    let facts = crate::format::DeviceFacts { sectors: 1 << 20, logical_block: 512 };
    set.sb = CacheSuper::parse(page.as_slice(), facts).unwrap();
    for (ring, (at, block, _)) in (0u64..).zip(set.entries.iter_mut()) {
        (*at, *block) = (ring, 0);
    }
    let odd = Key::extent(0, 301, 303, true, at(122));
    set.newest().keys.push(odd);
    let (ssd, hdd) = set.build();
    copy_clean(&ssd, &hdd);
    expect(ssd, hdd, &[49]);
}

#[test]
fn unreadable_sectors_are_named_as_what_they_hold() {
    struct Bad(Mem, u64);
    impl BlockDevice for Bad {
        fn geometry(&self) -> varve_block::Geometry {
            self.0.geometry()
        }
        async fn read(
            &self,
            at: Sector,
            buf: varve_block::IoBuf,
        ) -> varve_block::Result<varve_block::IoBuf> {
            let range = varve_block::Extent::new(at, buf.sectors());
            if range.start.0 <= self.1 && self.1 < range.end().0 {
                let dev = self.geometry().dev;
                let kind = varve_block::ErrorKind::Io;
                return Err(varve_block::Error::new(kind, varve_block::Op::Read, range, &dev));
            }
            self.0.read(at, buf).await
        }
        async fn write(
            &self,
            at: Sector,
            data: varve_block::Data,
            how: varve_block::Durability,
        ) -> varve_block::Result<varve_block::Data> {
            self.0.write(at, data, how).await
        }
        async fn flush(&self) -> varve_block::Result<()> {
            self.0.flush().await
        }
        async fn discard(&self, range: varve_block::Extent) -> varve_block::Result<()> {
            self.0.discard(range).await
        }
        async fn write_zeroes(
            &self,
            range: varve_block::Extent,
            how: varve_block::Zero,
        ) -> varve_block::Result<()> {
            self.0.write_zeroes(range, how).await
        }
    }
    let cases = [
        (8, 1),
        (3 * BUCKET, 14),
        (21 * BUCKET, 23),
        (22 * BUCKET, 22),
        (25 * BUCKET, 29),
        (800, 54),
    ];
    for (sector, row) in cases {
        let (ssd, hdd) = sound().build();
        copy_clean(&ssd, &hdd);
        let found = run(async move {
            check(Some(&Bad(ssd, sector)), Some(&hdd), CheckOptions { data: true }).await
        });
        assert_eq!(rows(&found), [row], "sector {sector}");
        assert!(found.findings[0].message().contains("I/O error"), "{}", found.findings[0]);
    }
}

#[test]
fn a_child_that_only_stale_pointers_name_is_missed() {
    set(&[43], |set| set.prios[0].entries[25].generation = 2);
    set(&[28, 43], |set| {
        set.prios[0].entries[24].generation = 2;
        set.prios[0].entries[25].generation = 2;
    });
}

#[test]
fn a_node_shuffled_by_hand_is_reported_in_bounds() {
    let found = set(&[37, 50], |set| {
        let backwards = (0..60u64).rev().map(|n| extent(200 + n * 2, 202 + n * 2, false, 126));
        set.nodes[2].sets = vec![backwards.collect()];
    });
    assert!(found.findings.len() <= 20 + 20 + 60, "{}", found.findings.len());
}

#[test]
fn findings_are_worth_an_error_only_above_notes() {
    assert!(Severity::Fatal > Severity::Repairable && Severity::Repairable > Severity::Note);
    let mut report = Report::default();
    assert_eq!(report.worst(), None);
    let place = crate::error::Place::default();
    report.findings.push(Finding {
        row: 33,
        severity: Severity::Note,
        dev: varve_block::DevId::new("x"),
        corrupt: Corrupt::row(33, "leaf", place, "high", 1, 2),
    });
    assert!(!report.has_problems());
    let _ = Sectors(0);
}

mod hostile {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Any bytes anywhere in the metadata, sealed again or not: an answer, no panic, no hang.
        #[test]
        fn damage_of_any_kind_ends_in_an_answer(
            node in 0usize..3, at in 0usize..600, bytes in prop::collection::vec(any::<u8>(), 1..40),
            sealed in any::<bool>(), meta in 3u64..26, inside in 0u64..4096
        ) {
            let set = sound();
            let (ssd, hdd) = set.build();
            if sealed {
                words(&set, &ssd, node, |body| {
                    let at = at % 80;
                    let end = (at + bytes.len()).min(body.len());
                    body[at..end].copy_from_slice(&bytes[..end - at]);
                });
            } else {
                ssd.poke(meta * BUCKET * 512 + inside, &bytes);
            }
            let (ssd2, hdd2) = (ssd.clone(), hdd.clone());
            let found = report(ssd, hdd, true);
            let opened = run(async move { crate::CacheView::open(ssd2, hdd2).await.map(|_| ()) });
            // Whatever opens has no finding that loses data, but for what a reader reports on reading.
            if opened.is_ok() {
                let fatal: Vec<u8> = found
                    .findings
                    .iter()
                    .filter(|finding| finding.severity == Severity::Fatal)
                    .map(|finding| finding.row)
                    .filter(|row| ![25, 27, 28, 45, 46, 47, 48, 50, 51, 53].contains(row))
                    .collect();
                prop_assert!(fatal.is_empty(), "{fatal:?}");
            }
        }
    }
}
