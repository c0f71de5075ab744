//! From the lane, which reads, to a worker, which writes: batches in order, one being written while
//! the next is being read.

use super::sink::{Manner, Op, Outcome, Sink};
use varve_block::Rt;
use varve_block::rt::Task;

/// A batch is handed over at this many bytes of content, or at this many operations: what is in memory
/// at any time is two batches and a part.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_OPS: usize = 512;

pub(crate) struct Pipe {
    rt: Rt,
    ops: Vec<Op>,
    bytes: usize,
    idle: Option<Sink>,
    running: Option<Task<Sink>>,
    outcomes: Vec<Outcome>,
}

impl Pipe {
    pub(crate) fn new(rt: &Rt, manner: Manner) -> Pipe {
        Pipe {
            rt: rt.clone(),
            ops: Vec::new(),
            bytes: 0,
            idle: Some(Sink::new(manner)),
            running: None,
            outcomes: Vec::new(),
        }
    }

    pub(crate) async fn push(&mut self, op: Op) {
        if let Op::Write(part) = &op {
            self.bytes += part.weight();
        }
        self.ops.push(op);
        if self.bytes >= BATCH_BYTES || self.ops.len() >= BATCH_OPS {
            self.hand_over().await;
        }
    }

    async fn hand_over(&mut self) {
        self.settle().await;
        let ops = std::mem::take(&mut self.ops);
        self.bytes = 0;
        let mut sink = self.idle.take().expect("the sink is idle once a batch was settled");
        let rt = self.rt.clone();
        self.running = Some(self.rt.spawn(async move {
            rt.offload(move || {
                sink.run(ops);
                sink
            })
            .await
        }));
    }

    /// Waits for the batch that is being written.
    async fn settle(&mut self) {
        if let Some(running) = self.running.take() {
            let mut sink = running.await;
            self.outcomes.append(&mut sink.take_outcomes());
            self.idle = Some(sink);
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
