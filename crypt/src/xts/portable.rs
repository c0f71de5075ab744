//! Where there are no AES instructions that we know: the names of the fused engines, and none of them.

use super::Direction;
use crate::key::Key;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Isa {
    AesNi,
    Vaes256,
    Vaes512,
}

impl Isa {
    pub(super) const ALL: [Isa; 3] = [Isa::Vaes512, Isa::Vaes256, Isa::AesNi];

    pub(super) fn is_here(self) -> bool {
        false
    }

    pub(super) fn best() -> Option<Isa> {
        None
    }
}

/// Cannot be made here.
pub(super) enum Fused {}

impl Fused {
    pub(super) fn new(_: &Key, _: Isa) -> Option<Fused> {
        None
    }

    pub(super) fn isa(&self) -> Isa {
        match *self {}
    }

    pub(super) fn in_place(
        &self,
        _: Direction,
        _: impl Iterator<Item = u128>,
        _: usize,
        _: &mut [u8],
    ) {
        match *self {}
    }

    pub(super) fn encrypt_into(
        &self,
        _: impl Iterator<Item = u128>,
        _: usize,
        _: &[u8],
        _: &mut [u8],
    ) {
        match *self {}
    }
}
