//! Four blocks per instruction: VAES with AVX-512. A stride is 512 bytes, the smallest sector.

use std::arch::x86_64::*;

use super::Job;
use super::kernel::{kernel, unroll};
use super::schedule::{RoundKeys, Schedules};
use crate::xts::Direction;

type V = __m512i;

kernel!("aes,vaes,vpclmulqdq,avx512f,avx512bw", 4, zmm_reg);

#[inline]
#[target_feature(enable = "aes,vaes,vpclmulqdq,avx512f,avx512bw")]
fn load(from: &[u8; VECTOR]) -> V {
    // SAFETY: 64 bytes behind a reference, which need no alignment.
    unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "aes,vaes,vpclmulqdq,avx512f,avx512bw")]
fn store(to: &mut [u8; VECTOR], x: V) {
    // SAFETY: 64 bytes behind a unique reference, which need no alignment.
    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), x) }
}

#[inline]
#[target_feature(enable = "aes,vaes,vpclmulqdq,avx512f,avx512bw")]
fn broadcast(block: &[u8; 16]) -> V {
    // SAFETY: 16 bytes behind a reference, which need no alignment.
    _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(block.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "aes,vaes,vpclmulqdq,avx512f,avx512bw")]
fn xor(a: V, b: V) -> V {
    _mm512_xor_si512(a, b)
}

#[inline]
#[target_feature(enable = "aes,vaes,vpclmulqdq,avx512f,avx512bw")]
fn xor3(a: V, b: V, c: V) -> V {
    _mm512_ternarylogic_epi64::<0x96>(a, b, c)
}

#[inline]
#[target_feature(enable = "aes,vaes,vpclmulqdq,avx512f,avx512bw")]
fn enc(x: V, key: V) -> V {
    _mm512_aesenc_epi128(x, key)
}

#[inline]
#[target_feature(enable = "aes,vaes,vpclmulqdq,avx512f,avx512bw")]
fn enc_last(x: V, key: V) -> V {
    _mm512_aesenclast_epi128(x, key)
}

#[inline]
#[target_feature(enable = "aes,vaes,vpclmulqdq,avx512f,avx512bw")]
fn dec(x: V, key: V) -> V {
    _mm512_aesdec_epi128(x, key)
}

#[inline]
#[target_feature(enable = "aes,vaes,vpclmulqdq,avx512f,avx512bw")]
fn dec_last(x: V, key: V) -> V {
    _mm512_aesdeclast_epi128(x, key)
}

/// `T, T x, T x^2, T x^3`.
#[inline]
#[target_feature(enable = "aes,vaes,vpclmulqdq,avx512f,avx512bw")]
fn spread(block: &[u8; 16]) -> V {
    let t = broadcast(block);
    // A shift by 64 gives zero, which is what the lane that stays wants to carry.
    let shifted = _mm512_sllv_epi64(t, _mm512_set_epi64(3, 3, 2, 2, 1, 1, 0, 0));
    let carry = _mm512_srlv_epi64(t, _mm512_set_epi64(61, 61, 62, 62, 63, 63, 64, 64));
    reduce(shifted, carry)
}

/// A tree and not a chain, three steps deep: 1, 2 and 4 from 0, 3 and 5 from 1, 6 from 2, 7 from 3.
const fn before(n: usize) -> usize {
    n - (1 << n.ilog2())
}

/// From the second step on in shifts of whole bytes: where shifts by bits share a port with AES, these
/// leave it alone.
#[inline]
#[target_feature(enable = "aes,vaes,vpclmulqdq,avx512f,avx512bw")]
fn forward(n: usize, t: V) -> V {
    match n {
        1 => reduce(_mm512_slli_epi64::<4>(t), _mm512_srli_epi64::<60>(t)),
        2 | 3 => fold(_mm512_bslli_epi128::<1>(t), _mm512_bsrli_epi128::<15>(t)),
        4..8 => fold(_mm512_bslli_epi128::<2>(t), _mm512_bsrli_epi128::<14>(t)),
        _ => fold(_mm512_bslli_epi128::<4>(t), _mm512_bsrli_epi128::<12>(t)),
    }
}

/// Puts the bits that left each 64-bit half back where they belong: those of the low half into the high
/// one, those of the high half times the polynomial into the low one.
#[inline]
#[target_feature(enable = "aes,vaes,vpclmulqdq,avx512f,avx512bw")]
fn reduce(shifted: V, carry: V) -> V {
    let folded = _mm512_clmulepi64_epi128::<0x01>(carry, _mm512_set1_epi64(0x87));
    xor3(shifted, folded, _mm512_bslli_epi128::<8>(carry))
}

/// Whole bytes were shifted over all 128 bits: what left at the top comes back times the polynomial.
#[inline]
#[target_feature(enable = "aes,vaes,vpclmulqdq,avx512f,avx512bw")]
fn fold(shifted: V, left: V) -> V {
    xor(shifted, _mm512_clmulepi64_epi128::<0x00>(left, _mm512_set1_epi64(0x87)))
}
