//! `cryptsetup` opens what we format, and we what it formats. Its key derivation runs in user space, so
//! this needs no device mapper.

use std::path::Path;
use std::process::Command;

use varve_tests::client::{Server, Stack};
use varve_tests::process::{self, Finished};
use varve_tests::varve::varve;
use varve_tests::{disk, tool};

#[track_caller]
fn cryptsetup(dir: &Path, line: &str) -> Finished {
    let mut command = Command::new(tool::find("cryptsetup").expect("asked for before"));
    process::run(command.current_dir(dir).args(line.split_whitespace()))
}

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    disk::sparse(&dir.path().join("disk.img"), 48 << 20);
    std::fs::write(dir.path().join("key"), b"a key\nwith a line in it\0and a zero").expect("a key");
    std::fs::write(dir.path().join("wrong"), b"another key").expect("a key");
    dir
}

#[test]
fn cryptsetup_opens_every_volume_we_format() {
    if !tool::have(&["cryptsetup"]) {
        return;
    }
    for (options, shown) in [
        (
            "--type luks1 --cipher aes-xts-plain64 --key-size 512 --sector-size 512",
            "Version:       \t1",
        ),
        ("--type luks1 --cipher aes-xts-plain64 --key-size 256", "Version:       \t1"),
        ("--type luks2 --pbkdf pbkdf2", "sector: 4096 [bytes]"),
        ("--type luks2 --pbkdf pbkdf2 --sector-size 512", "sector: 512 [bytes]"),
        ("--type luks2 --pbkdf argon2id", "argon2id"),
        ("--type luks2 --pbkdf argon2i", "argon2i"),
    ] {
        let dir = folder();
        let dir = dir.path();
        varve(dir, &format!("crypt format disk.img --key-file key {options}")).ok();
        let dump = cryptsetup(dir, "luksDump disk.img").ok();
        assert!(dump.contains(shown), "{options}: no {shown:?} in\n{dump}");
        cryptsetup(dir, "isLuks disk.img").ok();
        cryptsetup(dir, "open --test-passphrase --key-file key disk.img").ok();
        cryptsetup(dir, "open --test-passphrase --key-file wrong disk.img").exits_with(2);
        varve(dir, "crypt test disk.img --key-file key").ok();
        varve(dir, "crypt dump disk.img").ok();
    }
}

#[test]
fn we_open_every_volume_cryptsetup_formats() {
    if !tool::have(&["cryptsetup"]) {
        return;
    }
    for options in [
        "--type luks1 --pbkdf-force-iterations 1000",
        "--type luks1 --pbkdf-force-iterations 1000 --hash sha512 --key-size 256",
        "--type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --sector-size 4096",
        "--type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --sector-size 512 --hash sha512",
        "--type luks2 --pbkdf argon2id --pbkdf-memory 65536 --pbkdf-force-iterations 4",
        "--type luks2 --pbkdf argon2i --pbkdf-memory 32768 --pbkdf-force-iterations 4 --pbkdf-parallel 1",
    ] {
        let dir = folder();
        let dir = dir.path();
        cryptsetup(dir, &format!("luksFormat -q {options} --key-file key disk.img")).ok();
        let before = disk::sum_file(&dir.join("disk.img"));
        varve(dir, "crypt test disk.img --key-file key").ok();
        varve(dir, "crypt dump disk.img").ok();
        varve(dir, "crypt test disk.img --key-file wrong").exits_with(3);
        assert_eq!(disk::sum_file(&dir.join("disk.img")), before, "{options}: looking has written");
    }
}

#[test]
fn a_volume_of_cryptsetup_serves_its_payload() {
    if !tool::have(&["cryptsetup"]) {
        return;
    }
    let dir = folder();
    let dir = dir.path();
    let format = "luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file key disk.img";
    cryptsetup(dir, format).ok();
    let stack = Stack::backing("disk.img").with("--key-file", "key");
    let server = Server::start(dir, &stack);
    let mut nbd = server.connect();
    assert_eq!(nbd.size(), (48 - 16) << 20, "LUKS2 keeps 16 MiB for itself");
    let data = disk::noise(3, 100_000);
    let write =
        varve_tests::nbd::Request::Write { at: 54_321, data: &data, flags: varve_tests::nbd::FUA };
    nbd.ask(write).expect("the server stays").expect("a write");
    drop(nbd);
    server.stop();
    let image = std::fs::read(dir.join("disk.img")).expect("the image");
    let found = image.windows(32).any(|window| window == &data[5000..5032]);
    assert!(!found, "plaintext on the disk");
    cryptsetup(dir, "open --test-passphrase --key-file key disk.img").ok();
    let server = Server::start(dir, &stack);
    assert_eq!(server.connect().read(54_321, 100_000).expect("the server stays"), Ok(data));
    server.stop();
}

/// What `--persistent` keeps is what the reference shows, and what the next server does.
#[test]
fn flags_that_a_server_kept_are_the_references_and_the_next_servers() {
    if !tool::have(&["cryptsetup", "nbdinfo"]) {
        return;
    }
    let dir = folder();
    let dir = dir.path();
    let quick = "--pbkdf pbkdf2 --pbkdf-force-iterations 1000";
    varve(dir, &format!("crypt format disk.img --key-file key {quick}")).ok();
    let shown = || {
        let dump = cryptsetup(dir, "luksDump disk.img").ok();
        let line = dump.lines().find(|l| l.starts_with("Flags:")).expect("a line of flags");
        line.trim_start_matches("Flags:").trim().to_owned()
    };
    let trims = |stack: &Stack| {
        let server = Server::start(dir, stack);
        let uri = format!("nbd+unix:///?socket={}", server.socket().display());
        let info = process::run(Command::new("nbdinfo").args(["--can", "trim", &uri]));
        server.stop();
        info.code == Some(0)
    };
    let plain = Stack::backing("disk.img").with("--key-file", "key");
    assert_eq!(shown(), "(no flags)");
    assert!(!trims(&plain), "discards pass unasked");
    assert!(trims(&plain.clone().flag("--allow-discards")));
    assert_eq!(shown(), "(no flags)", "kept without being asked to");

    let all = ["allow-discards", "same-cpu-crypt", "submit-from-crypt-cpus"];
    let all = [&all[..], &["no-read-workqueue", "no-write-workqueue"]].concat();
    let kept = all.iter().fold(plain.clone(), |s, flag| s.flag(&format!("--{flag}")));
    assert!(trims(&kept.flag("--persistent")));
    assert_eq!(shown(), all.join(" "));
    assert!(trims(&plain), "the header's word is not honoured");
    assert!(!trims(&plain.clone().flag("--allow-discards=false")), "the operator comes first");
    assert_eq!(shown(), all.join(" "));

    let off = ["--allow-discards=false", "--no-read-workqueue=false", "--persistent"];
    assert!(!trims(&off.iter().fold(plain.clone(), |s, flag| s.flag(flag))));
    assert_eq!(shown(), [&all[1..3], &all[4..]].concat().join(" "));
    cryptsetup(dir, "open --test-passphrase --key-file key disk.img").ok();
}
