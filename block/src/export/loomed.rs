//! The gate over loom's atomics: the interleavings of a small world, tried one by one.

mod atomics {
    pub(super) use loom::sync::atomic::{AtomicU64, Ordering};
    pub(super) use loom::sync::{Mutex, MutexGuard};
}
#[expect(clippy::duplicate_mod, reason = "the same text over other atomics is the point")]
#[path = "gate.rs"]
#[expect(dead_code, reason = "the model needs less of it than the export")]
mod gate;

use gate::Gate;
use loom::sync::atomic::{AtomicBool, Ordering::SeqCst};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Wake, Waker};

/// A waker that a thread of the model can wait on.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Wake for Bell {
    fn wake(self: std::sync::Arc<Self>) {
        *self.rung.lock().unwrap() = true;
        self.changed.notify_one();
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let bell = std::sync::Arc::new(Bell::default());
    let waker = Waker::from(std::sync::Arc::clone(&bell));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return value;
        }
        let mut rung = bell.rung.lock().unwrap();
        while !*rung {
            rung = bell.changed.wait(rung).unwrap();
        }
        *rung = false;
    }
}

/// Requests from two lanes beside somebody who quiesces. A request inside a quiet gate fails the
/// assertion; one that nobody lets in, or a closer whom nobody tells, is a deadlock to loom.
#[test]
fn nobody_is_inside_a_quiet_gate_and_everybody_gets_through() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let gate = Arc::new(Gate::default());
        let quiet = Arc::new(AtomicBool::new(false));
        let lanes: Vec<_> = (0..2)
            .map(|_| {
                let (gate, quiet) = (Arc::clone(&gate), Arc::clone(&quiet));
                thread::spawn(move || {
                    let pass = block_on(gate.enter());
                    assert!(!quiet.load(SeqCst), "inside a quiet gate");
                    drop(pass);
                })
            })
            .collect();
        let mut closed = false;
        block_on(gate.close(&mut closed));
        quiet.store(true, SeqCst);
        assert_eq!(gate.inside(), 0);
        quiet.store(false, SeqCst);
        gate.open();
        for lane in lanes {
            lane.join().expect("no assertion failed");
        }
    });
}
