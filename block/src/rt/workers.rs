//! Threads for CPU-heavy work, so that a key derivation does not stop a lane.

use crossbeam_channel::{Sender, unbounded};
use std::sync::OnceLock;

type Work = Box<dyn FnOnce() + Send>;

/// Queues `work` for the pool, which is started on first use: one thread per core.
pub(super) fn submit(work: Work) {
    static POOL: OnceLock<Sender<Work>> = OnceLock::new();
    let pool = POOL.get_or_init(|| {
        let (tx, rx) = unbounded::<Work>();
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        for n in 0..threads {
            let rx = rx.clone();
            std::thread::Builder::new()
                .name(format!("varve-work-{n}"))
                .spawn(move || {
                    for work in rx {
                        work();
                    }
                })
                .expect("the host can start a thread");
        }
        tx
    });
    pool.send(work).expect("workers live as long as the process");
}
