//! Reading all data there is, every copy of it, against its checksums.

use crate::csum::{Digest, Found};
use crate::error::Result;
use crate::format::key::{ItemType, Key, objectid};
use crate::fs::Fs;
use crate::tree::cursor::Cursor;
use crate::units::{Logical, Physical, to_usize};
use varve_block::{BlockDevice, chain};

/// Read at a time.
const WINDOW: u64 = 1 << 20;

/// A copy of a sector that is not what was written.
#[derive(Clone, Debug)]
pub struct BadCopy {
    pub at: Logical,
    /// Counted from 1.
    pub mirror: usize,
    pub copies: usize,
    pub physical: Physical,
    pub why: String,
}

/// What a scan came to.
#[derive(Debug, Default)]
pub struct Scanned {
    /// Bytes of data, each counted once.
    pub bytes: u64,
    pub bad: Vec<BadCopy>,
}

impl<D: BlockDevice> Fs<D> {
    /// Reads every copy of every sector that has a checksum. `progress` is told how many bytes are
    /// done. Parity is not looked at.
    ///
    /// # Errors
    /// When the tree of checksums cannot be read.
    pub async fn scan_data(&self, progress: &mut dyn FnMut(u64)) -> Result<Scanned> {
        let mut scanned = Scanned::default();
        let Some(tree) = &self.csums else { return Ok(scanned) };
        let sector = u64::from(self.volume.rules.sectorsize);
        let each = self.volume.rules.csum.size();
        let first = Key::new(objectid::EXTENT_CSUM, ItemType::EXTENT_CSUM, 0);
        let mut cursor = Cursor::seek(&self.volume, tree, first).await?;
        let last = Key::new(objectid::EXTENT_CSUM, ItemType::EXTENT_CSUM, u64::MAX);
        while let Some(item) = cursor.next_to(last).await? {
            let start = item.key().offset;
            let sums: Vec<&[u8]> = item.data().chunks_exact(each).collect();
            let per_window = to_usize(WINDOW / sector);
            for (n, sums) in (0u64..).zip(sums.chunks(per_window)) {
                let at = Logical(start.saturating_add(n * WINDOW));
                self.scan_window(at, sums, &mut scanned).await?;
                scanned.bytes += sums.len() as u64 * sector;
                progress(scanned.bytes);
            }
        }
        Ok(scanned)
    }

    /// The sectors from `at` on, one for each digest.
    async fn scan_window(&self, at: Logical, sums: &[&[u8]], scanned: &mut Scanned) -> Result<()> {
        let sector = self.volume.rules.sectorsize as usize;
        let mut done = 0;
        while done < sums.len() {
            let here = Logical(at.0 + (done * sector) as u64);
            let left = ((sums.len() - done) * sector) as u64;
            let piece = self.volume.chunks().borrow().map(here, left)?;
            let sectors = (to_usize(piece.len) / sector).clamp(1, sums.len() - done);
            let wanted = sums.get(done..done + sectors).unwrap_or(&[]);
            for (mirror, place) in (1..).zip(&piece.copies) {
                let copy = Copy { mirror, copies: piece.copies.len(), place: *place };
                self.scan_copy(here, &copy, wanted, scanned).await;
            }
            done += sectors;
        }
        Ok(())
    }

    async fn scan_copy(&self, at: Logical, copy: &Copy, sums: &[&[u8]], scanned: &mut Scanned) {
        let sector = self.volume.rules.sectorsize as usize;
        let mut bytes = vec![0; sums.len() * sector];
        let whole = self.volume.read_mirror(at, copy.mirror, &mut bytes).await.is_ok();
        for ((n, wanted), bytes) in (0u64..).zip(sums).zip(bytes.chunks_mut(sector)) {
            let off = n * sector as u64;
            let here = Logical(at.0 + off);
            // Where the device failed somewhere in the window, each sector is asked for by itself.
            let read = match whole {
                true => Ok(()),
                false => self.volume.read_mirror(here, copy.mirror, bytes).await,
            };
            let digest: Digest = self.volume.rules.csum.digest(bytes);
            let why = match read {
                Err(error) => chain(&error),
                Ok(()) if digest.bytes() == *wanted => continue,
                Ok(()) => {
                    format!("csum {digest} expected {}", Found(wanted, self.volume.rules.csum))
                }
            };
            let physical = Physical { byte: copy.place.byte + off, ..copy.place };
            let (mirror, copies) = (copy.mirror, copy.copies);
            scanned.bad.push(BadCopy { at: here, mirror, copies, physical, why });
        }
    }
}

/// One copy of a window.
struct Copy {
    mirror: usize,
    copies: usize,
    place: Physical,
}
