//! Volumes and cache sets: the uuid table, attaching, detaching.
//!
//! A slot of the table is a volume's number in the index. It is durable before the volume's
//! superblock says that it belongs to the set (W10), or a crash in between could leave a volume that
//! is dirty in a set that does not know it.

use std::rc::Rc;

use uuid::Uuid;
use varve_block::{BlockDevice, Result};

use crate::alloc::Class;
use crate::format::{BackingState, BackingSuper, Bucket, Key, Pos, Ptr, UuidEntry, UuidTable};
use crate::set::Set;

/// What a volume's superblock and the table say together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Membership {
    /// The slot is the volume's; the index has its data.
    Member(u32),
    /// The volume may take a new slot. An older one of it is worth nothing.
    Newcomer,
    /// The superblock says dirty, and no slot is the volume's.
    Lost,
}

impl Membership {
    pub(crate) fn of(sb: &BackingSuper, table: &UuidTable) -> Membership {
        let slot = table.find(sb.uuid).map(|(inode, _)| inode);
        match (sb.state(), slot) {
            (BackingState::Clean | BackingState::Dirty, Some(inode)) => Membership::Member(inode),
            (BackingState::Dirty, None) => Membership::Lost,
            _ => Membership::Newcomer,
        }
    }
}

impl<S: BlockDevice> Set<S> {
    /// A bucket for metadata while nothing else runs.
    pub(crate) fn take_bucket(self: &Rc<Self>) -> Result<Bucket> {
        let bucket = self.try_grant(1, Class::Prio).and_then(|mut grant| grant.take());
        bucket.ok_or_else(|| {
            let e = self.error(varve_block::ErrorKind::NoSpace, varve_block::Op::Write);
            e.with("no bucket is free")
        })
    }

    /// Writes the table as it is in memory into `bucket`; returns the key of where it was before.
    async fn write_table(&self, bucket: Bucket, table: &UuidTable) -> Result<Key> {
        let sectors = self.layout.meta_sectors();
        let start = self.layout.bucket_start(bucket);
        let len = usize::try_from(sectors).unwrap_or(0) * crate::format::SECTOR_BYTES;
        self.write_meta(start, &table.encode(len)).await?;
        let ptr = Ptr::new(start, self.buckets.borrow().current(bucket));
        let key = Key::node(Pos::ZERO, sectors, ptr);
        Ok(std::mem::replace(&mut self.roots.borrow_mut().uuid_bucket, key))
    }

    /// The first table of a set.
    pub(crate) async fn write_uuid_table(self: &Rc<Self>) -> Result<()> {
        let table = self.uuids.borrow().clone();
        let bucket = self.take_bucket()?;
        self.write_table(bucket, &table).await.map(drop)
    }

    /// Changes the table; the change is durable when this returns (W10). The bucket of the old table
    /// is kept until then.
    pub(crate) async fn update_uuids(
        self: &Rc<Self>,
        change: impl FnOnce(&mut UuidTable),
    ) -> Result<()> {
        let mut table = self.uuids.borrow().clone();
        change(&mut table);
        let mut grant = self.grant(1, Class::Gc).await?;
        let bucket = grant.take().expect("one was granted");
        let old = self.write_table(bucket, &table).await?;
        self.commit_roots().await?;
        *self.uuids.borrow_mut() = table;
        if let Some(ptr) = old.ptr() {
            self.release(self.layout.bucket_of(ptr.offset()));
        }
        Ok(())
    }

    /// Gives a volume a slot of its own, and takes an older one of it away. None: all slots were used.
    pub(crate) async fn new_slot(
        self: &Rc<Self>,
        volume: Uuid,
        label: [u8; 32],
    ) -> Result<Option<u32>> {
        let now = self.unix_time();
        let Some(inode) = self.uuids.borrow().first_free() else { return Ok(None) };
        self.update_uuids(|table| {
            invalidate(table, volume, now);
            if let Some(slot) = usize::try_from(inode).ok().and_then(|i| table.slots.get_mut(i)) {
                *slot = UuidEntry {
                    uuid: volume,
                    label,
                    first_reg: now,
                    last_reg: now,
                    ..UuidEntry::default()
                };
            }
        })
        .await?;
        Ok(Some(inode))
    }

    /// Takes a volume's slot away. It is never used again: keys of it may still be in the tree.
    pub(crate) async fn drop_slot(self: &Rc<Self>, volume: Uuid) -> Result<()> {
        let now = self.unix_time();
        if self.uuids.borrow().find(volume).is_none() {
            return Ok(());
        }
        self.update_uuids(|table| invalidate(table, volume, now)).await
    }
}

fn invalidate(table: &mut UuidTable, volume: Uuid, now: u32) {
    for slot in table.slots.iter_mut().filter(|slot| slot.in_use() && slot.uuid == volume) {
        slot.uuid = UuidEntry::INVALID;
        slot.invalidated = now.max(1);
    }
}
