//! A bit for each sector of metadata space: 32 MiB for a terabyte, and only pages that are used.

use std::collections::HashMap;

/// Bits of one page.
const PAGE: u64 = 1 << 15;

#[derive(Debug, Default)]
pub(crate) struct Bitmap {
    pages: HashMap<u64, Box<[u64]>>,
    unit: u64,
}

impl Bitmap {
    /// One bit for every `unit` bytes.
    pub(crate) fn new(unit: u32) -> Bitmap {
        Bitmap { pages: HashMap::new(), unit: u64::from(unit).max(1) }
    }

    /// Sets the bit; whether it was clear before.
    pub(crate) fn insert(&mut self, at: u64) -> bool {
        let (page, word, bit) = self.place(at);
        let words = PAGE / 64;
        let page = self
            .pages
            .entry(page)
            .or_insert_with(|| vec![0; crate::units::to_usize(words)].into_boxed_slice());
        let word = &mut page[word];
        let fresh = *word & bit == 0;
        *word |= bit;
        fresh
    }

    pub(crate) fn has(&self, at: u64) -> bool {
        let (page, word, bit) = self.place(at);
        self.pages.get(&page).is_some_and(|page| page[word] & bit != 0)
    }

    fn place(&self, at: u64) -> (u64, usize, u64) {
        let n = at / self.unit;
        let within = n % PAGE;
        (n / PAGE, crate::units::to_usize(within / 64), 1 << (within % 64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bit_is_set_once() {
        let mut map = Bitmap::new(4096);
        for at in [0, 4096, 1 << 30, u64::MAX - 4095] {
            assert!(!map.has(at));
            assert!(map.insert(at));
            assert!(!map.insert(at));
            assert!(map.has(at));
        }
        assert!(!map.has(8192));
    }
}
