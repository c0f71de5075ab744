//! Reading: hits from the cache device, the rest from the backing device, and what was missed into
//! the cache.
//!
//! A hit pins its bucket from the lookup to the end of the read, so the data under it cannot be
//! replaced. Without dirty data in the request, an error of the cache device is no error: everything
//! clean is also below.

use std::rc::Rc;

use varve_block::sync::join_all;
use varve_block::{BlockDevice, ErrorKind, Extent, IoBuf, Op, Result, Sector, Sectors};

use crate::btree::Piece;
use crate::btree::tree::end_in;
use crate::bypass::Kind;
use crate::format::{Bucket, Key, Pos};
use crate::mode;
use crate::set::Set;
use crate::volume::{Volume, Way};

/// Where a part of a request is.
enum Source<S: BlockDevice> {
    Hit(Hit<S>),
    Gap,
}

/// A part of a request, in key space.
struct Part<S: BlockDevice> {
    start: u64,
    end: u64,
    source: Source<S>,
}

/// A place on the cache device; its bucket stays what it is as long as this lives.
pub(crate) struct Hit<S: BlockDevice> {
    set: Rc<Set<S>>,
    bucket: Bucket,
    sector: u64,
    dirty: bool,
}

impl<S: BlockDevice> Hit<S> {
    pub(crate) fn new(set: &Rc<Set<S>>, sector: u64, dirty: bool) -> Hit<S> {
        let bucket = set.layout.bucket_of(sector);
        let mut buckets = set.buckets.borrow_mut();
        buckets.pin(bucket);
        buckets.touch(bucket);
        drop(buckets);
        Hit { set: Rc::clone(set), bucket, sector, dirty }
    }
}

impl<S: BlockDevice> Drop for Hit<S> {
    fn drop(&mut self) {
        self.set.buckets.borrow_mut().unpin(self.bucket);
    }
}

/// A registered fill; it ends when this drops.
struct FillGuard<S: BlockDevice> {
    set: Rc<Set<S>>,
    id: usize,
}

impl<S: BlockDevice> Drop for FillGuard<S> {
    fn drop(&mut self) {
        self.set.fills.end(self.id);
    }
}

impl<S: BlockDevice, B: BlockDevice> Volume<S, B> {
    pub(crate) async fn read(self: &Rc<Self>, at: Sector, buf: IoBuf) -> Result<IoBuf> {
        let range = self.on_hdd(Extent::new(at, buf.sectors()));
        let way = self.way_to_read();
        if way == Way::Uncached || range.is_empty() {
            return self.hdd.read(range.start, buf).await;
        }
        let parts = match self.look_up(range).await {
            Ok(parts) => parts,
            // What is clean is below, whatever became of the index.
            Err(e) if !self.busy_dirty() => return self.read_below(range, buf, &e).await,
            Err(e) => return Err(e),
        };
        let bypass = way == Way::Safe || self.bypasses(Kind::Read, range);
        self.count(&parts, range, bypass);
        match parts.as_slice() {
            [Part { source: Source::Hit(hit), .. }] => self.read_hit(hit, range, buf).await,
            [Part { source: Source::Gap, .. }] => self.read_gap(range, buf, bypass).await,
            _ => self.read_parts(parts, range, buf, bypass).await,
        }
    }

    /// The parts of a range, adjacent and in order; hits are pinned.
    async fn look_up(&self, range: Extent) -> Result<Vec<Part<S>>> {
        let mut parts: Vec<Part<S>> = Vec::with_capacity(1);
        let (mut at, end) = (range.start.0, range.end().0);
        while at < end {
            let pos = Pos::new(self.inode, at);
            let leaf = match self.set.leaf_now(pos)? {
                Some(leaf) => leaf,
                None => self.set.leaf(pos).await?,
            };
            let here = end_in(&leaf, self.inode, end);
            let node = leaf.node.borrow();
            let found: Vec<Piece> = {
                let buckets = self.set.buckets.borrow();
                let pieces = node.pieces(self.inode, at, here, &self.set.layout, &*buckets);
                pieces.map_err(|c| self.set.broken(c))?.collect()
            };
            for piece in found {
                match piece {
                    Piece::Hit { start, end, sector, key } => {
                        let hit = Hit::new(&self.set, sector, key.dirty());
                        parts.push(Part { start, end, source: Source::Hit(hit) });
                    }
                    Piece::Gap { start, end } => match parts.last_mut() {
                        Some(Part { end: last, source: Source::Gap, .. }) if *last == start => {
                            *last = end;
                        }
                        _ => parts.push(Part { start, end, source: Source::Gap }),
                    },
                }
            }
            at = here;
        }
        Ok(parts)
    }

    fn count(&self, parts: &[Part<S>], range: Extent, bypass: bool) {
        let hit = parts.iter().all(|part| matches!(part.source, Source::Hit(_)));
        let mut stats = self.stats.borrow_mut();
        match (bypass, hit) {
            (false, true) => stats.hits += 1,
            (false, false) => stats.misses += 1,
            (true, true) => stats.bypass_hits += 1,
            (true, false) => stats.bypass_misses += 1,
        }
        if bypass && !hit {
            stats.bypassed_sectors += range.len.0;
        }
        drop(stats);
        self.set.buckets.borrow_mut().age(range.len.0);
    }

    async fn read_hit(&self, hit: &Hit<S>, range: Extent, buf: IoBuf) -> Result<IoBuf> {
        match self.set.ssd.read(Sector(hit.sector), buf).await {
            Ok(buf) => Ok(buf),
            Err(e) if hit.dirty => Err(self.lost_dirty(range, e)),
            Err(e) => {
                let buf = self.pool.take(range.len).await;
                self.read_below(range, buf, &e).await
            }
        }
    }

    /// Dirty data that the cache device does not give back exist nowhere else.
    fn lost_dirty(&self, range: Extent, e: varve_block::Error) -> varve_block::Error {
        let at = Extent::new(Sector(range.start.0 - self.offset), range.len);
        self.error(ErrorKind::Io, Op::Read, at)
            .with(format!("dirty in the cache, which failed: {}", varve_block::chain(&e)))
    }

    /// Reads clean data below because the cache failed.
    async fn read_below(
        &self,
        range: Extent,
        buf: IoBuf,
        why: &varve_block::Error,
    ) -> Result<IoBuf> {
        self.stats.borrow_mut().cache_errors_survived += 1;
        tracing::warn!(
            dev = %why.dev, sector = range.start.0, sectors = range.len.0, error = %why,
            "cache failed, reading the backing device"
        );
        self.hdd.read(range.start, buf).await
    }

    /// Reads what is not cached, and caches it.
    async fn read_gap(self: &Rc<Self>, range: Extent, buf: IoBuf, bypass: bool) -> Result<IoBuf> {
        let fill = if bypass { None } else { self.begin_fill(range) };
        let buf = self.hdd.read(range.start, buf).await?;
        if let Some(fill) = fill {
            self.fill(fill, range, &buf);
        }
        Ok(buf)
    }

    async fn read_parts(
        self: &Rc<Self>,
        parts: Vec<Part<S>>,
        range: Extent,
        buf: IoBuf,
        bypass: bool,
    ) -> Result<IoBuf> {
        let mut rest = Some(buf);
        let mut reads = Vec::with_capacity(parts.len());
        for part in &parts {
            let whole = rest.take().expect("parts make up the request");
            let (head, tail) = whole.split_at(Sectors(part.end - part.start));
            rest = Some(tail);
            let here = Extent::between(Sector(part.start), Sector(part.end));
            reads.push(async move {
                match &part.source {
                    Source::Hit(hit) => self.read_hit(hit, here, head).await,
                    Source::Gap => self.read_gap(here, head, bypass).await,
                }
            });
        }
        let mut whole: Option<IoBuf> = None;
        for read in join_all(reads).await {
            let piece = read?;
            whole = Some(match whole {
                Some(head) => IoBuf::join(head, piece),
                None => piece,
            });
        }
        let whole = whole.expect("a request has parts");
        debug_assert!(whole.sectors() == range.len);
        Ok(whole)
    }

    fn begin_fill(&self, range: Extent) -> Option<FillGuard<S>> {
        if !self.set.has_space(false) || self.set.health.failed().is_some() {
            return None;
        }
        let id = self.set.fills.begin(self.inode, range.start.0, range.end().0)?;
        Some(FillGuard { set: Rc::clone(&self.set), id })
    }

    /// Puts what a miss has read into the cache, behind the request's back.
    fn fill(self: &Rc<Self>, fill: FillGuard<S>, range: Extent, bytes: &[u8]) {
        if !self.set.fills.valid(fill.id) {
            self.stats.borrow_mut().miss_collisions += 1;
            return;
        }
        // The reader has its buffer already; without memory for a copy the fill is not worth waiting.
        let Some(mut copy) = self.pool.try_take(range.len) else { return };
        copy.copy_from_slice(bytes);
        let volume = Rc::clone(self);
        drop(self.set.rt.spawn(async move {
            if let Err(e) = volume.insert_fill(&fill, range, copy).await {
                tracing::debug!(dev = %e.dev, error = %e, "a miss was not cached");
            }
        }));
    }

    async fn insert_fill(&self, fill: &FillGuard<S>, range: Extent, copy: IoBuf) -> Result<()> {
        let Some(pieces) = self.space_for(range, false) else { return Ok(()) };
        let view = copy.freeze();
        self.write_pieces(&pieces, &view, range.start.0).await?;
        let stamp = self.set.stamp();
        for piece in &pieces {
            let key: Key = mode::Piece::key(piece, self.inode, false);
            if !self.set.insert_fill(fill.id, key, stamp).await? {
                self.stats.borrow_mut().miss_collisions += 1;
                return Ok(());
            }
        }
        self.set.account_inserted(range.len.0);
        Ok(())
    }
}
