//! One block per instruction: every x86-64 processor since about 2010.

use std::arch::x86_64::*;

use super::Job;
use super::kernel::{kernel, unroll};
use super::schedule::{RoundKeys, Schedules};
use crate::xts::Direction;

type V = __m128i;

kernel!("aes,sse2", 1, xmm_reg);

#[inline]
#[target_feature(enable = "aes,sse2")]
fn load(from: &[u8; VECTOR]) -> V {
    // SAFETY: 16 bytes behind a reference, which need no alignment.
    unsafe { _mm_loadu_si128(from.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "aes,sse2")]
fn store(to: &mut [u8; VECTOR], x: V) {
    // SAFETY: 16 bytes behind a unique reference, which need no alignment.
    unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), x) }
}

#[inline]
#[target_feature(enable = "aes,sse2")]
fn broadcast(block: &[u8; 16]) -> V {
    load(block)
}

#[inline]
#[target_feature(enable = "aes,sse2")]
fn xor(a: V, b: V) -> V {
    _mm_xor_si128(a, b)
}

#[inline]
#[target_feature(enable = "aes,sse2")]
fn xor3(a: V, b: V, c: V) -> V {
    xor(xor(a, b), c)
}

#[inline]
#[target_feature(enable = "aes,sse2")]
fn enc(x: V, key: V) -> V {
    _mm_aesenc_si128(x, key)
}

#[inline]
#[target_feature(enable = "aes,sse2")]
fn enc_last(x: V, key: V) -> V {
    _mm_aesenclast_si128(x, key)
}

#[inline]
#[target_feature(enable = "aes,sse2")]
fn dec(x: V, key: V) -> V {
    _mm_aesdec_si128(x, key)
}

#[inline]
#[target_feature(enable = "aes,sse2")]
fn dec_last(x: V, key: V) -> V {
    _mm_aesdeclast_si128(x, key)
}

#[inline]
#[target_feature(enable = "aes,sse2")]
fn spread(block: &[u8; 16]) -> V {
    load(block)
}

/// A chain: no step is cheaper than doubling.
const fn before(n: usize) -> usize {
    n - 1
}

#[inline]
#[target_feature(enable = "aes,sse2")]
fn forward(_n: usize, t: V) -> V {
    double(t)
}

/// Times x: both halves are doubled, and the bit that leaves each is put back where it belongs: that of
/// the low half into the high one, that of the high half into the polynomial.
#[inline]
#[target_feature(enable = "aes,sse2")]
fn double(t: V) -> V {
    let signs = _mm_shuffle_epi32::<0b01_01_01_11>(_mm_srai_epi32::<31>(t));
    let carry = _mm_and_si128(signs, _mm_set_epi32(0, 1, 0, 0x87));
    xor(_mm_add_epi64(t, t), carry)
}
