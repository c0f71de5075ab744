//! Keyslots that ask for more than anybody should pay without having said so: refused at once, by every command
//! that opens a volume, and allowed by name.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use varve_block::Sim;
use varve_block::dev::Mem;
use varve_crypt::MetadataEditor;
use varve_tests::client::{Server, Stack};
use varve_tests::varve::{binary, varve};
use varve_tests::{disk, process};

use crate::{refused, sums};

const COST: &str = "--pbkdf pbkdf2 --pbkdf-force-iterations 1000";
const ALLOW: &str = "--allow-costly-kdf";

/// `disk.img` with two keyslots: one that `key` opens at no cost, and one for `dear` that asks for this.
fn volume(kdf: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let dir = folder.path();
    std::fs::write(dir.join("key"), "a key").expect("a key");
    std::fs::write(dir.join("dear"), "a dear key").expect("a key");
    disk::sparse(&dir.join("disk.img"), 24 << 20);
    varve(dir, &format!("crypt format disk.img --key-file key {COST}")).ok();
    varve(dir, &format!("crypt add-key disk.img --key-file key --new-key-file dear {COST}")).ok();
    let mut image = std::fs::read(dir.join("disk.img")).expect("the disk");
    let (mem, kdf) = (Mem::from_bytes(&image), kdf.clone());
    let held = mem.clone();
    Sim::new(1).run(|_| async move {
        let mut editor = MetadataEditor::open(held, None).await.expect("a header");
        let dear = editor.update(|draft| {
            let salt = draft.json["keyslots"]["1"]["kdf"]["salt"].clone();
            draft.json["keyslots"]["1"]["kdf"] = kdf;
            draft.json["keyslots"]["1"]["kdf"]["salt"] = salt;
            Ok(())
        });
        dear.await.expect("a legal header");
    });
    image.copy_from_slice(&mem.to_vec());
    std::fs::write(dir.join("disk.img"), image).expect("the disk");
    folder
}

/// Whether a command is still at work after a while; it is ended then.
fn works_on(dir: &Path, line: &str) -> bool {
    let mut command = Command::new(binary());
    command.current_dir(dir).args(line.split_whitespace());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().expect("varve starts");
    let ended = process::wait(&mut child, Duration::from_secs(3));
    process::end(&mut child);
    ended.is_none()
}

#[test]
fn a_costly_keyslot_is_refused_unless_it_is_allowed() {
    let iterations = json!({ "type": "pbkdf2", "hash": "sha256", "iterations": 1u64 << 31 });
    let memory = json!({ "type": "argon2id", "time": 4, "memory": 4 << 20, "cpus": 4 });
    for kdf in [iterations, memory] {
        let dir = volume(&kdf);
        let dir = dir.path();
        let before = sums(dir, &["disk.img"]);
        for command in
            ["crypt test disk.img", "fs ls --backing disk.img", "crypt reencrypt disk.img"]
        {
            let line = refused(varve(dir, &format!("{command} --key-file dear")));
            assert!(line.contains("not tried: slot 1") && line.contains(ALLOW), "{kdf}: {line}");
        }
        varve(dir, "crypt test disk.img --key-file key").ok();
        assert_eq!(sums(dir, &["disk.img"]), before, "{kdf}");
    }
    let dir = volume(&json!({ "type": "pbkdf2", "hash": "sha256", "iterations": 1u64 << 31 }));
    let dir = dir.path();
    assert!(works_on(dir, &format!("crypt test disk.img --key-file dear {ALLOW}")));
}

/// What a server was started with holds for what it is told later, too.
#[test]
fn a_server_pays_for_a_key_what_it_was_allowed() {
    let dir = volume(&json!({ "type": "pbkdf2", "hash": "sha256", "iterations": 1u64 << 31 }));
    let dir = dir.path();
    let stack = Stack::backing("disk.img").with("--key-file", "key");
    let stack = stack.with("--control", "unix:c.sock");
    let online = "crypt reencrypt --online --control unix:c.sock --key-file dear";
    let server = Server::start(dir, &stack);
    let line = refused(varve(dir, online));
    assert!(line.contains(ALLOW), "{line}");
    server.stop();
    let server = Server::start(dir, &stack.flag(ALLOW));
    assert!(works_on(dir, online), "the server takes its time for the slot");
    server.kill();
}
