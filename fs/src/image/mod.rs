//! Metadata dumps: a file system without its data, small enough to be sent to somebody (format:
//! btrfs 25). The container is that of the kernel's tools; both can read what either wrote.
//!
//! ```text
//! | head 1024: magic, position, up to 83 x {logical, stored bytes} | payload | payload | ... pad |
//! | head 1024 ...
//! ```
//! A payload is a run of metadata by its *logical* address, plain or a zlib stream of its own. One
//! item, at "logical" 65536, is no metadata but the superblock.
//!
//! # How a dump is read
//!
//! [`DumpDevice`] is the device that the dump would be restored to, without restoring it: a read
//! finds the chunk that owns the place, and the payload that holds that logical address. Nothing is
//! unpacked that is not read, so a dump of terabytes opens at once. Places of which the dump says
//! nothing read as zeroes, as they do in a restored file.
//!
//! Decisions, and why:
//!
//! * *The chunks stay as they are.* Profiles, lengths and addresses are part of what the dump shows;
//!   only places change, and only when there was more than one device (see [`layout`]).
//! * *Several devices become one*, laid end to end: stripes, device extents and the device's size are
//!   rewritten in the few blocks that hold them, and those blocks sealed anew. All else, damaged
//!   blocks above all, is byte for byte what the dump holds.
//! * *The superblock says so*: METADUMP_V2 is set, and readers warn that data is missing.
//! * *A stream that ends before its last payload does is refused*, with the place: half a dump
//!   would look like damage that the file system does not have. (A cut exactly between two clusters
//!   cannot be told: the format has no end mark.)

mod container;
mod device;
mod dump;
mod format;
mod graft;
mod layout;
mod raw;
mod sanitise;
#[cfg(test)]
mod tests;

pub use device::DumpDevice;
pub use dump::{DumpOptions, DumpReport, dump};
pub(crate) use format::MAGIC;

use crate::error::Result;
use crate::inspect::bytes::read_bytes;
use varve_block::BlockDevice;

/// Whether `device` begins as a metadata dump does, of a version that is read here or not.
///
/// # Errors
/// When the device cannot be read.
pub async fn is_dump<D: BlockDevice>(device: &D) -> Result<bool> {
    if device.geometry().len.bytes() < format::HEAD_SIZE as u64 {
        return Ok(false);
    }
    let mut magic = [0; 8];
    read_bytes(device, 0, &mut magic).await?;
    Ok([MAGIC, format::MAGIC_EXPERIMENTAL].contains(&u64::from_le_bytes(magic)))
}
