//! The numbered checks of hostile headers, each with the tests that show it. A number without a test, and a
//! test that is gone, fail here.

use std::path::{Path, PathBuf};

/// Number, what it is about, and the tests.
const CHECKS: &[(u8, &str, &[&str])] = &[
    (1, "magic and version", &["each_broken_rule_has_its_number"]),
    (
        2,
        "text fields",
        &["text_fields_end_at_their_last_byte", "a_terminal_escape_in_a_label_is_shown_escaped"],
    ),
    (3, "hdr_size", &["generators_of_metadata_sizes_get_their_verdicts"]),
    (4, "hdr_offset", &["each_broken_rule_of_the_binary_header_has_its_number"]),
    (5, "checksum algorithm", &["each_broken_rule_of_the_binary_header_has_its_number"]),
    (
        6,
        "checksum, and one reading",
        &[
            "generators_of_copies_get_their_verdicts",
            "c21_a_header_that_changes_while_it_is_read_is_taken_once",
        ],
    ),
    (7, "JSON framing", &["generators_of_frames_get_their_verdicts", "the_frame_is_strict"]),
    (
        8,
        "JSON depth, keys and ids",
        &[
            "nesting_is_bounded",
            "a_key_that_occurs_twice_is_refused_at_every_level",
            "ids_are_canonical",
        ],
    ),
    (9, "numbers", &["numbers_are_what_they_should_be"]),
    (10, "five objects", &["the_five_top_level_objects_are_mandatory"]),
    (11, "json_size and keyslots_size", &["the_config_must_fit_the_header_and_the_payload"]),
    (
        12,
        "device length",
        &[
            "each_broken_rule_of_the_binary_header_has_its_number",
            "what_does_not_fit_the_device_is_named",
        ],
    ),
    (
        13,
        "unknown requirements",
        &["an_unknown_requirement_forbids_writing", "what_we_do_not_do_is_named"],
    ),
    (
        14,
        "copies that disagree",
        &[
            "equal_seqid_and_different_content_is_noted",
            "copies_of_different_volumes_open_only_by_name",
        ],
    ),
    (15, "opening never writes", &["the_example_volumes_read_and_write_as_the_specification_says"]),
    (16, "references", &["references_must_exist_and_slots_have_one_digest"]),
    (17, "digest hash and iterations", &["slots_that_cannot_be_tried_are_listed_with_the_reason"]),
    (
        18,
        "salt and digest lengths",
        &[
            "slots_that_cannot_be_tried_are_listed_with_the_reason",
            "a_digest_of_twenty_bytes_from_a_converted_volume_verifies_with_any_hash",
        ],
    ),
    (
        19,
        "key lengths",
        &[
            "slots_that_cannot_be_tried_are_listed_with_the_reason",
            "weak_and_wrong_keys_are_refused_by_name",
        ],
    ),
    (20, "wrong and damaged look alike", &["one_flipped_bit_in_the_area_is_a_wrong_passphrase"]),
    (21, "whose key it is", &["the_key_of_another_digest_is_never_mapped"]),
    (22, "weak keys", &["weak_and_wrong_keys_are_refused_by_name"]),
    (
        23,
        "stripes",
        &[
            "each_broken_rule_has_its_number",
            "slots_that_cannot_be_tried_are_listed_with_the_reason",
        ],
    ),
    (
        24,
        "key sizes",
        &[
            "each_broken_rule_has_its_number",
            "slots_that_cannot_be_tried_are_listed_with_the_reason",
        ],
    ),
    (
        25,
        "area sizes",
        &["slots_that_cannot_be_tried_are_listed_with_the_reason", "area_lengths_do_not_overflow"],
    ),
    (26, "PBKDF2 iterations", &["bombs_are_refused_before_any_work"]),
    (
        27,
        "Argon2 costs",
        &["bombs_are_refused_before_any_work", "c25_thirty_one_bombs_cost_nothing"],
    ),
    (28, "all slots together", &["c25_all_slots_together_have_a_limit"]),
    (29, "KDF salt", &["slots_that_cannot_be_tried_are_listed_with_the_reason"]),
    (30, "LUKS1 iterations", &["each_broken_rule_has_its_number"]),
    (
        31,
        "re-encryption's hot zone",
        &["every_row_of_the_mangling_list_is_refused_without_a_write"],
    ),
    (32, "LUKS1 places", &["each_broken_rule_has_its_number"]),
    (33, "LUKS2 areas", &["areas_lie_in_the_keyslot_region_and_apart"]),
    (
        34,
        "segments",
        &[
            "segments_follow_their_rules",
            "segment_sets_have_no_gaps_and_no_overlaps",
            "generators_of_segments_get_their_verdicts",
        ],
    ),
    (35, "sector sizes", &["what_passes_the_parser_still_meets_the_device"]),
    (36, "segment ends", &["what_passes_the_parser_still_meets_the_device"]),
    (37, "a payload over its header", &["a_payload_at_sector_zero_needs_a_detached_header"]),
    (
        38,
        "sector numbers that wrap",
        &[
            "what_passes_the_parser_still_meets_the_device",
            "c29_an_offset_at_the_end_of_the_numbers",
        ],
    ),
    (39, "cipher texts", &["what_is_not_implemented_is_unsupported_and_not_corrupt"]),
    (40, "hash names", &["what_is_not_implemented_is_named"]),
    (
        41,
        "the null cipher",
        &[
            "every_spelling_of_the_null_cipher_is_refused",
            "c21_a_header_that_changes_while_it_is_read_is_taken_once",
        ],
    ),
    (
        42,
        "re-encryption metadata",
        &[
            "every_row_of_the_mangling_list_is_refused_without_a_write",
            "a_reencryption_slot_and_its_requirement_come_together",
        ],
    ),
    (
        43,
        "re-encryption without a digest",
        &["every_row_of_the_mangling_list_is_refused_without_a_write"],
    ),
    (
        44,
        "the integrity superblock",
        &[
            "a_superblock_that_is_not_the_headers_is_refused",
            "a_superblock_that_claims_more_than_fits_is_refused",
        ],
    ),
    (45, "flags", &["the_operator_comes_before_the_header_and_the_header_before_no"]),
    (46, "tokens", &["tokens_come_and_go_as_they_are"]),
    (47, "what a header may lie on", &["what_is_no_disk_is_refused_by_name"]),
    (48, "restoring", &["a_damaged_or_short_backup_is_refused_before_anything_is_written"]),
    (49, "updating", &["a_header_that_somebody_else_changed_is_left_alone"]),
    (50, "key files", &["bounds_are_kept", "every_byte_of_a_key_file_counts"]),
    (
        51,
        "journal replay",
        &[
            "a_replay_begins_after_the_latest_section_and_covers_the_ring",
            "a_read_only_start_replays_in_memory_and_writes_nothing",
        ],
    ),
];

/// Check 52: each parser has a fuzz target.
const FUZZED: &[&str] = &["luks1", "luks2_header", "luks2_json", "cipher_spec"];

fn sources(folder: &Path, found: &mut String) {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(folder).expect("a folder").map(|e| e.expect("an entry").path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push_str(&std::fs::read_to_string(path).expect("a source"));
        }
    }
}

#[test]
fn every_numbered_check_has_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = String::new();
    for folder in ["src", "../block/src"] {
        sources(&root.join(folder), &mut all);
    }
    let numbers: Vec<u8> = CHECKS.iter().map(|(n, ..)| *n).collect();
    assert_eq!(numbers, (1..=51).collect::<Vec<u8>>());
    for (number, about, tests) in CHECKS {
        assert!(!tests.is_empty(), "check {number}, {about}");
        for test in *tests {
            let written = all.contains(&format!("#[test]\nfn {test}()"))
                || all.contains(&format!("#[test]\n    fn {test}()"));
            assert!(written, "check {number}, {about}: there is no test {test}");
        }
    }
    for target in FUZZED {
        assert!(root.join(format!("../tests/fuzz/targets/{target}.rs")).exists(), "{target}");
    }
}
