//! Two blocks per instruction: VAES with AVX2, on processors without AVX-512.

use std::arch::x86_64::*;

use super::Job;
use super::kernel::{kernel, unroll};
use super::schedule::{RoundKeys, Schedules};
use crate::xts::Direction;

type V = __m256i;

kernel!("aes,vaes,vpclmulqdq,avx2", 2, ymm_reg);

#[inline]
#[target_feature(enable = "aes,vaes,vpclmulqdq,avx2")]
fn load(from: &[u8; VECTOR]) -> V {
    // SAFETY: 32 bytes behind a reference, which need no alignment.
    unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "aes,vaes,vpclmulqdq,avx2")]
fn store(to: &mut [u8; VECTOR], x: V) {
    // SAFETY: 32 bytes behind a unique reference, which need no alignment.
    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), x) }
}

#[inline]
#[target_feature(enable = "aes,vaes,vpclmulqdq,avx2")]
fn broadcast(block: &[u8; 16]) -> V {
    // SAFETY: 16 bytes behind a reference, which need no alignment.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(block.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "aes,vaes,vpclmulqdq,avx2")]
fn xor(a: V, b: V) -> V {
    _mm256_xor_si256(a, b)
}

#[inline]
#[target_feature(enable = "aes,vaes,vpclmulqdq,avx2")]
fn xor3(a: V, b: V, c: V) -> V {
    xor(xor(a, b), c)
}

#[inline]
#[target_feature(enable = "aes,vaes,vpclmulqdq,avx2")]
fn enc(x: V, key: V) -> V {
    _mm256_aesenc_epi128(x, key)
}

#[inline]
#[target_feature(enable = "aes,vaes,vpclmulqdq,avx2")]
fn enc_last(x: V, key: V) -> V {
    _mm256_aesenclast_epi128(x, key)
}

#[inline]
#[target_feature(enable = "aes,vaes,vpclmulqdq,avx2")]
fn dec(x: V, key: V) -> V {
    _mm256_aesdec_epi128(x, key)
}

#[inline]
#[target_feature(enable = "aes,vaes,vpclmulqdq,avx2")]
fn dec_last(x: V, key: V) -> V {
    _mm256_aesdeclast_epi128(x, key)
}

/// `T, T x`.
#[inline]
#[target_feature(enable = "aes,vaes,vpclmulqdq,avx2")]
fn spread(block: &[u8; 16]) -> V {
    let t = broadcast(block);
    // A shift by 64 gives zero, which is what the lane that stays wants to carry.
    let shifted = _mm256_sllv_epi64(t, _mm256_set_epi64x(1, 1, 0, 0));
    let carry = _mm256_srlv_epi64(t, _mm256_set_epi64x(63, 63, 64, 64));
    reduce(shifted, carry)
}

/// A tree and not a chain, three steps deep: 1, 2 and 4 from 0, 3 and 5 from 1, 6 from 2, 7 from 3.
const fn before(n: usize) -> usize {
    n - (1 << n.ilog2())
}

#[inline]
#[target_feature(enable = "aes,vaes,vpclmulqdq,avx2")]
fn forward(n: usize, t: V) -> V {
    match n {
        1 => reduce(_mm256_slli_epi64::<2>(t), _mm256_srli_epi64::<62>(t)),
        2 | 3 => reduce(_mm256_slli_epi64::<4>(t), _mm256_srli_epi64::<60>(t)),
        4..8 => fold(_mm256_bslli_epi128::<1>(t), _mm256_bsrli_epi128::<15>(t)),
        _ => fold(_mm256_bslli_epi128::<2>(t), _mm256_bsrli_epi128::<14>(t)),
    }
}

/// Whole bytes were shifted over all 128 bits: what left at the top comes back times the polynomial.
#[inline]
#[target_feature(enable = "aes,vaes,vpclmulqdq,avx2")]
fn fold(shifted: V, left: V) -> V {
    xor(shifted, _mm256_clmulepi64_epi128::<0x00>(left, _mm256_set1_epi64x(0x87)))
}

/// Puts the bits that left each 64-bit half back where they belong: those of the low half into the high
/// one, those of the high half times the polynomial into the low one.
#[inline]
#[target_feature(enable = "aes,vaes,vpclmulqdq,avx2")]
fn reduce(shifted: V, carry: V) -> V {
    let folded = _mm256_clmulepi64_epi128::<0x01>(carry, _mm256_set1_epi64x(0x87));
    xor3(shifted, folded, _mm256_bslli_epi128::<8>(carry))
}
