//! A dump as the device it would be restored to. Read-only; see the module's docs.

use super::container::Container;
use super::layout::{Layout, Located};
use crate::error::Result;
use crate::format::superblock::SUPER_SIZE;
use crate::units::{Logical, to_usize};
use varve_block::{
    BlockDevice, Data, Durability, Error, ErrorKind, Extent, ExtentStatus, Geometry, IoBuf, Op,
    Sector, Sectors, Zero,
};

/// The device that a metadata dump stands for.
pub struct DumpDevice<D> {
    dump: Container<D>,
    layout: Layout,
}

impl<D: BlockDevice> DumpDevice<D> {
    /// Reads the dump's heads, its superblock and its chunk tree.
    ///
    /// # Errors
    /// When `below` is no metadata dump, or not a whole one.
    pub async fn open(below: D) -> Result<DumpDevice<D>> {
        let dump = Container::open(below).await?;
        let layout = Layout::of(&dump).await?;
        Ok(DumpDevice { dump, layout })
    }

    /// Fills `out` from byte `at` of the device.
    async fn fill(&self, at: u64, out: &mut [u8]) -> Result<()> {
        let mut byte = at;
        let mut rest = out;
        while !rest.is_empty() {
            let (logical, run) = match self.superblock_at(byte) {
                Ok(bytes) => {
                    let len = bytes.len().min(rest.len());
                    let (head, tail) = rest.split_at_mut(len);
                    head.copy_from_slice(&bytes[..len]);
                    (rest, byte) = (tail, byte + len as u64);
                    continue;
                }
                Err(before) => match self.layout.locate(byte) {
                    Located::Metadata(logical, run) => (Some(logical), run.min(before)),
                    Located::Gap(run) => (None, run.min(before)),
                },
            };
            let len = to_usize(run).min(rest.len());
            let (head, tail) = rest.split_at_mut(len);
            match logical {
                Some(logical) => self.metadata(logical, head).await?,
                None => head.fill(0),
            }
            (rest, byte) = (tail, byte + len as u64);
        }
        Ok(())
    }

    /// What is left of the superblock copy at `byte`, or how far away the next one is.
    fn superblock_at(&self, byte: u64) -> Result<&[u8], u64> {
        let mut next = u64::MAX;
        for (start, bytes) in &self.layout.supers {
            match byte.checked_sub(*start) {
                Some(off) if off < SUPER_SIZE as u64 => {
                    return Ok(bytes.get(to_usize(off)..).unwrap_or(&[]));
                }
                Some(_) => (),
                None => next = next.min(start - byte),
            }
        }
        Err(next)
    }

    async fn metadata(&self, at: Logical, out: &mut [u8]) -> Result<()> {
        self.dump.read(at, out).await?;
        let mut done = 0;
        while done < out.len() {
            let here = Logical(at.0.saturating_add(done as u64));
            done += match self.layout.patch_at(here) {
                Some((bytes, off)) => {
                    let len = (bytes.len() - off).min(out.len() - done);
                    out[done..done + len].copy_from_slice(&bytes[off..off + len]);
                    len
                }
                None => 4096 - to_usize(here.0 % 4096),
            };
        }
        Ok(())
    }

    /// Whether nothing is known of the run at `byte`, and how long it is.
    fn hole_at(&self, byte: u64) -> (bool, u64) {
        if let Ok(bytes) = self.superblock_at(byte) {
            return (false, bytes.len() as u64);
        }
        let before = self.superblock_at(byte).err().unwrap_or(u64::MAX);
        match self.layout.locate(byte) {
            Located::Gap(run) => (true, run.min(before)),
            Located::Metadata(logical, run) => self.dump.hole_at(logical, run.min(before)),
        }
    }

    fn refused<T>(&self, op: Op, range: Extent) -> varve_block::Result<T> {
        Err(Error::new(ErrorKind::ReadOnly, op, range, &self.geometry().dev))
    }
}

impl<D: BlockDevice> BlockDevice for DumpDevice<D> {
    fn geometry(&self) -> Geometry {
        let below = self.dump.below().geometry();
        Geometry {
            read_only: true,
            volatile_cache: false,
            ..Geometry::new(below.dev, Sectors(self.layout.total_bytes >> 9))
        }
    }

    async fn read(&self, at: Sector, mut buf: IoBuf) -> varve_block::Result<IoBuf> {
        let geometry = self.geometry();
        let range = Extent::new(at, buf.sectors());
        geometry.admit(Op::Read, range)?;
        match self.fill(at.byte(), &mut buf).await {
            Ok(()) => Ok(buf),
            Err(error) => {
                let kind = match error.kind {
                    crate::ErrorKind::Corrupt => ErrorKind::Corrupt,
                    _ => ErrorKind::Io,
                };
                Err(Error::new(kind, Op::Read, range, &geometry.dev).with(error))
            }
        }
    }

    async fn write(&self, at: Sector, data: Data, _: Durability) -> varve_block::Result<Data> {
        self.refused(Op::Write, Extent::new(at, data.sectors()))
    }

    async fn flush(&self) -> varve_block::Result<()> {
        Ok(())
    }

    async fn discard(&self, range: Extent) -> varve_block::Result<()> {
        self.refused(Op::Discard, range)
    }

    async fn write_zeroes(&self, range: Extent, _: Zero) -> varve_block::Result<()> {
        self.refused(Op::WriteZeroes, range)
    }

    async fn extents(&self, range: Extent, limit: usize) -> varve_block::Result<Vec<ExtentStatus>> {
        self.geometry().admit(Op::Extents, range)?;
        let mut runs: Vec<ExtentStatus> = Vec::new();
        let (mut at, end) = (range.start, range.end());
        while at < end {
            let (hole, run) = self.hole_at(at.byte());
            // Sectors that are a hole only in part are data.
            let (hole, len) = match run >> 9 {
                0 => (false, Sectors(1)),
                whole => (hole, Sectors(whole)),
            };
            let len = len.min(end - at);
            let full = runs.len() >= limit.max(1);
            match runs.last_mut() {
                Some(last) if last.hole == hole => last.range.len += len,
                _ if full => break,
                _ => runs.push(ExtentStatus { range: Extent::new(at, len), hole, zero: hole }),
            }
            at += len;
        }
        Ok(runs)
    }
}
