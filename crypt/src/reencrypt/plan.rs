//! What is asked for.

use std::sync::Arc;

use super::state::{Direction, Mode};
use crate::cipher::CipherSpec;
use crate::hash::Hash;
use crate::key::Key;
use crate::manage::Protection;
use crate::xts::SectorSize;

/// How a hot zone is protected against a cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protect {
    /// Not at all: a cut loses up to 20 MiB. Offline only, and by name.
    None,
    /// By a hash of every block.
    Checksum(Hash),
    /// By a copy of the old ciphertext.
    Journal,
}

/// A re-encryption to be begun.
#[derive(Clone, Debug)]
pub struct Start {
    pub mode: Mode,
    pub direction: Direction,
    pub protect: Protect,
    /// The new cipher.
    pub cipher: CipherSpec,
    /// The new volume key.
    pub key_bits: u32,
    /// `None`: that of the volume; 512 for plain data.
    pub sector_size: Option<SectorSize>,
    /// How new keyslots are derived.
    pub protection: Protection,
    /// Secrets of the volume. Every one that opens a slot gets a slot for the new key.
    pub secrets: Vec<Arc<Key>>,
    /// Slots that no given secret opens are lost with the old key; without this they stop the start.
    pub drop_other_keys: bool,
    /// Encrypt with the header on the disk itself: the last bytes of the payload, so many, are given up.
    /// Half of them become header, the other half is needed on the way.
    pub reduce: Option<u64>,
}

impl Start {
    /// Another key for a volume, the other choices being the usual ones.
    pub fn new(secrets: Vec<Arc<Key>>, protection: Protection) -> Start {
        Start {
            mode: Mode::Reencrypt,
            direction: Direction::Forward,
            protect: Protect::Checksum(Hash::Sha256),
            cipher: CipherSpec::parse("aes-xts-plain64").expect("a well-formed cipher"),
            key_bits: 512,
            sector_size: None,
            protection,
            secrets,
            drop_other_keys: false,
            reduce: None,
        }
    }

    /// A payload that moves can be done from one end only.
    pub(super) fn direction_of(&self, moves: bool) -> Direction {
        match self.mode {
            Mode::Encrypt if moves => Direction::Backward,
            Mode::Decrypt if moves => Direction::Forward,
            _ => self.direction,
        }
    }
}
