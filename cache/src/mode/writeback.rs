//! Write-back: to the cache device only; the backing device follows later.
//!
//! The write is acknowledged when the data are on the cache device and the index says so in memory;
//! it is durable with the journal entry that has its keys.

use std::rc::Rc;

use varve_block::{BlockDevice, Data, Durability, Extent, Result};

use super::Piece;
use crate::btree::tree::Log;
use crate::volume::{DirtyWriter, Volume};

impl<S: BlockDevice, B: BlockDevice> Volume<S, B> {
    /// Writes to the cache only. Gives the data back when there is no space for them, or the cache device
    /// does not take them: then they can still go around it.
    pub(crate) async fn write_back(
        self: &Rc<Self>,
        range: Extent,
        data: Data,
        how: Durability,
    ) -> Result<Result<Data, Data>> {
        let _writer = DirtyWriter::new(self);
        let Some(pieces) = self.space_for(range, true) else { return Ok(Err(data)) };
        // W13. In front of the data: what fails here must not leave anything behind.
        self.ensure_dirty().await?;
        let view = data.freeze();
        if let Err(e) = self.write_pieces(&pieces, &view, range.start.0).await {
            self.stats.borrow_mut().cache_errors_survived += 1;
            tracing::warn!(dev = %e.dev, error = %e, "the cache device failed a write, going around it");
            return Ok(Err(view.into()));
        }
        self.insert_dirty(&pieces, how).await?;
        self.stats.borrow_mut().written_dirty += range.len.0;
        self.note_inserted(range.len.0);
        Ok(Ok(view.into()))
    }

    async fn insert_dirty(&self, pieces: &[Piece<S>], how: Durability) -> Result<()> {
        let stamp = self.set.stamp();
        for piece in pieces {
            self.set.insert(piece.key(self.inode, true), Log::Journal, stamp).await?;
        }
        self.commit(how).await
    }
}
