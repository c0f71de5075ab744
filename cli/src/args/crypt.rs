//! The words of `varve crypt`.

use super::StackArgs;
use crate::size::Size;
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

#[derive(Subcommand, Debug)]
pub enum CryptVerb {
    /// Make a LUKS volume; data on it is lost
    Format(CryptFormat),
    /// Print the header
    Dump(CryptDump),
    /// Say whether a key opens the volume, and which slot; changes nothing
    Test(CryptTest),
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum LuksType {
    Luks1,
    Luks2,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum PbkdfArg {
    Pbkdf2,
    Argon2i,
    Argon2id,
}

#[derive(Args, Debug)]
pub struct CryptFormat {
    /// A file or device, in place of a stack
    pub image: Option<PathBuf>,
    #[command(flatten)]
    pub stack: StackArgs,
    /// Header format
    #[arg(long = "type", value_enum, default_value = "luks2", value_name = "TYPE")]
    pub luks_type: LuksType,
    /// Cipher, as cryptsetup names it
    #[arg(long, default_value = "aes-xts-plain64", value_name = "SPEC")]
    pub cipher: String,
    /// Volume key, in bits (XTS uses two keys of half that)
    #[arg(long, default_value_t = 512, value_name = "BITS")]
    pub key_size: u32,
    /// Encryption sector. Default: 4096 where size and device allow, else 512; LUKS1 has 512
    #[arg(long, value_name = "SIZE")]
    pub sector_size: Option<Size>,
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
    /// UUID of the volume. Default: random
    #[arg(long, value_name = "UUID")]
    pub uuid: Option<uuid::Uuid>,
    /// Label (LUKS2)
    #[arg(long, value_name = "TEXT")]
    pub label: Option<String>,
    /// Subsystem label (LUKS2)
    #[arg(long, value_name = "TEXT")]
    pub subsystem: Option<String>,
    /// Format although the device holds something known
    #[arg(long)]
    pub force: bool,
}

#[derive(Args, Debug)]
pub struct CryptDump {
    /// A file or device, in place of a stack
    pub image: Option<PathBuf>,
    #[command(flatten)]
    pub stack: StackArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct CryptTest {
    /// A file or device, in place of a stack
    pub image: Option<PathBuf>,
    #[command(flatten)]
    pub stack: StackArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
