//! `varve fs csum-report`.

use super::FsSource;
use crate::place::Place;
use clap::Args;
use std::path::PathBuf;

#[derive(Args, Debug)]
pub struct FsCsumReport {
    /// A file, device or NBD URI, in place of a stack
    pub image: Option<Place>,
    #[command(flatten)]
    pub source: FsSource,
    /// Read all data and report what is bad by itself, instead of asking kernel messages
    #[arg(long)]
    pub scan: bool,
    /// Kernel messages, as dmesg prints them, from this file. Default without --scan: standard input
    #[arg(long, value_name = "FILE")]
    pub messages: Option<PathBuf>,
    /// Print only the paths, one a line
    #[arg(long, conflicts_with = "json")]
    pub paths: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
