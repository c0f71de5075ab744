//! `varve fs mount`.

use super::FsSource;
use clap::Args;

#[derive(Args, Debug)]
pub struct FsMount {
    /// [IMAGE] DIR: the image in place of a stack, and the folder of this machine to mount on
    #[arg(value_name = "IMAGE|DIR", required = true)]
    pub at: Vec<String>,
    #[command(flatten)]
    pub source: FsSource,
    /// Show this subvolume, by its path from the top level or its number. Default: the one that a
    /// kernel mount shows
    #[arg(long, value_name = "PATH|ID")]
    pub subvol: Option<String>,
    /// Let other users in, as far as modes and ACLs let them. Default: only who mounts it, and to all
    #[arg(long)]
    pub allow_other: bool,
    /// Take data as it is, without comparing it with its checksums
    #[arg(long)]
    pub ignore_checksums: bool,
    /// Do not say that it is mounted
    #[arg(long)]
    pub quiet: bool,
}
