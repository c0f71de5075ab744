//! Rebuilding what a device has lost from the parity of its row (format: btrfs 5.7).
//!
//! ```text
//! row 0 | D0 | D1 | P  | Q  |     P = D0 + D1 + ...           (+ is xor)
//! row 1 | Q  | D0 | D1 | P  |     Q = D0 + 2 D1 + 4 D2 + ...  (in GF(2^8))
//! ```
//! Which of the row's stripes is wrong is not known beforehand: a missing device says so, a bad
//! checksum does not. So the ways to get at a stripe are numbered like mirrors, and the caller, who
//! can tell good bytes from bad ones, goes through them.

mod gf256;

use crate::units::Physical;

/// The places of one row of a RAID5 or RAID6 chunk, at the same distance into each stripe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    pub data: Vec<Physical>,
    pub p: Physical,
    /// RAID6 only.
    pub q: Option<Physical>,
    /// Which of `data` was asked for.
    pub wanted: usize,
}

/// What is taken for lost besides the wanted stripe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lost {
    /// Nothing: P is enough, and Q is not looked at.
    Nothing,
    /// P, and so Q is needed.
    P,
    /// Another stripe of data: P and Q are needed.
    Data(usize),
}

impl Row {
    /// Every way to rebuild the wanted stripe, the likely ones first.
    pub(crate) fn ways(&self) -> usize {
        match self.q {
            None => 1,
            Some(_) => 1 + self.data.len(),
        }
    }

    /// Way `n` of [`Row::ways`], from 0.
    pub(crate) fn way(&self, n: usize) -> Option<Lost> {
        match (n, self.q) {
            (0, _) => Some(Lost::Nothing),
            (1, Some(_)) => Some(Lost::P),
            (_, None) => None,
            (n, Some(_)) => {
                let mut others = (0..self.data.len()).filter(|other| *other != self.wanted);
                others.nth(n - 2).map(Lost::Data)
            }
        }
    }
}

/// The wanted stripe in the making. Feed it every part of the row that is not lost, in any order.
pub(crate) struct Rebuild {
    wanted: usize,
    lost: Lost,
    p: Vec<u8>,
    q: Vec<u8>,
}

impl Rebuild {
    pub(crate) fn new(row: &Row, lost: Lost, len: usize) -> Rebuild {
        let (p, q) = match lost {
            Lost::Nothing => (len, 0),
            Lost::P => (0, len),
            Lost::Data(_) => (len, len),
        };
        Rebuild { wanted: row.wanted, lost, p: vec![0; p], q: vec![0; q] }
    }

    /// Which of `row`'s data is read.
    pub(crate) fn needs(&self, column: usize) -> bool {
        column != self.wanted && self.lost != Lost::Data(column)
    }

    pub(crate) fn needs_p(&self) -> bool {
        self.lost != Lost::P
    }

    pub(crate) fn needs_q(&self) -> bool {
        self.lost != Lost::Nothing
    }

    pub(crate) fn data(&mut self, column: usize, bytes: &[u8]) {
        gf256::add(&mut self.p, bytes);
        gf256::add_multiple(&mut self.q, gf256::power(column), bytes);
    }

    pub(crate) fn p(&mut self, bytes: &[u8]) {
        gf256::add(&mut self.p, bytes);
    }

    pub(crate) fn q(&mut self, bytes: &[u8]) {
        gf256::add(&mut self.q, bytes);
    }

    /// The wanted stripe.
    pub(crate) fn finish(self) -> Vec<u8> {
        let Rebuild { wanted, lost, p, mut q } = self;
        let mine = gf256::power(wanted);
        match lost {
            Lost::Nothing => p,
            Lost::P => {
                gf256::scale(&mut q, gf256::inverse(mine));
                q
            }
            // What is left is P' = W + O and Q' = w W + o O; so W = (o P' + Q') / (o + w).
            Lost::Data(other) => {
                let theirs = gf256::power(other);
                gf256::add_multiple(&mut q, theirs, &p);
                gf256::scale(&mut q, gf256::inverse(mine ^ theirs));
                q
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// P by xor, Q by Horner's rule with a shift and a conditional xor: no table is shared with the
    /// code under test.
    fn parity(data: &[Vec<u8>]) -> (Vec<u8>, Vec<u8>) {
        let mut p = vec![0; data[0].len()];
        let mut q = p.clone();
        for column in data.iter().rev() {
            for (n, byte) in column.iter().enumerate() {
                p[n] ^= byte;
                q[n] = (q[n] << 1) ^ (if q[n] & 0x80 != 0 { 0x1d } else { 0 }) ^ byte;
            }
        }
        (p, q)
    }

    #[test]
    fn every_stripe_comes_back_by_every_way() {
        for columns in 1..=20usize {
            let column = |c: usize| {
                (0..64)
                    .map(move |n| u8::try_from((n * 7 + c * 31 + c * n) % 256).unwrap())
                    .collect()
            };
            let data: Vec<Vec<u8>> = (0..columns).map(column).collect();
            let (p, q) = parity(&data);
            for wanted in 0..columns {
                let place = Physical { devid: 1, byte: 0 };
                let row = Row { data: vec![place; columns], p: place, q: Some(place), wanted };
                for n in 0..row.ways() {
                    let lost = row.way(n).unwrap();
                    let mut rebuild = Rebuild::new(&row, lost, 64);
                    for (column, bytes) in data.iter().enumerate() {
                        if rebuild.needs(column) {
                            rebuild.data(column, bytes);
                        }
                    }
                    if rebuild.needs_p() {
                        rebuild.p(&p);
                    }
                    if rebuild.needs_q() {
                        rebuild.q(&q);
                    }
                    assert_eq!(rebuild.finish(), data[wanted], "{columns} columns, {lost:?}");
                }
                assert_eq!(row.way(row.ways()), None);
            }
        }
    }
}
