//! What a write does, by mode. Each file tells one way; [`bypass`](crate::bypass) chooses per request.
//!
//! All of them end with one question to the index, asked only after the data are where they belong:
//! "this stretch lies there now", or "nothing of this stretch is cached". Two rules hold for all that
//! take dirty data out of the index:
//!
//! - What replaces them on the backing device must be durable first, or a crash could find neither
//!   (W12). Writes over dirty data therefore go there with FUA, and if dirty data appear meanwhile,
//!   a flush comes before the index changes.
//! - The background writer may be moving older data to the same place: ranges that are written on
//!   the backing device are locked against it.
//!
//! Mode `none` writes as [`writearound`] does; it differs in reads, which fill nothing.

pub(crate) mod writearound;
pub(crate) mod writeback;
pub(crate) mod writethrough;

use varve_block::sync::try_join_all;
use varve_block::{BlockDevice, Durability, Extent, IoView, Result, Sector, Sectors};

use crate::alloc::Space;
use crate::format::{Key, Pos};
use crate::volume::Volume;

/// A piece of a write with its place in the cache.
pub(crate) struct Piece<S: BlockDevice> {
    /// In key space.
    pub start: u64,
    pub space: Space<S>,
}

impl<S: BlockDevice> Piece<S> {
    pub(crate) fn key(&self, inode: u32, dirty: bool) -> Key {
        Key::extent(inode, self.start, self.start + self.space.sectors, dirty, self.space.ptr)
    }
}

impl<S: BlockDevice, B: BlockDevice> Volume<S, B> {
    /// Space for all of `range` (on the backing device), or nothing.
    pub(crate) fn space_for(&self, range: Extent, dirty: bool) -> Option<Vec<Piece<S>>> {
        let mut pieces = Vec::with_capacity(1);
        let (mut at, end) = (range.start.0, range.end().0);
        while at < end {
            let want = (end - at).min(self.set.geometry.max_request.0);
            let space = self.set.space(Pos::new(self.inode, at), want, dirty)?;
            let next = at + space.sectors;
            pieces.push(Piece { start: at, space });
            at = next;
        }
        Some(pieces)
    }

    /// Writes the pieces of a request to the cache device, all at once.
    pub(crate) async fn write_pieces(
        &self,
        pieces: &[Piece<S>],
        view: &IoView,
        start: u64,
    ) -> Result<()> {
        let writes = pieces.iter().map(|piece| {
            let from = Sectors(piece.start - start).byte_len();
            let len = Sectors(piece.space.sectors).byte_len();
            let part = view.slice(from..from + len);
            let at = Sector(piece.space.ptr.offset());
            self.set.ssd.write(at, part.into(), Durability::Cached)
        });
        try_join_all(writes).await.map(drop)
    }

    /// How a write over `range` must reach the backing device: over dirty data it has to be durable
    /// before the index lets go of them.
    pub(crate) async fn durability_over(
        &self,
        range: Extent,
        how: Durability,
    ) -> Result<Durability> {
        let (start, end) = (range.start.0, range.end().0);
        let dirty = self.set.any_dirty(self.inode, start, end).await?;
        Ok(if dirty { Durability::Fua } else { how })
    }

    /// Removes what the cache has of `range`, whose newest version the backing device has.
    /// `how`: the durability it was written with.
    pub(crate) async fn forget(&self, range: Extent, how: Durability) -> Result<()> {
        let part = (range.start.0, range.end().0);
        let mut settled = how == Durability::Fua;
        while !self.set.invalidate(self.inode, part, settled).await? {
            self.hdd.flush().await?;
            settled = true;
        }
        Ok(())
    }

    /// The backing device failed a write: clean data of the range may differ from it now (D15).
    /// Dirty data stay: they are the newest version that is known.
    pub(crate) async fn doubt(&self, range: Extent) {
        if let Err(e) = self.set.invalidate_clean(self.inode, range.start.0, range.end().0).await {
            self.set.fail(&e);
        }
    }

    /// The last step of a write that asked for durability, and of a flush.
    pub(crate) async fn commit(&self, how: Durability) -> Result<()> {
        match how {
            Durability::Fua => self.set.commit_all().await,
            Durability::Cached => Ok(()),
        }
    }

    /// Sectors entered the cache: time goes by for gc and for the priorities.
    pub(crate) fn note_inserted(&self, sectors: u64) {
        self.set.account_inserted(sectors);
        self.set.buckets.borrow_mut().age(sectors);
    }
}
