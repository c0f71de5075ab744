//! Random operations in a small namespace, where names meet each other often.

use rustix::fs::{FallocateFlags, XattrFlags};
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// splitmix64.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("small")
    }
}

const FOLDERS: [&str; 6] = ["", "d", "e", "d/e", "s", "s/d"];
const NAMES: [&str; 5] = ["a", "b", "c", "e", "a-name-that-is-a-little-longer"];

pub(crate) struct Playground<'a> {
    top: &'a Path,
    pub(crate) dice: Dice,
    told: String,
    done: usize,
}

impl<'a> Playground<'a> {
    pub(crate) fn new(top: &'a Path, dice: Dice) -> Playground<'a> {
        Playground { top, dice, told: String::new(), done: 0 }
    }

    pub(crate) fn done(&self) -> usize {
        self.done
    }

    /// What was done until now, for a failure.
    pub(crate) fn told(&self) -> String {
        self.told.clone()
    }

    fn path(&mut self) -> PathBuf {
        let folder = FOLDERS[self.dice.below(FOLDERS.len())];
        let name = NAMES[self.dice.below(NAMES.len())];
        self.top.join(folder).join(name)
    }

    /// One operation, which may fail, as names are missing or taken. `true` after an fsync.
    pub(crate) fn step(&mut self) -> bool {
        let (one, two) = (self.path(), self.path());
        let n = self.dice.next();
        let at = (n >> 8) % 300_000;
        let len = usize::try_from((n >> 32) % 70_000 + 1).expect("small");
        let kind = self.dice.below(24);
        let (what, done) = match kind {
            0 | 1 => ("creat", File::create(&one).map(drop)),
            2..=4 => ("write", write(&one, at, len, n)),
            5 => ("small write", write(&one, at % 50, len % 500, n)),
            6 => ("truncate", truncate(&one, at)),
            7 => ("truncate to few", truncate(&one, at % 3000)),
            8 | 9 => ("rename to", fs::rename(&one, &two)),
            10 => ("link to", fs::hard_link(&one, &two)),
            11 => ("unlink", fs::remove_file(&one)),
            12 => ("mkdir", fs::create_dir(&one)),
            13 => ("rmdir", fs::remove_dir(&one)),
            14 => ("symlink", std::os::unix::fs::symlink("nowhere", &one)),
            15 => ("setxattr", set_xattr(&one, n)),
            16 => ("removexattr", remove_xattr(&one, n)),
            17 => ("punch", allocate(&one, FallocateFlags::PUNCH_HOLE, at, len)),
            18 => ("reserve behind", allocate(&one, FallocateFlags::empty(), at, len)),
            19 => ("chmod", fs::set_permissions(&one, fs::Permissions::from_mode(0o700))),
            20 => ("exchange with", exchange(&one, &two)),
            21 if n.is_multiple_of(4) => ("commit", sync_all(self.top)),
            21 | 22 => ("fsync", fsync(&one)),
            _ => ("fsync folder", one.parent().map_or(Ok(()), fsync)),
        };
        self.done += usize::from(done.is_ok());
        if done.is_err() {
            return false;
        }
        let short = |path: &Path| path.strip_prefix(self.top).map(Path::to_path_buf);
        let (one, two) = (short(&one).expect("below"), short(&two).expect("below"));
        let _ = writeln!(self.told, "  {what} {} ({}) {at} {len}", one.display(), two.display());
        what.starts_with("fsync")
    }
}

type Done = std::io::Result<()>;

fn write(path: &Path, at: u64, len: usize, seed: u64) -> Done {
    let mut dice = Dice::new(seed);
    // Some of it can be compressed.
    let data: Vec<u8> =
        (0..len).map(|n| if n % 3 == 0 { b'x' } else { dice.next().to_le_bytes()[0] }).collect();
    OpenOptions::new().write(true).open(path)?.write_all_at(&data, at)
}

fn truncate(path: &Path, len: u64) -> Done {
    OpenOptions::new().write(true).open(path)?.set_len(len)
}

fn allocate(path: &Path, how: FallocateFlags, at: u64, len: usize) -> Done {
    let file = OpenOptions::new().write(true).open(path)?;
    let keep =
        if at.is_multiple_of(2) { FallocateFlags::KEEP_SIZE } else { FallocateFlags::empty() };
    let keep = if how.is_empty() { keep } else { FallocateFlags::KEEP_SIZE };
    Ok(rustix::fs::fallocate(&file, how | keep, at, len as u64)?)
}

fn set_xattr(path: &Path, n: u64) -> Done {
    let name = format!("user.{}", n % 4);
    let value = vec![b'v'; usize::try_from(n % 700).expect("small")];
    Ok(rustix::fs::lsetxattr(path, name, &value, XattrFlags::empty())?)
}

fn remove_xattr(path: &Path, n: u64) -> Done {
    Ok(rustix::fs::lremovexattr(path, format!("user.{}", n % 4))?)
}

fn exchange(one: &Path, two: &Path) -> Done {
    let flags = rustix::fs::RenameFlags::EXCHANGE;
    Ok(rustix::fs::renameat_with(rustix::fs::CWD, one, rustix::fs::CWD, two, flags)?)
}

fn fsync(path: &Path) -> Done {
    let kind = fs::symlink_metadata(path)?.file_type();
    if !kind.is_file() && !kind.is_dir() {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    File::open(path)?.sync_all()
}

fn sync_all(top: &Path) -> Done {
    Ok(rustix::fs::syncfs(File::open(top)?)?)
}
