//! The words of `varve crypt`.

mod bench;
mod cipher;
mod control;
mod header;
mod keys;
mod reencrypt;
mod reproduce;

pub use bench::*;
pub use cipher::*;
pub use control::*;
pub use header::*;
pub use keys::*;
pub use reencrypt::*;
pub use reproduce::*;

use super::StackArgs;
use crate::place::Place;
use crate::size::Size;
use clap::{Args, Subcommand, ValueEnum};

#[derive(Subcommand, Debug)]
pub enum CryptVerb {
    /// Make a LUKS volume; data on it is lost
    Format(CryptFormat),
    /// Print the header
    Dump(CryptDump),
    /// Say whether a key opens the volume, and which slot; changes nothing
    Test(CryptTest),
    /// Add a passphrase or key file
    AddKey(CryptAddKey),
    /// Replace a passphrase or key file; at every moment one of the two opens the volume
    ChangeKey(CryptChangeKey),
    /// Remove the passphrase or key file that is given
    RemoveKey(CryptRemoveKey),
    /// Remove a key slot by its number
    KillSlot(CryptKillSlot),
    /// Destroy all key slots: the data is lost without a header backup
    Erase(CryptErase),
    /// Save header and key slots to a file
    HeaderBackup(CryptHeaderBackup),
    /// Put a saved header back
    HeaderRestore(CryptHeaderRestore),
    /// Make a LUKS1 volume LUKS2, or the reverse, in place
    Convert(CryptConvert),
    /// Give the data another key, or another cipher or sector size, in place (LUKS2)
    Reencrypt(CryptReencrypt),
    /// Make a damaged or stale copy of the header whole again
    Repair(CryptRepair),
    /// Print the UUID, or set another
    Uuid(CryptUuid),
    /// Say by the exit code whether there is a LUKS header (0) or not (1)
    IsLuks(CryptIsLuks),
    /// Change label, subsystem, flags or a slot's priority (LUKS2)
    Config(CryptConfigure),
    /// Wipe the key of a volume that is being served; its requests are held, not failed
    Suspend(CryptSuspend),
    /// Give a suspended volume its key back
    Resume(CryptResume),
    /// Reproduce metadata corruption on encrypted disks (March 2024) in a simulated world, from a seed
    Reproduce(CryptReproduce),
    /// Measure key derivations and ciphers on this machine
    Bench(CryptBench),
    /// List, import, export or remove tokens (LUKS2)
    #[command(subcommand)]
    Token(CryptTokenVerb),
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
    /// A file, device or NBD URI, in place of a stack
    pub image: Option<Place>,
    #[command(flatten)]
    pub stack: StackArgs,
    /// Header format
    #[arg(long = "type", value_enum, default_value = "luks2", value_name = "TYPE")]
    pub luks_type: LuksType,
    /// Cipher, as cryptsetup names it
    #[arg(long, default_value = "aes-xts-plain64", value_name = "SPEC")]
    pub cipher: String,
    /// Volume key, in bits (XTS uses two keys of half that). Default: 512; 256 for aes-gcm and chacha20
    #[arg(long, value_name = "BITS")]
    pub key_size: Option<u32>,
    /// Encryption sector. Default: 4096 where size and device allow, else 512; LUKS1 has 512
    #[arg(long, value_name = "SIZE")]
    pub sector_size: Option<Size>,
    #[command(flatten)]
    pub pbkdf: PbkdfArgs,
    /// UUID of the volume. Default: random
    #[arg(long, value_name = "UUID")]
    pub uuid: Option<uuid::Uuid>,
    /// Label (LUKS2)
    #[arg(long, value_name = "TEXT")]
    pub label: Option<String>,
    /// Subsystem label (LUKS2)
    #[arg(long, value_name = "TEXT")]
    pub subsystem: Option<String>,
    /// Authenticate every sector (LUKS2): hmac-sha256, hmac-sha512 or hmac-sha1 with aes-xts, aead with
    /// aes-gcm-random, poly1305 with chacha20-random. Every sector is written once
    #[arg(long, value_name = "TYPE")]
    pub integrity: Option<String>,
    /// Do not write every sector: one that was never written cannot be read
    #[arg(long, requires = "integrity")]
    pub integrity_no_wipe: bool,
    /// Write without a journal, always: faster, and a power cut can make sectors unreadable
    #[arg(long, requires = "integrity")]
    pub integrity_no_journal: bool,
    /// Format although the device holds something known
    #[arg(long)]
    pub force: bool,
}

#[derive(Args, Debug)]
pub struct CryptDump {
    /// A file, device or NBD URI, in place of a stack
    pub image: Option<Place>,
    #[command(flatten)]
    pub stack: StackArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct CryptTest {
    /// A file, device or NBD URI, in place of a stack
    pub image: Option<Place>,
    #[command(flatten)]
    pub stack: StackArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
