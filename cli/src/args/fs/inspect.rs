//! The words of looking at a file system below its files, and of the smallest repair.

use crate::args::StackArgs;
use crate::place::Place;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// A file or device, or a stack in its place.
#[derive(Args, Debug)]
pub struct FsTarget {
    /// A file, device, NBD URI or metadata dump, in place of a stack
    pub image: Option<Place>,
    #[command(flatten)]
    pub stack: StackArgs,
}

#[derive(Args, Debug)]
pub struct FsDumpSuper {
    #[command(flatten)]
    pub target: FsTarget,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct FsDumpTree {
    #[command(flatten)]
    pub target: FsTarget,
    /// A further device of the file system; may be given several times, in any order. Unlocked with
    /// the same key as the first where there is one
    #[arg(long = "device", value_name = "DEV")]
    pub devices: Vec<Place>,
    /// Only this tree: its number, or root, extent, chunk, dev, fs, csum, quota, uuid, free-space,
    /// block-group, log
    #[arg(long, short = 't', value_name = "TREE")]
    pub tree: Option<String>,
    /// Only the block at this logical address
    #[arg(long, short = 'b', value_name = "LOGICAL", conflicts_with = "tree")]
    pub block: Option<u64>,
    /// With --block: everything below it too
    #[arg(long, requires = "block")]
    pub follow: bool,
    /// Start from this superblock copy: 0, 1 or 2
    #[arg(long = "super", value_name = "N", default_value_t = 0)]
    pub copy: usize,
    /// Read by the chunks that chunk-recover lists, where the chunk tree is broken
    #[arg(long)]
    pub chunk_recover: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Subcommand, Debug)]
pub enum FsImage {
    /// Write the metadata, without any file data, in btrfs-image's format
    Dump(Box<FsImageDump>),
    /// Make a sparse file of a dump
    Restore(FsImageRestore),
}

#[derive(Args, Debug)]
pub struct FsImageDump {
    #[command(flatten)]
    pub target: FsTarget,
    /// A further device of the file system; may be given several times, in any order. Unlocked with
    /// the same key as the first where there is one
    #[arg(long = "device", value_name = "DEV")]
    pub devices: Vec<Place>,
    /// The dump
    #[arg(long, short = 'o', value_name = "FILE")]
    pub output: PathBuf,
    /// Compression, 0 (none) to 9
    #[arg(long, short = 'c', value_name = "LEVEL", default_value_t = 6,
          value_parser = clap::value_parser!(u32).range(0..=9))]
    pub compress: u32,
    /// Replace file names and clear attribute values; hashes and lengths stay
    #[arg(long, short = 's')]
    pub sanitise: bool,
    /// Overwrite FILE
    #[arg(long)]
    pub force: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct FsImageRestore {
    /// The dump
    pub dump: Place,
    /// The file to make; sparse, of the nominal size of the file system
    pub output: PathBuf,
    /// Overwrite FILE
    #[arg(long)]
    pub force: bool,
}

#[derive(Subcommand, Debug)]
pub enum FsLog {
    /// List the files that were fsynced since the last commit
    List(FsLogList),
}

#[derive(Args, Debug)]
pub struct FsLogList {
    #[command(flatten)]
    pub target: FsTarget,
    /// A further device of the file system; may be given several times, in any order. Unlocked with
    /// the same key as the first where there is one
    #[arg(long = "device", value_name = "DEV")]
    pub devices: Vec<Place>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Subcommand, Debug)]
pub enum FsRescue {
    /// Forget the log, when a mount fails because it cannot be replayed
    ZeroLog(FsZeroLog),
    /// Put back the bytes that an undo file remembers
    Undo(FsUndo),
}

#[derive(Args, Debug)]
pub struct FsZeroLog {
    #[command(flatten)]
    pub target: FsTarget,
    /// Do not ask
    #[arg(long, short = 'y')]
    pub yes: bool,
    /// Where the old bytes are kept. Default: IMAGE.undo, beside an image, in the current folder for a
    /// device
    #[arg(long, value_name = "FILE")]
    pub undo: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct FsUndo {
    /// The undo file
    pub file: PathBuf,
    #[command(flatten)]
    pub target: FsTarget,
}
