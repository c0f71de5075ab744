//! Images of btrfs-progs' tests: those of the shared corpora, and the small ones of every clone.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use varve_tests::{process, repository, tool};

/// A folder of images.
pub(crate) struct Corpus {
    root: PathBuf,
    /// What its names begin with in the table.
    title: &'static str,
}

/// How a metadata dump begins.
const DUMP: [u8; 8] = 0xBD5C_25E2_7295_668B_u64.to_le_bytes();

impl Corpus {
    /// The big ones, or the printed reason why there are none.
    pub(crate) fn shared() -> Option<Corpus> {
        let Some(shared) = std::env::var_os("VARVE_SHARED") else {
            tool::skip("VARVE_SHARED does not say where corpora/ is");
            return None;
        };
        let root = Path::new(&shared).join("corpora/btrfs");
        if !root.is_dir() {
            tool::skip(&format!("no {}", root.display()));
            return None;
        }
        Some(Corpus { root, title: "" })
    }

    pub(crate) fn small() -> Option<Corpus> {
        let root = repository().join("tests/images/070-btrfs-progs-dumps");
        Some(Corpus { root, title: "070/" })
    }

    pub(crate) fn title(&self, name: &str) -> String {
        format!("{}{name}", self.title)
    }

    /// Paths below the folder, sorted. Send streams and texts are no images.
    pub(crate) fn names(&self) -> Vec<String> {
        let find =
            "find . -type f | sed 's,^./,,' | grep -E '[.](img|raw)([.]xz)?$|[.]tar[.]xz$' | sort";
        let found = process::run(Command::new("bash").current_dir(&self.root).args(["-c", find]));
        found.ok().lines().map(str::to_owned).collect()
    }

    /// The image as a device would hold it: unpacked into `dir`, metadata dumps restored.
    pub(crate) fn plain_image(&self, name: &str, dir: &Path) -> PathBuf {
        let packed = self.root.join(name);
        let plain = match name.rsplit_once('.') {
            Some((_, "xz")) => {
                let unpack = if name.ends_with(".tar.xz") { "tar -xJOf" } else { "xz -dc" };
                let plain = dir.join("image");
                let line = format!("{unpack} \"$0\" | cp --sparse=always /dev/stdin \"$1\"");
                let mut shell = Command::new("bash");
                process::run(shell.args(["-c", &line]).arg(&packed).arg(&plain)).ok();
                plain
            }
            _ => packed,
        };
        let dump = name.contains(".img") && begins_with(&plain, &DUMP);
        if !dump {
            return plain;
        }
        let restored = dir.join("restored");
        process::run(Command::new("btrfs-image").arg("-r").arg(&plain).arg(&restored)).ok();
        self.done_with(&plain);
        restored
    }

    /// Takes away what was unpacked.
    pub(crate) fn done_with(&self, image: &Path) {
        if !image.starts_with(&self.root) {
            std::fs::remove_file(image).expect("it is ours");
        }
    }
}

fn begins_with(file: &Path, magic: &[u8]) -> bool {
    let mut head = vec![0; magic.len()];
    let read = File::open(file).and_then(|mut file| file.read_exact(&mut head));
    read.is_ok() && head == magic
}
