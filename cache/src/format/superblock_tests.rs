use proptest::prelude::*;

use super::*;
use crate::error::Rule;

/// Golden vector (a): what make-bcache 1.0.8 wrote into a 64 MiB file.
fn golden() -> Vec<u8> {
    let words: [u64; 26] = [
        0xda3648a0978bce78,
        0x0800000000000000,
        0,
        0xc68573f64e1a45ca,
        0x8265f57f48ba6d81,
        0x148e8ccb1766417c,
        0xac36885dece4f299,
        0xd9fe544db5804b76,
        0xb5741fa2cec3d53b,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0x8000000000000000,
        0x0800000401000000,
        0x0000000001000000,
    ];
    let mut page: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
    page.resize(4096, 0);
    page
}

const DEV: DeviceFacts = DeviceFacts { sectors: 64 << 11, logical_block: 512 };

fn cache() -> CacheSuper {
    FormatCache {
        uuid: Uuid::from_u128(1),
        set_uuid: Uuid::from_u128(2),
        label: [0; 32],
        device_sectors: 1 << 20,
        block_size: 8,
        bucket_size: 128,
        discard: false,
        replacement: Replacement::Lru,
    }
    .superblock()
    .unwrap()
}

fn backing(data_offset: u64) -> BackingSuper {
    FormatBacking {
        uuid: Uuid::from_u128(3),
        set_uuid: Uuid::from_u128(2),
        label: *b"a label that takes every byte...",
        device_sectors: 1 << 20,
        block_size: 8,
        data_offset,
        mode: CacheMode::Writeback,
    }
    .superblock()
    .unwrap()
}

fn facts() -> DeviceFacts {
    DeviceFacts { sectors: 1 << 20, logical_block: 512 }
}

fn row(result: Result<Superblock, Corrupt>) -> Rule {
    result.unwrap_err().rule
}

#[test]
fn the_golden_superblock_has_the_right_sum_and_too_few_buckets_for_the_kernel() {
    let page = golden();
    let (raw, _) = head(&page).unwrap();
    assert_eq!(raw.csum.get(), 0x78CE_8B97_A048_36DA);
    assert_eq!((raw.nbuckets.get(), raw.block_size.get(), raw.bucket_size.get()), (128, 8, 1024));
    let refused = Superblock::parse(&page, DEV).unwrap_err();
    assert_eq!((refused.rule, refused.field), (Rule::Row(7), "nbuckets"));
}

#[test]
fn the_golden_superblock_is_what_our_formatter_writes() {
    // The formatter refuses 128 buckets, so its fields are set on a larger one.
    let mut page = FormatCache {
        uuid: Uuid::from_bytes(golden()[0x28..0x38].try_into().unwrap()),
        set_uuid: Uuid::from_bytes(golden()[0x38..0x48].try_into().unwrap()),
        label: [0; 32],
        device_sectors: 1 << 20,
        block_size: 8,
        bucket_size: 1024,
        discard: false,
        replacement: Replacement::Lru,
    }
    .superblock()
    .unwrap()
    .encode();
    edit(page.as_mut_slice(), |raw| raw.nbuckets = 128.into());
    assert_eq!(page.as_slice(), golden());
}

#[test]
fn formatting_follows_the_tools() {
    let sb = cache();
    assert_eq!((sb.version, sb.layout.first_bucket, sb.layout.nbuckets), (0, 1, 8192));
    assert!(!sb.sync());
    assert_eq!(backing(16).version, 1);
    assert_eq!(backing(2048).version, 4);
    assert_eq!(backing(2048).data_offset, 2048);
    assert_eq!(backing(16).mode(), CacheMode::Writeback);
    assert_eq!(backing(16).state(), BackingState::None);
    for (bucket_size, first) in [(8, 3), (16, 2), (32, 1), (64, 1)] {
        let format = FormatCache {
            bucket_size,
            uuid: Uuid::from_u128(1),
            set_uuid: Uuid::from_u128(2),
            label: [0; 32],
            device_sectors: 1 << 20,
            block_size: 1,
            discard: true,
            replacement: Replacement::Random,
        };
        let sb = format.superblock().unwrap();
        assert_eq!(sb.layout.first_bucket, first);
        assert!(sb.discard());
        assert_eq!(sb.replacement(), Replacement::Random);
    }
}

#[test]
fn buckets_over_16_mib_need_version_5_and_its_logarithm() {
    let format = FormatCache {
        uuid: Uuid::from_u128(1),
        set_uuid: Uuid::from_u128(2),
        label: [0; 32],
        device_sectors: 65_536 * 600,
        block_size: 8,
        bucket_size: 65_536,
        discard: false,
        replacement: Replacement::Lru,
    };
    let sb = format.superblock().unwrap();
    assert_eq!((sb.version, sb.layout.bucket_size), (5, 65_536));
    let mut page = sb.encode();
    edit(page.as_mut_slice(), |raw| {
        assert_eq!(raw.bucket_size.get(), 16);
        raw.feature_incompat = 1.into();
        raw.bucket_size = 0.into();
        raw.obso_bucket_size_hi = 1.into();
    });
    let dev = DeviceFacts { sectors: 65_536 * 600, logical_block: 512 };
    let sb = CacheSuper::parse(page.as_slice(), dev).unwrap();
    assert_eq!(sb.layout.bucket_size, 65_536);
    assert!(sb.read_only_because().is_some());
    assert_eq!(CacheSuper::parse(sb.encode().as_slice(), dev).unwrap().layout, sb.layout);
}

#[test]
fn a_rewrite_keeps_the_bytes_nobody_understands() {
    let mut page = cache().encode();
    page[4000] = 77;
    edit(page.as_mut_slice(), |raw| {
        raw.pad = [9; 40];
        raw.flags = (1 << 40).into();
        raw.d[200] = 5.into();
    });
    let mut sb = CacheSuper::parse(page.as_slice(), facts()).unwrap();
    assert_eq!(sb.odd_flags(), Some(1 << 40));
    sb.set_sync(true);
    sb.version = 3;
    sb.seq += 1;
    sb.journal_buckets = sb.layout.njournal();
    let mut again = sb.encode();
    assert_eq!(again[4000], 77);
    edit(again.as_mut_slice(), |raw| {
        assert_eq!(raw.pad, [9; 40]);
        assert_eq!(raw.flags.get(), (1 << 40) | 1);
        assert_eq!((raw.d[0].get(), raw.d[63].get(), raw.d[200].get()), (1, 64, 5));
    });
}

#[test]
fn state_and_mode_are_the_bits_of_the_kernel() {
    let mut sb = backing(16);
    sb.set_state(BackingState::Dirty);
    assert_eq!(sb.flags, 0x4000_0000_0000_0001);
    sb.set_state(BackingState::Clean);
    assert_eq!(sb.flags, 0x2000_0000_0000_0001);
    for mode in [CacheMode::None, CacheMode::Writearound, CacheMode::Writethrough] {
        sb.set_mode(mode);
        assert_eq!((sb.mode(), sb.state()), (mode, BackingState::Clean));
    }
}

/// One broken field.
type Damage = fn(&mut RawSuperblock);

#[test]
fn every_rule_of_acceptance_refuses_its_damage() {
    let cases: [(u8, Damage); 17] = [
        (1, |raw| raw.offset = 9.into()),
        (1, |raw| raw.magic[3] ^= 1),
        (2, |raw| raw.keys = 257.into()),
        (4, |raw| raw.uuid = [0; 16]),
        (5, |raw| raw.block_size = 0.into()),
        (3, |raw| raw.version = 2.into()),
        (3, |raw| (raw.version, raw.feature_ro_compat) = (5.into(), 1.into())),
        (3, |raw| (raw.version, raw.feature_compat) = (5.into(), 1.into())),
        (3, |raw| (raw.version, raw.feature_incompat) = (5.into(), 4.into())),
        (7, |raw| raw.nbuckets = 512.into()),
        (5, |raw| raw.block_size = 16.into()),
        (6, |raw| raw.bucket_size = 100.into()),
        (7, |raw| raw.nbuckets = (1 << 62).into()),
        (4, |raw| raw.set_uuid = [0; 16]),
        (9, |raw| raw.nr_in_set = 2.into()),
        (10, |raw| (raw.keys, raw.d[1]) = (2.into(), 7.into())),
        (8, |raw| raw.first_bucket = 0.into()),
    ];
    for (number, (want, damage)) in cases.into_iter().enumerate() {
        let mut page = cache().encode();
        edit(page.as_mut_slice(), damage);
        assert_eq!(row(Superblock::parse(page.as_slice(), facts())), Rule::Row(want), "{number}");
    }
    let started: Damage = |raw| (raw.flags, raw.keys) = (1.into(), 1.into());
    let mut page = cache().encode();
    edit(page.as_mut_slice(), |raw| {
        started(raw);
        raw.d[0] = 1.into();
    });
    assert_eq!(row(Superblock::parse(page.as_slice(), facts())), Rule::Row(10));
    let mut page = cache().encode();
    page[0x70] ^= 1;
    assert_eq!(row(Superblock::parse(page.as_slice(), facts())), Rule::Row(2));
    let large_blocks = DeviceFacts { logical_block: 8192, ..facts() };
    assert_eq!(row(Superblock::parse(cache().encode().as_slice(), large_blocks)), Rule::Row(5));
}

#[test]
fn a_backing_device_is_refused_for_its_data_offset() {
    for offset in [15, 1 << 20] {
        let mut page = backing(2048).encode();
        edit(page.as_mut_slice(), |raw| raw.nbuckets = offset.into());
        assert_eq!(row(Superblock::parse(page.as_slice(), facts())), Rule::Row(13));
    }
    let sb = BackingSuper::parse(backing(16).encode().as_slice(), facts()).unwrap();
    assert_eq!(sb.data_offset, 16, "version 1 stores 0 and means 16");
    assert!(CacheSuper::parse(backing(16).encode().as_slice(), facts()).is_err());
    assert!(BackingSuper::parse(cache().encode().as_slice(), facts()).is_err());
}

proptest! {
    #[test]
    fn any_page_is_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
        prop_assert!(Superblock::parse(&bytes, facts()).is_err());
    }

    #[test]
    fn whatever_is_accepted_is_written_back_byte_for_byte(
        at in 8usize..0x8D2, byte in any::<u8>(), which in any::<bool>()
    ) {
        let mut page = if which { cache().encode() } else { backing(2048).encode() };
        page[at] = byte;
        edit(page.as_mut_slice(), |_| ());
        match Superblock::parse(page.as_slice(), facts()) {
            Ok(Superblock::Cache(sb)) => prop_assert_eq!(sb.encode(), page),
            // The one field of a backing device that is not kept: the kernel's leftover.
            Ok(Superblock::Backing(sb)) if !(0xCC..0xCE).contains(&at) => {
                prop_assert_eq!(sb.encode(), page);
            }
            _ => {}
        }
    }
}
