//! Disk encryption as Linux does it: dm-crypt mappings, LUKS1 and LUKS2.

mod af;
mod cipher;
mod error;
mod hash;
mod key;
#[cfg(test)]
mod testing;
mod xts;

pub use cipher::{Chain, CipherSpec, IvMode};
pub use error::{Corrupt, Error, Result, Skipped};
pub use hash::Hash;
pub use key::Key;
pub use xts::{Engine, SectorSize, Xts, XtsParams};
