//! `varve serve` and `varve up` as processes: started, waited for, interrupted, killed.

use std::ffi::OsString;
use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::nbd::Nbd;
use crate::process::{self, Finished};
use crate::varve;
use crate::{clock, disk};

/// How long a server may take until its socket answers: replaying a journal, unlocking a volume.
const START_LIMIT: Duration = Duration::from_secs(60);

/// How long a clean stop may take: the cache is flushed, not drained.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// A stack as the command line names it. Paths are relative to the folder the server runs in.
#[derive(Clone, Debug, Default)]
pub struct Stack(Vec<OsString>);

impl Stack {
    pub fn backing(path: impl Into<OsString>) -> Self {
        Stack(vec!["--backing".into(), path.into()])
    }

    /// Adds a flag with its value.
    #[must_use]
    pub fn with(mut self, flag: &str, value: impl Into<OsString>) -> Self {
        self.0.extend([flag.into(), value.into()]);
        self
    }

    /// Adds a flag that has no value.
    #[must_use]
    pub fn flag(mut self, flag: &str) -> Self {
        self.0.push(flag.into());
        self
    }

    #[must_use]
    pub fn cache(self, path: impl Into<OsString>) -> Self {
        self.with("--cache", path)
    }

    #[must_use]
    pub fn args(&self) -> &[OsString] {
        &self.0
    }
}

/// A running server. Dropped, it is killed: no test leaves one behind.
#[derive(Debug)]
pub struct Server {
    child: Child,
    what: String,
    listens: Listens,
    log: PathBuf,
}

/// Where a server answers.
#[derive(Clone, Debug)]
enum Listens {
    Unix(PathBuf),
    /// A port on the loopback interface.
    Tcp(u16),
}

impl Listens {
    /// What lies at the socket's place. A killed server leaves its socket behind, and the kernel may go on
    /// accepting there for a moment, while it takes down the dead server's ring.
    fn left_behind(&self) -> Option<u64> {
        match self {
            Listens::Unix(path) => std::fs::metadata(path).ok().map(|meta| meta.ino()),
            Listens::Tcp(_) => None,
        }
    }

    /// Whether somebody answers, other than at the socket that was `left_behind`.
    fn answers(&self, left_behind: Option<u64>) -> bool {
        match self {
            Listens::Unix(path) => {
                self.left_behind() != left_behind && UnixStream::connect(path).is_ok()
            }
            Listens::Tcp(port) => TcpStream::connect(("127.0.0.1", *port)).is_ok(),
        }
    }
}

impl Server {
    /// `varve serve STACK --listen unix:...`, in `dir`; returns once the socket is there.
    ///
    /// # Panics
    /// When it does not come up, with its log.
    #[track_caller]
    pub fn start(dir: &Path, stack: &Stack) -> Server {
        match Self::try_start(dir, stack) {
            Ok(server) => server,
            Err(finished) => panic!("the server does not come up: {finished}"),
        }
    }

    /// The same, where ending with an error is a lawful answer.
    ///
    /// # Errors
    /// The server's end, when it ends before the socket is there.
    ///
    /// # Panics
    /// When it neither ends nor listens in time.
    #[track_caller]
    pub fn try_start(dir: &Path, stack: &Stack) -> Result<Server, Finished> {
        let socket = dir.join("s.sock");
        let listen = format!("unix:{}", socket.display());
        Self::spawn(dir, serve(stack, &listen), Listens::Unix(socket))
    }

    /// The same over TCP, on a free port of the loopback interface, which it returns.
    #[track_caller]
    pub fn start_tcp(dir: &Path, stack: &Stack) -> (Server, u16) {
        // Free a moment ago: the kernel does not hand it out again so soon.
        let free = TcpListener::bind(("127.0.0.1", 0)).and_then(|free| free.local_addr());
        let port = free.expect("a free port").port();
        let command = serve(stack, &format!("tcp:127.0.0.1:{port}"));
        match Self::spawn(dir, command, Listens::Tcp(port)) {
            Ok(server) => (server, port),
            Err(finished) => panic!("the server does not come up: {finished}"),
        }
    }

    /// `varve up DIR`.
    #[track_caller]
    pub fn up(dir: &Path) -> Server {
        let mut command = Command::new(varve::binary());
        command.arg("up").arg(dir);
        match Self::spawn(dir, command, Listens::Unix(dir.join("varve.sock"))) {
            Ok(server) => server,
            Err(finished) => panic!("`up` does not come up: {finished}"),
        }
    }

    /// Any command that listens on this Unix socket, started in `dir`.
    ///
    /// # Errors
    /// As [`Server::try_start`].
    #[track_caller]
    pub fn listening(dir: &Path, command: Command, socket: &Path) -> Result<Server, Finished> {
        Self::spawn(dir, command, Listens::Unix(socket.to_owned()))
    }

    #[track_caller]
    fn spawn(dir: &Path, mut command: Command, listens: Listens) -> Result<Server, Finished> {
        let left_behind = listens.left_behind();
        let log = dir.join("server.log");
        let output = File::create(&log).expect("the server's log");
        let child = command
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("another handle"))
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        let mut server = Server { child, what: format!("{command:?}"), listens, log };
        let answer = clock::wait_for(START_LIMIT, || {
            match server.child.try_wait().expect("asking for a child's state") {
                Some(status) => Some(Err(status.code())),
                None => server.listens.answers(left_behind).then_some(Ok(())),
            }
        });
        match answer {
            Some(Ok(())) => Ok(server),
            Some(Err(code)) => Err(server.finished(code)),
            None => panic!("{} neither ends nor listens\n{}", server.what, server.log()),
        }
    }

    /// The end of this process, with its log as the standard error.
    fn finished(&self, code: Option<i32>) -> Finished {
        let (what, stderr) = (self.what.clone(), self.log());
        Finished { what, code, stdout: String::new(), stderr }
    }

    /// The Unix socket it answers on.
    ///
    /// # Panics
    /// For a server on TCP.
    #[must_use]
    pub fn socket(&self) -> &Path {
        match &self.listens {
            Listens::Unix(path) => path,
            Listens::Tcp(port) => panic!("listens on port {port}, not on a socket"),
        }
    }

    /// The default export's address, as libnbd, fio and QEMU take it.
    #[must_use]
    pub fn uri(&self) -> String {
        match &self.listens {
            Listens::Unix(path) => format!("nbd+unix:///?socket={}", path.display()),
            Listens::Tcp(port) => format!("nbd://127.0.0.1:{port}"),
        }
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to its standard output and error.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read(&self.log)
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    /// A connection of our own.
    #[track_caller]
    pub fn connect(&self) -> Nbd {
        Nbd::connect(self.socket())
            .unwrap_or_else(|error| panic!("connecting: {error}\n{}", self.log()))
    }

    /// Copies a whole export into a sparse file.
    ///
    /// # Panics
    /// When a read fails.
    #[track_caller]
    pub fn copy_to(&self, to: &Path) {
        const STEP: u32 = 1 << 20;
        let mut nbd = self.connect();
        disk::sparse(to, nbd.size());
        let file = File::options().write(true).open(to).expect("the copy");
        let mut at = 0;
        while at < nbd.size() {
            let len = u32::try_from(nbd.size() - at).map_or(STEP, |rest| rest.min(STEP));
            let data = nbd.read(at, len).expect("the server stays").unwrap_or_else(|errno| {
                panic!("reading {len} bytes at {at}: {errno:?}");
            });
            if data.iter().any(|&byte| byte != 0) {
                file.write_all_at(&data, at).expect("writing the copy");
            }
            at += u64::from(len);
        }
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        self.child.try_wait().expect("asking for a child's state").is_none()
    }

    /// SIGINT, and a clean end: exit code 0, the socket gone.
    #[track_caller]
    pub fn stop(self) {
        let listens = self.listens.clone();
        self.signal(Signal::INT).ok();
        if let Listens::Unix(socket) = listens {
            assert!(!socket.exists(), "the socket outlives a clean stop");
        }
    }

    /// Sends a signal and waits for the end.
    ///
    /// # Panics
    /// When the end does not come.
    #[track_caller]
    pub fn signal(mut self, signal: Signal) -> Finished {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("sending a signal to our own child");
        match process::wait(&mut self.child, STOP_LIMIT) {
            Some(status) => self.finished(status.code()),
            None => panic!("{} ignores {signal:?}\n{}", self.what, self.log()),
        }
    }

    /// `kill -9`: nothing is flushed, nothing is said.
    #[track_caller]
    pub fn kill(self) {
        let finished = self.signal(Signal::KILL);
        assert_eq!(finished.code, None, "ended before it could be killed: {finished}");
    }

    /// `kill -9` in a state that shows from outside: see [`process::kill_when`].
    ///
    /// # Panics
    /// When it ends by itself, or the time never comes.
    #[track_caller]
    pub fn kill_when(mut self, is_time: impl FnMut() -> bool) {
        if let Err(why) = process::kill_when(&mut self.child, process::LIMIT, is_time) {
            panic!("{} {why}", self.what);
        }
    }

    /// `kill -9` in `delay` from now, from outside, so that the test can be in the middle of something.
    /// Take the end with [`Server::wait_killed`].
    pub fn kill_in(&self, delay: Duration) {
        let line = format!("(sleep {}; kill -9 {}) &", delay.as_secs_f64(), self.pid());
        let started = Command::new("sh")
            .args(["-c", &line])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status();
        assert!(started.is_ok_and(|status| status.success()), "`{line}` does not start");
    }

    /// Waits for the end that [`Server::kill_in`] announced.
    #[track_caller]
    pub fn wait_killed(mut self) {
        let status = process::wait(&mut self.child, STOP_LIMIT).expect("the announced kill");
        assert_eq!(status.code(), None, "ended by itself: {}", self.finished(status.code()));
    }
}

fn serve(stack: &Stack, listen: &str) -> Command {
    let mut command = Command::new(varve::binary());
    command.arg("serve").args(stack.args()).args(["--listen", listen]);
    command
}

impl Drop for Server {
    fn drop(&mut self) {
        process::end(&mut self.child);
        if std::thread::panicking() {
            eprintln!("--- log of {}\n{}", self.what, self.log());
        }
    }
}
