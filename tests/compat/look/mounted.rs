//! `varve fs mount` against a kernel mount of the same image.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use varve_tests::loop_mount::{self, LoopMount};
use varve_tests::{clock, disk, process, tool, varve};

const LIMIT: Duration = Duration::from_secs(60);

pub(super) fn available() -> bool {
    if !loop_mount::available() || !tool::have(&["rsync", "getfattr", "find"]) {
        return false;
    }
    if !Path::new("/dev/fuse").exists() {
        tool::skip("no /dev/fuse");
        return false;
    }
    true
}

/// A mount of ours: `varve fs mount` as a process, and its folder.
pub(super) struct Ours {
    child: Child,
    dir: tempfile::TempDir,
    log: tempfile::NamedTempFile,
}

impl Ours {
    #[track_caller]
    pub(super) fn open(image: &Path, flags: &[&str]) -> Ours {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let log = tempfile::NamedTempFile::new().expect("a log");
        let mut command = Command::new(varve::binary());
        command.args(["fs", "mount"]).arg(image).arg(dir.path()).args(flags);
        let output = |file: &File| Stdio::from(file.try_clone().expect("another handle"));
        let (out, err) = (output(log.as_file()), output(log.as_file()));
        let child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn();
        let mut ours = Ours { child: child.expect("varve starts"), dir, log };
        let mounted = clock::wait_for(LIMIT, || {
            let ended = ours.child.try_wait().expect("asking for a child's state");
            assert!(ended.is_none(), "{}", ours.said());
            is_mounted(ours.path()).then_some(())
        });
        assert!(mounted.is_some(), "not mounted after {LIMIT:?}: {}", ours.said());
        ours
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.log.path()).unwrap_or_default()
    }

    /// Waits for its end, which must be a clean one.
    #[track_caller]
    pub(super) fn ends(mut self) -> String {
        let status = process::wait(&mut self.child, LIMIT);
        assert!(status.is_some_and(|s| s.success()), "{status:?}: {}", self.said());
        assert!(!is_mounted(self.path()), "still mounted");
        self.said()
    }

    #[track_caller]
    pub(super) fn interrupt(&self) {
        kill_process(Pid::from_child(&self.child), Signal::INT).expect("a signal to our child");
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        if is_mounted(self.path()) {
            let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
        }
        process::end(&mut self.child);
    }
}

fn is_mounted(dir: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("the mounts");
    let dir = dir.display().to_string();
    mounts.lines().any(|line| line.split(' ').nth(1) == Some(&dir))
}

/// A copy of an image.
fn twin(image: &Path) -> PathBuf {
    let twin = image.with_extension("twin");
    process::run(Command::new("cp").arg("--sparse=always").arg(image).arg(&twin)).ok();
    twin
}

/// What a line of shell prints in a folder.
#[track_caller]
fn shown(dir: &Path, line: &str) -> String {
    process::run(Command::new("bash").current_dir(dir).args(["-ec", line])).ok()
}

#[test]
fn a_mount_shows_what_the_kernels_shows() {
    if !available() {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let image = dir.path().join("disk.img");
    loop_mount::rich_btrfs(&image, &[]);
    // What the kernel has mounted is refused, so each gets its own.
    let twin = twin(&image);
    let before = disk::sum_file(&twin);
    let kernel = LoopMount::open(&image, "ro");
    let ours = Ours::open(&twin, &[]);
    // Everything that stat knows but the device and inode numbers, which a mount makes up.
    let facts = r"find . -printf '%p %y %m %n %U %G %s %b %T@ %C@ %l\n' | LC_ALL=C sort";
    for line in [
        facts,
        "LC_ALL=C ls -lAR --time-style=full-iso",
        "find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum",
        "getfattr -hdR -m - -e hex .",
        "getfacl -R -n .",
        // Which names are hard links of each other.
        r"find . -type f -links +1 -printf '%i %p\n' | sort -n | awk '{n[$1] = n[$1] FS $2} END {for (i in n) print n[i]}' | sort",
        // Holes, as far as they can be seen.
        "for f in sparse unwritten small; do xxd $f | tail -3; done",
        "stat -c '%t:%T' null block",
    ] {
        assert_eq!(shown(ours.path(), line), shown(kernel.path(), line), "{line}");
    }
    let numbers = shown(ours.path(), r"find . -type d -printf '%i\n' | sort | uniq -d");
    assert_eq!(numbers, "", "folders that share a number");

    let rsync = |from: &Path, to: &Path| {
        let mut rsync = Command::new("rsync");
        rsync.args(["-aHAXc", "--numeric-ids", "--dry-run", "--itemize-changes", "--delete"]);
        let slash = |path: &Path| format!("{}/", path.display());
        process::run(rsync.arg(slash(from)).arg(slash(to))).ok()
    };
    assert_eq!(rsync(ours.path(), kernel.path()), "");
    let copy = dir.path().join("copy");
    process::run(Command::new("cp").arg("-a").arg(ours.path()).arg(&copy)).ok();
    assert_eq!(rsync(&copy, kernel.path()), "", "after cp -a");
    let holes = shown(&copy, "stat -c %b sparse");
    assert!(holes.trim().parse::<u64>().expect("blocks") < 1000, "holes were filled: {holes}");

    // A handle that is open holds the mount, not us.
    let open = File::open(ours.path().join("small")).expect("a file");
    ours.interrupt();
    assert!(ours.ends().contains("in use"), "somebody was cut off, and it is said");
    drop(open);
    kernel.unmount();
    assert_eq!(disk::sum_file(&twin), before, "a mount wrote to the disk");
}

#[test]
fn a_subvolume_is_mounted_by_path_and_number_and_an_unmount_ends_it() {
    if !available() {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let image = dir.path().join("disk.img");
    loop_mount::rich_btrfs(&image, &["-O", "^no-holes"]);
    let twin = twin(&image);
    let all = LoopMount::open(&image, "ro");
    let list = shown(all.path(), "btrfs subvolume list . | awk '$9 == \"sub\" {print $2}'");
    all.unmount();
    for (which, option) in [("snap", "ro,subvol=snap"), (list.trim(), "ro,subvol=sub")] {
        let kernel = LoopMount::open(&image, option);
        let ours = Ours::open(&twin, &["--subvol", which, "--quiet", "--allow-other"]);
        let facts = r"find . -printf '%p %y %m %n %s %T@\n' | LC_ALL=C sort; cat inside d/*";
        let line = format!("({facts}) 2>&1 || true");
        assert_eq!(shown(ours.path(), &line), shown(kernel.path(), &line));
        process::run(Command::new("umount").arg(ours.path())).ok();
        assert_eq!(ours.ends(), "");
    }
}

#[test]
fn a_damaged_file_is_an_error_and_is_named() {
    if !available() {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let image = dir.path().join("disk.img");
    loop_mount::rich_btrfs(&image, &["-m", "single"]);
    let bytes = std::fs::read(&image).expect("the image");
    let kernel = LoopMount::open(&image, "ro");
    let random = std::fs::read(kernel.path().join("dir/random")).expect("a file");
    kernel.unmount();
    let needle = &random[64 << 10..(64 << 10) + 512];
    let at = bytes.windows(512).step_by(512).position(|w| w == needle).expect("its data") * 512;
    disk::damage(&image, at as u64, &[0; 512]);

    let ours = Ours::open(&image, &[]);
    let broken = ours.path().join("dir/random");
    let error = std::fs::read(&broken).expect_err("a damaged file");
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    // What is before it can be had.
    let head = process::run(Command::new("head").args(["-c", "65536"]).arg(&broken));
    assert_eq!(head.code, Some(0), "{head}");
    assert_eq!(
        std::fs::read(ours.path().join("dir/numbers")).expect("a whole file").len(),
        1_288_895
    );
    ours.interrupt();
    let log = ours.ends();
    assert!(log.contains("dir/random"), "{log}");
}
