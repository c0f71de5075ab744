//! Roots and their references: A.11.

use super::*;

fn level(n: u64) -> u8 {
    u8::try_from(n).expect("a level")
}

pub(super) fn edges(edges: &mut Edges) {
    let mut good = Root::parse(&[0; 439]).expect("zeroes are a root");
    good.generation = 9;
    let at = |id, offset, root: &Root| vec![item(id, T::ROOT_ITEM, offset, root.encode())];
    let reloc = |source| at(id::TREE_RELOC, source, &good);
    edges.items(105, 1, reloc, &FILE_TREES, &NO_FILE_TREES);
    edges.items(106, 1, |id| at(id, 1, &good), &[1], &[0]);
    edges.items(107, 1, reloc, &[5], &[0]);
    let sized = |len: usize| vec![item(5, T::ROOT_ITEM, 0, vec![0; len])];
    edges.items(108, 1, sized, &[239, 439], &[238, 240, 438, 440]);
    let with = |change: fn(&mut Root, u64), n: u64| {
        let mut root = good.clone();
        change(&mut root, n);
        at(5, 0, &root)
    };
    edges.items(109, 1, |n| with(|r, n| r.generation = n, n), &[0, 10], &[11]);
    edges.items(110, 1, |n| with(|r, n| r.generation_v2 = n, n), &[0, 10], &[11]);
    edges.items(111, 1, |n| with(|r, n| r.last_snapshot = n, n), &[0, 10], &[11]);
    edges.items(112, 1, |n| with(|r, n| r.bytenr = Logical(n), n), &[0, 4096], &[4095, 4097]);
    edges.items(113, 1, |n| with(|r, n| r.level = level(n), n), &[0, 7], &[8, 255]);
    edges.items(114, 1, |n| with(|r, n| r.drop_level = level(n), n), &[0, 7], &[8, 255]);
    let dropping = |n| {
        with(
            |r, n| {
                r.drop_progress.objectid = 1;
                r.drop_level = level(n);
            },
            n,
        )
    };
    edges.items(115, 1, dropping, &[1, 7], &[0]);
    let mask = Root::RDONLY | Root::DEAD;
    edges.items(116, 1, |n| with(|r, n| r.flags = n, n), &[0, mask], &[2, 1 << 47, 1 << 49]);
    let text = [b'x'; 256];
    for kind in [T::ROOT_REF, T::ROOT_BACKREF] {
        let name = |n: usize| RootRef { dirid: 256, sequence: 2, name: &text[..n] }.encode();
        let key = Key::new(256, kind, 256);
        edges.data(117, 1, key, &[name(1)], &[name(0)]);
        edges.data(118, 1, key, &[name(255)], &[name(256)]);
        let longer = [&name(3)[..], &[0]].concat();
        edges.data(119, 1, key, &[name(3)], &[name(3)[..20].to_vec(), longer]);
    }
}
