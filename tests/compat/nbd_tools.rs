//! libnbd's programs: `nbdinfo`, `nbdcopy`, `nbdsh`.

use std::process::Command;

use varve_tests::client::{Server, Stack};
use varve_tests::varve::make_stack;
use varve_tests::{disk, process, tool};

const HDD: u64 = 96 << 20;
const SSD: u64 = 36 << 20;

#[test]
fn nbdinfo_reads_every_answer_of_the_handshake() {
    if !tool::have(&["nbdinfo"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let stack = make_stack(dir.path(), HDD, SSD, "writeback", None);
    let server = Server::start(dir.path(), &stack);
    let nbdinfo = |args: &[&str]| process::run(Command::new("nbdinfo").args(args)).ok();
    let info: serde_json::Value =
        serde_json::from_str(&nbdinfo(&["--json", &server.uri()])).expect("nbdinfo's own JSON");
    assert_eq!(info["protocol"], "newstyle-fixed");
    assert_eq!(info["structured"], true, "{info}");
    let export = &info["exports"][0];
    let size = server.connect().size();
    assert_eq!(export["export-size"], size, "{info}");
    assert_eq!(size, HDD - 8192, "the volume is the backing device from sector 16");
    for ability in ["can_flush", "can_fua", "can_multi_conn", "can_zero", "can_cache", "can_df"] {
        assert_eq!(export[ability], true, "{ability}: {info}");
    }
    assert_eq!(export["is_read_only"], false, "{info}");
    assert_eq!(export["block_size_preferred"], 4096, "{info}");
    // Clients that obey, nbdfuse under a loop device among them, must still get their 512 bytes through.
    let minimum = export["block_size_minimum"].as_u64().expect("a number");
    assert!(minimum <= 512, "{info}");
    let contexts = export["contexts"].as_array().expect("a list of contexts");
    assert!(contexts.iter().any(|context| context == "base:allocation"), "{info}");
    assert_eq!(nbdinfo(&["--size", &server.uri()]).trim(), size.to_string());
    let list = nbdinfo(&["--list", &server.uri()]);
    assert!(list.contains(&size.to_string()), "{list}");
    // Extents must cover the export, whatever they say.
    let map = nbdinfo(&["--map", &server.uri()]);
    let covered: u64 = map
        .lines()
        .map(|line| {
            line.split_whitespace().nth(1).expect("a length").parse::<u64>().expect("a number")
        })
        .sum();
    assert_eq!(covered, size, "{map}");
    server.stop();

    let server = Server::start(dir.path(), &stack.flag("--read-only"));
    let info: serde_json::Value =
        serde_json::from_str(&nbdinfo(&["--json", &server.uri()])).expect("nbdinfo's own JSON");
    assert_eq!(info["exports"][0]["is_read_only"], true, "{info}");
    server.stop();
}

#[test]
fn an_export_has_the_name_it_was_given() {
    if !tool::have(&["nbdinfo"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let stack = make_stack(dir.path(), HDD, SSD, "writethrough", None).with("--name", "attic");
    let server = Server::start(dir.path(), &stack);
    let uri = format!("nbd+unix:///attic?socket={}", server.socket().display());
    process::run(Command::new("nbdinfo").args(["--size", &uri])).ok();
    let list = process::run(Command::new("nbdinfo").args(["--list", &server.uri()])).ok();
    assert!(list.contains("attic"), "{list}");
    let wrong = format!("nbd+unix:///cellar?socket={}", server.socket().display());
    let refused = process::run(Command::new("nbdinfo").args(["--size", &wrong]));
    assert_ne!(refused.code, Some(0), "an unknown name was served: {refused}");
    server.stop();
}

#[test]
fn nbdcopy_brings_an_image_there_and_back() {
    if !tool::have(&["nbdcopy"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let stack = make_stack(dir.path(), HDD, SSD, "writeback", Some("key"));
    let server = Server::start(dir.path(), &stack);
    let (there, back) = (dir.path().join("there"), dir.path().join("back"));
    let size = usize::try_from(server.connect().size()).expect("a small disk");
    // Noise, a hole, and noise at an odd end: longer than the cache.
    let mut image = disk::noise(5, size);
    image[10 << 20..30 << 20].fill(0);
    std::fs::write(&there, &image).expect("an image");
    let nbdcopy = |args: &[&str]| process::run(Command::new("nbdcopy").args(args)).ok();
    let (there_name, back_name) = (there.to_string_lossy(), back.to_string_lossy());
    nbdcopy(&["--flush", "--connections=4", "--requests=32", &there_name, &server.uri()]);
    nbdcopy(&[&server.uri(), &back_name]);
    assert_eq!(disk::sum_file(&there), disk::sum_file(&back));
    server.stop();
    let server = Server::start(dir.path(), &stack);
    nbdcopy(&["--connections=2", &server.uri(), &back_name]);
    assert_eq!(disk::sum_file(&there), disk::sum_file(&back), "after a restart");
    server.stop();
}

/// Everything libnbd can ask for, in one session, with its own checks of every reply.
const SESSION: &str = r#"
h.set_strict_mode(0)
h.add_meta_context("base:allocation")
h.connect_uri(URI)
size = h.get_size()
assert h.can_flush() and h.can_fua() and h.can_multi_conn() and h.can_zero() and h.can_df()
assert h.can_meta_context("base:allocation")
h.pwrite(b"a" * 70000, 12345, nbd.CMD_FLAG_FUA)
assert h.pread(70000, 12345) == b"a" * 70000
assert h.pread(4096, 16384, nbd.CMD_FLAG_DF) == b"a" * 4096
h.zero(8192, 20480)
assert h.pread(8192, 20480) == b"\0" * 8192
h.pwrite(b"b" * 8192, 20480)
h.zero(8192, 20480, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
assert h.pread(8192, 20480) == b"\0" * 8192
h.flush()
if h.can_trim():
    h.trim(1 << 20, 1 << 20)
h.cache(1 << 16, 0)
covered = []
def extents(context, offset, entries, error):
    assert context == "base:allocation" and error.value == 0
    assert len(entries) % 2 == 0 and all(e > 0 for e in entries[::2])
    covered.append(sum(entries[::2]))
h.block_status(1 << 20, 0, extents)
assert covered and covered[0] > 0
def one(context, offset, entries, error):
    assert len(entries) == 2
h.block_status(1 << 20, 4096, one, nbd.CMD_FLAG_REQ_ONE)
# Sixty-four requests in flight, answered in any order.
cookies = []
bufs = []
for i in range(64):
    bufs.append(nbd.Buffer.from_bytearray(bytearray([i]) * 4096))
    cookies.append(h.aio_pwrite(bufs[i], 4 * 1024 * 1024 + i * 4096))
while h.aio_in_flight() > 0:
    h.poll(-1)
for c in cookies:
    assert h.aio_command_completed(c)
for i in range(64):
    assert h.pread(4096, 4 * 1024 * 1024 + i * 4096) == bytes([i]) * 4096
# A read over all it may be, and one byte at the very end.
assert len(h.pread(32 << 20, 0)) == 32 << 20
h.pwrite(b"z", size - 1)
assert h.pread(1, size - 1) == b"z"
# Beyond the end: an error, and the connection lives.
for wrong in (lambda: h.pread(512, size), lambda: h.pwrite(b"x" * 512, size - 256),
              lambda: h.zero(512, size), lambda: h.pread(1, 1 << 63)):
    try:
        wrong()
        raise SystemExit("accepted beyond the end")
    except nbd.Error as error:
        assert error.errno in ("EINVAL", "ENOSPC"), error.errno
assert h.pread(1, size - 1) == b"z"
h.shutdown()
print("session complete")
"#;

#[test]
fn nbdsh_gets_every_command_answered() {
    if !tool::have(&["nbdsh"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    for (stack, name) in [
        (make_stack(dir.path(), HDD, SSD, "writeback", Some("key")), "encrypted"),
        (Stack::backing("raw").flag("--no-crypt"), "a plain file"),
    ] {
        disk::sparse(&dir.path().join("raw"), 64 << 20);
        let server = Server::start(dir.path(), &stack);
        // `nbdsh -c` takes the script as one word, and leaves no room for arguments of ours.
        let session = SESSION.replace("URI", &format!("{:?}", server.uri()));
        // It runs the first python3 of the PATH; only the system's has libnbd's module.
        let system = "/usr/sbin:/usr/bin:/sbin:/bin";
        let out = process::run(Command::new("nbdsh").env("PATH", system).args(["-c", &session]));
        assert!(out.stdout.contains("session complete"), "{name}: {out}");
        server.stop();
    }
}

#[test]
fn two_clients_see_each_others_writes() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let stack = make_stack(dir.path(), HDD, SSD, "writeback", Some("key"));
    let server = Server::start(dir.path(), &stack);
    let (mut one, mut other) = (server.connect(), server.connect());
    for n in 0..100 {
        let data = disk::noise(n, 5000);
        let at = n * 3777;
        let write = varve_tests::nbd::Request::Write { at, data: &data, flags: 0 };
        one.ask(write).expect("the server stays").expect("a write");
        assert_eq!(other.read(at, 5000).expect("the server stays").expect("a read"), data);
        std::mem::swap(&mut one, &mut other);
    }
    drop((one, other));
    server.stop();
}
