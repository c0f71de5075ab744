use super::*;
use crate::error::Error;
use crate::testing::{images, sha256};
use proptest::prelude::*;

const SIZE: usize = 16384;

fn len(image: &[u8]) -> u64 {
    image.len() as u64
}

/// Writes the right checksum of the copy at `at` again.
pub(crate) fn reseal(image: &mut [u8], at: usize) {
    let size = u64::from_be_bytes(image[at + 8..at + 16].try_into().unwrap());
    let size = usize::try_from(size).unwrap();
    image[at + 448..at + 512].fill(0);
    let sum = Hash::Sha256.digest(&[&image[at..at + size]]);
    image[at + 448..at + 480].copy_from_slice(&sum[..32]);
}

fn edit(image: &mut [u8], at: usize, what: impl Fn(&mut [u8])) {
    what(&mut image[at..at + SIZE]);
    reseal(image, at);
}

fn check_of(e: Error) -> u8 {
    match e {
        Error::Corrupt(c) => c.check,
        Error::Refused { check, .. } => check,
        other => panic!("{other}"),
    }
}

fn found(image: &[u8]) -> Luks2 {
    recover(image, len(image), None).unwrap()
}

#[test]
fn both_vectors_parse() {
    let a = found(&images::luks2_a());
    assert_eq!((a.label.as_str(), a.seqid, a.hdr_size), ("varve-vec", 3, 16384));
    assert_eq!(a.uuid, "22222222-3333-4444-5555-666666666666");
    assert!(a.notes.is_empty(), "{:?}", a.notes);
    let b = found(&images::luks2_b());
    assert_eq!(b.label, "");
    assert_eq!(b.metadata.segments[&0].offset, 1 << 20);
}

#[test]
fn the_vectors_images_hash_as_the_specification_says() {
    for (image, head, all) in [
        (
            images::luks2_a(),
            "9cf26c4180a855b8c9675f07d2f86034ed65dac67677912e0df169b35ebca7a7",
            "5527ebe7e27650099aae56db5116298bb405e47d18160e16b68d945f83f8550e",
        ),
        (
            images::luks2_b(),
            "123e035d2c1fb9903a36ff4821534f3ea3871af12aea4e77660acb20576d3777",
            "45bcb3625b339900138e4c05831d521010ed84f1af0003a95d6a2945dfa305a9",
        ),
    ] {
        assert_eq!(sha256(&image[..32768]), head);
        assert_eq!(sha256(&image[..1 << 20]), all);
    }
}

#[test]
fn encoding_gives_copies_that_read_back_and_differ_in_their_salt() {
    let h = found(&images::luks2_a());
    let [(at0, one), (at1, two)] = h.encode(&mut crate::key::fill_random).unwrap().unwrap();
    assert_eq!((at0, at1), (0, 16384));
    let mut image = images::luks2_a();
    image[..SIZE].copy_from_slice(&one);
    image[SIZE..2 * SIZE].copy_from_slice(&two);
    assert_eq!(found(&image), h);
    assert_ne!(one[104..168], two[104..168], "salts");
    assert_ne!(one[448..480], two[448..480], "checksums");
    assert_eq!(one[4096..], two[4096..], "the text");
}

#[test]
fn the_higher_seqid_wins_and_the_loser_is_noted() {
    let mut image = images::luks2_a();
    edit(&mut image, SIZE, |h| h[23] = 9);
    let h = found(&image);
    assert_eq!((h.copy, h.seqid), (HeaderCopy::Secondary, 9));
    assert!(h.notes[0].contains("primary header is older"), "{:?}", h.notes);
    edit(&mut image, 0, |h| h[23] = 10);
    let h = found(&image);
    assert_eq!((h.copy, h.seqid), (HeaderCopy::Primary, 10));
}

#[test]
fn equal_seqid_and_different_content_is_noted() {
    let mut image = images::luks2_a();
    edit(&mut image, SIZE, |h| h[24] = b'V');
    let h = found(&image);
    assert_eq!((h.copy, h.label.as_str()), (HeaderCopy::Primary, "varve-vec"));
    assert!(h.notes[0].contains("one seqid and different contents"), "{:?}", h.notes);
}

#[test]
fn copies_of_different_volumes_open_only_by_name() {
    let mut image = images::luks2_a();
    edit(&mut image, SIZE, |h| {
        h[168] = b'9';
        h[23] = 200;
    });
    let all = len(&image);
    assert_eq!(check_of(recover(&image, all, None).unwrap_err()), 14);
    let s = recover(&image, all, Some(HeaderCopy::Secondary)).unwrap();
    assert!(s.uuid.starts_with('9'));
    let p = recover(&image, all, Some(HeaderCopy::Primary)).unwrap();
    assert!(p.uuid.starts_with('2'));
}

#[test]
fn one_good_copy_is_enough() {
    for at in [0, SIZE] {
        for broken in [at, at + 8, at + 200, at + 448, at + 5000] {
            let mut image = images::luks2_a();
            image[broken] ^= 1;
            let h = found(&image);
            let want = if at == 0 { HeaderCopy::Secondary } else { HeaderCopy::Primary };
            assert_eq!(h.copy, want, "{broken}");
            assert_eq!(h.notes.len(), 1);
        }
    }
    let mut image = images::luks2_a();
    image[0] = 0;
    image[SIZE] = 0;
    assert_eq!(check_of(recover(&image, len(&image), None).unwrap_err()), 1);
}

#[test]
fn a_file_system_over_the_primary_header_is_not_opened_through_the_secondary() {
    let mut image = images::luks2_a();
    image[..2048].fill(0);
    image[1024 + 56..1024 + 58].copy_from_slice(b"\x53\xef");
    let all = len(&image);
    let e = recover(&image, all, None).unwrap_err();
    assert!(e.to_string().contains("ext2/3/4"), "{e}");
    assert_eq!(check_of(e), 14);
    assert!(recover(&image, all, Some(HeaderCopy::Secondary)).is_ok(), "by name it opens");
    let mut signed = images::luks2_a();
    signed[512..520].copy_from_slice(b"LABELONE");
    assert_eq!(check_of(recover(&signed, all, None).unwrap_err()), 14, "and a broken checksum");
}

#[test]
fn each_broken_rule_of_the_binary_header_has_its_number() {
    let both = |change: &dyn Fn(&mut [u8]), seal: bool| {
        let mut image = images::luks2_a();
        for at in [0, SIZE] {
            change(&mut image[at..at + SIZE]);
            if seal {
                image[at + 448..at + 512].fill(0);
                let sum = Hash::Sha256.digest(&[&image[at..at + SIZE]]);
                image[at + 448..at + 480].copy_from_slice(&sum[..32]);
            }
        }
        check_of(recover(&image, len(&image), None).expect_err("must be refused"))
    };
    assert_eq!(both(&|h| h[7] = 3, true), 1);
    assert_eq!(both(&|h| h[8..16].copy_from_slice(&0x8000_0000u64.to_be_bytes()), true), 3);
    assert_eq!(both(&|h| h[8..16].copy_from_slice(&0x5000u64.to_be_bytes()), true), 3);
    assert_eq!(both(&|h| h[8..16].copy_from_slice(&u64::MAX.to_be_bytes()), true), 3);
    assert_eq!(both(&|h| h[263] ^= 1, true), 4);
    assert_eq!(both(&|h| h[72..78].copy_from_slice(b"crc32c"), true), 5);
    assert_eq!(both(&|h| h[500] = 1, false), 5);
    assert_eq!(both(&|h| h[30] ^= 1, false), 6);
    assert_eq!(both(&|h| h[4096] = b' ', true), 7);
    let image = images::luks2_a();
    let short = &image[..2 * SIZE + 100];
    assert_eq!(check_of(recover(short, len(short), None).unwrap_err()), 12);
}

#[test]
fn a_lost_primary_is_searched_at_all_nine_sizes() {
    for size in HDR_SIZES {
        let first = 2 * size + (1 << 20);
        let mut value: serde_json::Value = serde_json::from_str(images::LUKS2_A_JSON).unwrap();
        value["config"]["json_size"] = (size - 4096).to_string().into();
        value["keyslots"]["0"]["area"]["offset"] = (2 * size).to_string().into();
        value["segments"]["0"]["offset"] = first.to_string().into();
        let template = found(&images::luks2_a());
        let h = Luks2 {
            hdr_size: size,
            metadata: Metadata::parse("test", value, size).unwrap(),
            ..template
        };
        let [_, (at, bytes)] = h.encode(&mut crate::key::fill_random).unwrap().unwrap();
        let mut image = vec![0; usize::try_from(first + 4096).unwrap()];
        let at = usize::try_from(at).unwrap();
        image[at..at + bytes.len()].copy_from_slice(&bytes);
        let back = found(&image);
        assert_eq!((back.copy, back.hdr_size), (HeaderCopy::Secondary, size));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_change_gives_a_value(
        at in 0usize..2 * SIZE,
        bytes in proptest::collection::vec(any::<u8>(), 1..64),
        seal in any::<bool>(),
    ) {
        let mut image = images::luks2_b()[..64 << 10].to_vec();
        let end = (at + bytes.len()).min(2 * SIZE);
        image[at..end].copy_from_slice(&bytes[..end - at]);
        if seal {
            for copy in [0, SIZE] {
                if image[copy + 8..copy + 16] == 16384u64.to_be_bytes() {
                    reseal(&mut image, copy);
                }
            }
        }
        let _ = recover(&image, 2 << 20, None);
    }
}
