//! The program under test, and its command line.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use crate::client::Stack;
use crate::disk;
use crate::process::{self, Finished};

/// Compiling the whole program on two busy cores.
const BUILD_LIMIT: Duration = Duration::from_secs(1200);

/// The `varve` binary: the one `VARVE_BIN` names, else built now, with the profile and target folder of
/// the running test. `CARGO_BIN_EXE_varve` exists only in the tests of the package `cli`.
#[must_use]
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match std::env::var_os("VARVE_BIN") {
        Some(path) => path.into(),
        None => build(),
    })
}

fn build() -> PathBuf {
    // target/PROFILE/deps/TEST
    let test = std::env::current_exe().expect("the path of the running test");
    let profile_dir = test.parent().and_then(Path::parent).expect("a test lies in target/X/deps");
    let target_dir = profile_dir.parent().expect("a profile's folder lies in the target folder");
    let profile = match profile_dir.file_name().and_then(OsStr::to_str) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    process::run_for(
        BUILD_LIMIT,
        Command::new(cargo)
            .current_dir(crate::repository())
            .args(["build", "--quiet", "--locked", "--package", "varve", "--bin", "varve"])
            .args(["--profile", profile, "--target-dir"])
            .arg(target_dir),
    )
    .ok();
    profile_dir.join("varve")
}

/// Runs `varve` with these arguments, in `dir`, to its end.
#[track_caller]
pub fn varve_in<S: AsRef<OsStr>>(dir: &Path, args: impl IntoIterator<Item = S>) -> Finished {
    process::run(Command::new(binary()).current_dir(dir).args(args))
}

/// The same with the arguments in one line, split at blanks: as the contract writes them.
#[track_caller]
pub fn varve(dir: &Path, line: &str) -> Finished {
    varve_in(dir, line.split_whitespace())
}

/// Makes a fresh stack in `dir`, as the contract's examples do: `hdd` and `ssd` of these sizes, joined as a
/// bcache set, and if `key` is given, a LUKS2 volume with 4096-byte sectors on top, whose key file is `key`.
///
/// # Panics
/// When `varve` refuses.
#[track_caller]
#[must_use]
pub fn make_stack(dir: &Path, hdd: u64, ssd: u64, mode: &str, key: Option<&str>) -> Stack {
    disk::sparse(&dir.join("hdd"), hdd);
    disk::sparse(&dir.join("ssd"), ssd);
    varve(dir, "cache make --backing hdd --cache ssd --bucket 64k --block 4k").ok();
    let stack = Stack::backing("hdd").cache("ssd").with("--cache-mode", mode);
    let Some(key) = key else {
        return stack.flag("--no-crypt");
    };
    std::fs::write(dir.join("key"), key).expect("a key file");
    let stack = stack.with("--key-file", "key");
    let format = ["crypt".into(), "format".into()];
    // Few iterations: an emulated guest has to unlock it too.
    let rest = "--pbkdf pbkdf2 --pbkdf-force-iterations 1000 --force";
    let rest: Vec<_> = rest.split(' ').map(Into::into).collect();
    varve_in(dir, format.iter().chain(stack.args()).chain(&rest)).ok();
    stack
}
