//! Making a file system: one device, the layout that current tools make, in one transaction.
//!
//! ```text
//! byte 0          1 MiB                                                     end
//!      | reserved | SYSTEM DUP | METADATA DUP | DATA |  unallocated ...      |
//!      | 64 KiB: superblock    ^ a further copy at 64 MiB and one at 256 GiB, where they fit
//! ```
//!
//! *What is written* is a pure function of options, identity and size: [`plan`]. *Writing it* is
//! [`mkfs`], in an order that leaves no half-made file system behind: old superblocks are wiped and
//! flushed, then the trees, then a flush, then the superblocks, the first one last. A crash before
//! that leaves a device that nobody mistakes for a file system.

mod layout;
mod trees;

#[cfg(test)]
mod tests;

use crate::error::{Error, ErrorKind, Result};
use crate::format::Uuid;
use crate::format::chunk::RESERVED;
use crate::format::inode::Time;
use crate::format::superblock::{Label, MAGIC, SUPER_SIZE, Superblock, copies_on};
use crate::format::{chunk, superblock};
use crate::tree::build::TreeBlocks;
use crate::volume::read_super;
use varve_block::{BlockDevice, BufPool, Data, Durability, Extent, Rt, Sector, Sectors, Zero};

/// What the file system shall be. `Default` is what nearly everybody wants.
#[derive(Clone, Debug)]
pub struct MkfsOptions {
    pub label: String,
    /// Random when absent.
    pub uuid: Option<Uuid>,
    /// Two copies of metadata, on the one device; else one.
    pub dup_metadata: bool,
    /// Power of two, 4096 to 65536.
    pub nodesize: u32,
    /// Power of two, 4096 to `nodesize`. Kernels mount only up to their page size.
    pub sectorsize: u32,
    /// Keep block groups in a tree of their own: faster mounts of huge devices, kernel 6.1 and up.
    pub block_group_tree: bool,
    /// Overwrite a btrfs that is already there.
    pub force: bool,
}

impl Default for MkfsOptions {
    fn default() -> MkfsOptions {
        MkfsOptions {
            label: String::new(),
            uuid: None,
            dup_metadata: true,
            nodesize: 16384,
            sectorsize: 4096,
            block_group_tree: false,
            force: false,
        }
    }
}

/// What makes two file systems different, passed in so that a plan is reproducible.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    pub fsid: Uuid,
    pub device: Uuid,
    pub chunk_tree: Uuid,
    pub top_level: Uuid,
    pub now: Time,
}

impl Identity {
    /// Fresh uuids. They must be unique across machines, so they come from the system and not from
    /// a seed.
    pub fn random(fsid: Option<Uuid>, now: Time) -> Identity {
        Identity {
            fsid: fsid.unwrap_or_else(Uuid::new_v4),
            device: Uuid::new_v4(),
            chunk_tree: Uuid::new_v4(),
            top_level: Uuid::new_v4(),
            now,
        }
    }
}

/// One step of making a file system, in bytes of the device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    Zero { at: u64, len: u64 },
    Write { at: u64, bytes: Vec<u8> },
    Flush,
}

/// What to do, in order, and what comes of it.
#[derive(Clone, Debug)]
pub struct Plan {
    pub steps: Vec<Step>,
    pub superblock: Superblock,
}

/// Smallest devices that the kernel can still work with, as the reference tool counts them.
const MIN_DUP: u64 = 109 << 20;
const MIN_SINGLE: u64 = 69 << 20;

/// Everything that making a file system on `size` bytes writes.
pub fn plan(options: &MkfsOptions, identity: &Identity, size: u64) -> Result<Plan> {
    let label = check(options)?;
    let total = size - size % u64::from(options.sectorsize);
    let least = if options.dup_metadata { MIN_DUP } else { MIN_SINGLE };
    if total < least {
        let message = format!("device has {total} bytes, a file system needs {least} at least");
        return Err(Error::new(ErrorKind::NoSpace, message));
    }
    let layout = layout::Layout::new(options.dup_metadata, total);
    let (superblock, blocks) = trees::make(options, identity, label, &layout, total);
    Ok(Plan { steps: steps(&superblock, &layout, &blocks, total), superblock })
}

fn check(options: &MkfsOptions) -> Result<Label> {
    let invalid = |message: String| Err(Error::new(ErrorKind::Invalid, message));
    let MkfsOptions { nodesize, sectorsize, .. } = *options;
    if !sectorsize.is_power_of_two() || !(4096..=65536).contains(&sectorsize) {
        return invalid(format!("sector size {sectorsize}: a power of two, 4096 to 65536"));
    }
    if !nodesize.is_power_of_two() || !(sectorsize..=65536).contains(&nodesize) {
        return invalid(format!("node size {nodesize}: a power of two, {sectorsize} to 65536"));
    }
    match Label::new(options.label.as_bytes()) {
        Some(label) => Ok(label),
        None => invalid("a label has at most 255 bytes, and neither NUL nor newline".into()),
    }
}

/// The order that a crash may cut anywhere.
fn steps(sb: &Superblock, layout: &layout::Layout, blocks: &TreeBlocks, total: u64) -> Vec<Step> {
    let mut steps = vec![Step::Zero { at: 0, len: RESERVED }];
    let mirrors = || copies_on(total).filter(|at| *at >= RESERVED);
    steps.extend(mirrors().map(|at| Step::Zero { at, len: SUPER_SIZE as u64 }));
    steps.push(Step::Flush);
    for (logical, bytes) in blocks {
        for at in layout.places(*logical) {
            steps.push(Step::Write { at, bytes: bytes.clone() });
        }
    }
    steps.push(Step::Flush);
    let copy = |at| Step::Write { at, bytes: sb.seal(at).to_vec() };
    steps.extend(mirrors().map(copy));
    steps.push(Step::Flush);
    steps.extend(copies_on(total).take(1).map(copy));
    steps.push(Step::Flush);
    steps
}

/// A btrfs that is already on a device.
#[derive(Clone, Debug)]
pub struct Existing {
    pub fsid: Uuid,
    pub label: Label,
    /// Byte of the superblock copy it was known by.
    pub at: u64,
}

/// Looks for a btrfs superblock, in any place it may be. Its rules are not checked: a damaged file
/// system is still somebody's.
pub async fn detect<D: BlockDevice>(device: &D) -> Result<Option<Existing>> {
    for at in copies_on(device.geometry().len.bytes()) {
        let Some(bytes) = read_super(device, at).await? else { continue };
        let magic = bytes.get(0x40..0x48).map(|m| m == MAGIC.to_le_bytes());
        if magic == Some(true)
            && let Ok(sb) = Superblock::parse(&bytes)
        {
            return Ok(Some(Existing { fsid: sb.fsid, label: sb.label, at }));
        }
    }
    Ok(None)
}

/// Makes a file system on `device`.
///
/// # Durability
/// When it returns, all of it is on the medium.
pub async fn mkfs<D: BlockDevice>(
    rt: &Rt,
    device: &D,
    options: &MkfsOptions,
) -> Result<Superblock> {
    let geometry = device.geometry();
    if geometry.block.bytes() > options.sectorsize.into() {
        let (block, sector) = (geometry.block.bytes(), options.sectorsize);
        let message = format!("device blocks of {block} bytes are larger than sectors of {sector}");
        return Err(Error::unsupported(message));
    }
    if !options.force
        && let Some(found) = detect(device).await?
    {
        let message = format!("there is a btrfs already, uuid {}", found.fsid);
        return Err(Error::new(ErrorKind::Exists, message));
    }
    let now = Time { seconds: rt.unix_time().try_into().unwrap_or(i64::MAX), nanos: 0 };
    let identity = Identity::random(options.uuid, now);
    let plan = plan(options, &identity, geometry.len.bytes())?;
    let pool = BufPool::new(1 << 20);
    for step in plan.steps {
        act(device, &pool, step).await?;
    }
    Ok(plan.superblock)
}

async fn act<D: BlockDevice>(device: &D, pool: &BufPool, step: Step) -> Result<()> {
    match step {
        Step::Flush => device.flush().await?,
        Step::Zero { at, len } => {
            let range = Extent::new(Sector::containing(at), Sectors(len >> 9));
            device.write_zeroes(range, Zero { may_unmap: true, ..Zero::default() }).await?;
        }
        Step::Write { at, bytes } => {
            let most = device.geometry().max_request.byte_len();
            for (at, piece) in (at..).step_by(most).zip(bytes.chunks(most)) {
                let buf = Data::Owned(pool.take_copy(piece).await);
                device.write(Sector::containing(at), buf, Durability::Cached).await?;
            }
        }
    }
    Ok(())
}

/// The first transaction of every file system made here.
const GENERATION: u64 = 1;

const _: () = assert!(chunk::RESERVED > superblock::SUPER_OFFSETS[0]);
