//! The `varve` program: the only crate that knows all layers.
//!
//! [`args`] is the command line, [`config`] the checked meaning of its stack flags, [`stack`] builds
//! what was asked for, and `cmd` has a file for every noun.

pub mod args;
mod cmd;
mod config;
mod control;
mod draw;
pub mod failure;
mod harden;
mod live;
mod notify;
mod place;
mod secret;
mod signature;
mod size;
mod stack;

pub use cmd::run;
pub use harden::no_dumps;
