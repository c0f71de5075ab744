//! Images: sparse files, sums, and pairs that a kernel wrote, with what that kernel said they hold.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::nbd::Nbd;
use crate::{process, repository, tool};

const CHUNK: usize = 1 << 20;

/// Makes a sparse file of `len` bytes.
#[track_caller]
pub fn sparse(path: &Path, len: u64) {
    File::create(path).and_then(|file| file.set_len(len)).expect("a sparse file");
}

/// Overwrites bytes of an image in place.
#[track_caller]
pub fn damage(path: &Path, at: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(path).expect("an image to damage");
    file.write_all_at(bytes, at).expect("damaging an image");
}

/// Deterministic bytes that no other (`seed`, `len`) shares and nothing compresses: xorshift64*.
#[must_use]
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend(state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// The sha256 of everything a reader gives, in hexadecimal.
///
/// # Errors
/// The reader's.
pub fn sum(mut from: impl Read) -> io::Result<String> {
    let mut sha = Sha256::new();
    let mut buf = vec![0; CHUNK];
    loop {
        match from.read(&mut buf)? {
            0 => return Ok(hex(&sha.finalize())),
            n => sha.update(&buf[..n]),
        }
    }
}

#[track_caller]
#[must_use]
pub fn sum_file(path: &Path) -> String {
    File::open(path).and_then(sum).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The sha256 of a whole export, read through our own client.
#[track_caller]
#[must_use]
pub fn sum_export(nbd: &mut Nbd) -> String {
    sum_export_to(nbd, nbd.size())
}

/// The same of its first `end` bytes.
#[track_caller]
#[must_use]
pub fn sum_export_to(nbd: &mut Nbd, end: u64) -> String {
    let mut sha = Sha256::new();
    let mut at = 0;
    while at < end {
        let len = u32::try_from((end - at).min(CHUNK as u64)).expect("at most a chunk");
        let data = nbd.read(at, len).expect("the server stays").unwrap_or_else(|errno| {
            panic!("reading {len} bytes at {at}: {errno:?}");
        });
        sha.update(&data);
        at += u64::from(len);
    }
    hex(&sha.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The sums of all regular files below `dir`, by path relative to it (`./a/b`, as `find` says it).
#[track_caller]
#[must_use]
pub fn sum_tree(dir: &Path) -> BTreeMap<String, String> {
    let mut sums = BTreeMap::new();
    let mut folders = vec![(dir.to_path_buf(), String::from("."))];
    while let Some((folder, name)) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a readable folder") {
            let entry = entry.expect("a folder's entry");
            let name = format!("{name}/{}", entry.file_name().to_string_lossy());
            let kind = entry.file_type().expect("an entry's type");
            if kind.is_dir() {
                folders.push((entry.path(), name));
            } else if kind.is_file() {
                sums.insert(name, sum_file(&entry.path()));
            }
        }
    }
    sums
}

/// What the kernel said a pair holds: the file `expect.txt`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Expect {
    /// The backing device's state: `clean` or `dirty`.
    pub state: String,
    /// The sum of `/dev/bcache0`.
    pub device: String,
    /// The sum of the decrypted device; absent where there is no encryption.
    pub plain: Option<String>,
    /// The sums of all regular files, by path (`./a/b`).
    pub files: BTreeMap<String, String>,
}

impl Expect {
    /// # Panics
    /// When the file is not what `tests/vm/guest/read-pair.sh` writes.
    #[track_caller]
    #[must_use]
    pub fn parse(text: &str) -> Expect {
        assert!(text.ends_with("rc=0\n"), "the kernel's run ended early:\n{text}");
        let mut lines = text.lines();
        let state = lines.next().expect("a state").to_owned();
        let mut expect =
            Expect { state, device: String::new(), plain: None, files: BTreeMap::new() };
        for line in lines.filter(|line| *line != "rc=0") {
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                ["device", sum, "-"] => sum.clone_into(&mut expect.device),
                ["plain", sum, "-"] => expect.plain = Some(sum.to_owned()),
                _ => {
                    let (sum, name) = line.split_once("  ").expect("a sum and a name");
                    expect.files.insert(name.to_owned(), sum.to_owned());
                }
            }
        }
        assert_eq!(expect.device.len(), 64, "no sum of the device in:\n{text}");
        expect
    }
}

/// A pair that a kernel wrote, unpacked into a folder of its own.
#[derive(Debug)]
pub struct Pair {
    pub name: String,
    pub expect: Expect,
    dir: TempDir,
}

impl Pair {
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    #[must_use]
    pub fn hdd(&self) -> PathBuf {
        self.dir().join("hdd.img")
    }

    #[must_use]
    pub fn ssd(&self) -> PathBuf {
        self.dir().join("ssd.img")
    }

    /// The sums of both images: a reader must not have moved a byte.
    #[must_use]
    pub fn sums(&self) -> [String; 2] {
        [sum_file(&self.hdd()), sum_file(&self.ssd())]
    }

    /// A pair made by a guest: the folder holds `hdd.img`, `ssd.img` and `key`.
    #[must_use]
    pub fn made(name: &str, expect: Expect, dir: TempDir) -> Pair {
        Pair { name: name.to_owned(), expect, dir }
    }
}

/// Every pair that a kernel wrote and that lies ready: those of the repository, and those in the folder
/// beside it (`../shared/golden`, or where `VARVE_SHARED` points), if there is one.
///
/// # Panics
/// When one of them cannot be unpacked.
#[track_caller]
#[must_use]
pub fn pairs() -> Vec<Pair> {
    let mut pairs: Vec<Pair> = images("hdd.img.zst").iter().map(|dir| unpack_ours(dir)).collect();
    let shared = match std::env::var_os("VARVE_SHARED") {
        Some(path) => PathBuf::from(path),
        None => repository().join("../shared"),
    };
    let golden = shared.join("golden");
    let mut archives: Vec<PathBuf> = std::fs::read_dir(&golden)
        .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
        .unwrap_or_default();
    archives.retain(|path| path.to_string_lossy().ends_with(".tar.zst"));
    archives.sort();
    if archives.is_empty() {
        tool::skip(&format!(
            "no golden pairs in {} (the repository's own are used)",
            golden.display()
        ));
    } else if tool::have(&["tar", "zstd"]) {
        pairs.extend(archives.iter().map(|archive| unpack_golden(archive)));
    }
    pairs
}

/// The folders of `tests/images` that hold a file of this name, in order.
#[must_use]
pub fn images(file: &str) -> Vec<PathBuf> {
    let root = repository().join("tests/images");
    let mut dirs: Vec<PathBuf> = std::fs::read_dir(root)
        .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
        .unwrap_or_default();
    dirs.retain(|dir| dir.join(file).is_file());
    dirs.sort();
    dirs
}

fn unpack_ours(from: &Path) -> Pair {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for image in ["hdd.img", "ssd.img"] {
        let packed = from.join(format!("{image}.zst"));
        unpack_sparse(&packed, &dir.path().join(image))
            .unwrap_or_else(|error| panic!("{}: {error}", packed.display()));
    }
    let expect = from.join("expect.txt");
    if from.join("key").exists() {
        std::fs::copy(from.join("key"), dir.path().join("key")).expect("the pair's key");
    }
    pair_in(from, &expect, dir)
}

fn unpack_golden(archive: &Path) -> Pair {
    let dir = tempfile::tempdir().expect("a temporary folder");
    process::run(
        Command::new("tar").args(["--zstd", "-xSf"]).arg(archive).arg("-C").arg(dir.path()),
    )
    .ok();
    let expect = dir.path().join("expect.txt");
    pair_in(archive, &expect, dir)
}

fn pair_in(from: &Path, expect: &Path, dir: TempDir) -> Pair {
    let text = std::fs::read_to_string(expect)
        .unwrap_or_else(|error| panic!("{}: {error}", expect.display()));
    let name = from.file_name().expect("a pair has a name").to_string_lossy().into_owned();
    Pair { name, expect: Expect::parse(&text), dir }
}

/// Unpacks a zstd file, leaving holes where there is nothing but zeroes.
///
/// # Errors
/// When the archive is damaged or the disk is full.
pub fn unpack_sparse(from: &Path, to: &Path) -> io::Result<()> {
    let mut from = zstd::stream::read::Decoder::new(BufReader::new(File::open(from)?))?;
    let mut to = File::create(to)?;
    let mut buf = vec![0; 64 << 10];
    let mut len = 0;
    loop {
        let n = from.read(&mut buf)?;
        if n == 0 {
            return to.set_len(len);
        }
        if buf[..n].iter().all(|&byte| byte == 0) {
            to.seek(SeekFrom::Current(i64::try_from(n).expect("a buffer's length")))?;
        } else {
            to.write_all(&buf[..n])?;
        }
        len += n as u64;
    }
}
