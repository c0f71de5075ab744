//! Waiting, in the shapes the layers need.
//!
//! The `Local*` types belong to one lane and cost no atomics; [`RangeLock`], [`oneshot`] and
//! [`mailbox`] may be shared between lanes. All queues are first come, first served: nobody starves
//! behind a stream of luckier requests. Guards may be held across `.await`; that is what they are
//! for. A `RefCell` borrow may not.

mod combine;
mod local;
mod mail;
mod range;

pub use combine::{Either, join, join_all, poll_once, select, try_join_all};
pub use local::{
    LocalMutex, LocalMutexGuard, LocalReadGuard, LocalRwLock, LocalSemaphore, LocalWriteGuard,
    Notify, Permit,
};
pub use mail::{Closed, MailReceiver, MailSender, OneReceiver, OneSender, mailbox, oneshot};
pub use range::{RangeGuard, RangeLock};
