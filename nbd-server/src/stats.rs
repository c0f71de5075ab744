//! What a server has seen, in numbers. Counters only ever grow; a reader takes two snapshots and
//! looks at the difference.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The counters of one server, shared by its lanes.
        #[derive(Default, Debug)]
        pub struct Stats { $(pub(crate) $name: Counter,)* }

        /// The counters at one moment.
        #[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
        pub struct Snapshot { $($(#[$doc])* pub $name: u64,)* }

        impl Stats {
            /// The counters now.
            pub fn snapshot(&self) -> Snapshot {
                Snapshot { $($name: self.$name.get(),)* }
            }
        }
    };
}

counters! {
    /// Connections accepted, those closed at once included.
    connections,
    /// Connections closed at once because there were too many.
    connections_refused,
    /// Connections that are being served or negotiated now.
    connections_open,
    /// Handshakes that broke the protocol, a limit or the deadline.
    handshakes_failed,
    /// Requests executed.
    requests,
    /// Requests answered with an error by looking at them.
    requests_refused,
    /// Requests that failed in the device.
    requests_failed,
    /// Payload of successful reads.
    read_bytes,
    /// Payload of successful writes.
    write_bytes,
    /// Flushes asked for.
    flushes,
    /// Streams closed because they could not be trusted any more.
    streams_broken,
    /// Connections closed because the peer stopped inside a frame or stopped reading.
    stalls,
    /// Receive operations: with `requests`, how well they come in batches.
    receives,
    /// Send operations: with `requests`, how well replies leave in batches.
    sends,
}

/// One number, written by many.
#[derive(Default, Debug)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// For gauges.
    pub(crate) fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
