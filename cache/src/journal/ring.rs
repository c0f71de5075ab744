//! The journal's buckets as a ring of blocks: where the next entry goes, and whether it may.
//!
//! ```text
//!   | 7 8 9 . | 10 11 . . | 4 (old lap) | 5 6 (needed) |        buckets of the ring, entries by seq
//!               ^ cur: the next entry follows here, or opens the next bucket
//! ```
//!
//! Two rules keep the log from choking or eating itself:
//!
//! - A bucket is overwritten only when no entry in it is needed *according to an entry that is
//!   already durable*. Going by what memory knows would let a torn write destroy an entry that the
//!   newest readable one still asks for.
//! - An entry is placed only if the entry after it will find a place too, given what this one says
//!   is still needed. Writing the leaves out always makes that true, and that needs no journal: so
//!   the journal never waits for itself.

use crate::format::{Bucket, Layout};

/// State of the ring.
#[derive(Clone, Debug)]
pub(crate) struct Ring {
    first: Bucket,
    /// Newest entry in each bucket, 0 for none.
    seqs: Vec<u64>,
    cur: usize,
    next_block: usize,
    /// Blocks of a bucket.
    blocks: usize,
    /// Blocks of the largest entry there may be.
    entry_max: usize,
}

/// Where an entry goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    index: usize,
    block: usize,
}

impl Ring {
    /// A ring nobody has written: the first entry opens bucket 1, as the kernel has it.
    pub(crate) fn fresh(layout: &Layout, buckets: u16, entry_max: usize) -> Ring {
        let blocks = usize::try_from(layout.bucket_size / layout.block_size).unwrap_or(1);
        Ring {
            first: Bucket(layout.first_bucket),
            seqs: vec![0; usize::from(buckets)],
            cur: 0,
            next_block: blocks,
            blocks,
            entry_max: entry_max.min(blocks),
        }
    }

    /// A ring as it was read: the newest entry of each bucket, the bucket with the newest of all, the
    /// first block behind that entry, and the oldest entry it needs. The next entry opens the next
    /// bucket, as the kernel has it, unless that one is still needed.
    pub(crate) fn found(
        mut self,
        seqs: Vec<u64>,
        cur: usize,
        behind: usize,
        last_seq: u64,
    ) -> Ring {
        assert!(seqs.len() == self.seqs.len() && cur < seqs.len(), "the ring has a size");
        self.seqs = seqs;
        self.cur = cur;
        let next_is_free = self.seqs[self.after(cur)] < last_seq;
        self.next_block = if next_is_free { self.blocks } else { behind };
        self
    }

    /// A place for an entry of `blocks` blocks that says `last_seq`, where the newest durable entry
    /// said `durable_last`. None: leaves must be written first.
    pub(crate) fn place(&self, blocks: usize, last_seq: u64, durable_last: u64) -> Option<Place> {
        assert!(blocks > 0 && blocks <= self.entry_max, "an entry of {blocks} blocks");
        let place = if self.next_block + blocks <= self.blocks {
            Place { index: self.cur, block: self.next_block }
        } else {
            let index = self.after(self.cur);
            if self.seqs[index] >= durable_last {
                return None;
            }
            Place { index, block: 0 }
        };
        let left = self.blocks - place.block - blocks;
        let goes_on = left >= self.entry_max || self.seqs[self.after(place.index)] < last_seq;
        goes_on.then_some(place)
    }

    /// Takes a place for entry `seq`.
    pub(crate) fn take(&mut self, place: Place, blocks: usize, seq: u64) {
        assert!(seq > self.seqs[self.cur], "seq goes up");
        self.cur = place.index;
        self.next_block = place.block + blocks;
        self.seqs[place.index] = seq;
    }

    /// First sector of a place.
    pub(crate) fn sector(&self, place: Place, layout: &Layout) -> u64 {
        let bucket = Bucket(self.first.0 + place.index as u64);
        layout.bucket_start(bucket) + place.block as u64 * u64::from(layout.block_size)
    }

    fn after(&self, index: usize) -> usize {
        (index + 1) % self.seqs.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::PageModel;
    use proptest::prelude::*;

    fn ring(buckets: u16, blocks: u32, entry_max: usize) -> Ring {
        let layout = Layout {
            block_size: 1,
            bucket_size: blocks,
            nbuckets: 513,
            first_bucket: 3,
            pages: PageModel::default(),
        };
        Ring::fresh(&layout, buckets, entry_max)
    }

    #[test]
    fn the_first_entry_opens_bucket_one() {
        let ring = ring(4, 8, 8);
        assert_eq!(ring.place(2, 1, 1), Some(Place { index: 1, block: 0 }));
    }

    #[test]
    fn a_bucket_is_not_overwritten_before_a_durable_entry_has_given_it_up() {
        // Bucket 1 holds 5, bucket 0 (the current one) holds 9 and is full.
        let ring = ring(2, 8, 8).found(vec![9, 5], 0, 8, 5);
        assert_eq!(ring.place(1, 10, 5), None, "5 is still asked for");
        assert_eq!(ring.place(1, 10, 6), Some(Place { index: 1, block: 0 }));
        assert_eq!(ring.place(1, 9, 6), None, "then the next entry would have no place");
    }

    proptest! {
        /// Entries of any length for ever: leaves are written only when the ring says so, nothing
        /// needed is overwritten, and with all leaves written there is always a place.
        #[test]
        fn the_ring_never_chokes(
            buckets in 2u16..6, blocks in 1u32..10,
            steps in prop::collection::vec((1usize..10, 0u64..4), 1..300),
        ) {
            let entry_max = 4.min(blocks as usize);
            let mut ring = ring(buckets, blocks, entry_max);
            // Which entries lie where, as a reader would find them.
            let mut held: Vec<Vec<(usize, u64)>> = vec![Vec::new(); usize::from(buckets)];
            let (mut durable_last, mut oldest_pin) = (1, 1);
            for (seq, (len, progress)) in (1u64..).zip(steps) {
                oldest_pin = (oldest_pin + progress).min(seq);
                let len = (len - 1) % entry_max + 1;
                let place = ring.place(len, oldest_pin, durable_last);
                let place = match place {
                    Some(place) => place,
                    None => {
                        oldest_pin = seq;
                        ring.place(len, seq, durable_last).expect("all leaves are written")
                    }
                };
                if place.block == 0 {
                    for (_, gone) in held[place.index].drain(..) {
                        prop_assert!(gone < durable_last, "{gone} is needed from {durable_last} on");
                    }
                }
                ring.take(place, len, seq);
                held[place.index].push((place.block, seq));
                durable_last = oldest_pin;
            }
        }
    }
}
