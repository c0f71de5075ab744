//! One error for the engine: what kind, where, and a sentence for people.

use crate::units::Logical;
use crate::verify::{Corrupt, SuperFault};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can act on. Front ends map it to an errno in one place.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ErrorKind {
    /// A device failed, on every copy there is.
    Io,
    /// Bytes were read, and they are wrong, on every copy there is.
    Corrupt,
    NotFound,
    NotADirectory,
    IsADirectory,
    /// Too many symbolic links in a path.
    Loop,
    /// The caller's arguments make no sense together.
    Invalid,
    /// This file system needs something that the engine does not do.
    Unsupported,
    /// There is something already, and nobody said to overwrite it.
    Exists,
    /// The device is too small.
    NoSpace,
}

/// Where it went wrong, for programs; the message says it too.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Place {
    /// Tree id.
    pub root: Option<u64>,
    pub inode: Option<u64>,
    /// Byte in the file.
    pub offset: Option<u64>,
    pub logical: Option<Logical>,
}

#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub kind: ErrorKind,
    pub place: Place,
    pub message: String,
    #[source]
    pub source: Option<varve_block::Source>,
}

impl Error {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, place: Place::default(), message: message.into(), source: None }
    }

    pub(crate) fn at(mut self, place: Place) -> Error {
        self.place = place;
        self
    }

    pub(crate) fn because(mut self, source: impl Into<varve_block::Source>) -> Error {
        self.source = Some(source.into());
        self
    }

    pub(crate) fn corrupt(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Corrupt, message)
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Unsupported, message)
    }
}

impl From<Box<Corrupt>> for Error {
    fn from(corrupt: Box<Corrupt>) -> Error {
        let place =
            Place { root: Some(corrupt.root), logical: Some(corrupt.block), ..Place::default() };
        Error::corrupt(corrupt.message.clone()).at(place).because(corrupt)
    }
}

impl From<SuperFault> for Error {
    fn from(fault: SuperFault) -> Error {
        Error::corrupt(fault.to_string()).because(fault)
    }
}

impl From<varve_block::Error> for Error {
    fn from(error: varve_block::Error) -> Error {
        let kind = match error.kind {
            varve_block::ErrorKind::Corrupt => ErrorKind::Corrupt,
            varve_block::ErrorKind::NoSpace => ErrorKind::NoSpace,
            varve_block::ErrorKind::Unsupported => ErrorKind::Unsupported,
            _ => ErrorKind::Io,
        };
        Error::new(kind, error.to_string()).because(error)
    }
}
