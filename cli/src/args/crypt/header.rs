//! The words for headers as a whole.

use super::StackArgs;
use crate::place::Place;
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

/// One of the two copies of a LUKS2 header.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderCopyArg {
    Primary,
    Secondary,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum PriorityArg {
    /// Tried before the others
    Prefer,
    Normal,
    /// Tried only when its slot is named
    Ignore,
}

#[derive(Args, Debug)]
pub struct CryptHeaderBackup {
    /// A file, device or NBD URI, in place of a stack
    pub image: Option<Place>,
    #[command(flatten)]
    pub stack: StackArgs,
    /// The file to be made; one that is there is not overwritten
    #[arg(long, value_name = "FILE")]
    pub file: PathBuf,
}

#[derive(Args, Debug)]
pub struct CryptHeaderRestore {
    /// A file, device or NBD URI, in place of a stack
    pub image: Option<Place>,
    #[command(flatten)]
    pub stack: StackArgs,
    /// The backup
    #[arg(long, value_name = "FILE")]
    pub file: PathBuf,
    /// Save the header that is there now to this file first
    #[arg(long, value_name = "FILE")]
    pub save_old: Option<PathBuf>,
    /// Do not ask, also where backup and device do not match
    #[arg(long)]
    pub force: bool,
}

#[derive(Args, Debug)]
pub struct CryptConvert {
    /// A file, device or NBD URI, in place of a stack
    pub image: Option<Place>,
    #[command(flatten)]
    pub stack: StackArgs,
    /// The format that it becomes
    #[arg(long, value_enum, value_name = "TYPE")]
    pub to: super::LuksType,
    /// Save the header that is there now to this file first
    #[arg(long, value_name = "FILE")]
    pub save_old: PathBuf,
    /// Do not ask
    #[arg(long)]
    pub force: bool,
}

#[derive(Args, Debug)]
pub struct CryptRepair {
    /// A file, device or NBD URI, in place of a stack
    pub image: Option<Place>,
    #[command(flatten)]
    pub stack: StackArgs,
    /// Save the bytes that the repair may change to this file first
    #[arg(long, value_name = "FILE", required_unless_present = "dry_run")]
    pub save_old: Option<PathBuf>,
    /// Take this copy as the right one
    #[arg(long, value_enum, value_name = "COPY")]
    pub header_copy: Option<HeaderCopyArg>,
    /// Only say what would be done: exit code 1 when there is something to repair
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct CryptUuid {
    /// A file, device or NBD URI, in place of a stack
    pub image: Option<Place>,
    #[command(flatten)]
    pub stack: StackArgs,
    /// Set this UUID
    #[arg(long, value_name = "UUID")]
    pub set: Option<uuid::Uuid>,
    /// Do not ask
    #[arg(long)]
    pub force: bool,
}

#[derive(Args, Debug)]
pub struct CryptIsLuks {
    /// A file, device or NBD URI, in place of a stack
    pub image: Option<Place>,
    #[command(flatten)]
    pub stack: StackArgs,
    /// Only this version
    #[arg(long = "type", value_enum, value_name = "TYPE")]
    pub luks_type: Option<super::LuksType>,
}

#[derive(Args, Debug)]
pub struct CryptConfigure {
    /// A file, device or NBD URI, in place of a stack
    pub image: Option<Place>,
    #[command(flatten)]
    pub stack: StackArgs,
    /// Label, at most 47 bytes
    #[arg(long, value_name = "TEXT")]
    pub label: Option<String>,
    /// Subsystem label, at most 47 bytes
    #[arg(long, value_name = "TEXT")]
    pub subsystem: Option<String>,
    /// When the slot that --key-slot names is tried
    #[arg(long, value_enum, value_name = "WHEN", requires = "key_slot")]
    pub priority: Option<PriorityArg>,
    /// Persistent flags in place of those that are there, separated by commas; "" removes all
    #[arg(long, value_name = "LIST")]
    pub flags: Option<String>,
}

#[derive(Subcommand, Debug)]
pub enum CryptTokenVerb {
    /// List the tokens
    List(CryptTokenList),
    /// Print the JSON of a token
    Export(CryptTokenExport),
    /// Store a token from a JSON file
    Import(CryptTokenImport),
    /// Remove a token
    Remove(CryptTokenExport),
}

#[derive(Args, Debug)]
pub struct CryptTokenList {
    /// A file, device or NBD URI, in place of a stack
    pub image: Option<Place>,
    #[command(flatten)]
    pub stack: StackArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct CryptTokenExport {
    /// A file, device or NBD URI, in place of a stack
    pub image: Option<Place>,
    #[command(flatten)]
    pub stack: StackArgs,
    /// Number of the token
    #[arg(long, value_name = "N")]
    pub token_id: u32,
}

#[derive(Args, Debug)]
pub struct CryptTokenImport {
    /// A file, device or NBD URI, in place of a stack
    pub image: Option<Place>,
    #[command(flatten)]
    pub stack: StackArgs,
    /// The token's JSON (- is standard input)
    #[arg(long, value_name = "FILE")]
    pub json_file: PathBuf,
    /// Number of the token. Default: the first free one
    #[arg(long, value_name = "N")]
    pub token_id: Option<u32>,
    /// Write over the token that is there
    #[arg(long, requires = "token_id")]
    pub replace: bool,
}
