//! Where the first chunks go: one behind the other from 1 MiB on, at the same logical address as the
//! first copy's physical one.

use crate::chunk::super_ranges;
use crate::format::Uuid;
use crate::format::chunk::{Chunk, GroupFlags, RESERVED, STRIPE_LEN, Stripe};
use crate::units::Logical;
use std::ops::Range;

const SYSTEM_SIZE: u64 = 8 << 20;
const DATA_SIZE: u64 = 8 << 20;
const METADATA_MIN: u64 = 32 << 20;
/// Metadata gets five per cent of the device, within bounds; the kernel adds chunks as it needs them.
const METADATA_SHARE: u64 = 20;

/// One chunk to be: the same run of logical addresses at one or two places.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) flags: GroupFlags,
    pub(super) start: u64,
    pub(super) length: u64,
    pub(super) copies: Vec<u64>,
}

#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) system: Place,
    pub(super) metadata: Place,
    pub(super) data: Place,
}

impl Layout {
    pub(super) fn new(dup: bool, total: u64) -> Layout {
        let most = if total > 50 << 30 { 1 << 30 } else { 256 << 20 };
        let share = total / METADATA_SHARE;
        let metadata = (share - share % STRIPE_LEN).clamp(METADATA_MIN, most);
        let profile = if dup { GroupFlags::DUP } else { GroupFlags::empty() };
        let mut next = RESERVED;
        let mut put = |flags: GroupFlags, length: u64| {
            let copies = if flags.contains(GroupFlags::DUP) { 2 } else { 1 };
            let start = next;
            next += length * copies;
            let copies = (0..copies).map(|n| start + n * length).collect();
            Place { flags, start, length, copies }
        };
        Layout {
            system: put(GroupFlags::SYSTEM | profile, SYSTEM_SIZE),
            metadata: put(GroupFlags::METADATA | profile, metadata),
            data: put(GroupFlags::DATA, DATA_SIZE),
        }
    }

    /// In order of their addresses.
    pub(super) fn places_in_order(&self) -> [&Place; 3] {
        [&self.system, &self.metadata, &self.data]
    }

    /// Every device byte that a logical address is written to.
    pub(super) fn places(&self, at: Logical) -> impl Iterator<Item = u64> {
        let hit = self
            .places_in_order()
            .into_iter()
            .find(|place| (place.start..place.start + place.length).contains(&at.0));
        let place = hit.expect("blocks are allocated inside the layout's chunks");
        let off = at.0 - place.start;
        place.copies.clone().into_iter().map(move |copy| copy + off)
    }
}

impl Place {
    pub(super) fn chunk(&self, devid: u64, dev_uuid: Uuid, sectorsize: u32) -> Chunk {
        let stripe = |&offset: &u64| Stripe { devid, offset, dev_uuid };
        Chunk {
            length: self.length,
            owner: crate::format::key::objectid::EXTENT_TREE,
            stripe_len: STRIPE_LEN,
            flags: self.flags,
            io_align: 65536,
            io_width: 65536,
            sector_size: sectorsize,
            sub_stripes: 1,
            stripes: self.copies.iter().map(stripe).collect(),
        }
    }

    /// The first `count` places for blocks of `nodesize`, around superblock copies.
    pub(super) fn allocate(&self, nodesize: u32, count: usize) -> Vec<Logical> {
        let nodesize = u64::from(nodesize);
        let taken = super_ranges(Logical(self.start), &self.chunk(1, Uuid::nil(), 4096));
        let clash =
            |at: &u64| taken.iter().any(|range| range.start < at + nodesize && *at < range.end);
        let slots = (0..self.length / nodesize).map(|n| self.start + n * nodesize);
        let found: Vec<_> = slots.filter(|at| !clash(at)).take(count).map(Logical).collect();
        assert_eq!(found.len(), count, "the first blocks fit the first chunks");
        found
    }

    /// What stays free when `blocks`, in order, are taken. Places of superblock copies count as
    /// free in the free space tree: the allocator knows to keep off.
    pub(super) fn free(&self, blocks: &[Logical], nodesize: u32) -> Vec<Range<u64>> {
        let mut free = Vec::new();
        let mut from = self.start;
        for block in blocks {
            if from < block.0 {
                free.push(from..block.0);
            }
            from = block.0 + u64::from(nodesize);
        }
        let end = self.start + self.length;
        if from < end {
            free.push(from..end);
        }
        free
    }
}
