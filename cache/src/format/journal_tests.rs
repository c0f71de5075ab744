use proptest::prelude::*;

use super::super::{PageModel, Ptr};
use super::*;
use crate::error::Rule;

fn magic() -> SetMagic {
    SetMagic::of(::uuid::Uuid::parse_str("14a6efd5-c5c2-422c-9a1f-fa464c344d33").unwrap())
}

fn layout() -> Layout {
    Layout {
        block_size: 8,
        bucket_size: 256,
        nbuckets: 1024,
        first_bucket: 1,
        pages: PageModel::default(),
    }
}

/// Golden vector (d).
fn golden() -> Vec<u8> {
    let mut words = vec![0u64; 512];
    let at = |words: &mut Vec<u64>, byte: usize, list: &[u64]| {
        words[byte / 8..byte / 8 + list.len()].copy_from_slice(list);
    };
    at(&mut words, 0x00, &[0xb4974dfc8b6e7dbe, 0x0810f704768df626, 3, 0x0000000c00000001]);
    at(&mut words, 0x20, &[3, 0x9000000010000000, 0, 0x001c0001]);
    at(&mut words, 0x68, &[0x90000000100fffff, 0x7fffffffffffffff, 0x00150001]);
    at(&mut words, 0xb0, &[0x17]);
    at(&mut words, 0xf0, &[0x9000001004000000, 0x438, 0x001b0001]);
    at(&mut words, 0x108, &[0x9000001000800000, 0x410, 0x001b4001]);
    at(&mut words, 0x120, &[0x9000001001000000, 0x440, 0x001b4801]);
    at(&mut words, 0x138, &[0x9000001000800000, 0x18, 0x001b5801]);
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn parsed(bytes: &[u8]) -> JournalEntry {
    match JournalEntry::parse(bytes, magic(), &layout(), Place::default()) {
        AtBlock::Entry(entry, _) => *entry,
        other => panic!("{other:?}"),
    }
}

fn broken(bytes: &[u8]) -> Rule {
    match JournalEntry::parse(bytes, magic(), &layout(), Place::default()) {
        AtBlock::Broken(corrupt) => corrupt.rule,
        other => panic!("{other:?}"),
    }
}

fn reseal(bytes: &mut [u8]) {
    let words = u32::from_le_bytes(bytes[28..32].try_into().unwrap()) as usize;
    let sum = sum::bcache_crc64(&bytes[8..jset_bytes(words)]);
    bytes[..8].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn the_golden_entry_parses_and_encodes_to_the_same_bytes() {
    let bytes = golden();
    let entry = parsed(&bytes);
    assert_eq!((entry.seq, entry.last_seq, entry.prio_bucket), (3, 3, Bucket(0x17)));
    assert_eq!(entry.btree_root, Key::node(Pos::MAX, 256, Ptr::new(5376, 1)));
    assert_eq!(
        entry.keys,
        [
            Key::extent(0, 1016, 1080, true, Ptr::new(6912, 1)),
            Key::extent(0, 1032, 1040, true, Ptr::new(6976, 1)),
            Key::extent(0, 1072, 1088, true, Ptr::new(6984, 1)),
            Key::extent(0, 16, 24, true, Ptr::new(7000, 1)),
        ]
    );
    entry.check(&layout()).unwrap();
    assert_eq!(entry.encode(magic(), &layout()), bytes);
}

#[test]
fn torn_and_foreign_blocks_are_told_apart() {
    let good = golden();
    let mut torn = good.clone();
    torn[0x140] ^= 1;
    assert_eq!(broken(&torn), Rule::Row(15));
    let mut foreign = good.clone();
    foreign[8] ^= 1;
    assert_eq!(
        JournalEntry::parse(&foreign, magic(), &layout(), Place::default()),
        AtBlock::Nothing
    );
    assert_eq!(
        JournalEntry::parse(&good[..100], magic(), &layout(), Place::default()),
        AtBlock::Nothing
    );
    let mut long = good.clone();
    long[28..32].copy_from_slice(&5000u32.to_le_bytes());
    assert_eq!(broken(&long), Rule::Row(15));
    let mut version = good.clone();
    version[24] = 2;
    reseal(&mut version);
    assert_eq!(broken(&version), Rule::Row(15));
    let mut cut = good.clone();
    cut[28] = 11;
    reseal(&mut cut);
    assert_eq!(broken(&cut), Rule::Row(19));
    let mut deep = good;
    deep[0xA8] = 9;
    reseal(&mut deep);
    assert_eq!(broken(&deep), Rule::Row(21));
}

#[test]
fn what_an_entry_must_not_say_is_refused_by_row() {
    let good = parsed(&golden());
    let ptr = Ptr::new(6912, 1);
    let mut zero = Key::extent(0, 8, 16, false, ptr);
    zero.trim_back(8);
    let cases: Vec<(u8, JournalEntry)> = vec![
        (17, JournalEntry { last_seq: 4, ..good.clone() }),
        (19, JournalEntry { keys: vec![zero], ..good.clone() }),
        (
            20,
            JournalEntry {
                keys: vec![Key::extent(0, 8, 16, false, Ptr::new(0, 1))],
                ..good.clone()
            },
        ),
        (
            20,
            JournalEntry {
                keys: vec![Key::extent(0, 8, 24, false, Ptr::new(511, 1))],
                ..good.clone()
            },
        ),
        (20, JournalEntry { keys: vec![Key::check(0, 8, 24, 5)], ..good.clone() }),
        (21, JournalEntry { btree_root: Key::ZERO, ..good.clone() }),
        (21, JournalEntry { btree_root: good.btree_root.with_dirty(true), ..good.clone() }),
        (
            21,
            JournalEntry {
                btree_root: Key::node(Pos::new(0, 9), 256, Ptr::new(5376, 1)),
                ..good.clone()
            },
        ),
        (
            21,
            JournalEntry {
                btree_root: Key::node(Pos::MAX, 128, Ptr::new(5377, 1)),
                ..good.clone()
            },
        ),
        (
            22,
            JournalEntry {
                uuid_bucket: Key::node(Pos::ZERO, 64, Ptr::new(7168, 1)),
                ..good.clone()
            },
        ),
        (22, JournalEntry { uuid_bucket: Key::ZERO, ..good.clone() }),
        (23, JournalEntry { prio_bucket: Bucket(1024), ..good.clone() }),
    ];
    for (number, (row, entry)) in cases.into_iter().enumerate() {
        assert_eq!(entry.check(&layout()).unwrap_err().rule, Rule::Row(row), "{number}");
    }
}

proptest! {
    #[test]
    fn any_change_to_an_entry_is_noticed(at in 0usize..0x150, flip in 1u8..) {
        let mut bytes = golden();
        bytes[at] ^= flip;
        let seen = JournalEntry::parse(&bytes, magic(), &layout(), Place::default());
        prop_assert!(!matches!(seen, AtBlock::Entry(..)));
    }

    #[test]
    fn any_sealed_bytes_are_read_without_panic(body in prop::collection::vec(any::<u8>(), 0x140)) {
        let mut bytes = golden();
        bytes[0x10..0x18].copy_from_slice(&body[..8]);
        bytes[0x20..0x140].copy_from_slice(&body[0x20..]);
        reseal(&mut bytes);
        if let AtBlock::Entry(entry, blocks) = JournalEntry::parse(&bytes, magic(), &layout(), Place::default()) {
            let _ = entry.check(&layout());
            prop_assert_eq!(blocks, 1);
        }
    }
}
