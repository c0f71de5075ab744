//! What a server says to a request that it does not do.

use crate::nbd::answer::Refused;
use crate::nbd::wire::Errno;
use std::fmt;
use varve_block::ErrorKind;

/// An error number of the wire: its name, and what a caller can do about it.
const KNOWN: &[(Errno, &str, ErrorKind)] = &[
    (Errno::Perm, "EPERM", ErrorKind::ReadOnly),
    (Errno::Io, "EIO", ErrorKind::Io),
    (Errno::NoMem, "ENOMEM", ErrorKind::Io),
    (Errno::Inval, "EINVAL", ErrorKind::Io),
    (Errno::NoSpc, "ENOSPC", ErrorKind::NoSpace),
    (Errno::Overflow, "EOVERFLOW", ErrorKind::Io),
    (Errno::NotSup, "ENOTSUP", ErrorKind::Unsupported),
    (Errno::Shutdown, "ESHUTDOWN", ErrorKind::Stopped),
];

/// A server's refusal, for people.
#[derive(Debug)]
pub(super) struct Says(pub(super) Refused);

impl Says {
    fn known(&self) -> Option<&'static (Errno, &'static str, ErrorKind)> {
        KNOWN.iter().find(|(errno, ..)| *errno as u32 == self.0.errno)
    }

    pub(super) fn kind(&self) -> ErrorKind {
        self.known().map_or(ErrorKind::Io, |(.., kind)| *kind)
    }
}

impl fmt::Display for Says {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.known() {
            Some((_, name, _)) => write!(f, "the server says {name}")?,
            None => write!(f, "the server says error {}", self.0.errno)?,
        }
        if self.0.text.is_empty() { Ok(()) } else { write!(f, ": {}", self.0.text) }
    }
}

impl std::error::Error for Says {}
