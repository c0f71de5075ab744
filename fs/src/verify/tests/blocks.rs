//! Leaves and nodes as a whole, and against their parents.

use super::*;

#[test]
pub(super) fn a_leaf_as_a_whole() {
    let block = leaf_of(5, &[]);
    let verdict = |block: &[u8]| leaf(&rules(), block).unwrap_err();
    let level_one = patch(&block, 100, &[1]);
    assert_eq!(
        verdict(&level_one).message,
        "corrupt leaf: root=5 block=30408704 slot=0, invalid level for leaf, have 1 expect 0"
    );
    assert_eq!(verdict(&patch(&block, 0x38, &[0])).rule, 2);
    for owner in [1, 3, 4, 5, id::DATA_RELOC_TREE] {
        broken(3, owner, &[], &format!("invalid root, root {owner} must never be empty"));
    }
    broken(4, 0, &[], "invalid owner, root 0 is not defined");
    broken(5, 2, &[], "invalid root, root 2 must never be empty");
    fine(id::CSUM_TREE, &[]);
    fine(256, &[]);
    let flags = (FLAG_RELOC | 1).to_le_bytes();
    assert!(leaf(&rules(), &patch(leaf_of(1, &[]), 0x38, &flags)).is_ok());
}

#[test]
pub(super) fn items_out_of_order_or_out_of_place() {
    let orphan = |n| item(id::ORPHAN, T::ORPHAN_ITEM, n, []);
    broken(
        6,
        5,
        &[orphan(9), orphan(9)],
        "bad key order, prev (18446744073709551611 48 9) current (18446744073709551611 48 9)",
    );
    broken(6, 5, &[item(0, T::UNTYPED, 0, [])], "bad key order, prev (0 0 0) current (0 0 0)");
    let two = leaf_of(
        256,
        &[item(300, T::VERITY_DESC_ITEM, 1, [1; 8]), item(300, T::VERITY_DESC_ITEM, 2, [2; 8])],
    );
    let rule = |block: &[u8]| leaf(&rules(), block).unwrap_err().rule;
    // The second item's offset, moved down by one: a hole between the two.
    let at = 101 + 25 + 17;
    assert_eq!(rule(&patch(&two, at, &(16283u32 - 17).to_le_bytes())), 7);
    // An item as large as the leaf, ending where it should: its data begins over the heads.
    let huge = patch(&two, at, &[(20u32).to_le_bytes(), (16275u32 - 20).to_le_bytes()].concat());
    assert_eq!(rule(&huge), 9);
    // More items than the block could ever hold.
    assert_eq!(rule(&patch(&two, 0x60, &u32::MAX.to_le_bytes())), 6);
    let full: Vec<_> = (1..=651).map(orphan).collect();
    fine(256, &full);
    let block = patch(leaf_of(256, &full), 0x60, &10_000u32.to_le_bytes());
    assert!([6, 9].contains(&rule(&block)));
}

#[test]
pub(super) fn nodes() {
    let pointer = |n: u64| Pointer {
        key: Key::new(n, T::INODE_ITEM, 0),
        block: Logical(n * 16384),
        generation: 9,
    };
    let good = build::node(&stamp(5), NODE, 1, &[pointer(1), pointer(2), pointer(3)]);
    assert_eq!(node(&rules(), &good), Ok(()));
    let verdict = |block: &[u8]| node(&rules(), block).unwrap_err();
    assert_eq!(verdict(&patch(&good, 0x38, &[0])).rule, 11);
    assert_eq!(verdict(&patch(&good, 100, &[8])).rule, 12);
    let none = verdict(&patch(&good, 0x60, &[0]));
    assert_eq!(
        none.message,
        "corrupt node: root=5 block=30408704, nritems too small, have 0 expect range [1,493]"
    );
    assert_eq!(verdict(&patch(&good, 0x60, &494u32.to_le_bytes())).rule, 13);
    // The last pointer, which the kernel does not look at.
    let last = 101 + 2 * 33;
    assert_eq!(verdict(&patch(&good, last + 17, &[0; 8])).rule, 14);
    assert_eq!(verdict(&patch(&good, last + 17, &[1])).rule, 15);
    let order = verdict(&patch(&good, last, &[1]));
    assert_eq!(order.rule, 16);
    assert!(order.message.ends_with("slot=1, bad key order, current (2 1 0) next (1 1 0)"));
}

#[test]
pub(super) fn a_block_against_its_parent() {
    let orphan = item(id::ORPHAN, T::ORPHAN_ITEM, 1, []);
    let mut good = leaf_of(256, std::slice::from_ref(&orphan));
    build::seal(&mut good, CsumType::Crc32c);
    let expect = Expect {
        logical: AT,
        level: 0,
        generation: Some(9),
        first_key: Some(orphan.0),
        owner: Some(300),
    };
    let read = |block: &[u8], expect: Expect| read_block(&rules(), block, &expect, 2);
    assert_eq!(read(&good, expect), Ok(()));
    let sealed = |at: usize, bytes: &[u8]| {
        let mut block = patch(&good, at, bytes);
        build::seal(&mut block, CsumType::Crc32c);
        block
    };
    let case = |rule, block: &[u8], expect: Expect, words: &str| {
        let corrupt = read(block, expect).unwrap_err();
        assert_eq!((corrupt.rule, corrupt.message.as_str()), (rule, words));
    };
    case(
        164,
        &sealed(0x30, &[1]),
        expect,
        "bad tree block start, mirror 2 want 30408704 have 30408705",
    );
    case(165, &sealed(0x20, &[1]), expect, "bad fsid on logical 30408704 mirror 2");
    case(
        166,
        &sealed(100, &[8]),
        expect,
        "bad tree block level, mirror 2 level 8 on logical 30408704",
    );
    let flipped = read(&patch(&good, 5000, &[1]), expect).unwrap_err();
    assert_eq!(flipped.rule, 167);
    assert!(
        flipped
            .message
            .starts_with("checksum verify failed on logical 30408704 mirror 2 wanted 0x")
    );
    case(
        160,
        &good,
        Expect { level: 1, ..expect },
        "level verify failed on logical 30408704 mirror 2 wanted 1 found 0",
    );
    case(
        161,
        &good,
        Expect { generation: Some(8), ..expect },
        "parent transid verify failed on logical 30408704 mirror 2 wanted 8 found 9",
    );
    case(
        163,
        &good,
        Expect { first_key: Some(Key::MIN), ..expect },
        "tree first key mismatch detected, bytenr=30408704 parent_transid=9 key expected=(0,0,0) has=(18446744073709551611,48,1)",
    );
    case(
        158,
        &good,
        Expect { owner: Some(7), ..expect },
        "corrupted leaf, root=7 block=30408704 owner mismatch, have 256 expect 7",
    );
    case(
        159,
        &sealed(0x58, &[7, 0]),
        expect,
        "corrupted leaf, root=300 block=30408704 owner mismatch, have 7 expect [256, 18446744073709551360]",
    );
    assert_eq!(read(&good, Expect { owner: Some(id::TREE_LOG), ..expect }), Ok(()));
    let mut empty = leaf_of(256, &[]);
    build::seal(&mut empty, CsumType::Crc32c);
    case(162, &empty, expect, "invalid tree nritems, bytenr=30408704 nritems=0 expect >0");
    assert_eq!(read(&good[..50], expect).unwrap_err().rule, 164);
    assert_eq!(write_block(&rules(), &good, 8), Ok(()));
    assert_eq!(write_block(&rules(), &good, 9).unwrap_err().rule, 169);
}

#[test]
pub(super) fn every_finding_of_a_leaf_is_told() {
    let bad = |n| item(n, T::CHUNK_ITEM, 0, [0; 3]);
    let mut rules_broken = Vec::new();
    leaf_each(&rules(), &leaf_of(3, &[bad(256), bad(257), bad(258)]), |corrupt| {
        rules_broken.push((corrupt.rule, corrupt.slot));
        ControlFlow::Continue(())
    });
    assert_eq!(rules_broken, [(68, Some(0)), (68, Some(1)), (68, Some(2))]);
}

proptest::proptest! {
    /// Any damage to a block of every kind of item ends in a verdict.
    #[test]
    fn no_bytes_make_the_checker_panic(
        hits in proptest::collection::vec((0usize..16384, proptest::prelude::any::<u8>()), 0..40),
        owner in 0u64..12,
    ) {
        let kinds = [1u8, 12, 13, 24, 84, 96, 108, 128, 132, 144, 156, 168, 169, 176, 178, 182, 184, 192, 204, 216, 228, 230];
        let items: Vec<_> = kinds.iter().map(|&k| item(256, ItemType(k), 4096, vec![k; 53 + usize::from(k)])).collect();
        let mut block = leaf_of(owner, &items);
        for (at, byte) in hits {
            block[at] = byte;
        }
        let mut findings = 0;
        leaf_each(&rules(), &block, |_| { findings += 1; ControlFlow::Continue(()) });
        let _ = node(&rules(), &block);
        proptest::prop_assert!(findings <= 16384);
    }
}

/// S16: the two examples of the tree checker's own announcement, in today's words.
#[test]
fn s16_the_documented_examples_are_named_exactly() {
    let inode = Inode { generation: 9, mode: 0o040_755, nlink: 1, ..Inode::default() };
    let (_, message) = judge(id::DATA_RELOC_TREE, &[item(1, T::INODE_ITEM, 0, inode.encode())])
        .expect("a broken rule");
    assert_eq!(
        message,
        "corrupt leaf: root=18446744073709551607 block=30408704 slot=0, invalid key objectid: has 1 \
         expect 6 or [256, 18446744073709551360] or 18446744073709551604"
    );
    // An empty tree of checksums is legal; an empty leaf that a node leads to is not.
    fine(id::CSUM_TREE, &[]);
    let mut empty = leaf_of(id::CSUM_TREE, &[]);
    build::seal(&mut empty, CsumType::Crc32c);
    let first_key = Some(Key::new(id::EXTENT_CSUM, T::EXTENT_CSUM, 0));
    let (generation, owner) = (Some(9), Some(id::CSUM_TREE));
    let expect = Expect { logical: AT, level: 0, generation, first_key, owner };
    let fault = read_block(&rules(), &empty, &expect, 1).unwrap_err();
    let words = "invalid tree nritems, bytenr=30408704 nritems=0 expect >0";
    assert_eq!((fault.rule, &*fault.message), (162, words));
}
