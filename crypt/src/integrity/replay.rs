//! What a start finds in the journal, and what it does about it (luks.md 5.4).
//!
//! Committed sections are replayed in the ring's order: into memory when nothing may be written, into
//! their places otherwise. A section that was written half when the power went is not an error: nobody
//! was told that it is durable.

use std::rc::Rc;

use varve_block::{BlockDevice, IoBuf, Sector, Sectors};

use super::base::Io;
use super::device::{Integrity, Journaling};
use super::journal::{self, Found};
use crate::error::{Corrupt, Error, Result};

/// Blocks of a journal that are held in memory at a time.
const HELD_MAX: usize = 256 << 20;

/// What the operator may want to know.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Replayed {
    /// Sections of the journal that held committed blocks.
    pub sections: u32,
    /// Blocks that were not in their places, perhaps.
    pub blocks: usize,
}

impl<D: BlockDevice> Integrity<D> {
    /// Takes the journal up. `writable`: its blocks go to their places; otherwise they stay in memory,
    /// and reads find them there.
    pub(super) async fn recover(&self, writable: bool) -> Result<Replayed> {
        let (states, used) = self.scan().await?;
        let Some(found) = journal::find(&states, used) else {
            return Err(self.wrong(
                0,
                "commit ids of all four sequences",
                "those of one or two laps",
            ));
        };
        let mut done = Replayed { sections: found.count, blocks: 0 };
        for n in 0..found.count {
            let section = self.nth(&found, n);
            done.blocks += self.load(section).await?;
            if self.held() > HELD_MAX {
                if !writable {
                    return Err(Error::unsupported(
                        "replaying more than 256 MiB of journal in memory",
                    ));
                }
                self.copy().await?;
            }
        }
        if writable {
            self.settle(&found, done.blocks > 0).await?;
        }
        Ok(done)
    }

    /// Everything in its place; the ring goes on, or is made new.
    async fn settle(&self, found: &Found, replayed: bool) -> Io<()> {
        if replayed {
            self.copy().await?;
        }
        let keeps = !replayed || self.journaling() == Journaling::Journal;
        if let Some(seq) = found.goes_on.filter(|_| keeps) {
            let mut ring = self.ring.borrow_mut();
            (ring.head, ring.seq, ring.used) = (found.first, seq, replayed);
            return Ok(());
        }
        for part in journal::erase_order(found.first, self.base.layout.sections) {
            self.blank(part, found.erase).await?;
        }
        let mut ring = self.ring.borrow_mut();
        (ring.head, ring.seq, ring.used) = (0, journal::next(found.erase), false);
        Ok(())
    }

    fn nth(&self, found: &Found, n: u32) -> u32 {
        let section = u64::from(found.first) + u64::from(n);
        u32::try_from(section % u64::from(self.base.layout.sections)).expect("below a u32")
    }

    fn held(&self) -> usize {
        self.ring.borrow().committed.len() * self.base.layout.block.byte_len()
    }

    async fn section(&self, section: u32) -> Io<IoBuf> {
        let buf = self.base.pool.take(self.base.layout.section).await;
        self.base.read_below(self.base.layout.section_at(section), buf).await
    }

    /// The sequences of every section, and whether any entry is used.
    async fn scan(&self) -> Result<(Vec<u8>, bool)> {
        let (mut states, mut used) = (Vec::new(), false);
        for section in 0..self.base.layout.sections {
            let bytes = self.section(section).await?;
            let state = journal::sequences(section, &bytes).map_err(|n| {
                let at = self.base.layout.section_at(section) + Sectors(n);
                self.wrong(at.0, "a commit id of no sequence", "one of this sector's four")
            })?;
            used |= !journal::entries(&self.base.layout, &bytes).is_empty();
            states.push(state);
        }
        Ok((states, used))
    }

    /// The blocks of a section, over those of earlier ones.
    async fn load(&self, section: u32) -> Result<usize> {
        let layout = &self.base.layout;
        let bytes = self.section(section).await?;
        let mut n = 0;
        for (entry, at) in journal::entries(layout, &bytes) {
            // A device that was made shorter: what lay beyond is gone.
            if at >= layout.provided.0 {
                continue;
            }
            if !Sector(at).is_aligned(layout.block) {
                let place = layout.section_at(section).0;
                return Err(self.wrong(
                    place,
                    &format!("an entry for sector {at}"),
                    "whole blocks",
                ));
            }
            let block = Rc::new(journal::block(layout, &bytes, entry, at));
            self.ring.borrow_mut().committed.insert(at, block);
            n += 1;
        }
        Ok(n)
    }

    fn wrong(&self, at: u64, found: &str, expected: &str) -> Error {
        Error::Corrupt(Corrupt {
            what: "dm-integrity journal",
            check: 51,
            field: format!("sector {at} of {}", self.base.below.geometry().dev),
            found: found.into(),
            expected: expected.into(),
        })
    }
}
