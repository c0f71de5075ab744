//! One home for checksums, so that no layer picks the wrong one of two CRCs with the same name.

use crc_fast::{CrcAlgorithm, Digest};

/// CRC-32C (Castagnoli) as btrfs and iSCSI use it: reflected, initial and final all ones.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let sum = crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes);
    u32::try_from(sum).expect("a 32-bit CRC")
}

/// CRC-32C of parts that follow each other.
pub fn crc32c_of(parts: &[&[u8]]) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    parts.iter().for_each(|part| digest.update(part));
    u32::try_from(digest.finalize()).expect("a 32-bit CRC")
}

/// The CRC that Linux calls `crc32`, of parts that follow each other: the polynomial of Ethernet,
/// reflected, with an initial value of zero and no final inversion.
pub fn linux_crc32_of(parts: &[&[u8]]) -> u32 {
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32IsoHdlc, 0);
    parts.iter().for_each(|part| digest.update(part));
    !u32::try_from(digest.finalize()).expect("a 32-bit CRC")
}

/// bcache's `crc_plain`: superblock, journal entries, priorities. Catalogued as CRC-64/WE.
pub fn bcache_crc64(bytes: &[u8]) -> u64 {
    crc_fast::checksum(CrcAlgorithm::Crc64We, bytes)
}

/// bcache's `crc_seeded`: version-1 bsets. The register starts as `seed`, the first pointer word of
/// the node's own key, and the result is inverted.
pub fn bcache_crc64_seeded(seed: u64, bytes: &[u8]) -> u64 {
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc64We, seed);
    digest.update(bytes);
    digest.finalize()
}

/// xxHash64 with seed 0, of parts that follow each other.
pub fn xxhash64_of(parts: &[&[u8]]) -> u64 {
    let mut hash = xxhash_rust::xxh64::Xxh64::new(0);
    parts.iter().for_each(|part| hash.update(part));
    hash.digest()
}

/// xxHash64 with seed 0, btrfs's second checksum.
pub fn xxhash64(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh64::xxh64(bytes, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BCACHE_POLY: u64 = 0x42F0_E1EB_A9EA_3693;

    /// The definition of formats: bcache 1.2, bit by bit, as the oracle.
    fn slow(mut reg: u64, bytes: &[u8], xor: u64) -> u64 {
        for &b in bytes {
            reg ^= u64::from(b) << 56;
            for _ in 0..8 {
                reg = if reg >> 63 == 1 { (reg << 1) ^ BCACHE_POLY } else { reg << 1 };
            }
        }
        reg ^ xor
    }

    #[test]
    fn check_values_of_the_catalogue() {
        let nine = b"123456789";
        assert_eq!(crc32c(nine), 0xE306_9283);
        assert_eq!(bcache_crc64(nine), 0x62EC_59E3_F1A4_F00A);
        assert_eq!(bcache_crc64_seeded(0, nine), 0x93BF_20A0_F4B6_8CB8);
        assert_eq!(xxhash64(b""), 0xEF46_DB37_51D8_E999);
    }

    /// Ethernet's CRC bit by bit, from zero and not inverted.
    fn slow_crc32(bytes: &[u8]) -> u32 {
        let mut reg = 0u32;
        for &b in bytes {
            reg ^= u32::from(b);
            for _ in 0..8 {
                reg = if reg & 1 == 1 { (reg >> 1) ^ 0xEDB8_8320 } else { reg >> 1 };
            }
        }
        reg
    }

    #[test]
    fn parts_give_the_sum_of_the_whole() {
        let bytes: Vec<u8> = (0..600u32).map(|i| (i * 5 % 253).to_le_bytes()[0]).collect();
        for cut in [0, 1, 24, 599, 600] {
            let parts = [&bytes[..cut], &bytes[cut..]];
            assert_eq!(crc32c_of(&parts), crc32c(&bytes));
            assert_eq!(xxhash64_of(&parts), xxhash64(&bytes));
            assert_eq!(linux_crc32_of(&parts), slow_crc32(&bytes));
        }
    }

    #[test]
    fn seeded_agrees_with_the_definition_at_every_length() {
        let bytes: Vec<u8> = (0..700u32).map(|i| (i * 7 % 251).to_le_bytes()[0]).collect();
        for len in (0..700).step_by(13) {
            for seed in [0, 1, 0x0015_0001, u64::MAX, 0xDEAD_BEEF_0BAD_F00D] {
                assert_eq!(
                    bcache_crc64_seeded(seed, &bytes[..len]),
                    slow(seed, &bytes[..len], u64::MAX),
                    "seed {seed:#x} len {len}"
                );
            }
        }
    }
}
