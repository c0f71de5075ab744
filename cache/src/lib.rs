//! varve-cache: an SSD in front of a disk, in the kernel's bcache format.
//!
//! # bcache in ten minutes
//!
//! A *cache set* is one SSD (cache device) that holds stretches of several volumes: backing devices
//! with a superblock of their own, and flash-only volumes that live on the SSD alone.
//!
//! ```text
//! cache device    0        8            first_bucket                                       nbuckets
//!                 | (free) | superblock | journal ring | buckets: data, btree nodes, prios, uuids .. |
//! backing device  0        8            16 (data_offset)                                        end
//!                 | (free) | superblock | the volume: what the user sees ..                        |
//! ```
//!
//! - **Buckets** are the unit of allocation. Each has a *generation*: bumping it makes every pointer
//!   into the bucket *stale* at once, which is how clean data are evicted without touching the index.
//! - **The index** is a B+tree of *keys* `(volume, start..end) -> cache sector, generation, dirty?`.
//!   A key without a pointer says "nothing cached here" and exists to override older ones.
//! - **A node** is a log of sorted *sets* ([`btree`]); newer sets win. A new key never changes what is
//!   on disk, it is appended.
//! - **The journal** has the newest keys and the places of everything else: root, prio chain (the
//!   generations), uuid table (which volume has which number). There is no clean shutdown: every
//!   start is a recovery.
//!
//! # The life of one write (write-back)
//!
//! Data into an open bucket; key into the journal's buffer and into a leaf in memory; acknowledged,
//! or, if it asked for durability, after a journal entry with the key has been written behind a
//! flush. Later the leaf writes its open set, the journal entry is no longer needed, and the
//! background writer copies the data to the backing device and drops the dirty bit.
//!
//! # What a crash may leave
//!
//! Anything the order of writes allows: a torn journal entry at the end of the ring (ignored), sets
//! that miss keys of the live journal entries (replayed), generations on disk older than the true
//! ones (recovered from the tree, [`walk`]), data in buckets that no key names (free). What must
//! never be found is what [`check`] looks for; 54 rules, the kernel itself notices half of them.
//!
//! # Where to look
//!
//! | folder or file | what | knows |
//! |---|---|---|
//! | [`mod@format`] | bytes in, values out | no device, no task |
//! | [`btree`] `node iter insert verify` | one node in memory, every order check | no device, no task |
//! | `load ring walk` | reading metadata: superblocks, journal, prios, nodes | a device, read only |
//! | [`effective`] [`reader`] | what a set holds, and [`CacheView`]: the volume, read only | devices, read only |
//! | [`check`] [`show`] | the offline checker; what the command line shows | devices, read only |
//! | the rest | the living cache, see [`device`] | everything |
#![forbid(unsafe_code)]

mod btree;
pub mod check;
pub mod effective;
pub mod error;
pub mod format;
mod load;
pub mod reader;
mod ring;
pub mod show;
#[cfg(test)]
mod testset;
mod walk;

mod alloc;
mod alone;
mod attach;
mod bypass;
pub mod device;
mod fills;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod intent;
mod journal;
#[cfg(test)]
mod live_tests;
pub mod make;
#[cfg(any(test, feature = "measure"))]
pub mod measure;
mod mode;
pub mod open;
mod read;
mod recover;
mod register;
mod set;
pub mod status;
mod tasks;
mod volume;
mod writeback;

pub use alone::Alone;
pub use device::Cache;
pub use make::{Made, MakeError, MakeOptions, make};
pub use open::{OpenError, OpenOptions, WritebackOptions};
pub use reader::CacheView;
pub use status::Status;
