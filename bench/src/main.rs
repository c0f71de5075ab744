//! Macro benchmarks: the same load on rivals and on Varve, in turn, in one run, as ratios.
//!
//! Absolute figures move from machine to machine and from run to run; a ratio between two servers
//! that ran seconds apart moves much less. Nothing here is asserted: it prints.

mod crypt;
mod fio;
mod fs;
mod ram;
mod server;
mod suite;
mod table;

use clap::{Parser, Subcommand};
use std::path::PathBuf;

#[derive(Parser, Debug)]
#[command(name = "varve-bench", version)]
struct Cli {
    /// The varve binary to measure
    #[arg(long, default_value = "target/release/varve")]
    varve: PathBuf,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// NBD servers: nbdkit, qemu-nbd and Varve over memory, a file, LUKS, and the full stack
    Nbd(suite::Options),
    /// Encryption: AES-XTS per engine beside OpenSSL and the kernel, and served LUKS volumes beside nbdkit and qemu-nbd
    Crypt(suite::Options),
    /// The file system: check, export and reading, beside btrfs-progs and the kernel
    Fs(fs::Options),
    /// Read files through the library alone (a run of `fs`)
    #[command(hide = true)]
    Library { what: String, image: PathBuf, files: u64 },
    /// Serve RAM over NBD with Varve's server alone (a rival of `nbdkit memory`)
    #[command(hide = true)]
    Ram { socket: PathBuf, mib: u64 },
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match cli.what {
        What::Nbd(options) => suite::nbd(&cli.varve, &options),
        What::Crypt(options) => crypt::run(&cli.varve, &options),
        What::Fs(options) => fs::bench(&cli.varve, &options),
        What::Library { what, image, files } => fs::by_library(&what, &image, files),
        What::Ram { socket, mib } => ram::serve(&socket, mib),
    }
}
