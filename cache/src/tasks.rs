//! What a running set does by itself: the journal's delay, leaves that wait too long, buckets, gc.
//!
//! Every task ends when the set stops, fails or is abandoned, and never in the middle of something.

use std::rc::Rc;
use std::time::Duration;

use varve_block::sync::{Either, select};
use varve_block::{BlockDevice, Instant, Result, Task};

use crate::set::Set;

/// Leaves are written at the latest so long after they became dirty.
const LEAF_AGE_MAX: Duration = Duration::from_secs(30);

impl<S: BlockDevice> Set<S> {
    /// Starts the background of a set.
    pub(crate) fn start(self: &Rc<Self>, journal_delay: Duration) -> Vec<Task<()>> {
        vec![
            self.rt.spawn(Rc::clone(self).allocator_task()),
            self.rt.spawn(Rc::clone(self).gc_task()),
            self.rt.spawn(Rc::clone(self).journal_task(journal_delay)),
            self.rt.spawn(Rc::clone(self).age_task()),
        ]
    }

    /// Whether the time went by (and the set still runs).
    pub(crate) async fn pause(&self, d: Duration) -> bool {
        let slept = select(self.rt.sleep(d), self.health.changed.notified()).await;
        matches!(slept, Either::Left(())) && self.health.running()
    }

    /// Writes the open entry some time after it got its first key.
    async fn journal_task(self: Rc<Self>, delay: Duration) {
        while self.health.running() {
            self.journal.pending.notified().await;
            if self.pause(delay).await && self.commit_all().await.is_err() {
                break; // the set failed
            }
        }
    }

    async fn age_task(self: Rc<Self>) {
        while self.pause(LEAF_AGE_MAX / 4).await {
            let now = self.rt.now();
            let before = Instant(
                now.0.saturating_sub(LEAF_AGE_MAX.as_nanos().try_into().unwrap_or(u64::MAX)),
            );
            if self.write_old_leaves(before).await.is_err() {
                break;
            }
        }
    }

    /// Makes everything in memory durable: leaves, then an entry that needs no other.
    pub(crate) async fn write_everything(self: &Rc<Self>) -> Result<()> {
        for leaf in self.nodes.all_unwritten() {
            self.write_node(&leaf).await?;
        }
        self.commit_roots().await?;
        self.ssd.flush().await.inspect_err(|e| self.fail(e))
    }

    /// Tells the tasks to end when they are at it.
    pub(crate) fn stop_tasks(&self) {
        self.health.stopping.set(true);
        self.health.changed.notify_all();
        self.journal.pending.notify_all();
        self.journal.pending.notify_one();
        self.alloc.wanted.notify_one();
        self.alloc.gc_wake.notify_one();
    }
}
