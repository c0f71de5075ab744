//! `varve fs check`.

use crate::args::StackArgs;
use clap::Args;
use std::path::PathBuf;

#[derive(Args, Debug)]
pub struct FsCheck {
    /// Files or devices of one file system, in place of a stack
    #[arg(value_name = "IMAGE")]
    pub images: Vec<PathBuf>,
    #[command(flatten)]
    pub stack: StackArgs,
    /// Read every copy of every tree block, where one good copy would do
    #[arg(long)]
    pub all_copies: bool,
    /// Read file data too, every copy of it, and compare it with its checksums
    #[arg(long)]
    pub data: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
