//! The background writer: dirty data go home.
//!
//! ```text
//! scan the index for dirty keys, in order ── a batch
//! read each from the cache, write it to the backing device        range locked against other writers
//! flush the backing device                                                                     W12
//! drop the dirty bit wherever the key still stands                      journalled
//! nothing dirty any more: journal durable, superblock says clean                               W13
//! ```
//!
//! It works when there is more dirty data than wanted, when nobody uses the volume, and when somebody
//! asks for all of it to be written. In the first case clients come first, and it keeps to a [`rate`].
//! An extent that one of the devices will not move is set aside and reported; the rest goes on.

mod rate;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use varve_block::sync::{RangeGuard, join_all, select};
use varve_block::{BlockDevice, Durability, Extent, Result, Sector, Sectors};

use crate::btree::tree::end_in;
use crate::btree::usable_leaf;
use crate::format::{BackingState, Key, Pos};
use crate::read::Hit;
use crate::volume::Volume;
use rate::{Load, Rate};

/// Keys moved between two flushes of the backing device.
const BATCH_KEYS: usize = 64;
/// Sectors moved between two flushes: also the bound on the writer's memory.
const BATCH_SECTORS: u64 = 8192;
/// Tries before an extent is set aside.
const TRIES_MAX: u32 = 3;
/// How long a pause between two batches may go on before the reason for it is looked at again.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// Extents that could not be moved, by start.
#[derive(Default)]
pub(crate) struct Quarantine(BTreeMap<u64, Failed>);

struct Failed {
    key: Key,
    tries: u32,
    why: String,
}

impl Quarantine {
    fn fail(&mut self, key: Key, why: String) {
        let failed =
            self.0.entry(key.start()).or_insert(Failed { key, tries: 0, why: String::new() });
        if failed.key.pointer() != key.pointer() {
            failed.tries = 0;
        }
        failed.key = key;
        failed.tries += 1;
        failed.why = why;
    }

    /// Whether the writer leaves this key alone.
    fn holds(&self, key: &Key) -> bool {
        self.0.get(&key.start()).is_some_and(|failed| {
            failed.key.pointer() == key.pointer() && failed.tries >= TRIES_MAX
        })
    }

    fn done(&mut self, key: &Key) {
        self.0.remove(&key.start());
    }

    /// Extents set aside, in key space, and why.
    pub(crate) fn list(&self) -> Vec<(u64, u64, String)> {
        let aside = self.0.values().filter(|failed| failed.tries >= TRIES_MAX);
        aside.map(|f| (f.key.start(), f.key.end(), f.why.clone())).collect()
    }

    /// Everything is tried again.
    pub(crate) fn forgive(&mut self) {
        self.0.clear();
    }
}

/// Why the writer works. Only one reason is no hurry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reason {
    AskedTo,
    /// The operator wants no dirty data that could be moved.
    Unlimited,
    TooManyBuckets,
    Idle,
    MoreThanWanted,
}

impl<S: BlockDevice, B: BlockDevice> Volume<S, B> {
    /// The writer's task, until the set stops.
    pub(crate) async fn writeback_task(self: Rc<Self>) {
        let mut from = 0;
        let mut rate = Rate::new(self.set.rt.now());
        while self.set.health.running() && !self.uncached.get() {
            let most = match self.reason_to_work() {
                None => 0,
                Some(Reason::MoreThanWanted) => {
                    let now = self.set.rt.now();
                    rate.update(now, &self.load());
                    let delay = rate.delay(now);
                    if !delay.is_zero() {
                        self.pause(delay.min(PAUSE_MAX)).await;
                        continue;
                    }
                    rate.batch_sectors().min(BATCH_SECTORS)
                }
                Some(_) => BATCH_SECTORS,
            };
            let work = match most {
                0 => Ok(0),
                most => self.write_back_batch(&mut from, most).await,
            };
            match work {
                Ok(0) => self.rest().await,
                Ok(sectors) => rate.moved(self.set.rt.now(), sectors),
                Err(e) => {
                    tracing::warn!(dev = %e.dev, error = %e, "writeback failed, trying again later");
                    self.finish_drain();
                    self.sleep(self.options.look_again).await;
                }
            }
        }
        self.finish_drain();
    }

    /// Nothing is to be moved now.
    async fn rest(&self) {
        if self.reason_to_work().is_some() {
            // A scan from here to the end and around found nothing that can be moved.
            if let Err(e) = self.settle_clean().await {
                tracing::warn!(dev = %e.dev, error = %e, "the volume could not be called clean");
            }
            self.finish_drain();
        }
        if self.dirty_sectors() == 0 && self.state() != BackingState::Dirty {
            self.wake.notified().await;
        } else {
            self.sleep(self.options.look_again).await;
        }
    }

    /// Lets clients have the devices for a while.
    async fn pause(&self, d: Duration) {
        select(self.set.rt.sleep(d), self.set.health.changed.notified()).await;
    }

    async fn sleep(&self, d: Duration) {
        let woken = select(self.wake.notified(), self.set.health.changed.notified());
        select(self.set.rt.sleep(d), woken).await;
    }

    fn finish_drain(&self) {
        self.drained.notify_all();
    }

    /// Why the writer should work now.
    fn reason_to_work(&self) -> Option<Reason> {
        if self.drain.get() > 0 {
            return Some(Reason::AskedTo);
        }
        if !self.options.running || self.state() != BackingState::Dirty {
            return None;
        }
        // Few dirty sectors in many buckets stop the cache as well.
        if self.set.buckets.borrow().in_use_percent() > self.options.cutoff {
            return Some(Reason::TooManyBuckets);
        }
        if self.set.rt.now() - self.last_request.get() >= self.options.delay {
            return Some(Reason::Idle);
        }
        let above = self.dirty_sectors() > self.target_sectors();
        match self.options.percent {
            0 if above => Some(Reason::Unlimited),
            _ => above.then_some(Reason::MoreThanWanted),
        }
    }

    fn target_sectors(&self) -> u64 {
        self.set.layout.sectors() / 100 * u64::from(self.options.percent)
    }

    fn load(&self) -> Load {
        let buckets = self.set.buckets.borrow();
        Load {
            dirty_sectors: self.dirty_sectors(),
            target_sectors: self.target_sectors(),
            in_use_percent: buckets.in_use_percent(),
            buckets_in_use: buckets.in_use(),
            bucket_sectors: self.set.layout.bucket_size.into(),
        }
    }

    /// Moves one batch from `from` on, wrapping around once. Returns the sectors moved.
    async fn write_back_batch(self: &Rc<Self>, from: &mut u64, most: u64) -> Result<u64> {
        let mut batch = self.scan(*from, Key::OFFSET_MAX, most).await?;
        if batch.is_empty() && *from > 0 {
            batch = self.scan(0, *from, most).await?;
        }
        let Some(last) = batch.last() else {
            *from = 0;
            return Ok(0);
        };
        *from = last.end();
        let moved = join_all(batch.iter().map(|key| self.move_home(*key))).await;
        if moved.iter().any(Result::is_ok) {
            // W12. The locks are still held: nobody writes there between this and the index.
            self.hdd.flush().await?;
        }
        let mut sectors = 0;
        let mut refused = None;
        for (key, moved) in batch.iter().zip(moved) {
            match moved {
                Ok(None) => {}
                Ok(Some(_range)) => {
                    sectors += self.set.mark_clean(*key).await?;
                    self.quarantine.borrow_mut().done(key);
                }
                Err(e) => {
                    self.quarantine.borrow_mut().fail(*key, varve_block::chain(&e));
                    refused = Some(e);
                }
            }
        }
        self.stats.borrow_mut().written_back += sectors;
        match refused {
            Some(e) if sectors == 0 => Err(e),
            _ => Ok(sectors.max(1)),
        }
    }

    /// Dirty keys of the volume that start in `[from, to)`, as many as a batch of `most` sectors takes,
    /// and at least one.
    async fn scan(&self, from: u64, to: u64, most: u64) -> Result<Vec<Key>> {
        let mut batch: Vec<Key> = Vec::new();
        let mut sectors = 0;
        let mut pos = Pos::new(self.inode, from);
        while pos.inode == self.inode && pos.offset < to {
            let leaf = self.set.leaf(pos).await?;
            {
                let buckets = self.set.buckets.borrow();
                let quarantine = self.quarantine.borrow();
                let node = leaf.node.borrow();
                let keys = node.iter_from(Some(pos)).map_err(|c| self.set.broken(c))?;
                for key in keys.filter(|key| key.inode() == self.inode && key.dirty()) {
                    let usable = usable_leaf(&key, &self.set.layout, &*buckets);
                    if !usable || key.start() >= to || quarantine.holds(&key) {
                        continue;
                    }
                    sectors += u64::from(key.size());
                    batch.push(key);
                    if batch.len() == BATCH_KEYS || sectors >= most {
                        return Ok(batch);
                    }
                }
            }
            pos = leaf.bound();
            self.set.rt.yield_now().await;
        }
        Ok(batch)
    }

    /// Copies one dirty extent to the backing device. What it returns keeps other writers away; it
    /// is none when the extent is not what it was at the scan.
    async fn move_home(&self, key: Key) -> Result<Option<RangeGuard>> {
        let range = Extent::new(Sector(key.start()), Sectors(key.size().into()));
        let guard = self.backing_lock.write(range).await;
        // Whoever had the range before may have put newer data on the backing device.
        let Some(pin) = self.pin_dirty(&key).await? else { return Ok(None) };
        for part in range.pieces(self.geometry.max_request) {
            let ptr = key.pointer().advanced((part.start - range.start).0);
            let buf = self.pool.take(part.len).await;
            // A failed read must not reach the backing device as data.
            let buf = self.set.ssd.read(Sector(ptr.offset()), buf).await?;
            self.hdd.write(part.start, buf.into(), Durability::Cached).await?;
        }
        drop(pin);
        Ok(Some(guard))
    }

    /// Keeps the bucket of a key that stands in the index whole and unchanged.
    async fn pin_dirty(&self, key: &Key) -> Result<Option<Hit<S>>> {
        let (mut at, end) = (key.start(), key.end());
        while at < end {
            let leaf = self.set.leaf(Pos::new(self.inode, at)).await?;
            let here = end_in(&leaf, self.inode, end);
            if !self.set.stands(&leaf, key, at, here)? {
                return Ok(None);
            }
            at = here;
        }
        Ok(Some(Hit::new(&self.set, key.pointer().offset(), true)))
    }

    /// Asks for everything to be written back and waits for it.
    ///
    /// # Errors
    /// When some of it cannot be: what, [`Quarantine::list`] says.
    pub(crate) async fn write_back_all(self: &Rc<Self>) -> Result<()> {
        self.quarantine.borrow_mut().forgive();
        self.drain.set(self.drain.get() + 1);
        let done = self.drain_once().await;
        self.drain.set(self.drain.get() - 1);
        done
    }

    async fn drain_once(self: &Rc<Self>) -> Result<()> {
        loop {
            self.set.writable()?;
            if self.dirty_sectors() == 0 && self.settle_clean().await? {
                return Ok(());
            }
            let aside = self.quarantine.borrow().list();
            if let Some((start, end, why)) = aside.first() {
                let part = (start - self.offset, end - start);
                let at = Extent::new(Sector(part.0), Sectors(part.1));
                let e = self.error(varve_block::ErrorKind::Io, varve_block::Op::Write, at);
                return Err(
                    e.with(format!("{} extents cannot be written back: {why}", aside.len()))
                );
            }
            self.wake.notify_one();
            self.drained.notified().await;
        }
    }
}
