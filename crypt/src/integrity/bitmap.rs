//! Bitmap mode: in place of the journal lies a map of regions whose tags may be wrong after a crash.
//!
//! # The life of a write
//! The bits of its region are made durable, if they are not; then data and tags go to their places. Ten
//! seconds later the [`clean`](Integrity::clean)er waits for the writes under way, flushes, and clears the
//! bits. A read needs no bit.
//!
//! # What a crash leaves
//! Regions whose bits are set. Their tags are computed anew from the data that is there
//! ([`recalculate`](super::recalculate)), so a block is old or new, and what rotted in such a region
//! before that is not noticed: that is the price of writing once.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use varve_block::sync::LocalMutex;
use varve_block::{BlockDevice, Data, Durability, Extent, Sector, Sectors};

use super::base::Io;
use super::bits::{BLOCK, Bits};
use super::device::{Barrier, Integrity};
use super::stale::Stale;

/// How long bits stay set at least, so that a region that is written often costs no more.
pub(super) const CLEAN_AFTER: Duration = Duration::from_secs(10);

/// The map while it is used.
pub(super) struct Bitmap {
    /// As it is on the device, or on its way there.
    stored: RefCell<Bits>,
    /// What is known to be durable: under these bits places may be written.
    durable: RefCell<Bits>,
    /// Held by whoever writes the map.
    turn: LocalMutex<()>,
    /// Bits were set that the cleaner has not looked at.
    marked: Cell<bool>,
}

impl Bitmap {
    pub(super) fn new(bits: Bits) -> Bitmap {
        Bitmap {
            stored: RefCell::new(bits.clone()),
            durable: RefCell::new(bits),
            turn: LocalMutex::new(()),
            marked: Cell::new(false),
        }
    }

    /// Whether there is something to clean.
    pub(super) fn is_marked(&self) -> bool {
        self.marked.get()
    }
}

impl<D: BlockDevice> Integrity<D> {
    /// A part of the map goes to the device.
    async fn write_map(&self, block: usize, bytes: &[u8], how: Durability) -> Io<()> {
        let mut buf = self.base.pool.take_bytes(BLOCK).await;
        buf.copy_from_slice(bytes);
        let at = self.base.layout.map_at() + Sectors::of_slice(bytes) * block as u64;
        self.base.write_below(at, Data::Owned(buf), how).await
    }

    /// The whole map, durably.
    pub(super) async fn write_whole_map(&self, bits: &Bits) -> Io<()> {
        for block in 0..bits.blocks() {
            self.write_map(block, bits.block(block), Durability::Cached).await?;
        }
        self.barrier(Barrier::Mark).await
    }

    /// Makes the bits of a range durable, so that its places may be written. The caller keeps the cleaner
    /// away by holding the range.
    pub(super) async fn mark(&self, range: Extent) -> Io<()> {
        let Some(map) = &self.bitmap else { return Ok(()) };
        if map.durable.borrow().all_set(range) {
            return Ok(());
        }
        // Before the turn: whoever has it takes these bits along.
        map.stored.borrow_mut().set(range);
        let _turn = map.turn.lock().await;
        if !map.durable.borrow().all_set(range) {
            let blocks = map.stored.borrow().blocks_of(range);
            for n in blocks {
                let bytes = map.stored.borrow().block(n).to_vec();
                self.write_map(n, &bytes, self.durably(Barrier::Mark)).await?;
                map.durable.borrow_mut().add_block(n, &bytes);
            }
        }
        map.marked.set(true);
        Ok(())
    }

    /// Clears the bits of what is durable and has its tags.
    pub(super) async fn clean(&self) -> Io<()> {
        let Some(map) = &self.bitmap else { return Ok(()) };
        map.marked.set(false);
        // Most of the work, while others still write.
        self.barrier(Barrier::Clean).await?;
        let all = Extent::new(Sector(0), self.base.layout.provided);
        let _alone = self.blocks.write(all).await;
        self.barrier(Barrier::Clean).await?;
        let _turn = map.turn.lock().await;
        let mut clean = map.stored.borrow().cleared();
        if let Stale::Bits { bits, .. } = &*self.stale.borrow() {
            clean = bits.clone();
        }
        let before = map.stored.replace(clean.clone());
        *map.durable.borrow_mut() = clean.clone();
        for n in 0..clean.blocks() {
            if before.block(n) != clean.block(n) {
                // A bit that stays set by accident costs time, and no data.
                self.write_map(n, clean.block(n), Durability::Cached).await?;
            }
        }
        Ok(())
    }
}
