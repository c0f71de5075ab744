//! Starting and stopping: the socket, the signals, the clients that are still there.

use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use varve_tests::client::{Server, Stack};
use varve_tests::nbd::Request;
use varve_tests::varve::{binary, make_stack};
use varve_tests::{clock, disk, process};

use crate::refused;

fn plain_disk(dir: &std::path::Path) -> Stack {
    disk::sparse(&dir.join("disk"), 16 << 20);
    Stack::backing("disk").flag("--no-crypt")
}

#[test]
fn interrupt_and_terminate_stop_cleanly() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let stack = make_stack(dir.path(), 96 << 20, 36 << 20, "writeback", None);
    for signal in [Signal::INT, Signal::TERM] {
        let server = Server::start(dir.path(), &stack);
        let socket = server.socket().to_owned();
        server.signal(signal).ok();
        assert!(!socket.exists(), "{signal:?}: the socket is still there");
    }
}

#[test]
fn an_interrupt_stops_it_even_where_it_was_ignored() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path();
    plain_disk(dir);
    let socket = dir.join("s.sock");
    // What a shell script does to its background jobs: SIGINT is ignored from before the exec.
    let line = "trap '' INT; exec \"$0\" serve --backing disk --no-crypt --listen unix:s.sock";
    let mut command = Command::new("sh");
    command.args(["-c", line]).arg(binary());
    let server = Server::listening(dir, command, &socket).expect("a server");
    server.stop();
}

#[test]
fn it_stops_with_clients_connected_and_what_they_flushed_is_there() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let stack = make_stack(dir.path(), 96 << 20, 36 << 20, "writeback", None);
    let server = Server::start(dir.path(), &stack);
    let mut busy = server.connect();
    let data = disk::noise(1, 1 << 20);
    busy.ask(Request::Write { at: 4096, data: &data, flags: 0 })
        .expect("the server stays")
        .expect("a write");
    busy.ask(Request::Flush).expect("the server stays").expect("a flush");
    let idle = UnixStream::connect(server.socket()).expect("a client that never says a word");
    server.stop();
    drop((busy, idle));
    let server = Server::start(dir.path(), &stack);
    assert_eq!(server.connect().read(4096, 1 << 20).expect("the server stays"), Ok(data));
    server.stop();
}

#[test]
fn the_socket_is_there_only_once_it_answers() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path();
    let stack = plain_disk(dir);
    let socket = dir.join("s.sock");
    for _ in 0..5 {
        let mut child = Command::new(binary())
            .current_dir(dir)
            .arg("serve")
            .args(stack.args())
            .args(["--listen", "unix:s.sock"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("varve starts");
        let seen = clock::wait_for(Duration::from_secs(30), || socket.exists().then_some(()));
        let connected = UnixStream::connect(&socket);
        process::end(&mut child);
        assert_eq!(seen, Some(()), "no socket");
        assert!(connected.is_ok(), "the socket was there before it answered: {connected:?}");
        std::fs::remove_file(&socket).expect("the killed server's socket");
    }
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path();
    let stack = plain_disk(dir);
    drop(UnixListener::bind(dir.join("s.sock")).expect("a socket to be left behind"));
    let server = Server::start(dir, &stack);
    server.kill();
    assert!(dir.join("s.sock").exists(), "a kill leaves the socket behind");
    let server = Server::start(dir, &stack);

    disk::sparse(&dir.join("another"), 16 << 20);
    let mut command = Command::new(binary());
    command.current_dir(dir).args(["serve", "--backing", "another", "--no-crypt"]);
    command.args(["--listen", "unix:s.sock"]);
    refused(process::run(&mut command));
    assert_eq!(server.connect().size(), 16 << 20, "the first server has lost its socket");
    server.stop();
}

#[test]
fn many_exports_addresses_can_be_listened_on() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path();
    let stack = plain_disk(dir).with("--listen", "unix:other.sock");
    let server = Server::start(dir, &stack);
    for socket in ["s.sock", "other.sock"] {
        let nbd = varve_tests::nbd::Nbd::connect(&dir.join(socket)).expect("both sockets answer");
        assert_eq!(nbd.size(), 16 << 20);
    }
    server.stop();
    assert!(!dir.join("other.sock").exists());
}
