//! Seeded worlds: power cuts, faults, and bugs switched on to see that they are caught.
//!
//! `VARVE_SEEDS=17,99` or `VARVE_SEEDS=1..5000` replays; without it every run takes fresh seeds.

mod cache;
mod crypt;
mod export;
mod exported;
mod promises;
mod s26;
mod scenarios;
mod soak;
