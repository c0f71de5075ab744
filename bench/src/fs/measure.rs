//! Time and peak memory of a program.

use anyhow::{Context, bail};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// One run.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Run {
    pub(crate) seconds: f64,
    /// `None` where it is not a program's.
    pub(crate) peak_kib: Option<u64>,
}

/// Runs a program to its end. Its peak memory is asked for until it ends; the last answer may be of a
/// millisecond before.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<Run> {
    let shown = format!("{command:?}");
    let errors = nowhere()?;
    let (done, seconds) = timed(|| -> anyhow::Result<_> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors.try_clone()?)
            .spawn()
            .with_context(|| format!("cannot start {shown}"))?;
        let mut peak: Option<u64> = None;
        loop {
            // A program that starts another in its place counts anew.
            peak = peak.max(peak_kib(child.id()));
            if let Some(status) = child.try_wait()? {
                return Ok((status, peak));
            }
            pause(1);
        }
    });
    let (status, peak_kib) = done?;
    if !status.success() {
        bail!("{shown} ended with {status}");
    }
    Ok(Run { seconds, peak_kib })
}

/// What programs say while they are measured is not looked at, and must not fill a pipe.
fn nowhere() -> anyhow::Result<std::fs::File> {
    std::fs::File::options().write(true).open("/dev/null").context("no /dev/null")
}

/// The most memory that a process has held so far.
pub(crate) fn peak_kib(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[expect(clippy::disallowed_methods, reason = "the benchmark measures other programs")]
pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let start = Instant::now();
    let done = work();
    (done, start.elapsed().as_secs_f64())
}

#[expect(clippy::disallowed_methods, reason = "the benchmark driver waits for other processes")]
pub(crate) fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_memory_and_failure_of_a_program_are_seen() {
        let run_of = |line: &str| run(Command::new("bash").args(["-c", line]));
        let slept = run_of("sleep 0.2").unwrap();
        assert!(slept.seconds >= 0.2 && slept.peak_kib.unwrap() > 500, "{slept:?}");
        let filled = run_of("x=$(head -c 40000000 /dev/zero | tr '\\0' x); sleep 0.1").unwrap();
        assert!(filled.peak_kib.unwrap() > 40_000, "{filled:?}");
        assert!(run_of("exit 3").is_err());
    }
}
