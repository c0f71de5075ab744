//! [`Integrity`]: sectors with a tag each, of which a crash leaves both or neither.
//!
//! # The life of a write
//! With a journal, blocks and their tags wait in memory ([`Ring::open`]); a flush, FUA, or a full
//! journal *commits* them: they are written to the journal and flushed. When the journal is half full,
//! committed blocks are copied to their places, flushed, and their sections are free again. Without a
//! journal, data and tag go to their places at once, and a crash can leave one without the other; with a
//! [`bitmap`](super::bitmap) it is known then where.
//!
//! # The life of a read
//! The newest version of a block is in memory, or, when it is not there, in its place.
//!
//! # Order
//! `turn` is held by whoever commits or copies. `blocks` keeps a block's data and tag together: readers
//! hold it for reading, copies for writing. Nobody waits for `turn` while holding `blocks`.
//!
//! # What a crash leaves
//! See [`replay`](super::replay): what was committed is found by the next start, ours or the kernel's.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use varve_block::sync::{LocalMutex, RangeLock, join};
use varve_block::{
    BlockDevice, Data, DevId, Durability, Error, ErrorKind, Extent, IoBuf, IoView, Op, Sector,
    Sectors,
};

use super::base::{Base, Io};
use super::bitmap::Bitmap;
use super::journal::{self, Block};
use super::stale::Stale;

/// Bytes of blocks that wait in memory for a commit, and of committed ones that wait for their copy.
const WAITING_MAX: usize = 8 << 20;
const COMMITTED_MAX: usize = 32 << 20;
/// Longest run that is copied to its place at a time.
const COPY: Sectors = Sectors(1024);

/// How writes reach their places.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Journaling {
    /// Through the journal: a crash leaves each block old or new.
    Journal,
    /// Directly, after a bit for the region was made durable: after a crash the tags of such regions are
    /// computed anew. Only where tags are a hash of the data.
    Bitmap,
    /// Directly: a crash can leave data and tag of different versions, which reads as damage.
    Direct,
}

/// A flush, by what must be durable before anything after it is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Barrier {
    /// The journal's sections, before anybody is told that they are.
    Commit,
    /// The blocks in their places, before the sections that held them are used again.
    Copy,
    /// Sections that became blank, before the next part of the ring does.
    Blank,
    /// The bits of a region, before it is written.
    Mark,
    /// What was written, before its bits are cleared.
    Clean,
    /// Tags that were computed, before the superblock or the bitmap says that they were.
    Tags,
    /// The superblock, before what follows from it.
    Super,
}

#[cfg(test)]
thread_local! {
    /// The barrier that tests leave out, to see that its loss is caught.
    pub(super) static LEFT_OUT: Cell<Option<Barrier>> = const { Cell::new(None) };
}

/// Blocks by their first sector.
pub(super) type Blocks = BTreeMap<u64, Rc<Block>>;

/// The journal as it is used.
pub(super) struct Ring {
    /// Section that the next commit begins with, and its sequence.
    pub(super) head: u32,
    pub(super) seq: u8,
    /// Sections that may be overwritten.
    free: u32,
    /// In memory only.
    open: Blocks,
    /// Being written to the journal.
    committing: Blocks,
    /// In the journal, not in their places.
    pub(super) committed: Blocks,
    /// Something was written to the journal since it was clean.
    pub(super) used: bool,
}

/// A device of sectors with tags.
pub(super) struct Integrity<D> {
    pub(super) base: Base<D>,
    journaling: Journaling,
    pub(super) ring: RefCell<Ring>,
    turn: LocalMutex<()>,
    pub(super) blocks: RangeLock,
    pub(super) bitmap: Option<Bitmap>,
    /// Blocks whose tags say nothing.
    pub(super) stale: RefCell<Stale>,
    poisoned: Cell<bool>,
}

/// Blocks as they were read.
pub(super) struct Found {
    pub(super) data: IoBuf,
    pub(super) tags: Vec<u8>,
    /// Which of them have a tag that says nothing; empty: none.
    pub(super) stale: Vec<bool>,
}

impl<D: BlockDevice> Integrity<D> {
    pub(super) fn new(base: Base<D>, journaling: Journaling) -> Integrity<D> {
        let free = base.layout.sections;
        Integrity {
            base,
            journaling,
            ring: RefCell::new(Ring {
                head: 0,
                seq: 1,
                free,
                open: Blocks::new(),
                committing: Blocks::new(),
                committed: Blocks::new(),
                used: false,
            }),
            turn: LocalMutex::new(()),
            blocks: RangeLock::new(),
            bitmap: None,
            stale: RefCell::new(Stale::None),
            poisoned: Cell::new(false),
        }
    }

    pub(super) fn journaling(&self) -> Journaling {
        self.journaling
    }

    fn dev(&self) -> &DevId {
        &self.base.dev
    }

    fn check(&self, op: Op, range: Extent) -> Io<()> {
        match self.poisoned.get() {
            true => Err(Error::new(ErrorKind::Poisoned, op, range, self.dev())),
            false => Ok(()),
        }
    }

    /// After a failed commit or copy nobody knows what is where: no write is taken any more.
    pub(super) fn latch<T>(&self, done: Io<T>) -> Io<T> {
        if done.is_err() {
            self.poisoned.set(true);
        }
        done
    }

    pub(super) async fn barrier(&self, which: Barrier) -> Io<()> {
        #[cfg(test)]
        if LEFT_OUT.get() == Some(which) {
            return Ok(());
        }
        let flushed = self.base.below.flush().await;
        if flushed.is_err() {
            tracing::error!(dev = %self.base.dev, ?which, "a flush failed");
        }
        flushed
    }

    /// How a write is made that is a barrier by itself.
    pub(super) fn durably(&self, which: Barrier) -> Durability {
        #[cfg(test)]
        if LEFT_OUT.get() == Some(which) {
            return Durability::Cached;
        }
        let _ = which;
        Durability::Fua
    }

    /// The newest versions of the blocks of a range that are not in their places.
    fn waiting(&self, range: Extent) -> Blocks {
        let ring = self.ring.borrow();
        let bounds = range.start.0..range.end().0;
        let mut found = Blocks::new();
        for map in [&ring.committed, &ring.committing, &ring.open] {
            found.extend(map.range(bounds.clone()).map(|(at, b)| (*at, Rc::clone(b))));
        }
        found
    }

    /// Reads whole blocks and their tags.
    pub(super) async fn read(&self, at: Sector, buf: IoBuf) -> Io<Found> {
        let layout = &self.base.layout;
        let range = Extent::new(at, buf.sectors());
        let _still = self.blocks.read(range).await;
        let waiting = self.waiting(range);
        let blocks = layout.blocks(range.len);
        let (mut buf, mut tags) = match waiting.len() == blocks {
            true => (buf, vec![0; blocks * layout.tag]),
            false => self.read_places(range, buf).await?,
        };
        let mut stale = self.stale_of(range);
        for (at, block) in waiting {
            let n = layout.blocks(Sector(at) - range.start);
            if let Some(stale) = stale.get_mut(n) {
                *stale = false;
            }
            buf[n * block.data.len()..][..block.data.len()].copy_from_slice(&block.data);
            tags[n * layout.tag..][..layout.tag].copy_from_slice(&block.tag);
        }
        Ok(Found { data: buf, tags, stale })
    }

    /// For each block of a range whether its tag says nothing; empty: none of them.
    fn stale_of(&self, range: Extent) -> Vec<bool> {
        let stale = self.stale.borrow();
        if stale.is_clear_of(range) {
            return Vec::new();
        }
        let step = usize::try_from(self.base.layout.block.0).expect("at most eight");
        (range.start.0..range.end().0).step_by(step).map(|at| stale.has(Sector(at))).collect()
    }

    async fn read_places(&self, range: Extent, buf: IoBuf) -> Io<(IoBuf, Vec<u8>)> {
        let base = &self.base;
        let (mut done, mut rest, mut tags) = (None, Some(buf), Vec::new());
        for run in base.layout.pieces(range) {
            let buf = rest.take().expect("as long as the pieces");
            let (head, tail) = match run.end() == range.end() {
                true => (buf, None),
                false => {
                    let (head, tail) = buf.split_at(run.len);
                    (head, Some(tail))
                }
            };
            let (head, found) =
                join(base.read_below(base.layout.data(run.start), head), base.read_tags(run)).await;
            let head = head?;
            tags.extend(found?);
            done = Some(match done {
                None => head,
                Some(before) => IoBuf::join(before, head),
            });
            rest = tail;
        }
        Ok((done.expect("a buffer has a sector"), tags))
    }

    /// Writes whole blocks and their tags.
    pub(super) async fn write(
        &self,
        at: Sector,
        data: IoView,
        tags: &[u8],
        how: Durability,
    ) -> Io<()> {
        let range = Extent::new(at, data.sectors());
        self.check(Op::Write, range)?;
        match self.journaling {
            Journaling::Direct | Journaling::Bitmap => {
                self.write_places(range, &data, tags, how).await
            }
            Journaling::Journal => {
                self.journal(range, &data, tags).await?;
                match how {
                    Durability::Cached => Ok(()),
                    Durability::Fua => self.flush().await,
                }
            }
        }
    }

    /// To the places; the caller says when that is safe.
    async fn write_places(
        &self,
        range: Extent,
        data: &IoView,
        tags: &[u8],
        how: Durability,
    ) -> Io<()> {
        let base = &self.base;
        for run in base.layout.pieces(range) {
            let from = run.start - range.start;
            let bytes = from.byte_len()..(from + run.len).byte_len();
            let first = base.layout.blocks(from) * base.layout.tag;
            let tags = &tags[first..first + base.layout.blocks(run.len) * base.layout.tag];
            let _alone = self.blocks.write(run).await;
            self.latch(self.mark(run).await)?;
            let data = Data::Shared(data.slice(bytes));
            let at = base.layout.data(run.start);
            let (one, two) =
                join(base.write_below(at, data, how), base.write_tags(run, tags, how)).await;
            one?;
            two?;
        }
        Ok(())
    }

    /// Most blocks that may wait, given the sections that are free.
    fn room(&self, free: u32) -> usize {
        let layout = &self.base.layout;
        let entries = u64::from(free) * layout.section_entries;
        let memory = WAITING_MAX / layout.block.byte_len();
        usize::try_from(entries).unwrap_or(usize::MAX).min(memory)
    }

    /// Blocks go into memory; the journal is emptied when they have no room in it.
    async fn journal(&self, range: Extent, data: &IoView, tags: &[u8]) -> Io<()> {
        let layout = &self.base.layout;
        let len = layout.block.byte_len();
        let mut blocks = (range.start.0..)
            .step_by(usize::try_from(layout.block.0).expect("at most eight"))
            .zip(data.chunks_exact(len).zip(tags.chunks_exact(layout.tag)))
            .map(|(at, (data, tag))| Rc::new(Block { at, data: data.into(), tag: tag.into() }))
            .peekable();
        loop {
            {
                let mut ring = self.ring.borrow_mut();
                let room = self.room(ring.free);
                while let Some(block) =
                    blocks.next_if(|b| ring.open.len() < room || ring.open.contains_key(&b.at))
                {
                    ring.open.insert(block.at, block);
                }
            }
            if blocks.peek().is_none() {
                return Ok(());
            }
            let _turn = self.turn.lock().await;
            self.check(Op::Write, range)?;
            // Somebody else may have made room while we waited.
            let (open, free) = {
                let ring = self.ring.borrow();
                (ring.open.len(), ring.free)
            };
            if open >= self.room(free) {
                self.latch(self.commit().await)?;
                if self.is_half_full() {
                    self.latch(self.copy().await)?;
                }
            }
        }
    }

    fn is_half_full(&self) -> bool {
        let ring = self.ring.borrow();
        let bytes = ring.committed.len() * self.base.layout.block.byte_len();
        ring.free <= self.base.layout.sections / 2 || bytes > COMMITTED_MAX
    }

    /// Everything written before survives a crash.
    pub(super) async fn flush(&self) -> Io<()> {
        let nowhere = Extent::default();
        self.check(Op::Flush, nowhere)?;
        if self.journaling != Journaling::Journal {
            return self.latch(self.base.below.flush().await);
        }
        let _turn = self.turn.lock().await;
        self.check(Op::Flush, nowhere)?;
        self.latch(self.commit().await)?;
        if self.is_half_full() {
            self.latch(self.copy().await)?;
        }
        Ok(())
    }

    /// Blocks that wait go to the journal, durably. Under `turn`.
    async fn commit(&self) -> Io<()> {
        let base = &self.base;
        let layout = &base.layout;
        let entries = usize::try_from(layout.section_entries).expect("at most a few hundred");
        let batch: Vec<Rc<Block>> = {
            let mut ring = self.ring.borrow_mut();
            assert!(ring.committing.is_empty(), "one commit at a time");
            ring.committing = std::mem::take(&mut ring.open);
            // All at once: who writes from now on counts on what is left.
            let sections = ring.committing.len().div_ceil(entries);
            let left = usize::try_from(ring.free).ok().and_then(|free| free.checked_sub(sections));
            let left = left.expect("no more blocks wait than free sections hold");
            ring.free = u32::try_from(left).expect("less than before");
            ring.committing.values().cloned().collect()
        };
        if batch.is_empty() {
            return Ok(());
        }
        for blocks in batch.chunks(entries) {
            let (section, seq) = self.take_section();
            let mut buf = base.pool.take(layout.section).await;
            journal::encode(layout, section, seq, blocks.iter().map(|b| &**b), &mut buf);
            let at = layout.section_at(section);
            base.write_below(at, Data::Owned(buf), Durability::Cached).await?;
        }
        self.barrier(Barrier::Commit).await?;
        let mut ring = self.ring.borrow_mut();
        let batch = std::mem::take(&mut ring.committing);
        ring.committed.extend(batch);
        Ok(())
    }

    /// The section at the head of the ring, which moves on.
    fn take_section(&self) -> (u32, u8) {
        let mut ring = self.ring.borrow_mut();
        let taken = (ring.head, ring.seq);
        ring.used = true;
        ring.head += 1;
        if ring.head == self.base.layout.sections {
            ring.head = 0;
            ring.seq = journal::next(ring.seq);
        }
        taken
    }

    /// Committed blocks go to their places, durably, and the journal's sections are free. Under `turn`.
    pub(super) async fn copy(&self) -> Io<()> {
        let layout = &self.base.layout;
        let blocks: Vec<Rc<Block>> = self.ring.borrow().committed.values().cloned().collect();
        let most = layout.blocks(COPY);
        let mut rest = &blocks[..];
        while let Some(first) = rest.first() {
            let next_to = |n: usize, b: &Block| b.at == first.at + n as u64 * layout.block.0;
            let len = (1..rest.len().min(most)).find(|&n| !next_to(n, &rest[n]));
            let (run, later) = rest.split_at(len.unwrap_or(rest.len().min(most)));
            let mut buf = self.base.pool.take(layout.block * run.len() as u64).await;
            let mut tags = Vec::with_capacity(run.len() * layout.tag);
            for (block, to) in run.iter().zip(buf.chunks_exact_mut(layout.block.byte_len())) {
                to.copy_from_slice(&block.data);
                tags.extend_from_slice(&block.tag);
            }
            let range = Extent::new(Sector(first.at), buf.sectors());
            self.write_places(range, &buf.freeze(), &tags, Durability::Cached).await?;
            rest = later;
        }
        self.barrier(Barrier::Copy).await?;
        let mut ring = self.ring.borrow_mut();
        ring.committed.clear();
        ring.free = layout.sections;
        Ok(())
    }

    /// Sections without entries, durably.
    pub(super) async fn blank(&self, sections: impl IntoIterator<Item = u32>, seq: u8) -> Io<()> {
        let base = &self.base;
        for section in sections {
            let mut buf = base.pool.take(base.layout.section).await;
            journal::encode(&base.layout, section, seq, [], &mut buf);
            let at = base.layout.section_at(section);
            base.write_below(at, Data::Owned(buf), Durability::Cached).await?;
        }
        self.barrier(Barrier::Blank).await
    }

    /// Everything goes to its place, and the journal is left without entries.
    pub(super) async fn close(&self) -> Io<()> {
        self.flush().await?;
        if self.journaling != Journaling::Journal {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        self.latch(self.commit().await)?;
        self.latch(self.copy().await)?;
        let (used, head, seq) = {
            let ring = self.ring.borrow();
            (ring.used, ring.head, ring.seq)
        };
        if used {
            // First what would be replayed first: at a cut, the rest is the newest of the ring.
            self.latch(self.blank(head..self.base.layout.sections, seq).await)?;
            self.latch(self.blank(0..head, journal::next(seq)).await)?;
            let mut ring = self.ring.borrow_mut();
            ring.used = false;
            // Every section carries one more now.
            ring.seq = journal::next(seq);
        }
        Ok(())
    }
}
