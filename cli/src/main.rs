use clap::Parser;
use std::process::ExitCode;
use varve::args::Cli;
use varve::failure;

fn main() -> ExitCode {
    varve::no_dumps();
    let cli = Cli::parse();
    match varve::run(cli) {
        Ok(outcome) => outcome.into(),
        Err(error) => failure::report(&error),
    }
}
