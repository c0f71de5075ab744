//! Media that fail under a running server: a full host disk, an SSD that begins to return errors.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use varve_tests::client::Server;
use varve_tests::disk::noise;
use varve_tests::mount::{self, NbdFile};
use varve_tests::nbd::{Errno, Nbd, Request};
use varve_tests::varve::make_stack;
use varve_tests::{clock, process, tool};

const MIB: u64 = 1 << 20;

#[track_caller]
fn write(nbd: &mut Nbd, at: u64, data: &[u8]) -> Result<(), Errno> {
    nbd.ask(Request::Write { at, data, flags: 0 }).expect("the server stays")
}

#[track_caller]
fn read(nbd: &mut Nbd, at: u64, len: usize) -> Result<Vec<u8>, Errno> {
    nbd.read(at, u32::try_from(len).expect("a short read")).expect("the server stays")
}

/// A small file system in memory; unmounted when dropped.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn mount(size: &str) -> Tmpfs {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let options = format!("size={size}");
        process::run(
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(dir.path()),
        )
        .ok();
        Tmpfs(dir)
    }

    fn grow(&self, size: &str) {
        let options = format!("remount,size={size}");
        process::run(Command::new("mount").args(["-o", &options]).arg(self.0.path())).ok();
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

/// Moves an image elsewhere and leaves a link in its place.
fn relocate(image: &Path, to: &Path) {
    process::run(Command::new("cp").arg("--sparse=always").arg(image).arg(to)).ok();
    std::fs::remove_file(image).expect("the old image");
    std::os::unix::fs::symlink(to, image).expect("a link");
}

#[test]
fn a_full_host_disk_is_an_error_to_the_client_and_passes() {
    if !tool::have_root() || !tool::have(&["mount", "umount"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let stack = make_stack(dir.path(), 160 * MIB, 36 * MIB, "writethrough", None);
    let full = Tmpfs::mount("24m");
    relocate(&dir.path().join("hdd"), &full.0.path().join("hdd"));

    let mut server = Server::start(dir.path(), &stack);
    let mut nbd = server.connect();
    let mut written = Vec::new();
    let mut error = None;
    for n in 0..60 {
        let data = noise(n, 1 << 20);
        match write(&mut nbd, n * MIB, &data) {
            Ok(()) => written.push(n),
            Err(errno) => {
                error = Some(errno);
                break;
            }
        }
    }
    let error = error.expect("a disk of 24 MiB took 60 MiB");
    assert!([Errno::ENOSPC, Errno::EIO].contains(&error), "{error:?}");
    assert!(written.len() > 10, "only {} MiB went in", written.len());
    for &n in &written {
        assert_eq!(read(&mut nbd, n * MIB, 1 << 20), Ok(noise(n, 1 << 20)), "MiB {n}");
    }
    assert!(server.alive(), "{}", server.log());
    drop(nbd);
    server.kill(); // a failed flush may rightly keep it from stopping with 0

    full.grow("400m");
    let server = Server::start(dir.path(), &stack);
    let mut nbd = server.connect();
    for &n in &written {
        assert_eq!(read(&mut nbd, n * MIB, 1 << 20), Ok(noise(n, 1 << 20)), "MiB {n}, after");
    }
    for n in 40..60 {
        write(&mut nbd, n * MIB, &noise(n, 1 << 20)).expect("there is room again");
    }
    nbd.ask(Request::Flush).expect("the server stays").expect("a flush");
    drop(nbd);
    server.stop();
}

#[test]
fn a_cache_without_room_on_its_host_does_not_stop_the_disk() {
    if !tool::have_root() || !tool::have(&["mount", "umount"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let stack = make_stack(dir.path(), 160 * MIB, 64 * MIB, "writethrough", None);
    let full = Tmpfs::mount("12m");
    relocate(&dir.path().join("ssd"), &full.0.path().join("ssd"));
    let mut server = Server::start(dir.path(), &stack);
    let mut nbd = server.connect();
    for n in 0..40 {
        let data = noise(n, 1 << 20);
        write(&mut nbd, n * MIB, &data).expect("the disk has room");
    }
    for n in 0..40 {
        assert_eq!(read(&mut nbd, n * MIB, 1 << 20), Ok(noise(n, 1 << 20)), "MiB {n}");
    }
    assert!(server.alive(), "{}", server.log());
}

/// An image whose reads and writes can be made to fail: `nbdkit`'s error filter, shown as a file by
/// `nbdfuse`.
struct Faulty {
    // Dropped in this order: the file system before the server it talks to.
    file: NbdFile,
    nbdkit: Child,
    trigger: PathBuf,
}

const FAULT_TOOLS: &[&str] = &["nbdkit", "nbdfuse", "fusermount3"];

impl Faulty {
    fn open(image: &Path, dir: &Path) -> Faulty {
        let (socket, trigger) = (dir.join("nbdkit.sock"), dir.join("fail"));
        let nbdkit = Command::new("nbdkit")
            .args(["--foreground", "--exit-with-parent", "--filter=error", "--unix"])
            .arg(&socket)
            .arg("file")
            .arg(image)
            .args(["error=EIO", "error-rate=100%"])
            .arg(format!("error-file={}", trigger.display()))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nbdkit starts");
        clock::wait_for(Duration::from_secs(20), || socket.exists().then_some(()))
            .expect("nbdkit's socket");
        let file = NbdFile::open(&format!("nbd+unix:///?socket={}", socket.display()));
        Faulty { file, nbdkit, trigger }
    }

    /// From now on every request fails, also what the host's page cache could have answered.
    fn fail(&self) {
        std::fs::write(&self.trigger, "").expect("the trigger");
        process::sh("sync; echo 3 >/proc/sys/vm/drop_caches").ok();
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        process::end(&mut self.nbdkit);
    }
}

/// A stack whose SSD can fail, its server, and the SSD.
fn stack_on_faulty_ssd(dir: &Path, mode: &str) -> (varve_tests::client::Stack, Faulty) {
    let stack = make_stack(dir, 96 * MIB, 36 * MIB, mode, None);
    let image = dir.join("ssd.img");
    std::fs::rename(dir.join("ssd"), &image).expect("moving the image");
    let faulty = Faulty::open(&image, dir);
    std::os::unix::fs::symlink(faulty.file.path(), dir.join("ssd")).expect("a link");
    (stack, faulty)
}

fn can_inject() -> bool {
    mount::available() && tool::have(FAULT_TOOLS)
}

#[test]
fn a_dead_ssd_with_clean_data_leaves_the_disk_serving() {
    if !can_inject() {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (stack, ssd) = stack_on_faulty_ssd(dir.path(), "writethrough");
    let mut server = Server::start(dir.path(), &stack);
    let mut nbd = server.connect();
    for n in 0..16 {
        write(&mut nbd, n * MIB, &noise(n, 1 << 20)).expect("a write");
    }
    nbd.ask(Request::Flush).expect("the server stays").expect("a flush");
    ssd.fail();
    for n in 0..16 {
        assert_eq!(read(&mut nbd, n * MIB, 1 << 20), Ok(noise(n, 1 << 20)), "MiB {n}");
    }
    for n in 0..8 {
        write(&mut nbd, n * MIB, &noise(n + 100, 1 << 20)).expect("a write without the cache");
    }
    nbd.ask(Request::Flush).expect("the server stays").expect("a flush without the cache");
    for n in 0..8 {
        assert_eq!(read(&mut nbd, n * MIB, 1 << 20), Ok(noise(n + 100, 1 << 20)), "MiB {n}, new");
    }
    assert!(server.alive(), "{}", server.log());
}

#[test]
fn a_dead_ssd_with_dirty_data_fails_those_ranges_and_no_others() {
    if !can_inject() {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (stack, ssd) = stack_on_faulty_ssd(dir.path(), "writearound");
    // Half of the data goes to the disk alone, the other half is dirty on the SSD.
    let server = Server::start(dir.path(), &stack);
    let mut nbd = server.connect();
    for n in 0..32 {
        write(&mut nbd, n * MIB, &noise(n, 1 << 20)).expect("a write");
    }
    nbd.ask(Request::Flush).expect("the server stays").expect("a flush");
    drop(nbd);
    server.stop();
    let stack = varve_tests::client::Stack::backing("hdd")
        .cache("ssd")
        .with("--cache-mode", "writeback")
        .flag("--no-crypt");
    let mut server = Server::start(dir.path(), &stack);
    let mut nbd = server.connect();
    for n in 0..8 {
        write(&mut nbd, n * MIB, &noise(n + 100, 1 << 20)).expect("a write");
    }
    nbd.ask(Request::Flush).expect("the server stays").expect("a flush");
    ssd.fail();
    let mut lost = 0;
    for n in 0..8 {
        match read(&mut nbd, n * MIB, 1 << 20) {
            // Already written back, or still in memory: then it must be the new data.
            Ok(data) => assert!(data == noise(n + 100, 1 << 20), "MiB {n} has gone back in time"),
            Err(errno) => {
                assert_eq!(errno, Errno::EIO, "MiB {n}");
                lost += 1;
            }
        }
    }
    for n in 8..32 {
        assert_eq!(read(&mut nbd, n * MIB, 1 << 20), Ok(noise(n, 1 << 20)), "MiB {n}");
    }
    assert!(server.alive(), "{}", server.log());
    eprintln!("{lost} of 8 dirty MiB were lost with the SSD");
}
