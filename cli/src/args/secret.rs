//! The words that say what unlocks, and what unlocking may cost.

use crate::size::Size;
use clap::Args;
use std::path::PathBuf;

/// Where the secret is read from.
#[derive(Args, Debug, Clone, Default)]
pub struct SecretArgs {
    /// Unlock with the raw content of this file
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Skip this many bytes of the key file
    #[arg(long, value_name = "SIZE", requires = "key_file")]
    pub keyfile_offset: Option<Size>,
    /// Use only this many bytes of the key file
    #[arg(long, value_name = "SIZE", requires = "key_file")]
    pub keyfile_size: Option<Size>,
    /// Unlock with the first line of this file
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// Unlock with the first line read from this file descriptor
    #[arg(long, value_name = "FD")]
    pub passphrase_fd: Option<i32>,
}

/// What is refused unless the operator says so.
#[derive(Args, Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AllowedArgs {
    /// Run a key derivation however much memory and time the header asks for
    #[arg(long)]
    pub allow_costly_kdf: bool,
    /// Open a volume whose key is zero, or has two equal halves, to rescue its data
    #[arg(long)]
    pub allow_weak_key: bool,
}

impl AllowedArgs {
    /// Said here or in a stack file.
    pub(crate) fn or(self, file: AllowedArgs) -> AllowedArgs {
        AllowedArgs {
            allow_costly_kdf: self.allow_costly_kdf || file.allow_costly_kdf,
            allow_weak_key: self.allow_weak_key || file.allow_weak_key,
        }
    }

    /// How to open a volume, or what the header says of one.
    pub(crate) fn options(self, slot: Option<u32>) -> varve_crypt::UnlockOptions {
        let limits = if self.allow_costly_kdf {
            varve_crypt::Limits::format_maximum()
        } else {
            varve_crypt::Limits::default()
        };
        varve_crypt::UnlockOptions {
            slot,
            limits,
            allow_weak_key: self.allow_weak_key,
            ..varve_crypt::UnlockOptions::default()
        }
    }
}
