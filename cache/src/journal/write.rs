//! Writing entries.

use std::rc::Rc;

use varve_block::{BlockDevice, ErrorKind, Op, Result};

use super::ring::Place;
use crate::error::{Corrupt, Place as Where};
use crate::format::journal::{AtBlock, JSET_VERSION, jset_bytes};
use crate::format::{Bucket, JournalEntry, Key};
use crate::set::Set;

/// What an entry names, taken when it is made.
struct Head {
    uuid_bucket: Key,
    btree_root: Key,
    btree_level: u8,
    prio_bucket: Bucket,
}

/// An entry on its way.
struct Job {
    seq: u64,
    last_seq: u64,
    stamp: u64,
    sector: u64,
    bytes: Vec<u8>,
}

impl<S: BlockDevice> Set<S> {
    /// Returns once entry `seq` and all before it are durable.
    pub(crate) async fn commit(self: &Rc<Self>, seq: u64) -> Result<()> {
        while self.journal.durable() < seq {
            let _turn = self.journal.turn.acquire(1).await;
            if self.journal.durable() < seq {
                self.write_entry().await?;
            }
        }
        Ok(())
    }

    /// Returns once every key inserted so far is durable (W2).
    pub(crate) async fn commit_all(self: &Rc<Self>) -> Result<()> {
        self.commit(self.journal.newest()).await
    }

    /// Returns once an entry is durable that names the roots as they are now (W7, W8, W10).
    pub(crate) async fn commit_roots(self: &Rc<Self>) -> Result<()> {
        self.commit(self.journal.open_seq()).await
    }

    /// Makes room for a key in the open entry.
    pub(crate) async fn journal_room(self: &Rc<Self>) -> Result<()> {
        while !self.journal.has_room() {
            self.commit(self.journal.open_seq()).await?;
            if !self.journal.has_room() {
                // Too many entries are needed: their leaves must go out.
                self.release_oldest().await?;
            }
        }
        Ok(())
    }

    /// Writes the open entry. The caller has the turn.
    async fn write_entry(self: &Rc<Self>) -> Result<()> {
        let job = loop {
            self.writable()?;
            match self.begin_entry() {
                Ok(Some(job)) => break job,
                Ok(None) => self.release_oldest().await?,
                Err(corrupt) => return Err(self.broken(corrupt)),
            }
        };
        // W5. What the entry names was written with FUA; what its keys name may still be in flight.
        self.harden(job.stamp).await?;
        self.write_meta(job.sector, &job.bytes).await?;
        let mut state = self.journal.state.borrow_mut();
        assert!(state.durable + 1 == job.seq, "entries are written in order");
        state.durable = job.seq;
        state.durable_last = job.last_seq;
        drop(state);
        self.journal.changed.notify_all();
        Ok(())
    }

    /// Closes the open entry and opens the next one. None: the ring has no place yet.
    fn begin_entry(&self) -> Result<Option<Job>, Corrupt> {
        let head = self.head();
        let mut state = self.journal.state.borrow_mut();
        let last_seq = state.last_seq();
        let blocks = jset_bytes(state.words).div_ceil(state.block_bytes);
        let Some(place) = state.ring.place(blocks, last_seq, state.durable_last) else {
            return Ok(None);
        };
        let entry = JournalEntry {
            seq: state.seq,
            last_seq,
            version: JSET_VERSION,
            uuid_bucket: head.uuid_bucket,
            btree_root: head.btree_root,
            btree_level: head.btree_level,
            prio_bucket: head.prio_bucket,
            keys: std::mem::take(&mut state.keys),
        };
        let bytes = entry.encode(self.magic, &self.layout);
        let sector = state.ring.sector(place, &self.layout);
        self.verify_entry(&entry, &bytes, place)?;
        state.ring.take(place, blocks, entry.seq);
        state.words = 0;
        let stamp = std::mem::take(&mut state.stamp);
        state.seq += 1;
        state.pins.push_back(0);
        Ok(Some(Job { seq: entry.seq, last_seq, stamp, sector, bytes }))
    }

    /// O10: what a reader will make of the bytes.
    fn verify_entry(
        &self,
        entry: &JournalEntry,
        bytes: &[u8],
        place: Place,
    ) -> Result<(), Corrupt> {
        entry.check(&self.layout)?;
        match JournalEntry::parse(bytes, self.magic, &self.layout, entry.place()) {
            AtBlock::Entry(again, _) if *again == *entry => Ok(()),
            AtBlock::Broken(corrupt) => Err(corrupt),
            _ => {
                let at = Where { seq: Some(entry.seq), ..Where::default() };
                let found = format!("other bytes for {place:?}");
                Err(Corrupt::online(10, "journal entry", at, "bytes", found, "the entry"))
            }
        }
    }

    fn head(&self) -> Head {
        let roots = self.roots.borrow();
        let root = self.nodes.root();
        Head {
            uuid_bucket: roots.uuid_bucket,
            btree_root: root.key,
            btree_level: root.level,
            prio_bucket: roots.prio_chain.first().copied().unwrap_or(Bucket(0)),
        }
    }

    /// Writes leaves that pin the oldest entry, so that it is not needed any more.
    pub(crate) async fn release_oldest(self: &Rc<Self>) -> Result<()> {
        self.writable()?;
        let oldest = self.journal.last_seq();
        let leaves = self.nodes.pinning(oldest);
        if !leaves.is_empty() {
            let writes = leaves.iter().map(|leaf| self.write_node(leaf));
            varve_block::sync::try_join_all(writes).await?;
            return Ok(());
        }
        if self.nodes.writing_pinned(oldest) {
            self.journal.changed.notified().await;
            return Ok(());
        }
        // Only recovery pins entries without a leaf, while it replays them.
        let e = self.error(ErrorKind::NoSpace, Op::Write);
        Err(e
            .with(format!("the journal is full of entries being replayed, the oldest is {oldest}")))
    }
}
