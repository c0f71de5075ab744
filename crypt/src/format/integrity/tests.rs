use super::*;
use crate::testing::hex;
use proptest::prelude::*;

/// Superblocks that kernel 6.12 wrote (luks.md 11.9).
const KERNEL: &[&str] = &[
    "696e746567727400050f04000200000098bc00000000000018000000000f0000\
     0000000000000000000000000000000039c1e724890e9cc2d97ea860435b03f0",
    "696e746567727400050f200001000000f0bc00000000000018000000030c0000\
     00000000000000000000000000000000a0c00f18971d14dec08b34b1cc78ff33",
    "696e746567727400050f20000400000098ae00000000000018000000000f0000\
     000000000000000000000000000000006ea4931a90bf15a880663563dbf0e38f",
];

#[test]
fn the_kernels_superblocks_are_read_and_written_back_byte_for_byte() {
    for text in KERNEL {
        let bytes = hex(text);
        let sb = Superblock::parse(&bytes).unwrap();
        assert!(sb.fixed_padding && sb.salt.is_some() && sb.recalculating.is_none());
        assert_eq!(sb.encode()[..], bytes[..]);
    }
    let sb = Superblock::parse(&hex(KERNEL[1])).unwrap();
    assert_eq!((sb.tag_size, sb.log2_block, sb.journal_sections), (32, 3, 1));
    assert_eq!((sb.provided, sb.log2_blocks_per_bit), (Sectors(0xbcf0), 12));
}

#[test]
fn what_we_do_not_understand_is_unsupported_and_what_cannot_be_is_corrupt() {
    let with = |at: usize, byte: u8| {
        let mut bytes = hex(KERNEL[0]);
        bytes[at] = byte;
        Superblock::parse(&bytes)
    };
    // version, journal MAC, inline, keyed discard, an unknown flag, separate metadata
    for (at, byte) in [(8, 8), (24, 0x19), (24, 0x38), (24, 0x58), (25, 1), (9, 0)] {
        assert!(matches!(with(at, byte), Err(Error::Unsupported(_))), "{at} {byte}");
    }
    // magic, interleave, tag size, journal sections, block, provided, bitmap
    for (at, byte) in [(0, 0), (9, 2), (9, 32), (11, 0xff), (12, 0), (28, 4), (29, 64)] {
        assert!(matches!(with(at, byte), Err(Error::Corrupt(_))), "{at} {byte}");
    }
    assert!(matches!(Superblock::parse(&[0; 63]), Err(Error::Corrupt(_))));
}

proptest! {
    #[test]
    fn any_bytes_give_a_value_and_a_value_gives_its_bytes(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..100),
        shaped in any::<bool>(),
    ) {
        if shaped && bytes.len() >= LEN {
            bytes[..8].copy_from_slice(&MAGIC);
            bytes[8] = 1 + bytes[8] % 7;
            bytes[9] = 3 + bytes[9] % 29;
            bytes[11] &= 1;
            let flags = bytes[24] & 0x1e;
            bytes[24..28].copy_from_slice(&[flags, 0, 0, 0]);
            bytes[28] %= 4;
            bytes[16] &= 0xf8;
            bytes[29] %= 64;
        }
        if let Ok(sb) = Superblock::parse(&bytes) {
            prop_assert_eq!(Superblock::parse(&sb.encode()).unwrap(), sb);
        }
    }
}
