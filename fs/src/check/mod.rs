//! The offline checker: reads everything, writes nothing, and tells every problem with a stable code.
//!
//! # How
//!
//! Every tree is walked once from the left, blocks in the order of their addresses where they are read
//! ahead. On the way each block passes the tree checker, each inode is judged as soon as its items
//! have passed, and each reference to an extent is subtracted from what the extent tree claims:
//!
//! ```text
//! extent tree: who refers to what ---- + ---> [sums by extent] <--- - ---- all trees: who really does
//! DIR_ITEM, DIR_INDEX, INODE_REF  ---- + ---> [sums by name  ] <--- - ---- the same name elsewhere
//! ```
//!
//! # Memory
//!
//! The sums are of fixed size, whatever the number of references and names. Only buckets that do not
//! balance are collected, by further passes over the trees, 128 MiB of records at a time (a million names
//! of one tree); quota groups that are on take 200 MiB of extents a pass, and 32 bytes for each leaf.
//!
//! | grows with | takes |
//! |---|---|
//! | nothing | 30 MiB, with file data too: the program, sums, 6 MiB of blocks, reads under way |
//! | metadata | up to four bits for each sector: 128 MiB for a terabyte of it |
//! | gaps between allocated, free, checksummed and written ranges | four bytes each, and never more than a bit for each sector: five sets of at most 32 MiB for a terabyte of space |
//! | roots | some 500 bytes each |
//!
//! The program's test `bounded` checks a file system under a limit that is a fraction of its metadata.
//!
//! # What is an error
//!
//! What `btrfs check` counts as one, in either of its modes; file data is read only when asked for. Quota
//! groups are passed over while they are known to be inconsistent or being rescanned.
//! Half-deleted snapshots, relocation trees, orphans, missing data of metadata dumps and a quota rescan under way are none. What is odd but
//! harms nobody is a warning, and does not change the verdict.

mod belonging;
mod bitmap;
mod data;
mod devices;
mod extents;
mod files;
mod finding;
mod free_space;
mod inode;
mod log;
mod names;
mod open;
mod owners;
mod paths;
mod quota;
mod reader;
mod refs;
mod roots;
mod run;
mod runs;
mod space_cache;
mod sums;
mod unbalanced;
mod uuids;
mod walk;

pub use data::DataCounts;
pub use finding::{Code, Counts, DataCopy, FileAt, Finding, Severity};

use crate::error::Result;
use finding::Findings;
use varve_block::{BlockDevice, Rt};

/// What to check, and whom to tell how far it is.
#[derive(Default)]
pub struct CheckOptions<'a> {
    /// Read every copy of every tree block, where one good copy would do.
    pub all_copies: bool,
    /// Read file data too, every copy of it, and compare it with its checksums.
    pub data: bool,
    /// Where to hash data: on its workers rather than on the caller's core.
    pub rt: Option<&'a Rt>,
    /// Told of each phase, and the blocks read in it of those expected (0: unknown). In phase "data"
    /// it is mebibytes.
    pub progress: Option<&'a dyn Fn(&'static str, u64, u64)>,
}

/// What a check found.
#[derive(Clone, Debug)]
pub struct Checked {
    pub fsid: crate::format::Uuid,
    pub findings: Vec<Finding>,
    pub counts: Counts,
    pub tree_blocks: u64,
    pub inodes: u64,
    pub bytes_used: u64,
    /// What was read of file data, if it was asked for.
    pub data: Option<DataCounts>,
}

impl Checked {
    pub fn is_clean(&self) -> bool {
        self.counts.errors == 0
    }
}

/// Checks the file system on `devices`, which are only read.
///
/// # Errors
/// When there is nothing to check: no superblock that can be believed, no chunks, no root tree.
/// Everything else is a finding.
pub async fn check<D: BlockDevice>(devices: Vec<D>, options: &CheckOptions<'_>) -> Result<Checked> {
    let findings = Findings::default();
    let volume = open::open(devices, &findings).await?;
    run::run(&volume, &findings, options).await
}
