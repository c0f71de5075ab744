//! Another key for a volume that holds data: LUKS2 re-encryption, offline, crash-safe, resumable.
//!
//! ```text
//! forward    | new key ........ | hot zone | old key ...................... |
//! backward   | old key ...................... | hot zone | new key ........ |
//!                                 ^ at most one; both keys are needed to tell what is in it
//! ```
//!
//! # One step
//!
//! 1. The old ciphertext of the next zone is read, and what recovery will need of it (a hash per block, or
//!    all of it) is written into the area of the re-encryption keyslot and flushed.
//! 2. The header says that the zone is hot (`in-reencryption`); both copies, flushed.
//! 3. The zone is written under the new key and flushed.
//! 4. The header moves the boundary behind the zone; both copies, flushed.
//!
//! A cut before 2 has changed nothing. A cut behind it leaves a zone in which each block is old or new:
//! [`recover`] finds out which and finishes it. After 4 the zone is an ordinary part of the volume.
//!
//! # What recovery can tell
//!
//! *journal*: the old ciphertext is there and is converted again, whatever the zone holds. *checksum*: a
//! block whose hash is the stored one is old. One that is not is *proven* new, by decrypting it with the
//! new key, encrypting that with the old one and hashing the result; a block of which a device wrote only
//! some of its 512-byte sectors is found in the same way, by trying which sectors are old. What fits
//! nothing is an error that names the place. *none*: nobody can know. The zone is still marked before it
//! is touched, so that a cut is seen and not taken for a boundary.
//!
//! # Whose metadata are believed
//!
//! Somebody without a key could write metadata that ask for decryption. Nothing is written, and nothing is
//! decrypted, before a digest over all parameters and both volume keys was recomputed ([`digest`], check
//! 42). One state needs no such proof: all data are already under the new key and only the header has to be
//! cleaned up, which is where the reference leaves a volume when it is killed at its last writes, with the
//! old key gone.

mod attached;
mod convert;
mod digest;
mod keys;
mod online;
mod plan;
mod position;
mod recover;
mod run;
mod segments;
mod shift;
mod start;
mod state;

pub use attached::{export_header, is_export};
pub use online::Online;
pub use plan::{Protect, Start};
pub use run::{Devices, Ended, Progress, Reencryption, status};
pub use start::start;
pub use state::{Direction, Mode, Status};

pub(crate) use online::open;
pub(crate) use state::describe;

#[cfg(test)]
mod tests;
