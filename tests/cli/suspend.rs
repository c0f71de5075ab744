//! A served volume whose key is taken away and given back, through the server's control socket.

use std::fs::File;

use varve_tests::client::{Server, Stack};
use varve_tests::nbd::{FUA, Request};
use varve_tests::varve::varve;
use varve_tests::{disk, process, tool};

use crate::memory::find;
use crate::refused;

const SECRET: &str = "a passphrase that opens a suspended volume: 77e0a1";
const COST: &str = "--pbkdf pbkdf2 --pbkdf-force-iterations 1000";
const SUSPEND: &str = "crypt suspend --control unix:c.sock";
const RESUME: &str = "crypt resume --control unix:c.sock --passphrase-file pass";

/// C19 and C20 on a real process: no key in its memory, requests held and not failed, and only the
/// volume that was suspended goes on.
#[test]
fn a_suspended_server_has_no_key_and_holds_its_clients_until_it_gets_the_same_again() {
    if !tool::have(&["cryptsetup"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path();
    disk::sparse(&dir.join("disk.img"), 24 << 20);
    std::fs::write(dir.join("pass"), format!("{SECRET}\n")).expect("a passphrase");
    std::fs::write(dir.join("wrong"), "something else\n").expect("a passphrase");
    varve(dir, &format!("crypt format disk.img --header hdr --passphrase-file pass {COST}")).ok();
    let dump = "cryptsetup luksDump -q --dump-volume-key --volume-key-file vk hdr < pass";
    process::sh(&format!("cd {} && {dump}", dir.display())).ok();
    let key = std::fs::read(dir.join("vk")).expect("the volume key");
    let uuid = varve(dir, "crypt uuid hdr").ok();

    let stack =
        Stack::backing("disk.img").with("--header", "hdr").with("--passphrase-file", "pass");
    let server = Server::start(dir, &stack.with("--control", "unix:c.sock"));
    let mut nbd = server.connect();
    let data = disk::noise(9, 512 << 10);
    nbd.ask(Request::Write { at: 4096, data: &data, flags: FUA })
        .expect("it stays")
        .expect("a write");
    assert!(refused(varve(dir, RESUME)).contains("not suspended"));

    let visible = File::open(format!("/proc/{}/mem", server.pid())).is_ok();
    let places = |needle: &[u8]| if visible { find(server.pid(), needle) } else { Vec::new() };
    assert!(!visible || !places(&key[..32]).is_empty(), "the search finds what is there");
    varve(dir, SUSPEND).ok();
    for half in key.chunks(32) {
        assert_eq!(places(half), [], "a key is left in memory");
    }
    assert!(refused(varve(dir, SUSPEND)).contains("already"));
    // Held from now on; answered when the key is back.
    let held = disk::noise(10, 256 << 10);
    nbd.send(7, Request::Write { at: 1 << 20, data: &held, flags: 0 }).expect("it stays");

    let wrong = RESUME.replace("-file pass", "-file wrong");
    assert!(refused(varve(dir, &wrong)).contains("no usable keyslot"));
    // The same passphrase, another volume: another UUID, then another key under the same UUID.
    std::fs::copy(dir.join("hdr"), dir.join("saved")).expect("a copy of the header");
    for (more, says) in
        [(String::new(), "UUID"), (format!("--uuid {}", uuid.trim()), "another key")]
    {
        disk::sparse(&dir.join("other.img"), 24 << 20);
        let format =
            format!("crypt format other.img --header new --passphrase-file pass {COST} {more}");
        varve(dir, &format).ok();
        std::fs::rename(dir.join("new"), dir.join("hdr")).expect("another header");
        let line = refused(varve(dir, RESUME));
        assert!(line.contains(says), "{line}");
    }
    std::fs::rename(dir.join("saved"), dir.join("hdr")).expect("the header again");
    for half in key.chunks(32) {
        assert_eq!(places(half), [], "a refused resume leaves a key in memory");
    }
    assert_eq!(places(SECRET.as_bytes()), [], "a refused resume leaves the passphrase in memory");
    varve(dir, RESUME).ok();
    let (cookie, answer) = nbd.receive().expect("it stays");
    assert_eq!((cookie, answer), (7, Ok(())));
    assert_eq!(nbd.read(4096, 512 << 10).expect("it stays"), Ok(data.clone()));
    assert_eq!(nbd.read(1 << 20, 256 << 10).expect("it stays"), Ok(held));
    assert!(!visible || !places(&key[..32]).is_empty());
    assert_eq!(places(SECRET.as_bytes()), [], "the passphrase is still in memory");

    // A stop while suspended is a stop, and who was held hears of it.
    varve(dir, SUSPEND).ok();
    nbd.send(8, Request::Write { at: 0, data: &data, flags: 0 }).expect("it stays");
    server.stop();
    assert!(!dir.join("c.sock").exists(), "the control socket is left behind");
    let server = Server::start(
        dir,
        &Stack::backing("disk.img").with("--header", "hdr").with("--passphrase-file", "pass"),
    );
    assert_eq!(server.connect().read(4096, 512 << 10).expect("it stays"), Ok(data));
    server.stop();
}
