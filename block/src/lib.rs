//! The seam of Varve: one trait, [`BlockDevice`], and what every layer needs to stand on it.
//!
//! ```text
//!      NBD client              /dev/ublkbN
//!          +-----------+------------+
//!                      v
//!                   Export            order, flush groups, read-modify-write   (this crate)
//!                   Crypt<D>          LUKS, dm-crypt                           (varve-crypt)
//!                   Remote<D>         the hop to the lane that owns the state  (this crate)
//!                   Cache<S, B>       bcache                                   (varve-cache)
//!                    |     |
//!               SSD: S     disk: B    files and devices through the ring, RAM, simulation
//! ```
//!
//! # The crash contract
//!
//! Every device below an export keeps these six promises and no others; every layer may rely on
//! them and must pass them on. The full text stands at [`BlockDevice`].
//!
//! 1. **Whole or error.** `Ok` means every byte moved; short transfers end inside a device.
//! 2. **Order is yours.** Two requests in flight that overlap have no order. Await one before the
//!    other starts, or hold a [`sync::RangeLock`].
//! 3. **Done is not durable.** Only a flush that *started* after a write *finished*, or `Fua`, makes
//!    it survive a crash.
//! 4. **Damage is per block.** A crash leaves each block with its last durable version or any later
//!    one, or unreadable; nobody else's block moves.
//! 5. **A failed flush is final.** What was promised may be lost, and asking again could lie.
//! 6. **Drop is allowed.** A dropped future may still act. Buffers are owned, so nothing dangles.
//!
//! # Who owns memory
//!
//! A request carries its buffer down and brings it back up: [`IoBuf`] has one owner, so a read's
//! buffer is private until it is complete (nobody can look at half-decrypted bytes), and a layer
//! that encrypts in place cannot be handed the same bytes twice. What must go to two places is
//! frozen into an [`IoView`] first. Each layer has its own [`BufPool`] and waits only on that.
//!
//! # Who owns time
//!
//! [`rt::Rt`]: clock, timers, chance, tasks, threads. Under [`rt::Sim`] all of it follows from one
//! seed.

mod buf;
pub mod dev;
mod device;
mod error;
pub mod export;
pub mod rt;
pub mod sum;
pub mod sync;
mod units;

pub use buf::{ALIGN, BufPool, Data, IoBuf, IoView, MAX_LEN};
pub use device::{BlockDevice, Durability, Dyn, ExtentStatus, Geometry, Zero};
pub use error::{DevId, Error, ErrorKind, Op, Result, Source, chain};
pub use export::{Export, ExportOptions, ExportShared};
pub use rt::{Instant, LaneId, Prng, Rt, Sim, Task};
pub use units::{Bytes, Extent, SECTOR_SHIFT, SECTOR_SIZE, Sector, Sectors};
