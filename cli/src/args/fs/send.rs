//! `varve fs send` and `varve fs send-dump`.

use crate::args::StackArgs;
use crate::place::Place;
use clap::Args;
use std::path::PathBuf;

#[derive(Args, Debug)]
pub struct FsSend {
    /// [IMAGE] SUBVOL: the image in place of a stack, and the read-only snapshot, by its path from
    /// the top level or its number
    #[arg(value_name = "IMAGE|SUBVOL", required = true)]
    pub at: Vec<String>,
    #[command(flatten)]
    pub stack: StackArgs,
    /// A further device of the file system; may be given several times, in any order. Unlocked with
    /// the same key as the first where there is one
    #[arg(long = "device", value_name = "DEV")]
    pub devices: Vec<Place>,
    /// Send only what is different from this snapshot, which the receiver has already
    #[arg(long, short = 'p', value_name = "SUBVOL")]
    pub parent: Option<String>,
    /// The receiver has this snapshot too: its data need not be sent again. May be given several times
    #[arg(long, short = 'c', value_name = "SUBVOL")]
    pub clone_source: Vec<String>,
    /// Write to this file. Default: standard output
    #[arg(long, short = 'f', value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Version of the stream: 1, or 2 (Linux 5.18 and btrfs-progs 5.19 on). Default: 1, and 2 with
    /// --compressed-data
    #[arg(long, value_name = "N")]
    pub proto: Option<u32>,
    /// Send compressed extents as they are on disk
    #[arg(long)]
    pub compressed_data: bool,
    /// Show the last commit, without what was fsynced after it. Default: the log is replayed in memory
    #[arg(long)]
    pub nologreplay: bool,
}

#[derive(Args, Debug)]
pub struct FsSendDump {
    /// A stream, or - for standard input
    pub file: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
