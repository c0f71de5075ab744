//! The words of key management.

use super::{PbkdfArg, StackArgs};
use crate::place::Place;
use crate::size::Size;
use clap::Args;
use std::path::PathBuf;

/// How a key slot is derived from its secret.
#[derive(Args, Debug, Clone)]
pub struct PbkdfArgs {
    /// Key derivation. Default: argon2id (LUKS2), pbkdf2 (LUKS1)
    #[arg(long, value_enum, value_name = "KDF")]
    pub pbkdf: Option<PbkdfArg>,
    /// Hash of pbkdf2 and of the splitter
    #[arg(long, default_value = "sha256", value_name = "HASH")]
    pub hash: String,
    /// Unlocking should take this long
    #[arg(long, default_value_t = 2000, value_name = "MS")]
    pub iter_time: u32,
    /// Iterations (pbkdf2) or passes (argon2) instead of measuring
    #[arg(long, value_name = "N")]
    pub pbkdf_force_iterations: Option<u32>,
    /// Most memory argon2 may take
    #[arg(long, default_value = "1G", value_name = "SIZE")]
    pub pbkdf_memory: Size,
    /// Most threads argon2 may take
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub pbkdf_parallel: u32,
}

/// The new secret. Without any of these it is asked for on the terminal, twice.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "New key")]
pub struct NewKeyArgs {
    /// The new key is the raw content of this file (- is standard input)
    #[arg(long, value_name = "FILE")]
    pub new_key_file: Option<PathBuf>,
    /// Skip this many bytes of the new key file
    #[arg(long, value_name = "SIZE", requires = "new_key_file")]
    pub new_keyfile_offset: Option<Size>,
    /// Use only this many bytes of the new key file
    #[arg(long, value_name = "SIZE", requires = "new_key_file")]
    pub new_keyfile_size: Option<Size>,
    /// The new passphrase is the first line of this file
    #[arg(long, value_name = "FILE")]
    pub new_passphrase_file: Option<PathBuf>,
    /// The new passphrase is the first line read from this file descriptor
    #[arg(long, value_name = "FD")]
    pub new_passphrase_fd: Option<i32>,
    /// Put it into this key slot. Default: the first free one
    #[arg(long, value_name = "N")]
    pub new_key_slot: Option<u32>,
}

#[derive(Args, Debug)]
pub struct CryptAddKey {
    /// A file, device or NBD URI, in place of a stack
    pub image: Option<Place>,
    #[command(flatten)]
    pub stack: StackArgs,
    #[command(flatten)]
    pub new: NewKeyArgs,
    #[command(flatten)]
    pub pbkdf: PbkdfArgs,
    /// Prove the right to add a key with the volume key in this file, in place of an existing secret
    #[arg(long, value_name = "FILE")]
    pub volume_key_file: Option<PathBuf>,
    /// The slot gets a fresh random key that opens no volume (LUKS2); needs no existing secret
    #[arg(long, conflicts_with = "volume_key_file")]
    pub unbound: bool,
    /// Length of an unbound key, in bits
    #[arg(long, value_name = "BITS", default_value_t = 512, requires = "unbound")]
    pub key_size: usize,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct CryptChangeKey {
    /// A file, device or NBD URI, in place of a stack
    pub image: Option<Place>,
    #[command(flatten)]
    pub stack: StackArgs,
    #[command(flatten)]
    pub new: NewKeyArgs,
    #[command(flatten)]
    pub pbkdf: PbkdfArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct CryptRemoveKey {
    /// A file, device or NBD URI, in place of a stack
    pub image: Option<Place>,
    #[command(flatten)]
    pub stack: StackArgs,
    /// Remove it although it is the last: all data is lost
    #[arg(long)]
    pub force: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct CryptKillSlot {
    /// A file, device or NBD URI, in place of a stack, and the number of the slot
    #[arg(value_name = "[IMAGE] SLOT", required = true, num_args = 1..=2)]
    pub words: Vec<String>,
    #[command(flatten)]
    pub stack: StackArgs,
    /// Without the secret of a slot that stays, and although it may be the last: all data may be lost
    #[arg(long)]
    pub force: bool,
}

#[derive(Args, Debug)]
pub struct CryptErase {
    /// A file, device or NBD URI, in place of a stack
    pub image: Option<Place>,
    #[command(flatten)]
    pub stack: StackArgs,
    /// Do not ask
    #[arg(long)]
    pub force: bool,
}
