//! Real time, for waiting on real processes. The only place in the harness that looks at a clock:
//! code under test takes its time from `Rt`.

use std::time::{Duration, Instant};

/// A moment after which waiting is given up.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "real processes run in real time")]
    pub fn after(limit: Duration) -> Self {
        Deadline(Instant::now() + limit)
    }

    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "real processes run in real time")]
    pub fn passed(self) -> bool {
        Instant::now() >= self.0
    }
}

#[expect(clippy::disallowed_methods, reason = "real processes run in real time")]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Asks every few milliseconds until there is an answer; `None` when the limit passed without one.
pub fn wait_for<T>(limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Deadline::after(limit);
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if deadline.passed() {
            return None;
        }
        pause(Duration::from_millis(5));
    }
}
