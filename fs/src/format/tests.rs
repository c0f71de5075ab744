//! Every parser: any bytes in, value out; valid, encode, same value and same bytes.
#![allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test that indexes wrongly fails, which is what it is for"
)]

use super::block::{self, Header, ItemHead, Pointer};
use super::chunk::*;
use super::dir::DirItem;
use super::extent::*;
use super::file_extent::*;
use super::free_space::*;
use super::inode::*;
use super::key::*;
use super::root::*;
use super::superblock::*;
use crate::units::Logical;
use proptest::collection::vec;
use proptest::prelude::*;

/// A fixed-size structure is the same bytes again, whatever they were.
macro_rules! round_trip {
    ($name:ident, $size:expr, $parse:expr) => {
        proptest! {
            #[test]
            fn $name(bytes in vec(any::<u8>(), $size)) {
                let parsed = $parse(&bytes).expect("any bytes of the right size");
                prop_assert_eq!(&parsed.encode()[..], &bytes[..]);
            }
        }
    };
}

round_trip!(headers_round_trip, 101, Header::parse);
round_trip!(inodes_round_trip, 160, Inode::parse);
round_trip!(roots_round_trip, 439, Root::parse);
round_trip!(dev_items_round_trip, 98, DevItem::parse);
round_trip!(dev_extents_round_trip, 48, DevExtent::parse);
round_trip!(dev_stats_round_trip, 40, DevStats::parse);
round_trip!(block_groups_round_trip, 24, BlockGroup::parse);
round_trip!(data_refs_round_trip, 28, DataRef::parse);
round_trip!(free_space_info_round_trips, 8, FreeSpaceInfo::parse);
round_trip!(cache_heads_round_trip, 41, CacheHead::parse);

fn key() -> impl Strategy<Value = Key> {
    (any::<u64>(), any::<u8>(), any::<u64>()).prop_map(|(o, k, f)| Key::new(o, ItemType(k), f))
}

fn reference() -> impl Strategy<Value = Reference> {
    let number = any::<u64>;
    let data = (number(), number(), number(), any::<u32>())
        .prop_map(|(root, inode, offset, count)| DataRef { root, inode, offset, count });
    prop_oneof![
        number().prop_map(|root| Reference::Owner { root }),
        number().prop_map(|root| Reference::TreeBlock { root }),
        data.prop_map(Reference::Data),
        number().prop_map(|parent| Reference::SharedBlock { parent: Logical(parent) }),
        (number(), any::<u32>())
            .prop_map(|(parent, count)| Reference::SharedData { parent: Logical(parent), count }),
    ]
}

fn chunk() -> impl Strategy<Value = Chunk> {
    let stripe = (any::<u64>(), any::<u64>(), any::<[u8; 16]>()).prop_map(|(devid, offset, id)| {
        Stripe { devid, offset, dev_uuid: super::Uuid::from_bytes(id) }
    });
    let head = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>(), any::<u32>(), any::<u16>());
    (head, vec(stripe, 1..5)).prop_map(
        |((length, owner, stripe_len, flags, align, sub), stripes)| Chunk {
            length,
            owner,
            stripe_len,
            flags: GroupFlags::from_bits_retain(flags),
            io_align: align,
            io_width: align,
            sector_size: align,
            sub_stripes: sub,
            stripes,
        },
    )
}

proptest! {
    #[test]
    fn no_bytes_make_a_parser_panic(bytes in vec(any::<u8>(), 0..700), kind in any::<u8>()) {
        let _ = Header::parse(&bytes);
        let _ = Superblock::parse(&bytes);
        let _ = Chunk::parse(&bytes);
        let _ = parse_sys_array(&bytes);
        let _ = DevItem::parse(&bytes);
        let _ = DevExtent::parse(&bytes);
        let _ = DevStats::parse(&bytes);
        let _ = BlockGroup::parse(&bytes);
        let _ = Extent::parse(ItemType(kind), &bytes);
        let _ = Extent::parse(ItemType::EXTENT_ITEM, &bytes);
        let _ = FileExtent::parse(&bytes);
        let _ = Inode::parse(&bytes);
        let _ = Root::parse(&bytes);
        let _ = RootRef::parse(&bytes);
        let _ = FreeSpaceInfo::parse(&bytes);
        let _ = CacheHead::parse(&bytes);
        prop_assert!(DirItem::each(&bytes).count() <= bytes.len());
        prop_assert!(InodeRef::each(&bytes, 256).count() <= bytes.len());
        prop_assert!(InodeRef::each_ext(&bytes).count() <= bytes.len());
        for slot in [0, 1, 40, usize::MAX / 25, usize::MAX] {
            let _ = block::pointer(&bytes, slot);
            if let Some(head) = block::item_head(&bytes, slot) {
                let _ = block::item_data(&bytes, &head);
            }
        }
    }

    #[test]
    fn keys_survive_a_pointer_and_an_item_head(key in key(), a in any::<u64>(), b in any::<u32>()) {
        let pointer = Pointer { key, block: Logical(a), generation: b.into() };
        let block = [&[0; 101][..], &pointer.encode()].concat();
        prop_assert_eq!(block::pointer(&block, 0), Some(pointer));
        let head = ItemHead { key, offset: b, size: !b };
        let block = [&[0; 101][..], &head.encode()].concat();
        prop_assert_eq!(block::item_head(&block, 0), Some(head));
    }

    #[test]
    fn extents_round_trip(
        refs in any::<u64>(),
        generation in any::<u64>(),
        info in proptest::option::of((key(), any::<u8>())),
        inline in vec(reference(), 0..6),
    ) {
        let (flags, kind) = match info {
            Some(_) => (ExtentFlags::TREE_BLOCK, ItemType::EXTENT_ITEM),
            None => (ExtentFlags::DATA, ItemType::EXTENT_ITEM),
        };
        let extent = Extent { refs, generation, flags, tree_block: info, inline };
        prop_assert_eq!(Extent::parse(kind, &extent.encode()), Ok(extent));
    }

    #[test]
    fn chunks_round_trip_alone_and_in_the_superblock(chunk in chunk(), at in any::<u64>()) {
        prop_assert_eq!(Chunk::parse(&chunk.encode()), Ok(chunk.clone()));
        let mut system = chunk;
        system.flags |= GroupFlags::SYSTEM;
        let list = vec![(Logical(at), system.clone()), (Logical(!at), system)];
        prop_assert_eq!(parse_sys_array(&encode_sys_array(&list)), Ok(list));
    }

    #[test]
    fn file_extents_round_trip(
        numbers in any::<[u64; 6]>(),
        compression in 0u8..4,
        kind in 0u8..3,
        data in vec(any::<u8>(), 0..100),
    ) {
        let [generation, ram_bytes, at, disk_num_bytes, offset, num_bytes] = numbers;
        let place = Place { disk_bytenr: Logical(at), disk_num_bytes, offset, num_bytes };
        let body = match kind {
            0 => Body::Inline(&data),
            1 => Body::Regular(place),
            _ => Body::Prealloc(place),
        };
        let compression = Compression::from_disk(compression).unwrap();
        let extent = FileExtent { generation, ram_bytes, compression, body };
        let bytes = extent.encode();
        prop_assert_eq!(FileExtent::parse(&bytes), Ok(extent));
    }

    #[test]
    fn names_round_trip(
        parent in any::<u64>(),
        index in any::<u64>(),
        location in key(),
        name in vec(any::<u8>(), 1..256),
        data in vec(any::<u8>(), 0..300),
    ) {
        let name = &name[..];
        let reference = InodeRef { parent, index, name };
        let two = [reference.encode(), reference.encode()].concat();
        prop_assert_eq!(
            InodeRef::each(&two, parent).collect::<Vec<_>>(),
            vec![Ok(reference), Ok(reference)]
        );
        let two = [reference.encode_ext(), reference.encode_ext()].concat();
        prop_assert_eq!(
            InodeRef::each_ext(&two).collect::<Vec<_>>(),
            vec![Ok(reference), Ok(reference)]
        );
        let entry = DirItem { location, transid: index, kind: 8, name, data: &data };
        let two = [entry.encode(), entry.encode()].concat();
        prop_assert_eq!(DirItem::each(&two).collect::<Vec<_>>(), vec![Ok(entry), Ok(entry)]);
        let root = RootRef { dirid: parent, sequence: index, name };
        let bytes = root.encode();
        prop_assert_eq!(RootRef::parse(&bytes), Ok(root));
    }

    #[test]
    fn superblocks_round_trip(mut bytes in vec(any::<u8>(), SUPER_SIZE)) {
        bytes[0x40..0x48].copy_from_slice(b"_BHRfS_M");
        let sb = Superblock::parse(&bytes).unwrap();
        // The unused words of the backup records are the only bytes that are not kept.
        for record in bytes[0xb2b..0xdcb].chunks_exact_mut(168) {
            record[0x78..0x98].fill(0);
            record[0x9e..].fill(0);
        }
        prop_assert_eq!(&sb.encode()[..], &bytes[..]);
        let _ = sb.sys_chunks();
        let _ = sb.label.as_bytes();
    }
}

#[test]
fn a_legacy_root_item_reads_as_one_with_zeroes_behind() {
    let mut root = Root::parse(&[0xA5; 239]).unwrap();
    assert_eq!(root.generation_v2, 0);
    assert!(!root.is_v2());
    root.generation_v2 = root.generation;
    assert!(Root::parse(&root.encode()).unwrap().is_v2());
    assert!(Root::parse(&[0; 240]).is_err());
}

#[test]
fn a_stripe_count_above_the_item_allocates_nothing() {
    let mut bytes = vec![0; 80];
    bytes[0x2c..0x2e].copy_from_slice(&u16::MAX.to_le_bytes());
    assert_eq!(Chunk::parse(&bytes).unwrap_err().field, "num_stripes");
}

#[test]
fn profiles_name_themselves_and_know_their_data_stripes() {
    assert_eq!((GroupFlags::METADATA | GroupFlags::DUP).to_string(), "METADATA|DUP");
    assert_eq!(GroupFlags::DATA.to_string(), "DATA|single");
    assert_eq!((GroupFlags::RAID1 | GroupFlags::DUP).profile(), None);
    assert_eq!(Profile::Raid6.data_stripes(6), Some(4));
    assert_eq!(Profile::Raid6.data_stripes(2), None);
    assert_eq!(Profile::Raid10.data_stripes(5), None);
    assert_eq!(Profile::Raid10.data_stripes(6), Some(3));
    assert_eq!(Profile::Dup.data_stripes(2), Some(1));
    assert_eq!(Profile::Dup.data_stripes(3), None);
}

#[test]
fn copies_exist_where_they_fit_whole() {
    let count = |total| copies_on(total).count();
    assert_eq!(count(65536 + 4096), 0);
    assert_eq!(count(65536 + 4097), 1);
    assert_eq!(count(64 << 20), 1);
    assert_eq!(count((64 << 20) + 8192), 2);
    assert_eq!(count(1 << 40), 3);
}

#[test]
fn labels_are_bounded() {
    assert!(Label::new(&[b'x'; 255]).is_some());
    assert!(Label::new(&[b'x'; 256]).is_none());
    assert!(Label::new(b"two\nlines").is_none());
    assert_eq!(Label::new(b"data").unwrap().as_bytes(), b"data");
}
