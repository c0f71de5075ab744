//! The parking handshake over loom's atomics: the interleavings of a small world, tried one by one.

mod atomics {
    pub(crate) use loom::sync::atomic::{AtomicU8, Ordering};
}
#[expect(clippy::duplicate_mod, reason = "the same text over other atomics is the point")]
#[path = "parking.rs"]
mod parking;

use loom::sync::{Arc, Condvar, Mutex};
use parking::Parking;

/// What an eventfd is to the engines: a wake-up that waits until it is taken.
#[derive(Default)]
struct Event {
    set: Mutex<bool>,
    changed: Condvar,
}

struct World {
    parking: Parking,
    inbox: Mutex<u32>,
    event: Event,
}

impl World {
    fn send(&self) {
        *self.inbox.lock().unwrap() += 1;
        if self.parking.notify() {
            *self.event.set.lock().unwrap() = true;
            self.event.changed.notify_one();
        }
    }

    /// The lane's loop, until `want` messages have come.
    fn run(&self, want: u32) {
        let mut got = 0;
        while got < want {
            if self.parking.collect() {
                got += std::mem::take(&mut *self.inbox.lock().unwrap());
            } else if self.parking.try_park() {
                let mut set = self.event.set.lock().unwrap();
                while !*set {
                    set = self.event.changed.wait(set).unwrap();
                }
                *set = false;
                drop(set);
                self.parking.resume();
            }
        }
    }
}

/// A lost wake-up leaves the lane asleep over a full inbox, which loom reports as a deadlock.
#[test]
fn no_interleaving_loses_a_wakeup() {
    let mut model = loom::model::Builder::new();
    // Three preemptions at the worst places; without a bound it takes half a minute and finds no more.
    model.preemption_bound = Some(3);
    model.check(|| {
        let world = Arc::new(World {
            parking: Parking::new(),
            inbox: Mutex::new(0),
            event: Event::default(),
        });
        let senders: Vec<_> = (0..2)
            .map(|_| {
                let world = Arc::clone(&world);
                loom::thread::spawn(move || world.send())
            })
            .collect();
        world.run(2);
        for sender in senders {
            sender.join().unwrap();
        }
    });
}
