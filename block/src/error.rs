//! One error for everything below an export: what was tried, where, on which device, what kind.

use crate::units::Extent;
use std::fmt;
use std::sync::Arc;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can act on. Small and stable; front ends map it to an errno in one place.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ErrorKind {
    /// The device failed the request.
    Io,
    /// Bytes were read, and they are wrong.
    Corrupt,
    /// No room is left on the device.
    NoSpace,
    /// The request leaves the device.
    OutOfRange,
    /// Not a multiple of the device's block, or too large.
    Misaligned,
    /// This device cannot do that (and the caller may do without).
    Unsupported,
    /// A write on a device opened read-only.
    ReadOnly,
    /// A flush failed earlier: nothing is promised until the device is reopened.
    Poisoned,
    /// The device is held by somebody else.
    Busy,
    /// The device is shutting down.
    Stopped,
}

/// What was being done.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Op {
    Open,
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes,
    Extents,
    Prefetch,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Op::Open => "open",
            Op::Read => "read",
            Op::Write => "write",
            Op::Flush => "flush",
            Op::Discard => "discard",
            Op::WriteZeroes => "write zeroes",
            Op::Extents => "extents",
            Op::Prefetch => "prefetch",
        })
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ErrorKind::Io => "I/O error",
            ErrorKind::Corrupt => "corrupt data",
            ErrorKind::NoSpace => "no space left",
            ErrorKind::OutOfRange => "outside the device",
            ErrorKind::Misaligned => "misaligned request",
            ErrorKind::Unsupported => "not supported",
            ErrorKind::ReadOnly => "device is read-only",
            ErrorKind::Poisoned => "an earlier flush failed; reopen the device",
            ErrorKind::Busy => "device is in use",
            ErrorKind::Stopped => "device is stopping",
        })
    }
}

/// A device's name in messages: its path, or the layer's name over it. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct DevId(Arc<str>);

impl DevId {
    pub fn new(name: impl Into<Arc<str>>) -> DevId {
        DevId(name.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DevId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for DevId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub type Source = Box<dyn std::error::Error + Send + Sync>;

/// `read sector 2048+8 on hdd.img: I/O error`. The source is for people; it is not repeated here.
#[derive(Debug, thiserror::Error)]
#[error("{op} {at} on {dev}: {kind}")]
pub struct Error {
    pub kind: ErrorKind,
    pub op: Op,
    pub at: Extent,
    pub dev: DevId,
    #[source]
    pub source: Option<Source>,
}

impl Error {
    pub fn new(kind: ErrorKind, op: Op, at: Extent, dev: &DevId) -> Error {
        Error { kind, op, at, dev: dev.clone(), source: None }
    }

    pub fn with(mut self, source: impl Into<Source>) -> Error {
        self.source = Some(source.into());
        self
    }

    /// From an errno-bearing failure of the host.
    pub fn host(op: Op, at: Extent, dev: &DevId, source: std::io::Error) -> Error {
        use std::io::ErrorKind as K;
        let kind = match source.kind() {
            K::StorageFull | K::QuotaExceeded | K::FileTooLarge => ErrorKind::NoSpace,
            K::Unsupported => ErrorKind::Unsupported,
            K::ReadOnlyFilesystem | K::PermissionDenied => ErrorKind::ReadOnly,
            K::ResourceBusy | K::WouldBlock => ErrorKind::Busy,
            _ => ErrorKind::Io,
        };
        Error::new(kind, op, at, dev).with(source)
    }
}

/// The whole chain in one line, outermost first, for logs and for stderr.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        next = cause.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Sector, Sectors};

    #[test]
    fn an_error_names_operation_place_and_device() {
        let e = Error::new(
            ErrorKind::Io,
            Op::Write,
            Extent::new(Sector(2048), Sectors(8)),
            &DevId::new("hdd.img"),
        )
        .with("EIO");
        assert_eq!(chain(&e), "write sector 2048+8 on hdd.img: I/O error: EIO");
    }
}
