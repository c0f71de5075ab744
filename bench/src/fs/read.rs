//! Reading the files, through a mount and through the library alone.

use super::disk::{Disk, LARGE, LARGE_BYTES, Noise, large_name};
use anyhow::{Context, bail};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use varve_block::dev::{FileDevice, FileOptions};
use varve_block::rt::{self, Config};
use varve_fs::format::inode::FileType;
use varve_fs::{Fs, OpenOptions};

const MIB: usize = 1 << 20;
const PAGE: usize = 4096;
/// Reads at random.
const READS: u64 = 20_000;

/// All files of a mounted tree, in the order in which folders tell them. Bytes.
pub(crate) fn all(mount: &Path, disk: &Disk) -> anyhow::Result<u64> {
    let mut bytes = 0;
    let mut buf = vec![0; MIB];
    let mut folders = vec![mount.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => folders.push(entry.path()),
                false => bytes += whole(&entry.path(), &mut buf)?,
            }
        }
    }
    if bytes != disk.bytes {
        bail!("{bytes} bytes of {}", disk.bytes);
    }
    Ok(bytes)
}

fn whole(path: &Path, buf: &mut [u8]) -> anyhow::Result<u64> {
    let file = File::open(path)?;
    let mut at = 0;
    loop {
        match file.read_at(buf, at)? {
            0 => return Ok(at),
            n => at += n as u64,
        }
    }
}

/// The large files, one after the other.
pub(crate) fn large(mount: &Path, _: &Disk) -> anyhow::Result<u64> {
    let mut buf = vec![0; MIB];
    (0..LARGE).map(|n| whole(&mount.join(large_name(n)), &mut buf)).sum()
}

/// A file and a place in it, again and again: the same ones for everybody.
fn places() -> impl Iterator<Item = (u32, u64)> {
    let mut noise = Noise::new(3);
    (0..READS).map(move |_| {
        let n = u32::try_from(noise.next() >> 32).unwrap_or(0) % LARGE;
        let page = noise.next() % (LARGE_BYTES / PAGE as u64);
        (n, page * PAGE as u64)
    })
}

/// Pages of the large files at random.
pub(crate) fn random(mount: &Path, _: &Disk) -> anyhow::Result<u64> {
    let files: Result<Vec<_>, _> =
        (0..LARGE).map(|n| File::open(mount.join(large_name(n)))).collect();
    let files = files?;
    let mut buf = [0; PAGE];
    for (n, at) in places() {
        files[n as usize].read_exact_at(&mut buf, at)?;
    }
    Ok(READS * PAGE as u64)
}

/// The same without a mount: the file system opened here, on one lane.
pub(crate) fn by_library(what: &str, image: &Path, files: u64) -> anyhow::Result<()> {
    let (what, image) = (what.to_owned(), image.to_owned());
    rt::run(Config::default(), move |rt| async move {
        let options = FileOptions { read_only: true, ..FileOptions::default() };
        let device = FileDevice::open(&rt, &image, options).await?;
        let fs = Fs::open(device, OpenOptions::default()).await?;
        match what.as_str() {
            "all" => {
                let seen = every_file(&fs).await?;
                if seen != files {
                    bail!("{seen} files of {files}");
                }
            }
            "large" => {
                for n in 0..LARGE {
                    read_whole(&fs, fs.lookup(large_name(n)).await?).await?;
                }
            }
            "random" => {
                let mut ids = Vec::new();
                for n in 0..LARGE {
                    ids.push(fs.lookup(large_name(n)).await?);
                }
                let mut buf = [0; PAGE];
                for (n, at) in places() {
                    let got = fs.read_into(ids[n as usize], at, &mut buf).await?;
                    if got != PAGE {
                        bail!("{got} bytes at {at}");
                    }
                }
            }
            other => bail!("{other}: all, large or random"),
        }
        Ok(())
    })
    .context("no lane")?
}

async fn every_file(fs: &Fs<FileDevice>) -> anyhow::Result<u64> {
    let mut seen = 0;
    let mut folders = vec![fs.top()];
    while let Some(folder) = folders.pop() {
        let mut after = 0;
        loop {
            let entries = fs.read_dir(folder, after, 512).await?;
            let Some(last) = entries.last() else { break };
            after = last.index;
            for entry in entries {
                match entry.kind {
                    FileType::Directory => folders.push(entry.id),
                    FileType::Regular => {
                        read_whole(fs, entry.id).await?;
                        seen += 1;
                    }
                    _ => {}
                }
            }
        }
    }
    Ok(seen)
}

async fn read_whole(fs: &Fs<FileDevice>, id: varve_fs::InodeId) -> anyhow::Result<()> {
    let size = fs.inode(id).await?.size;
    let mut at = 0;
    while at < size {
        let bytes = fs.read(id, at, MIB).await?;
        if bytes.is_empty() {
            bail!("{id} ends at {at} of {size}");
        }
        at += bytes.len() as u64;
    }
    Ok(())
}
