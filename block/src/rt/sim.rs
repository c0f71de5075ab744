//! The seeded world: all lanes on one thread, virtual time, and a seed that decides who runs next.
//!
//! Any ready task of any lane may be the next to run; time moves only when nobody can. Twice the
//! same seed is twice the same run. A world in which nobody can run and no timer is set will never
//! move again: that is a deadlock, and it is an error with the step it happened at.

use super::executor::{Driver, Lane, LaneId, LaneShared};
use super::{Instant, Prng, Rt};
use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

/// Nobody can run and nothing will happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("deadlock in the world of seed {seed} after {steps} steps at {at_ns} ns")]
pub struct Deadlock {
    pub seed: u64,
    pub steps: u64,
    pub at_ns: u64,
}

/// How a world is made.
#[derive(Clone, Copy, Debug)]
pub struct Sim {
    seed: u64,
    lanes: usize,
    max_steps: u64,
}

struct Clock(Cell<Instant>);

/// Simulated time starts at this date, so that stamps on disk are plausible and constant.
const EPOCH_UNIX_S: u64 = 1_700_000_000;

impl Driver for Clock {
    fn now(&self) -> Instant {
        self.0.get()
    }

    fn unix_time(&self) -> u64 {
        EPOCH_UNIX_S + self.0.get().0 / 1_000_000_000
    }

    fn has_threads(&self) -> bool {
        false
    }
}

impl Sim {
    pub fn new(seed: u64) -> Sim {
        Sim { seed, lanes: 1, max_steps: u64::MAX }
    }

    /// Worlds with several lanes (still on one thread).
    pub fn lanes(mut self, lanes: usize) -> Sim {
        self.lanes = lanes.max(1);
        self
    }

    /// Gives up (as a deadlock) after this many steps: for code that may spin for ever.
    pub fn max_steps(mut self, steps: u64) -> Sim {
        self.max_steps = steps;
        self
    }

    /// Runs `main` on lane 0 to its end, then drops the world with everything in it.
    ///
    /// # Panics
    /// On a deadlock, naming the seed.
    pub fn run<T: 'static, F: Future<Output = T> + 'static>(self, main: impl FnOnce(Rt) -> F) -> T {
        self.try_run(main).unwrap_or_else(|deadlock| panic!("{deadlock}"))
    }

    pub fn try_run<T: 'static, F: Future<Output = T> + 'static>(
        self,
        main: impl FnOnce(Rt) -> F,
    ) -> Result<T, Deadlock> {
        let chance = Prng::new(self.seed);
        let clock = Rc::new(Clock(Cell::new(Instant(0))));
        let shared: Arc<[_]> = (0..self.lanes).map(|_| LaneShared::new(Box::new(|| ()))).collect();
        let lanes: Vec<Rc<Lane>> = (0..self.lanes)
            .map(|n| {
                let driver: Rc<dyn Driver> = clock.clone();
                Lane::new(LaneId(n), driver, Arc::clone(&shared), chance.next_u64())
            })
            .collect();
        let rt = Rt::from_lane(Rc::clone(&lanes[0]));
        let main = rt.spawn(main(rt.clone()));
        let outcome = self.drive(&lanes, &clock, &chance, || main.is_finished());
        // Until nothing is left: a dropping task may wake or spawn on another lane.
        for lane in lanes.iter().chain(&lanes) {
            lane.drop_tasks();
        }
        outcome?;
        let value = crate::sync::poll_once(std::pin::pin!(main));
        match value {
            std::task::Poll::Ready(value) => Ok(value),
            std::task::Poll::Pending => unreachable!("main was finished"),
        }
    }

    fn drive(
        self,
        lanes: &[Rc<Lane>],
        clock: &Clock,
        chance: &Prng,
        done: impl Fn() -> bool,
    ) -> Result<(), Deadlock> {
        let mut steps = 0u64;
        while !done() {
            let deadlock = || Deadlock { seed: self.seed, steps, at_ns: clock.now().0 };
            let ready: usize = lanes.iter().map(|l| l.ready_len()).sum();
            if ready == 0 {
                let next = lanes.iter().filter_map(|l| l.next_deadline()).min();
                clock.0.set(clock.now().max(next.ok_or_else(deadlock)?));
                lanes.iter().for_each(|l| l.fire_timers(clock.now()));
                continue;
            }
            if steps >= self.max_steps {
                return Err(deadlock());
            }
            steps += 1;
            let mut n = chance.index(ready);
            for lane in lanes {
                let len = lane.ready_len();
                if n < len {
                    lane.run_nth(n);
                    break;
                }
                n -= len;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::time::Duration;

    fn trace(seed: u64) -> Vec<(u32, u64)> {
        let log = Rc::new(RefCell::new(Vec::new()));
        let out = Rc::clone(&log);
        Sim::new(seed).run(move |rt| async move {
            let tasks: Vec<_> = (0..8u32)
                .map(|n| {
                    let (rt, log) = (rt.clone(), Rc::clone(&log));
                    let task_rt = rt.clone();
                    rt.spawn(async move {
                        for _ in 0..3 {
                            let ns = task_rt.prng().below(1000);
                            task_rt.sleep(Duration::from_nanos(ns)).await;
                            log.borrow_mut().push((n, task_rt.now().0));
                        }
                    })
                })
                .collect();
            for t in tasks {
                t.await;
            }
        });
        Rc::try_unwrap(out).expect("the world is gone").into_inner()
    }

    #[test]
    fn a_seed_is_a_world_and_another_seed_another() {
        assert_eq!(trace(1), trace(1));
        assert_ne!(trace(1), trace(2));
    }

    #[test]
    fn a_deadlock_is_named() {
        let stuck = Sim::new(3).try_run(|_| std::future::pending::<()>());
        assert_eq!(stuck.map_err(|d| d.seed), Err(3));
    }

    #[test]
    fn lanes_talk_and_a_cancelled_task_is_gone() {
        let got = Sim::new(9).lanes(3).run(|rt| async move {
            let (tx, mut rx) = rt.mailbox::<usize>(1);
            for lane in 0..rt.lanes() {
                let tx = tx.clone();
                rt.spawn_on(LaneId(lane), move |rt| async move {
                    rt.sleep(Duration::from_micros(5)).await;
                    tx.send(rt.lane().0).await.expect("main listens");
                });
            }
            drop(tx);
            let guard = Rc::new(());
            let held = Rc::clone(&guard);
            let sleeper = rt.clone();
            let task = rt.spawn(async move {
                let _held = held;
                sleeper.sleep(Duration::from_secs(1_000_000)).await;
            });
            rt.yield_now().await;
            task.cancel().await;
            assert_eq!(Rc::strong_count(&guard), 1);
            let mut seen = Vec::new();
            while let Some(lane) = rx.recv().await {
                seen.push(lane);
            }
            seen.sort_unstable();
            assert_eq!(rt.offload(|| 40 + 2).await, 42);
            seen
        });
        assert_eq!(got, [0, 1, 2]);
    }
}
