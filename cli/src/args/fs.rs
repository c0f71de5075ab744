//! The words of `varve fs`.

mod csum_report;
mod export;
mod inspect;
mod look;
mod mount;
mod send;

pub use csum_report::FsCsumReport;
pub use export::FsExport;
pub use inspect::*;
pub use look::*;
pub use mount::FsMount;
pub use send::{FsSend, FsSendDump};
mod check;

pub use check::FsCheck;

use super::StackArgs;
use crate::place::Place;
use crate::size::Size;
use clap::{Args, Subcommand, ValueEnum};

#[derive(Subcommand, Debug)]
pub enum FsVerb {
    /// Look for what is wrong with the structures, with --data in file data too; nothing is written.
    ///
    /// Takes 30 MiB of memory; 128 MiB more for a terabyte of metadata, and at most 160 MiB for a terabyte
    /// of space where what is free is scattered. Damaged references are listed in passes of 128 MiB.
    Check(FsCheck),
    /// Make a btrfs file system; data on the device is lost
    Mkfs(FsMkfs),
    /// List a directory
    Ls(FsLs),
    /// Write a file's contents to standard output
    Cat(FsPath),
    /// Print what is known of a file, or of the file system
    Stat(FsStat),
    /// Print label, uuid and devices
    Show(FsLook),
    /// Print how full each kind of space is
    Df(FsLook),
    /// Print how the devices' space is used
    Usage(FsLook),
    /// Draw how the devices are used, and what a cache holds of them, as SVG or PNG
    Map(FsMap),
    /// Subvolumes and snapshots
    #[command(subcommand)]
    Subvol(FsSubvol),
    /// Print the paths of an inode number
    InodeResolve(FsInodeResolve),
    /// Print the files that use a logical address
    LogicalResolve(FsLogicalResolve),
    /// Look for older roots of a tree, to start a rescue from
    FindRoot(FsFindRoot),
    /// Look all over the devices for chunks, for when the chunk tree is damaged; nothing is written
    ChunkRecover(FsLook),
    /// Say which files bad checksums are in, from kernel messages or by reading all data
    CsumReport(FsCsumReport),
    /// Show it as folders of this machine, read-only, through FUSE, until Ctrl-C or an unmount
    Mount(FsMount),
    /// Copy files out of it into a folder, also where it is damaged
    Export(FsExport),
    /// Write a snapshot, or what changed since another, as a stream for `btrfs receive`
    Send(FsSend),
    /// Print what a send stream says
    SendDump(FsSendDump),
    /// Print every copy of the superblock
    DumpSuper(FsDumpSuper),
    /// Print trees, blocks and items
    DumpTree(FsDumpTree),
    /// Metadata dumps, in btrfs-image's format
    #[command(subcommand)]
    Image(FsImage),
    /// The log of fsyncs since the last commit
    #[command(subcommand)]
    Log(FsLog),
    /// Small repairs, each with a way back
    #[command(subcommand)]
    Rescue(FsRescue),
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetadataProfile {
    Single,
    Dup,
}

/// The file system that is looked at: the stack or image that is its first device, and more.
#[derive(Args, Debug, Clone, Default)]
pub struct FsSource {
    #[command(flatten)]
    pub stack: StackArgs,
    /// A further device of the file system; may be given several times, in any order. Unlocked with
    /// the same key as the first where there is one
    #[arg(long = "device", value_name = "DEV")]
    pub devices: Vec<Place>,
    /// Believe this superblock copy instead of the first, of every device
    #[arg(long = "super", value_name = "0..2", default_value_t = 0,
          value_parser = clap::value_parser!(u8).range(0..3))]
    pub super_copy: u8,
    /// Show the last commit, without what was fsynced after it. Default: the log is replayed in memory
    #[arg(long)]
    pub nologreplay: bool,
}

#[derive(Args, Debug)]
pub struct FsMkfs {
    /// A file, device or NBD URI, in place of a stack
    pub image: Option<Place>,
    #[command(flatten)]
    pub stack: StackArgs,
    /// Label, at most 255 bytes
    #[arg(long, short = 'L', default_value = "", value_name = "TEXT")]
    pub label: String,
    /// UUID of the file system. Default: random
    #[arg(long, short = 'U', value_name = "UUID")]
    pub uuid: Option<uuid::Uuid>,
    /// Metadata once or twice
    #[arg(long, short = 'm', value_enum, default_value = "dup", value_name = "PROFILE")]
    pub metadata: MetadataProfile,
    /// Tree block size
    #[arg(long, short = 'n', default_value = "16k", value_name = "SIZE")]
    pub nodesize: Size,
    /// Make one although the device holds something known
    #[arg(long, short = 'f')]
    pub force: bool,
}

#[derive(Args, Debug)]
pub struct FsLs {
    /// [IMAGE] [PATH]: the image in place of a stack, and the directory (default /)
    #[arg(value_name = "IMAGE|PATH")]
    pub at: Vec<String>,
    #[command(flatten)]
    pub source: FsSource,
    /// Descend
    #[arg(long, short = 'R')]
    pub recursive: bool,
    /// Mode, links, owner, size and time beside the name
    #[arg(long, short = 'l')]
    pub long: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct FsPath {
    /// [IMAGE] PATH: the image in place of a stack, and the file
    #[arg(value_name = "IMAGE|PATH", required = true)]
    pub at: Vec<String>,
    #[command(flatten)]
    pub source: FsSource,
}

#[derive(Args, Debug)]
pub struct FsStat {
    /// [IMAGE] [PATH]: the image in place of a stack, and the file; without PATH the file system
    #[arg(value_name = "IMAGE|PATH")]
    pub at: Vec<String>,
    #[command(flatten)]
    pub source: FsSource,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
