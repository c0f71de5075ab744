//! Write-around: to the backing device; what the cache has of the range is invalidated.
//!
//! The kernel invalidates while the write runs. A miss in between then reads the old content and
//! fills the cache with it, for ever. Here the invalidation comes after the write and before its
//! acknowledgement; a fill that began before loses against it.

use std::rc::Rc;

use varve_block::{BlockDevice, Data, Durability, Extent, Result, Zero};

use crate::volume::Volume;

impl<S: BlockDevice, B: BlockDevice> Volume<S, B> {
    pub(crate) async fn write_around(
        self: &Rc<Self>,
        range: Extent,
        data: Data,
        how: Durability,
    ) -> Result<Data> {
        let _range = self.backing_lock.write(range).await;
        let _intent = self.intend(range).await?;
        let below = self.durability_over(range, how).await?;
        match self.hdd.write(range.start, data, below).await {
            Ok(data) => {
                self.after_around(range, how, below).await?;
                Ok(data)
            }
            Err(e) => {
                self.doubt(range).await;
                Err(e)
            }
        }
    }

    pub(crate) async fn zero_around(self: &Rc<Self>, range: Extent, how: Zero) -> Result<()> {
        let _range = self.backing_lock.write(range).await;
        let _intent = self.intend(range).await?;
        let below = self.durability_over(range, how.durability).await?;
        match self.hdd.write_zeroes(range, Zero { durability: below, ..how }).await {
            Ok(()) => self.after_around(range, how.durability, below).await,
            // Nothing was changed.
            Err(e) if e.kind == varve_block::ErrorKind::Unsupported => Err(e),
            Err(e) => {
                self.doubt(range).await;
                Err(e)
            }
        }
    }

    /// A discarded range may hold anything afterwards; so dirty data of it are let go at once.
    pub(crate) async fn discard_around(self: &Rc<Self>, range: Extent) -> Result<()> {
        let _range = self.backing_lock.write(range).await;
        let _intent = self.intend(range).await?;
        if self.hdd_geometry.can_discard {
            self.hdd.discard(range).await?;
        }
        let dropped = self.set.invalidate(self.inode, (range.start.0, range.end().0), true).await;
        if let Err(e) = dropped {
            self.survive(e).await?;
        }
        Ok(())
    }

    async fn after_around(&self, range: Extent, how: Durability, below: Durability) -> Result<()> {
        let forgotten = match self.forget(range, below).await {
            Ok(()) => self.commit(how).await,
            failed => failed,
        };
        if let Err(e) = forgotten {
            self.survive(e).await?;
        }
        self.stats.borrow_mut().bypassed_sectors += range.len.0;
        Ok(())
    }
}
