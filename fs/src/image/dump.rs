//! Writing a dump: every tree block that anything leads to, and the superblock.
//!
//! Trees are walked from their roots, each shared block once, without asking the extent tree, which
//! may be what is broken. A block that does not check out is taken as it is: it is what somebody will
//! want to see.

use super::format::{Cluster, HEAD_SIZE, ITEMS_MAX, SUPER_ITEM};
use super::graft::graft;
use super::sanitise::{Names, clean};
use crate::error::{Error, ErrorKind, Result};
use crate::format::block;
use crate::format::file_extent::{Body, FileExtent};
use crate::format::key::{ItemType, objectid};
use crate::format::superblock::{Label, SUPER_OFFSETS};
use crate::inspect::{Inspector, Step, Walk};
use crate::tree::build::seal;
use crate::units::Logical;
use std::collections::BTreeMap;
use std::io::{self, Write};
use varve_block::BlockDevice;

/// Longest run of blocks in one payload.
const RUN_MAX: u64 = 256 << 10;
/// Longest extent of the old free space cache that is taken along.
const CACHE_EXTENT_MAX: u64 = 1 << 20;

/// How to dump.
#[derive(Clone, Copy, Debug)]
pub struct DumpOptions {
    /// zlib level, 0 (stored) to 9.
    pub level: u32,
    /// Replace names and clear attribute values.
    pub sanitise: bool,
}

impl Default for DumpOptions {
    fn default() -> DumpOptions {
        DumpOptions { level: 6, sanitise: false }
    }
}

/// What a dump holds.
#[derive(Clone, Default, Debug)]
pub struct DumpReport {
    pub blocks: u64,
    pub payload_bytes: u64,
    pub stream_bytes: u64,
    /// Blocks that are missing, or taken although they are wrong.
    pub problems: Vec<String>,
}

/// Writes a dump of the file system on `devices`, in any order, through `sink`. `progress` hears how many of how many
/// bytes are done.
///
/// # Errors
/// When there is no superblock or the devices do not belong together, and what `sink` says.
pub async fn dump<D: BlockDevice>(
    devices: Vec<D>,
    options: DumpOptions,
    sink: impl FnMut(&[u8]) -> io::Result<()>,
    mut progress: impl FnMut(u64, u64),
) -> Result<DumpReport> {
    let fs = Inspector::open_devices(devices, 0).await?;
    let mut report = DumpReport { problems: fs.warnings().to_vec(), ..DumpReport::default() };
    let wanted = collect(&fs, &mut report).await;
    let total = wanted.values().sum();
    let names = match options.sanitise {
        true => {
            let mut key = [0; 32];
            getrandom::fill(&mut key)
                .map_err(|e| Error::new(ErrorKind::Io, format!("no random numbers: {e}")))?;
            Some(Names::new(key))
        }
        false => None,
    };
    let mut stream = Stream { sink, level: options.level.min(9), at: 0, pending: Vec::new() };
    let mut sb = fs.superblock().clone();
    if let (Some(_), Some(none)) = (&names, Label::new(b"")) {
        sb.label = none;
    }
    stream.payload(SUPER_ITEM, &sb.seal(SUPER_OFFSETS[0]))?;
    let mut run: (u64, Vec<u8>) = (0, Vec::new());
    for (at, len) in wanted {
        let Some(bytes) = taken(&fs, Logical(at), len, names.as_ref()).await else {
            report.problems.push(format!("logical {at}: cannot be read, left out"));
            continue;
        };
        if run.0 + run.1.len() as u64 != at || run.1.len() as u64 + len > RUN_MAX {
            stream.payload(Logical(run.0), &run.1)?;
            run = (at, Vec::new());
        }
        run.1.extend_from_slice(&bytes);
        report.blocks += 1;
        report.payload_bytes += len;
        progress(report.payload_bytes, total);
    }
    stream.payload(Logical(run.0), &run.1)?;
    stream.finish()?;
    report.stream_bytes = stream.at;
    Ok(report)
}

/// The blocks of all trees, and the extents of the old free space cache: address and length.
async fn collect<D: BlockDevice>(fs: &Inspector<D>, report: &mut DumpReport) -> BTreeMap<u64, u64> {
    let nodesize = u64::from(fs.superblock().nodesize);
    let mut roots = fs.roots().await;
    roots.extend(fs.log_roots().await);
    let mut wanted = BTreeMap::new();
    let mut walk: Option<Walk> = None;
    for entry in roots {
        let mut here = match walk.take() {
            Some(walk) => walk.onward(entry.root),
            None => Walk::new(entry.root),
        };
        while let Some(step) = here.next(fs).await {
            match step {
                Step::Lost { at, why } => {
                    report.problems.push(format!("tree {} block {at}: {why}", entry.id));
                }
                Step::Block(block) => {
                    if let Some(problem) = &block.problem {
                        let at = block.at;
                        report.problems.push(format!("tree {} block {at}: {problem}", entry.id));
                    }
                    wanted.insert(block.at.0, nodesize);
                    if entry.id == objectid::ROOT_TREE {
                        wanted.extend(cache_extents(&block.bytes));
                    }
                }
            }
        }
        walk = Some(here);
    }
    wanted
}

/// What files inside the root tree consist of: the old free space cache.
fn cache_extents(leaf: &[u8]) -> impl Iterator<Item = (u64, u64)> {
    block::items(leaf).filter(|(key, _)| key.kind == ItemType::EXTENT_DATA).filter_map(
        |(_, data)| match FileExtent::parse(data).ok()?.body {
            Body::Regular(place)
                if !place.is_hole() && place.disk_num_bytes <= CACHE_EXTENT_MAX =>
            {
                Some((place.disk_bytenr.0, place.disk_num_bytes))
            }
            _ => None,
        },
    )
}

/// The bytes that go into the dump.
async fn taken<D: BlockDevice>(
    fs: &Inspector<D>,
    at: Logical,
    len: u64,
    names: Option<&Names>,
) -> Option<Vec<u8>> {
    if len != u64::from(fs.superblock().nodesize) {
        let mut bytes = vec![0; crate::units::to_usize(len)];
        return fs.volume.read_mirror(at, 1, &mut bytes).await.ok().map(|()| bytes);
    }
    let mut block = fs.block(at).await.ok()?;
    if block.header.bytenr == at {
        clean(&mut block.bytes, names);
        graft(&mut block.bytes, fs.superblock().tree_fsid(), &fs.volume.seeds);
    }
    if block.problem.is_none() {
        seal(&mut block.bytes, fs.volume.rules.csum);
    }
    Some(block.bytes)
}

/// The container in the making.
struct Stream<S> {
    sink: S,
    level: u32,
    at: u64,
    pending: Vec<(Logical, Vec<u8>)>,
}

impl<S: FnMut(&[u8]) -> io::Result<()>> Stream<S> {
    fn payload(&mut self, at: Logical, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let stored = match self.level {
            0 => bytes.to_vec(),
            level => {
                let level = flate2::Compression::new(level);
                let mut packer = flate2::write::ZlibEncoder::new(Vec::new(), level);
                let packed = packer.write_all(bytes).and_then(|()| packer.finish());
                packed.map_err(|e| failed(&e))?
            }
        };
        self.pending.push((at, stored));
        if self.pending.len() == ITEMS_MAX { self.cluster() } else { Ok(()) }
    }

    fn cluster(&mut self) -> Result<()> {
        let pending = std::mem::take(&mut self.pending);
        let size = |bytes: &Vec<u8>| u32::try_from(bytes.len()).expect("a payload is a short run");
        let items = pending.iter().map(|(at, bytes)| (*at, size(bytes))).collect();
        let mut bytes = Cluster { packed: self.level > 0, items }.encode(self.at);
        for (_, payload) in pending {
            bytes.extend_from_slice(&payload);
        }
        bytes.resize(bytes.len().next_multiple_of(HEAD_SIZE), 0);
        (self.sink)(&bytes).map_err(|e| failed(&e))?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        if self.pending.is_empty() { Ok(()) } else { self.cluster() }
    }
}

fn failed(error: &io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull => ErrorKind::NoSpace,
        _ => ErrorKind::Io,
    };
    Error::new(kind, format!("the dump cannot be written: {error}"))
}
