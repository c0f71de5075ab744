//! Roots and their references.

use super::*;

#[test]
pub(super) fn roots() {
    let mut root = Root::parse(&[0; 439]).unwrap();
    root.generation = 10;
    root.last_snapshot = 10;
    let one = |objectid, offset, r: &Root| vec![item(objectid, T::ROOT_ITEM, offset, r.encode())];
    fine(1, &one(5, 0, &root));
    fine(1, &one(id::TREE_RELOC, 5, &root));
    fine(1, &[item(5, T::ROOT_ITEM, 0, [0; 239])]);
    broken(
        105,
        1,
        &one(id::TREE_RELOC, 7, &root),
        "invalid reloc tree for root 7, root id is not a subvolume tree",
    );
    broken(106, 1, &one(0, 1, &root), "invalid root id 0");
    broken(107, 1, &one(id::TREE_RELOC, 0, &root), "invalid root id 0 for reloc tree");
    broken(
        108,
        1,
        &[item(5, T::ROOT_ITEM, 0, [0; 438])],
        "invalid root item size, have 438 expect 439 or 239",
    );
    let case = |rule, change: &dyn Fn(&mut Root), words: &str| {
        let mut root = root.clone();
        change(&mut root);
        broken(rule, 1, &one(5, 0, &root), words);
    };
    case(109, &|r| r.generation = 11, "invalid root generation, have 11 expect (0, 10]");
    case(110, &|r| r.generation_v2 = 11, "invalid root v2 generation, have 11 expect (0, 10]");
    case(111, &|r| r.last_snapshot = 11, "invalid root last_snapshot, have 11 expect (0, 10]");
    case(
        112,
        &|r| r.bytenr = Logical(1),
        "invalid root bytenr, have 1 expect to be aligned to 4096",
    );
    case(113, &|r| r.level = 8, "invalid root level, have 8 expect [0, 7]");
    case(114, &|r| r.drop_level = 8, "invalid root drop_level, have 8 expect [0, 7]");
    case(
        115,
        &|r| r.drop_progress.objectid = 3,
        "invalid root drop_level 0 with non-zero drop_progress objectid 3",
    );
    case(116, &|r| r.flags = 2, "invalid root flags, have 0x2 expect mask 0x1000000000001");
    let name = RootRef { dirid: 256, sequence: 2, name: b"sub" };
    let at = |data: Vec<u8>| vec![item(5, T::ROOT_REF, 256, data)];
    fine(1, &at(name.encode()));
    broken(
        117,
        1,
        &at(name.encode()[..18].to_vec()),
        "invalid root ref item size for key type 156, have 18 expect > 18",
    );
    broken(
        118,
        1,
        &at(RootRef { name: &[b'x'; 256], ..name }.encode()),
        "root ref name too long for key type 156, have 256 max 255",
    );
    broken(
        119,
        1,
        &at(name.encode()[..20].to_vec()),
        "invalid root ref item size for key type 156, have 20 expect 21",
    );
}
