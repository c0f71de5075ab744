use super::*;
use crate::testing::images;
use proptest::prelude::*;

const LEN: u64 = 4 << 20;

fn head() -> Vec<u8> {
    images::luks1()[..HEADER_LEN].to_vec()
}

fn check_of(head: &[u8]) -> u8 {
    Luks1::parse(head, LEN).expect_err("must be refused").check
}

/// The header with four bytes of a field replaced.
fn with(at: usize, value: u32) -> Vec<u8> {
    let mut h = head();
    h[at..at + 4].copy_from_slice(&value.to_be_bytes());
    h
}

const SLOT0: usize = 208;
const OFFSET: usize = 40;
const STRIPES: usize = 44;

#[test]
fn the_vector_parses_and_encodes_to_the_same_bytes() {
    let h = Luks1::parse(&head(), LEN).unwrap();
    assert_eq!(
        (h.cipher.as_str(), h.mode.as_str(), h.hash.as_str()),
        ("aes", "xts-plain64", "sha256")
    );
    assert_eq!((h.payload_offset, h.key_bytes, h.digest_iterations), (4096, 64, 1000));
    assert_eq!(h.uuid, "11111111-2222-3333-4444-555555555555");
    assert!(h.slots[0].active && !h.slots[1].active);
    assert_eq!(h.area_sectors(), 500);
    assert_eq!(h.encode(), head());
}

#[test]
fn each_broken_rule_has_its_number() {
    assert_eq!(check_of(&head()[..500]), 1);
    assert_eq!(check_of(&with(4, 0xbabe_0003)), 1);
    for key_bytes in [0, 513, u32::MAX] {
        assert_eq!(check_of(&with(108, key_bytes)), 24, "{key_bytes}");
    }
    assert_eq!(check_of(&with(164, 0)), 30);
    assert_eq!(check_of(&with(SLOT0 + STRIPES, 44944)), 23);
    assert_eq!(check_of(&with(SLOT0 + 48 + STRIPES, 1)), 23, "free slots too");
    assert_eq!(check_of(&with(SLOT0, 5)), 32, "neither in use nor free");
    for inside in [0, 1] {
        assert_eq!(check_of(&with(SLOT0 + OFFSET, inside)), 32, "over the header");
    }
    assert_eq!(check_of(&with(SLOT0 + OFFSET, 4000)), 32, "into the payload");
    assert_eq!(check_of(&with(SLOT0 + OFFSET, 0x200)), 32, "slot 1's place");
    assert_eq!(check_of(&with(SLOT0 + OFFSET, u32::MAX)), 32);
    assert_eq!(Luks1::parse(&head(), 4096 + 255_999).unwrap_err().check, 32, "short device");
    assert!(Luks1::parse(&head(), 4096 + 256_000).is_ok());
    assert!(Luks1::parse(&with(SLOT0 + OFFSET, 2), LEN).is_ok(), "the 1.0 layout");
}

#[test]
fn text_fields_end_at_their_last_byte() {
    let mut h = head();
    h[8..40].fill(b'x');
    assert_eq!(Luks1::parse(&h, LEN).unwrap().cipher.len(), 31);
    h[10] = 0xff;
    assert_eq!(check_of(&h), 2);
}

proptest! {
    #[test]
    fn any_bytes_give_a_value(
        at in 0usize..592,
        bytes in proptest::collection::vec(any::<u8>(), 1..40),
        len in any::<u64>(),
    ) {
        let mut h = head();
        let end = (at + bytes.len()).min(h.len());
        h[at..end].copy_from_slice(&bytes[..end - at]);
        if let Ok(parsed) = Luks1::parse(&h, len) {
            prop_assert!(parsed.encode().len() == HEADER_LEN);
            prop_assert_eq!(Luks1::parse(&parsed.encode(), len), Ok(parsed));
        }
    }
}
