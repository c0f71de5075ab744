//! AES-XTS of our own: the tweaks of many sectors are encrypted together, and eight vectors are always
//! in flight.
//!
//! A library that is called once per sector pays, for every 512 bytes, one lone AES block for the tweak
//! (nothing to overlap it with) and a start and an end where its pipeline is half empty. Here a request
//! is cut into batches of [`BATCH`] sectors: first all their tweaks, side by side, then the sectors, in
//! strides of eight vectors. A stride never crosses a sector, and every sector size is a whole number
//! of strides, so there is no other path: no tail, no stealing, no partial vector.
//!
//! ```text
//! IVs      n  n+1  n+2 ...   --AES, K2, many at once-->   T0 of each sector
//! sector   | stride | stride | ...        tweaks of a stride: T0, T0 x, T0 x^2, ... made in registers
//!            8 vectors of 1, 2 or 4 blocks: xor, 10 or 14 rounds, xor; meanwhile the next one's tweaks
//! ```
//!
//! Three instruction sets, chosen once per process ([`Isa::best`]); they differ in the width of a vector
//! and share the rest. The AES instructions take the same time for every key and every byte.
//!
//! The schedules lie in a [`Key`]: locked, left out of core files, overwritten on drop.

#![allow(
    unsafe_code,
    reason = "vector loads and stores, calls into code for instructions that were looked for, and a barrier"
)]

mod aesni;
mod kernel;
mod schedule;
mod vaes256;
mod vaes512;

use super::Direction;
use crate::key::Key;
use schedule::Schedules;

/// Sectors whose tweaks are encrypted together: 16 KiB of 512-byte sectors, where one AES latency more
/// no longer shows, and half a kilobyte of stack.
const BATCH: usize = 32;

/// An instruction set that computes AES.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Isa {
    /// AES-NI: one block per instruction.
    AesNi,
    /// VAES on 256-bit registers: two.
    Vaes256,
    /// VAES on 512-bit registers: four.
    Vaes512,
}

impl Isa {
    /// From the fastest to the slowest.
    pub(super) const ALL: [Isa; 3] = [Isa::Vaes512, Isa::Vaes256, Isa::AesNi];

    /// The processor and the kernel do it.
    pub(super) fn is_here(self) -> bool {
        let aes = is_x86_feature_detected!("aes") && is_x86_feature_detected!("sse2");
        let wide = aes
            && is_x86_feature_detected!("vaes")
            && is_x86_feature_detected!("vpclmulqdq")
            && is_x86_feature_detected!("avx2");
        match self {
            Isa::AesNi => aes,
            Isa::Vaes256 => wide,
            Isa::Vaes512 => {
                wide && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")
            }
        }
    }

    /// The fastest that is here.
    pub(super) fn best() -> Option<Isa> {
        Isa::ALL.into_iter().find(|isa| isa.is_here())
    }
}

/// An expanded key.
pub(super) struct Fused {
    /// Seen on this processor, or there would be no `Fused`.
    isa: Isa,
    schedules: Schedules,
}

impl Fused {
    /// `None` when the processor lacks the instructions, or the key is not two halves of 16 or 32 bytes.
    pub(super) fn new(key: &Key, isa: Isa) -> Option<Fused> {
        if !isa.is_here() {
            return None;
        }
        Some(Fused { isa, schedules: Schedules::expand(key)? })
    }

    pub(super) fn isa(&self) -> Isa {
        self.isa
    }

    /// Runs over whole data units of `unit` bytes, in place.
    pub(super) fn in_place(
        &self,
        direction: Direction,
        mut ivs: impl Iterator<Item = u128>,
        unit: usize,
        data: &mut [u8],
    ) {
        let mut tweaks = [[0; 16]; BATCH];
        for batch in data.chunks_mut(unit * BATCH) {
            let tweaks = fill(&mut tweaks, &mut ivs, batch.len() / unit);
            self.dispatch(Job { direction, tweaks, unit, data: Place::Same(batch) });
        }
    }

    /// Encrypts whole data units of `unit` bytes from one buffer into another of the same length.
    pub(super) fn encrypt_into(
        &self,
        mut ivs: impl Iterator<Item = u128>,
        unit: usize,
        from: &[u8],
        to: &mut [u8],
    ) {
        let mut tweaks = [[0; 16]; BATCH];
        for (from, to) in from.chunks(unit * BATCH).zip(to.chunks_mut(unit * BATCH)) {
            let tweaks = fill(&mut tweaks, &mut ivs, from.len() / unit);
            let data = Place::Apart(from, to);
            self.dispatch(Job { direction: Direction::Encrypt, tweaks, unit, data });
        }
    }

    fn dispatch(&self, job: Job<'_>) {
        match self.isa {
            Isa::AesNi => {
                // SAFETY: `Fused::new` saw AES and SSE2 on this processor, and it keeps them.
                unsafe { aesni::run(&self.schedules, job) }
            }
            Isa::Vaes256 => {
                // SAFETY: `Fused::new` saw AES, VAES, VPCLMULQDQ and AVX2 on this processor.
                unsafe { vaes256::run(&self.schedules, job) }
            }
            Isa::Vaes512 => {
                // SAFETY: `Fused::new` saw all that, and AVX-512 F and BW, on this processor.
                unsafe { vaes512::run(&self.schedules, job) }
            }
        }
    }
}

/// One batch: its IVs, which become its tweaks, and its bytes.
struct Job<'a> {
    direction: Direction,
    /// A whole number of vectors; those beyond the data are computed and not used.
    tweaks: &'a mut [[u8; 16]],
    /// Bytes of a data unit.
    unit: usize,
    data: Place<'a>,
}

enum Place<'a> {
    Same(&'a mut [u8]),
    Apart(&'a [u8], &'a mut [u8]),
}

impl Place<'_> {
    #[inline]
    fn from(&self) -> &[u8] {
        match self {
            Place::Same(data) => data,
            Place::Apart(from, _) => from,
        }
    }

    #[inline]
    fn to(&mut self) -> &mut [u8] {
        match self {
            Place::Same(data) => data,
            Place::Apart(_, to) => to,
        }
    }
}

/// The IVs of the next `units` data units, rounded up to the widest vector.
fn fill<'a>(
    tweaks: &'a mut [[u8; 16]; BATCH],
    ivs: &mut impl Iterator<Item = u128>,
    units: usize,
) -> &'a mut [[u8; 16]] {
    for (tweak, iv) in tweaks[..units].iter_mut().zip(ivs) {
        *tweak = iv.to_le_bytes();
    }
    &mut tweaks[..units.next_multiple_of(4)]
}
