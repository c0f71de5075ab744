//! What this machine has, and how a test says that it cannot run here.
//!
//! ```no_run
//! if !varve_tests::tool::have(&["fio", "nbdinfo"]) {
//!     return; // the reason has been printed
//! }
//! ```

use std::io::Write as _;
use std::path::PathBuf;

/// Says why the current test does not run. Goes past libtest's capture, so that a passing run shows it,
/// and to the file `VARVE_SKIPPED` names, which `tests/run` prints in its summary.
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let line = format!("skipped {}: {reason}\n", thread.name().unwrap_or("a test"));
    // A test must not fail because nobody listens.
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(path) = std::env::var_os("VARVE_SKIPPED") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}

/// Where a program is, as a shell would find it; system folders are searched for everybody.
#[must_use]
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

/// Whether all these programs are here; otherwise prints which is not, and the test should return.
#[must_use]
pub fn have(names: &[&str]) -> bool {
    let absent: Vec<_> = names.iter().filter(|name| find(name).is_none()).copied().collect();
    if !absent.is_empty() {
        skip(&format!("{} not installed (tests/run installs it)", absent.join(", ")));
    }
    absent.is_empty()
}

/// Whether this process may mount, attach loop devices and the like; otherwise prints the reason.
#[must_use]
pub fn have_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip("needs root, to mount");
    }
    root
}
