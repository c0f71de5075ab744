//! Extent records and references: A.12, A.13.

use super::*;

const AT: u64 = 1 << 20;
const DATA: DataRef = DataRef { root: 5, inode: 257, offset: 0, count: 1 };
/// Trees beside those of files that may hold data.
const SPECIAL: [u64; 2] = [1, id::DATA_RELOC_TREE];
const NOT_SPECIAL: [u64; 4] = [0, 2, id::DATA_RELOC_TREE - 1, id::DATA_RELOC_TREE + 1];

pub(super) fn edges(edges: &mut Edges) {
    records(edges);
    layout_of_inline_refs(edges);
    inline_refs(edges);
    keyed_refs(edges);
}

fn data_extent(inline: Vec<Reference>) -> Extent {
    let refs = inline.iter().map(Reference::count).sum();
    Extent { refs, generation: 9, flags: ExtentFlags::DATA, tree_block: None, inline }
}

fn tree_extent(tree_block: Option<(Key, u8)>) -> Extent {
    let flags = ExtentFlags::TREE_BLOCK;
    let inline = vec![Reference::TreeBlock { root: 5 }];
    Extent { refs: 1, generation: 9, flags, tree_block, inline }
}

fn long(len: u64, e: &Extent) -> Vec<NewItem> {
    vec![item(AT, T::EXTENT_ITEM, len, e.encode())]
}

fn skinny(level: u64, e: &Extent) -> Vec<NewItem> {
    vec![item(AT, T::METADATA_ITEM, level, e.encode())]
}

fn records(edges: &mut Edges) {
    let (tree, data) = (tree_extent(None), data_extent(vec![Reference::Data(DATA)]));
    let old = tree_extent(Some((Key::MIN, 7)));
    let mut without = rules();
    without.incompat = Incompat::empty();
    let block = leaf_of(2, &skinny(0, &tree));
    edges.pair(120, leaf(&rules(), &block), leaf(&without, &block));
    let from = |at| vec![item(at, T::METADATA_ITEM, 0, tree.encode())];
    edges.items(121, 2, from, &[4096], &[4095, 4097]);
    edges.items(122, 2, |level| skinny(level, &tree), &[0, 7], &[8]);
    let key = Key::new(AT, T::EXTENT_ITEM, 4096);
    let bare = data_extent(vec![]).encode();
    edges.data(123, 2, key, &[bare[..24].to_vec()], &[bare[..23].to_vec()]);
    let generation = |generation| long(4096, &Extent { generation, ..data.clone() });
    edges.items(124, 2, generation, &[0, 10], &[11]);
    use ExtentFlags as F;
    let flags = |flags| long(4096, &Extent { flags, ..data.clone() });
    edges.items(125, 2, flags, &[F::DATA], &[F::empty(), F::DATA | F::TREE_BLOCK]);
    edges.items(126, 2, |len| long(len, &old), &[16384], &[16383, 12288, 20480]);
    let block = |items: &[NewItem]| leaf(&rules(), &leaf_of(2, items));
    edges.pair(127, block(&long(4096, &data)), block(&skinny(0, &data)));
    edges.items(128, 2, |len| long(len, &data), &[4096], &[4095, 4097]);
    edges.items(129, 2, flags, &[F::DATA], &[F::DATA | F::FULL_BACKREF]);
    let full = Extent { flags: F::TREE_BLOCK | F::FULL_BACKREF, ..tree.clone() };
    edges.pair(129, block(&skinny(0, &full)), block(&flags(F::DATA | F::FULL_BACKREF)));
    let info = |level| long(16384, &tree_extent(Some((Key::MIN, level))));
    edges.items(130, 2, info, &[0, 7], &[8]);
    let info = Extent { inline: vec![], ..old }.encode();
    let key = Key::new(AT, T::EXTENT_ITEM, 16384);
    edges.data(144, 2, key, &[info[..42].to_vec()], &[info[..41].to_vec()]);
    let refs = |refs| long(4096, &Extent { refs, ..data_extent(vec![shared(4096, 3)]) });
    edges.items(145, 2, refs, &[3, 4], &[2]);
    let after = |first: NewItem| {
        move |next: u64| vec![first.clone(), item(next, T::EXTENT_ITEM, 4096, data.encode())]
    };
    let first = long(8192, &data_extent(vec![Reference::Data(DATA)])).remove(0);
    edges.items(146, 2, after(first), &[AT + 8192], &[AT + 4096]);
    let next = |next: u64| {
        [skinny(0, &tree), vec![item(next, T::METADATA_ITEM, 0, tree.encode())]].concat()
    };
    edges.items(146, 2, next, &[AT + 16384], &[AT + 12288]);
}

fn shared(parent: u64, count: u32) -> Reference {
    Reference::SharedData { parent: Logical(parent), count }
}

fn layout_of_inline_refs(edges: &mut Edges) {
    let key = Key::new(AT, T::EXTENT_ITEM, 4096);
    let one = data_extent(vec![Reference::Data(DATA)]).encode();
    let head = |n: usize| [&one[..], &[184; 9][..n]].concat();
    edges.data(131, 2, key, &[head(0)], &[head(1), head(8)]);
    edges.data(132, 2, key, &[&one], &[one[..24 + 28].to_vec()]);
    let other = data_extent(vec![shared(4096, 1)]).encode();
    edges.data(132, 2, key, &[&other], &[other[..24 + 12].to_vec()]);
    // Of thirteen bytes: the type is all that differs.
    let kind = |n: u8| patch(&other, 24, &[n]);
    edges.data(141, 2, key, &[kind(184)], &[kind(183), kind(185)]);
    let pair = |a: Reference, b: Reference| {
        leaf(&rules(), &leaf_of(2, &long(4096, &data_extent(vec![a, b]))))
    };
    let data = Reference::Data(DATA);
    let late = shared(4096, 1);
    edges.pair(142, pair(data, late), pair(late, data));
    edges.pair(
        143,
        pair(shared(8192, 1), shared(8192, 1)),
        pair(shared(8192, 1), shared(12288, 1)),
    );
}

fn inline_refs(edges: &mut Edges) {
    let data = |r: Reference| long(4096, &data_extent(vec![r]));
    let parent = |n| {
        let reference = Reference::SharedBlock { parent: Logical(n) };
        skinny(0, &Extent { inline: vec![reference], ..tree_extent(None) })
    };
    edges.items(133, 2, parent, &[0, 4096], &[4095, 4097]);
    let root = |root| data(Reference::Data(DataRef { root, ..DATA }));
    edges.items(134, 2, root, &FILE_TREES, &NO_FILE_TREES);
    edges.items(134, 2, root, &SPECIAL, &NOT_SPECIAL);
    let inode = |inode| data(Reference::Data(DataRef { inode, ..DATA }));
    edges.items(135, 2, inode, &INODES, &NO_INODES);
    let offset = |offset| data(Reference::Data(DataRef { offset, ..DATA }));
    edges.items(136, 2, offset, &[0, 4096, 4096u64.wrapping_neg()], &[4095, 4097]);
    edges.items(137, 2, |count| data(Reference::Data(DataRef { count, ..DATA })), &[1], &[0]);
    edges.items(138, 2, |parent| data(shared(parent, 1)), &[0, 4096], &[4095, 4097]);
    edges.items(139, 2, |count| data(shared(4096, count)), &[1], &[0]);
}

fn keyed_refs(edges: &mut Edges) {
    let one = |at, kind, offset, data: &[u8]| vec![item(at, kind, offset, data)];
    let count = |n: u8| one(AT, T::SHARED_DATA_REF, 4096, &[n, 0, 0, 0]);
    edges.items(147, 2, count, &[1], &[0]);
    for kind in [T::TREE_BLOCK_REF, T::SHARED_BLOCK_REF] {
        edges.items(148, 2, |n| one(AT, kind, 4096, &[1; 5][..n]), &[0], &[1]);
        edges.items(149, 2, |at| one(at, kind, 4096, &[]), &[4096], &[4095, 4097]);
    }
    let sized = |n| one(AT, T::SHARED_DATA_REF, 4096, &[1; 5][..n]);
    edges.items(148, 2, sized, &[4], &[0, 3, 5]);
    let parent = |offset| one(AT, T::SHARED_BLOCK_REF, offset, &[]);
    edges.items(150, 2, parent, &[0, 4096], &[4095, 4097]);
    let parent = |offset| one(AT, T::SHARED_DATA_REF, offset, &[1, 0, 0, 0]);
    edges.items(150, 2, parent, &[0, 4096], &[4095, 4097]);
    let of = |data: &DataRef| one(AT, T::EXTENT_DATA_REF, 9, &data.encode());
    let many = |n| one(AT, T::EXTENT_DATA_REF, 9, &[DATA.encode(), DATA.encode()].concat()[..n]);
    edges.items(151, 2, many, &[28, 56], &[27, 29, 55]);
    edges.items(152, 2, |root| of(&DataRef { root, ..DATA }), &FILE_TREES, &NO_FILE_TREES);
    edges.items(152, 2, |root| of(&DataRef { root, ..DATA }), &SPECIAL, &NOT_SPECIAL);
    edges.items(153, 2, |inode| of(&DataRef { inode, ..DATA }), &INODES, &NO_INODES);
    edges.items(154, 2, |offset| of(&DataRef { offset, ..DATA }), &[0, 4096], &[4095, 4097]);
    edges.items(155, 2, |count| of(&DataRef { count, ..DATA }), &[1], &[0]);
    let mut with = rules();
    with.incompat |= Incompat::RAID_STRIPE_TREE;
    let stripe =
        |at, rules: &Rules| leaf(rules, &leaf_of(12, &one(at, T::RAID_STRIPE, 4096, &[0; 16])));
    edges.pair(156, stripe(4096, &with), stripe(4097, &with));
    edges.pair(157, stripe(4096, &with), stripe(4096, &rules()));
}
