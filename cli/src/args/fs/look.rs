//! The words of looking at a file system as btrfs-progs does.

use super::FsSource;
use crate::place::Place;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// `show`, `df`, `usage`, `chunk-recover`.
#[derive(Args, Debug)]
pub struct FsLook {
    /// A file, device or NBD URI, in place of a stack
    pub image: Option<Place>,
    #[command(flatten)]
    pub source: FsSource,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct FsMap {
    /// A file, device or NBD URI, in place of a stack
    pub image: Option<Place>,
    #[command(flatten)]
    pub source: FsSource,
    /// Draw into this file; tooltips tell what each chunk is
    #[arg(long, value_name = "FILE", required_unless_present_any = ["png", "json"])]
    pub svg: Option<PathBuf>,
    /// Draw into this file
    #[arg(long, value_name = "FILE")]
    pub png: Option<PathBuf>,
    /// Fold the curve so often: 2^N cells on each side. Default: until a cell is at most 4 MiB
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=11))]
    pub order: Option<u32>,
    /// Overwrite FILE
    #[arg(long)]
    pub force: bool,
    /// Print what is drawn as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct FsInodeResolve {
    /// [IMAGE] INODE: the image in place of a stack, and the inode number
    #[arg(value_name = "IMAGE|INODE", required = true)]
    pub at: Vec<String>,
    #[command(flatten)]
    pub source: FsSource,
    /// In this tree. Default: in every subvolume that has such an inode
    #[arg(long, value_name = "ID")]
    pub root: Option<u64>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct FsLogicalResolve {
    /// [IMAGE] LOGICAL: the image in place of a stack, and the byte of the logical address space
    #[arg(value_name = "IMAGE|LOGICAL", required = true)]
    pub at: Vec<String>,
    #[command(flatten)]
    pub source: FsSource,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct FsFindRoot {
    /// A file, device or NBD URI, in place of a stack
    pub image: Option<Place>,
    #[command(flatten)]
    pub source: FsSource,
    /// Of this tree. Default: 1, the root tree
    #[arg(long, short = 't', value_name = "ID", default_value_t = 1)]
    pub tree: u64,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Subcommand, Debug)]
pub enum FsSubvol {
    /// List subvolumes and snapshots
    List(FsLook),
}
