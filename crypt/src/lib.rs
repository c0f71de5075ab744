//! Disk encryption as Linux does it: dm-crypt mappings, LUKS1 and LUKS2.

mod af;
mod cipher;
mod create;
mod device;
mod dump;
mod error;
mod format;
mod hash;
mod header;
mod io;
mod kdf;
mod key;
mod keyslot;
mod plain;
#[cfg(test)]
mod testing;
mod unlock;
mod volume;
mod xts;

pub use cipher::{Chain, CipherSpec, IvMode};
pub use create::{FormatOptions, LuksVersion, Plan, Step, format};
pub use device::{Crypt, CryptOptions, VolumeHandle};
#[cfg(any(test, feature = "mutations"))]
pub use device::{Mutation, Observer};
pub use error::{Corrupt, Error, Result, Skipped};
pub use format::luks1::{Luks1, Luks1Slot};
pub use format::luks2::{HeaderCopy, Luks2};
pub use format::metadata::{
    Config, Digest, DigestKind, Keyslot, KeyslotKind, Luks2Slot, Metadata, Priority, Segment,
    SegmentKind, SlotKdf, Token,
};
pub use hash::Hash;
pub use header::{HEAD_LEN, Header};
pub use io::Fill;
pub use kdf::{
    ARGON2_MEMORY_MAX_KIB, ARGON2_MEMORY_MIN_KIB, ARGON2_TIME_MIN, Argon2Kind, Clock, Cost, Kdf,
    Limits, PBKDF2_ITERATIONS_MIN, Pbkdf,
};
pub use key::Key;
pub use plain::PlainSpec;
pub use unlock::{
    TestReport, UnlockOptions, test, unlock, unlock_detached, unlock_with_volume_key,
};
pub use volume::{MapOptions, Mapping, Volume, VolumeKind};
pub use xts::{Engine, SectorSize, Xts, XtsParams};
