//! A LUKS1 volume that Linux 6.12 wrote through dm-crypt, and what that kernel says it holds.
//!
//! The image is not part of the repository: it is looked for in `$VARVE_SHARED/golden`, or in
//! `../shared/golden` beside the project. Its cache was clean when the power went, so the encrypted
//! volume lies on the backing device behind the 16 sectors of the cache's superblock.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use varve_block::dev::{Mem, Window};
use varve_block::{BlockDevice, BufPool, Extent, Sector, Sectors, Sim};
use varve_crypt::{Crypt, CryptOptions, Key, UnlockOptions, VolumeHandle, unlock};

const SUPERBLOCK: Sectors = Sectors(16);

/// The image as a device; runs of zeroes stay holes.
fn load(path: &Path) -> Mem {
    let mut file = std::fs::File::open(path).expect("hdd.img");
    let len = file.seek(SeekFrom::End(0)).expect("its length");
    file.rewind().expect("its start");
    let disk = Mem::new(Sectors::exact(len).expect("whole sectors"));
    let mut piece = vec![0; 1 << 20];
    for at in (0..len).step_by(piece.len()) {
        let n = piece.len().min(usize::try_from(len - at).expect("below a piece"));
        file.read_exact(&mut piece[..n]).expect("its bytes");
        if piece[..n].iter().any(|&b| b != 0) {
            disk.poke(at, &piece[..n]);
        }
    }
    disk
}

#[test]
fn a_volume_that_the_kernel_wrote_reads_as_the_kernel_says() {
    let shared = std::env::var_os("VARVE_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"),
        std::path::PathBuf::from,
    );
    let archive = shared.join("golden/clean-luks1.tar.zst");
    if !archive.exists() {
        println!("skipped: no golden disk at {}", archive.display());
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mut tar = Command::new("tar");
    tar.arg("--zstd").arg("-xf").arg(&archive).arg("-C").arg(folder.path());
    if !tar.status().is_ok_and(|s| s.success()) {
        println!("skipped: tar and zstd cannot unpack {}", archive.display());
        return;
    }
    let expect = std::fs::read_to_string(folder.path().join("expect.txt")).expect("expect.txt");
    let plain = expect
        .lines()
        .find_map(|l| l.strip_prefix("plain "))
        .and_then(|l| l.split_whitespace().next())
        .expect("the kernel's sum of the decrypted device")
        .to_owned();
    let secret = std::fs::read(folder.path().join("key")).expect("key");
    let disk = load(&folder.path().join("hdd.img"));

    let sum = Sim::new(1).run(|rt| async move {
        let len = disk.geometry().len - SUPERBLOCK;
        let payload = Extent::new(Sector(0) + SUPERBLOCK, len);
        let payload = Window::new(disk, payload).expect("a window");
        let secret = Arc::new(Key::copy_from(&secret));
        let volume = unlock(&rt, &payload, &UnlockOptions::default(), &secret).await;
        let handle = VolumeHandle::new(volume.expect("the key opens it"));
        let pool = BufPool::new(8 << 20);
        let options = CryptOptions::default();
        let crypt = Crypt::new(&rt, payload, handle, pool.clone(), &options).expect("it fits");
        let all = Extent::new(Sector(0), crypt.geometry().len);
        let mut sum = Sha256::new();
        for piece in all.pieces(Sectors(2048)) {
            let buf = pool.take(piece.len).await;
            sum.update(&crypt.read(piece.start, buf).await.expect("readable")[..]);
        }
        sum.finalize().iter().map(|b| format!("{b:02x}")).collect::<String>()
    });
    assert_eq!(sum, plain);
}
