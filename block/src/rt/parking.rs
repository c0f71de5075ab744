//! The handshake between a lane that goes to sleep and those who have something for it.
//!
//! ```text
//!             notify                    notify (and unpark)
//!   RUNNING ----------> NOTIFIED <---------------- PARKED
//!      ^ ^-----collect-----'  (try_park fails here)   ^
//!      |  `-------------------resume------------------|
//!      `--------------------try_park------------------'
//! ```
//!
//! Whoever has something puts it into the inbox *first* and notifies *then*. The lane collects
//! (`NOTIFIED` to `RUNNING`) first and looks into the inbox then. So whatever is put in after a look
//! leaves `NOTIFIED` behind, and the lane cannot park over it.

use super::atomics::{AtomicU8, Ordering};

const RUNNING: u8 = 0;
const PARKED: u8 = 1;
const NOTIFIED: u8 = 2;

pub(crate) struct Parking(AtomicU8);

impl Parking {
    pub(crate) fn new() -> Parking {
        Parking(AtomicU8::new(RUNNING))
    }

    /// Something was put in. True: the lane sleeps, and the caller must wake it (nobody else will).
    pub(crate) fn notify(&self) -> bool {
        self.0.swap(NOTIFIED, Ordering::AcqRel) == PARKED
    }

    /// Whether something was put in since the last time; the caller looks at the inbox next.
    pub(crate) fn collect(&self) -> bool {
        self.0.load(Ordering::Acquire) == NOTIFIED
            && self.0.swap(RUNNING, Ordering::AcqRel) == NOTIFIED
    }

    /// The lane wants to sleep. False: something was put in.
    pub(crate) fn try_park(&self) -> bool {
        self.0.compare_exchange(RUNNING, PARKED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The lane is awake, for whatever reason; until it parks again nobody needs to wake it.
    pub(crate) fn resume(&self) {
        // When it fails, somebody has notified: `collect` will see it.
        let _ = self.0.compare_exchange(PARKED, RUNNING, Ordering::AcqRel, Ordering::Acquire);
    }
}
