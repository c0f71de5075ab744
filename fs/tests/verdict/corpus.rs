//! Images as they lie in the corpora: packed or not, raw or metadata dumps, of one device or several.

use crate::table::Line;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;
use varve_block::dev::Mem;
use varve_block::{Dyn, Sectors, Sim};
use varve_fs::check::{CheckOptions, Severity, check};
use varve_fs::{DumpDevice, is_dump};

pub(crate) struct Corpus {
    root: PathBuf,
    work: TempDir,
}

/// An image's bytes, in memory.
pub(crate) struct Image {
    name: String,
    devices: Vec<Mem>,
}

impl Corpus {
    /// The corpora, or the printed reason why there are none.
    pub(crate) fn find(test: &str) -> Option<Corpus> {
        let Some(shared) = std::env::var_os("VARVE_SHARED") else {
            println!("{test}: skipped, VARVE_SHARED does not say where corpora/ is");
            return None;
        };
        let root = Path::new(&shared).join("corpora/btrfs");
        if !root.is_dir() {
            println!("{test}: skipped, no {}", root.display());
            return None;
        }
        if Command::new("xz").arg("--version").output().is_err() {
            println!("{test}: skipped, no xz");
            return None;
        }
        Some(Corpus { root, work: TempDir::new().expect("a temporary folder") })
    }

    /// Paths below the corpus, sorted. Send streams and texts are no images.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        let mut folders = vec![self.root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let name = path.strip_prefix(&self.root).expect("below").to_string_lossy();
                let image = [".img", ".raw", ".img.xz", ".raw.xz", ".tar.xz"];
                if image.iter().any(|end| name.ends_with(end)) {
                    names.push(name.into_owned());
                }
            }
        }
        names.sort();
        names
    }

    /// The devices of one file system.
    pub(crate) fn open_all(&self, names: &[String]) -> Image {
        let devices = names.iter().map(|name| {
            let file = self.unpack(name);
            let mem = load(&file);
            self.done_with(&file);
            mem
        });
        Image { name: names.join("+"), devices: devices.collect() }
    }

    fn done_with(&self, file: &Path) {
        if file.starts_with(self.work.path()) {
            std::fs::remove_file(file).expect("it is ours");
        }
    }

    /// The exit code of `btrfs check`, metadata dumps being restored before.
    pub(crate) fn by_tool(&self, name: &str) -> Option<u8> {
        let file = self.unpack(name);
        let restored = self.work.path().join("restored");
        let is_dump = name.contains(".img") && std::fs::read(&file).is_ok_and(|b| is_magic(&b));
        let image = if is_dump { &restored } else { &file };
        if is_dump {
            let done = Command::new("btrfs-image").arg("-r").arg(&file).arg(&restored).output();
            assert!(done.is_ok_and(|out| out.status.success()), "{name} cannot be restored");
        }
        let out = Command::new("btrfs").arg("check").arg(image).output().ok()?;
        self.done_with(&file);
        if is_dump {
            self.done_with(&restored);
        }
        u8::try_from(out.status.code()?).ok()
    }

    /// The plain image: the corpus's own, or a sparse copy.
    pub(crate) fn unpack(&self, name: &str) -> PathBuf {
        let packed = self.root.join(name);
        if !name.ends_with(".xz") {
            return packed;
        }
        let plain = self.work.path().join("image");
        let script = match name.ends_with(".tar.xz") {
            true => "tar -xJOf \"$0\" | cp --sparse=always /dev/stdin \"$1\"",
            false => "xz -dc \"$0\" | cp --sparse=always /dev/stdin \"$1\"",
        };
        let done = Command::new("bash").args(["-c", script]).arg(&packed).arg(&plain).status();
        assert!(done.is_ok_and(|status| status.success()), "{name} cannot be unpacked");
        plain
    }
}

/// A file in memory, without its holes.
fn load(path: &Path) -> Mem {
    let file = File::open(path).expect("an image");
    let len = file.metadata().expect("its length").len();
    let mem = Mem::new(Sectors(len.div_ceil(512)));
    let mut at = 0;
    let mut buf = vec![0; 1 << 20];
    while let Ok(from) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
        let end = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(from)).unwrap_or(len);
        at = from;
        while at < end {
            let want = buf.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            let got = file.read_at(&mut buf[..want], at).expect("a read");
            mem.poke(at, &buf[..got]);
            at += got as u64;
        }
    }
    mem
}

impl Image {
    pub(crate) fn load(path: &Path) -> Image {
        Image { name: path.display().to_string(), devices: vec![load(path)] }
    }

    /// What the checker says of it, as a line of the table.
    pub(crate) fn check(self) -> Line {
        let Image { name, devices } = self;
        Sim::new(5).run(|_| async move {
            let mut opened = Vec::new();
            for device in devices {
                match is_dump(&device).await {
                    Ok(true) => match DumpDevice::open(device).await {
                        Ok(dump) => opened.push(Dyn::new(dump)),
                        Err(error) => return refused(name, &error.to_string()),
                    },
                    _ => opened.push(Dyn::new(device)),
                }
            }
            let checked = match check(opened, &CheckOptions::default()).await {
                Ok(checked) => checked,
                Err(error) => return refused(name, &varve_block::chain(&error)),
            };
            let errors = checked.findings.iter().filter(|f| f.severity == Severity::Error);
            let codes = errors.map(|f| f.code.text().to_owned()).collect();
            let exit = u8::from(!checked.is_clean());
            Line { name, exit, codes, tool: None, why: String::new() }
        })
    }
}

fn refused(name: String, why: &str) -> Line {
    let why = why.to_owned();
    Line { name, exit: 3, codes: [].into(), tool: None, why }
}

/// How a metadata dump begins.
fn is_magic(bytes: &[u8]) -> bool {
    bytes.starts_with(&0xBD5C_25E2_7295_668B_u64.to_le_bytes())
}
