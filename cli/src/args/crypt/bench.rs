//! The words of `varve crypt bench`.

use super::CipherArgs;
use crate::size::Size;
use clap::{Args, ValueEnum};

/// Half of the benchmark.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum BenchHalf {
    /// Key derivation: what unlocking costs
    Kdf,
    /// Ciphers: what reading and writing costs
    Cipher,
}

#[derive(Args, Debug)]
pub struct CryptBench {
    /// Only this half
    #[arg(long, value_enum, value_name = "WHAT")]
    pub only: Option<BenchHalf>,
    #[command(flatten)]
    pub cipher: CipherArgs,
    /// Bytes per request
    #[arg(long, default_value = "64k", value_name = "SIZE")]
    pub request: Size,
    /// Turns per engine, of which the shortest counts
    #[arg(long, default_value_t = 25, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rounds: u32,
    /// Only this hash of pbkdf2, and no argon2
    #[arg(long, value_name = "HASH")]
    pub hash: Option<String>,
    /// Unlocking with argon2 should take this long
    #[arg(long, default_value_t = 2000, value_name = "MS", value_parser = clap::value_parser!(u32).range(1..=600_000))]
    pub iter_time: u32,
    /// Most memory argon2 may take; half of the machine's is the limit, too
    #[arg(long, default_value = "1G", value_name = "SIZE")]
    pub pbkdf_memory: Size,
    /// Most threads argon2 may take
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub pbkdf_parallel: u32,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
