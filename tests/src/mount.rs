//! An NBD export as a disk of the running kernel, without a kernel module of ours: `nbdfuse` shows it
//! as a file, a loop device makes a disk of that, and the kernel's own file systems stand on it.
//!
//! Everything is taken down in reverse order when dropped, however the test ends.

use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::{clock, process, tool};

/// The programs this module needs.
pub const TOOLS: &[&str] = &["nbdfuse", "losetup", "mount", "umount", "fusermount3"];

/// How long a FUSE mount or a busy unmount may take.
const LIMIT: Duration = Duration::from_secs(20);

/// Whether this machine can show an export as a disk; prints the reason otherwise.
#[must_use]
pub fn available() -> bool {
    tool::have(TOOLS) && tool::have_root() && has(&["/dev/fuse", "/dev/loop-control"])
}

/// Whether these devices are there; prints which one is not otherwise.
pub(crate) fn has(devices: &[&str]) -> bool {
    let absent = devices.iter().find(|device| !Path::new(device).exists());
    if let Some(device) = absent {
        tool::skip(&format!("no {device}"));
    }
    absent.is_none()
}

/// Whether the running kernel mounts this type; prints the reason otherwise.
#[must_use]
pub fn kernel_knows(fs: &str) -> bool {
    // A file system in a module is listed only once it is loaded.
    let _ = Command::new("modprobe").arg(fs).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let found = known.lines().any(|line| line.split_whitespace().last() == Some(fs));
    if !found {
        tool::skip(&format!("the running kernel has no {fs}"));
    }
    found
}

/// An export seen as a file, by `nbdfuse`.
#[derive(Debug)]
pub struct NbdFile {
    nbdfuse: Child,
    dir: TempDir,
}

impl NbdFile {
    /// # Panics
    /// When the file does not appear.
    #[track_caller]
    pub fn open(uri: &str) -> NbdFile {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let nbdfuse = Command::new("nbdfuse")
            .arg(dir.path().join("disk"))
            .arg(uri)
            .stdin(Stdio::null())
            .stderr(Stdio::null()) // a line for every request that a killed server leaves behind
            .spawn()
            .expect("nbdfuse starts");
        let mut file = NbdFile { nbdfuse, dir };
        let appeared = clock::wait_for(LIMIT, || {
            let ended = file.nbdfuse.try_wait().expect("asking for a child's state").is_some();
            let there = std::fs::metadata(file.path()).is_ok_and(|disk| disk.len() > 0);
            (ended || there).then_some(there)
        });
        assert_eq!(appeared, Some(true), "nbdfuse shows nothing for {uri}");
        file
    }

    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("disk")
    }
}

impl Drop for NbdFile {
    fn drop(&mut self) {
        // Only the first unmount that succeeds counts; lazily at last, so that no mount is left.
        let unmount = |args: &[&str]| quiet("fusermount3", args, self.dir.path());
        if clock::wait_for(Duration::from_secs(2), || unmount(&["-u"]).then_some(())).is_none() {
            unmount(&["-u", "-z"]);
        }
        if process::wait(&mut self.nbdfuse, LIMIT).is_none() {
            process::end(&mut self.nbdfuse);
        }
    }
}

/// A loop device over an [`NbdFile`].
#[derive(Debug)]
pub struct LoopDisk {
    device: PathBuf,
    _file: NbdFile,
}

impl LoopDisk {
    /// # Panics
    /// When the kernel refuses.
    #[track_caller]
    pub fn open(uri: &str) -> LoopDisk {
        let file = NbdFile::open(uri);
        let out = process::run(
            Command::new("losetup").args(["--direct-io=on", "--find", "--show"]).arg(file.path()),
        );
        let device = PathBuf::from(out.ok().trim());
        LoopDisk { device, _file: file }
    }

    #[must_use]
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// Mounts it; the result must be dropped (or unmounted) before this disk.
    #[track_caller]
    pub fn mount(&self, fs: &str) -> Mounted<'_> {
        Mounted::new(fs, "noatime", &self.device)
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        clock::wait_for(LIMIT, || quiet("losetup", &["--detach"], &self.device).then_some(()));
    }
}

/// A mounted file system; unmounted when dropped.
#[derive(Debug)]
pub struct Mounted<'a> {
    dir: TempDir,
    mounted: bool,
    /// What it is mounted from stays as long.
    _disk: PhantomData<&'a LoopDisk>,
}

impl Mounted<'_> {
    /// # Panics
    /// When the kernel refuses.
    #[track_caller]
    pub(crate) fn new(fs: &str, options: &str, from: &Path) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut mount = Command::new("mount");
        process::run(mount.args(["-t", fs, "-o", options]).arg(from).arg(dir.path())).ok();
        Mounted { dir, mounted: true, _disk: PhantomData }
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Unmounts it, and fails if that fails: the last writes go out here.
    #[track_caller]
    pub fn unmount(mut self) {
        process::run(Command::new("umount").arg(self.path())).ok();
        self.mounted = false;
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if self.mounted && !quiet("umount", &[], self.path()) {
            quiet("umount", &["--lazy"], self.path());
        }
    }
}

/// Runs a program for its effect alone; whether it succeeded.
fn quiet(program: &str, args: &[&str], path: &Path) -> bool {
    Command::new(program)
        .args(args)
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
