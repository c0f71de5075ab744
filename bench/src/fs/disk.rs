//! The image that is measured on, and ways to mount it.

use super::measure;
use anyhow::{Context, bail};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Files of 4 MiB.
pub(crate) const LARGE: u32 = 64;
pub(crate) const LARGE_BYTES: u64 = 4 << 20;
/// Small files are up to so long; evenly, so half of it on average.
const SMALL_MAX: u64 = 24_000;
/// Small files in a folder.
const PER_FOLDER: u32 = 512;

pub(crate) struct Disk {
    pub(crate) image: PathBuf,
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

/// Numbers that look like chance, and bytes that nothing compresses: xorshift64*.
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Noise {
        Noise(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn bytes(&mut self, len: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < len {
            bytes.extend(self.next().to_le_bytes());
        }
        bytes.truncate(usize::try_from(len).unwrap_or(usize::MAX));
        bytes
    }
}

pub(crate) fn large_name(n: u32) -> String {
    format!("large/{n}")
}

impl Disk {
    /// Makes a btrfs with mkfs.btrfs and fills it through the kernel.
    pub(crate) fn make(image: &Path, mount: &Path, files: u32) -> anyhow::Result<Disk> {
        File::create(image)?.set_len(2 << 30)?;
        run(Command::new("mkfs.btrfs").arg("-q").arg(image))?;
        let mounted = Mounted::by_kernel(image, mount, "loop")?;
        let mut bytes = 0;
        let mut noise = Noise::new(1);
        let mut write = |path: PathBuf, len| -> anyhow::Result<()> {
            bytes += len;
            Ok(File::create(path)?.write_all(&noise.bytes(len))?)
        };
        let mut size = Noise::new(2);
        for n in 0..files {
            let folder = mount.join(format!("folder-{}", n / PER_FOLDER));
            if n % PER_FOLDER == 0 {
                std::fs::create_dir(&folder)?;
            }
            write(folder.join(format!("file-{n}")), size.next() % SMALL_MAX)?;
        }
        std::fs::create_dir(mount.join("large"))?;
        for n in 0..LARGE {
            write(mount.join(large_name(n)), LARGE_BYTES)?;
        }
        mounted.end()?;
        Ok(Disk { image: image.to_owned(), files: u64::from(files + LARGE), bytes })
    }
}

/// Regular files below a folder, and their bytes.
pub(crate) fn count(folder: &Path) -> anyhow::Result<(u64, u64)> {
    let mut sum = (0, 0);
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            match meta.is_dir() {
                true => folders.push(entry.path()),
                false => sum = (sum.0 + 1, sum.1 + meta.len()),
            }
        }
    }
    Ok(sum)
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let shown = format!("{command:?}");
    let out = command.output().with_context(|| format!("cannot start {shown}"))?;
    if !out.status.success() {
        bail!("{shown}: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(())
}

/// A mounted file system; unmounted when dropped.
pub(crate) struct Mounted {
    at: PathBuf,
    server: Option<Child>,
    mounted: bool,
}

impl Mounted {
    pub(crate) fn by_kernel(image: &Path, at: &Path, options: &str) -> anyhow::Result<Mounted> {
        run(Command::new("mount").args(["-t", "btrfs", "-o", options]).arg(image).arg(at))?;
        Ok(Mounted { at: at.to_owned(), server: None, mounted: true })
    }

    /// By a program that stays as long as the mount does.
    pub(crate) fn by(command: &mut Command, at: &Path) -> anyhow::Result<Mounted> {
        let shown = format!("{command:?}");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let child = child.with_context(|| format!("cannot start {shown}"))?;
        let mut mounted = Mounted { at: at.to_owned(), server: Some(child), mounted: true };
        for _ in 0..1000 {
            let table = std::fs::read_to_string("/proc/mounts")?;
            if table.split_whitespace().any(|word| Path::new(word) == at) {
                return Ok(mounted);
            }
            if let Some(status) =
                mounted.server.as_mut().map(Child::try_wait).transpose()?.flatten()
            {
                mounted.mounted = false;
                bail!("{shown} ended with {status}");
            }
            measure::pause(10);
        }
        bail!("{shown} mounted nothing within 10 s")
    }

    /// Of the program behind the mount; the kernel's own memory is not told.
    pub(crate) fn peak_kib(&self) -> Option<u64> {
        measure::peak_kib(self.server.as_ref()?.id())
    }

    pub(crate) fn end(mut self) -> anyhow::Result<()> {
        run(Command::new("umount").arg(&self.at))?;
        self.mounted = false;
        if let Some(server) = &mut self.server {
            server.wait()?;
        }
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.mounted {
            // Best effort, after a failure that is told anyhow.
            let _ = run(Command::new("umount").arg("--lazy").arg(&self.at));
        }
        if let Some(server) = &mut self.server {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}
