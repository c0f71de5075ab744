//! The image in memory, and a walk over all of it that survives damage.

use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::OnceLock;
use varve_block::dev::Mem;
use varve_block::{BlockDevice, Rt, Sectors, Sim};
use varve_fs::format::inode::FileType;
use varve_fs::{Fs, InodeId, OpenOptions};

/// Regular files by path: sha256 in hexadecimal.
pub(crate) type Tree = BTreeMap<Vec<u8>, String>;

const PACKED: &[u8] =
    include_bytes!("../../../tests/images/010-kernel-btrfs-one-of-everything/image.zst");
const SIZE: u64 = 112 << 20;

const CHUNK: usize = 65536;

/// The parts of the image that are not zero, unpacked once for all tests.
fn parts() -> &'static [(u64, Vec<u8>)] {
    static PARTS: OnceLock<Vec<(u64, Vec<u8>)>> = OnceLock::new();
    PARTS.get_or_init(|| {
        let mut plain = zstd::stream::read::Decoder::new(PACKED).expect("a zstd stream");
        let mut buf = vec![0; CHUNK];
        let mut parts = Vec::new();
        for at in (0..SIZE).step_by(CHUNK) {
            std::io::Read::read_exact(&mut plain, &mut buf).expect("a whole image");
            if buf.iter().any(|byte| *byte != 0) {
                parts.push((at, buf.clone()));
            }
        }
        parts
    })
}

/// A fresh copy of the image, without its holes.
pub(crate) fn golden() -> Mem {
    let mem = Mem::new(Sectors(SIZE >> 9));
    for (at, bytes) in parts() {
        mem.poke(*at, bytes);
    }
    mem
}

pub(crate) fn in_sim<F: Future<Output = ()> + 'static>(body: impl FnOnce(Rt) -> F) {
    Sim::new(7).run(body);
}

pub(crate) async fn open<D: BlockDevice>(device: D) -> Fs<D> {
    Fs::open(device, OpenOptions::default()).await.expect("it opens")
}

/// What a walk came home with.
#[derive(Default, Debug)]
pub(crate) struct Found {
    pub(crate) sums: Tree,
    pub(crate) failed: usize,
    /// Reads that were answered without a copy, with the same bytes.
    pub(crate) lent: usize,
}

/// Reads everything that can be reached, counting what cannot be read. Damaged directories may lead
/// in circles or claim files of any size, so both are bounded.
pub(crate) async fn walk<D: BlockDevice>(fs: &Fs<D>) -> Found {
    let mut found = Found::default();
    let mut seen = BTreeSet::new();
    let mut todo = vec![(Vec::new(), fs.top())];
    while let Some((path, id)) = todo.pop() {
        match visit(fs, &path, id, &mut found).await {
            Ok(children) if seen.len() < 2000 => {
                let depth = path.iter().filter(|byte| **byte == b'/').count();
                let mut fresh =
                    |child: &(Vec<u8>, InodeId)| depth < 20 && seen.insert(child.clone());
                todo.extend(children.into_iter().filter(&mut fresh));
            }
            Ok(_) => (),
            Err(_) => found.failed += 1,
        }
    }
    found
}

/// How many reads of all or a page of `bytes` can be had without a copy; what is lent must be the same.
async fn lent<D: BlockDevice>(fs: &Fs<D>, id: InodeId, at: u64, bytes: &[u8]) -> usize {
    let mut lent = 0;
    for (offset, len) in [(at, bytes.len()), (at.next_multiple_of(4096), 4096)] {
        let skip = usize::try_from(offset - at).expect("a page");
        let Some(wanted) = bytes.get(skip..) else { continue };
        // A tree that cannot be read may have been in the cache before.
        if let Ok(Some(view)) = fs.read_lent(id, offset, len.min(wanted.len())).await {
            assert!(view[..] == wanted[..view.len()] && !view.is_empty(), "{id} at {offset}");
            lent += 1;
        }
    }
    lent
}

async fn visit<D: BlockDevice>(
    fs: &Fs<D>,
    path: &[u8],
    id: InodeId,
    found: &mut Found,
) -> varve_fs::Result<Vec<(Vec<u8>, InodeId)>> {
    let inode = fs.inode(id).await?;
    fs.xattrs(id).await?;
    match inode.file_type() {
        FileType::Directory => {
            let entries = fs.read_dir(id, 0, 1000).await?;
            let child = |name: &[u8]| [path, b"/", name].concat();
            Ok(entries.iter().map(|entry| (child(&entry.name), entry.id)).collect())
        }
        FileType::Regular => {
            let mut hash = Sha256::new();
            let mut at = 0;
            while at < inode.size.min(8 << 20) {
                let bytes = fs.read(id, at, 300_000).await?;
                hash.update(&bytes);
                found.lent += lent(fs, id, at, &bytes).await;
                at += bytes.len().max(1) as u64;
            }
            let hex = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            found.sums.insert(path.to_vec(), hex);
            Ok(Vec::new())
        }
        FileType::Symlink => fs.read_link(id).await.map(|_| Vec::new()),
        _ => Ok(Vec::new()),
    }
}

/// Compares file by file, so that a failure says which.
#[track_caller]
pub(crate) fn assert_same(found: &Tree, expected: &Tree) {
    for (path, sum) in expected {
        assert_eq!(found.get(path), Some(sum), "{}", path.escape_ascii());
    }
    assert_eq!(found.len(), expected.len(), "files that should not be there");
}
