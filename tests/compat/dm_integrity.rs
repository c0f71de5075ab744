//! dm-integrity by itself through the command line: what integritysetup says of our volumes, and what a client
//! and `check` get where a disk rots, where the server was killed, and where tags are missing.

use std::path::Path;
use std::process::Command;

use varve_tests::client::{Server, Stack};
use varve_tests::nbd::{Errno, Nbd, Request};
use varve_tests::varve::varve;
use varve_tests::{disk, process, tool};

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    disk::sparse(&dir.path().join("disk.img"), 24 << 20);
    std::fs::write(dir.path().join("key"), "varve hmac key varve hmac key 32").expect("a key");
    dir
}

fn stack(mode: &str) -> Stack {
    Stack::backing("disk.img").with("--dm-integrity", "crc32c").with("--dm-integrity-mode", mode)
}

fn write(nbd: &mut Nbd, at: u64, data: &[u8]) {
    nbd.ask(Request::Write { at, data, flags: 0 }).expect("served").expect("a write");
}

/// The value of a line of `integritysetup dump`.
fn theirs(dump: &str, name: &str) -> String {
    let line = dump.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in\n{dump}")).trim().to_owned()
}

#[test]
fn integritysetup_says_of_our_volumes_what_we_say() {
    if !tool::have(&["integritysetup"]) {
        return;
    }
    for options in [
        "",
        "--dm-integrity sha256 --sector-size 4096",
        "--dm-integrity hmac-sha256 --dm-integrity-key-file key --tag-size 16",
        "--interleave-sectors 1024 --journal-size 512k --bitmap-sectors-per-bit 4096",
        "--recalculate",
    ] {
        let dir = folder();
        let dir = dir.path();
        varve(dir, &format!("integrity format disk.img {options}")).ok();
        let dump = process::run(
            Command::new(tool::find("integritysetup").expect("asked for before"))
                .current_dir(dir)
                .args(["dump", "disk.img"]),
        )
        .ok();
        let json: serde_json::Value =
            serde_json::from_str(&varve(dir, "integrity dump disk.img --json").ok()).expect("JSON");
        let number = |name: &str| json[name].as_u64().unwrap_or_else(|| panic!("{name}: {json}"));
        assert_eq!(theirs(&dump, "superblock_version"), number("version").to_string());
        let interleave = number("interleave_sectors").ilog2().to_string();
        assert_eq!(theirs(&dump, "log2_interleave_sectors"), interleave);
        assert_eq!(theirs(&dump, "integrity_tag_size"), number("tag_size").to_string());
        assert_eq!(theirs(&dump, "journal_sections"), number("journal_sections").to_string());
        assert_eq!(theirs(&dump, "provided_data_sectors"), number("provided_sectors").to_string());
        assert_eq!(theirs(&dump, "sector_size"), number("block_size").to_string());
        let blocks_per_bit = number("sectors_per_bit") * 512 / number("block_size");
        assert_eq!(theirs(&dump, "log2_blocks_per_bitmap"), blocks_per_bit.ilog2().to_string());
        let text = varve(dir, "integrity dump disk.img").ok();
        let flags = theirs(&dump, "flags");
        assert!(text.contains(&format!("flags: {flags}\n")), "{flags}: {text}");
        if options == "--recalculate" {
            assert_eq!(theirs(&dump, "recalc_sector"), "0");
            assert!(text.contains("recalculating from sector 0"), "{text}");
        }
    }
}

/// The first sectors as they lie on the disk, whatever their tags say; of a copy, as a server has the image.
fn rescued(image: &Path) -> Vec<u8> {
    let dir = tempfile::tempdir().expect("a temporary folder");
    std::fs::copy(image, dir.path().join("disk.img")).expect("a copy");
    let refused = Server::try_start(dir.path(), &stack("recovery")).err();
    let refused = refused.expect("it may not write").exits_with(3);
    assert!(refused.contains("--read-only"), "{refused}");
    let server = Server::start(dir.path(), &stack("recovery").flag("--read-only"));
    let found = server.connect().read(0, 65536).expect("served").expect("as it lies there");
    server.stop();
    found
}

#[test]
fn a_rotten_sector_is_an_error_for_the_client_and_listed_by_check() {
    for mode in ["journal", "bitmap", "direct"] {
        let dir = folder();
        let dir = dir.path();
        varve(dir, "integrity format disk.img").ok();
        let server = Server::start(dir, &stack(mode));
        let data = disk::noise(1, 65536);
        write(&mut server.connect(), 0, &data);
        server.stop();
        // Sector 0 lies behind superblock, journal (352 sectors) and 256 sectors of tags.
        let at = (8 + 352 + 256) * 512 + 4096 + 512 + 100;
        let image = std::fs::read(dir.join("disk.img")).expect("an image");
        let byte = image[usize::try_from(at).expect("small")];
        disk::damage(&dir.join("disk.img"), at, &[byte ^ 4]);
        let said = varve(dir, "integrity check disk.img").exits_with(1);
        let all = varve(dir, "integrity check disk.img --json").code;
        assert_eq!(all, Some(1), "{said}");
        let server = Server::start(dir, &stack(mode));
        let mut nbd = server.connect();
        assert!(nbd.read(0, 4096).expect("served").expect("before it") == data[..4096]);
        assert!(nbd.read(8192, 8192).expect("served").expect("behind it") == data[8192..16384]);
        assert_eq!(nbd.read(0, 65536).expect("served").err(), Some(Errno::EIO));
        if mode == "journal" {
            let rotten = rescued(&dir.join("disk.img"));
            assert!(rotten[..4608] == data[..4608] && rotten[4608..5120] != data[4608..5120]);
        }
        let log = server.log();
        let told = log.lines().find(|line| line.contains("a request failed"));
        let told = told.unwrap_or_else(|| panic!("the operator is not told: {log}"));
        assert!(told.contains("disk.img") && told.contains("sector 9"), "{told}");
        // Written anew, it is whole.
        write(&mut nbd, 4096, &data[4096..8192]);
        assert!(nbd.read(0, 65536).expect("served").expect("all of it") == data);
        drop(nbd);
        server.stop();
        let said = varve(dir, "integrity check disk.img").ok();
        assert!(said.contains("clean"), "{said}");
    }
}

/// The list of `check`, which is not lost where its exit code says that there is one.
#[test]
fn check_names_each_bad_sector() {
    let dir = folder();
    let dir = dir.path();
    varve(dir, "integrity format disk.img --sector-size 4096").ok();
    let json: serde_json::Value =
        serde_json::from_str(&varve(dir, "integrity dump disk.img --json").ok()).expect("JSON");
    assert_eq!(json["journal_sectors"], 392, "the places below are for this journal");
    for sector in [16u64, 40_000] {
        let data = 8 + 392 + 32 * (1 + sector / 32768) + sector;
        disk::damage(&dir.join("disk.img"), data * 512, b"rot");
    }
    let out = varve(dir, "integrity check disk.img --json");
    assert_eq!(out.code, Some(1));
    let found: serde_json::Value = serde_json::from_str(&out.stdout).expect("JSON");
    assert_eq!(found["bad_blocks"], 2, "{found}");
    let sectors: Vec<_> =
        found["bad"].as_array().expect("a list").iter().map(|b| &b["sector"]).collect();
    assert_eq!(sectors, [16, 40_000]);
}

/// Killed while it writes; whatever was left, no tag is wrong and what was flushed is there.
#[test]
fn a_killed_server_leaves_no_wrong_tag() {
    for mode in ["journal", "bitmap"] {
        for round in 0..3u64 {
            let dir = folder();
            let dir = dir.path();
            varve(dir, "integrity format disk.img").ok();
            let server = Server::start(dir, &stack(mode));
            let mut nbd = server.connect();
            let kept = disk::noise(1, 262_144);
            write(&mut nbd, 1 << 20, &kept);
            nbd.ask(Request::Flush).expect("served").expect("a flush");
            server.kill_in(std::time::Duration::from_millis(3 * round));
            for n in 0.. {
                let data = disk::noise(n, 131_072);
                let at = n % 40 * 131_072 + (4 << 20);
                if nbd.ask(Request::Write { at, data: &data, flags: 0 }).is_err() {
                    break;
                }
            }
            server.wait_killed();
            let server = Server::start(dir, &stack(mode));
            let found = server.connect().read(1 << 20, 262_144).expect("served").expect("kept");
            assert!(found == kept, "{mode} {round}");
            server.stop();
            varve(dir, &format!("integrity recalculate disk.img --dm-integrity-mode {mode}")).ok();
            varve(dir, &format!("integrity check disk.img --dm-integrity-mode {mode}")).ok();
        }
    }
}

#[test]
fn what_is_not_supported_is_refused_in_one_line_and_nothing_is_written() {
    let dir = folder();
    let dir = dir.path();
    varve(dir, "integrity format disk.img").ok();
    let image = dir.join("disk.img");
    let byte = |at: u64, byte: u8| disk::damage(&image, at, &[byte]);
    let refused = |line: &str, code: i32, words: &str| {
        let before = disk::sum_file(&image);
        let said = varve(dir, line).exits_with(code);
        assert!(said.contains(words), "{line}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert_eq!(disk::sum_file(&image), before, "{line}");
    };
    refused("integrity format disk.img", 3, "dm-integrity");
    refused("integrity format disk.img --force --tag-size 500", 3, "1 to 424");
    refused("integrity format disk.img --force --interleave-sectors 1000", 3, "power of two");
    refused("integrity check disk.img --dm-integrity md4", 2, "crc32c");
    refused("integrity check disk.img --dm-integrity hmac-sha256", 2, "key-file");
    refused("integrity check disk.img --dm-integrity-key-file key", 2, "no key");
    for (at, value, words) in [
        (24, 0x19, "a journal with a MAC"),
        (24, 0x38, "the drive's own metadata"),
        (9, 0, "a metadata device of its own"),
        (8, 9, "version 9"),
    ] {
        let whole = std::fs::read(&image).expect("an image");
        byte(at, value);
        refused("integrity check disk.img", 3, words);
        byte(at, whole[usize::try_from(at).expect("small")]);
    }
    varve(dir, "integrity format disk.img --force --dm-integrity hmac-sha256 --dm-integrity-key-file key --recalculate").ok();
    let keyed =
        "integrity recalculate disk.img --dm-integrity hmac-sha256 --dm-integrity-key-file key";
    refused(keyed, 3, "--dm-integrity-legacy-recalculate");
    varve(dir, &format!("{keyed} --dm-integrity-legacy-recalculate")).ok();
    varve(dir, "integrity check disk.img --dm-integrity hmac-sha256 --dm-integrity-key-file key")
        .ok();
}

/// A file system on a volume whose tags are still to be computed.
#[test]
fn a_stack_file_names_the_layer() {
    let dir = folder();
    let dir = dir.path();
    disk::sparse(&dir.join("disk.img"), 160 << 20);
    varve(dir, "integrity format disk.img --recalculate").ok();
    let text =
        "backing = \"disk.img\"\ndm_integrity = \"crc32c\"\ndm_integrity_mode = \"bitmap\"\n";
    std::fs::write(dir.join("s.toml"), text).expect("a stack file");
    varve(dir, "fs mkfs --stack s.toml").ok();
    varve(dir, "fs check --stack s.toml").ok();
    varve(dir, "integrity recalculate --stack s.toml").ok();
    let said = varve(dir, "integrity check --stack s.toml").ok();
    assert!(said.contains("clean") && !said.contains("no tags yet"), "{said}");
}
