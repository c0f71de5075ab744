//! Small helpers for this crate's own tests, and the definitions of the test vectors.

pub(crate) mod images;
pub(crate) mod recorder;
pub(crate) mod story;

use crate::hash::Hash;

pub(crate) fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    assert_eq!(digits.len() % 2, 0, "whole bytes: {text}");
    digits.chunks(2).map(|d| u8::try_from(d[0] * 16 + d[1]).expect("a byte")).collect()
}

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    to_hex(&Hash::Sha256.digest(&[bytes])[..32])
}

/// The vectors' first volume key.
pub(crate) fn vk1() -> Vec<u8> {
    Hash::Sha512.digest(&[b"varve luks vector volume key 1"]).to_vec()
}

/// The vectors' plaintext: the byte at offset x is `x ^ (x >> 9)`.
pub(crate) fn pattern(from: u64, len: usize) -> Vec<u8> {
    (from..).take(len).map(|x| u8::try_from((x ^ (x >> 9)) & 0xff).expect("masked")).collect()
}
