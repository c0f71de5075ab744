//! The allocator's task: clean buckets become free ones.

use std::rc::Rc;
use std::time::Duration;

use varve_block::sync::select;
use varve_block::{BlockDevice, ErrorKind, Extent, Op, Result, Sector, Sectors};

use super::Class;
use crate::format::{Bucket, PrioSet};
use crate::set::Set;

/// How long the allocator waits before it looks again when nothing could be invalidated.
const PATIENCE: Duration = Duration::from_millis(50);

impl<S: BlockDevice> Set<S> {
    /// Keeps the free list filled until the set stops.
    pub(crate) async fn allocator_task(self: Rc<Self>) {
        while self.health.running() {
            if self.buckets.borrow().free_len() >= self.alloc.low() {
                self.alloc.wanted.notified().await;
                continue;
            }
            match self.refill().await {
                Ok(0) => {
                    // Everything is dirty, pinned or metadata: gc and writeback change that.
                    self.request_gc();
                    let rest = self.rt.sleep(PATIENCE);
                    select(rest, self.health.changed.notified()).await;
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
        self.alloc.changed.notify_all();
    }

    pub(crate) fn request_gc(&self) {
        self.alloc.gc_wanted.set(true);
        self.alloc.gc_wake.notify_one();
    }

    /// Invalidates a batch of buckets and makes that durable (W8). Returns how many became free.
    pub(crate) async fn refill(self: &Rc<Self>) -> Result<usize> {
        let batch = self.invalidate_batch();
        self.alloc.exhausted.set(batch.is_empty());
        if batch.is_empty() {
            return Ok(0);
        }
        if self.alloc.discard {
            self.discard_buckets(&batch).await;
        }
        self.write_prios().await?;
        let mut buckets = self.buckets.borrow_mut();
        for bucket in &batch {
            buckets.push_free(*bucket);
        }
        drop(buckets);
        self.alloc.changed.notify_all();
        Ok(batch.len())
    }

    fn invalidate_batch(&self) -> Vec<Bucket> {
        let mut buckets = self.buckets.borrow_mut();
        let n = self.alloc.batch.max(2 * self.alloc.prio_sets);
        let (mut chosen, blocked) = buckets.candidates(n, self.alloc.policy, self.rt.prng());
        chosen.retain(|bucket| buckets.invalidate(*bucket));
        drop(buckets);
        // A chain takes as many buckets as it has sets and gives the old ones back only to the next
        // round: a batch that small would run in place.
        if blocked > 0 && chosen.len() < n {
            self.request_gc();
        }
        chosen
    }

    /// Not for metadata buckets, and only when asked for: there are years of reports of lost priorities
    /// with it.
    async fn discard_buckets(&self, batch: &[Bucket]) {
        for bucket in batch {
            let start = Sector(self.layout.bucket_start(*bucket));
            let range = Extent::new(start, Sectors(self.layout.bucket_size.into()));
            if let Err(e) = self.ssd.discard(range).await {
                tracing::debug!(set = %self.uuid, bucket = bucket.0, error = %e, "discard failed");
                return;
            }
        }
    }

    /// Writes the generations and priorities of all buckets as a new chain, and an entry that names
    /// it. The old chain is free afterwards.
    pub(crate) async fn write_prios(self: &Rc<Self>) -> Result<()> {
        let n = self.alloc.prio_sets;
        let Some(mut grant) = self.try_grant(n, Class::Prio) else {
            let e = self.error(ErrorKind::NoSpace, Op::Write);
            let e = e.with(format!("no {n} buckets are left for the generations of all others"));
            self.fail(&e);
            return Err(e);
        };
        let chain: Vec<Bucket> = std::iter::from_fn(|| grant.take()).collect();
        let prios = self.buckets.borrow().prios();
        let (seq, old) = {
            let roots = self.roots.borrow();
            (roots.prio_seq + 1, roots.prio_chain.clone())
        };
        let sectors = self.layout.meta_sectors();
        let per_set = crate::format::Layout::prio_per_set(sectors);
        let mut next = old.first().copied().unwrap_or(Bucket(0));
        for (bucket, entries) in chain.iter().zip(prios.chunks(per_set)).rev() {
            let set = PrioSet { seq, version: 0, next, entries: entries.to_vec() };
            let bytes = set.encode(self.magic, sectors);
            self.write_meta(self.layout.bucket_start(*bucket), &bytes).await?;
            next = *bucket;
        }
        {
            let mut roots = self.roots.borrow_mut();
            roots.prio_chain = chain;
            roots.prio_seq = seq;
        }
        self.commit_roots().await?;
        let mut buckets = self.buckets.borrow_mut();
        buckets.made_durable(&prios);
        old.iter().for_each(|bucket| buckets.release(*bucket));
        Ok(())
    }
}
