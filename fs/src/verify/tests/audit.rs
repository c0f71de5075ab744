//! The tree checker against appendix A of the format file, rule by rule: each is broken by some test
//! of this folder, and says it in the kernel's words, to the letter; `%` is a number or a word.

use super::{blocks, extents, files, roots, space};
use crate::verify::Corrupt;
use Start::*;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

/// How the kernel's line begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Start {
    Whole,
    Plain,
    Node,
    File,
    Inode,
    Group,
    Chunk,
    Device,
    Extent,
}

impl Start {
    fn text(self) -> &'static str {
        match self {
            Whole => "",
            Plain => "corrupt leaf: root=% block=% slot=%, ",
            Node => "corrupt node: root=% block=% slot=%, ",
            File => "corrupt leaf: root=% block=% slot=% ino=% file_offset=%, ",
            Inode => "corrupt leaf: root=% block=% slot=% ino=%, ",
            Group => "corrupt leaf: root=% block=% slot=% bg_start=% bg_len=%, ",
            Chunk => "corrupt leaf: root=3 block=% slot=% chunk_start=%, ",
            Device => "corrupt leaf: root=% block=% slot=% devid=% ",
            Extent => "corrupt leaf: block=% slot=% extent bytenr=% len=% ",
        }
    }
}

#[rustfmt::skip]
const RULES: &[(u8, Start, &str)] = &[
    (1, Plain, "invalid level for leaf, have % expect 0"),
    (2, Plain, "invalid flag for leaf, WRITTEN not set"),
    (3, Plain, "invalid root, root % must never be empty"),
    (4, Plain, "invalid owner, root 0 is not defined"),
    (5, Plain, "invalid root, root % must never be empty"),
    (6, Plain, "bad key order, prev (% % %) current (% % %)"),
    (7, Plain, "unexpected item end, have % expect %"),
    (9, Plain, "slot overlaps with its data, item end % data start %"),
    (11, Node, "invalid flag for node, WRITTEN not set"),
    (12, Node, "invalid level for node, have % expect [1, 7]"),
    (13, Whole, "corrupt node: root=% block=%, nritems too %, have % expect range [1,%]"),
    (14, Node, "invalid NULL node pointer"),
    (15, Node, "unaligned pointer, have % should be aligned to %"),
    (16, Node, "bad key order, current (% % %) next (% % %)"),
    (17, File, "unaligned file_offset for file extent, have % should be aligned to %"),
    (18, Inode, "invalid previous key objectid, have % expect %"),
    (19, File, "invalid item size, have % expect [21, 4096)"),
    (20, File, "invalid type for file extent, have % expect range [0, 2]"),
    (21, File, "invalid compression for file extent, have % expect range [0, 3]"),
    (22, File, "invalid encryption for file extent, have % expect 0"),
    (23, File, "invalid file_offset for inline file extent, have % expect 0"),
    (24, File, "invalid ram_bytes for uncompressed inline extent, have % expect %"),
    (25, File, "invalid item size for reg/prealloc file extent, have % expect 53"),
    (26, File, "invalid ram_bytes for file extent, have %, should be aligned to %"),
    (27, File, "invalid disk_bytenr for file extent, have %, should be aligned to %"),
    (28, File, "invalid disk_num_bytes for file extent, have %, should be aligned to %"),
    (29, File, "invalid offset for file extent, have %, should be aligned to %"),
    (30, File, "invalid num_bytes for file extent, have %, should be aligned to %"),
    (31, File, "extent end overflow, have file offset % extent num bytes %"),
    (32, File, "file extent end range (%) goes beyond start offset (%) of the next file extent"),
    (34, Plain, "invalid key objectid for csum item, have % expect %"),
    (35, Plain, "unaligned key offset for csum item, have % should be aligned to %"),
    (36, Plain, "unaligned item size for csum item, have % should be aligned to %"),
    (37, Plain, "csum end range (%) goes beyond the start range (%) of the next csum item"),
    (39, Inode, "dir item header crosses item boundary, have % boundary %"),
    (40, Inode, "invalid location key root id 0"),
    (41, Inode, "invalid location key objectid, have % expect [256, 18446744073709551360]"),
    (42, Inode, "invalid location key objectid: has % expect 6 or [256, 18446744073709551360] or 18446744073709551604"),
    (43, Inode, "invalid location key offset:has % expect 0"),
    (45, Inode, "invalid location key type, have %, expect 132 or 1"),
    (46, Inode, "invalid dir item type, have % expect (0, 9)"),
    (47, Inode, "invalid dir item type for XATTR key, have % expect 8"),
    (48, Inode, "xattr dir type found for non-XATTR key"),
    (49, Inode, "dir item name len too long, have % max 255"),
    (50, Inode, "dir item name and data len too long, have % max %"),
    (51, Inode, "dir item with invalid data len, have % expect 0"),
    (52, Inode, "dir item data crosses item boundary, have % boundary %"),
    (53, Inode, "name hash mismatch with key, have 0x% expect 0x%"),
    (55, Inode, "invalid item size, have % expect (10, %)"),
    (56, Inode, "inode ref overflow, ptr % end % inode_ref_size 10"),
    (57, Inode, "invalid inode ref name length, has % expect [1, 255]"),
    (58, Inode, "inode ref overflow, ptr % end % namelen %"),
    (59, Inode, "inode extref overflow, ptr % end % inode_extref size 18"),
    (60, Inode, "inode extref overflow, ptr % end % namelen %"),
    (61, Group, "invalid block group size 0"),
    (62, Group, "invalid item size, have % expect 24"),
    (64, Group, "invalid block group chunk objectid, have % expect 256"),
    (65, Group, "invalid block group used, have % expect [0, %)"),
    (66, Group, "invalid profile flags, have 0x% (% bits set) expect no more than 1 bit set"),
    (67, Group, "invalid type, have 0x% (% bits set) expect either 0x1, 0x4, 0x2 or 0x5"),
    (68, Chunk, "invalid chunk item size: have % expect [80, %)"),
    (69, Chunk, "invalid chunk item size: have % expect %"),
    (70, Chunk, "invalid chunk num_stripes, have %"),
    (71, Chunk, "invalid chunk num_stripes < ncopies, have % < %"),
    (72, Chunk, "invalid chunk num_stripes == nparity, have % == %"),
    (73, Chunk, "invalid chunk logical, have % should aligned to %"),
    (74, Chunk, "invalid chunk sectorsize, have % expect %"),
    (75, Chunk, "invalid chunk length, have %"),
    (76, Chunk, "invalid chunk logical start and length, have logical start % length %"),
    (77, Chunk, "invalid chunk stripe length: %"),
    (78, Chunk, "chunk length too large: have % limit 281474976645120"),
    (79, Chunk, "unrecognized chunk type: 0x%"),
    (80, Chunk, "invalid chunk profile flag: 0x%, expect 0 or 1 bit set"),
    (81, Chunk, "missing chunk type flag, have 0x% one bit must be set in 0x7"),
    (82, Chunk, "system chunk with data or metadata type: 0x%"),
    (83, Chunk, "mixed chunk type in non-mixed mode: 0x%"),
    (84, Chunk, "invalid num_stripes:sub_stripes %:% for profile %"),
    (85, Device, "invalid objectid: has=% expect=1"),
    (86, Device, "invalid item size: has % expect 98"),
    (87, Device, "devid mismatch: key has=% item has=%"),
    (88, Device, "invalid bytes used: have % expect [0, %]"),
    (89, Plain, "invalid dev extent chunk tree id, has % expect 3"),
    (90, Plain, "invalid dev extent chunk objectid, has % expect 256"),
    (91, Plain, "invalid dev extent key.offset, has % not aligned to %"),
    (92, Plain, "invalid dev extent chunk offset, has % not aligned to %"),
    (93, Plain, "invalid dev extent length, has % not aligned to %"),
    (94, Plain, "dev extent overlap, prev offset % len % current offset %"),
    (95, Plain, "invalid key objectid: has % expect 6 or [256, 18446744073709551360] or 18446744073709551604"),
    (96, Inode, "invalid key offset: has % expect 0"),
    (97, Plain, "invalid item size: has % expect 160"),
    (98, Inode, "invalid inode generation: has % expect (0, %]"),
    (99, Inode, "invalid inode transid: has % expect [0, %]"),
    (100, Inode, "unknown mode bit detected: 0x%"),
    (101, Inode, "invalid mode: has 0% expect valid S_IF* bit(s)"),
    (102, Inode, "invalid nlink: has % expect no more than 1 for dir"),
    (103, Inode, "unknown incompat flags detected: 0x%"),
    (104, Inode, "unknown ro-compat flags detected on writeable mount: 0x%"),
    (105, Plain, "invalid reloc tree for root %, root id is not a subvolume tree"),
    (106, Plain, "invalid root id 0"),
    (107, Plain, "invalid root id 0 for reloc tree"),
    (108, Plain, "invalid root item size, have % expect 439 or 239"),
    (109, Plain, "invalid root generation, have % expect (0, %]"),
    (110, Plain, "invalid root v2 generation, have % expect (0, %]"),
    (111, Plain, "invalid root last_snapshot, have % expect (0, %]"),
    (112, Plain, "invalid root bytenr, have % expect to be aligned to %"),
    (113, Plain, "invalid root level, have % expect [0, 7]"),
    (114, Plain, "invalid root drop_level, have % expect [0, 7]"),
    (115, Plain, "invalid root drop_level 0 with non-zero drop_progress objectid %"),
    (116, Plain, "invalid root flags, have 0x% expect mask 0x1000000000001"),
    (117, Plain, "invalid root ref item size for key type %, have % expect > 18"),
    (118, Plain, "root ref name too long for key type %, have % max 255"),
    (119, Plain, "invalid root ref item size for key type %, have % expect %"),
    (120, Plain, "invalid key type, METADATA_ITEM type invalid when SKINNY_METADATA feature disabled"),
    (121, Plain, "invalid key objectid, have % expect to be aligned to %"),
    (122, Extent, "invalid tree level, have % expect [0, 7]"),
    (123, Extent, "invalid item size, have % expect [24, %)"),
    (124, Extent, "invalid generation, have % expect (0, %]"),
    (125, Extent, "invalid extent flag, have 0x% expect 1 bit set in 0x3"),
    (126, Extent, "invalid extent length, have % expect %"),
    (127, Extent, "invalid key type, have % expect 168 for data backref"),
    (128, Extent, "invalid extent length, have % expect aligned to %"),
    (129, Extent, "invalid extent flag, data has full backref set"),
    (130, Extent, "invalid tree block info level, have % expect [0, 7]"),
    (131, Extent, "inline ref item overflows extent item, ptr % iref size 9 end %"),
    (132, Extent, "inline ref item overflows extent item, ptr % iref size % end %"),
    (133, Extent, "invalid tree parent bytenr, have % expect aligned to %"),
    (134, Extent, "invalid data ref root value %"),
    (135, Extent, "invalid data ref objectid value %"),
    (136, Extent, "invalid data ref offset, have % expect aligned to %"),
    (137, Extent, "invalid data ref count, should have non-zero value"),
    (138, Extent, "invalid data parent bytenr, have % expect aligned to %"),
    (139, Extent, "invalid shared data ref count, should have non-zero value"),
    (141, Extent, "unknown inline ref type: %"),
    (142, Extent, "inline ref out-of-order: has type %, prev type %"),
    (143, Extent, "inline ref out-of-order: has type % offset % seq 0x%, prev type % seq 0x%"),
    (144, Extent, "invalid extent item size, padding bytes found"),
    (145, Extent, "invalid extent refs, have % expect >= inline %"),
    (146, Extent, "previous extent [% % %] overlaps current extent [% % %]"),
    (147, Extent, "invalid shared data backref count, should have non-zero value"),
    (148, Plain, "invalid item size, have % expect % for key type %"),
    (149, Plain, "invalid key objectid for shared block ref, have % expect aligned to %"),
    (150, Extent, "invalid tree parent bytenr, have % expect aligned to %"),
    (151, Plain, "invalid item size, have % expect aligned to 28 for key type 178"),
    (152, Extent, "invalid extent data backref root value %"),
    (153, Extent, "invalid extent data backref objectid value %"),
    (154, Extent, "invalid extent data backref offset, have % expect aligned to %"),
    (155, Extent, "invalid extent data backref count, should have non-zero value"),
    (156, Plain, "invalid key objectid for raid stripe extent, have % expect aligned to %"),
    (157, Plain, "RAID_STRIPE_EXTENT present but RAID_STRIPE_TREE incompat bit unset"),
    (158, Whole, "corrupted %, root=% block=% owner mismatch, have % expect %"),
    (159, Whole, "corrupted %, root=% block=% owner mismatch, have % expect [256, 18446744073709551360]"),
    (160, Whole, "level verify failed on logical % mirror % wanted % found %"),
    (161, Whole, "parent transid verify failed on logical % mirror % wanted % found %"),
    (162, Whole, "invalid tree nritems, bytenr=% nritems=0 expect >0"),
    (163, Whole, "tree first key mismatch detected, bytenr=% parent_transid=% key expected=(%,%,%) has=(%,%,%)"),
    (164, Whole, "bad tree block start, mirror % want % have %"),
    (165, Whole, "bad fsid on logical % mirror %"),
    (166, Whole, "bad tree block level, mirror % level % on logical %"),
    (167, Whole, "checksum verify failed on logical % mirror % wanted 0x% found 0x% level %"),
    (169, Whole, "block=% bad generation, have % expect > %"),
];

/// What is refused here beyond the kernel, under the number of the rule that it belongs to.
const STRICTER: &[(u8, Start, &str)] = &[
    (49, Inode, "dir item name len too short, have % min 1"),
    (89, Plain, "invalid dev extent item size, has % expect 48"),
    (164, Whole, "short tree block, mirror % logical %"),
];

/// Numbers without a line of their own.
const NOT_HERE: &[(u8, &str)] = &[
    (8, "never comes up: an item that ends where rule 7 wants it ends inside the leaf"),
    (10, "says that the item rules come next"),
    (33, "a warning of debug builds"),
    (38, "is rule 18 for names and attributes"),
    (44, "has no words: ours are free"),
    (54, "is rule 18 for back references of inodes"),
    (63, "of extent tree v2, which is refused"),
    (140, "is accepted"),
    (168, "is the summary of the others"),
];

thread_local! {
    static SEEN: RefCell<BTreeMap<u8, BTreeSet<String>>> = RefCell::default();
}

/// Every broken rule comes by here.
pub(in crate::verify) fn note(corrupt: &Corrupt) {
    SEEN.with_borrow_mut(|seen| {
        seen.entry(corrupt.rule).or_default().insert(corrupt.message.clone());
    });
}

/// Whether `text` is `pattern` with some word in place of every `%`.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((before, after)) = pattern.split_once('%') else { return pattern == text };
    let Some(rest) = text.strip_prefix(before) else { return false };
    let word = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '-').unwrap_or(rest.len());
    (1..=word).rev().any(|end| matches(after, &rest[end..]))
}

/// The rules that a block can break.
pub(super) fn numbers() -> impl Iterator<Item = u8> {
    RULES.iter().map(|row| row.0)
}

#[test]
fn every_rule_is_broken_by_a_test_and_speaks_the_kernels_words() {
    SEEN.take();
    let tests: &[fn()] = &[
        blocks::a_leaf_as_a_whole,
        blocks::items_out_of_order_or_out_of_place,
        blocks::nodes,
        blocks::a_block_against_its_parent,
        blocks::every_finding_of_a_leaf_is_told,
        extents::extent_records,
        extents::inline_references,
        extents::keyed_references,
        files::file_extents,
        files::checksums,
        files::directory_entries_and_attributes,
        files::names_of_inodes,
        files::inodes,
        roots::roots,
        space::block_groups,
        space::chunks,
        space::devices_and_their_extents,
    ];
    for test in tests {
        test();
    }
    let seen = SEEN.take();
    let mut wrong = Vec::new();
    for (rule, start, words) in RULES {
        let pattern = format!("{}{words}", start.text());
        let stricter = |message: &str| {
            let mut own = STRICTER.iter().filter(|row| row.0 == *rule);
            own.any(|(_, start, words)| matches(&format!("{}{words}", start.text()), message))
        };
        let Some(messages) = seen.get(rule) else {
            wrong.push(format!("rule {rule} is broken by no test: {words}"));
            continue;
        };
        if !messages.iter().any(|message| matches(&pattern, message)) {
            wrong.push(format!("rule {rule} is broken by no test: {words}"));
        }
        let others = messages.iter().filter(|m| !matches(&pattern, m) && !stricter(m));
        wrong.extend(others.map(|message| format!("rule {rule}: {message}\n    not {pattern}")));
    }
    let known = |rule: &u8| {
        RULES.iter().any(|row| row.0 == *rule) || NOT_HERE.iter().any(|row| row.0 == *rule)
    };
    wrong.extend(seen.keys().filter(|rule| !known(rule)).map(|rule| format!("rule {rule}?")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_table_has_each_rule_of_the_appendix_once() {
    let mut numbers: Vec<u8> =
        RULES.iter().map(|row| row.0).chain(NOT_HERE.iter().map(|row| row.0)).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=169).collect::<Vec<u8>>());
    assert!(matches("a % of (% % %)", "a word of (1 0x2 -3)"));
    assert!(!matches("a % of", "a  of") && !matches("a %", "a b c"));
}
