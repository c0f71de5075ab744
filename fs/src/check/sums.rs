//! Are two multisets equal? Each record is hashed to 128 bits, added where it is claimed and
//! subtracted where it is found, in one of many buckets chosen by its subject. A bucket that ends at
//! zero balances; only what fell into the others is collected and sorted, by a second pass.
//!
//! That is what bounds the memory of the whole check: a clean file system needs the buckets and
//! nothing else, however many references it has.

/// Buckets; 1 MiB of sums.
const BUCKETS: usize = 1 << 16;

/// A hash of a few words. Not for adversaries: whoever can choose the records of both sides could make
/// them balance, and would gain a file system that the kernel refuses.
pub(crate) fn mix(words: &[u64]) -> u128 {
    let mut a = 0x9E37_79B9_7F4A_7C15_u64;
    let mut b = 0xC2B2_AE3D_27D4_EB4F_u64;
    for &word in words {
        let product = u128::from(a ^ word) * u128::from(0xA076_1D64_78BD_642F_u64 ^ b);
        let (low, high) = halves(product);
        a = low ^ b.rotate_left(23);
        b = high.wrapping_add(word ^ a.rotate_left(41)).wrapping_mul(0xE703_7ED1_A0B4_28DB);
    }
    let last = u128::from(a ^ (b >> 32)) * 0x8EBC_6AF0_9C88_C6E3_u128;
    last ^ (u128::from(b.wrapping_mul(0x5899_65CC_7537_4CC3)) << 64) ^ u128::from(b)
}

/// The lower and the upper half.
fn halves(n: u128) -> (u64, u64) {
    let bytes = n.to_le_bytes();
    let word = |at: usize| {
        let mut eight = [0; 8];
        eight.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(eight)
    };
    (word(0), word(8))
}

/// A name as one word.
pub(crate) fn name_word(name: &[u8]) -> u64 {
    varve_block::sum::xxhash64(name)
}

#[derive(Debug)]
pub(crate) struct Buckets {
    sums: Vec<u128>,
}

/// Which buckets did not balance.
#[derive(Debug)]
pub(crate) struct Unbalanced {
    bad: Vec<bool>,
}

impl Buckets {
    pub(crate) fn new() -> Buckets {
        Buckets { sums: vec![0; BUCKETS] }
    }

    pub(crate) fn claim(&mut self, subject: u64, hash: u128, times: u64) {
        let sum = &mut self.sums[bucket(subject)];
        *sum = sum.wrapping_add(hash.wrapping_mul(times.into()));
    }

    pub(crate) fn find(&mut self, subject: u64, hash: u128, times: u64) {
        let sum = &mut self.sums[bucket(subject)];
        *sum = sum.wrapping_sub(hash.wrapping_mul(times.into()));
    }

    /// `None` when everything balances. Starts afresh.
    pub(crate) fn settle(&mut self) -> Option<Unbalanced> {
        if self.sums.iter().all(|sum| *sum == 0) {
            return None;
        }
        let bad = self.sums.iter().map(|sum| *sum != 0).collect();
        self.sums.fill(0);
        Some(Unbalanced { bad })
    }
}

impl Unbalanced {
    pub(crate) fn has(&self, subject: u64) -> bool {
        self.bad[bucket(subject)]
    }
}

fn bucket(subject: u64) -> usize {
    let spread = subject.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 48;
    usize::try_from(spread).unwrap_or(0) % BUCKETS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_multisets_balance_in_any_order_and_unequal_ones_name_their_bucket() {
        let mut buckets = Buckets::new();
        for n in 0..5000 {
            buckets.claim(n, mix(&[n, 7]), 2);
        }
        for n in (0..5000).rev() {
            buckets.find(n, mix(&[n, 7]), 1);
            buckets.find(n, mix(&[n, 7]), 1);
        }
        assert!(buckets.settle().is_none());
        buckets.claim(17, mix(&[17, 7]), 1);
        buckets.find(17, mix(&[17, 8]), 1);
        let bad = buckets.settle().unwrap();
        assert!(bad.has(17));
        assert_eq!((0..5000).filter(|&n| bad.has(n)).count(), 1);
        assert!(buckets.settle().is_none(), "a new start");
    }

    #[test]
    fn hashes_of_neighbours_do_not_cancel() {
        let mut seen = std::collections::BTreeSet::new();
        for a in 0..100 {
            for b in 0..100 {
                assert!(seen.insert(mix(&[a, b])));
            }
        }
        assert_ne!(mix(&[1]), mix(&[1, 0]));
    }
}
