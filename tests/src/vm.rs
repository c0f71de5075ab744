//! A Linux 6.12 guest with Debian's own bcache, dm-crypt, btrfs and nbd: the judge of what we write,
//! and the maker of what we must read.
//!
//! `tests/vm/prepare` builds it from Debian packages once, into `tests/.cache/vm`. The guest is emulated
//! (no KVM needed) and boots in about five seconds. A script runs in it as root, in a folder shared with
//! the host (`/host` inside), with the given images as `/dev/vda`, `/dev/vdb` and so on.
//!
//! ```no_run
//! # use std::{path::Path, time::Duration};
//! # let hdd = Path::new("hdd.img");
//! let vm = match varve_tests::vm::Vm::available() {
//!     Ok(vm) => vm,
//!     Err(reason) => return varve_tests::tool::skip(&reason),
//! };
//! let out = vm.run("bcache-super-show /dev/vda", &[hdd], Duration::from_secs(60));
//! assert_eq!(out.code, Some(0), "{out}");
//! ```
//!
//! A script that ends in `echo b >/proc/sysrq-trigger` has cut the power: whatever the guest's kernel had
//! not yet handed to the disk is lost, and [`Output::code`] is `None`. [`Job::cut_when`] does the same from
//! outside, by killing the emulator.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tempfile::TempDir;

use crate::{process, repository};

/// Downloading a kernel and building a root, at worst.
const PREPARE_LIMIT: Duration = Duration::from_secs(900);

/// Guests at a time: each keeps one core busy and takes up to 2 GiB.
const GUESTS_MAX: usize = 2;

/// A guest that is ready to boot: only [`Vm::available`] makes one.
#[derive(Clone, Debug)]
pub struct Vm(());

/// How a guest ended.
#[derive(Debug)]
pub struct Output {
    /// The script's exit code; `None` when the power went first.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    /// What the kernel said.
    pub console: String,
    folder: TempDir,
}

impl Output {
    /// The script's standard output, given that it exited with 0.
    #[track_caller]
    pub fn ok(&self) -> &str {
        assert_eq!(self.code, Some(0), "{self}");
        &self.stdout
    }

    /// A file that the script left in `/host`.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    #[must_use]
    pub fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(name))
            .unwrap_or_else(|error| panic!("the guest left no {name}: {error}\n{self}"))
    }

    /// The bytes of a file that the script left in `/host`.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    #[must_use]
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.folder.path().join(name))
            .unwrap_or_else(|error| panic!("the guest left no {name}: {error}\n{self}"))
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Output { code, stdout, stderr, console, .. } = self;
        writeln!(f, "the guest's script ended with {code:?}")?;
        write!(f, "--- stdout\n{stdout}\n--- stderr\n{stderr}\n--- console\n{console}")
    }
}

impl Vm {
    /// The guest, built first if it is not there yet.
    ///
    /// # Errors
    /// The reason why there is none, in one line: no emulator, no network, not a Debian machine.
    pub fn available() -> Result<Vm, String> {
        static VM: OnceLock<Result<Vm, String>> = OnceLock::new();
        VM.get_or_init(|| {
            let script = repository().join("tests/vm/prepare");
            let out = process::run_for(PREPARE_LIMIT, &mut Command::new(script));
            match out.code {
                Some(0) => Ok(Vm(())),
                _ => Err(out.stderr.lines().last().unwrap_or("no guest").to_owned()),
            }
        })
        .clone()
    }

    /// Boots, runs `script` with `disks` attached writable, and returns when the guest has ended.
    ///
    /// # Panics
    /// When it has not ended after `limit`.
    #[track_caller]
    #[must_use]
    pub fn run(&self, script: &str, disks: &[&Path], limit: Duration) -> Output {
        let job = disks.iter().fold(self.job(script), |job, disk| job.disk(disk));
        job.run(limit)
    }

    /// A run with more to say about it.
    pub fn job(&self, script: &str) -> Job {
        let folder = tempfile::tempdir().expect("a folder to share with the guest");
        std::fs::write(folder.path().join("script"), script).expect("the guest's script");
        Job { folder, disks: Vec::new(), snapshot: false, network: false }
    }

    /// The same for a script kept in `tests/vm/guest`, after setting shell variables for it.
    ///
    /// # Panics
    /// When there is no such script.
    #[track_caller]
    pub fn guest_script(&self, name: &str, variables: &[(&str, &str)]) -> Job {
        let guest = repository().join("tests/vm/guest");
        let text = std::fs::read_to_string(guest.join(name)).expect("a script in tests/vm/guest");
        let head: String = variables.iter().map(|(k, v)| format!("{k}='{v}'\n")).collect();
        let job = self.job(&(head + &text));
        // What scripts share.
        ["bcache.sh", "tags.sh"].iter().fold(job, |job, name| job.file(name, &guest.join(name)))
    }
}

/// A guest about to be started.
#[derive(Debug)]
#[must_use]
pub struct Job {
    folder: TempDir,
    disks: Vec<PathBuf>,
    snapshot: bool,
    network: bool,
}

impl Job {
    /// Attaches an image as the next disk.
    pub fn disk(mut self, image: &Path) -> Self {
        self.disks.push(image.to_owned());
        self
    }

    /// The guest may write to its disks, but the images stay as they are.
    pub fn snapshot(mut self) -> Self {
        self.snapshot = true;
        self
    }

    /// A network card; the host is 10.0.2.2. The script configures it: see `network.sh`.
    pub fn network(mut self) -> Self {
        self.network = true;
        self
    }

    /// Puts a copy of a file into `/host`.
    #[track_caller]
    pub fn file(self, name: &str, from: &Path) -> Self {
        std::fs::copy(from, self.folder.path().join(name))
            .unwrap_or_else(|error| panic!("{}: {error}", from.display()));
        self
    }

    /// Boots it and waits for its end.
    ///
    /// # Panics
    /// When it has not ended after `limit`.
    #[track_caller]
    #[must_use]
    pub fn run(self, limit: Duration) -> Output {
        let output = self.end(|qemu| {
            let ended = process::wait(qemu, limit).is_some();
            process::end(qemu);
            ended.then_some(()).ok_or_else(|| format!("has not ended after {limit:?}"))
        });
        assert!(!output.console.is_empty(), "qemu did not start: {}", output.file("qemu"));
        output
    }

    /// Boots it, and cuts the power by killing the emulator in a state of its disks that shows from outside: see
    /// [`process::kill_when`].
    ///
    /// # Panics
    /// When it ends by itself, or the time does not come before `limit`.
    #[track_caller]
    #[must_use]
    pub fn cut_when(self, limit: Duration, is_time: impl FnMut() -> bool) -> Output {
        self.end(|qemu| process::kill_when(qemu, limit, is_time))
    }

    #[track_caller]
    fn end(self, wait: impl FnOnce(&mut Child) -> Result<(), String>) -> Output {
        let _turn = Turn::take();
        let mut qemu = self
            .command()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(self.folder.path().join("qemu")).expect("qemu's log"))
            .spawn()
            .expect("qemu starts");
        let ended = wait(&mut qemu);
        let read = |name: &str| {
            let bytes = std::fs::read(self.folder.path().join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let (stdout, stderr, console) = (read("stdout"), read("stderr"), read("console"));
        let code = read("status").trim().parse().ok();
        let qemu = read("qemu");
        let output = Output { code, stdout, stderr, console, folder: self.folder };
        if let Err(why) = ended {
            panic!("the guest {why}: {output}\n{qemu}");
        }
        assert!(!output.console.contains("guest: no "), "the guest did not boot: {output}\n{qemu}");
        output
    }

    fn command(&self) -> Command {
        let mut boot = Command::new(repository().join("tests/vm/boot"));
        if self.snapshot {
            boot.arg("--snapshot");
        }
        if self.network {
            boot.arg("--network");
        }
        boot.arg(self.folder.path()).args(&self.disks);
        boot
    }
}

/// One of the [`GUESTS_MAX`] places for a running guest.
struct Turn;

static RUNNING: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

impl Turn {
    fn take() -> Turn {
        let running = RUNNING.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut running = RUNNING
            .1
            .wait_while(running, |running| *running >= GUESTS_MAX)
            .unwrap_or_else(PoisonError::into_inner);
        *running += 1;
        Turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *RUNNING.0.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        RUNNING.1.notify_one();
    }
}
