//! The commands: a file for every noun.

mod cache;
pub(crate) mod crypt;
mod doctor;
mod fs;
mod integrity;
mod interrupt;
mod output;
mod progress;
mod report;
mod serve;
mod text;
mod up;

use crate::args::{CacheVerb, Cli, FsVerb, Noun};
use crate::failure::Outcome;
use crate::stack;
use std::future::Future;
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;
use varve_block::Rt;
use varve_block::rt::{self, Config};

/// Does what the command line asks for.
///
/// # Errors
/// [`crate::failure::Usage`] for a command line that makes no sense (exit code 2), anything else for
/// a command that could not run (exit code 3).
pub fn run(cli: Cli) -> anyhow::Result<Outcome> {
    // An export lists by itself what it could not read.
    let quiet = matches!(cli.noun, Noun::Fs(FsVerb::Export(_)));
    start_log(cli.verbose, quiet);
    match cli.noun {
        Noun::Up(args) => on_lane(|rt| async move { up::run(&rt, args).await }),
        Noun::Serve(args) => on_lane(|rt| async move { serve::run(&rt, args).await }),
        Noun::Cache(verb) => while_there(|rt| async move {
            match verb {
                CacheVerb::Make(args) => cache::make(&rt, args).await,
                CacheVerb::Show(args) => cache::show(&rt, args).await,
                CacheVerb::Check(args) => cache::check(&rt, args).await,
            }
        }),
        Noun::Crypt(verb) => while_there(|rt| async move { crypt::run(&rt, verb).await }),
        Noun::Integrity(verb) => while_there(|rt| async move { integrity::run(&rt, verb).await }),
        // As a disk that died: what is open gets errors, until somebody unmounts it.
        Noun::Fs(verb @ FsVerb::Mount(_)) => on_lane(|rt| async move { fs::run(&rt, verb).await }),
        Noun::Fs(verb) => while_there(|rt| async move { fs::run(&rt, verb).await }),
        Noun::Doctor(args) => doctor::run(&args),
    }
}

/// Runs a command on a lane of its own; the command's errors pass through.
fn on_lane<F>(command: impl FnOnce(Rt) -> F) -> anyhow::Result<Outcome>
where
    F: Future<Output = anyhow::Result<Outcome>> + 'static,
{
    rt::run(Config::default(), command)?
}

/// The same for a command that has nothing more to do once an export it stands on has gone.
fn while_there<F>(command: impl FnOnce(Rt) -> F + 'static) -> anyhow::Result<Outcome>
where
    F: Future<Output = anyhow::Result<Outcome>> + 'static,
{
    on_lane(|rt| stack::while_there(command(rt)))
}

/// Warnings and worse go to standard error; `-v` and `VARVE_LOG` (a filter such as
/// `varve_cache=debug`) let more through.
fn start_log(verbose: u8, quiet: bool) {
    let default = match verbose {
        0 if quiet => "error",
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    // The FUSE library warns of what is none of a user's business, as a mount that has ended already.
    let default = format!("{default},fuser=error");
    let filter = EnvFilter::try_from_env("VARVE_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    // A second start in one process (tests) keeps the first log.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .try_init();
}
