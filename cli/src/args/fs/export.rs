//! `varve fs export`.

use crate::args::StackArgs;
use crate::place::Place;
use clap::Args;

#[derive(Args, Debug)]
pub struct FsExport {
    /// [IMAGE] [PATH] DEST: the image in place of a stack, what to export (default /), and the
    /// folder of this machine to write to; it is made if it is absent
    #[arg(value_name = "IMAGE|PATH|DEST", required = true)]
    pub at: Vec<String>,
    #[command(flatten)]
    pub stack: StackArgs,
    /// A further device of the file system; may be given several times, in any order. Unlocked with
    /// the same key as the first where there is one
    #[arg(long = "device", value_name = "DEV")]
    pub devices: Vec<Place>,
    /// Export this subvolume, by its number or path. Default: the one that a mount shows
    #[arg(long, value_name = "ID|PATH")]
    pub subvolume: Option<String>,
    /// Export snapshots too, each as a folder of its own: the default
    #[arg(long)]
    pub snapshots: bool,
    /// Leave out snapshots of what is exported anyhow; subvolumes never are
    #[arg(long, conflicts_with = "snapshots")]
    pub no_snapshots: bool,
    /// Only files whose path matches; * stops at no slash. May be given several times
    #[arg(long, value_name = "GLOB")]
    pub include: Vec<String>,
    /// Only files whose path, from a first slash on, matches this regular expression; ^ and $ bind it to
    /// the whole path, (?i) makes letters of both cases one. May be given several times: one is enough
    #[arg(long, value_name = "REGEX")]
    pub path_regex: Vec<String>,
    /// Not the files whose path matches. May be given several times
    #[arg(long, value_name = "GLOB")]
    pub exclude: Vec<String>,
    /// Replace files that are in the way. Default: they are left alone and listed
    #[arg(long)]
    pub overwrite: bool,
    /// Write nothing; say what would be written, and what is damaged of the metadata
    #[arg(long)]
    pub dry_run: bool,
    /// Take data as it is, without comparing it with its checksums
    #[arg(long)]
    pub ignore_checksums: bool,
    /// Believe only this superblock copy: 0, 1 or 2
    #[arg(long, value_name = "N")]
    pub super_copy: Option<usize>,
    /// Start from the root tree whose root is at this logical address: an older state
    #[arg(long, value_name = "BYTE")]
    pub root_block: Option<u64>,
    /// Of a lost tree block, write nothing that only older roots of the tree have. Default: it is written,
    /// and listed with its generation
    #[arg(long)]
    pub no_older_roots: bool,
    /// Take the chunks from a scan of the devices, as chunk-recover lists them. Done in any case where
    /// the chunk tree cannot be read
    #[arg(long)]
    pub chunk_recover: bool,
    /// Show the last commit, without what was fsynced after it. Default: the log is replayed in memory
    #[arg(long)]
    pub nologreplay: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
