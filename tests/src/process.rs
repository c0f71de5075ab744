//! Programs run to their end, with a time limit, and what they said.

use std::io::{Read as _, Seek as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

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

/// Kills a child in a state that shows from outside, whatever the speed of the machine: `is_time` is asked while
/// the child runs, and again once it stands still, so what it said then is how the child leaves the world.
///
/// # Errors
/// How it ended by itself, or that the time never came; it does not run any more then, either.
pub fn kill_when(
    child: &mut Child,
    limit: Duration,
    mut is_time: impl FnMut() -> bool,
) -> Result<(), String> {
    let pid = Pid::from_child(child);
    let deadline = clock::Deadline::after(limit);
    let met = loop {
        if let Some(status) = child.try_wait().expect("asking for a child's state") {
            break Err(format!("ended by itself before its time, with {status}"));
        }
        if deadline.passed() {
            break Err(format!("has not come so far in {limit:?}"));
        }
        if is_time() && stop(pid) {
            if is_time() {
                break Ok(());
            }
            kill_process(pid, Signal::CONT).expect("a child that waits");
        }
        // Some of these times are short.
        clock::pause(Duration::from_millis(1));
    };
    end(child);
    met
}

/// Lets a child stand still, all its threads; false when it has ended.
fn stop(pid: Pid) -> bool {
    kill_process(pid, Signal::STOP).expect("sending a signal to our own child");
    // Its end is left for whoever asks for it.
    let either = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    let state = waitid(WaitId::Pid(pid), either).expect("our own child");
    state.is_some_and(|state| state.stopped())
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
