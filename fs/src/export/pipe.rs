//! From the lane, which reads, to workers, which write: batches in order, one being written while the next
//! is being read.
//!
//! Most of the time goes to the host, which makes small files one call after the other. So a batch is written
//! by several sinks beside each other: a file, link or device by the one that its path says, so that two of
//! one name stay in order; what depends on other files (further names of a file, a folder's own times) when
//! all of them are done.

use super::sink::{Manner, Op, Outcome, Sink, Spot};
use std::hash::{DefaultHasher, Hash, Hasher};
use varve_block::Rt;
use varve_block::rt::Task;
use varve_block::sync::join;

/// A batch is handed over at this many bytes of content, or at this many operations: what is in memory
/// at any time is two batches and a part.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_OPS: usize = 512;

/// What is done by each of the sinks, and what the first one does afterwards.
#[derive(Default)]
struct Batch {
    beside: [Vec<Op>; 2],
    after: Vec<Op>,
    ops: usize,
    bytes: usize,
}

pub(crate) struct Pipe {
    rt: Rt,
    batch: Batch,
    /// Who has the file that is open.
    open: usize,
    idle: Option<[Sink; 2]>,
    running: Option<Task<[Sink; 2]>>,
    outcomes: Vec<Outcome>,
}

impl Pipe {
    pub(crate) fn new(rt: &Rt, manner: Manner) -> Pipe {
        Pipe {
            rt: rt.clone(),
            batch: Batch::default(),
            open: 0,
            idle: Some([Sink::new(manner), Sink::new(manner)]),
            running: None,
            outcomes: Vec::new(),
        }
    }

    pub(crate) async fn push(&mut self, op: Op) {
        let Batch { beside, after, ops, bytes } = &mut self.batch;
        if let Op::Write(part) = &op {
            *bytes += part.weight();
        }
        *ops += 1;
        match &op {
            Op::Create { spot, .. } => {
                self.open = whose(spot);
                beside[self.open].push(op);
            }
            Op::Write(_) | Op::Close { .. } => beside[self.open].push(op),
            Op::Symlink { spot, .. } | Op::Special { spot, .. } => beside[whose(spot)].push(op),
            Op::Link { .. } | Op::Leave { .. } => after.push(op),
        }
        if *bytes >= BATCH_BYTES || *ops >= BATCH_OPS {
            self.hand_over().await;
        }
    }

    async fn hand_over(&mut self) {
        self.settle().await;
        let Batch { beside: [ops, others], after, .. } = std::mem::take(&mut self.batch);
        let [mut one, mut two] =
            self.idle.take().expect("the sinks are idle once a batch was settled");
        let rt = self.rt.clone();
        self.running = Some(self.rt.spawn(async move {
            let first = rt.offload(move || {
                one.run(ops);
                one
            });
            let second = rt.offload(move || {
                two.run(others);
                two
            });
            let (mut one, mut two) = join(first, second).await;
            if after.is_empty() && !one.is_full() && !two.is_full() {
                return [one, two];
            }
            rt.offload(move || {
                // No room for one is no room for both.
                if two.is_full() {
                    one.give_up();
                }
                one.run(after);
                if one.is_full() {
                    two.give_up();
                }
                [one, two]
            })
            .await
        }));
    }

    /// Waits for the batch that is being written.
    async fn settle(&mut self) {
        if let Some(running) = self.running.take() {
            let mut sinks = running.await;
            for sink in &mut sinks {
                self.outcomes.append(&mut sink.take_outcomes());
            }
            self.idle = Some(sinks);
        }
    }

    /// Writes everything that was pushed.
    pub(crate) async fn finish(&mut self) {
        self.hand_over().await;
        self.settle().await;
    }

    /// What became of operations since the last call.
    pub(crate) fn outcomes(&mut self) -> Vec<Outcome> {
        std::mem::take(&mut self.outcomes)
    }
}

/// The sink of what has this path: the same one each time.
fn whose(spot: &Spot) -> usize {
    let mut hasher = DefaultHasher::new();
    spot.path.hash(&mut hasher);
    usize::from(hasher.finish() & 1 == 1)
}
