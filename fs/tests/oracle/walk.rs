//! A whole tree as one comparable value, seen through the kernel and through the engine.

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use varve_block::dev::Mem;
use varve_block::{BlockDevice, Sectors};
use varve_fs::format::inode::FileType;
use varve_fs::{ErrorKind, Fs, InodeId};

/// Everything a user can see of one inode.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) ino: u64,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) nlink: u64,
    pub(crate) size: u64,
    pub(crate) rdev: (u32, u32),
    /// Modified, changed, accessed.
    pub(crate) times: [(i64, i64); 3],
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// A file's sum, a link's target.
    pub(crate) content: Vec<u8>,
}

pub(crate) type Tree = BTreeMap<Vec<u8>, Seen>;

/// Through the kernel, from a mount point down.
pub(crate) fn by_kernel(top: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut todo = vec![(Vec::new(), top.to_path_buf())];
    while let Some((name, path)) = todo.pop() {
        let meta = path.symlink_metadata().expect("a status");
        if meta.is_dir() {
            for entry in path.read_dir().expect("a directory") {
                let entry = entry.expect("an entry");
                let child = [&name[..], b"/", &entry.file_name().into_vec()].concat();
                todo.push((child, entry.path()));
            }
        }
        let content = if meta.is_file() {
            sum_of(&mut File::open(&path).expect("a file"))
        } else if meta.is_symlink() {
            path.read_link().expect("a link").into_os_string().into_vec()
        } else {
            Vec::new()
        };
        let device = meta.file_type().is_block_device() || meta.file_type().is_char_device();
        let rdev = if device { meta.rdev() } else { 0 };
        let seen = Seen {
            ino: meta.ino(),
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            nlink: meta.nlink(),
            size: meta.size(),
            rdev: (rustix::fs::major(rdev), rustix::fs::minor(rdev)),
            times: [
                (meta.mtime(), meta.mtime_nsec()),
                (meta.ctime(), meta.ctime_nsec()),
                (meta.atime(), meta.atime_nsec()),
            ],
            xattrs: xattrs_of(&path),
            content,
        };
        tree.insert(name, simplify(seen));
    }
    tree
}

fn xattrs_of(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 65536];
    let len = rustix::fs::llistxattr(path, &mut names[..]).expect("names of attributes");
    let names = names[..len].split(|&b| b == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0; 65536];
        let name = std::ffi::OsStr::from_bytes(name);
        let len = rustix::fs::lgetxattr(path, name, &mut value[..]).expect("an attribute");
        value[..len].to_vec()
    };
    names.map(|name| (name.to_vec(), value(name))).collect()
}

fn sum_of(file: &mut File) -> Vec<u8> {
    let mut hash = Sha256::new();
    let mut buf = vec![0; 1 << 20];
    loop {
        let len = file.read(&mut buf).expect("a read");
        if len == 0 {
            return hash.finalize().to_vec();
        }
        hash.update(&buf[..len]);
    }
}

/// The kernel makes up the status of the placeholder that a snapshot shows for a nested subvolume.
fn simplify(seen: Seen) -> Seen {
    if seen.ino == 2 { Seen { ino: 2, ..Seen::default() } } else { seen }
}

/// Through the engine, from `/` down.
pub(crate) async fn by_us<D: BlockDevice>(fs: &Fs<D>) -> Tree {
    let mut tree = Tree::new();
    let mut todo = vec![(Vec::new(), fs.top())];
    while let Some((name, id)) = todo.pop() {
        let inode = fs.inode(id).await.expect("an inode");
        let kind = inode.file_type();
        if kind == FileType::Directory {
            // In small steps, as a caller with little room would.
            let mut after = 0;
            loop {
                let entries = fs.read_dir(id, after, 7).await.expect("a directory");
                let Some(last) = entries.last() else { break };
                after = last.index;
                for entry in entries {
                    let child = [&name[..], b"/", &entry.name].concat();
                    assert_eq!(fs.lookup(&child).await.expect("a path"), entry.id);
                    todo.push((child, entry.id));
                }
            }
        }
        let content = match kind {
            FileType::Regular => sum_by_us(fs, id, inode.size).await,
            FileType::Symlink => fs.read_link(id).await.expect("a link"),
            _ => Vec::new(),
        };
        let time = |t: varve_fs::format::inode::Time| (t.seconds, i64::from(t.nanos));
        let seen = Seen {
            ino: id.ino,
            mode: inode.mode,
            owner: (inode.uid, inode.gid),
            nlink: inode.nlink.into(),
            size: inode.size,
            rdev: inode.device(),
            times: [time(inode.mtime), time(inode.ctime), time(inode.atime)],
            xattrs: fs.xattrs(id).await.expect("attributes").into_iter().collect(),
            content,
        };
        tree.insert(name, simplify(seen));
    }
    tree
}

/// In pieces of an odd size, so that windows, extents and sectors are cut everywhere.
async fn sum_by_us<D: BlockDevice>(fs: &Fs<D>, id: InodeId, size: u64) -> Vec<u8> {
    let mut hash = Sha256::new();
    let mut at = 0;
    let piece = if size > 3 << 20 { 1_234_567 } else { 77_777 };
    while at < size {
        let bytes = fs.read(id, at, piece).await.unwrap_or_else(|e| panic!("{id} at {at}: {e}"));
        assert!(!bytes.is_empty(), "a file ends where its size says");
        hash.update(&bytes);
        at += bytes.len() as u64;
    }
    let behind = fs.read(id, size, 10).await.expect("reading behind the end is no error");
    assert!(behind.is_empty());
    hash.finalize().to_vec()
}

/// Compares name by name, so that a failure says which.
#[track_caller]
pub(crate) fn assert_same(theirs: &Tree, ours: &Tree) {
    for (name, seen) in theirs {
        let shown = name.escape_ascii();
        let Some(mine) = ours.get(name) else { panic!("{shown}: only the kernel sees it") };
        assert_eq!(seen, mine, "{shown}: the kernel left, we right");
    }
    assert_eq!(theirs.len(), ours.len(), "we see names that the kernel does not");
}

/// An image in memory, without its holes.
pub(crate) fn load(path: &Path) -> Mem {
    let mut file = File::open(path).expect("an image");
    let len = file.metadata().expect("its size").len();
    let mem = Mem::new(Sectors(len >> 9));
    let mut buf = vec![0; 1 << 20];
    let mut at = 0;
    while at < len {
        // Sparse images are mostly holes.
        let data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at));
        let Ok(start) = data else { break };
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(start)).expect("a seek");
        at = start;
        let got = file.read(&mut buf).expect("a read");
        if got == 0 {
            break;
        }
        mem.poke(at, &buf[..got]);
        at += got as u64;
    }
    mem
}

/// The kind of a failure, for tests of damage.
pub(crate) fn kind<T>(result: Result<T, varve_fs::Error>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind)
}
