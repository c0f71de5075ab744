//! Blocks as a whole: A.1, A.2, A.14 to A.16.

use super::*;

fn orphan(n: u64) -> NewItem {
    item(id::ORPHAN, T::ORPHAN_ITEM, n, [])
}

fn in_leaf(block: &[u8]) -> Verdict {
    leaf(&rules(), block)
}

pub(super) fn edges(edges: &mut Edges) {
    leaves(edges);
    nodes(edges);
    parents(edges);
    identity(edges);
}

fn leaves(edges: &mut Edges) {
    let good = leaf_of(256, &[orphan(1)]);
    edges.pair(1, in_leaf(&good), in_leaf(&patch(&good, 100, &[1])));
    edges.pair(2, in_leaf(&good), in_leaf(&patch(&good, 0x38, &[0])));
    for owner in [1, 3, 4, 5, id::DATA_RELOC_TREE] {
        edges.items(3, owner, |n: u64| (0..n).map(orphan).collect(), &[1], &[0]);
    }
    edges.items(4, 0, |n: u64| (0..n).map(orphan).collect(), &[1], &[0]);
    edges.items(5, 2, |n: u64| (0..n).map(orphan).collect(), &[1], &[0]);
    edges.items(6, 256, |next| vec![orphan(9), orphan(next)], &[10], &[9, 8]);
    // Data is packed without a hole and without a byte that two items share.
    let two = leaf_of(256, &[item(300, T::VERITY_DESC_ITEM, 1, [1; 8]), orphan(1)]);
    let at = 101 + 25 + 17;
    edges.pair(7, in_leaf(&two), in_leaf(&patch(&two, at, &(16_275u32 - 1).to_le_bytes())));
    edges.pair(7, in_leaf(&two), in_leaf(&patch(&two, at, &(16_275u32 + 1).to_le_bytes())));
    // 651 heads end where the eight bytes of the last item begin.
    let mut full: Vec<_> = (1..=650).map(orphan).collect();
    full.push((Key::new(id::ORPHAN, T::ORPHAN_ITEM, 651), vec![1; 8]));
    let full = leaf_of(256, &full);
    let longer = [16_274u32.to_le_bytes(), 9u32.to_le_bytes()].concat();
    let over = patch(&full, 101 + 650 * 25 + 17, &longer);
    edges.pair(9, in_leaf(&full), in_leaf(&over));
}

fn nodes(edges: &mut Edges) {
    let of = |count: u64, at: u64, step: u64| {
        let pointer = |n| Pointer {
            key: Key::new(256, T::INODE_ITEM, n * step),
            block: Logical(at + n * 16384),
            generation: 9,
        };
        build::node(&stamp(5), NODE, 1, &(0..count).map(pointer).collect::<Vec<_>>())
    };
    let judge = |block: &[u8]| node(&rules(), block);
    let full = of(493, 4096, 1);
    let one = of(1, 4096, 1);
    edges.pair(11, judge(&one), judge(&patch(&one, 0x38, &[0])));
    edges.pair(12, judge(&patch(&one, 100, &[7])), judge(&patch(&one, 100, &[8])));
    edges.pair(12, judge(&one), judge(&patch(&one, 100, &[0])));
    edges.pair(13, judge(&full), judge(&patch(&full, 0x60, &494u32.to_le_bytes())));
    edges.pair(13, judge(&one), judge(&patch(&one, 0x60, &[0])));
    edges.pair(14, judge(&one), judge(&of(1, 0, 1)));
    edges.pair(15, judge(&one), judge(&of(1, 4097, 1)));
    edges.pair(16, judge(&of(2, 4096, 1)), judge(&of(2, 4096, 0)));
}

/// A sealed leaf with one item, and what a parent would say of it.
fn child() -> (Vec<u8>, Expect) {
    let mut block = leaf_of(256, &[orphan(1)]);
    build::seal(&mut block, CsumType::Crc32c);
    let first_key = Some(orphan(1).0);
    let (generation, owner) = (Some(9), Some(300));
    (block, Expect { logical: AT, level: 0, generation, first_key, owner })
}

fn parents(edges: &mut Edges) {
    let (good, expect) = child();
    let judge = |expect: Expect| read_block(&rules(), &good, &expect, 1);
    edges.pair(160, judge(expect), judge(Expect { level: 1, ..expect }));
    for generation in [8, 10] {
        let generation = Some(generation);
        edges.pair(161, judge(expect), judge(Expect { generation, ..expect }));
    }
    let mut empty = leaf_of(256, &[]);
    build::seal(&mut empty, CsumType::Crc32c);
    edges.pair(162, judge(expect), read_block(&rules(), &empty, &expect, 1));
    for n in [0, 2] {
        edges.pair(163, judge(expect), judge(Expect { first_key: Some(orphan(n).0), ..expect }));
    }
    let owned = |header: u64, tree: u64| {
        let mut block = leaf_of(header, &[orphan(1)]);
        build::seal(&mut block, CsumType::Crc32c);
        read_block(&rules(), &block, &Expect { owner: Some(tree), ..expect }, 1)
    };
    edges.pair(158, owned(7, 7), owned(8, 7));
    for (legal, illegal) in [(5, 4), (5, 6), (256, 255), ((1 << 48) - 1, 1 << 48)] {
        edges.pair(159, owned(legal, 300), owned(illegal, 300));
    }
    edges.pair(169, write_block(&rules(), &good, 8), write_block(&rules(), &good, 9));
}

fn identity(edges: &mut Edges) {
    let (good, expect) = child();
    let sealed = |at: usize, bytes: &[u8]| {
        let mut block = patch(&good, at, bytes);
        build::seal(&mut block, CsumType::Crc32c);
        block
    };
    let judge = |block: &[u8]| read_block(&rules(), block, &expect, 1);
    edges.pair(164, judge(&good), judge(&sealed(0x30, &(AT.0 + 1).to_le_bytes())));
    // A seed's uuid is as good as the file system's own.
    let mut sprout = rules();
    sprout.fsids.push(Uuid::from_u128(9));
    let from = |fsid: u128| {
        let block = sealed(0x20, Uuid::from_u128(fsid).as_bytes());
        read_block(&sprout, &block, &expect, 1)
    };
    edges.pair(165, from(9), from(8));
    edges.pair(165, from(7), from(6));
    let pointer = Pointer { key: expect.first_key.expect("it has one"), block: AT, generation: 9 };
    let high = |level| {
        let mut block = patch(build::node(&stamp(256), NODE, 1, &[pointer]), 100, &[level]);
        build::seal(&mut block, CsumType::Crc32c);
        read_block(&rules(), &block, &Expect { level, ..expect }, 1)
    };
    edges.pair(166, high(7), high(8));
    let last = NODE as usize - 1;
    for at in [0, 3, last] {
        edges.pair(167, judge(&good), judge(&patch(&good, at, &[good[at] ^ 1])));
    }
}
