//! Keys and headers, in turn managed by us and by `cryptsetup`: each opens what the other left, and neither
//! opens with what the other removed.

use std::path::Path;
use std::process::Command;

use varve_tests::process::{self, Finished};
use varve_tests::varve::varve;
use varve_tests::{disk, tool};

const COST: &str = "--pbkdf pbkdf2 --pbkdf-force-iterations 1000";
const TYPES: [&str; 2] = ["luks1", "luks2"];

#[track_caller]
fn cryptsetup(dir: &Path, line: &str) -> Finished {
    let mut command = Command::new(tool::find("cryptsetup").expect("asked for before"));
    process::run(command.current_dir(dir).args(line.split_whitespace()))
}

/// A folder with a blank disk and the keys `first`, `second`, `third`, each a secret of its own.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    disk::sparse(&dir.path().join("disk.img"), 20 << 20);
    for key in ["first", "second", "third"] {
        let secret = format!("the {key} key\nof two lines");
        std::fs::write(dir.path().join(key), secret).expect("a key file");
    }
    dir
}

/// Both programs open the volume with the keys of `yes` and with none of `no`.
#[track_caller]
fn opens(dir: &Path, options: &str, yes: &[&str], no: &[&str]) {
    for (keys, opens) in [(yes, true), (no, false)] {
        for key in keys {
            let line = format!("open --test-passphrase --key-file {key} {options} disk.img");
            let theirs = cryptsetup(dir, &line);
            // Wrong key: 2; no key at all: 1.
            assert!(
                matches!((opens, theirs.code), (true, Some(0)) | (false, Some(1 | 2))),
                "{theirs}"
            );
            let line = format!("crypt test --key-file {key} {options} disk.img");
            varve(dir, &line).exits_with(if opens { 0 } else { 3 });
        }
    }
}

#[test]
fn keys_go_back_and_forth() {
    if !tool::have(&["cryptsetup"]) {
        return;
    }
    for luks in TYPES {
        let dir = folder();
        let dir = dir.path();
        varve(dir, &format!("crypt format disk.img --type {luks} --key-file first {COST}")).ok();
        varve(
            dir,
            &format!("crypt add-key disk.img --key-file first --new-key-file second {COST}"),
        )
        .ok();
        opens(dir, "", &["first", "second"], &["third"]);
        cryptsetup(dir, &format!("luksChangeKey -q {COST} --key-file second disk.img third")).ok();
        opens(dir, "", &["first", "third"], &["second"]);
        varve(
            dir,
            &format!("crypt change-key disk.img --key-file third --new-key-file second {COST}"),
        )
        .ok();
        opens(dir, "", &["first", "second"], &["third"]);
        cryptsetup(dir, "luksRemoveKey -q --key-file first disk.img").ok();
        opens(dir, "", &["second"], &["first", "third"]);
        let last = varve(dir, "crypt remove-key disk.img --key-file second").exits_with(3);
        assert!(last.contains("last key"), "{last}");
        cryptsetup(dir, &format!("luksAddKey -q {COST} --key-file second disk.img third")).ok();
        varve(dir, "crypt remove-key disk.img --key-file second").ok();
        opens(dir, "", &["third"], &["first", "second"]);
        // Wrong keys change nothing.
        let before = disk::sum_file(&dir.join("disk.img"));
        for line in [
            "crypt add-key disk.img --key-file first --new-key-file second",
            "crypt change-key disk.img --key-file first --new-key-file second",
            "crypt remove-key disk.img --key-file first",
            "crypt kill-slot disk.img 0 --key-file first",
            "crypt kill-slot disk.img 7 --key-file third",
        ] {
            varve(dir, line).exits_with(3);
        }
        varve(dir, "crypt kill-slot disk.img 0").exits_with(2);
        varve(dir, "crypt erase disk.img").exits_with(3);
        assert_eq!(disk::sum_file(&dir.join("disk.img")), before);
    }
}

#[test]
fn detached_headers_have_keys_of_their_own() {
    if !tool::have(&["cryptsetup"]) {
        return;
    }
    for luks in TYPES {
        let dir = folder();
        let dir = dir.path();
        let format =
            format!("crypt format disk.img --header h --type {luks} --key-file first {COST}");
        varve(dir, &format).ok();
        let before = disk::sum_file(&dir.join("disk.img"));
        varve(
            dir,
            &format!("crypt add-key --header h --key-file first --new-key-file second {COST}"),
        )
        .ok();
        opens(dir, "--header h", &["first", "second"], &["third"]);
        varve(dir, "crypt kill-slot --header h 0 --key-file second").ok();
        varve(dir, "crypt header-backup --header h --file saved").ok();
        varve(dir, "crypt erase --header h --force").ok();
        opens(dir, "--header h", &[], &["first", "second"]);
        cryptsetup(dir, "luksHeaderRestore -q h --header-backup-file saved").ok();
        opens(dir, "--header h", &["second"], &["first", "third"]);
        assert_eq!(disk::sum_file(&dir.join("disk.img")), before, "the disk is not touched");
    }
}

#[test]
fn backups_restore_each_others_volumes() {
    if !tool::have(&["cryptsetup"]) {
        return;
    }
    for luks in TYPES {
        let dir = folder();
        let dir = dir.path();
        cryptsetup(dir, &format!("luksFormat -q --type {luks} {COST} --key-file first disk.img"))
            .ok();
        varve(dir, "crypt header-backup disk.img --file ours").ok();
        cryptsetup(dir, "luksHeaderBackup disk.img --header-backup-file theirs").ok();
        varve(dir, "crypt header-backup disk.img --file ours").exits_with(3);
        let mode = std::fs::metadata(dir.join("ours")).expect("the backup").permissions();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o400);
        for backup in ["ours", "theirs"] {
            cryptsetup(dir, "luksErase -q disk.img").ok();
            opens(dir, "", &[], &["first"]);
            varve(dir, &format!("crypt header-restore disk.img --file {backup}")).exits_with(3);
            varve(dir, &format!("crypt header-restore disk.img --file {backup} --force")).ok();
            opens(dir, "", &["first"], &["second"]);
            cryptsetup(dir, "luksErase -q disk.img").ok();
            cryptsetup(
                dir,
                &format!("luksHeaderRestore -q disk.img --header-backup-file {backup}"),
            )
            .ok();
            opens(dir, "", &["first"], &["second"]);
        }
        // Another volume's header is refused, also where somebody would say YES.
        std::fs::copy(dir.join("disk.img"), dir.join("kept")).expect("a copy");
        varve(dir, &format!("crypt format disk.img --force --type {luks} --key-file third {COST}"))
            .ok();
        let before = disk::sum_file(&dir.join("disk.img"));
        let refused = varve(dir, "crypt header-restore disk.img --file ours").exits_with(3);
        assert!(refused.contains("does not match"), "{refused}");
        std::fs::write(dir.join("half"), &std::fs::read(dir.join("ours")).expect("it")[..40_000])
            .expect("half a backup");
        varve(dir, "crypt header-restore disk.img --file half --force").exits_with(3);
        varve(dir, "crypt header-restore disk.img --file first --force").exits_with(3);
        assert_eq!(disk::sum_file(&dir.join("disk.img")), before);
        varve(dir, "crypt header-restore disk.img --file ours --save-old old --force").ok();
        opens(dir, "", &["first"], &["third"]);
        varve(dir, "crypt header-restore disk.img --file old --force").ok();
        opens(dir, "", &["third"], &["first"]);
    }
}

#[test]
fn settings_and_tokens_are_seen_by_both() {
    if !tool::have(&["cryptsetup"]) {
        return;
    }
    let dir = folder();
    let dir = dir.path();
    cryptsetup(dir, &format!("luksFormat -q --type luks2 {COST} --key-file first disk.img")).ok();
    varve(dir, "crypt config disk.img --label attic --subsystem disks --flags no-read-workqueue")
        .ok();
    varve(dir, "crypt config disk.img --key-slot 0 --priority prefer").ok();
    let uuid = "01234567-89ab-cdef-0123-456789abcdef";
    varve(dir, &format!("crypt uuid disk.img --set {uuid} --force")).ok();
    assert_eq!(varve(dir, "crypt uuid disk.img").ok().trim(), uuid);
    assert_eq!(cryptsetup(dir, "luksUUID disk.img").ok().trim(), uuid);
    let dump = cryptsetup(dir, "luksDump disk.img").ok();
    for part in ["attic", "disks", "no-read-workqueue", "preferred"] {
        assert!(dump.contains(part), "no {part} in\n{dump}");
    }
    let token = r#"{"type":"varve-test","keyslots":["0"],"deep":{"a":[1,"x"]}}"#;
    std::fs::write(dir.join("token.json"), token).expect("a token");
    varve(dir, "crypt token import disk.img --json-file token.json --token-id 3").ok();
    let theirs = cryptsetup(dir, "token export --token-id 3 disk.img").ok();
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
    assert_eq!(json(&theirs), json(token));
    cryptsetup(dir, "token add --key-description varve:test --key-slot 0 disk.img").ok();
    let list = varve(dir, "crypt token list disk.img --json").ok();
    assert_eq!(json(&list).as_array().map(Vec::len), Some(2), "{list}");
    varve(dir, &format!("crypt add-key disk.img --key-file first --new-key-file second {COST}"))
        .ok();
    assert_eq!(json(&varve(dir, "crypt token export disk.img --token-id 3").ok()), json(token));
    varve(dir, "crypt token remove disk.img --token-id 3").ok();
    cryptsetup(dir, "token export --token-id 3 disk.img").exits_with(1);
    cryptsetup(dir, "repair -q disk.img").ok();
    opens(dir, "", &["first", "second"], &["third"]);
    for (line, code) in [
        ("crypt is-luks disk.img", 0),
        ("crypt is-luks disk.img --type luks2", 0),
        ("crypt is-luks disk.img --type luks1", 1),
        ("crypt is-luks first", 1),
        ("crypt is-luks nowhere", 3),
        ("crypt config disk.img", 2),
        ("crypt config disk.img --flags fly", 3),
        ("crypt config disk.img --label x --no-crypt", 2),
        ("crypt add-key disk.img --read-only --key-file first", 2),
    ] {
        varve(dir, line).exits_with(code);
    }
}

#[test]
fn a_damaged_copy_is_repaired_when_asked_and_not_before() {
    if !tool::have(&["cryptsetup"]) {
        return;
    }
    for at in [0_u64, 16384] {
        let dir = folder();
        let dir = dir.path();
        varve(dir, &format!("crypt format disk.img --key-file first {COST}")).ok();
        let path = dir.join("disk.img");
        varve(dir, "crypt repair disk.img --dry-run").exits_with(0);
        let file = std::fs::OpenOptions::new().write(true).open(&path).expect("the image");
        std::os::unix::fs::FileExt::write_all_at(&file, b"damage", at + 4100).expect("damage");
        drop(file);
        let before = disk::sum_file(&path);
        varve(dir, "crypt test disk.img --key-file first").ok();
        varve(dir, "crypt repair disk.img --dry-run").exits_with(1);
        varve(dir, "crypt repair disk.img").exits_with(2);
        assert_eq!(disk::sum_file(&path), before, "looking has written");
        varve(dir, "crypt repair disk.img --save-old old --json").ok();
        varve(dir, "crypt repair disk.img --dry-run").exits_with(0);
        let old = std::fs::read(dir.join("old")).expect("what was there");
        assert_eq!(&old[usize::try_from(at).expect("small") + 4100..][..6], b"damage");
        opens(dir, "", &["first"], &["second"]);
        let sum = disk::sum_file(&path);
        cryptsetup(dir, "luksDump disk.img").ok();
        assert_eq!(disk::sum_file(&path), sum, "cryptsetup finds nothing to repair either");
    }
}

#[test]
fn converted_volumes_open_with_both_programs_and_can_be_managed_on() {
    if !tool::have(&["cryptsetup"]) {
        return;
    }
    for (from, to) in [("luks1", "luks2"), ("luks2", "luks1")] {
        let dir = folder();
        let dir = dir.path();
        let format = format!(
            "luksFormat -q --type {from} --sector-size 512 {COST} --key-file first disk.img"
        );
        cryptsetup(dir, &format).ok();
        cryptsetup(dir, &format!("luksAddKey -q {COST} --key-file first disk.img second")).ok();
        let payload = |line: &str| {
            let dump = "cryptsetup luksDump -q --dump-volume-key --key-file first disk.img";
            process::sh(&format!("cd {} && {dump} | grep -A9 '{line}'", dir.display())).ok()
        };
        let key = payload("MK dump").replace(' ', "");
        varve(dir, &format!("crypt convert disk.img --to {from} --save-old x --force"))
            .exits_with(3);
        varve(dir, &format!("crypt convert disk.img --to {to} --save-old old --force")).ok();
        assert_eq!(payload("MK dump").replace(' ', ""), key, "another volume key");
        cryptsetup(dir, &format!("isLuks --type {to} disk.img")).ok();
        opens(dir, "", &["first", "second"], &["third"]);
        cryptsetup(dir, &format!("luksAddKey -q {COST} --key-file second disk.img third")).ok();
        cryptsetup(dir, "luksKillSlot -q --key-file third disk.img 0").ok();
        opens(dir, "", &["second", "third"], &["first"]);
        // Back again by ourselves: the reference wants areas where its own conversion puts them.
        varve(dir, &format!("crypt convert disk.img --to {from} --save-old between --force")).ok();
        opens(dir, "", &["second", "third"], &["first"]);
        varve(dir, "crypt header-restore disk.img --file old --force").ok();
        opens(dir, "", &["first", "second"], &["third"]);
    }
}

/// The whole stack: the header lies on top of a write-back cache.
#[test]
fn keys_of_a_cached_volume_are_changed_through_the_cache() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path();
    let _ = varve_tests::varve::make_stack(dir, 160 << 20, 36 << 20, "writeback", Some("key"));
    std::fs::write(dir.join("second"), "another").expect("a key file");
    let stack = "--backing hdd --cache ssd";
    let before = (disk::sum_file(&dir.join("hdd")), disk::sum_file(&dir.join("ssd")));
    varve(dir, &format!("crypt add-key {stack} --key-file second --new-key-file key"))
        .exits_with(3);
    let after = (disk::sum_file(&dir.join("hdd")), disk::sum_file(&dir.join("ssd")));
    assert_eq!(before, after, "a wrong key writes nothing");
    varve(dir, &format!("crypt add-key {stack} --key-file key --new-key-file second {COST}")).ok();
    varve(dir, &format!("crypt test {stack} --key-file second")).ok();
    varve(dir, &format!("crypt remove-key {stack} --key-file key")).ok();
    varve(dir, &format!("crypt test {stack} --key-file key")).exits_with(3);
    varve(dir, &format!("cache check {stack}")).ok();
}

/// A key beside the volume's own: each program shows the other's, and neither takes it for one that opens
/// the volume.
#[test]
fn unbound_keys_open_for_both_and_belong_to_no_volume() {
    if !tool::have(&["cryptsetup"]) {
        return;
    }
    let dir = folder();
    let dir = dir.path();
    varve(dir, &format!("crypt format disk.img --type luks2 --key-file first {COST}")).ok();
    let ours =
        "crypt add-key disk.img --unbound --key-size 256 --key-file first --new-key-file second";
    varve(dir, &format!("{ours} {COST}")).ok();
    let theirs =
        "luksAddKey -q --unbound --key-size 512 --key-slot 4 --key-file first disk.img third";
    cryptsetup(dir, &format!("{theirs} {COST}")).ok();
    for (slot, key, bits) in [(1, "second", 256), (4, "third", 512)] {
        let line = format!("luksDump -q --unbound --key-slot {slot} --key-file {key} disk.img");
        let shown = cryptsetup(dir, &line).ok();
        assert!(shown.contains(&format!("Key bits:\t{bits}")), "{shown}");
        let said = varve(dir, &format!("crypt test disk.img --key-file {key}")).ok();
        assert!(said.contains(&format!("slot {slot}, which belongs to no volume")), "{said}");
        let line = format!("open --test-passphrase --key-file {key} disk.img");
        assert_ne!(cryptsetup(dir, &line).code, Some(0), "slot {slot} opens the volume");
        varve(dir, &format!("fs ls --backing disk.img --key-file {key}")).exits_with(3);
    }
    // The last key of the volume stays the last one, whatever is beside it.
    varve(dir, "crypt remove-key disk.img --key-file first").exits_with(3);
    cryptsetup(dir, "luksKillSlot -q disk.img 1").ok();
    varve(dir, "crypt kill-slot disk.img 4 --key-file first").ok();
    opens(dir, "", &["first"], &["second", "third"]);
}
