//! Write-through: to both devices at once; done when both are.
//!
//! The cached copy is clean: it may be dropped at any time, so nothing is lost with the cache device.

use std::rc::Rc;

use varve_block::sync::join;
use varve_block::{BlockDevice, Data, Durability, Extent, Result};

use super::Piece;
use crate::volume::Volume;

impl<S: BlockDevice, B: BlockDevice> Volume<S, B> {
    pub(crate) async fn write_through(
        self: &Rc<Self>,
        range: Extent,
        data: Data,
        how: Durability,
    ) -> Result<Data> {
        let Some(pieces) = self.space_for(range, false) else {
            return self.write_around(range, data, how).await;
        };
        let _range = self.backing_lock.write(range).await;
        let _intent = self.intend(range).await?;
        let below = self.durability_over(range, how).await?;
        let view = data.freeze();
        let to_hdd = self.hdd.write(range.start, view.clone().into(), below);
        let to_ssd = self.write_pieces(&pieces, &view, range.start.0);
        let (hdd, ssd) = join(to_hdd, to_ssd).await;
        if let Err(e) = hdd {
            self.doubt(range).await;
            return Err(e);
        }
        let indexed = match ssd {
            Ok(()) => self.insert_through(&pieces, below).await,
            Err(e) => {
                self.stats.borrow_mut().cache_errors_survived += 1;
                tracing::warn!(dev = %e.dev, error = %e, "not cached: the cache device failed a write");
                self.forget(range, below).await
            }
        };
        if let Err(e) = indexed {
            self.survive(e).await?;
        } else if let Err(e) = self.commit(how).await {
            self.survive(e).await?;
        }
        self.stats.borrow_mut().written_through += range.len.0;
        self.note_inserted(range.len.0);
        Ok(view.into())
    }

    async fn insert_through(&self, pieces: &[Piece<S>], below: Durability) -> Result<()> {
        let stamp = self.set.stamp();
        let mut settled = below == Durability::Fua;
        for piece in pieces {
            let key = piece.key(self.inode, false);
            while !self.set.insert_clean(key, stamp, settled).await? {
                self.hdd.flush().await?;
                settled = true;
            }
        }
        Ok(())
    }
}
