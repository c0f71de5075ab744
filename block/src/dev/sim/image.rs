//! What a medium holds, apart from any disk.

use crate::rt::Prng;
use crate::units::{Sector, Sectors};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// The bytes of one unit. Shared: an image is copied at every cut.
pub(super) type Unit = Rc<[u8]>;

/// A medium: sparse, cheap to copy, made of units that a power cut leaves whole.
#[derive(Clone)]
pub struct Image {
    len: Sectors,
    unit: Sectors,
    /// Absent units are zeroes.
    pub(super) units: BTreeMap<u64, Unit>,
    /// Units that cannot be read until they are written again, by number.
    pub(super) lost: BTreeSet<u64>,
}

impl Image {
    /// Zeroes, with units of one sector: what a drive of 512-byte physical sectors keeps whole.
    pub fn new(len: Sectors) -> Image {
        Image::with_unit(len, Sectors(1))
    }

    /// Zeroes, with larger units.
    ///
    /// # Panics
    /// When the length is no multiple of the unit.
    pub fn with_unit(len: Sectors, unit: Sectors) -> Image {
        assert!(len.is_multiple_of(unit), "a medium is made of whole units");
        Image { len, unit, units: BTreeMap::new(), lost: BTreeSet::new() }
    }

    pub fn len(&self) -> Sectors {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len.0 == 0
    }

    pub fn unit(&self) -> Sectors {
        self.unit
    }

    /// Bytes from `at` on, without faults.
    pub fn peek(&self, at: Sector, out: &mut [u8]) {
        let unit = self.unit.byte_len();
        let mut byte = at.byte();
        let mut out = out;
        while !out.is_empty() {
            let within = usize::try_from(byte % unit as u64).expect("below a unit");
            let n = (unit - within).min(out.len());
            let (head, tail) = out.split_at_mut(n);
            match self.units.get(&(byte / unit as u64)) {
                Some(bytes) => head.copy_from_slice(&bytes[within..within + n]),
                None => head.fill(0),
            }
            out = tail;
            byte += n as u64;
        }
    }

    /// Puts bytes at `at`: for damage done between two worlds.
    pub fn poke(&mut self, at: Sector, bytes: &[u8]) {
        let unit = self.unit.byte_len();
        for (index, chunk) in bytes.chunks(unit).enumerate() {
            let byte = at.byte() + (index * unit) as u64;
            let number = byte / unit as u64;
            let mut whole = vec![0; unit];
            if let Some(old) = self.units.get(&number) {
                whole.copy_from_slice(old);
            }
            let within = usize::try_from(byte % unit as u64).expect("below a unit");
            assert!(within + chunk.len() <= unit, "aligned to units");
            whole[within..within + chunk.len()].copy_from_slice(chunk);
            self.units.insert(number, whole.into());
            self.lost.remove(&number);
        }
    }

    /// The whole medium.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut all = vec![0; self.len.byte_len()];
        self.peek(Sector::ZERO, &mut all);
        all
    }

    /// Equal for equal contents.
    pub fn digest(&self) -> u64 {
        let mut sum = self.len.0;
        for (number, bytes) in &self.units {
            if bytes.iter().any(|&b| b != 0) {
                let unit = crate::sum::xxhash64(bytes) ^ number.rotate_left(32);
                sum = Prng::new(sum ^ unit).next_u64();
            }
        }
        sum
    }

    pub(super) fn unit_len(&self) -> usize {
        self.unit.byte_len()
    }
}
