//! The words of re-encryption.

use super::{PbkdfArgs, StackArgs};
use crate::size::Size;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResilienceArg {
    /// A hash of every block: fast, and survives a cut at any write
    Checksum,
    /// A copy of every zone: slower, and survives a cut at any write
    Journal,
    /// Nothing: a cut loses up to 20 MiB
    None,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirectionArg {
    Forward,
    Backward,
}

#[derive(Args, Debug)]
pub struct CryptReencrypt {
    /// A file or device, in place of a stack
    pub image: Option<PathBuf>,
    #[command(flatten)]
    pub stack: StackArgs,
    /// Encrypt a plain disk in place; --header names the file that gets the header
    #[arg(long, conflicts_with_all = ["decrypt", "resume_only"])]
    pub encrypt: bool,
    /// Make the data plain; needs a detached header (--header)
    #[arg(long, conflicts_with = "resume_only")]
    pub decrypt: bool,
    /// Go on with what was interrupted, and begin nothing
    #[arg(long)]
    pub resume_only: bool,
    /// Write the metadata, and convert nothing yet
    #[arg(long, conflicts_with = "resume_only")]
    pub init_only: bool,
    /// The new cipher. Default: aes-xts-plain64
    #[arg(long, value_name = "SPEC")]
    pub cipher: Option<String>,
    /// The new volume key, in bits. Default: 512
    #[arg(long, value_name = "BITS")]
    pub key_size: Option<u32>,
    /// The new encryption sector. Default: that of the volume; 512 for a plain disk
    #[arg(long, value_name = "SIZE")]
    pub sector_size: Option<Size>,
    /// How a power cut is survived. Default: checksum
    #[arg(long, value_enum, value_name = "HOW")]
    pub resilience: Option<ResilienceArg>,
    /// From which end. Default: forward
    #[arg(long, value_enum, value_name = "WAY")]
    pub direction: Option<DirectionArg>,
    /// Convert at most this much between two commits of the header
    #[arg(long, value_name = "SIZE")]
    pub hotzone_size: Option<Size>,
    /// One more secret of the volume, so that its slot gets the new key, too (several times)
    #[arg(long, value_name = "FILE")]
    pub also_key_file: Vec<PathBuf>,
    /// One more secret: the first line of this file (several times)
    #[arg(long, value_name = "FILE")]
    pub also_passphrase_file: Vec<PathBuf>,
    /// Slots whose secret is not given are removed
    #[arg(long)]
    pub drop_other_keys: bool,
    /// Go on although blocks of an interrupted zone are lost
    #[arg(long)]
    pub accept_damage: bool,
    #[command(flatten)]
    pub pbkdf: PbkdfArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
