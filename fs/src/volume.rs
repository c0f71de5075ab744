//! The volume: member devices, the chunk map over them, and reads that do not give up at the first
//! bad copy.
//!
//! A copy that cannot be read or does not check out is logged and the next one tried; only when all
//! have failed does the caller hear of it, and then with what was wrong with the first.

mod fetch;

pub(crate) use fetch::Fetched;

use crate::chunk::{ChunkMap, Piece};
use crate::csum::Found;
use crate::error::{Error, ErrorKind, Place, Result};
use crate::format::Uuid;
use crate::format::superblock::{SUPER_SIZE, Superblock};
use crate::raid::Rebuild;
use crate::tree::cache::{BlockCache, Look};
use crate::tree::node::TreeBlock;
use crate::units::{Logical, Physical, to_usize};
use crate::verify::{Expect, Rules};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;
use varve_block::{BlockDevice, BufPool, Extent, Geometry, Sector, Sectors, chain};

/// Memory for reads in flight.
const POOL_BUDGET: usize = 16 << 20;

/// One device of the file system.
pub(crate) struct Member<D> {
    pub(crate) devid: u64,
    pub(crate) uuid: Uuid,
    /// As this device has it.
    pub(crate) sb: Superblock,
    pub(crate) device: D,
    pub(crate) geometry: Geometry,
}

pub(crate) struct Volume<D> {
    pub(crate) members: Vec<Member<D>>,
    pub(crate) sb: Superblock,
    pub(crate) rules: Rules,
    /// Devices that belong to seeds, and the uuid of the seed.
    pub(crate) seeds: BTreeMap<u64, Uuid>,
    /// Filled while opening; never changed afterwards.
    chunks: RefCell<ChunkMap>,
    blocks: BlockCache,
    /// Blocks that are on no device: what a replay of the log in memory made.
    pub(crate) made: BTreeMap<Logical, Arc<TreeBlock>>,
    pool: BufPool,
    bad_copies: Cell<u64>,
}

/// What the volume has lived through.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Tree blocks found in memory.
    pub block_hits: u64,
    /// Tree blocks read from a device.
    pub block_reads: u64,
    /// Copies of blocks or sectors that could not be read or were wrong.
    pub bad_copies: u64,
}

impl<D: BlockDevice> Volume<D> {
    pub(crate) fn new(
        members: Vec<Member<D>>,
        sb: Superblock,
        mut rules: Rules,
        cache_bytes: usize,
    ) -> Volume<D> {
        // What a sprout has not changed carries its seed's uuid, the chunk tree too.
        rules.fsids.extend(members.iter().map(|member| member.sb.tree_fsid()));
        Volume {
            members,
            sb,
            rules,
            seeds: BTreeMap::new(),
            chunks: RefCell::default(),
            blocks: BlockCache::new(cache_bytes),
            made: BTreeMap::new(),
            pool: BufPool::new(POOL_BUDGET),
            bad_copies: Cell::new(0),
        }
    }

    pub(crate) fn counters(&self) -> Counters {
        let (block_hits, block_reads) = self.blocks.counters();
        Counters { block_hits, block_reads, bad_copies: self.bad_copies.get() }
    }

    pub(crate) fn chunks(&self) -> &RefCell<ChunkMap> {
        &self.chunks
    }

    pub(crate) fn members(&self) -> &[Member<D>] {
        &self.members
    }

    /// What to say of a device that was not given.
    pub(crate) fn missing(&self, devid: u64) -> String {
        match self.seeds.get(&devid) {
            Some(seed) => format!("device {devid}, of the seed {seed}, is missing"),
            None => format!("device {devid} is missing"),
        }
    }

    fn note_bad(&self) {
        self.bad_copies.set(self.bad_copies.get() + 1);
    }

    /// The block that `expect` describes, from memory or from the first good copy.
    pub(crate) async fn block(&self, expect: &Expect) -> Result<Arc<TreeBlock>> {
        if let Some(block) = self.made.get(&expect.logical) {
            block.is_expected(expect)?;
            return Ok(Arc::clone(block));
        }
        loop {
            match self.blocks.look(expect.logical) {
                Look::Hit(block) => {
                    block.is_expected(expect)?;
                    return Ok(block);
                }
                Look::Wait(read) => read.ended().await,
                Look::Claimed(claim) => {
                    let block = self.read_block(expect).await?;
                    return Ok(claim.publish(block));
                }
            }
        }
    }

    async fn read_block(&self, expect: &Expect) -> Result<TreeBlock> {
        let mut first = None;
        for mirror in 1..=self.mirrors(expect.logical)? {
            let mut bytes = vec![0; self.rules.nodesize as usize];
            let read = self.read_mirror(expect.logical, mirror, &mut bytes).await;
            let checked = match read {
                Ok(()) => TreeBlock::check(&self.rules, bytes, expect, mirror).map_err(Error::from),
                Err(error) => Err(error),
            };
            match checked {
                Ok(block) => return Ok(block),
                Err(error) => {
                    self.note_bad();
                    let block = expect.logical.0;
                    tracing::warn!(block, mirror, error = %chain(&error), "bad copy, trying next");
                    first.get_or_insert(error);
                }
            }
        }
        Err(first.unwrap_or_else(|| Error::corrupt("a chunk without copies")))
    }

    /// How many ways there are to read what lies at `at`: copies, and rebuilding from parity.
    pub(crate) fn mirrors(&self, at: Logical) -> Result<usize> {
        Ok(self.chunks.borrow().map(at, 1)?.mirrors())
    }

    /// Fills `out` from one copy, across chunk and stripe borders.
    pub(crate) async fn read_mirror(
        &self,
        at: Logical,
        mirror: usize,
        out: &mut [u8],
    ) -> Result<()> {
        let mut at = at;
        let mut rest = out;
        while !rest.is_empty() {
            let piece = self.chunks.borrow().map(at, rest.len() as u64)?;
            let len = to_usize(piece.len).min(rest.len());
            let (head, tail) = rest.split_at_mut(len);
            self.read_piece(at, &piece, mirror, head).await?;
            rest = tail;
            at = Logical(at.0 + len as u64);
        }
        Ok(())
    }

    /// Fills `out`, which is no longer than the piece at `at`, from one copy or by rebuilding.
    async fn read_piece(
        &self,
        at: Logical,
        piece: &Piece,
        mirror: usize,
        out: &mut [u8],
    ) -> Result<()> {
        if let Some(place) = piece.copies.get(mirror.wrapping_sub(1)) {
            return self.read_device(*place, out).await;
        }
        let way = mirror.checked_sub(1 + piece.copies.len());
        let rebuilt = piece.row.as_ref().zip(way).and_then(|(row, n)| Some((row, row.way(n)?)));
        let Some((row, lost)) = rebuilt else {
            return Err(Error::corrupt(format!("logical {at} has no mirror {mirror}")));
        };
        let mut rebuild = Rebuild::new(row, lost, out.len());
        for (column, place) in row.data.iter().enumerate() {
            if rebuild.needs(column) {
                self.read_device(*place, out).await?;
                rebuild.data(column, out);
            }
        }
        if rebuild.needs_p() {
            self.read_device(row.p, out).await?;
            rebuild.p(out);
        }
        if let Some(q) = row.q.filter(|_| rebuild.needs_q()) {
            self.read_device(q, out).await?;
            rebuild.q(out);
        }
        out.copy_from_slice(&rebuild.finish());
        Ok(())
    }

    /// Fills `out` from one device, whatever its block size.
    async fn read_device(&self, place: Physical, out: &mut [u8]) -> Result<()> {
        let member = self.members.iter().find(|member| member.devid == place.devid);
        let Some(Member { device, geometry, .. }) = member else {
            return Err(Error::new(ErrorKind::Io, self.missing(place.devid)));
        };
        let block = geometry.block.bytes();
        let most = geometry.max_request.bytes();
        let most = (most - most % block).max(block);
        let mut byte = place.byte;
        let mut rest = out;
        while !rest.is_empty() {
            let skip = byte % block;
            let start = byte - skip;
            let want = (skip + rest.len() as u64).next_multiple_of(block).min(most);
            let range = Extent::new(Sector::containing(start), Sectors(want >> 9));
            if !range.fits(geometry.len) {
                let message = format!("{place}: behind the end of {}", geometry.dev);
                return Err(Error::new(ErrorKind::Io, message));
            }
            let buf = device.read(range.start, self.pool.take(range.len).await).await?;
            let got = buf.get(to_usize(skip)..).unwrap_or(&[]);
            let len = got.len().min(rest.len());
            let (head, tail) = rest.split_at_mut(len);
            head.copy_from_slice(&got[..len]);
            rest = tail;
            byte += len as u64;
        }
        Ok(())
    }

    /// Fills `out` with data, sector by sector verified against `sums` (`None`: unverified). Copies
    /// are tried in turn, first for the whole, then for each sector that was bad.
    ///
    /// `at` and `out` are whole sectors.
    pub(crate) async fn read_data(
        &self,
        at: Logical,
        out: &mut [u8],
        sums: Option<&Sums>,
        whose: &Owner,
    ) -> Result<()> {
        let mut from = 0;
        let mut rest = out;
        while !rest.is_empty() {
            let here = Logical(at.0 + from);
            let piece = self.chunks.borrow().map(here, rest.len() as u64)?;
            let len = to_usize(piece.len).min(rest.len());
            let (head, tail) = rest.split_at_mut(len);
            self.read_data_piece(here, &piece, head, sums, (whose, from)).await?;
            rest = tail;
            from += len as u64;
        }
        Ok(())
    }

    /// The part of [`Volume::read_data`] that lies in one piece. `from` is its distance from the
    /// first byte that `whose` and `sums` speak of.
    async fn read_data_piece(
        &self,
        at: Logical,
        piece: &Piece,
        out: &mut [u8],
        sums: Option<&Sums>,
        (whose, from): (&Owner, u64),
    ) -> Result<()> {
        let sector = self.rules.sectorsize as usize;
        // The first copy that can be read at all: with a device missing, rebuilding piece by piece
        // is much cheaper than sector by sector.
        let mut whole = None;
        for mirror in 1..=piece.mirrors() {
            if self.read_piece(at, piece, mirror, out).await.is_ok() {
                whole = Some(mirror);
                break;
            }
        }
        for (n, bytes) in (0u64..).zip(out.chunks_mut(sector)) {
            let off = n * sector as u64;
            let wanted = sums.map(|sums| sums.at((from + off) / sector as u64));
            let failure = match whole {
                Some(mirror) => match self.judge(bytes, wanted, whose, from + off, mirror) {
                    Ok(()) => continue,
                    Err(error) => Some(error),
                },
                // The devices failed somewhere in the range: ask for each sector by itself.
                None => None,
            };
            let here = Logical(at.0 + off);
            self.recover(here, bytes, wanted, whose, from + off, (whole, failure)).await?;
        }
        Ok(())
    }

    /// One sector, from every mirror but the one that was tried.
    async fn recover(
        &self,
        at: Logical,
        bytes: &mut [u8],
        wanted: Option<Option<&[u8]>>,
        whose: &Owner,
        from: u64,
        (tried, failure): (Option<usize>, Option<Error>),
    ) -> Result<()> {
        let mut failure = failure;
        for mirror in 1..=self.mirrors(at)? {
            if tried == Some(mirror) {
                continue;
            }
            let read = self.read_mirror(at, mirror, bytes).await;
            let verdict = match read {
                Ok(()) => self.judge(bytes, wanted, whose, from, mirror),
                Err(error) => {
                    self.note_bad();
                    Err(error)
                }
            };
            match verdict {
                Ok(()) => return Ok(()),
                Err(error) => {
                    tracing::warn!(logical = at.0, mirror, error = %chain(&error), "bad copy");
                    failure.get_or_insert(error);
                }
            }
        }
        let place = Place { logical: Some(at), ..whose.place(from) };
        let failure = failure.unwrap_or_else(|| Error::corrupt("a chunk without copies"));
        Err(Error::new(failure.kind, format!("{whose}, logical {at}: no good copy"))
            .at(place)
            .because(failure))
    }

    fn judge(
        &self,
        bytes: &[u8],
        wanted: Option<Option<&[u8]>>,
        whose: &Owner,
        from: u64,
        mirror: usize,
    ) -> Result<()> {
        let Some(wanted) = wanted else { return Ok(()) };
        let Owner { root, inode, offset } = *whose;
        let offset = offset.wrapping_add(from);
        let Some(wanted) = wanted else {
            let message = format!("no csum found for inode {inode} start {offset} root {root}");
            return Err(Error::corrupt(message));
        };
        let csum = self.rules.csum;
        let computed = csum.digest(bytes);
        if computed.bytes() == wanted {
            return Ok(());
        }
        self.note_bad();
        let expected = Found(wanted, csum);
        let message = format!(
            "csum failed root {root} ino {inode} off {offset} csum {computed} expected csum \
             {expected} mirror {mirror}"
        );
        Err(Error::corrupt(message))
    }
}

/// The 4096 bytes of a superblock copy, also from a device with larger blocks; `None` where the device
/// ends before.
pub(crate) async fn read_super<D: BlockDevice>(
    device: &D,
    at: u64,
) -> varve_block::Result<Option<Vec<u8>>> {
    let geometry = device.geometry();
    let block = geometry.block.bytes().max(SUPER_SIZE as u64);
    let start = at - at % block;
    let range = Extent::new(Sector::containing(start), Sectors(block >> 9));
    if !range.fits(geometry.len) {
        return Ok(None);
    }
    let pool = BufPool::new(SUPER_SIZE);
    let buf = device.read(range.start, pool.take(range.len).await).await?;
    let bytes = buf.get(to_usize(at - start)..).and_then(|bytes| bytes.get(..SUPER_SIZE));
    Ok(bytes.map(<[u8]>::to_vec))
}

/// Whose data is being read: for messages. `offset` is the file's byte at the first one read, or for
/// a compressed extent at its first uncompressed one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner {
    pub(crate) root: u64,
    pub(crate) inode: u64,
    pub(crate) offset: u64,
}

impl Owner {
    fn place(&self, from: u64) -> Place {
        Place {
            root: Some(self.root),
            inode: Some(self.inode),
            offset: Some(self.offset.wrapping_add(from)),
            logical: None,
        }
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "root {} inode {} offset {}", self.root, self.inode, self.offset)
    }
}

/// Digests of consecutive sectors, with gaps.
#[derive(Debug)]
pub(crate) struct Sums {
    each: usize,
    bytes: Vec<u8>,
    present: Vec<bool>,
}

impl Sums {
    pub(crate) fn new(each: usize, sectors: usize) -> Sums {
        Sums { each, bytes: vec![0; each * sectors], present: vec![false; sectors] }
    }

    /// Takes over the digests of an item whose first is sector `first` of the item's own and belongs
    /// to sector `to` here.
    pub(crate) fn put(&mut self, item: &[u8], first: u64, to: u64) {
        let (skip, to) = (to_usize(first), to_usize(to));
        let here = self.bytes.chunks_exact_mut(self.each).zip(&mut self.present);
        for ((mine, present), digest) in here.skip(to).zip(item.chunks_exact(self.each).skip(skip))
        {
            mine.copy_from_slice(digest);
            *present = true;
        }
    }

    pub(crate) fn at(&self, sector: u64) -> Option<&[u8]> {
        let n = usize::try_from(sector).ok()?;
        self.present.get(n).filter(|present| **present)?;
        self.bytes.chunks_exact(self.each).nth(n)
    }
}
