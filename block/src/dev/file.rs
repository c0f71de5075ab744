//! A file or block device of the host, through the ring.
//!
//! # Direct or buffered
//!
//! Direct I/O goes past the page cache, so what we cache is cached once and what the host loses it
//! has told us. It is used wherever its alignment allows requests as small as the format's block;
//! elsewhere the device is buffered and says so in the log. One file is never both.
//!
//! # Durability
//!
//! `flush` is fdatasync(2) and a `Fua` write carries `RWF_DSYNC`. When either fails the kernel may
//! have dropped the dirty pages and will call the next sync a success, so the failure latches:
//! nothing is changed or flushed any more ([`ErrorKind::Poisoned`]) until the device is opened
//! again, and a reader reads what it can still get.
//!
//! # Nobody else
//!
//! See [`FileDevice::open`] for the locks. The file never grows: its length is taken when it is
//! opened, and every request is checked against it.

mod open;
#[cfg(test)]
mod tests;

use super::sys;
use crate::buf::{BufPool, Data, IoBuf, IoView};
use crate::device::{BlockDevice, Durability, ExtentStatus, Geometry, Zero};
use crate::error::{DevId, Error, ErrorKind, Op, Result};
use crate::rt::{Allocate, File, Rt};
use crate::units::{Extent, Sector, Sectors};
use rustix::io::Errno;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How a file is opened.
#[derive(Clone, Debug)]
pub struct FileOptions {
    pub read_only: bool,
    /// The unit of requests, 512 bytes unless the format knows better; never below a device's own.
    pub block: Sectors,
    /// Direct I/O where it can be had; `false`: always buffered.
    pub direct: bool,
    /// How long to wait for somebody who holds the lock: a killed server's requests hold it until
    /// the last of them has landed.
    pub lock_wait: Duration,
}

impl Default for FileOptions {
    fn default() -> FileOptions {
        FileOptions {
            read_only: false,
            block: Sectors(1),
            direct: true,
            lock_wait: Duration::from_secs(10),
        }
    }
}

/// What the host asks of requests.
struct Bounds {
    direct: bool,
    is_device: bool,
    /// Alignment of memory, in bytes.
    memory: usize,
    /// The logical block of a device, in bytes.
    sector: usize,
}

/// Reads that are worth a switch from thread to thread: 256 KiB.
const ASIDE_MIN: Sectors = Sectors(512);

/// One piece of a long fallocate(2): each is one call that cannot be interrupted.
const PIECE: Sectors = Sectors(1 << 21);

/// A file or block device on one lane; clones and other lanes share it, see [`FileDevice::handle`].
#[derive(Clone)]
pub struct FileDevice {
    rt: Rt,
    file: File,
    shared: Arc<Shared>,
}

/// The same device on its way to another lane.
#[derive(Clone)]
pub struct FileHandle {
    fd: Arc<OwnedFd>,
    shared: Arc<Shared>,
}

struct Shared {
    geometry: Geometry,
    bounds: Bounds,
    /// A flush, or a write that includes one, has failed.
    poisoned: AtomicBool,
    /// ZERO_RANGE was refused as unknown: not asked again.
    no_zero_range: AtomicBool,
    /// Memory for requests whose own is not aligned, and for written zeroes.
    pool: BufPool,
}

impl FileHandle {
    pub fn attach(self, rt: &Rt) -> FileDevice {
        FileDevice { rt: rt.clone(), file: File::shared(rt, self.fd), shared: self.shared }
    }
}

impl FileDevice {
    /// Opens a regular file or a block device and locks it: `flock`, exclusive or (read-only)
    /// shared, and on devices also the kernel's own claim.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] when somebody held it for all of `options.lock_wait`, when the kernel
    /// uses the device, or when a loop device stands on the file.
    pub async fn open(rt: &Rt, path: impl AsRef<Path>, options: FileOptions) -> Result<FileDevice> {
        let path = path.as_ref();
        let dev = DevId::new(path.display().to_string());
        let opened = open::open_locked(rt, path, &dev, &options).await?;
        let sector = Sectors::exact(opened.bounds.sector as u64).unwrap_or(Sectors(1));
        let block = options.block.max(sector);
        let file = File::new(rt, opened.fd);
        let whole = opened.len >> crate::units::SECTOR_SHIFT;
        let len = Sectors(whole - whole % block.0);
        if len.bytes() != opened.len {
            let ignored = opened.len - len.bytes();
            tracing::warn!(%dev, ignored, "the end of the file is no whole block and is not used");
        }
        let queue = |name| opened.host.queue_attribute(name).unwrap_or(0);
        let can_discard = !options.read_only
            && match opened.bounds.is_device {
                true => queue("discard_max_bytes") > 0,
                // Behind the end there is nothing to lose: a host that can punch says yes.
                false => file.fallocate(Allocate::PunchHole, opened.len, 4096).await.is_ok(),
            };
        let physical = Sectors(queue("physical_block_size") >> crate::units::SECTOR_SHIFT);
        let geometry = Geometry {
            block,
            // What a device writes whole is its to say; under a file is the page cache.
            preferred: match opened.bounds.is_device {
                true => block.max(physical),
                false => block.max(Sectors(8)),
            },
            read_only: options.read_only,
            volatile_cache: true,
            can_discard,
            fast_zero: match opened.bounds.is_device {
                true => queue("write_zeroes_max_bytes") > 0,
                false => can_discard,
            },
            cheap_fua: opened.bounds.direct,
            rotational: queue("rotational") == 1,
            ..Geometry::new(dev, len)
        };
        Ok(FileDevice::assemble(rt, file, geometry, opened.bounds))
    }

    fn assemble(rt: &Rt, file: File, geometry: Geometry, bounds: Bounds) -> FileDevice {
        let shared = Shared {
            geometry,
            bounds,
            poisoned: AtomicBool::new(false),
            no_zero_range: AtomicBool::new(false),
            pool: BufPool::new(0),
        };
        FileDevice { rt: rt.clone(), file, shared: Arc::new(shared) }
    }

    /// The same device for other lanes: one lock, one latch.
    pub fn handle(&self) -> FileHandle {
        FileHandle { fd: Arc::clone(self.file.descriptor()), shared: Arc::clone(&self.shared) }
    }

    /// Whether requests go past the page cache.
    pub fn is_direct(&self) -> bool {
        self.shared.bounds.direct
    }

    fn admit(&self, op: Op, at: Extent) -> Result<()> {
        self.shared.geometry.admit(op, at)?;
        let reads = matches!(op, Op::Read | Op::Extents | Op::Prefetch);
        if !reads && self.shared.poisoned.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Poisoned, op, at, &self.shared.geometry.dev));
        }
        Ok(())
    }

    fn failed(&self, op: Op, at: Extent, error: io::Error) -> Error {
        Error::host(op, at, &self.shared.geometry.dev, error)
    }

    /// A sync did not happen. What was promised may be lost, and the host has forgotten that.
    fn poison(&self, op: Op, at: Extent, error: io::Error) -> Error {
        self.shared.poisoned.store(true, Ordering::Release);
        let error = self.failed(op, at, error);
        tracing::error!(
            dev = %self.shared.geometry.dev,
            error = %crate::error::chain(&error),
            "a sync failed: nothing more is written until the device is opened again"
        );
        error
    }

    fn is_aligned(&self, bytes: &[u8]) -> bool {
        !self.is_direct() || bytes.as_ptr().addr().is_multiple_of(self.shared.bounds.memory)
    }

    /// Who only reads a file mostly reads all of it (a check, an export). What comes from memory is
    /// copied by the host then, and better on another core than on this one.
    async fn read_bytes(&self, at: u64, buf: IoBuf) -> io::Result<IoBuf> {
        let by_itself = self.shared.geometry.read_only && !self.shared.bounds.is_device;
        match by_itself && buf.sectors() >= ASIDE_MIN {
            true => self.file.read_aside_at(at, buf).await,
            false => self.file.read_at(at, buf).await,
        }
    }

    async fn write_bytes(&self, at: Extent, data: Data, dsync: bool) -> (Data, io::Result<()>) {
        let byte = at.start.byte();
        if self.is_aligned(&data) {
            return self.file.try_write_at(byte, data, dsync).await;
        }
        let copy = self.shared.pool.take_copy(&data).await;
        let (_, result) = self.file.try_write_at(byte, copy.into(), dsync).await;
        (data, result)
    }

    /// After a failed `Fua` write: was it the write, or the sync behind it? The room for the write
    /// is asked for again without the sync. If it is there, it was the sync that failed.
    async fn judge_fua(&self, at: Extent, data: Data, error: io::Error) -> Error {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let room = matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge);
        if room && self.write_bytes(at, data, false).await.1.is_err() {
            return self.failed(Op::Write, at, error);
        }
        self.poison(Op::Write, at, error)
    }

    async fn sync(&self, op: Op, at: Extent) -> Result<()> {
        let result = self.file.fdatasync().await;
        result.map_err(|e| self.poison(op, at, e))
    }

    async fn allocate(&self, what: Allocate, range: Extent) -> io::Result<()> {
        for piece in range.pieces(PIECE) {
            self.file.fallocate(what, piece.start.byte(), piece.len.bytes()).await?;
        }
        Ok(())
    }

    /// Zeroes without writing them, or `Ok(false)` when the host cannot (and nothing has changed).
    async fn fast_zeroes(&self, range: Extent, how: Zero) -> io::Result<bool> {
        let done = |result: io::Result<()>| match result {
            Ok(()) => Ok(true),
            Err(e) if is_unsupported(&e) => Ok(false),
            Err(e) => Err(e),
        };
        if how.may_unmap && done(self.allocate(Allocate::PunchHole, range).await)? {
            return Ok(true);
        }
        let bounds = &self.shared.bounds;
        // A device without the command gets its zeroes from the kernel, which is the slow way.
        let slow = bounds.is_device && !self.shared.geometry.fast_zero;
        if self.shared.no_zero_range.load(Ordering::Relaxed) || (slow && how.only_if_fast) {
            return Ok(false);
        }
        let fast = done(self.allocate(Allocate::ZeroRange, range).await)?;
        self.shared.no_zero_range.store(!fast, Ordering::Relaxed);
        Ok(fast)
    }

    async fn written_zeroes(&self, range: Extent) -> Result<()> {
        let longest = range.len.min(Geometry::MAX_REQUEST);
        let zeroes: IoView = self.shared.pool.take_zeroed(longest).await.freeze();
        for piece in range.pieces(longest) {
            let data = zeroes.slice(0..piece.len.byte_len());
            let (_, result) = self.write_bytes(piece, data.into(), false).await;
            result.map_err(|e| self.failed(Op::WriteZeroes, piece, e))?;
        }
        Ok(())
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    let unknown = [Errno::OPNOTSUPP, Errno::NOSYS].map(|errno| Some(errno.raw_os_error()));
    error.kind() == io::ErrorKind::Unsupported || unknown.contains(&error.raw_os_error())
}

impl BlockDevice for FileDevice {
    fn geometry(&self) -> Geometry {
        self.shared.geometry.clone()
    }

    async fn read(&self, at: Sector, mut buf: IoBuf) -> Result<IoBuf> {
        let range = Extent::new(at, buf.sectors());
        self.admit(Op::Read, range)?;
        let result = if self.is_aligned(&buf) {
            self.read_bytes(at.byte(), buf).await
        } else {
            let copy = self.shared.pool.take(range.len).await;
            self.read_bytes(at.byte(), copy).await.map(|copy| {
                buf.copy_from_slice(&copy);
                buf
            })
        };
        result.map_err(|e| self.failed(Op::Read, range, e))
    }

    async fn write(&self, at: Sector, data: Data, how: Durability) -> Result<Data> {
        let range = Extent::new(at, data.sectors());
        self.admit(Op::Write, range)?;
        let fua = how == Durability::Fua;
        match self.write_bytes(range, data, fua).await {
            (data, Ok(())) => Ok(data),
            (data, Err(e)) if fua => Err(self.judge_fua(range, data, e).await),
            (_, Err(e)) => Err(self.failed(Op::Write, range, e)),
        }
    }

    async fn flush(&self) -> Result<()> {
        let all = Extent::new(Sector::ZERO, self.shared.geometry.len);
        self.admit(Op::Flush, all)?;
        if self.shared.geometry.read_only {
            return Ok(());
        }
        self.sync(Op::Flush, all).await
    }

    async fn discard(&self, range: Extent) -> Result<()> {
        self.admit(Op::Discard, range)?;
        let geometry = &self.shared.geometry;
        if !geometry.can_discard {
            return Err(Error::new(ErrorKind::Unsupported, Op::Discard, range, &geometry.dev));
        }
        let result = if self.shared.bounds.is_device {
            let fd = Arc::clone(self.file.descriptor());
            let (start, len) = (range.start.byte(), range.len.bytes());
            self.rt.offload(move || sys::blk_discard(&fd, start, len)).await
        } else {
            self.allocate(Allocate::PunchHole, range).await
        };
        result.map_err(|e| self.failed(Op::Discard, range, e))
    }

    async fn write_zeroes(&self, range: Extent, how: Zero) -> Result<()> {
        self.admit(Op::WriteZeroes, range)?;
        if range.is_empty() {
            return Ok(());
        }
        let fast = self.fast_zeroes(range, how).await;
        if !fast.map_err(|e| self.failed(Op::WriteZeroes, range, e))? {
            if how.only_if_fast {
                let dev = &self.shared.geometry.dev;
                return Err(Error::new(ErrorKind::Unsupported, Op::WriteZeroes, range, dev));
            }
            self.written_zeroes(range).await?;
        }
        match how.durability {
            Durability::Fua => self.sync(Op::WriteZeroes, range).await,
            Durability::Cached => Ok(()),
        }
    }

    async fn extents(&self, range: Extent, limit: usize) -> Result<Vec<ExtentStatus>> {
        self.admit(Op::Extents, range)?;
        if self.shared.bounds.is_device || range.is_empty() {
            return Ok(vec![ExtentStatus::data(range)]);
        }
        let fd = Arc::clone(self.file.descriptor());
        let block = self.shared.geometry.block;
        let runs = self.rt.offload(move || allocated_runs(&fd, range, block, limit.max(1))).await;
        runs.map_err(|e| self.failed(Op::Extents, range, e))
    }

    async fn prefetch(&self, range: Extent) -> Result<()> {
        self.admit(Op::Prefetch, range)?;
        let len = std::num::NonZeroU64::new(range.len.bytes());
        if self.is_direct() || len.is_none() {
            return Ok(());
        }
        let fd = Arc::clone(self.file.descriptor());
        let will_need = rustix::fs::Advice::WillNeed;
        let advise = move || rustix::fs::fadvise(&fd, range.start.byte(), len, will_need);
        // Advice: the host may take it or not.
        let _ = self.rt.offload(advise).await;
        Ok(())
    }
}

/// The runs of data and holes of a file, from SEEK_DATA and SEEK_HOLE. A block that is partly data
/// is data.
fn allocated_runs(
    fd: &OwnedFd,
    range: Extent,
    block: Sectors,
    limit: usize,
) -> io::Result<Vec<ExtentStatus>> {
    use rustix::fs::{SeekFrom, seek};
    let unit = block.bytes();
    let end = range.end().byte();
    let mut runs = Vec::new();
    let mut at = range.start.byte();
    while at < end && runs.len() < limit {
        let data = match seek(fd, SeekFrom::Data(at)) {
            Ok(data) => (data / unit * unit).clamp(at, end),
            Err(Errno::NXIO) => end,
            Err(e) => return Err(e.into()),
        };
        let hole = data > at;
        let next = match hole {
            true => data,
            false => {
                let next = seek(fd, SeekFrom::Hole(at))?.next_multiple_of(unit);
                // Progress, whatever the host says.
                next.max(at + unit).min(end)
            }
        };
        let run = Extent::between(Sector::containing(at), Sector::containing(next));
        runs.push(ExtentStatus { range: run, hole, zero: hole });
        at = next;
    }
    Ok(runs)
}
