//! A backing device without its cache set.
//!
//! | superblock says | alone it is |
//! |---|---|
//! | none, stale | served as it is: no set holds anything of it |
//! | clean | whole, but a set remembers it; refused unless forced, and then called stale before the first write, so that the set's old copies never come back |
//! | dirty | out of date: refused. [`CacheView`](crate::CacheView) reads it, when asked to show old data |

use std::cell::Cell;

use varve_block::sync::LocalSemaphore;
use varve_block::{
    BlockDevice, BufPool, Data, DevId, Durability, Extent, Geometry, IoBuf, Op, Result, Sector,
    Sectors, Zero,
};

use crate::format::{BackingState, BackingSuper};
use crate::open::OpenError;
use crate::register::backing_super;
use crate::volume::write_backing_super;

/// See the module.
pub struct Alone<B> {
    hdd: B,
    geometry: Geometry,
    offset: u64,
    sb: BackingSuper,
    /// The superblock still says clean.
    remembered: Cell<bool>,
    turn: LocalSemaphore,
    pool: BufPool,
}

impl<B: BlockDevice> Alone<B> {
    /// Opens the volume on `hdd` for reading and writing. `force`: also a clean one, whose set is
    /// given up with the first write.
    ///
    /// # Errors
    /// [`OpenError::CacheMissing`] when the set is needed.
    pub async fn open(hdd: B, force: bool) -> Result<Alone<B>, OpenError> {
        let pool = BufPool::new(0);
        let sb = backing_super(&hdd, &pool).await?;
        let state = sb.state();
        if state == BackingState::Dirty || (state == BackingState::Clean && !force) {
            let (hdd, set) = (hdd.geometry().dev, sb.set_uuid);
            return Err(OpenError::CacheMissing { hdd, state, set });
        }
        let below = hdd.geometry();
        let block = Sectors(u64::from(sb.block_size)).max(below.block);
        let geometry = Geometry {
            dev: DevId::new(format!("{} without its cache", below.dev)),
            len: Sectors((below.len.0 - sb.data_offset) / block.0 * block.0),
            block,
            preferred: below.preferred.max(block),
            ..below
        };
        Ok(Alone {
            geometry,
            offset: sb.data_offset,
            remembered: Cell::new(state == BackingState::Clean),
            sb,
            hdd,
            turn: LocalSemaphore::new(1),
            pool,
        })
    }

    fn below(&self, op: Op, range: Extent) -> Result<Extent> {
        self.geometry.admit(op, range)?;
        Ok(Extent::new(Sector(range.start.0 + self.offset), range.len))
    }

    /// The set must not believe any more that it knows this volume.
    async fn forget_set(&self) -> Result<()> {
        if !self.remembered.get() {
            return Ok(());
        }
        let _turn = self.turn.acquire(1).await;
        if self.remembered.get() {
            let mut next = self.sb.clone();
            next.set_state(BackingState::Stale);
            write_backing_super(&self.hdd, &self.pool, &self.sb.encode(), &next.encode()).await?;
            self.remembered.set(false);
        }
        Ok(())
    }
}

impl<B: BlockDevice> BlockDevice for Alone<B> {
    fn geometry(&self) -> Geometry {
        self.geometry.clone()
    }

    async fn read(&self, at: Sector, buf: IoBuf) -> Result<IoBuf> {
        let below = self.below(Op::Read, Extent::new(at, buf.sectors()))?;
        self.hdd.read(below.start, buf).await
    }

    async fn write(&self, at: Sector, data: Data, how: Durability) -> Result<Data> {
        let below = self.below(Op::Write, Extent::new(at, data.sectors()))?;
        self.forget_set().await?;
        self.hdd.write(below.start, data, how).await
    }

    async fn flush(&self) -> Result<()> {
        self.hdd.flush().await
    }

    async fn discard(&self, range: Extent) -> Result<()> {
        let below = self.below(Op::Discard, range)?;
        self.forget_set().await?;
        self.hdd.discard(below).await
    }

    async fn write_zeroes(&self, range: Extent, how: Zero) -> Result<()> {
        let below = self.below(Op::WriteZeroes, range)?;
        self.forget_set().await?;
        self.hdd.write_zeroes(below, how).await
    }
}
