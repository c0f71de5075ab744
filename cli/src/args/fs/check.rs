//! `varve fs check`.

use crate::args::StackArgs;
use crate::place::Place;
use clap::Args;

#[derive(Args, Debug)]
pub struct FsCheck {
    /// Files, devices or NBD URIs of one file system, in place of a stack
    #[arg(value_name = "IMAGE")]
    pub images: Vec<Place>,
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
