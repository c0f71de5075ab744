//! `fio`'s own checksummed blocks, in every cache mode, with more data than the cache holds, read back after
//! a clean restart and after a `kill -9`.

use varve_tests::client::Server;
use varve_tests::fio::Job;
use varve_tests::tool;
use varve_tests::varve::make_stack;

const HDD: u64 = 160 << 20;
const SSD: u64 = 36 << 20;

/// More than [`SSD`].
const DATA: u64 = 64 << 20;

fn round_trip(mode: &str, key: Option<&str>) {
    if !tool::have(&["fio"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let stack = make_stack(dir.path(), HDD, SSD, mode, key);
    let first = Job { size: DATA, block: 4096, depth: 16, seed: 1 };

    let server = Server::start(dir.path(), &stack);
    first.write(&server.uri()).ok();
    first.verify(&server.uri()).ok();
    server.stop();

    let server = Server::start(dir.path(), &stack);
    first.verify(&server.uri()).ok();
    // Over the same blocks, in another order and another size: overlaps in the index, old data evicted.
    let second = Job { size: DATA, block: 12 << 10, depth: 8, seed: 2 };
    second.write(&server.uri()).ok();
    server.kill(); // its last request was a flush

    let server = Server::start(dir.path(), &stack);
    second.verify(&server.uri()).ok();
    server.stop();
}

#[test]
fn writethrough_round_trip() {
    round_trip("writethrough", None);
}

#[test]
fn writeback_round_trip() {
    round_trip("writeback", None);
}

#[test]
fn writearound_round_trip() {
    round_trip("writearound", None);
}

#[test]
fn uncached_round_trip() {
    round_trip("none", None);
}

#[test]
fn encrypted_writeback_round_trip() {
    round_trip("writeback", Some("the passphrase of this test"));
}

#[test]
fn encrypted_writethrough_round_trip() {
    round_trip("writethrough", Some("the passphrase of this test"));
}

#[test]
fn the_mode_can_change_between_runs() {
    if !tool::have(&["fio"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut stack = make_stack(dir.path(), HDD, SSD, "writeback", None);
    let mut jobs: Vec<Job> = Vec::new();
    for (n, mode) in ["writearound", "writethrough", "writeback", "none"].iter().enumerate() {
        let server = Server::start(dir.path(), &stack);
        if let Some(last) = jobs.last() {
            last.verify(&server.uri()).ok();
        }
        let job = Job { size: DATA / 2, block: 8192, depth: 8, seed: 10 + n as u64 };
        job.write(&server.uri()).ok();
        jobs.push(job);
        server.stop();
        stack = varve_tests::client::Stack::backing("hdd")
            .cache("ssd")
            .with("--cache-mode", *mode)
            .flag("--no-crypt");
    }
    let server = Server::start(dir.path(), &stack);
    jobs.last().expect("four jobs").verify(&server.uri()).ok();
    server.stop();
}
