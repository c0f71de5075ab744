//! The words of `varve crypt suspend` and `resume`.

use super::StackArgs;
use crate::size::Size;
use clap::Args;
use std::path::PathBuf;
use varve_nbd_server::Listen;

#[derive(Args, Debug)]
pub struct CryptSuspend {
    /// The control socket of the server: unix:PATH
    #[arg(long, value_name = "ADDR")]
    pub control: Listen,
}

#[derive(Args, Debug)]
pub struct CryptResume {
    /// The control socket of the server: unix:PATH
    #[arg(long, value_name = "ADDR")]
    pub control: Listen,
    #[command(flatten)]
    pub secret: SecretArgs,
}

/// The secret that unlocks again. Without any of these it is asked for on the terminal.
#[derive(Args, Debug, Clone)]
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

impl SecretArgs {
    /// The same words among those of a stack.
    pub(crate) fn as_stack(&self) -> StackArgs {
        StackArgs {
            key_file: self.key_file.clone(),
            keyfile_offset: self.keyfile_offset,
            keyfile_size: self.keyfile_size,
            passphrase_file: self.passphrase_file.clone(),
            passphrase_fd: self.passphrase_fd,
            ..StackArgs::default()
        }
    }
}
