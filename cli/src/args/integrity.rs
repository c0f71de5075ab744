//! The words of `varve integrity`, and those that say that a stack has such a layer.

use super::StackArgs;
use crate::place::Place;
use crate::size::Size;
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

/// A dm-integrity volume under everything else, as integritysetup makes them. Nothing on the disk says how
/// it is opened.
#[derive(Args, Debug, Clone, Default)]
pub struct DmIntegrityArgs {
    /// The disk holds a dm-integrity volume (of integritysetup) with tags of this hash: crc32c, crc32,
    /// xxhash64, sha1, sha256, sha512, hmac-sha1, hmac-sha256, hmac-sha512
    #[arg(long, value_name = "HASH")]
    pub dm_integrity: Option<String>,
    /// How writes of the volume survive a crash. Default: journal
    #[arg(long, value_enum, value_name = "MODE")]
    pub dm_integrity_mode: Option<DmIntegrityModeArg>,
    /// The key of the hash, for hmac: the raw content of this file
    #[arg(long, value_name = "FILE")]
    pub dm_integrity_key_file: Option<PathBuf>,
    /// Use only this many bytes of that file
    #[arg(long, value_name = "SIZE", requires = "dm_integrity_key_file")]
    pub dm_integrity_key_size: Option<Size>,
    /// With hmac: go on computing tags that are missing, although that makes valid what somebody else wrote
    #[arg(long)]
    pub dm_integrity_legacy_recalculate: bool,
}

impl DmIntegrityArgs {
    /// These words; where nothing is said, those of `file`.
    pub(crate) fn or(self, file: DmIntegrityArgs) -> DmIntegrityArgs {
        DmIntegrityArgs {
            dm_integrity: self.dm_integrity.or(file.dm_integrity),
            dm_integrity_mode: self.dm_integrity_mode.or(file.dm_integrity_mode),
            dm_integrity_key_file: self.dm_integrity_key_file.or(file.dm_integrity_key_file),
            dm_integrity_key_size: self.dm_integrity_key_size.or(file.dm_integrity_key_size),
            dm_integrity_legacy_recalculate: self.dm_integrity_legacy_recalculate
                || file.dm_integrity_legacy_recalculate,
        }
    }
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum DmIntegrityModeArg {
    /// Every block is written twice, and is old or new after a crash
    Journal,
    /// Written once; after a crash the tags of regions that were being written are computed anew
    Bitmap,
    /// Written once; a crash can make sectors unreadable
    Direct,
    /// To rescue data, with --read-only: neither journal, bitmap nor tags are looked at
    Recovery,
}

#[derive(Subcommand, Debug)]
pub enum IntegrityVerb {
    /// Make a volume; data on it is lost, unless its tags are to be computed
    Format(IntegrityFormat),
    /// Print the superblock
    Dump(IntegrityLook),
    /// Read every sector and check its tag; writes nothing
    Check(IntegrityLook),
    /// Compute the tags that are missing, to the end
    Recalculate(IntegrityRecalculate),
}

#[derive(Args, Debug)]
pub struct IntegrityFormat {
    /// A file, device or NBD URI, in place of a stack
    pub image: Option<Place>,
    #[command(flatten)]
    pub stack: StackArgs,
    /// One tag to so many bytes: 512, 1024, 2048 or 4096
    #[arg(long, default_value = "512", value_name = "SIZE")]
    pub sector_size: Size,
    /// Bytes of a tag: longer than the hash is filled with zeroes, shorter cuts it. Default: of the hash
    #[arg(long, value_name = "BYTES")]
    pub tag_size: Option<u16>,
    /// Sectors of data between two runs of tags, a power of two. Default: 32768
    #[arg(long, value_name = "SECTORS")]
    pub interleave_sectors: Option<u64>,
    /// Size of the journal, which is the bitmap's place, too. Default: 1/128 of the device, at most 64M
    #[arg(long, value_name = "SIZE")]
    pub journal_size: Option<Size>,
    /// Sectors that a bit of the bitmap stands for, a power of two. Default: 32768
    #[arg(long, value_name = "SECTORS")]
    pub bitmap_sectors_per_bit: Option<u64>,
    /// Do not write every sector: one that was never written cannot be read
    #[arg(long)]
    pub no_wipe: bool,
    /// Keep what lies in the data sectors; whoever opens the volume computes its tags, while it is used
    #[arg(long, conflicts_with = "no_wipe")]
    pub recalculate: bool,
    /// Format although the device holds something known
    #[arg(long)]
    pub force: bool,
}

#[derive(Args, Debug)]
pub struct IntegrityLook {
    /// A file, device or NBD URI, in place of a stack
    pub image: Option<Place>,
    #[command(flatten)]
    pub stack: StackArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct IntegrityRecalculate {
    /// A file, device or NBD URI, in place of a stack
    pub image: Option<Place>,
    #[command(flatten)]
    pub stack: StackArgs,
    /// Compute all tags, also those that are there: whatever lies on the disk becomes valid
    #[arg(long)]
    pub from_start: bool,
}
