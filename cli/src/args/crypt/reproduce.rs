//! The words of `varve crypt reproduce`.

use clap::Args;

#[derive(Args, Debug)]
pub struct CryptReproduce {
    /// Only the world of this seed. Default: as many as it takes, from 0
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Most seeds that are tried; without the defect all of them must pass
    #[arg(long, default_value_t = 100, value_name = "N", conflicts_with = "seed", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub seeds: u64,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
