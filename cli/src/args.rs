//! The command line, as types. Nouns then verbs; a stack is named the same way everywhere.
#![allow(rustdoc::broken_intra_doc_links, reason = "comments here are the words of --help")]

mod activation;
mod crypt;
mod fs;
mod integrity;
mod secret;

pub use activation::*;
pub use crypt::*;
pub use fs::*;
pub use integrity::*;
pub use secret::*;

use crate::place::Place;
use crate::size::Size;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// An SSD cache tier, disk encryption and btrfs over a disk, in user space, in the Linux kernel's
/// own on-disk formats, served as a block device.
#[derive(Parser, Debug)]
#[command(name = "varve", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub noun: Noun,
    /// Log more: -v what is done, -vv how
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Subcommand, Debug)]
pub enum Noun {
    /// Make (when absent) and serve a cached, encrypted disk with btrfs on it, from one folder
    Up(Up),
    /// Serve a stack over NBD
    Serve(Serve),
    /// The SSD cache (bcache format)
    #[command(subcommand)]
    Cache(CacheVerb),
    /// Encryption (LUKS1, LUKS2 and plain dm-crypt)
    #[command(subcommand)]
    Crypt(CryptVerb),
    /// Volumes whose sectors are checked (dm-integrity by itself, as integritysetup makes them)
    #[command(subcommand)]
    Integrity(IntegrityVerb),
    /// The file system (btrfs)
    #[command(subcommand)]
    Fs(FsVerb),
    /// Say what this machine allows, and what to do about it
    Doctor(Doctor),
}

/// What stands on what. The same keys, with underscores, may come from a TOML file.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Stack")]
pub struct StackArgs {
    /// Take the stack from a TOML file; flags given here override it
    #[arg(long, value_name = "FILE")]
    pub stack: Option<PathBuf>,
    /// The disk: a file, a block device, or an NBD URI (nbd://HOST[:PORT]/EXPORT,
    /// nbd+unix:///EXPORT?socket=PATH)
    #[arg(long, value_name = "DEV")]
    pub backing: Option<Place>,
    /// The SSD: a bcache cache device, named like the disk. Absent: no cache layer
    #[arg(long, value_name = "DEV")]
    pub cache: Option<Place>,
    /// How writes are cached; kept on the disk as the kernel keeps it. Default: as persisted
    #[arg(long, value_enum, value_name = "MODE")]
    pub cache_mode: Option<CacheModeArg>,
    #[command(flatten)]
    pub dm_integrity: DmIntegrityArgs,
    #[command(flatten)]
    pub secret: SecretArgs,
    /// Ask for the passphrase on the terminal
    #[arg(long)]
    pub unlock: bool,
    /// Try only this key slot
    #[arg(long, value_name = "N")]
    pub key_slot: Option<u32>,
    /// The LUKS header is in this file, device or export, not on the disk
    #[arg(long, value_name = "DEV")]
    pub header: Option<Place>,
    /// Plain dm-crypt, for example aes-xts-plain64,sector=512,offset=0; the key file is the volume key
    #[arg(long, value_name = "SPEC")]
    pub plain: Option<String>,
    #[command(flatten)]
    pub allowed: AllowedArgs,
    /// Stop below encryption although a LUKS header is there
    #[arg(long)]
    pub no_crypt: bool,
    #[command(flatten)]
    pub activation: ActivationArgs,
    /// Write nothing to any device; the cache's journal is replayed in memory
    #[arg(long)]
    pub read_only: bool,
    /// With --read-only: serve the disk alone although its cache is missing and held newer data
    #[arg(long, requires = "read_only")]
    pub allow_stale: bool,
    /// Which volume of the cache set, when it holds several
    #[arg(long, value_name = "UUID")]
    pub volume: Option<uuid::Uuid>,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheModeArg {
    Writethrough,
    Writeback,
    Writearound,
    None,
}

#[derive(Args, Debug)]
pub struct Up {
    /// The folder for hdd.img, ssd.img, key and varve.sock
    #[arg(default_value = "varve-disk")]
    pub dir: PathBuf,
    /// Size of a disk to be made
    #[arg(long, default_value = "4G", value_name = "SIZE")]
    pub hdd_size: Size,
    /// Size of a cache to be made
    #[arg(long, default_value = "512M", value_name = "SIZE")]
    pub ssd_size: Size,
    /// How writes are cached. Default: as persisted, writethrough when made
    #[arg(long, value_enum, value_name = "MODE")]
    pub cache_mode: Option<CacheModeArg>,
    /// Print no live line
    #[arg(long)]
    pub quiet: bool,
}

#[derive(Args, Debug)]
pub struct Serve {
    #[command(flatten)]
    pub stack: StackArgs,
    /// Where clients connect: unix:PATH or tcp:HOST:PORT; may be given several times
    #[arg(long, required = true, value_name = "ADDR")]
    pub listen: Vec<varve_nbd_server::Listen>,
    /// Where `varve crypt suspend` and `resume` reach this server: unix:PATH, for its owner only
    #[arg(long, value_name = "ADDR")]
    pub control: Option<varve_nbd_server::Listen>,
    /// The export's name; clients that ask for none get it too
    #[arg(long, default_value = "", value_name = "NAME")]
    pub name: String,
    /// Print no live line
    #[arg(long)]
    pub quiet: bool,
}

#[derive(Subcommand, Debug)]
pub enum CacheVerb {
    /// Format an SSD and a disk as a cache set; data on both is lost
    Make(CacheMake),
    /// Print what the superblocks and the cache set say
    Show(CacheShow),
    /// Check a cache set against every rule of the format; reads only
    Check(CacheCheck),
}

#[derive(Args, Debug)]
pub struct CacheMake {
    /// The disk to be cached
    #[arg(long, value_name = "DEV")]
    pub backing: Option<Place>,
    /// The SSD
    #[arg(long, value_name = "DEV")]
    pub cache: Option<Place>,
    /// Bucket size, a power of two: the SSD's erase block, or a multiple
    #[arg(long, default_value = "512k", value_name = "SIZE")]
    pub bucket: Size,
    /// Block size, a power of two up to 4k. Default: the devices' logical block (4k on files)
    #[arg(long, value_name = "SIZE")]
    pub block: Option<Size>,
    /// First sector of data on the disk
    #[arg(long, default_value_t = 16, value_name = "SECTORS")]
    pub data_offset: u64,
    /// How writes are cached
    #[arg(long, value_enum, default_value = "writethrough", value_name = "MODE")]
    pub cache_mode: CacheModeArg,
    /// UUID of the set. Default: random
    #[arg(long, value_name = "UUID")]
    pub cset_uuid: Option<uuid::Uuid>,
    /// Label of the volume, at most 32 bytes
    #[arg(long, default_value = "", value_name = "TEXT")]
    pub label: String,
    /// Format although a device holds something known
    #[arg(long)]
    pub force: bool,
}

#[derive(Args, Debug)]
pub struct CacheShow {
    /// Devices to look at, of either kind
    #[arg(value_name = "DEV")]
    pub devices: Vec<Place>,
    /// The disk
    #[arg(long, value_name = "DEV")]
    pub backing: Option<Place>,
    /// The SSD
    #[arg(long, value_name = "DEV")]
    pub cache: Option<Place>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct CacheCheck {
    /// The disk
    #[arg(long, value_name = "DEV", required_unless_present = "cache")]
    pub backing: Option<Place>,
    /// The SSD
    #[arg(long, value_name = "DEV")]
    pub cache: Option<Place>,
    /// Also read every dirty extent, and compare every clean one with the disk
    #[arg(long)]
    pub data: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct Doctor {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
