//! Programs run to their end, with a time limit, and what they said.

use std::io::{Read as _, Seek as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::clock;

/// Long enough for the slowest tool on a busy machine; a test that hangs still ends.
pub const LIMIT: Duration = Duration::from_secs(180);

/// A program that has ended.
#[derive(Debug)]
pub struct Finished {
    /// The command line, for messages.
    pub what: String,
    /// `None` when a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// Its standard output, given that it exited with 0.
    ///
    /// # Panics
    /// When it did not, with all it said.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self}");
        self.stdout
    }

    /// Its standard error, given that it exited with `code`.
    ///
    /// # Panics
    /// When it ended in any other way.
    #[track_caller]
    pub fn exits_with(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self}");
        self.stderr
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Finished { what, code, stdout, stderr } = self;
        match code {
            Some(code) => write!(f, "`{what}` exited with {code}")?,
            None => write!(f, "`{what}` was ended by a signal")?,
        }
        write!(f, "\n--- stdout\n{stdout}\n--- stderr\n{stderr}")
    }
}

/// Runs a program to its end.
///
/// Output goes through files, so a program that leaves a daemon behind does not hold us.
///
/// # Panics
/// When it cannot be started, or has not ended after `limit` (it is killed then).
#[track_caller]
pub fn run_for(limit: Duration, command: &mut Command) -> Finished {
    let what = describe(command);
    let mut stdout = tempfile::tempfile().expect("a temporary file");
    let mut stderr = tempfile::tempfile().expect("a temporary file");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone().expect("another handle"))
        .stderr(stderr.try_clone().expect("another handle"))
        .spawn()
        .unwrap_or_else(|error| panic!("`{what}` does not start: {error}"));
    let status = wait(&mut child, limit);
    let read = |file: &mut std::fs::File| {
        let mut bytes = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("reading back output");
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let (stdout, stderr) = (read(&mut stdout), read(&mut stderr));
    let Some(status) = status else {
        end(&mut child);
        panic!("`{what}` has not ended after {limit:?}\n{stdout}\n--- stderr\n{stderr}");
    };
    Finished { what, code: status.code(), stdout, stderr }
}

/// [`run_for`] with the usual limit.
#[track_caller]
pub fn run(command: &mut Command) -> Finished {
    run_for(LIMIT, command)
}

/// Runs a line of shell; for the pipelines that no single tool does.
#[track_caller]
pub fn sh(line: &str) -> Finished {
    run(Command::new("bash").args(["-ec", line]))
}

/// Waits for a child's end; `None` when it outlives the limit.
pub fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    clock::wait_for(limit, || child.try_wait().expect("asking for a child's state"))
}

/// Kills a child and takes its end. Does nothing to one that has ended already.
pub fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
