//! Buckets, blocks, and the sizes that follow from them.

use std::fmt;

/// Number of a bucket: bucket `b` starts at sector `b * bucket_size` of the cache device.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Bucket(pub u64);

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bucket {}", self.0)
    }
}

/// The page size of the kernel that wrote the set: some *layout* sizes hang on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageModel {
    pub page_sectors: u32,
    /// Largest allocation of that kernel, in pages.
    pub largest_pages: u32,
}

impl Default for PageModel {
    /// 4 KiB pages, as every x86-64 kernel.
    fn default() -> PageModel {
        PageModel { page_sectors: 8, largest_pages: 1024 }
    }
}

impl PageModel {
    /// 64 KiB pages.
    pub const LARGE: PageModel = PageModel { page_sectors: 128, largest_pages: 1024 };

    fn meta_sectors(self, bucket_size: u32) -> u32 {
        let page = self.page_sectors.max(1);
        // 32768 is the largest power of two that the 16 bits of KEY_SIZE can hold.
        let pages = (bucket_size.checked_div(page).unwrap_or(0))
            .min(32_768_u32.checked_div(page).unwrap_or(0))
            .min(self.largest_pages);
        pages.saturating_mul(page)
    }
}

/// How a cache device is cut up. Every field has been checked by the superblock's parser:
/// sizes are powers of two, and no product of them overflows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Sectors per block: metadata is written in blocks.
    pub block_size: u32,
    /// Sectors per bucket.
    pub bucket_size: u32,
    pub nbuckets: u64,
    /// Buckets below this one belong to nobody (superblock, unused).
    pub first_bucket: u64,
    pub pages: PageModel,
}

impl Layout {
    /// Bytes per block.
    pub fn block_bytes(&self) -> usize {
        usize::try_from(self.block_size).unwrap_or(usize::MAX).saturating_mul(super::SECTOR_BYTES)
    }

    /// First sector of a bucket.
    pub fn bucket_start(&self, bucket: Bucket) -> u64 {
        bucket.0.saturating_mul(u64::from(self.bucket_size))
    }

    /// The bucket a sector of the cache device lies in.
    pub fn bucket_of(&self, sector: u64) -> Bucket {
        Bucket(sector.checked_div(u64::from(self.bucket_size)).unwrap_or(0))
    }

    /// Position of a sector inside its bucket.
    pub fn remainder(&self, sector: u64) -> u64 {
        sector.checked_rem(u64::from(self.bucket_size)).unwrap_or(0)
    }

    /// Whether `sectors` sectors at `sector` stay inside one bucket that may hold something.
    pub fn in_bounds(&self, sector: u64, sectors: u32) -> bool {
        let bucket = self.bucket_of(sector);
        self.holds(bucket)
            && self.remainder(sector).saturating_add(u64::from(sectors))
                <= u64::from(self.bucket_size)
    }

    /// Whether the bucket exists and lies behind the superblock.
    pub fn holds(&self, bucket: Bucket) -> bool {
        self.first_bucket <= bucket.0 && bucket.0 < self.nbuckets
    }

    /// Sectors of the uuid table and of each prio set.
    pub fn meta_sectors(&self) -> u32 {
        self.pages.meta_sectors(self.bucket_size)
    }

    /// Sectors of metadata written by a kernel with 64 KiB pages: the second guess of a reader.
    pub fn meta_sectors_large_pages(&self) -> u32 {
        PageModel::LARGE.meta_sectors(self.bucket_size)
    }

    /// Sectors of a new btree node. Nodes found on disk carry their own size.
    pub fn node_sectors(&self) -> u32 {
        let page = self.pages.page_sectors.max(1);
        let meta = self.meta_sectors();
        let pages = meta.checked_div(page).unwrap_or(0);
        if pages <= 64 { meta } else { (pages >> 2).max(64).saturating_mul(page) }
    }

    /// Slots of the uuid table.
    pub fn nr_uuids(&self) -> usize {
        meta_bytes(self.meta_sectors()) >> 7
    }

    /// Buckets described by one prio set of `meta_sectors` sectors.
    pub fn prio_per_set(meta_sectors: u32) -> usize {
        meta_bytes(meta_sectors).saturating_sub(super::prio::HEADER).checked_div(3).unwrap_or(0)
    }

    /// Prio sets in a chain.
    pub fn prio_sets(&self) -> u64 {
        let per_set = u64::try_from(Self::prio_per_set(self.meta_sectors())).unwrap_or(u64::MAX);
        self.nbuckets.div_ceil(per_set.max(1))
    }

    /// Journal buckets that the first start of the set takes.
    pub fn njournal(&self) -> u16 {
        u16::try_from((self.nbuckets >> 7).clamp(2, 256)).unwrap_or(256)
    }

    /// All sectors of all buckets: the device must be at least that long.
    pub fn sectors(&self) -> u64 {
        self.nbuckets.saturating_mul(u64::from(self.bucket_size))
    }
}

fn meta_bytes(sectors: u32) -> usize {
    usize::try_from(sectors).unwrap_or(usize::MAX).saturating_mul(super::SECTOR_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(bucket_size: u32) -> Layout {
        Layout {
            block_size: 8,
            bucket_size,
            nbuckets: 100_000,
            first_bucket: 1,
            pages: PageModel::default(),
        }
    }

    #[test]
    fn derived_sizes_are_those_of_the_kernel() {
        // bucket KiB, meta, node, uuids, prio per set
        let table = [
            (16, 32, 32, 128, 5_448),
            (128, 256, 256, 1_024, 43_677),
            (512, 1_024, 512, 4_096, 174_749),
            (1_024, 2_048, 512, 8_192, 349_512),
            (2_048, 4_096, 1_024, 16_384, 699_037),
            (4_096, 8_192, 2_048, 32_768, 1_398_088),
            (32_768, 8_192, 2_048, 32_768, 1_398_088),
        ];
        for (kib, meta, node, uuids, prios) in table {
            let layout = layout(kib * 2);
            assert_eq!(layout.meta_sectors(), meta, "{kib}");
            assert_eq!(layout.node_sectors(), node, "{kib}");
            assert_eq!(layout.nr_uuids(), uuids, "{kib}");
            assert_eq!(Layout::prio_per_set(meta), prios, "{kib}");
        }
    }

    #[test]
    fn an_extent_may_touch_the_end_of_its_bucket_but_not_cross_it() {
        let layout = layout(128);
        assert!(layout.in_bounds(128, 128));
        assert!(!layout.in_bounds(129, 128));
        assert!(!layout.in_bounds(127, 1), "below first_bucket");
        assert!(layout.in_bounds(99_999 * 128 + 127, 1));
        assert!(!layout.in_bounds(100_000 * 128, 1));
        assert!(!layout.in_bounds(u64::MAX, u32::MAX));
    }

    #[test]
    fn the_journal_takes_one_bucket_in_128_between_2_and_256() {
        for (nbuckets, want) in [(513, 4), (1, 2), (128, 2), (12_800, 100), (10_000_000, 256)] {
            assert_eq!(Layout { nbuckets, ..layout(1024) }.njournal(), want);
        }
    }
}
