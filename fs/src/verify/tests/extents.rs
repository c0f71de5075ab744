//! Extent records and references.

use super::*;

fn data_extent(inline: Vec<Reference>) -> Extent {
    let refs = inline.iter().map(Reference::count).sum();
    Extent { refs, generation: 9, flags: ExtentFlags::DATA, tree_block: None, inline }
}

const DATA: DataRef = DataRef { root: 5, inode: 257, offset: 0, count: 1 };

#[test]
pub(super) fn extent_records() {
    let tree = Extent {
        refs: 1,
        generation: 9,
        flags: ExtentFlags::TREE_BLOCK,
        tree_block: None,
        inline: vec![Reference::TreeBlock { root: 5 }],
    };
    let data = data_extent(vec![Reference::Data(DATA)]);
    let skinny = |level, e: &Extent| vec![item(1 << 20, T::METADATA_ITEM, level, e.encode())];
    let long = |len, e: &Extent| vec![item(1 << 20, T::EXTENT_ITEM, len, e.encode())];
    fine(2, &skinny(7, &tree));
    fine(2, &long(4096, &data));
    let mut old = rules();
    old.incompat = Incompat::empty();
    assert_eq!(leaf(&old, &leaf_of(2, &skinny(0, &tree))).unwrap_err().rule, 120);
    broken(
        121,
        2,
        &[item(1, T::METADATA_ITEM, 0, tree.encode())],
        "invalid key objectid, have 1 expect to be aligned to 4096",
    );
    broken(
        122,
        2,
        &skinny(8, &tree),
        "corrupt leaf: block=30408704 slot=0 extent bytenr=1048576 len=16384 invalid tree level, have 8 expect [0, 7]",
    );
    broken(
        123,
        2,
        &[item(1 << 20, T::METADATA_ITEM, 0, [0; 23])],
        "invalid item size, have 23 expect [24, 16283)",
    );
    broken(
        124,
        2,
        &skinny(0, &Extent { generation: 11, ..tree.clone() }),
        "invalid generation, have 11 expect (0, 10]",
    );
    broken(
        125,
        2,
        &skinny(0, &Extent { flags: ExtentFlags::empty(), ..tree.clone() }),
        "invalid extent flag, have 0x0 expect 1 bit set in 0x3",
    );
    let info = Some((Key::new(256, T::INODE_ITEM, 0), 7));
    fine(2, &long(16384, &Extent { tree_block: info, ..tree.clone() }));
    broken(
        126,
        2,
        &long(4096, &Extent { tree_block: info, ..tree.clone() }),
        "invalid extent length, have 4096 expect 16384",
    );
    broken(127, 2, &skinny(0, &data), "invalid key type, have 169 expect 168 for data backref");
    broken(128, 2, &long(4097, &data), "invalid extent length, have 4097 expect aligned to 4096");
    let full = ExtentFlags::DATA | ExtentFlags::FULL_BACKREF;
    broken(
        129,
        2,
        &long(4096, &Extent { flags: full, ..data.clone() }),
        "invalid extent flag, data has full backref set",
    );
    let short = Extent { tree_block: info, ..tree.clone() }.encode()[..41].to_vec();
    broken(
        144,
        2,
        &[item(1 << 20, T::EXTENT_ITEM, 16384, short)],
        "extent bytenr=1048576 len=16384 invalid extent item size, padding bytes found",
    );
    let high = Some((Key::MIN, 8));
    broken(
        130,
        2,
        &long(16384, &Extent { tree_block: high, ..tree.clone() }),
        "invalid tree block info level, have 8 expect [0, 7]",
    );
    broken(
        146,
        2,
        &[long(8192, &data), vec![item((1 << 20) + 4096, T::EXTENT_ITEM, 4096, data.encode())]]
            .concat(),
        "previous extent [1048576 168 8192] overlaps current extent [1052672 168 4096]",
    );
}

#[test]
pub(super) fn inline_references() {
    let long = |e: &Extent| vec![item(1 << 20, T::EXTENT_ITEM, 4096, e.encode())];
    let data = data_extent(vec![Reference::Data(DATA)]);
    let cut = |n: usize| vec![item(1 << 20, T::EXTENT_ITEM, 4096, &data.encode()[..n])];
    broken(
        131,
        2,
        &cut(24 + 8),
        "inline ref item overflows extent item, ptr 16376 iref size 9 end 16384",
    );
    broken(
        132,
        2,
        &cut(24 + 28),
        "inline ref item overflows extent item, ptr 16356 iref size 29 end 16384",
    );
    let cases: [(u8, Reference, &str); 8] = [
        (
            133,
            Reference::SharedBlock { parent: Logical(1) },
            "invalid tree parent bytenr, have 1 expect aligned to 4096",
        ),
        (134, Reference::Data(DataRef { root: 7, ..DATA }), "invalid data ref root value 7"),
        (135, Reference::Data(DataRef { inode: 5, ..DATA }), "invalid data ref objectid value 5"),
        (
            136,
            Reference::Data(DataRef { offset: 1, ..DATA }),
            "invalid data ref offset, have 1 expect aligned to 4096",
        ),
        (
            137,
            Reference::Data(DataRef { count: 0, ..DATA }),
            "invalid data ref count, should have non-zero value",
        ),
        (
            138,
            Reference::SharedData { parent: Logical(1), count: 1 },
            "invalid data parent bytenr, have 1 expect aligned to 4096",
        ),
        (
            139,
            Reference::SharedData { parent: Logical(0), count: 0 },
            "invalid shared data ref count, should have non-zero value",
        ),
        (
            145,
            Reference::SharedData { parent: Logical(0), count: 2 },
            "invalid extent refs, have 1 expect >= inline 2",
        ),
    ];
    for (rule, reference, words) in cases {
        broken(rule, 2, &long(&Extent { refs: 1, ..data_extent(vec![reference]) }), words);
    }
    // Offsets wrap after a reflink, aligned all the same; owners of simple quotas count nothing.
    let wrapped = Reference::Data(DataRef { offset: 4096u64.wrapping_neg(), ..DATA });
    fine(2, &long(&data_extent(vec![Reference::Owner { root: 5 }, wrapped])));
    let unknown = patch(data.encode(), 24, &[177]);
    broken(141, 2, &[item(1 << 20, T::EXTENT_ITEM, 4096, unknown)], "unknown inline ref type: 177");
    let shared = |parent| Reference::SharedData { parent: Logical(parent), count: 1 };
    fine(2, &long(&data_extent(vec![shared(8192), shared(8192), shared(4096)])));
    broken(
        142,
        2,
        &long(&data_extent(vec![shared(4096), Reference::Data(DATA)])),
        "inline ref out-of-order: has type 178, prev type 184",
    );
    broken(
        143,
        2,
        &long(&data_extent(vec![shared(4096), shared(8192)])),
        "inline ref out-of-order: has type 184 offset 8192 seq 0x2000, prev type 184 seq 0x1000",
    );
}

#[test]
pub(super) fn keyed_references() {
    let one = |objectid, kind, offset, data: &[u8]| vec![item(objectid, kind, offset, data)];
    let at = 1 << 20;
    fine(2, &one(at, T::TREE_BLOCK_REF, 5, &[]));
    fine(2, &one(at, T::SHARED_DATA_REF, 4096, &[1, 0, 0, 0]));
    fine(2, &one(at, T::EXTENT_DATA_REF, 99, &DATA.encode()));
    broken(
        147,
        2,
        &one(at, T::SHARED_DATA_REF, 4096, &[0; 4]),
        "invalid shared data backref count, should have non-zero value",
    );
    broken(
        148,
        2,
        &one(at, T::TREE_BLOCK_REF, 5, &[0]),
        "invalid item size, have 1 expect 0 for key type 176",
    );
    broken(
        149,
        2,
        &one(1, T::SHARED_BLOCK_REF, 0, &[]),
        "invalid key objectid for shared block ref, have 1 expect aligned to 4096",
    );
    broken(
        150,
        2,
        &one(at, T::SHARED_BLOCK_REF, 1, &[]),
        "invalid tree parent bytenr, have 1 expect aligned to 4096",
    );
    broken(
        151,
        2,
        &one(at, T::EXTENT_DATA_REF, 9, &[0; 27]),
        "invalid item size, have 27 expect aligned to 28 for key type 178",
    );
    let cases: [(u8, DataRef, &str); 4] = [
        (152, DataRef { root: 7, ..DATA }, "invalid extent data backref root value 7"),
        (153, DataRef { inode: 7, ..DATA }, "invalid extent data backref objectid value 7"),
        (
            154,
            DataRef { offset: 7, ..DATA },
            "invalid extent data backref offset, have 7 expect aligned to 4096",
        ),
        (
            155,
            DataRef { count: 0, ..DATA },
            "invalid extent data backref count, should have non-zero value",
        ),
    ];
    for (rule, data, words) in cases {
        broken(rule, 2, &one(at, T::EXTENT_DATA_REF, 9, &data.encode()), words);
    }
    broken(
        156,
        12,
        &one(1, T::RAID_STRIPE, 4096, &[]),
        "invalid key objectid for raid stripe extent, have 1 expect aligned to 4096",
    );
    broken(
        157,
        12,
        &one(at, T::RAID_STRIPE, 4096, &[]),
        "RAID_STRIPE_EXTENT present but RAID_STRIPE_TREE incompat bit unset",
    );
}
