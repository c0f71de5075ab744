//! Commands that only look must not write, even where a journal waits to be replayed.

use varve_tests::client::Server;
use varve_tests::disk::noise;
use varve_tests::nbd::{FUA, Request};
use varve_tests::varve::{make_stack, varve};

use crate::sums;

#[test]
fn show_check_dump_test_and_ls_write_nothing() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path();
    let stack = make_stack(dir, 160 << 20, 36 << 20, "writeback", Some("key"));
    varve(dir, "fs mkfs --backing hdd --cache ssd --key-file key --label attic").ok();
    let server = Server::start(dir, &stack);
    let mut nbd = server.connect();
    let at = nbd.size() - (4 << 20);
    let data = noise(1, 1 << 20);
    nbd.ask(Request::Write { at, data: &data, flags: FUA })
        .expect("the server stays")
        .expect("a write");
    server.kill();

    let before = sums(dir, &["hdd", "ssd"]);
    for line in [
        "cache show --backing hdd --cache ssd",
        "cache show --backing hdd --cache ssd --json",
        "cache check --backing hdd --cache ssd",
        "cache check --backing hdd --cache ssd --json",
        "crypt dump --backing hdd --cache ssd",
        "crypt test --backing hdd --cache ssd --key-file key",
        "fs ls --backing hdd --cache ssd --key-file key /",
        "fs stat --backing hdd --cache ssd --key-file key /",
    ] {
        let out = varve(dir, line).ok();
        if line.ends_with("--json") {
            serde_json::from_str::<serde_json::Value>(&out).expect("JSON");
        }
        assert!(!out.contains("the key of"), "a secret is shown");
        assert_eq!(sums(dir, &["hdd", "ssd"]), before, "`varve {line}` has written");
    }
}

#[test]
fn a_benchmark_names_every_engine_and_the_one_that_volumes_get() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let line =
        "crypt bench --only cipher --cipher aes-xts-plain64 --sector-size 4096 --rounds 1 --json";
    let out = varve(dir.path(), line).ok();
    let found: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    let ciphers = found["ciphers"].as_array().expect("a list");
    for bits in [256, 512] {
        let of: Vec<_> = ciphers.iter().filter(|c| c["key_bits"] == bits).collect();
        assert!(of.iter().any(|c| c["engine"] == "soft"), "{of:?}");
        assert_eq!(of.iter().filter(|c| c["default"] == true).count(), 1, "{of:?}");
        assert!(of.iter().all(|c| c["encrypt_mib_s"].as_f64().expect("a figure") > 0.0));
    }
    let kdf = varve(dir.path(), "crypt bench --only kdf --hash sha256").ok();
    assert!(kdf.contains("pbkdf2-sha256"), "{kdf}");
    varve(dir.path(), "crypt bench --cipher aes-xts-plain64 --key-size 128").exits_with(2);
}
