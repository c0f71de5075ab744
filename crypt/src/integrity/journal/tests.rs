use super::*;
use crate::integrity::Wishes;
use proptest::prelude::*;
use varve_block::{Sector, Sectors};

fn layout(tag: u16, log2_block: u8) -> Layout {
    let device = Sectors(49152);
    let sb = Layout::design(tag, log2_block, &Wishes::default(), Sector(0), device).unwrap();
    Layout::new(&sb, Sector(0), device).unwrap()
}

fn some_block(l: &Layout, at: u64, fill: u8) -> Block {
    let data = (0..l.block.byte_len()).map(|i| fill ^ u8::try_from(i & 0xff).unwrap()).collect();
    Block { at, data, tag: vec![fill; l.tag].into() }
}

/// The journal of luks.md 11.9: saved bytes and tags of two entries, and the ids.
#[test]
fn a_section_is_laid_out_as_the_kernels() {
    let l = layout(4, 0);
    // The vectors' writer wrote sectors 40..72 with the pattern from its own start on.
    let p = |s: u64| crate::testing::pattern((s - 40) * 512, 512).into_boxed_slice();
    let tag = |s: u64| match s {
        40 => [0xb4, 0xc8, 0xa4, 0x0a],
        48 => [0x92, 0xd3, 0xe9, 0xfb],
        _ => [0; 4],
    };
    let blocks: Vec<Block> =
        (40..72).map(|at| Block { at, data: p(at), tag: tag(at).into() }).collect();
    let mut bytes = vec![0; l.section.byte_len()];
    encode(&l, 0, 1, &blocks, &mut bytes);
    let entry = |sector: usize, slot: usize| &bytes[sector * 512 + slot * l.entry..][..20];
    let whole = |at: u64, saved: &str, tag: &[u8]| {
        [&at.to_le_bytes()[..], &crate::testing::hex(saved), tag].concat()
    };
    assert_eq!(entry(0, 0), whole(40, "f8f9fafbfcfdfeff", &tag(40)));
    assert_eq!(entry(1, 0)[..8], 41u64.to_le_bytes());
    assert_eq!(entry(0, 1), whole(48, "f0f1f2f3f4f5f6f7", &tag(48)));
    assert_eq!(bytes[504..512], 0x2222_2222_2222_2222u64.to_le_bytes());
    assert_eq!(bytes[9 * 512 + 504..][..8], (0x2222_2222_2222_2222u64 ^ 9).to_le_bytes());
    assert_eq!(sequences(0, &bytes), Ok(0b10));
}

proptest! {
    #[test]
    fn what_goes_into_a_section_comes_out(
        tag in 1u16..=424, log2_block in 0u8..4, n in 0u64..200, section in 0u32..9, seq in 0u8..4,
    ) {
        let l = layout(tag, log2_block);
        let blocks: Vec<Block> = (0..n.min(l.section_entries))
            .map(|i| some_block(&l, i * 8, u8::try_from(i).unwrap())).collect();
        let mut bytes = vec![0xee; l.section.byte_len()];
        encode(&l, section, seq, &blocks, &mut bytes);
        prop_assert_eq!(sequences(section, &bytes), Ok(1 << seq));
        let back: Vec<Block> =
            entries(&l, &bytes).into_iter().map(|(e, at)| block(&l, &bytes, e, at)).collect();
        prop_assert_eq!(back, blocks);
        bytes[504] ^= 0x80;
        prop_assert_eq!(sequences(section, &bytes), Err(0));
    }

    #[test]
    fn any_state_of_a_ring_gives_a_value_inside_of_it(
        sections in proptest::collection::vec(1u8..16, 1..12), used in any::<bool>(),
    ) {
        let len = u32::try_from(sections.len()).unwrap();
        if let Some(f) = find(&sections, used) {
            prop_assert!(f.first < len && f.count <= len && f.erase < 4);
            let mut all: Vec<u32> = erase_order(f.first, len).concat();
            prop_assert_eq!(all[0], f.first);
            all.sort_unstable();
            prop_assert_eq!(all, (0..len).collect::<Vec<_>>());
        }
    }
}

/// A ring after `head` sections of a lap: those before carry `seq`, the others the one before.
fn ring(len: usize, head: usize, seq: u8) -> Vec<u8> {
    (0..len).map(|i| 1 << if i < head { seq } else { previous(seq) }).collect()
}

#[test]
fn a_replay_begins_after_the_latest_section_and_covers_the_ring() {
    for seq in 0..4 {
        for head in 1..=6u32 {
            let found = find(&ring(6, head as usize, seq), true).unwrap();
            let (first, goes_on) = if head == 6 { (0, next(seq)) } else { (head, seq) };
            assert_eq!(found, Found { first, count: 6, goes_on: Some(goes_on), ..found });
        }
    }
}

#[test]
fn a_section_written_half_is_not_replayed_and_nothing_behind_it_is_lost() {
    for seq in 0..4 {
        // Section 3 has sectors of both laps: the other five are replayed from 4 on.
        let mut sections = ring(6, 3, seq);
        sections[3] |= 1 << seq;
        let found = find(&sections, true).unwrap();
        assert_eq!((found.first, found.count, found.goes_on), (4, 5, None));
        // Of two sections in flight only the second arrived.
        let mut sections = ring(6, 3, seq);
        sections[4] = 1 << seq;
        let found = find(&sections, true).unwrap();
        assert_eq!((found.first, found.count, found.goes_on), (5, 4, None));
    }
}

#[test]
fn a_ring_of_one_section_is_replayed_only_when_it_is_whole() {
    let found = find(&[0b10], true).unwrap();
    assert_eq!((found.first, found.count, found.goes_on), (0, 1, Some(2)));
    assert_eq!(find(&[0b11], true).unwrap().count, 0);
    assert_eq!(find(&[0b1111], true), None);
}

/// Cut anywhere while it is made new, a ring replays nothing, or all of it again.
#[test]
fn a_ring_that_is_being_made_new_never_replays_a_part() {
    for head in 0..6u32 {
        for seq in 0..4 {
            let before = ring(6, head as usize, seq);
            let found = find(&before, true).unwrap();
            let order = erase_order(found.first, 6);
            let mut state = before.clone();
            for part in &order {
                for subset in 0..1u32 << part.len() {
                    let mut cut = state.clone();
                    for (i, &s) in part.iter().enumerate() {
                        if subset & (1 << i) != 0 {
                            cut[s as usize] = 1 << found.erase;
                        }
                    }
                    let count = find(&cut, true).unwrap().count;
                    assert!(
                        cut == before || count == 0 || cut.iter().all(|&s| s == 1 << found.erase),
                        "{before:?} {cut:?} {count}"
                    );
                }
                for &s in part {
                    state[s as usize] = 1 << found.erase;
                }
            }
        }
    }
}
