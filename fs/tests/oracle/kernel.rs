//! Loop devices, mounts and tools, released when dropped.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// A place to work in, or the printed reason why there is none.
pub(crate) fn workshop(test: &str) -> Option<TempDir> {
    let reason = missing()?;
    match reason {
        None => Some(TempDir::new().expect("a temporary folder")),
        Some(reason) => {
            println!("{test}: skipped, {reason}");
            None
        }
    }
}

/// `Some(None)`: all there. `Some(Some(reason))`: not all there.
fn missing() -> Option<Option<String>> {
    let uid = Command::new("id").arg("-u").output();
    let root = uid.is_ok_and(|out| out.stdout.starts_with(b"0"));
    if !root {
        return Some(Some("not root".into()));
    }
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !known.contains("btrfs") {
        return Some(Some("this kernel has no btrfs".into()));
    }
    for tool in ["btrfs", "mkfs.btrfs", "losetup", "mount"] {
        if Command::new(tool).arg("--version").output().is_err() {
            return Some(Some(format!("no {tool}")));
        }
    }
    if !Command::new("losetup").arg("-f").output().is_ok_and(|out| out.status.success()) {
        return Some(Some("no loop devices".into()));
    }
    Some(None)
}

/// Runs a tool and hands back what it said, whatever its verdict.
pub(crate) fn try_run<A: AsRef<OsStr>>(tool: &str, args: impl IntoIterator<Item = A>) -> Output {
    Command::new(tool).args(args).output().unwrap_or_else(|e| panic!("{tool}: {e}"))
}

/// Runs a tool that must succeed; its standard output.
#[track_caller]
pub(crate) fn run<A: AsRef<OsStr>>(tool: &str, args: impl IntoIterator<Item = A>) -> String {
    let out = try_run(tool, args);
    let (stdout, stderr) =
        (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{tool} failed: {stdout}{stderr}");
    stdout.into_owned()
}

/// Runs a script in `dir` that must succeed.
#[track_caller]
pub(crate) fn shell(dir: &Path, script: &str) -> String {
    let script = format!("set -eu; cd '{}'; {script}", dir.display());
    run("bash", ["-c", &script])
}

/// A mounted file system.
pub(crate) struct Mount {
    dir: PathBuf,
    devices: Vec<String>,
}

impl Mount {
    #[track_caller]
    pub(crate) fn new(image: &Path, options: &str) -> Mount {
        Mount::several(&[image], options)
    }

    /// Over several devices, of which the first names the mount point.
    #[track_caller]
    pub(crate) fn several(images: &[impl AsRef<Path>], options: &str) -> Mount {
        let read_only = options.split(',').any(|option| option == "ro");
        let attach = |image: &Path| {
            let mut losetup = vec![OsStr::new("-f"), OsStr::new("--show")];
            if read_only {
                losetup.push(OsStr::new("-r"));
            }
            losetup.push(image.as_os_str());
            run("losetup", losetup).trim().to_string()
        };
        let devices: Vec<_> = images.iter().map(|image| attach(image.as_ref())).collect();
        // The kernel may remember a loop device as part of what was behind it before, by another test.
        for device in &devices {
            let _ = try_run("btrfs", ["device", "scan", "--forget", device]);
        }
        let dir = images[0].as_ref().with_extension("mnt");
        std::fs::create_dir_all(&dir).expect("a mount point");
        let mount = Mount { dir, devices };
        let more = mount.devices.iter().skip(1).map(|device| format!("device={device}"));
        let options: Vec<_> = [options.to_string()]
            .into_iter()
            .filter(|option| !option.is_empty())
            .chain(["noatime".to_string()])
            .chain(more)
            .collect();
        let (first, dir) = (&*mount.devices[0], &*mount.dir.to_string_lossy());
        run("mount", ["-t", "btrfs", "-o", &options.join(","), first, dir]);
        mount
    }

    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let out = try_run("umount", [&self.dir]);
        for device in &self.devices {
            let _ = try_run("losetup", ["-d", device]);
        }
        // What is read from the image afterwards would not be all that was written.
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success() || std::thread::panicking(), "umount: {said}");
    }
}

/// Devices as loop devices, for tools that look for them there.
pub(crate) struct Attached(pub(crate) Vec<String>);

impl Attached {
    /// Those after the first, which the tools are given by name; read-only.
    pub(crate) fn new(disks: &[PathBuf]) -> Attached {
        let attach =
            |disk: &PathBuf| run("losetup", ["-r", "-f", "--show", &disk.to_string_lossy()]);
        Attached(disks.iter().skip(1).map(|disk| attach(disk).trim().to_owned()).collect())
    }

    /// All of them.
    pub(crate) fn writable(disks: &[PathBuf]) -> Attached {
        let attach = |disk: &PathBuf| run("losetup", ["-f", "--show", &disk.to_string_lossy()]);
        Attached(disks.iter().map(|disk| attach(disk).trim().to_owned()).collect())
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        for device in &self.0 {
            let _ = try_run("btrfs", ["device", "scan", "--forget", device]);
            let _ = try_run("losetup", ["-d", device]);
        }
    }
}

/// `btrfs check`, which must find nothing and say nothing unusual.
#[track_caller]
pub(crate) fn check_clean(image: &Path, extra: &[&str]) {
    let image = image.to_string_lossy();
    let args = ["check"].into_iter().chain(extra.iter().copied()).chain([&*image]);
    let out = try_run("btrfs", args);
    let said =
        format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{said}");
    assert!(said.contains("no error found"), "{said}");
    for word in ["arning", "rror:", "orrupt", "mismatch", "no corresponding", "expected"] {
        let line = said.lines().find(|line| line.contains(word));
        assert!(line.is_none(), "{line:?} in\n{said}");
    }
}
