//! Putting a cache device and a backing device together: may they, and what that writes.

use std::rc::Rc;

use uuid::Uuid;
use varve_block::{BlockDevice, BufPool, DevId, Rt, Task};

use crate::attach::Membership;
use crate::error::LoadError;
use crate::format::{BackingState, BackingSuper, CacheSuper, Superblock, UuidTable};
use crate::intent::Owner;
use crate::load::Loader;
use crate::open::{OpenError, OpenOptions};
use crate::recover::open_set;
use crate::set::Set;
use crate::volume::Volume;

/// A volume and what works for it in the background.
pub(crate) struct Registered<S, B> {
    pub volume: Rc<Volume<S, B>>,
    pub tasks: Vec<Task<()>>,
}

/// Who wants to go together.
struct Pair {
    ssd: DevId,
    hdd: DevId,
    cache: CacheSuper,
    backing: BackingSuper,
}

/// Opens both devices. Everything that may refuse them comes before the first write.
pub(crate) async fn register<S: BlockDevice, B: BlockDevice>(
    rt: &Rt,
    ssd: S,
    hdd: B,
    options: &OpenOptions,
) -> Result<Registered<S, B>, OpenError> {
    let pool = BufPool::new(0);
    let pair = Pair {
        ssd: ssd.geometry().dev,
        hdd: hdd.geometry().dev,
        backing: backing_super(&hdd, &pool).await?,
        cache: cache_super(&ssd, &pool).await?,
    };
    pair.check(options, &hdd)?;
    let set =
        open_set(rt, ssd, pair.cache.clone(), options, |table| pair.check_slot(table)).await?;
    let tasks = if options.background { set.start(options.journal_delay) } else { Vec::new() };
    set.distrust(Owner::of(&pair.cache)).await?;
    // Only now: marks are void once the superblock has been counted up.
    let now = set.unix_time();
    set.update_super(|sb| sb.last_mount = now).await?;
    let (sb, inode) = pair.take_slot(&set).await?;
    let changed = sb != pair.backing;
    let volume = Volume::new(set, hdd, pair.backing, inode, options);
    let mode = options.mode.unwrap_or_else(|| volume.mode());
    // Dirty keys count, not what the superblock says of them: a mark that got lost in a power cut
    // must not make us call the volume clean.
    let dirty = volume.dirty_sectors() > 0;
    if changed || mode != volume.mode() || (dirty && sb.state() != BackingState::Dirty) {
        volume
            .update_super(|now| {
                now.set_uuid = sb.set_uuid;
                now.last_mount = u32::try_from(rt.unix_time()).unwrap_or(u32::MAX);
                now.set_state(if dirty { BackingState::Dirty } else { sb.state() });
                now.set_mode(mode);
            })
            .await?;
    }
    let mut tasks = tasks;
    if options.background {
        tasks.push(rt.spawn(Rc::clone(&volume).writeback_task()));
        tasks.push(rt.spawn(Rc::clone(&volume).intent_task()));
    }
    Ok(Registered { volume, tasks })
}

impl Pair {
    /// Whether the two may be opened together.
    fn check<B: BlockDevice>(&self, options: &OpenOptions, hdd: &B) -> Result<(), OpenError> {
        let (cache, backing) = (&self.cache, &self.backing);
        let attached = matches!(backing.state(), BackingState::Clean | BackingState::Dirty);
        if backing.set_uuid != cache.set_uuid && (attached || !options.attach) {
            return Err(OpenError::OtherSet {
                hdd: self.hdd.clone(),
                hdd_set: backing.set_uuid,
                ssd: self.ssd.clone(),
                ssd_set: cache.set_uuid,
            });
        }
        if backing.state() == BackingState::Dirty && !cache.sync() {
            return Err(self.dirty_elsewhere("it was formatted since"));
        }
        if u32::from(backing.block_size) < cache.layout.block_size {
            return Err(OpenError::BlockSize {
                hdd: self.hdd.clone(),
                hdd_block: backing.block_size,
                set_block: cache.layout.block_size,
            });
        }
        let block = hdd.geometry().block.0.max(u64::from(backing.block_size));
        if !backing.data_offset.is_multiple_of(block) {
            return Err(OpenError::DataOffset {
                hdd: self.hdd.clone(),
                data_offset: backing.data_offset,
                block,
            });
        }
        Ok(())
    }

    /// Whether the set knows the volume, or has room for it.
    fn check_slot(&self, table: &UuidTable) -> Result<(), OpenError> {
        match Membership::of(&self.backing, table) {
            Membership::Lost => Err(self.dirty_elsewhere("it has no slot for this volume")),
            Membership::Newcomer if table.first_free().is_none() => Err(self.no_slot(table)),
            _ => Ok(()),
        }
    }

    /// The volume's slot, a new one if it has none, and the superblock it is to have.
    async fn take_slot<S: BlockDevice>(
        &self,
        set: &Rc<Set<S>>,
    ) -> Result<(BackingSuper, u32), OpenError> {
        let mut sb = self.backing.clone();
        let membership = Membership::of(&sb, &set.uuids.borrow());
        let inode = match membership {
            Membership::Member(inode) => inode,
            Membership::Newcomer => {
                let slot = set.new_slot(sb.uuid, sb.label).await?;
                let inode = slot.ok_or_else(|| self.no_slot(&set.uuids.borrow()))?;
                sb.set_uuid = set.uuid;
                sb.set_state(BackingState::Clean);
                tracing::info!(dev = %self.hdd, set = %set.uuid, inode, "attached");
                inode
            }
            Membership::Lost => return Err(self.dirty_elsewhere("it has no slot for this volume")),
        };
        Ok((sb, inode))
    }

    fn no_slot(&self, table: &UuidTable) -> OpenError {
        let (hdd, set) = (self.hdd.clone(), self.cache.set_uuid);
        OpenError::NoSlot { hdd, set, slots: table.slots.len() }
    }

    fn dirty_elsewhere(&self, why: &'static str) -> OpenError {
        let (hdd, ssd) = (self.hdd.clone(), self.ssd.clone());
        OpenError::DirtyElsewhere { hdd, ssd, set: self.backing.set_uuid, why }
    }
}

/// The superblock of a backing device.
pub(crate) async fn backing_super<B: BlockDevice>(
    hdd: &B,
    pool: &BufPool,
) -> Result<BackingSuper, OpenError> {
    let loader = Loader::new(hdd, pool);
    match superblock(&loader).await? {
        Superblock::Backing(sb) => Ok(sb),
        Superblock::Cache(_) => Err(wrong_role(loader.dev(), "cache", "backing")),
    }
}

async fn cache_super<S: BlockDevice>(ssd: &S, pool: &BufPool) -> Result<CacheSuper, OpenError> {
    let loader = Loader::new(ssd, pool);
    match superblock(&loader).await? {
        Superblock::Cache(sb) => Ok(sb),
        Superblock::Backing(_) => Err(wrong_role(loader.dev(), "backing", "cache")),
    }
}

fn wrong_role(dev: DevId, found: &'static str, wanted: &'static str) -> OpenError {
    OpenError::WrongRole { dev, found, wanted }
}

async fn superblock<D: BlockDevice>(loader: &Loader<'_, D>) -> Result<Superblock, OpenError> {
    loader.superblock().await.map_err(|e| match e {
        LoadError::Device(e) => OpenError::Device(e),
        LoadError::Corrupt(source) => OpenError::Superblock { dev: loader.dev(), source },
    })
}

impl<S: BlockDevice, B: BlockDevice> Volume<S, B> {
    /// Writes everything back and leaves the set.
    ///
    /// The superblock says "no set", durably, before the first write goes straight to the backing
    /// device; a crash in between would otherwise bring the set back with what it held before.
    pub(crate) async fn detach(self: &Rc<Self>) -> varve_block::Result<()> {
        if self.uncached.get() {
            return Ok(());
        }
        self.detaching.set(true);
        if let Err(e) = self.write_back_all().await {
            self.detaching.set(false);
            return Err(e);
        }
        self.update_super(|sb| {
            sb.set_uuid = Uuid::nil();
            sb.set_state(BackingState::None);
        })
        .await?;
        self.uncached.set(true);
        self.wake.notify_one();
        self.set.drop_slot(self.superblock().uuid).await
    }

    /// Ends everything in order.
    pub(crate) async fn stop(self: &Rc<Self>, tasks: Vec<Task<()>>) -> varve_block::Result<()> {
        self.stopped.set(true);
        self.quiet().await;
        self.set.stop_tasks();
        self.wake.notify_one();
        for task in tasks {
            task.await;
        }
        if self.set.health.failed().is_some() {
            return self.hdd.flush().await;
        }
        self.settle_clean().await?;
        self.set.write_everything().await?;
        self.tidy_intents(true).await
    }
}
