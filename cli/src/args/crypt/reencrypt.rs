//! The words of re-encryption.

use super::{CipherArgs, PbkdfArgs, StackArgs};
use crate::place::Place;
use crate::size::Size;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use varve_nbd_server::Listen;

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResilienceArg {
    /// A hash of every block: fast, and survives a cut at any write
    Checksum,
    /// A copy of every zone: slower, and survives a cut at any write
    Journal,
    /// Nothing: a cut loses up to 20 MiB
    None,
    /// The data move, and what was there is the copy (--encrypt --reduce-device-size)
    Datashift,
    /// The same; the first part by a hash of every block (--decrypt of a disk with its header on it)
    DatashiftChecksum,
    /// The same; the first part by a copy
    DatashiftJournal,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirectionArg {
    Forward,
    Backward,
}

#[derive(Args, Debug)]
pub struct CryptReencrypt {
    /// A file, device or NBD URI, in place of a stack
    pub image: Option<Place>,
    #[command(flatten)]
    pub stack: StackArgs,
    /// Encrypt a plain disk in place; --header names the file that gets the header, --reduce-device-size puts
    /// it on the disk
    #[arg(long, conflicts_with_all = ["decrypt", "resume_only"])]
    pub encrypt: bool,
    /// Make the data plain. --header names their detached header, or a file that is not there: then the
    /// header on the disk is exported to it, and the data move to where the header was
    #[arg(long, conflicts_with = "resume_only")]
    pub decrypt: bool,
    /// With --encrypt: give up this much at the end of the disk. Half becomes the header, which comes before
    /// the data; half is needed on the way. The file system must be shorter already. 32M is usual
    #[arg(long, value_name = "SIZE", requires = "encrypt", conflicts_with = "header")]
    pub reduce_device_size: Option<Size>,
    /// Go on with what was interrupted, and begin nothing
    #[arg(long)]
    pub resume_only: bool,
    /// Write the metadata, and convert nothing yet
    #[arg(long, conflicts_with = "resume_only")]
    pub init_only: bool,
    /// Convert the volume that a server has, while it serves; Ctrl-C stops the work, not the server
    #[arg(long, requires = "control", conflicts_with_all = ["encrypt", "decrypt", "init_only", "accept_damage"])]
    pub online: bool,
    /// The control socket of that server: unix:PATH
    #[arg(long, value_name = "ADDR", requires = "online")]
    pub control: Option<Listen>,
    /// With --online: convert at most this much per second
    #[arg(long, value_name = "SIZE", requires = "online")]
    pub rate: Option<Size>,
    #[command(flatten)]
    pub cipher: CipherArgs,
    /// How a power cut is survived. Default: checksum; datashift or datashift-checksum where data move
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
