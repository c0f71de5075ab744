//! Secrets that come from a terminal, which must not show them, and from a descriptor.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use varve_tests::varve::{binary, varve};
use varve_tests::{clock, disk, process, tool};

const SECRET: &str = "typed by hand";
const COST: &str = "--pbkdf pbkdf2 --pbkdf-force-iterations 1000";

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    disk::sparse(&folder.path().join("disk.img"), 24 << 20);
    std::fs::write(folder.path().join("pass"), format!("{SECRET}\n")).expect("a passphrase");
    folder
}

/// Runs a command on a terminal of its own, types a line at each of these words, and gives the exit code and all
/// that the terminal showed.
fn typed(dir: &Path, line: &str, answers: &[(&str, &str)]) -> (Option<i32>, String) {
    let line = format!("{} {line}", binary().display());
    // What an earlier one showed must not be taken for a question.
    let _ = std::fs::remove_file(dir.join("shown"));
    let mut script = Command::new("script");
    script.current_dir(dir).args(["-qefc", &line, "shown"]).stdin(Stdio::piped());
    let mut child = script.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("script");
    let shown = || {
        let bytes = std::fs::read(dir.join("shown")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let mut stdin = child.stdin.take().expect("piped");
    for (word, answer) in answers {
        let asks = || shown().contains(word).then_some(());
        clock::wait_for(Duration::from_secs(60), asks).expect("a question");
        writeln!(stdin, "{answer}").expect("a terminal");
    }
    let status = process::wait(&mut child, Duration::from_secs(60)).expect("it ends");
    (status.code(), shown())
}

#[test]
fn a_passphrase_is_asked_for_without_showing_it() {
    if !tool::have(&["script"]) {
        return;
    }
    let dir = folder();
    let dir = dir.path();
    let format = format!("crypt format disk.img --unlock {COST}");
    let asked = [("New passphrase: ", SECRET), ("The same again: ", SECRET)];
    let (code, shown) = typed(dir, &format, &asked);
    assert_eq!(code, Some(0), "{shown}");
    assert!(!shown.contains(SECRET), "{shown}");
    varve(dir, "crypt test disk.img --passphrase-file pass").ok();
    let (code, shown) = typed(dir, "crypt test disk.img --unlock", &[("Passphrase: ", SECRET)]);
    assert_eq!(code, Some(0), "{shown}");
    assert!(!shown.contains(SECRET), "{shown}");
    let (code, shown) =
        typed(dir, "crypt test disk.img --unlock", &[("Passphrase: ", "something else")]);
    assert_ne!(code, Some(0), "{shown}");
    assert!(!shown.contains("something else"), "{shown}");
}

#[test]
fn a_passphrase_comes_from_a_descriptor() {
    let dir = folder();
    let dir = dir.path();
    varve(dir, &format!("crypt format disk.img --passphrase-file pass {COST}")).ok();
    let test = format!("{} crypt test disk.img --passphrase-fd 7", binary().display());
    process::sh(&format!("cd {}; {test} 7< pass", dir.display())).ok();
    process::sh(&format!("cd {}; {test} 7< <(cat pass)", dir.display())).ok();
    process::sh(&format!("cd {}; ! {test} 7< <(echo another)", dir.display())).ok();
    process::sh(&format!("cd {}; ! {test}", dir.display())).ok();
}
