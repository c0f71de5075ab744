//! The bytes, and nothing but the bytes. *Raw* types mirror the disk and stay in here; *parsed*
//! types mean something. A parser answers any input with a value or a [`Wrong`], allocates no more
//! than it was given, and `encode` is its inverse.
//!
//! Whether a parsed value makes *sense* (in range, aligned, in order) is asked in one other place,
//! [`crate::verify`], at the moment a block enters memory.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

pub mod block;
pub mod chunk;
pub mod dir;
pub mod extent;
pub mod file_extent;
pub mod free_space;
pub mod inode;
pub mod key;
pub mod root;
pub mod superblock;

#[cfg(test)]
mod tests;

/// What a field said, and what would have been right.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{field}: found {found}, expected {expected}")]
pub struct Wrong {
    pub field: &'static str,
    pub found: u64,
    pub expected: &'static str,
}

pub type Result<T, E = Wrong> = std::result::Result<T, E>;

pub(crate) fn wrong<T>(field: &'static str, found: u64, expected: &'static str) -> Result<T> {
    Err(Wrong { field, found, expected })
}

pub(crate) fn wrong_len<T>(found: usize, expected: &'static str) -> Result<T> {
    wrong("item size", found as u64, expected)
}

/// A structure that must fill its item exactly.
pub(crate) fn exactly<'a, T>(bytes: &'a [u8], expected: &'static str) -> Result<&'a T>
where
    T: zerocopy::FromBytes + zerocopy::KnownLayout + zerocopy::Immutable + zerocopy::Unaligned,
{
    T::ref_from_bytes(bytes).or_else(|_| wrong_len(bytes.len(), expected))
}

/// The structure at the head of `bytes`, and what follows it.
pub(crate) fn head<'a, T>(bytes: &'a [u8], expected: &'static str) -> Result<(&'a T, &'a [u8])>
where
    T: zerocopy::FromBytes + zerocopy::KnownLayout + zerocopy::Immutable + zerocopy::Unaligned,
{
    T::ref_from_prefix(bytes).or_else(|_| wrong_len(bytes.len(), expected))
}

/// Sixteen raw bytes in text order.
pub type Uuid = uuid::Uuid;
