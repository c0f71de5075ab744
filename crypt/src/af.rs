//! The anti-forensic splitter: one key spread over many stripes, so that losing any piece loses the key.
//!
//! Flash keeps old copies of what was overwritten. A key blown up to a quarter of a megabyte, every
//! byte of which is needed, is far less likely to survive whole in spare cells than a key of 64 bytes.
//!
//! ```text
//! split:  d = 0;  for all stripes but the last: draw r, store r, d = diffuse(d xor r);  store d xor key
//! merge:  d = 0;  for all stripes but the last: d = diffuse(d xor stored);              key = d xor last
//! ```
//!
//! `diffuse` replaces every piece of digest size by `H(BE32(i) | piece)`. The last piece may be
//! shorter: it is hashed alone and its hash cut.

use zeroize::Zeroizing;

use crate::error::Result;
use crate::hash::Hash;
use crate::key::Key;

/// The only stripe count in use; the reference ignores any other (check 23).
pub(crate) const STRIPES: u32 = 4000;

/// Bytes of the split key on disk, in whole sectors. `None` when it does not fit a `u64`, which no
/// key length that passed check 24 reaches.
pub(crate) fn area_len(key_len: u64, stripes: u32) -> Option<u64> {
    key_len.checked_mul(u64::from(stripes))?.checked_next_multiple_of(512)
}

fn diffuse(hash: Hash, d: &mut [u8]) {
    for (i, piece) in (0u32..).zip(d.chunks_mut(hash.size())) {
        let sum = Zeroizing::new(hash.digest(&[&i.to_be_bytes(), piece]));
        let n = piece.len();
        piece.copy_from_slice(&sum[..n]);
    }
}

fn xor(d: &mut [u8], with: &[u8]) {
    for (d, w) in d.iter_mut().zip(with) {
        *d ^= w;
    }
}

/// Puts the key together again. `stripes` holds `count` pieces of `key_len` bytes; what follows them
/// is padding.
///
/// # Panics
/// When `stripes` is shorter than that: lengths are checked before the area is read.
pub(crate) fn merge(hash: Hash, stripes: &[u8], key_len: usize, count: u32) -> Key {
    let count = usize::try_from(count).expect("stripe counts are small");
    assert!(key_len > 0 && count > 0, "a split key has pieces");
    assert!(stripes.len() >= key_len * count, "the whole area was read");
    let mut key = Key::zeroed(key_len);
    let d = key.bytes_mut();
    let mut pieces = stripes.chunks_exact(key_len).take(count);
    for piece in pieces.by_ref().take(count - 1) {
        xor(d, piece);
        diffuse(hash, d);
    }
    xor(d, pieces.next().expect("the last piece"));
    key
}

/// Splits the key into `count` pieces, padded with zeroes to whole sectors. `random` fills the pieces.
pub(crate) fn split(
    hash: Hash,
    key: &Key,
    count: u32,
    random: &mut dyn FnMut(&mut [u8]) -> Result<()>,
) -> Result<Zeroizing<Vec<u8>>> {
    let len = area_len(key.len() as u64, count).and_then(|n| usize::try_from(n).ok());
    let mut out = Zeroizing::new(vec![0; len.expect("key lengths are checked")]);
    let count = usize::try_from(count).expect("stripe counts are small");
    let mut d = Zeroizing::new(vec![0; key.len()]);
    let mut pieces = out.chunks_exact_mut(key.len()).take(count);
    for piece in pieces.by_ref().take(count - 1) {
        random(piece)?;
        xor(&mut d, piece);
        diffuse(hash, &mut d);
    }
    let last = pieces.next().expect("the last piece");
    last.copy_from_slice(&d);
    xor(last, key.bytes());
    Ok(out)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::testing::{hex, sha256};
    use proptest::prelude::*;

    /// The byte stream the specification's vectors are built from.
    pub(crate) fn stream() -> impl FnMut(&mut [u8]) -> Result<()> {
        let (mut i, mut have) = (0u32, Vec::new());
        move |out| {
            while have.len() < out.len() {
                have.extend_from_slice(
                    &Hash::Sha256.digest(&[b"varve-af", &i.to_be_bytes()])[..32],
                );
                i += 1;
            }
            out.copy_from_slice(&have[..out.len()]);
            have.drain(..out.len());
            Ok(())
        }
    }

    fn diffused(hash: Hash, len: u8) -> Vec<u8> {
        let mut d: Vec<u8> = (0..len).collect();
        diffuse(hash, &mut d);
        d
    }

    #[test]
    fn diffuse_matches_the_vectors_with_a_short_last_piece() {
        assert_eq!(
            diffused(Hash::Sha1, 40),
            hex("84e066de1e0d3544386085dd64a6451af137c6f0763ce0597e836252b480a8de10feea6c299aadfc")
        );
        assert_eq!(
            diffused(Hash::Sha256, 40),
            hex("bff51a6d513395979e3a870c8483769a5a70002e6e32c146c53e1d2edc4670029168dfa0b824fbae")
        );
        assert_eq!(
            diffused(Hash::Sha256, 64),
            hex("bff51a6d513395979e3a870c8483769a5a70002e6e32c146c53e1d2edc467002b32f0e0ffb9565b7\
                 420f28f7178244f549461806e38b750e2d47de25d70e9049")
        );
    }

    #[test]
    fn split_matches_the_vector() {
        let key = Key::copy_from(&(0..16).collect::<Vec<u8>>());
        let out = split(Hash::Sha256, &key, 4, &mut stream()).unwrap();
        let mut last = hex("8604c916a6db49e1418512fe4a7d0d9f");
        xor(&mut last, key.bytes());
        let mut want = hex("36990d1da0bebc31d4daa56f2bed266477a15fc86dd54e2a5b9f968035281b8b\
             8ad883506ea9cd96b515bf9ad6c1dd80");
        want.extend_from_slice(&last);
        assert_eq!(&out[..64], &want[..]);
        assert_eq!(hex("8605cb15a2de4fe6498c18f546700390"), last);
        assert!(out[64..].iter().all(|&b| b == 0));
        assert_eq!(out.len(), 512);
        assert_eq!(merge(Hash::Sha256, &out, 16, 4), key);
    }

    #[test]
    fn split_of_a_whole_volume_key_matches_the_vector() {
        let key = Key::copy_from(&crate::testing::vk1());
        let out = split(Hash::Sha256, &key, STRIPES, &mut stream()).unwrap();
        assert_eq!(out.len(), 256_000);
        assert_eq!(
            sha256(&out),
            "7243cfc8c06ed10e34de9c3007e8e4cf6fd83da9db2458895ab8101d21fca501"
        );
    }

    #[test]
    fn area_lengths_do_not_overflow() {
        assert_eq!(area_len(64, STRIPES), Some(256_000));
        assert_eq!(area_len(u64::MAX, STRIPES), None);
        assert_eq!(area_len(u64::from(u32::MAX), STRIPES), Some(17_179_869_180_416));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn merge_undoes_split_and_one_flipped_bit_loses_the_key(
            key in proptest::collection::vec(any::<u8>(), 1..130),
            count in 2u32..40,
            at in any::<prop::sample::Index>(),
            sha512 in any::<bool>(),
        ) {
            let hash = if sha512 { Hash::Sha512 } else { Hash::Sha1 };
            let key = Key::copy_from(&key);
            let mut out =
                split(hash, &key, count, &mut crate::key::fill_random).unwrap();
            prop_assert_eq!(&merge(hash, &out, key.len(), count), &key);
            let used = key.len() * count as usize;
            out[at.index(used)] ^= 1;
            prop_assert_ne!(&merge(hash, &out, key.len(), count), &key);
        }
    }
}
