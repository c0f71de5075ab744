//! How a run ends: 0 fine, 1 problems found, 2 wrong usage, 3 could not run.

use std::fmt;
use std::process::ExitCode;

/// What a command found, when it could run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Fine,
    /// The command did its work, and what it looked at has problems.
    Problems,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> ExitCode {
        match outcome {
            Outcome::Fine => ExitCode::from(0),
            Outcome::Problems => ExitCode::from(1),
        }
    }
}

/// The command line asked for something that makes no sense.
#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// A usage error, ready to be returned.
pub fn usage<T>(text: impl Into<String>) -> anyhow::Result<T> {
    Err(Usage(text.into()).into())
}

/// One line on standard error, and the exit code.
pub fn report(error: &anyhow::Error) -> ExitCode {
    if is_broken_pipe(error) {
        // The reader of our output has seen enough; it is not an error of ours.
        return ExitCode::from(0);
    }
    eprintln!("varve: {}", one_line(error));
    ExitCode::from(if error.is::<Usage>() { 2 } else { 3 })
}

fn one_line(error: &anyhow::Error) -> String {
    varve_block::chain(error.as_ref()).replace('\n', "; ")
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|e| e.downcast_ref::<std::io::Error>())
        .any(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}
