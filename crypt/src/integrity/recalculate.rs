//! Computing tags for blocks that have none which says anything: of a volume that was not wiped when it was
//! made, and of the regions that a crash left in a bitmap.
//!
//! A step takes a run of blocks for itself, reads them from their places, and writes their tags. What was
//! done is kept (the superblock's `recalc_sector`, or the bitmap) only once the tags are durable, so a cut
//! costs work and nothing else. A block that cannot be read keeps the tag it has: it is an error already.

use varve_block::{BlockDevice, BufPool, Durability, Extent, Rt, Sector, Sectors};

use super::base::Io;
use super::device::{Barrier, Integrity};
use super::hash::Tagger;
use super::stale::Stale;

/// Sectors of a step.
pub(super) const STEP: Sectors = Sectors(if cfg!(test) { 64 } else { 2048 });
/// Bytes that are hashed before other tasks of the lane get their turn.
pub(super) const TURN_BYTES: usize = 64 << 10;

/// What must go into the superblock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Progress {
    /// Tags before this sector are valid.
    Sector(Sector),
    /// The bitmap says what is left.
    Map,
    /// All tags are valid.
    Complete,
}

/// Tags of whole blocks from a sector on.
pub(super) async fn tags(
    rt: &Rt,
    tagger: &Tagger,
    unit: usize,
    at: Sector,
    data: &[u8],
) -> Vec<u8> {
    let tag = tagger.len();
    let mut tags = vec![0; data.len() / unit * tag];
    let per_turn = TURN_BYTES / unit;
    let mut n = at.0;
    let turns = data.chunks(per_turn * unit).zip(tags.chunks_mut(per_turn * tag));
    for (i, (data, tags)) in turns.enumerate() {
        if i > 0 {
            rt.yield_now().await;
        }
        for (data, tag) in data.chunks_exact(unit).zip(tags.chunks_exact_mut(tag)) {
            tagger.tag(n, data, tag);
            n += (unit / 512) as u64;
        }
    }
    tags
}

impl<D: BlockDevice> Integrity<D> {
    /// One step; `None`: there is nothing to do. `pool` is the caller's own.
    pub(super) async fn recalculate(
        &self,
        rt: &Rt,
        tagger: &Tagger,
        pool: &BufPool,
    ) -> Io<Option<Extent>> {
        let layout = &self.base.layout;
        let next = self.stale.borrow().next(layout.provided, STEP);
        let Some(run) = next.and_then(|run| layout.pieces(run).next()) else { return Ok(None) };
        let _alone = self.blocks.write(run).await;
        match self.base.read_run(run, pool).await {
            Ok(data) => {
                let tags = tags(rt, tagger, layout.block.byte_len(), run.start, &data).await;
                drop(data);
                self.base.write_tags(run, &tags, Durability::Cached).await?;
            }
            Err(_) => self.one_by_one(rt, tagger, pool, run).await?,
        }
        self.stale.borrow_mut().done(run.end());
        Ok(Some(run))
    }

    /// The blocks of a run of which some cannot be read.
    async fn one_by_one(&self, rt: &Rt, tagger: &Tagger, pool: &BufPool, run: Extent) -> Io<()> {
        let layout = &self.base.layout;
        for block in run.pieces(layout.block) {
            match self.base.read_run(block, pool).await {
                Ok(data) => {
                    let tags = tags(rt, tagger, data.len(), block.start, &data).await;
                    self.base.write_tags(block, &tags, Durability::Cached).await?;
                }
                Err(e) => {
                    tracing::warn!(dev = %self.base.dev, sector = block.start.0, "no tag for what cannot be read: {}", varve_block::chain(&e));
                }
            }
        }
        Ok(())
    }

    /// Makes the tags so far durable, and says how far that is.
    pub(super) async fn settle_tags(&self) -> Io<Progress> {
        let provided = self.base.layout.provided;
        let progress = match &*self.stale.borrow() {
            Stale::None => Progress::Complete,
            Stale::From(from) if from.0 >= provided.0 => Progress::Complete,
            Stale::From(from) => Progress::Sector(*from),
            Stale::Bits { bits, .. } if !bits.any() => Progress::Complete,
            Stale::Bits { .. } => Progress::Map,
        };
        self.barrier(Barrier::Tags).await?;
        if progress == Progress::Complete {
            *self.stale.borrow_mut() = Stale::None;
        }
        Ok(progress)
    }
}
