//! Tokens belong to other programs: whatever we do to a header, they are what they were, to the byte, as
//! `cryptsetup` gives them out. Only the slots that they name follow the keys.

use std::path::Path;

use varve_tests::client::{Server, Stack};
use varve_tests::varve::varve;
use varve_tests::{disk, tool};

use crate::reencrypt::{COST, cryptsetup};

/// By id. The numbers are as JSON libraries write them: a 2.50 may come back as 2.5.
const TOKENS: [(u32, &str); 4] = [
    (
        2,
        r#"{"type":"systemd-fido2","keyslots":["0","1"],"fido2-credential":"AJ4+/w==","fido2-salt":"YQ==","fido2-rp":"io.systemd.cryptsetup","fido2-clientPin-required":true,"fido2-up-required":true,"fido2-uv-required":false}"#,
    ),
    (
        5,
        r#"{"zeta":1,"type":"of-somebody-else","alpha":{"deep":[1,2.5,"é",null,true,[]],"big":18446744073709551615,"low":-9223372036854775808},"keyslots":["1"],"text":"a/b \"q\" \\ \u0001 ü","none":{}}"#,
    ),
    (
        7,
        r#"{"type":"systemd-tpm2","keyslots":["0"],"tpm2-blob":"AJ4AIK+/abc=","tpm2-pcrs":[7,11],"tpm2-pcr-bank":"sha256","tpm2-primary-alg":"ecc","tpm2-policy-hash":"00ff","tpm2-pin":false}"#,
    ),
    (31, r#"{"type":"systemd-recovery","keyslots":[]}"#),
];
/// One that cryptsetup makes itself, beside them.
const KEYRING: u32 = 0;

/// A token in two parts: the slots that it names, and all the rest.
type Token = (u32, String, String);

fn tokens(dir: &Path) -> Vec<Token> {
    let ids = [KEYRING].into_iter().chain(TOKENS.map(|(id, _)| id));
    ids.map(|id| {
        let text = cryptsetup(dir, &format!("token export --token-id {id} disk.img")).ok();
        // The slots come as text, so no bracket is in the list.
        let (before, rest) = text.split_once(r#""keyslots":["#).expect("a list of slots");
        let (slots, after) = rest.split_once(']').expect("its end");
        (id, slots.to_owned(), format!("{before}[]{after}"))
    })
    .collect()
}

/// A volume of `cryptsetup` with the keys `first` and `second` in slots 0 and 1, and all tokens.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let dir = folder.path();
    disk::sparse(&dir.join("disk.img"), 20 << 20);
    for key in ["first", "second", "third"] {
        std::fs::write(dir.join(key), format!("the {key} key")).expect("a key file");
    }
    cryptsetup(dir, &format!("luksFormat -q --type luks2 {COST} --key-file first disk.img")).ok();
    cryptsetup(dir, &format!("luksAddKey -q {COST} --key-file first disk.img second")).ok();
    for (id, text) in TOKENS {
        std::fs::write(dir.join("token"), text).expect("a token");
        cryptsetup(dir, &format!("token import --json-file token --token-id {id} disk.img")).ok();
    }
    cryptsetup(dir, "token add --key-description varve:test --key-slot 1 disk.img").ok();
    folder
}

/// The slot that a key opens.
fn slot(dir: &Path, key: &str) -> String {
    let said = varve(dir, &format!("crypt test disk.img --json --key-file {key}")).ok();
    let json: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    json["slot"].to_string()
}

#[test]
fn tokens_of_others_stay_through_whatever_changes_the_header() {
    if !tool::have(&["cryptsetup"]) {
        return;
    }
    let folder = folder();
    let dir = folder.path();
    let made = tokens(dir);
    for (line, code) in [
        ("add-key disk.img --key-file first --new-key-file third", 0),
        ("change-key disk.img --key-file second --new-key-file third", 0),
        // Two slots have this key now.
        ("remove-key disk.img --key-file third --key-slot 2", 0),
        ("change-key disk.img --key-file third --new-key-file second", 0),
        ("add-key disk.img --key-file first --new-key-file third", 0),
        ("kill-slot disk.img 2 --key-file first", 0),
        ("config disk.img --label attic --subsystem disks --flags no-read-workqueue", 0),
        ("config disk.img --key-slot 1 --priority prefer", 0),
        ("uuid disk.img --set 01234567-89ab-cdef-0123-456789abcdef --force", 0),
        ("convert disk.img --to luks1 --save-old old", 3),
        ("header-backup disk.img --file saved", 0),
        ("token remove disk.img --token-id 5", 0),
        ("header-restore disk.img --file saved --force", 0),
    ] {
        let keys = ["add-key", "change-key"].iter().any(|verb| line.starts_with(verb));
        let cost = if keys { COST } else { "" };
        let done = varve(dir, &format!("crypt {line} {cost}"));
        assert_eq!(done.code, Some(code), "{done}");
        assert!(code == 0 || done.stderr.contains("it has tokens"), "{done}");
        // Between the backup and its return one of them is away.
        if !line.starts_with("token remove") {
            assert_eq!(tokens(dir), made, "{line}");
        }
    }
    disk::damage(&dir.join("disk.img"), 5000, b"rot");
    varve(dir, "crypt repair disk.img --save-old before-repair").ok();
    assert_eq!(tokens(dir), made, "repaired");
    suspends(dir);
    assert_eq!(tokens(dir), made, "suspended");
}

#[track_caller]
fn suspends(dir: &Path) {
    let stack = Stack::backing("disk.img").with("--key-file", "first");
    let server = Server::start(dir, &stack.with("--control", "unix:c.sock"));
    varve(dir, "crypt suspend --control unix:c.sock").ok();
    varve(dir, "crypt resume --control unix:c.sock --key-file first").ok();
    server.stop();
}

/// A slot that goes is named no more.
#[test]
fn tokens_lose_the_slot_that_is_gone_and_nothing_else() {
    if !tool::have(&["cryptsetup"]) {
        return;
    }
    let folder = folder();
    let dir = folder.path();
    let mut left = tokens(dir);
    varve(dir, "crypt kill-slot disk.img 0 --key-file second").ok();
    for (_, slots, _) in &mut left {
        *slots = slots.replace(r#""0","1""#, r#""1""#).replace(r#""0""#, "");
    }
    assert_eq!(tokens(dir), left);
    varve(dir, "crypt erase disk.img --force").ok();
    left.iter_mut().for_each(|(_, slots, _)| slots.clear());
    assert_eq!(tokens(dir), left);
}

/// A passphrase that a token knows opens the volume while it gets another key, and behind it: the token names
/// its new slot.
#[test]
fn tokens_follow_their_keys_through_a_reencryption() {
    if !tool::have(&["cryptsetup"]) {
        return;
    }
    let folder = folder();
    let dir = folder.path();
    let made = tokens(dir);
    let keys = "disk.img --key-file first --also-key-file second";
    let work = |how: &str| varve(dir, &format!("crypt reencrypt {keys} {how}"));
    work(&format!("--init-only {COST}")).ok();
    let begun = tokens(dir);
    for ((_, old, text), (_, now, still)) in made.iter().zip(&begun) {
        assert_eq!(still, text, "begun");
        assert!(now.starts_with(old.as_str()), "{now} instead of {old} and more");
    }
    suspends(dir);
    assert_eq!(tokens(dir), begun, "served half done");
    work("--resume-only").ok();
    let slots = |old: &str| old.replace('0', "a").replace('1', "b");
    let [first, second] = ["first", "second"].map(|key| slot(dir, key));
    for ((_, old, text), (_, now, still)) in made.iter().zip(tokens(dir)) {
        assert_eq!(&still, text, "done");
        assert_eq!(now, slots(old).replace('a', &first).replace('b', &second));
    }
    cryptsetup(dir, "repair -q disk.img").ok();
}
