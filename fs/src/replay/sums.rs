//! Checksums of logged data: the log's own take the place of older ones for the same addresses.

use super::draft::Draft;
use super::inodes::Replay;
use crate::error::Result;
use crate::format::block::{ITEM_HEAD_SIZE, leaf_space};
use crate::format::key::{ItemType, Key, objectid};
use crate::units::{Logical, to_usize};
use varve_block::BlockDevice;

fn key(at: u64) -> Key {
    Key::new(objectid::EXTENT_CSUM, ItemType::EXTENT_CSUM, at)
}

impl<D: BlockDevice> Replay<'_, D> {
    /// Copies what the log has for `[from, to)`. Sectors that it has no checksum for keep theirs.
    pub(super) async fn put_sums(
        &self,
        from: Logical,
        to: Logical,
        sums: &mut Draft<'_, D>,
    ) -> Result<()> {
        for (start, digests) in self.log.sums_in(from, to) {
            let covered = (digests.len() / self.sum_size) as u64 * self.sectorsize;
            let end = start.saturating_add(covered).min(to.0);
            let begin = start.max(from.0);
            if begin >= end {
                continue;
            }
            let part = self.slice(digests, begin - start, end - start);
            self.make_room_for_sums(begin, end, sums).await?;
            // In pieces that leave room in a leaf.
            let most = (leaf_space(self.nodesize) as usize / 2 - ITEM_HEAD_SIZE) / self.sum_size;
            for (n, piece) in (0u64..).zip(part.chunks(most.max(1) * self.sum_size)) {
                let at = begin + n * most.max(1) as u64 * self.sectorsize;
                sums.put(key(at), piece.to_vec());
            }
        }
        Ok(())
    }

    /// Digests of the bytes `[from, to)` behind the item's first sector.
    fn slice<'d>(&self, digests: &'d [u8], from: u64, to: u64) -> &'d [u8] {
        let at = |byte: u64| to_usize(byte / self.sectorsize).saturating_mul(self.sum_size);
        digests.get(at(from)..at(to)).unwrap_or(&[])
    }

    async fn make_room_for_sums(&self, from: u64, to: u64, sums: &mut Draft<'_, D>) -> Result<()> {
        let before = match from.checked_sub(1) {
            Some(before) => sums.last(key(before)).await?,
            None => None,
        };
        if let Some((at, data)) = before.filter(|(at, _)| at.kind == ItemType::EXTENT_CSUM) {
            self.cut(at, &data, from, to, sums);
        }
        let mut next = key(from);
        while let Some((at, data)) = sums.first(next..=key(to - 1)).await? {
            self.cut(at, &data, from, to, sums);
            next = at.next();
        }
        Ok(())
    }

    /// Takes `[from, to)` out of one item.
    fn cut(&self, at: Key, data: &[u8], from: u64, to: u64, sums: &mut Draft<'_, D>) {
        let start = at.offset;
        let end = start.saturating_add((data.len() / self.sum_size) as u64 * self.sectorsize);
        if end <= from || start >= to {
            return;
        }
        sums.remove(at);
        if start < from {
            sums.put(at, self.slice(data, 0, from - start).to_vec());
        }
        if end > to {
            sums.put(key(to), self.slice(data, to - start, end - start).to_vec());
        }
    }
}
