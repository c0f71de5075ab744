//! Checks 46 to 54: what the index says about data, the journal replayed.

use std::collections::BTreeMap;

use varve_block::{BlockDevice, DevId};

use super::Checker;
use super::index::Index;
use super::rows::Severity;
use crate::effective::Mapped;
use crate::error::{Corrupt, Place};
use crate::format::{BackingState, Key, UuidTable};
use crate::load::Loader;

/// Sectors compared at a time.
const STRIDE: u64 = 2048;

fn place(inode: u32, mapped: &Mapped) -> Place {
    // A mapped extent came from a key, so it fits into one.
    let key = Key::extent(inode, mapped.start, mapped.end, mapped.dirty, mapped.ptr);
    Place { sector: Some(mapped.ptr.offset()), key: Some(key), ..Place::default() }
}

fn wrong(
    row: u8,
    (inode, mapped): (u32, &Mapped),
    field: &'static str,
    found: impl std::fmt::Display,
    expected: impl std::fmt::Display,
) -> Corrupt {
    Corrupt::row(row, "extent", place(inode, mapped), field, found, expected)
}

impl Checker<'_> {
    pub(super) async fn extents<S: BlockDevice, B: BlockDevice>(
        &mut self,
        ssd: &Loader<'_, S>,
        index: &Index,
        hdd: Option<&B>,
    ) {
        let dev = ssd.dev();
        for (inode, lost) in &index.lost {
            let found = format!("{} dirty sectors in a bucket that was reused", lost.sectors());
            let expected = "the bucket's current generation";
            self.add(&dev, wrong(46, (*inode, lost), "gen", found, expected));
        }
        let length = hdd.map(|hdd| hdd.geometry().len.0);
        if let Some(uuids) = &index.uuids {
            self.orphans(&dev, index, uuids);
            self.bounds(&dev, index, uuids, length);
            self.dirty_state(&dev, index, uuids);
        }
        self.blocks(&dev, index);
        self.places(&dev, index);
        if self.options.data {
            let backing = hdd.map(|hdd| Loader::new(hdd, self.pool));
            self.data(ssd, index, backing.as_ref()).await;
        }
    }

    /// Check 47.
    fn orphans(&mut self, dev: &DevId, index: &Index, uuids: &UuidTable) {
        let mut orphans: BTreeMap<u32, (u64, Mapped)> = BTreeMap::new();
        for (inode, mapped) in index.extents.iter().filter(|(_, mapped)| mapped.dirty) {
            if !uuids.get(inode).is_some_and(|slot| slot.in_use()) {
                orphans.entry(inode).or_insert((0, *mapped)).0 += mapped.sectors();
            }
        }
        for (inode, (sectors, first)) in orphans {
            let found = format!(
                "{sectors} dirty sectors of inode {inode}, which has no volume; \
                 `varve cache rescue` can write them to an image"
            );
            self.add(dev, wrong(47, (inode, &first), "inode", found, "a slot in use"));
        }
    }

    /// Check 48.
    fn bounds(&mut self, dev: &DevId, index: &Index, uuids: &UuidTable, length: Option<u64>) {
        let ours = self.attached().and_then(|backing| {
            let (inode, _) = uuids.find(backing.uuid)?;
            Some((inode, backing.data_offset, length?))
        });
        for (inode, mapped) in index.extents.iter() {
            let flash = uuids.get(inode).filter(|slot| slot.in_use() && slot.flash_only());
            let (from, to) = match (ours, flash) {
                (Some((of, from, to)), _) if of == inode => (from, to),
                (_, Some(slot)) => (0, slot.sectors),
                _ => continue,
            };
            if mapped.start < from || mapped.end > to {
                let found = format!("{}..{}", mapped.start, mapped.end);
                let expected = format!("inside {from}..{to}");
                self.add(dev, wrong(48, (inode, mapped), "range", found, expected));
            }
        }
    }

    /// Check 49, once per volume.
    fn blocks(&mut self, dev: &DevId, index: &Index) {
        let block = u64::from(index.layout.block_size);
        let mut odd: BTreeMap<u32, (u64, Mapped)> = BTreeMap::new();
        for (inode, mapped) in index.extents.iter() {
            if !mapped.start.is_multiple_of(block) || !mapped.end.is_multiple_of(block) {
                odd.entry(inode).or_insert((0, *mapped)).0 += 1;
            }
        }
        for (inode, (count, first)) in odd {
            let found = format!("{count} extents");
            let expected = format!("multiples of {block} sectors");
            self.add(dev, wrong(49, (inode, &first), "start", found, expected));
        }
    }

    /// Checks 50 and 51.
    fn places(&mut self, dev: &DevId, index: &Index) {
        let layout = &index.layout;
        let mut by_place: Vec<(u64, u32, Mapped)> =
            index.extents.iter().map(|(inode, m)| (m.ptr.offset(), inode, *m)).collect();
        by_place.sort_by_key(|(at, inode, mapped)| (*at, *inode, mapped.start));
        let mut end = (0, None::<(u32, Mapped)>);
        for (at, inode, mapped) in by_place {
            if let Some((of, other)) = end.1.filter(|_| at < end.0) {
                let expected = format!("nothing of {of}:{}..{}", other.start, other.end);
                self.add(dev, wrong(50, (inode, &mapped), "ptr", mapped.ptr, expected));
            }
            let reach = at + mapped.sectors();
            if reach > end.0 {
                end = (reach, Some((inode, mapped)));
            }
            let bucket = layout.bucket_of(at);
            if index.metadata.contains(&bucket) {
                let found = format!("{bucket}, which holds metadata");
                self.add(dev, wrong(51, (inode, &mapped), "ptr", found, "a bucket for data"));
            }
        }
    }

    /// Check 52. Between the first dirty key and the superblock's write a crash may fall.
    fn dirty_state(&mut self, dev: &DevId, index: &Index, uuids: &UuidTable) {
        let Some(backing) = self.attached() else { return };
        let Some((inode, _)) = uuids.find(backing.uuid) else { return };
        if backing.state() == BackingState::Dirty {
            return;
        }
        let dirty: Vec<&Mapped> =
            index.extents.range(inode, 0, u64::MAX).filter(|mapped| mapped.dirty).collect();
        if let Some(first) = dirty.first() {
            let sectors: u64 = dirty.iter().map(|mapped| mapped.sectors()).sum();
            let found = format!("{:?} with {sectors} dirty sectors", backing.state());
            self.add(dev, wrong(52, (inode, first), "state", found, "Dirty"));
        }
    }

    /// Check 54.
    async fn data<S: BlockDevice, B: BlockDevice>(
        &mut self,
        ssd: &Loader<'_, S>,
        index: &Index,
        hdd: Option<&Loader<'_, B>>,
    ) {
        let dev = ssd.dev();
        let uuids = index.uuids.as_ref();
        let ours = self.attached().and_then(|backing| Some(uuids?.find(backing.uuid)?.0));
        for (inode, mapped) in index.extents.iter() {
            let mut at = mapped.start;
            while at < mapped.end {
                let part = STRIDE.min(mapped.end - at);
                let held = match ssd.read(mapped.sector(at), part).await {
                    Ok(held) => held,
                    Err(failed) => {
                        let severity =
                            if mapped.dirty { Severity::Fatal } else { Severity::Repairable };
                        let found = varve_block::chain(&failed);
                        let corrupt = wrong(54, (inode, mapped), "read", found, "readable sectors");
                        self.add_as(severity, &dev, 54, corrupt);
                        at += part;
                        continue;
                    }
                };
                if let Some(hdd) = hdd.filter(|_| !mapped.dirty && ours == Some(inode))
                    && let Ok(below) = hdd.read(at, part).await
                    && let Some(byte) = (0..held.len()).find(|byte| held[*byte] != below[*byte])
                {
                    let found = format!("other data from sector {} on", at + byte as u64 / 512);
                    let expected = "what the backing device holds";
                    let corrupt = wrong(54, (inode, mapped), "data", found, expected);
                    self.add_as(Severity::Repairable, &dev, 54, corrupt);
                }
                at += part;
            }
        }
    }
}
