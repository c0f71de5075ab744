//! The round keys: FIPS 197 expansion, in constant time, straight into locked memory.

use std::arch::x86_64::{
    _mm_aesimc_si128, _mm_aeskeygenassist_si128, _mm_cvtsi32_si128, _mm_cvtsi128_si32,
    _mm_loadu_si128, _mm_storeu_si128,
};

use crate::key::Key;

/// Round keys of AES-256: the most there are.
const KEYS_MAX: usize = 15;
const SCHEDULE: usize = KEYS_MAX * 16;

/// Those behind the last round are zero and not used. An array, so that no round looks for its end.
pub(super) type RoundKeys = [[u8; 16]; KEYS_MAX];

/// Data key in both directions, tweak key, one after the other in pages of their own.
pub(super) struct Schedules {
    keys: Key,
    /// 10 or 14.
    pub(super) rounds: usize,
}

impl Schedules {
    /// `None` when the key is not two halves of 16 or 32 bytes. The caller has seen AES-NI.
    pub(super) fn expand(key: &Key) -> Option<Schedules> {
        let (data, tweak) = key.bytes().split_at_checked(key.len() / 2)?;
        let rounds = match (data.len(), tweak.len()) {
            (16, 16) => 10,
            (32, 32) => 14,
            _ => return None,
        };
        let mut keys = Key::zeroed(3 * SCHEDULE);
        let (encrypt, rest) = keys.bytes_mut().split_at_mut(SCHEDULE);
        let (decrypt, second) = rest.split_at_mut(SCHEDULE);
        // SAFETY: the caller has seen AES-NI on this processor.
        unsafe { expand(data, rounds, encrypt) };
        // SAFETY: as above.
        unsafe { invert(rounds, encrypt, decrypt) };
        // SAFETY: as above.
        unsafe { expand(tweak, rounds, second) };
        Some(Schedules { keys, rounds })
    }

    /// For data on its way down.
    #[inline]
    pub(super) fn encrypt(&self) -> &RoundKeys {
        self.part(0)
    }

    /// For data on its way up: in the order of use, for the equivalent inverse cipher.
    #[inline]
    pub(super) fn decrypt(&self) -> &RoundKeys {
        self.part(1)
    }

    /// For tweaks, which are always encrypted.
    #[inline]
    pub(super) fn tweak(&self) -> &RoundKeys {
        self.part(2)
    }

    #[inline]
    fn part(&self, n: usize) -> &RoundKeys {
        &self.keys.bytes().as_chunks::<16>().0.as_chunks().0[n]
    }
}

/// Expands `key` into `rounds + 1` round keys at the start of `out`.
#[target_feature(enable = "aes,sse2")]
fn expand(key: &[u8], rounds: usize, out: &mut [u8]) {
    let words = key.len() / 4;
    out[..key.len()].copy_from_slice(key);
    let (out, _) = out.as_chunks_mut::<4>();
    let mut constant = 1u8;
    for i in words..4 * (rounds + 1) {
        let mut word = u32::from_le_bytes(out[i - 1]);
        if i % words == 0 {
            word = substitute(word).rotate_right(8) ^ u32::from(constant);
            constant = (constant << 1) ^ (if constant & 0x80 == 0 { 0 } else { 0x1b });
        } else if words > 6 && i % words == 4 {
            word = substitute(word);
        }
        out[i] = (word ^ u32::from_le_bytes(out[i - words])).to_le_bytes();
    }
}

/// The S-box over four bytes, without a table that a cache could tell about.
#[inline]
#[target_feature(enable = "aes,sse2")]
fn substitute(word: u32) -> u32 {
    // The instruction substitutes the second word of its input into the first of its output.
    let second = std::arch::x86_64::_mm_slli_si128::<4>(_mm_cvtsi32_si128(word.cast_signed()));
    _mm_cvtsi128_si32(_mm_aeskeygenassist_si128::<0>(second)).cast_unsigned()
}

/// The same keys for decryption: last one first, those between mixed backwards.
#[target_feature(enable = "aes,sse2")]
fn invert(rounds: usize, encrypt: &[u8], decrypt: &mut [u8]) {
    let (from, _) = encrypt.as_chunks::<16>();
    let (to, _) = decrypt.as_chunks_mut::<16>();
    for i in 0..=rounds {
        let key = &from[rounds - i];
        if i == 0 || i == rounds {
            to[i] = *key;
            continue;
        }
        // SAFETY: 16 bytes behind a reference, which need no alignment.
        let key = unsafe { _mm_loadu_si128(key.as_ptr().cast()) };
        let mixed = _mm_aesimc_si128(key);
        // SAFETY: 16 bytes behind a unique reference, which need no alignment.
        unsafe { _mm_storeu_si128(to[i].as_mut_ptr().cast(), mixed) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{hex, to_hex};

    #[test]
    fn the_standards_own_schedules() {
        if !is_x86_feature_detected!("aes") {
            println!("skipped: no AES instructions here");
            return;
        }
        // FIPS 197, A.1 and A.3: the last round key of the example keys.
        let key = hex("2b7e151628aed2a6abf7158809cf4f3c");
        let both = Key::copy_from(&[&key[..], &key].concat());
        let s = Schedules::expand(&both).unwrap();
        assert_eq!(to_hex(&s.encrypt()[10]), "d014f9a8c9ee2589e13f0cc8b6630ca6");
        assert_eq!(s.encrypt(), s.tweak());
        assert_eq!(s.decrypt()[0], s.encrypt()[10]);
        assert_eq!(s.decrypt()[10], s.encrypt()[0]);
        let key = hex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4");
        let both = Key::copy_from(&[&key[..], &key].concat());
        let s = Schedules::expand(&both).unwrap();
        assert_eq!(to_hex(&s.encrypt()[14]), "fe4890d1e6188d0b046df344706c631e");
    }

    #[test]
    fn other_lengths_have_no_schedule() {
        for len in [0, 1, 16, 33, 48, 63, 65, 96, 128] {
            assert!(Schedules::expand(&Key::zeroed(len)).is_none(), "{len}");
        }
    }
}
