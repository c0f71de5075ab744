use super::*;
use proptest::prelude::*;

/// 24 MiB, as the vectors of luks.md 11.9.
const DEVICE: Sectors = Sectors(49152);

/// Places in volumes that kernel 6.12 made: tag size, log2 of block sectors, start, then the data
/// sector of sector 0, and the tag bytes of sectors 0 and 8.
const KERNEL: &[(u16, u8, u64, u64, u64, u64)] = &[
    (32, 0, 4096, 6504, 2_281_472, 2_281_728),
    (28, 0, 4096, 6248, 2_281_472, 2_281_696),
    (48, 0, 4096, 7560, 2_297_856, 2_298_240),
    (32, 3, 4096, 4624, 2_236_416, 2_236_448),
    (4, 0, 0, 616, 184_320, 184_352),
    (32, 3, 0, 528, 139_264, 139_296),
    (32, 0, 0, 2408, 184_320, 184_576),
];

#[test]
fn data_and_tags_lie_where_the_kernel_has_them() {
    for &(tag, log2_block, start, data, tag0, tag8) in KERNEL {
        let start = Sector(start);
        let sb = Layout::design(tag, log2_block, &Wishes::default(), start, DEVICE).unwrap();
        let l = Layout::new(&sb, start, DEVICE).unwrap();
        assert_eq!((l.data(Sector(0)), l.data(Sector(8))), (Sector(data), Sector(data + 8)));
        assert_eq!((l.tag_byte(Sector(0)), l.tag_byte(Sector(8))), (tag0, tag8));
    }
}

#[test]
fn a_new_superblock_says_what_the_kernels_say() {
    // provided sectors, sections, blocks to a bit: of the superblocks in luks.md 11.9
    for (tag, log2_block, provided, sections, bits) in
        [(4, 0, 0xbc98, 2, 15), (32, 3, 0xbcf0, 1, 12), (32, 0, 0xae98, 4, 15)]
    {
        let sb = Layout::design(tag, log2_block, &Wishes::default(), Sector(0), DEVICE).unwrap();
        assert_eq!(sb.provided, Sectors(provided));
        assert_eq!((sb.journal_sections, sb.log2_blocks_per_bit), (sections, bits));
    }
}

#[test]
fn a_superblock_that_claims_more_than_fits_is_refused() {
    let mut sb = Layout::design(32, 0, &Wishes::default(), Sector(0), DEVICE).unwrap();
    assert!(Layout::new(&sb, Sector(0), DEVICE).is_ok());
    assert!(Layout::new(&sb, Sector(0), DEVICE - Sectors(8)).is_err());
    sb.provided += Sectors(8);
    assert!(matches!(Layout::new(&sb, Sector(0), DEVICE), Err(Error::Corrupt(_))));
    sb.journal_sections = u32::MAX;
    assert!(Layout::new(&sb, Sector(0), DEVICE).is_err());
    assert!(Layout::design(32, 0, &Wishes::default(), Sector(0), Sectors(100)).is_err());
}

#[test]
fn entries_are_dealt_over_the_entry_sectors() {
    let sb = Layout::design(4, 0, &Wishes::default(), Sector(0), DEVICE).unwrap();
    let l = Layout::new(&sb, Sector(0), DEVICE).unwrap();
    assert_eq!((l.entry_at(0).0, l.entry_at(1).0, l.entry_at(8).0), (0, 512, l.entry));
    assert_eq!(l.entry_at(3).1, (8 + 3) * 512);
}

proptest! {
    #[test]
    fn no_two_blocks_share_a_place_and_all_lie_inside(
        tag in 1u16..=424,
        log2_block in 0u8..4,
        log2_interleave in 3u8..12,
        device in 3000u64..60_000,
        padded in any::<bool>(),
    ) {
        let Ok(mut sb) = Layout::design(tag, log2_block, &Wishes { journal: Some(64), ..Wishes::default() }, Sector(0), Sectors(device))
        else { return Ok(()) };
        (sb.log2_interleave, sb.fixed_padding) = (log2_interleave, padded);
        sb.provided = Layout::unsized_of(&sb, Sector(0)).most(Sectors(device));
        prop_assume!(sb.provided.0 > 0);
        let l = Layout::new(&sb, Sector(0), Sectors(device)).unwrap();
        let (mut data, mut tags) = (Vec::new(), Vec::new());
        for s in (0..l.provided.0).step_by(1 << log2_block) {
            let at = l.data(Sector(s));
            data.push((at.byte(), at.byte() + l.block.bytes()));
            let at = l.tag_byte(Sector(s));
            tags.push((at, at + l.tag as u64));
        }
        let mut all = [data, tags].concat();
        all.sort_unstable();
        prop_assert!(all[0].0 >= l.section_at(l.sections - 1).byte() + l.section.bytes());
        prop_assert!(all.last().unwrap().1 <= device * 512);
        prop_assert!(all.windows(2).all(|w| w[0].1 <= w[1].0));
    }
}
