//! A cached volume, read only: what `/dev/bcache0` would show, without writing a byte anywhere.
//!
//! The journal is replayed in memory ([`effective`](crate::effective)). Reads are served from the
//! cache device where it holds the sector, from the backing device otherwise. Nothing is filled,
//! promoted or repaired.

use varve_block::{
    BlockDevice, BufPool, Data, Durability, Error, ErrorKind, Extent, ExtentStatus, Geometry,
    IoBuf, Op, Result, Sector, Sectors, Zero,
};

use crate::effective::{Effective, ExtentMap, Mapped, Seen};
use crate::error::{Corrupt, LoadError};
use crate::format::{BackingState, BackingSuper};
use crate::intent::{self, Marked, Owner};
use crate::load::Loader;
use crate::open::OpenError;

/// Memory for reads of one request: a clean hit that fails is read again from below.
const POOL_BYTES: usize = 16 << 20;

/// A volume behind a cache, or without one, that can only be read.
pub struct CacheView<S, B> {
    hdd: B,
    /// The cache device, when the volume is attached to it.
    ssd: Option<S>,
    pool: BufPool,
    backing: BackingSuper,
    /// What the cache holds of this volume, in sectors of the backing device.
    extents: ExtentMap,
    inode: u32,
    /// Dirty data that are nowhere any more: reading them fails.
    lost: Vec<Mapped>,
    seen: Seen,
}

impl<S: BlockDevice, B: BlockDevice> CacheView<S, B> {
    /// Opens the volume on `hdd` through the cache set on `ssd`.
    ///
    /// # Errors
    /// When either superblock is refused, when the devices do not belong together, or when the set
    /// is damaged: a stale answer is never given in place of an error. A set that lost dirty extents
    /// opens, and only reads of those fail.
    pub async fn open(ssd: S, hdd: B) -> Result<CacheView<S, B>, OpenError> {
        let pool = BufPool::new(POOL_BYTES);
        let backing = backing_super(&hdd, &pool).await?;
        let loader = Loader::new(&ssd, &pool);
        let set = loader.cache_super().await.map_err(|error| match error {
            LoadError::Device(failed) => OpenError::Device(failed),
            LoadError::Corrupt(source) => OpenError::Superblock { dev: loader.dev(), source },
        })?;
        let attached = matches!(backing.state(), BackingState::Clean | BackingState::Dirty);
        if !attached {
            return Ok(Self::bare(hdd, backing, pool));
        }
        if backing.set_uuid != set.set_uuid {
            return Err(OpenError::OtherSet {
                hdd: hdd.geometry().dev,
                hdd_set: backing.set_uuid,
                ssd: loader.dev(),
                ssd_set: set.set_uuid,
            });
        }
        let elsewhere = |why| OpenError::DirtyElsewhere {
            hdd: hdd.geometry().dev,
            ssd: loader.dev(),
            set: backing.set_uuid,
            why,
        };
        let dirty = backing.state() == BackingState::Dirty;
        if !set.sync() {
            let refused = dirty.then(|| elsewhere("it was formatted since"));
            return refused.map_or(Ok(Self::bare(hdd, backing, pool)), Err);
        }
        let (held, seen) = Effective::load(&loader, set).await.map_err(|error| match error {
            LoadError::Device(failed) => OpenError::Device(failed),
            LoadError::Corrupt(source) => OpenError::Damaged { dev: loader.dev(), source },
        })?;
        let Some((inode, _)) = held.uuids.find(backing.uuid) else {
            let refused = dirty.then(|| elsewhere("it has no slot for this volume"));
            return refused.map_or(Ok(Self::bare(hdd, backing, pool)), Err);
        };
        let lost = held.lost.iter().filter(|(of, _)| *of == inode).map(|(_, m)| *m).collect();
        let mut extents = held.extents;
        // What opening for writing drops is not shown either.
        let marked = match intent::has_room(&held.superblock.layout) {
            true => {
                let sectors = u64::from(intent::PAGE_SECTORS);
                let page = loader.read(intent::PAGE_SECTOR, sectors).await;
                let page = page.map_err(OpenError::Device)?;
                intent::parse(&page, Owner::of(&held.superblock))
            }
            false => Marked::Everything,
        };
        for &(start, end) in marked.of(backing.uuid) {
            extents.cut_clean(inode, start, end);
        }
        Ok(CacheView { hdd, ssd: Some(ssd), pool, backing, extents, inode, lost, seen })
    }

    /// Opens the volume without its cache. With dirty data over there this shows old data, so it has
    /// to be asked for: `allow_stale`.
    pub async fn open_without_cache(
        hdd: B,
        allow_stale: bool,
    ) -> Result<CacheView<S, B>, OpenError> {
        let pool = BufPool::new(POOL_BYTES);
        let backing = backing_super(&hdd, &pool).await?;
        if backing.state() == BackingState::Dirty && !allow_stale {
            return Err(OpenError::CacheMissing {
                hdd: hdd.geometry().dev,
                state: backing.state(),
                set: backing.set_uuid,
            });
        }
        Ok(Self::bare(hdd, backing, pool))
    }

    /// Nothing is cached.
    fn bare(hdd: B, backing: BackingSuper, pool: BufPool) -> CacheView<S, B> {
        CacheView {
            hdd,
            ssd: None,
            pool,
            backing,
            extents: ExtentMap::default(),
            inode: 0,
            lost: Vec::new(),
            seen: Seen::default(),
        }
    }

    pub fn backing(&self) -> &BackingSuper {
        &self.backing
    }

    /// Whether a cache set stands in front.
    pub fn cached(&self) -> bool {
        self.ssd.is_some()
    }

    /// What was read to open it.
    pub fn seen(&self) -> Seen {
        self.seen
    }

    /// Extents of the volume in the cache, in sectors of the backing device.
    pub fn cached_extents(&self) -> impl Iterator<Item = &Mapped> {
        self.extents.range(self.inode, 0, u64::MAX)
    }

    /// Dirty extents of the volume that are lost (their buckets were reused).
    pub fn lost_extents(&self) -> &[Mapped] {
        &self.lost
    }

    /// `range` of the volume in the key space.
    fn in_keys(&self, range: Extent) -> (u64, u64) {
        let start = range.start.0 + self.backing.data_offset;
        (start, start + range.len.0)
    }

    /// The pieces of `range` (key space), each from one place: `None` is the backing device.
    fn pieces(&self, start: u64, end: u64) -> Vec<(u64, u64, Option<Mapped>)> {
        let mut pieces = Vec::new();
        let mut at = start;
        for mapped in self.extents.range(self.inode, start, end) {
            if at < mapped.start {
                pieces.push((at, mapped.start, None));
            }
            let from = at.max(mapped.start);
            at = mapped.end.min(end);
            pieces.push((from, at, Some(*mapped)));
        }
        if at < end {
            pieces.push((at, end, None));
        }
        pieces
    }

    async fn read_piece(
        &self,
        (start, end, hit): (u64, u64, Option<Mapped>),
        buf: IoBuf,
    ) -> Result<IoBuf> {
        let (Some(ssd), Some(mapped)) = (&self.ssd, hit) else {
            return self.hdd.read(Sector(start), buf).await;
        };
        match ssd.read(Sector(mapped.sector(start)), buf).await {
            Err(failed) if !mapped.dirty => {
                // What is clean is also below. What is dirty exists nowhere else.
                tracing::warn!(dev = %failed.dev, sector = start, error = %failed, "clean hit failed, reading the backing device");
                let buf = self.pool.take(Sectors(end - start)).await;
                self.hdd.read(Sector(start), buf).await
            }
            done => done,
        }
    }

    fn refuse_lost(&self, op: Op, range: Extent) -> Result<()> {
        let (start, end) = self.in_keys(range);
        let Some(lost) = self.lost.iter().find(|lost| lost.start < end && start < lost.end) else {
            return Ok(());
        };
        let dev = self.geometry().dev;
        let why = Corrupt::row(
            46,
            "extent",
            crate::error::Place::sector(lost.sector(lost.start)),
            "gen",
            format!("sectors {}..{} in a bucket that was reused", lost.start, lost.end),
            "dirty data",
        );
        Err(Error::new(ErrorKind::Corrupt, op, range, &dev).with(why))
    }
}

async fn backing_super<B: BlockDevice>(
    hdd: &B,
    pool: &BufPool,
) -> std::result::Result<BackingSuper, OpenError> {
    let loader = Loader::new(hdd, pool);
    loader.backing_super().await.map_err(|error| match error {
        LoadError::Device(failed) => OpenError::Device(failed),
        LoadError::Corrupt(source) => OpenError::Superblock { dev: loader.dev(), source },
    })
}

impl<S: BlockDevice, B: BlockDevice> BlockDevice for CacheView<S, B> {
    fn geometry(&self) -> Geometry {
        let below = self.hdd.geometry();
        let ssd = self.ssd.as_ref().map(BlockDevice::geometry);
        let block = ssd.as_ref().map_or(below.block, |ssd| ssd.block.max(below.block));
        let largest = ssd.map_or(below.max_request, |ssd| ssd.max_request.min(below.max_request));
        Geometry {
            len: Sectors(below.len.0.saturating_sub(self.backing.data_offset)),
            block,
            max_request: largest,
            read_only: true,
            volatile_cache: false,
            can_discard: false,
            fast_zero: false,
            ..below
        }
    }

    async fn read(&self, at: Sector, buf: IoBuf) -> Result<IoBuf> {
        let range = Extent::new(at, buf.sectors());
        self.geometry().admit(Op::Read, range)?;
        self.refuse_lost(Op::Read, range)?;
        let (start, end) = self.in_keys(range);
        let mut rest = Some(buf);
        let mut done: Option<IoBuf> = None;
        for piece in self.pieces(start, end) {
            let Some(buf) = rest.take() else { break };
            let len = Sectors(piece.1 - piece.0);
            let buf = if buf.sectors() == len {
                buf
            } else {
                let (buf, tail) = buf.split_at(len);
                rest = Some(tail);
                buf
            };
            let buf = self.read_piece(piece, buf).await?;
            done = Some(match done {
                Some(head) => IoBuf::join(head, buf),
                None => buf,
            });
        }
        Ok(done.or(rest).expect("a request has at least one sector"))
    }

    async fn write(&self, at: Sector, data: Data, _: Durability) -> Result<Data> {
        self.geometry().admit(Op::Write, Extent::new(at, data.sectors()))?;
        unreachable!("a read-only device admits no write")
    }

    async fn flush(&self) -> Result<()> {
        Ok(())
    }

    async fn discard(&self, range: Extent) -> Result<()> {
        self.geometry().admit(Op::Discard, range)
    }

    async fn write_zeroes(&self, range: Extent, _: Zero) -> Result<()> {
        self.geometry().admit(Op::WriteZeroes, range)
    }

    async fn extents(&self, range: Extent, limit: usize) -> Result<Vec<ExtentStatus>> {
        self.geometry().admit(Op::Extents, range)?;
        let (start, end) = self.in_keys(range);
        let offset = self.backing.data_offset;
        let mut runs = Vec::new();
        for (from, to, hit) in self.pieces(start, end) {
            if runs.len() >= limit.max(1) {
                break;
            }
            let part = Extent::between(Sector(from), Sector(to));
            let below = match hit {
                Some(_) => vec![ExtentStatus::data(part)],
                None => self.hdd.extents(part, limit - runs.len()).await?,
            };
            let known = below.last().map_or(from, |run| run.range.end().0);
            runs.extend(below.into_iter().map(|run| {
                let start = Sector(run.range.start.0 - offset);
                ExtentStatus { range: Extent::new(start, run.range.len), ..run }
            }));
            if known < to {
                break;
            }
        }
        Ok(runs)
    }
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
