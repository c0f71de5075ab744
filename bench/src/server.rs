//! A server under test: a process and its socket.

use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub(crate) struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    /// Starts `command` and waits until `socket` is there.
    pub(crate) fn start(mut command: Command, socket: &Path) -> anyhow::Result<Server> {
        let shown = format!("{command:?}");
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {shown}"))?;
        let mut server = Server { child, socket: socket.to_owned() };
        for _ in 0..1000 {
            if socket.exists() {
                return Ok(server);
            }
            if let Some(status) = server.child.try_wait()? {
                bail!("{shown} ended with {status}");
            }
            pause();
        }
        bail!("{shown} made no socket within 10 s")
    }

    /// User and system time of the whole process so far, in seconds.
    pub(crate) fn cpu_s(&self) -> anyhow::Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The second field is a name in parentheses and may hold spaces; count behind it.
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
        let ticks: Vec<f64> = fields.skip(11).take(2).filter_map(|f| f.parse().ok()).collect();
        let [user, system] = ticks[..] else { bail!("/proc stat has no times") };
        Ok((user + system) / rustix::param::clock_ticks_per_second() as f64)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            // One that has ended already needs no signal.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        }
        for _ in 0..1000 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                break;
            }
            pause();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}

#[expect(clippy::disallowed_methods, reason = "the benchmark driver waits for other processes")]
fn pause() {
    std::thread::sleep(Duration::from_millis(10));
}
