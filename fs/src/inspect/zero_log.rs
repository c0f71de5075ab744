//! Forgetting the log: what was fsynced since the last commit is lost, and the file system mounts
//! again when the log cannot be replayed.
//!
//! Only superblocks are read and written; every tree may be broken. The copies that a mount does not
//! look at go first and the first one last, each made durable before the next. A power cut in between
//! leaves a first copy that still names the log, which is the old state, or none that does. Everything
//! that changes in a copy is in its first 512 bytes, so that no disk tears it.

use crate::error::{Error, ErrorKind, Result};
use crate::format::superblock::SUPER_SIZE;
use crate::inspect::supers::super_copies;
use crate::units::Logical;
use varve_block::{BlockDevice, BufPool, Durability, Sector, Sectors};

/// One write that is going to be made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SuperWrite {
    /// Its byte on the device.
    pub at: u64,
    pub before: Vec<u8>,
    pub after: Vec<u8>,
}

/// The writes that forget a log, in their order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ZeroLog {
    pub fsid: crate::format::Uuid,
    pub generation: u64,
    pub log_root: Logical,
    pub writes: Vec<SuperWrite>,
    /// Copies that are left alone, and why.
    pub skipped: Vec<String>,
}

impl ZeroLog {
    /// What would be written. `None` when there is no log.
    ///
    /// # Errors
    /// When the first copy is not valid: which of the others is the truth is not for this tool to
    /// decide.
    pub async fn plan<D: BlockDevice>(device: &D) -> Result<Option<ZeroLog>> {
        let dev = device.geometry().dev;
        let copies = super_copies(device).await?;
        let first = copies.iter().find(|copy| copy.copy == 0);
        let first = match first.map(|copy| (&copy.superblock, &copy.problem)) {
            Some((Some(sb), None)) => sb.clone(),
            Some((_, Some(problem))) => {
                return Err(Error::corrupt(format!("{dev}: superblock copy 0: {problem}")));
            }
            _ => return Err(Error::corrupt(format!("{dev}: no btrfs superblock"))),
        };
        let mut plan = ZeroLog {
            fsid: first.fsid,
            generation: first.generation,
            log_root: first.log_root,
            writes: Vec::new(),
            skipped: Vec::new(),
        };
        for copy in copies.into_iter().rev() {
            let (sb, problem) = (copy.superblock, copy.problem);
            let mut sb = match (sb, problem) {
                (Some(sb), None) if sb.fsid == first.fsid => sb,
                (Some(_), None) => {
                    let text = "belongs to another file system";
                    plan.skipped.push(format!("copy {}: {text}", copy.copy));
                    continue;
                }
                (_, problem) => {
                    let why = problem.unwrap_or_else(|| "no superblock".into());
                    plan.skipped.push(format!("copy {}: {why}", copy.copy));
                    continue;
                }
            };
            if sb.log_root.0 == 0 && sb.log_root_level == 0 {
                continue;
            }
            sb.log_root = Logical(0);
            sb.log_root_level = 0;
            let after = sb.seal(copy.at).to_vec();
            plan.writes.push(SuperWrite { at: copy.at, before: copy.bytes, after });
        }
        Ok((!plan.writes.is_empty()).then_some(plan))
    }

    /// Makes the writes.
    pub async fn run<D: BlockDevice>(&self, device: &D) -> Result<()> {
        write_in_order(device, &self.writes).await
    }

    /// Puts back what was there, if the device still holds what [`ZeroLog::run`] wrote.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when a place holds anything else: somebody has written since.
    pub async fn undo<D: BlockDevice>(device: &D, writes: &[SuperWrite]) -> Result<()> {
        let dev = device.geometry().dev;
        for write in writes {
            let now = crate::volume::read_super(device, write.at).await?;
            let known = now.as_ref().is_some_and(|now| *now == write.after || *now == write.before);
            if !known {
                let message = format!(
                    "{dev}: byte {} holds neither what was written there nor what was before: \
                     something has changed it since, nothing is put back",
                    write.at
                );
                return Err(Error::new(ErrorKind::Invalid, message));
            }
        }
        let back: Vec<_> = writes
            .iter()
            .map(|w| SuperWrite { at: w.at, before: w.after.clone(), after: w.before.clone() })
            .collect();
        write_in_order(device, &back).await
    }
}

async fn write_in_order<D: BlockDevice>(device: &D, writes: &[SuperWrite]) -> Result<()> {
    let geometry = device.geometry();
    let block = geometry.block.bytes().max(SUPER_SIZE as u64);
    let pool = BufPool::new(0);
    for write in writes {
        // A device with larger blocks has neighbours of the copy in its block: they stay.
        let start = write.at - write.at % block;
        let mut buf =
            device.read(Sector::containing(start), pool.take(Sectors(block >> 9)).await).await?;
        let skip = crate::units::to_usize(write.at - start);
        let Some(place) = buf.get_mut(skip..skip + SUPER_SIZE) else {
            return Err(Error::new(ErrorKind::Invalid, "a superblock is 4096 bytes"));
        };
        place.copy_from_slice(&write.after);
        device.write(Sector::containing(start), buf.into(), Durability::Fua).await?;
    }
    device.flush().await?;
    Ok(())
}
