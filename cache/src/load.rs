//! Reading the metadata of a set from its devices: superblocks, prio chain, uuid table, nodes.
//!
//! The journal is in [`ring`](crate::ring), the tree in [`walk`](crate::walk). Nothing here writes,
//! and no length or place that was read from disk is used before it has been checked.

use std::collections::BTreeSet;

use varve_block::{BlockDevice, BufPool, DevId, Sector, Sectors};

use crate::error::{Corrupt, LoadError, Place};
use crate::format::superblock::{SUPERBLOCK_BYTES, SUPERBLOCK_SECTOR};
use crate::format::{
    BackingSuper, Bucket, CacheSuper, DeviceFacts, JournalEntry, Layout, NodeFrame, PageModel,
    Prio, PrioSet, SECTOR_BYTES, SetMagic, Superblock, UuidTable,
};

/// Reads metadata of one device. Its buffers come from a pool of its own or of its owner's.
pub(crate) struct Loader<'a, D> {
    dev: &'a D,
    pool: &'a BufPool,
}

impl<'a, D: BlockDevice> Loader<'a, D> {
    pub(crate) fn new(dev: &'a D, pool: &'a BufPool) -> Loader<'a, D> {
        Loader { dev, pool }
    }

    pub(crate) fn dev(&self) -> DevId {
        self.dev.geometry().dev
    }

    /// What the device says of itself.
    ///
    /// The block that matters is the medium's: the device of a file may ask for larger requests than
    /// the file's own blocks.
    pub(crate) fn facts(&self) -> DeviceFacts {
        let geometry = self.dev.geometry();
        DeviceFacts {
            sectors: geometry.len.0,
            logical_block: u32::try_from(geometry.block.bytes()).unwrap_or(u32::MAX),
        }
    }

    /// `sectors` sectors as bytes, in as many requests as the device wants.
    pub(crate) async fn read(&self, at: u64, sectors: u64) -> varve_block::Result<Vec<u8>> {
        let largest = self.dev.geometry().max_request.0.max(1);
        let len = usize::try_from(sectors).unwrap_or(usize::MAX).saturating_mul(SECTOR_BYTES);
        let mut bytes = Vec::with_capacity(len);
        let mut done = 0;
        while done < sectors {
            let part = Sectors(largest.min(sectors - done));
            let buf = self.pool.take(part).await;
            let buf = self.dev.read(Sector(at + done), buf).await?;
            bytes.extend_from_slice(&buf);
            done += part.0;
        }
        Ok(bytes)
    }

    /// The superblock, whichever kind of device this is.
    pub(crate) async fn superblock(&self) -> Result<Superblock, LoadError> {
        let page = self.superblock_page().await?;
        Ok(Superblock::parse(&page, self.facts())?)
    }

    pub(crate) async fn superblock_page(&self) -> varve_block::Result<Vec<u8>> {
        let sectors = (SUPERBLOCK_BYTES / SECTOR_BYTES) as u64;
        self.read(SUPERBLOCK_SECTOR, sectors).await
    }

    pub(crate) async fn cache_super(&self) -> Result<CacheSuper, LoadError> {
        let page = self.superblock_page().await?;
        Ok(CacheSuper::parse(&page, self.facts())?)
    }

    pub(crate) async fn backing_super(&self) -> Result<BackingSuper, LoadError> {
        let page = self.superblock_page().await?;
        Ok(BackingSuper::parse(&page, self.facts())?)
    }

    /// One set of the prio chain.
    async fn prio_set(
        &self,
        layout: &Layout,
        magic: SetMagic,
        bucket: Bucket,
    ) -> Result<PrioSet, LoadError> {
        let at = layout.bucket_start(bucket);
        let bytes = self.read(at, layout.meta_sectors().into()).await?;
        Ok(PrioSet::parse(&bytes, magic, bucket)?)
    }

    /// The prio chain from `head` on (23).
    pub(crate) async fn prios(
        &self,
        layout: &Layout,
        magic: SetMagic,
        head: Bucket,
    ) -> Result<PrioChain, LoadError> {
        let first = self.prio_chain(layout, magic, head).await;
        // A kernel with larger pages cuts the table differently; only a wrong sum tells.
        let large = Layout { pages: PageModel::LARGE, ..*layout };
        match first {
            Err(LoadError::Corrupt(_)) if large.meta_sectors() != layout.meta_sectors() => {
                match self.prio_chain(&large, magic, head).await {
                    Ok(chain) => Ok(chain),
                    Err(_) => first,
                }
            }
            first => first,
        }
    }

    async fn prio_chain(
        &self,
        layout: &Layout,
        magic: SetMagic,
        head: Bucket,
    ) -> Result<PrioChain, LoadError> {
        let mut chain =
            PrioChain { buckets: Vec::new(), seqs: Vec::new(), prios: Vec::new(), layout: *layout };
        let mut seen = BTreeSet::new();
        let mut next = head;
        let wrong = |bucket: Bucket, field, found: &dyn std::fmt::Display, expected: &str| {
            Corrupt::row(23, "prio set", Place::bucket(bucket), field, found, expected)
        };
        for _ in 0..layout.prio_sets() {
            if !layout.holds(next) {
                return Err(wrong(next, "next_bucket", &next, "inside the device").into());
            }
            if !seen.insert(next) {
                return Err(wrong(next, "next_bucket", &next, "a bucket only once").into());
            }
            let set = self.prio_set(layout, magic, next).await?;
            chain.buckets.push(next);
            chain.seqs.push((set.seq, set.version));
            chain.prios.extend(set.entries);
            next = set.next;
        }
        chain.prios.truncate(usize::try_from(layout.nbuckets).unwrap_or(usize::MAX));
        Ok(chain)
    }

    /// The uuid table that `entry` names.
    pub(crate) async fn uuids(&self, entry: &JournalEntry) -> Result<UuidTable, LoadError> {
        let key = &entry.uuid_bucket;
        let bytes = self.read(key.pointer().offset(), key.size().into()).await?;
        Ok(UuidTable::parse(&bytes, entry.version))
    }

    /// The bytes of a node.
    pub(crate) async fn node_bytes(&self, frame: &NodeFrame) -> varve_block::Result<Vec<u8>> {
        self.read(frame.sector, frame.key.size().into()).await
    }
}

/// What the prio chain says.
#[derive(Clone, Debug)]
pub(crate) struct PrioChain {
    /// The buckets it lies in, head first.
    pub buckets: Vec<Bucket>,
    /// (seq, version) of each.
    pub seqs: Vec<(u64, u32)>,
    /// One for every bucket of the device.
    pub prios: Vec<Prio>,
    /// The layout under which it was readable: its page model may be the other one.
    pub layout: Layout,
}
