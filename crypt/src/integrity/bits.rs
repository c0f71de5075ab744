//! Bits for runs of sectors, as dm-integrity's bitmap keeps them: bit `n` of the map is bit `n % 8` of byte
//! `n / 8`, and stands for `1 << log2` sectors.

use std::ops::Range;

use varve_block::{Extent, Sector, Sectors};

use super::Layout;

/// Bytes of a bitmap that are written together.
pub(super) const BLOCK: usize = 4096;

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Bits {
    bytes: Vec<u8>,
    /// Bits that stand for something.
    len: usize,
    log2: u32,
    provided: Sectors,
}

impl Bits {
    /// All clear. `log2_blocks`: log2 of the blocks to a bit; it must fit the journal's place.
    pub(super) fn new(layout: &Layout, log2_blocks: u8) -> Bits {
        let log2 = layout.block.0.ilog2() + u32::from(log2_blocks);
        let last = layout.provided.0.saturating_sub(1).checked_shr(log2).unwrap_or(0);
        let len = usize::try_from(last + 1).expect("as many as a journal has room for");
        let bytes = vec![0; len.div_ceil(8).next_multiple_of(BLOCK)];
        Bits { bytes, len, log2, provided: layout.provided }
    }

    /// The same from bytes of a device; what stands for nothing is cleared.
    pub(super) fn from_bytes(layout: &Layout, log2_blocks: u8, stored: &[u8]) -> Bits {
        let mut bits = Bits::new(layout, log2_blocks);
        let n = bits.bytes.len().min(stored.len());
        bits.bytes[..n].copy_from_slice(&stored[..n]);
        for n in bits.len..bits.bytes.len() * 8 {
            bits.bytes[n / 8] &= !(1 << (n % 8));
        }
        bits
    }

    /// The same map without a bit set.
    pub(super) fn cleared(&self) -> Bits {
        Bits { bytes: vec![0; self.bytes.len()], ..self.clone() }
    }

    /// Sectors that it takes.
    pub(super) fn sectors_long(&self) -> Sectors {
        Sectors::of_slice(&self.bytes)
    }

    /// Bytes of a block.
    pub(super) fn block(&self, n: usize) -> &[u8] {
        &self.bytes[n * BLOCK..][..BLOCK]
    }

    pub(super) fn blocks(&self) -> usize {
        self.bytes.len() / BLOCK
    }

    /// The blocks that hold the bits of a range.
    pub(super) fn blocks_of(&self, range: Extent) -> Range<usize> {
        let bits = self.range(range);
        bits.start / (BLOCK * 8)..bits.end.div_ceil(BLOCK * 8)
    }

    fn bit(&self, at: Sector) -> usize {
        usize::try_from(at.0.checked_shr(self.log2).unwrap_or(0)).expect("below len")
    }

    fn range(&self, range: Extent) -> Range<usize> {
        match range.is_empty() {
            true => 0..0,
            false => self.bit(range.start)..self.bit(Sector(range.end().0 - 1)) + 1,
        }
    }

    fn get(&self, bit: usize) -> bool {
        self.bytes[bit / 8] & (1 << (bit % 8)) != 0
    }

    /// The bit of a sector.
    pub(super) fn has(&self, at: Sector) -> bool {
        self.get(self.bit(at))
    }

    pub(super) fn all_set(&self, range: Extent) -> bool {
        self.range(range).all(|bit| self.get(bit))
    }

    pub(super) fn set(&mut self, range: Extent) {
        for bit in self.range(range) {
            self.bytes[bit / 8] |= 1 << (bit % 8);
        }
    }

    /// Clears the bit that a sector belongs to.
    pub(super) fn clear(&mut self, at: Sector) {
        let bit = self.bit(at);
        self.bytes[bit / 8] &= !(1 << (bit % 8));
    }

    /// Sets, too, what a block of the same map has set.
    pub(super) fn add_block(&mut self, n: usize, more: &[u8]) {
        for (byte, more) in self.bytes[n * BLOCK..][..BLOCK].iter_mut().zip(more) {
            *byte |= more;
        }
    }

    /// The first bit that is set at or after the one of a sector, as the sectors it stands for.
    pub(super) fn next(&self, from: Sector) -> Option<Extent> {
        if from.0 >= self.provided.0 {
            return None;
        }
        let first = self.bit(from);
        let mut bit = first;
        while bit < self.len {
            if bit.is_multiple_of(8) && self.bytes[bit / 8] == 0 {
                bit += 8;
                continue;
            }
            if self.get(bit) {
                return Some(self.sectors(bit));
            }
            bit += 1;
        }
        None
    }

    /// The sectors that a bit stands for.
    fn sectors(&self, bit: usize) -> Extent {
        let edge = |bit: usize| {
            let sector = u128::from(bit as u64) << self.log2;
            Sector(u64::try_from(sector).unwrap_or(u64::MAX).min(self.provided.0))
        };
        Extent::between(edge(bit), edge(bit + 1))
    }

    /// The sectors that the bit of a sector stands for.
    pub(super) fn around(&self, at: Sector) -> Extent {
        self.sectors(self.bit(at))
    }

    pub(super) fn any(&self) -> bool {
        self.next(Sector(0)).is_some()
    }
}
