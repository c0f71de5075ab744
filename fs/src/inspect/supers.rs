//! The superblock copies of one device, whatever state they are in.

use crate::error::Result;
use crate::format::superblock::{MAGIC, SUPER_OFFSETS, Superblock};
use crate::verify;
use crate::volume::read_super;
use varve_block::BlockDevice;

/// One copy.
#[derive(Debug)]
pub struct SuperCopy {
    /// 0, 1 or 2.
    pub copy: usize,
    /// Its byte on the device.
    pub at: u64,
    pub bytes: Vec<u8>,
    /// `None` where the magic is not btrfs's.
    pub superblock: Option<Superblock>,
    /// What the superblock's rules say against it.
    pub problem: Option<String>,
}

/// Every place for a copy that is on the device.
///
/// # Errors
/// When the device cannot be read.
pub async fn super_copies<D: BlockDevice>(device: &D) -> Result<Vec<SuperCopy>> {
    let mut copies = Vec::new();
    for (copy, at) in SUPER_OFFSETS.into_iter().enumerate() {
        let Some(bytes) = read_super(device, at).await? else { continue };
        let superblock = Superblock::parse(&bytes).ok().filter(|sb| sb.magic == MAGIC);
        let problem = verify::superblock(&bytes, at).err().map(|fault| fault.problems.join("; "));
        copies.push(SuperCopy { copy, at, bytes, superblock, problem });
    }
    Ok(copies)
}
