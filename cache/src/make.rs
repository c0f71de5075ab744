//! The formatter: writes the superblocks of a cache device and a backing device.
//!
//! Nothing else is written: a formatted cache device has no content until its first start
//! ([`crate::recover`]) gives it a journal, a tree and a uuid table and sets SYNC. Whether a device
//! holds something worth keeping is the caller's question; this module overwrites.

use varve_block::{
    BlockDevice, BufPool, DevId, Durability, Extent, Geometry, Sector, Sectors, Zero,
};

use uuid::Uuid;

use crate::error::Corrupt;
use crate::format::superblock::{
    DATA_OFFSET_DEFAULT, NBUCKETS_MIN, SUPERBLOCK_BYTES, SUPERBLOCK_SECTOR,
};
use crate::format::{BackingSuper, CacheMode, CacheSuper, FormatBacking, FormatCache, Replacement};

/// How to format; the defaults are those of the kernel's tools.
#[derive(Clone, Debug)]
pub struct MakeOptions {
    /// Sectors per bucket, the unit of allocation: a power of two.
    pub bucket_size: u32,
    /// Sectors per block, the unit of metadata writes: 1, 2, 4 or 8. `None`: what the devices
    /// prefer, which is 4 KiB for files.
    pub block_size: Option<u32>,
    /// Sector of the backing device where the volume begins.
    pub data_offset: u64,
    /// The set that both devices belong to; random unless given.
    pub set_uuid: Option<Uuid>,
    /// The devices' own uuids, cache and backing; random unless given.
    pub device_uuids: Option<[Uuid; 2]>,
    pub mode: CacheMode,
    /// Discard buckets before they are reused.
    pub discard: bool,
    pub replacement: Replacement,
    /// At most 32 bytes.
    pub label: String,
}

impl Default for MakeOptions {
    fn default() -> MakeOptions {
        MakeOptions {
            bucket_size: 1024,
            block_size: None,
            data_offset: DATA_OFFSET_DEFAULT,
            set_uuid: None,
            device_uuids: None,
            mode: CacheMode::default(),
            discard: false,
            replacement: Replacement::default(),
            label: String::new(),
        }
    }
}

/// What was written.
#[derive(Clone, Debug)]
pub struct Made {
    pub set_uuid: Uuid,
    pub cache: Option<CacheSuper>,
    pub backing: Option<BackingSuper>,
}

#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    #[error(
        "{dev} is too small for a cache: {found} buckets of {bucket_kib} KiB, and the kernel starts \
         none with fewer than {NBUCKETS_MIN}; make it at least {need_mib} MiB, or the buckets smaller"
    )]
    TooSmall { dev: DevId, found: u64, bucket_kib: u64, need_mib: u64 },
    #[error(
        "a bucket of {bucket} sectors is a btree node with room for one set of keys only at blocks \
         of {block} sectors: take larger buckets or smaller blocks"
    )]
    OneBlockBucket { bucket: u32, block: u32 },
    #[error("{dev}: blocks of {block} sectors are smaller than the device's own of {device}")]
    BlockTooSmall { dev: DevId, block: u32, device: u64 },
    #[error("the label is {0} bytes long, 32 fit")]
    Label(usize),
    #[error("{dev} cannot be formatted like that")]
    Rejected { dev: DevId, source: Corrupt },
    #[error(transparent)]
    Device(#[from] varve_block::Error),
}

/// Formats either device or both as one set. Both superblocks are durable when this returns.
///
/// A cache device formatted with the uuid of an older set must not meet that set's journal again:
/// the first start wipes the ring.
pub async fn make<S: BlockDevice, B: BlockDevice>(
    ssd: Option<&S>,
    hdd: Option<&B>,
    options: &MakeOptions,
) -> Result<Made, MakeError> {
    let set_uuid = options.set_uuid.unwrap_or_else(Uuid::new_v4);
    let label = label(&options.label)?;
    let geometries: Vec<Geometry> =
        ssd.map(|d| d.geometry()).into_iter().chain(hdd.map(|d| d.geometry())).collect();
    let block_size = block_size(options, &geometries)?;
    // Both are made before either is written: a refusal must leave both devices as they were.
    let cache = match ssd {
        None => None,
        Some(dev) => Some(cache_super(&dev.geometry(), options, set_uuid, label, block_size)?),
    };
    let backing = match hdd {
        None => None,
        Some(dev) => Some(backing_super(&dev.geometry(), options, set_uuid, label, block_size)?),
    };
    let pool = BufPool::new(0);
    if let (Some(dev), Some(sb)) = (hdd, &backing) {
        write_head(dev, &pool, &sb.encode()).await?;
    }
    if let (Some(dev), Some(sb)) = (ssd, &cache) {
        write_head(dev, &pool, &sb.encode()).await?;
    }
    Ok(Made { set_uuid, cache, backing })
}

fn label(text: &str) -> Result<[u8; 32], MakeError> {
    let mut label = [0; 32];
    match label.get_mut(..text.len()) {
        Some(head) => head.copy_from_slice(text.as_bytes()),
        None => return Err(MakeError::Label(text.len())),
    }
    Ok(label)
}

fn block_size(options: &MakeOptions, geometries: &[Geometry]) -> Result<u32, MakeError> {
    let preferred = geometries.iter().map(|g| g.preferred.0.max(g.block.0)).max().unwrap_or(8);
    let default = u32::try_from(preferred).unwrap_or(8).next_power_of_two().min(8);
    let block = options.block_size.unwrap_or(default.min(options.bucket_size / 2).max(1));
    if let Some(g) = geometries.iter().find(|g| u64::from(block) < g.block.0) {
        return Err(MakeError::BlockTooSmall { dev: g.dev.clone(), block, device: g.block.0 });
    }
    Ok(block)
}

fn cache_super(
    geometry: &Geometry,
    options: &MakeOptions,
    set_uuid: Uuid,
    label: [u8; 32],
    block_size: u32,
) -> Result<CacheSuper, MakeError> {
    let bucket = options.bucket_size;
    let dev = || geometry.dev.clone();
    let found = geometry.len.0.checked_div(u64::from(bucket)).unwrap_or(0);
    if bucket.is_power_of_two() && found < NBUCKETS_MIN {
        return Err(MakeError::TooSmall {
            dev: dev(),
            found,
            bucket_kib: u64::from(bucket) / 2,
            need_mib: (u64::from(bucket) * NBUCKETS_MIN).div_ceil(2048),
        });
    }
    if bucket.is_power_of_two() && block_size.is_power_of_two() && bucket / block_size < 2 {
        return Err(MakeError::OneBlockBucket { bucket, block: block_size });
    }
    let format = FormatCache {
        uuid: options.device_uuids.map_or_else(Uuid::new_v4, |[cache, _]| cache),
        set_uuid,
        label,
        device_sectors: geometry.len.0,
        block_size,
        bucket_size: bucket,
        discard: options.discard,
        replacement: options.replacement,
    };
    format.superblock().map_err(|source| MakeError::Rejected { dev: dev(), source })
}

fn backing_super(
    geometry: &Geometry,
    options: &MakeOptions,
    set_uuid: Uuid,
    label: [u8; 32],
    block_size: u32,
) -> Result<BackingSuper, MakeError> {
    let format = FormatBacking {
        uuid: options.device_uuids.map_or_else(Uuid::new_v4, |[_, backing]| backing),
        set_uuid,
        label,
        device_sectors: geometry.len.0,
        block_size: u16::try_from(block_size).unwrap_or(u16::MAX),
        data_offset: options.data_offset,
        mode: options.mode,
    };
    let dev = || geometry.dev.clone();
    format.superblock().map_err(|source| MakeError::Rejected { dev: dev(), source })
}

/// Zeroes the boot area, so that no older signature survives there, then writes the superblock.
async fn write_head<D: BlockDevice>(
    dev: &D,
    pool: &BufPool,
    page: &[u8; SUPERBLOCK_BYTES],
) -> Result<(), MakeError> {
    let boot = Extent::new(Sector::ZERO, Sectors(SUPERBLOCK_SECTOR));
    dev.write_zeroes(boot, Zero::default()).await?;
    let buf = pool.take_copy(page).await;
    dev.write(Sector(SUPERBLOCK_SECTOR), buf.into(), Durability::Fua).await?;
    dev.flush().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::DeviceFacts;
    use varve_block::Sim;
    use varve_block::dev::Mem;

    fn parse(mem: &Mem) -> crate::format::Superblock {
        let mut page = vec![0; SUPERBLOCK_BYTES];
        mem.peek(SUPERBLOCK_SECTOR * 512, &mut page);
        let dev = DeviceFacts { sectors: mem.geometry().len.0, logical_block: 512 };
        crate::format::Superblock::parse(&page, dev).unwrap()
    }

    #[test]
    fn both_devices_are_formatted_as_one_set_with_the_defaults_of_the_tools() {
        Sim::new(1).run(|_| async {
            let (ssd, hdd) = (Mem::new(Sectors(513 * 1024)), Mem::new(Sectors(100_000)));
            ssd.poke(0, &[0xAA; 4096]);
            let made = make(Some(&ssd), Some(&hdd), &MakeOptions::default()).await.unwrap();
            let crate::format::Superblock::Cache(cache) = parse(&ssd) else { panic!("a cache") };
            let crate::format::Superblock::Backing(backing) = parse(&hdd) else { panic!("a bdev") };
            assert_eq!(Some(&cache), made.cache.as_ref());
            assert_eq!((cache.set_uuid, backing.set_uuid), (made.set_uuid, made.set_uuid));
            assert_eq!((cache.layout.nbuckets, cache.layout.bucket_size), (513, 1024));
            assert_eq!((cache.layout.block_size, backing.data_offset), (8, 16));
            assert!(!cache.sync());
            assert!(ssd.to_vec()[..4096].iter().all(|&b| b == 0), "the boot area is wiped");
        });
    }

    #[test]
    fn a_refused_pair_is_left_alone() {
        Sim::new(1).run(|_| async {
            let (ssd, hdd) = (Mem::new(Sectors(512 * 1024)), Mem::new(Sectors(100_000)));
            let error = make(Some(&ssd), Some(&hdd), &MakeOptions::default()).await.unwrap_err();
            assert!(error.to_string().contains("at least 257 MiB"), "{error}");
            assert!(hdd.to_vec().iter().all(|&b| b == 0));
            let tiny =
                MakeOptions { bucket_size: 8, block_size: Some(8), ..MakeOptions::default() };
            let error = make(Some(&ssd), Some(&hdd), &tiny).await.unwrap_err();
            assert!(matches!(error, MakeError::OneBlockBucket { .. }), "{error}");
            let odd = MakeOptions { bucket_size: 24, ..MakeOptions::default() };
            assert!(matches!(
                make(Some(&ssd), Some(&hdd), &odd).await.unwrap_err(),
                MakeError::Rejected { .. }
            ));
        });
    }
}
