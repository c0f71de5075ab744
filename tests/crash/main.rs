//! `kill -9` in the middle of writes: what a client was told is durable must be there afterwards.
//!
//! The power cuts, which lose more than a kill does, are in `sim` (every ordering, simulated) and in `vm`
//! (a real kernel's page cache and queues).

mod kill;
mod mounted;
