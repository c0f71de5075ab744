//! Several connections write and flush; the server is killed at any moment, again and again, on the same
//! pair of disks.

use std::time::Duration;

use varve_tests::client::{Server, Stack};
use varve_tests::ledger::Ledger;
use varve_tests::nbd::Nbd;
use varve_tests::varve::{make_stack, varve_in};

/// 20 MiB: a good part of the cache, so that it has to write back and evict while it is killed.
const BLOCKS: usize = 5120;
const KILLS: u64 = 6;

fn survives_kills(mode: &str, key: Option<&str>, seed: u64) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let stack = make_stack(dir.path(), 96 << 20, 36 << 20, mode, key);
    let server = Server::start(dir.path(), &stack);
    let mut ledger = Ledger::fill(&mut server.connect(), BLOCKS, seed);
    server.stop();
    let mut flushes = 0;
    for kill in 0..KILLS {
        let server = Server::start(dir.path(), &stack);
        ledger.recover(&mut server.connect());
        let mut connections: Vec<Nbd> = (0..3).map(|_| server.connect()).collect();
        server.kill_in(Duration::from_millis(80 + 190 * kill));
        flushes += ledger.write_until_dead(&mut connections);
        server.wait_killed();
    }
    assert!(flushes > 0, "no flush was ever answered: this test shows nothing");
    let server = Server::start(dir.path(), &stack);
    ledger.recover(&mut server.connect());
    server.stop();
    let show = ["cache", "show", "--backing", "hdd", "--cache", "ssd"];
    varve_in(dir.path(), show).ok();
}

#[test]
fn writeback_survives_kills() {
    survives_kills("writeback", None, 21);
}

#[test]
fn writethrough_survives_kills() {
    survives_kills("writethrough", None, 22);
}

#[test]
fn writearound_survives_kills() {
    survives_kills("writearound", None, 23);
}

#[test]
fn encrypted_writeback_survives_kills() {
    survives_kills("writeback", Some("a key"), 24);
}

/// Replaying in memory must show what replaying for good shows, and change nothing on the way.
#[test]
fn a_killed_pair_reads_the_same_before_and_after_its_replay() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path();
    let stack = make_stack(dir, 96 << 20, 36 << 20, "writeback", None);
    let server = Server::start(dir, &stack);
    let mut connections = [server.connect(), server.connect()];
    let mut ledger = Ledger::fill(&mut connections[0], BLOCKS, 25);
    server.kill_in(Duration::from_millis(400));
    ledger.write_until_dead(&mut connections);
    server.wait_killed();

    let images = || ["hdd", "ssd"].map(|image| varve_tests::disk::sum_file(&dir.join(image)));
    let before = images();
    let look = Stack::backing("hdd").cache("ssd").flag("--no-crypt").flag("--read-only");
    let server = Server::start(dir, &look);
    let in_memory = varve_tests::disk::sum_export(&mut server.connect());
    server.stop();
    assert_eq!(images(), before, "a read-only server has written");

    let server = Server::start(dir, &stack);
    assert_eq!(varve_tests::disk::sum_export(&mut server.connect()), in_memory);
    ledger.recover(&mut server.connect());
    server.stop();
}
