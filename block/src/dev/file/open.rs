//! Opening: who else uses it, how long it is, and what its direct I/O asks of us.

use super::super::sys;
use super::{Bounds, FileOptions};
use crate::error::{DevId, Error, ErrorKind, Op, Result, Source};
use crate::rt::Rt;
use crate::units::{Extent, SECTOR_SIZE};
use rustix::fs::{
    AtFlags, FileType, FlockOperation, Mode, OFlags, StatxFlags, fcntl_getfl, fcntl_setfl, flock,
    ioctl_blksszget, open, statx,
};
use rustix::io::Errno;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

/// Between two tries to get a file that somebody else holds.
const RETRY: Duration = Duration::from_millis(50);
/// `statfs` type of tmpfs, from `linux/magic.h`.
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// What we expect of direct I/O on a file system that does not tell.
const UNKNOWN_ALIGN: usize = 4096;

/// What was opened.
pub(super) struct Opened {
    pub(super) fd: OwnedFd,
    pub(super) bounds: Bounds,
    /// In bytes.
    pub(super) len: u64,
    pub(super) host: HostDevice,
}

/// The device node, or the device that holds the file system of the file.
pub(super) struct HostDevice {
    major: u32,
    minor: u32,
}

/// How an attempt failed: somebody holds it now, or for good.
enum Failed {
    Held(&'static str),
    Refused(ErrorKind, Source),
}

impl From<Errno> for Failed {
    fn from(errno: Errno) -> Failed {
        Failed::from(io::Error::from(errno))
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Failed {
        let error = Error::host(Op::Open, Extent::default(), &DevId::new(""), error);
        Failed::Refused(error.kind, error.source.expect("made from a source"))
    }
}

/// Opens and locks `path`, waiting for `options.lock_wait` for whoever holds it.
pub(super) async fn open_locked(
    rt: &Rt,
    path: &Path,
    dev: &DevId,
    options: &FileOptions,
) -> Result<Opened> {
    let deadline = rt.now() + options.lock_wait;
    let error = |kind, source| Error::new(kind, Op::Open, Extent::default(), dev).with(source);
    let mut waited = false;
    loop {
        let by = match attempt(path, dev, options) {
            Ok(opened) => return Ok(opened),
            Err(Failed::Refused(kind, source)) => {
                return Err(Error { source: Some(source), ..error(kind, "") });
            }
            Err(Failed::Held(by)) => by,
        };
        if rt.now() >= deadline {
            return Err(error(ErrorKind::Busy, by));
        }
        if !std::mem::replace(&mut waited, true) {
            tracing::info!(%dev, by, "waiting for the device");
        }
        rt.sleep(RETRY).await;
    }
}

fn attempt(path: &Path, dev: &DevId, options: &FileOptions) -> Result<Opened, Failed> {
    let kind = FileType::from_raw_mode(rustix::fs::stat(path)?.st_mode);
    let is_device = match kind {
        FileType::RegularFile => false,
        FileType::BlockDevice => true,
        _ => {
            let what = "neither a regular file nor a block device";
            return Err(Failed::Refused(ErrorKind::Unsupported, what.into()));
        }
    };
    let fd = if is_device { open_device(path, options)? } else { open_file(path, options)? };
    let lock = match options.read_only {
        true => FlockOperation::NonBlockingLockShared,
        false => FlockOperation::NonBlockingLockExclusive,
    };
    match flock(&fd, lock) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Err(Failed::Held("another process holds its lock")),
        Err(e) => return Err(e.into()),
    }
    let mask = StatxFlags::BASIC_STATS | StatxFlags::DIOALIGN;
    let stat = statx(&fd, "", AtFlags::EMPTY_PATH, mask)?;
    if FileType::from_raw_mode(stat.stx_mode.into()) != kind {
        return Err(Failed::Held("it was replaced while it was opened"));
    }
    let host = match is_device {
        true => HostDevice { major: stat.stx_rdev_major, minor: stat.stx_rdev_minor },
        false => HostDevice { major: stat.stx_dev_major, minor: stat.stx_dev_minor },
    };
    if !is_device {
        let id = rustix::fs::fstat(&fd)?;
        refuse_loop_backing(path, (id.st_dev, id.st_ino))?;
    }
    // A device has no length in its metadata; its end is where seeking ends, as for a file.
    let len = rustix::fs::seek(&fd, rustix::fs::SeekFrom::End(0))?;
    let bounds = choose_mode(&fd, dev, options, is_device, &stat)?;
    Ok(Opened { fd, bounds, len, host })
}

fn flags(options: &FileOptions) -> OFlags {
    let access = if options.read_only { OFlags::RDONLY } else { OFlags::RDWR };
    access | OFlags::CLOEXEC
}

fn open_file(path: &Path, options: &FileOptions) -> Result<OwnedFd, Failed> {
    match open(path, flags(options), Mode::empty()) {
        Err(Errno::TXTBSY) => {
            Err(Failed::Refused(ErrorKind::Busy, "the kernel swaps to or runs it".into()))
        }
        result => Ok(result?),
    }
}

/// `O_EXCL` is how the kernel itself claims a device (a mount, an array, a mapping), so it also
/// tells whether it has. Claims exclude each other, so a reader only asks and lets go.
fn open_device(path: &Path, options: &FileOptions) -> Result<OwnedFd, Failed> {
    let claimed = match open(path, flags(options) | OFlags::EXCL, Mode::empty()) {
        Err(Errno::BUSY) => {
            let by = "the kernel or another program uses it (mounted, mapped, or in an array)";
            return Err(Failed::Held(by));
        }
        result => result?,
    };
    if options.read_only {
        return Ok(open(path, flags(options), Mode::empty())?);
    }
    Ok(claimed)
}

/// A loop device writes to its file through the page cache, or beside it: with us on the same file
/// neither would see the other's blocks.
fn refuse_loop_backing(path: &Path, id: (u64, u64)) -> Result<(), Failed> {
    // Without sysfs there is nothing to ask.
    let Ok(devices) = std::fs::read_dir("/sys/block") else { return Ok(()) };
    for device in devices.flatten() {
        let name = device.file_name();
        let Ok(backing) = std::fs::read_to_string(device.path().join("loop/backing_file")) else {
            continue;
        };
        let node =
            open(Path::new("/dev").join(&name), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let same = match node.map_err(io::Error::from).and_then(|node| sys::loop_backing(&node)) {
            Ok(behind) => behind == id,
            // Not ours to open: its path must do.
            Err(_) => path.canonicalize().is_ok_and(|p| p == Path::new(backing.trim_end())),
        };
        if same {
            let text = format!("it backs the loop device {}", name.display());
            return Err(Failed::Refused(ErrorKind::Busy, text.into()));
        }
    }
    Ok(())
}

/// Direct where the alignment allows requests of `options.block`, else buffered, and said so. One
/// descriptor does either: the two are never mixed.
fn choose_mode(
    fd: &OwnedFd,
    dev: &DevId,
    options: &FileOptions,
    is_device: bool,
    stat: &rustix::fs::Statx,
) -> Result<Bounds, Failed> {
    let tmpfs = u64::try_from(rustix::fs::fstatfs(fd)?.f_type) == Ok(TMPFS_MAGIC) && !is_device;
    let sector = if is_device { ioctl_blksszget(fd)? as usize } else { SECTOR_SIZE };
    let told = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::DIOALIGN);
    let (memory, offset) = if tmpfs {
        (1, 1) // since Linux 6.6; before, it refuses O_DIRECT below
    } else if told {
        (stat.stx_dio_mem_align as usize, stat.stx_dio_offset_align as usize)
    } else if is_device {
        (sector, sector)
    } else {
        (UNKNOWN_ALIGN, UNKNOWN_ALIGN)
    };
    if tmpfs {
        // A request never waits here, but the kernel does not know and would give each to a worker
        // thread (6 us instead of 1 us); O_NONBLOCK lets it try first.
        fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?;
    }
    let buffered = |why: &str| {
        tracing::info!(%dev, why, "buffered I/O");
        Ok(Bounds { direct: false, is_device, memory: 1, sector })
    };
    if !options.direct {
        return buffered("asked for");
    }
    if offset == 0 {
        return buffered("the file system has no direct I/O for this file");
    }
    if !options.block.byte_len().is_multiple_of(offset) {
        return buffered("direct I/O here needs larger blocks than the format has");
    }
    match fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::DIRECT) {
        Ok(()) => Ok(Bounds { direct: true, is_device, memory, sector }),
        Err(Errno::INVAL) => buffered("the file system refuses direct I/O"),
        Err(e) => Err(e.into()),
    }
}

impl HostDevice {
    /// A number in the queue's attributes in sysfs; a partition has its disk's queue.
    pub(super) fn queue_attribute(&self, name: &str) -> Option<u64> {
        let node = format!("/sys/dev/block/{}:{}", self.major, self.minor);
        ["queue", "../queue"].into_iter().find_map(|queue| {
            let text = std::fs::read_to_string(format!("{node}/{queue}/{name}")).ok()?;
            text.trim().parse().ok()
        })
    }
}
