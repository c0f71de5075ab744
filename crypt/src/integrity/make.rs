//! A new dm-integrity device: a superblock and an empty journal. Tags are the business of who stands above.

use varve_block::{BlockDevice, DevId, Sector};

use super::Layout;
use super::base::Base;
use super::device::{Integrity, Journaling};
use crate::error::Result;
use crate::format::integrity::{self as format, Superblock};

/// Writes an empty journal, and then the superblock that says there is one. What was there is lost.
pub(crate) async fn lay_out<D: BlockDevice + Clone>(
    device: &D,
    sb: &Superblock,
    at: Sector,
) -> Result<()> {
    let geometry = device.geometry();
    let layout = Layout::new(sb, at, geometry.len)?;
    let head = usize::try_from(format::SECTORS * 512).expect("a few sectors");
    crate::io::write_bytes(device, at.byte(), &vec![0; head]).await?;
    device.flush().await?;
    let sections = layout.sections;
    let base =
        Base::new(device.clone(), layout, DevId::new(format!("integrity on {}", geometry.dev)));
    Integrity::new(base, Journaling::Direct).blank(0..sections, 0).await?;
    let mut bytes = vec![0; head];
    bytes[..format::LEN].copy_from_slice(&sb.encode());
    crate::io::write_bytes(device, at.byte(), &bytes).await?;
    device.flush().await?;
    Ok(())
}
