//! Stacks and images that are named by NBD URIs: what other programs export is what the file is.

use std::path::{Path, PathBuf};
use std::process::Command;

use varve_tests::client::{Server, Stack};
use varve_tests::nbd::{FUA, Request};
use varve_tests::process::{self, Finished};
use varve_tests::varve::{varve, varve_in};
use varve_tests::{disk, tool};

/// A btrfs with some files, and what is in them.
struct Image {
    dir: tempfile::TempDir,
}

impl Image {
    fn make() -> Option<Image> {
        if !tool::have(&["mkfs.btrfs", "nbdkit", "qemu-nbd", "diff"]) {
            return None;
        }
        let dir = tempfile::tempdir().expect("a temporary folder");
        let files = dir.path().join("files");
        std::fs::create_dir(&files).expect("a folder");
        for n in 0..40 {
            let bytes = disk::noise(n, usize::try_from(n * n * 997).expect("a small file"));
            std::fs::write(files.join(format!("file{n}")), bytes).expect("a file");
        }
        disk::sparse(&dir.path().join("disk.img"), 256 << 20);
        let mut mkfs = Command::new("mkfs.btrfs");
        process::run(mkfs.arg("-q").arg("--rootdir").arg(&files).arg(dir.path().join("disk.img")))
            .ok();
        Some(Image { dir })
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("disk.img")
    }

    fn files(&self) -> PathBuf {
        self.dir.path().join("files")
    }
}

/// A server in a folder of its own, with its log.
struct Exported {
    server: Server,
    _dir: tempfile::TempDir,
}

impl Exported {
    /// `line` is a command in which `SOCK` and `IMG` stand for the places.
    fn start(line: &str, image: &Path) -> Exported {
        let (program, line) = line.split_once(' ').expect("a program and its words");
        Exported::start_with(program, |socket| {
            let word = |w: &str| w.replace("SOCK", socket).replace("IMG", &image.to_string_lossy());
            line.split_whitespace().map(word).collect()
        })
    }

    fn start_with(program: &str, words: impl FnOnce(&str) -> Vec<String>) -> Exported {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let socket = dir.path().join("s.sock");
        let mut command = match program {
            "varve" => Command::new(varve_tests::varve::binary()),
            program => Command::new(program),
        };
        command.args(words(&socket.to_string_lossy()));
        let server = Server::listening(dir.path(), command, &socket).expect("it listens");
        Exported { server, _dir: dir }
    }

    fn uri(&self) -> String {
        self.server.uri()
    }
}

/// Servers that differ in what they can and in what they ask for.
const SERVERS: &[&str] = &[
    "nbdkit -f -r -U SOCK file IMG",
    "nbdkit -f -r -U SOCK --no-sr file IMG",
    "nbdkit -f -r -U SOCK --mask-handshake=0 file IMG",
    "nbdkit -f -r -U SOCK --filter=blocksize-policy file IMG blocksize-minimum=4096 \
     blocksize-preferred=16384 blocksize-maximum=65536 blocksize-error-policy=error",
    "qemu-nbd -f raw -r -t -k SOCK IMG",
    "varve serve --read-only --backing IMG --listen unix:SOCK --quiet",
];

#[test]
fn a_file_system_on_an_export_is_the_one_in_the_file() {
    let Some(image) = Image::make() else { return };
    let here = image.dir.path();
    let plain = varve(here, "fs check disk.img").ok();
    let tree = varve(here, "fs dump-tree disk.img").ok();
    for (n, line) in SERVERS.iter().enumerate() {
        if line.contains("mask-handshake=0") {
            // Without the fixed newstyle there is no way to ask for anything.
            let exported = Exported::start(line, &image.path());
            let says = varve_in(here, ["fs", "check", &exported.uri()]).exits_with(3);
            assert!(says.contains("fixed newstyle") && says.lines().count() == 1, "{says}");
            continue;
        }
        let exported = Exported::start(line, &image.path());
        let uri = exported.uri();
        let checked = varve_in(here, ["fs", "check", &uri]).ok();
        assert_eq!(checked.replace(&uri, "disk.img"), plain, "{line}");
        varve_in(here, ["fs", "check", "--data", &uri]).ok();
        assert_eq!(varve_in(here, ["fs", "dump-tree", &uri]).ok(), tree, "{line}");
        let dest = format!("dest{n}");
        varve_in(here, ["fs", "export", &uri, &dest]).ok();
        let mut diff = Command::new("diff");
        process::run(diff.arg("-r").arg(image.files()).arg(here.join(&dest))).ok();
        let out = here.join("cat");
        let cat = format!("{} fs cat '{uri}' /file39 >{}", bin(), out.display());
        process::sh(&cat).ok();
        let told = std::fs::read(&out).expect("what was told");
        assert!(told == std::fs::read(image.files().join("file39")).expect("a file"), "{line}");
        let dump = format!("dump{n}");
        varve_in(here, ["fs", "image", "dump", &uri, "-o", &dump]).ok();
        let ls = varve_in(here, ["fs", "ls", "--backing", &uri, "--read-only", "/"]).ok();
        assert_eq!(ls.lines().count(), 40, "{line}");
    }
}

fn bin() -> String {
    varve_tests::varve::binary().display().to_string()
}

#[test]
fn a_stack_stands_on_exports() {
    if !tool::have(&["nbdkit", "qemu-nbd"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let here = dir.path();
    let (hdd, ssd) = (here.join("hdd"), here.join("ssd"));
    disk::sparse(&hdd, 192 << 20);
    disk::sparse(&ssd, 36 << 20);
    let disk_at = Exported::start("nbdkit -f -U SOCK file IMG", &hdd);
    let cache_at = Exported::start("qemu-nbd -f raw -t -e 4 --discard=unmap -k SOCK IMG", &ssd);
    let (disk_uri, cache_uri) = (disk_at.uri(), cache_at.uri());
    let both = ["--backing", &disk_uri, "--cache", &cache_uri].map(str::to_owned);
    let with = |words: &[&str]| -> Finished {
        varve_in(here, words.iter().copied().chain(both.iter().map(String::as_str)))
    };
    with(&["cache", "make", "--bucket", "64k", "--block", "4k"]).ok();
    // What is there is known, over a URI as well.
    let says = with(&["cache", "make", "--bucket", "64k"]).exits_with(3);
    assert!(says.contains("holds bcache already"), "{says}");
    std::fs::write(here.join("key"), "correct horse").expect("a key file");
    let key = ["--key-file", "key"];
    let cheap = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--force"];
    let mode = ["--cache-mode", "writeback"];
    with(&[&["crypt", "format"], &key[..], &mode, &cheap].concat()).ok();
    with(&[&["fs", "mkfs"], &key[..]].concat()).ok();

    // A stack file names them, too.
    let toml = format!(
        "backing = \"{disk_uri}\"\ncache = \"{cache_uri}\"\ncache_mode = \"writeback\"\n\
         key_file = \"key\"\n"
    );
    std::fs::write(here.join("s.toml"), toml).expect("a stack file");
    let server = Server::start(here, &Stack::default().with("--stack", "s.toml"));
    let bytes = disk::noise(3, 1 << 20);
    let mut nbd = server.connect();
    let far = nbd.size() - (2 << 20);
    nbd.ask(Request::Write { at: far, data: &bytes, flags: 0 })
        .expect("it stays")
        .expect("written");
    nbd.ask(Request::Flush).expect("it stays").expect("flushed");
    drop(nbd);
    // The cut: what was flushed is on the other side.
    server.kill();
    drop((disk_at, cache_at));

    // The very files behind the exports hold the stack.
    let files = "--backing hdd --cache ssd --key-file key";
    varve(here, &format!("fs check {files}")).ok();
    varve(here, "cache check --backing hdd --cache ssd").ok();
    let server = Server::start(
        here,
        &Stack::backing("hdd").cache("ssd").with("--key-file", "key").flag("--read-only"),
    );
    let read = server.connect().read(far, 1 << 20).expect("it stays").expect("read");
    assert!(read == bytes, "what was flushed has come back");
}

/// A server that answers so many reads, and is gone with the next.
fn leaving(image: &Path, reads: u32) -> Exported {
    let image = image.display();
    let pread = format!(
        r#"n=$(cat count || echo 0); echo $((n + 1)) >count; [ $n -lt {reads} ] || kill -9 $PPID
           dd if={image} iflag=skip_bytes,count_bytes skip=$4 count=$3 status=none"#
    );
    Exported::start_with("nbdkit", |socket| {
        let words = ["-f", "-r", "-t", "1", "-U", socket, "eval"].map(str::to_owned);
        let size = format!("get_size=stat -Lc %s {image}");
        words.into_iter().chain([size, format!("pread={pread}")]).collect()
    })
}

#[test]
fn a_server_that_goes_away_ends_a_command_in_one_line() {
    let Some(image) = Image::make() else { return };
    let here = image.dir.path();
    for (reads, words) in [
        (6, &["fs", "check", "--data"][..]),
        (25, &["fs", "check", "--data"]),
        (6, &["fs", "export"]),
        (35, &["fs", "export"]),
        (0, &["crypt", "dump"]),
    ] {
        let exported = leaving(&image.path(), reads);
        let uri = exported.uri();
        let mut args = [words, &[uri.as_str()]].concat();
        if words[1] == "export" {
            args.push("gone");
        }
        let says = varve_in(here, &args).exits_with(3);
        assert_eq!(says.lines().count(), 1, "{says}");
        let why = ["the server closed the connection", "the connection broke"];
        assert!(says.contains(&uri) && why.iter().any(|why| says.contains(why)), "{says}");
    }
}

#[test]
fn errors_of_an_export_are_told_as_they_are() {
    let Some(image) = Image::make() else { return };
    let here = image.dir.path();
    let line = "nbdkit -f -r -U SOCK --filter=error file IMG error=EIO error-pread-rate=100%";
    let exported = Exported::start(line, &image.path());
    let says = varve_in(here, ["fs", "ls", &exported.uri(), "/"]).exits_with(3);
    assert!(says.contains("the server says EIO") && says.lines().count() == 1, "{says}");
    for (uri, code, words) in [
        ("nbd+unix:///?socket=nowhere", 3, "no connection"),
        ("nbd://localhost:1/", 3, "no connection"),
        ("nbds://localhost/", 2, "TLS"),
        ("nbd+unix:///?socket=s&tls-verify-peer=1", 2, "tls-verify-peer"),
        ("nbd://[::1/x", 2, "bracket"),
    ] {
        let says = varve_in(here, ["fs", "ls", uri, "/"]).exits_with(code);
        assert!(says.contains(words), "{says}");
        let says = varve_in(here, ["fs", "check", uri]).exits_with(code);
        assert!(says.contains(words), "{says}");
    }
    // What is exported for reading cannot be served for writing.
    let serve = ["serve", "--listen", "unix:v.sock", "--backing", &exported.uri()];
    let says = varve_in(here, serve).exits_with(3);
    assert!(says.contains("the server exports it read-only"), "{says}");
    let undo = ["fs", "rescue", "zero-log", "-y", &exported.uri()];
    let says = varve_in(here, undo).exits_with(2);
    assert!(says.contains("--undo"), "{says}");
}

#[test]
fn a_chain_of_servers_over_tcp_serves_what_the_first_holds() {
    if !tool::have(&["nbdinfo"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    disk::sparse(&dir.path().join("hdd"), 8 << 20);
    let (first, _) = Server::start_tcp(dir.path(), &Stack::backing("hdd"));
    let second = tempfile::tempdir().expect("a temporary folder");
    let chained = Server::start(second.path(), &Stack::backing(first.uri()));
    let mut nbd = chained.connect();
    assert_eq!(nbd.size(), 8 << 20);
    let bytes = disk::noise(1, 100_000);
    let write = Request::Write { at: 12_345, data: &bytes, flags: FUA };
    nbd.ask(write).expect("it stays").expect("written");
    nbd.ask(Request::WriteZeroes { at: 20_000, len: 30_000 }).expect("it stays").expect("zeroed");
    nbd.ask(Request::Trim { at: 1 << 20, len: 1 << 20 }).expect("it stays").expect("trimmed");
    let map = process::run(Command::new("nbdinfo").arg("--map").arg(chained.uri())).ok();
    assert!(map.contains("hole"), "{map}");
    drop(nbd);
    chained.stop();
    first.stop();
    let mut want = bytes;
    want[20_000 - 12_345..50_000 - 12_345].fill(0);
    let file = std::fs::read(dir.path().join("hdd")).expect("the disk");
    assert!(file[12_345..112_345] == want, "what was written is in the file");
}
