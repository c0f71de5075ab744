//! A small cache set built in memory, field by field, for tests of readers and checkers: every
//! structure can be changed before it is sealed, and any byte after.
//!
//! ```text
//! bucket (8 sectors)  3..19 journal | 20 21 prio | 22 uuids | 23 root, 24 25 leaves | 100.. data
//! inode 0: the backing device, inode 1: a flash-only volume
//! ```

use uuid::Uuid;
use varve_block::dev::Mem;
use varve_block::{Sectors, Sim};

use crate::format::{
    BackingState, BackingSuper, BsetWriter, Bucket, CacheMode, CacheSuper, FormatBacking,
    FormatCache, JournalEntry, Key, Layout, NodeFrame, Pos, Prio, PrioSet, Ptr, Replacement,
    SetMagic, UuidEntry, UuidTable,
};

pub(crate) const NBUCKETS: u64 = 2048;
pub(crate) const BUCKET: u64 = 8;
pub(crate) const HDD_SECTORS: u64 = 1024;
const ROOT: u64 = 23;
const PRIO: u64 = 20;
const UUIDS: u64 = 22;

/// A node and its sets as they will stand on disk.
#[derive(Clone)]
pub(crate) struct TestNode {
    pub key: Key,
    pub level: u8,
    pub sets: Vec<Vec<Key>>,
}

#[derive(Clone)]
pub(crate) struct TestSet {
    pub sb: CacheSuper,
    pub backing: BackingSuper,
    /// Ring bucket and block.
    pub entries: Vec<(u64, u64, JournalEntry)>,
    pub prios: Vec<PrioSet>,
    pub prio_buckets: Vec<Bucket>,
    pub uuids: UuidTable,
    /// Root first.
    pub nodes: Vec<TestNode>,
}

/// A pointer to the start of `bucket`, generation 1 as everything here.
pub(crate) fn at(bucket: u64) -> Ptr {
    Ptr::new(bucket * BUCKET, 1)
}

pub(crate) fn node_key(bound: Pos, bucket: u64) -> Key {
    Key::node(bound, 8, at(bucket))
}

/// An extent of inode 0 in the first sectors of a data bucket.
pub(crate) fn extent(start: u64, end: u64, dirty: bool, bucket: u64) -> Key {
    Key::extent(0, start, end, dirty, at(bucket))
}

impl TestSet {
    /// Two levels; dirty and clean extents in both leaves, sets that override each other, a freed
    /// node whose generation only the root knows, three journal entries of which two count.
    pub(crate) fn new() -> TestSet {
        let mut sb = cache_super();
        sb.version = 3;
        sb.set_sync(true);
        sb.seq = 4;
        sb.journal_buckets = sb.layout.njournal();
        let mut backing = backing_super(sb.set_uuid);
        backing.set_state(BackingState::Dirty);

        let mut uuids = UuidTable::empty(sb.layout.nr_uuids());
        uuids.slots[0] = UuidEntry { uuid: backing.uuid, ..UuidEntry::default() };
        uuids.slots[1] =
            UuidEntry { uuid: Uuid::from_u128(9), sectors: 512, ..UuidEntry::default() };
        uuids.slots[1].set_flash_only();

        let bound = Pos::new(0, 100);
        let gone = node_key(bound, 26);
        let root = TestNode {
            key: node_key(Pos::MAX, ROOT),
            level: 1,
            sets: vec![
                vec![gone, node_key(Pos::MAX, 25)],
                vec![Key::freeing(gone, 2), node_key(bound, 24)],
            ],
        };
        let left = TestNode {
            key: node_key(bound, 24),
            level: 0,
            sets: vec![
                vec![extent(16, 24, true, 100), extent(32, 40, false, 101)],
                vec![extent(34, 36, true, 102), Key::check(0, 60, 64, 77)],
            ],
        };
        let right = TestNode {
            key: node_key(Pos::MAX, 25),
            level: 0,
            sets: vec![vec![
                extent(104, 112, true, 103),
                extent(112, 120, false, 104),
                Key::extent(1, 0, 8, true, at(105)),
            ]],
        };
        let prios = prios(&sb.layout);
        let mut set = TestSet {
            sb,
            backing,
            entries: Vec::new(),
            prios,
            prio_buckets: vec![Bucket(PRIO), Bucket(PRIO + 1)],
            uuids,
            nodes: vec![root, left, right],
        };
        set.entries = vec![
            // Written back to the btree long ago: its key must not come back.
            (0, 0, set.entry(5, 5, vec![extent(200, 208, false, 110)])),
            (1, 0, set.entry(6, 6, vec![extent(40, 48, true, 106)])),
            (1, 1, set.entry(7, 6, vec![Key::invalidation(0, 112, 116)])),
        ];
        set
    }

    pub(crate) fn layout(&self) -> Layout {
        self.sb.layout
    }

    pub(crate) fn magic(&self) -> SetMagic {
        self.sb.set_magic()
    }

    /// A journal entry that names the roots.
    pub(crate) fn entry(&self, seq: u64, last_seq: u64, keys: Vec<Key>) -> JournalEntry {
        JournalEntry {
            seq,
            last_seq,
            version: 1,
            uuid_bucket: node_key(Pos::ZERO, UUIDS),
            btree_root: self.nodes[0].key,
            btree_level: self.nodes[0].level,
            prio_bucket: self.prio_buckets[0],
            keys,
        }
    }

    /// The newest entry.
    pub(crate) fn newest(&mut self) -> &mut JournalEntry {
        &mut self.entries.last_mut().unwrap().2
    }

    pub(crate) fn frame(&self, node: usize) -> NodeFrame {
        let node = &self.nodes[node];
        NodeFrame::new(node.key, node.level, self.magic(), &self.layout())
    }

    /// The bytes of a node, all blocks.
    pub(crate) fn node_bytes(&self, node: usize) -> Vec<u8> {
        let frame = self.frame(node);
        let mut bytes = Vec::new();
        for keys in &self.nodes[node].sets {
            bytes.extend(BsetWriter { frame: &frame, seq: 0x5E_u64 + node as u64 }.encode(keys));
        }
        assert!(bytes.len() <= frame.bytes());
        bytes.resize(frame.bytes(), 0);
        bytes
    }

    /// The two devices. Data sectors hold their own number and which device they are on.
    pub(crate) fn build(&self) -> (Mem, Mem) {
        let ssd = Mem::new(Sectors(NBUCKETS * BUCKET));
        let hdd = Mem::new(Sectors(HDD_SECTORS));
        for sector in 0..HDD_SECTORS {
            hdd.poke(sector * 512, &pattern(b'H', sector));
        }
        for sector in 100 * BUCKET..140 * BUCKET {
            ssd.poke(sector * 512, &pattern(b'S', sector));
        }
        hdd.poke(4096, self.backing.encode().as_slice());
        ssd.poke(4096, self.sb.encode().as_slice());
        for (ring, block, entry) in &self.entries {
            let sector = (self.sb.layout.first_bucket + ring) * BUCKET + block;
            ssd.poke(sector * 512, &entry.encode(self.magic(), &self.layout()));
        }
        for (bucket, prios) in self.prio_buckets.iter().zip(&self.prios) {
            let bytes = prios.encode(self.magic(), self.layout().meta_sectors());
            ssd.poke(bucket.0 * BUCKET * 512, &bytes);
        }
        ssd.poke(UUIDS * BUCKET * 512, &self.uuids.encode(4096));
        for node in 0..self.nodes.len() {
            ssd.poke(self.frame(node).sector * 512, &self.node_bytes(node));
        }
        (ssd, hdd)
    }

    /// Sector where a node begins, for damage done after building.
    pub(crate) fn node_sector(&self, node: usize) -> u64 {
        self.frame(node).sector
    }
}

/// What sector `n` of a device holds.
pub(crate) fn pattern(device: u8, n: u64) -> [u8; 512] {
    let mut bytes = [device; 512];
    bytes[..8].copy_from_slice(&n.to_le_bytes());
    bytes
}

fn cache_super() -> CacheSuper {
    FormatCache {
        uuid: Uuid::from_u128(1),
        set_uuid: Uuid::from_u128(2),
        label: [0; 32],
        device_sectors: NBUCKETS * BUCKET,
        block_size: 1,
        bucket_size: 8,
        discard: false,
        replacement: Replacement::Lru,
    }
    .superblock()
    .unwrap()
}

fn backing_super(set_uuid: Uuid) -> BackingSuper {
    FormatBacking {
        uuid: Uuid::from_u128(3),
        set_uuid,
        label: [0; 32],
        device_sectors: HDD_SECTORS,
        block_size: 1,
        data_offset: 16,
        mode: CacheMode::Writeback,
    }
    .superblock()
    .unwrap()
}

/// Every bucket in its first life.
fn prios(layout: &Layout) -> Vec<PrioSet> {
    let per_set = Layout::prio_per_set(layout.meta_sectors());
    let prio = |_| Prio { prio: 0, generation: 1 };
    (0..layout.prio_sets())
        .map(|n| PrioSet {
            seq: 12,
            version: 0,
            next: Bucket(PRIO + 1 + n),
            entries: (0..per_set).map(prio).collect(),
        })
        .collect()
}

/// Runs `task` in a simulated world: the devices are RAM, nothing takes time.
pub(crate) fn run<T: 'static, F: Future<Output = T> + 'static>(task: F) -> T {
    Sim::new(1).run(move |_| task)
}
